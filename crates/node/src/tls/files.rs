//! Certificates, keys and roots, from their files to what rustls takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// The only protocol that is spoken.
const ALPN_H2: &[u8] = b"h2";
/// Largest file that is read: a few hundred roots fit.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Which files a process has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// What this process shows to others. Servers need it; clients only where the server asks for it.
    pub identity: Option<Identity>,
    /// Roots by which others are verified, PEM. Those of the system if absent, for clients.
    pub ca: Option<PathBuf>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate itself first, then those between it and a root.
    pub cert: PathBuf,
    /// PEM: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} has no {what}: it must be PEM text with -----BEGIN {label}----- ({reason})")]
    NotPem { path: PathBuf, what: &'static str, label: &'static str, reason: String },
    #[error("certificate {number} of {path} is not a certificate: {reason}")]
    NotCertificate { path: PathBuf, number: usize, reason: String },
    #[error("certificate {number} of {path} cannot be a root: {reason}")]
    NotRoot { path: PathBuf, number: usize, reason: String },
    #[error("the key {key} does not belong to the certificate {cert}")]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("the key {key} or the certificate {cert} cannot be used: {reason}")]
    Unusable { cert: PathBuf, key: PathBuf, reason: String },
    #[error("the certificate {path} ({subject}) has expired, on {not_after}: renew it")]
    Expired { path: PathBuf, subject: String, not_after: String },
    #[error(
        "the certificate {path} ({subject}) is not valid before {not_before}: is this machine's clock right?"
    )]
    NotYetValid { path: PathBuf, subject: String, not_before: String },
    #[error("the system has no root certificates ({reason}): name a file of them with --tls-ca")]
    NoSystemRoots { reason: String },
    #[error("{0}")]
    Provider(String),
}

/// What the files have in them.
pub(super) struct Contents {
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
    ca: Option<Vec<u8>>,
}

impl Contents {
    pub async fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let identity = match &files.identity {
            Some(identity) => Some((read(&identity.cert).await?, read(&identity.key).await?)),
            None => None,
        };
        let ca = match &files.ca {
            Some(path) => Some(read(path).await?),
            None => None,
        };
        Ok(Self { identity, ca })
    }

    /// The same for the same contents; kept instead of a second copy of the key.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let (cert, key) = self.identity.as_ref().map_or((&[][..], &[][..]), |(cert, key)| (cert, key));
        for part in [cert, key, self.ca.as_deref().unwrap_or_default()] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use tokio::io::AsyncReadExt as _;
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// One consistent set of everything, ready for use.
pub(super) struct Loaded {
    /// For servers whose clients may come without a certificate, and for those whose clients may not.
    pub servers: Option<Servers>,
    pub client: Arc<ClientConfig>,
    /// End of this process's certificate, Unix time.
    pub certificate_not_after: Option<i64>,
    /// End of the first root to end, Unix time.
    pub ca_not_after: Option<i64>,
    /// The first name in this process's certificate.
    pub own_name: Option<ServerName<'static>>,
}

pub(super) struct Servers {
    pub asking: Arc<ServerConfig>,
    pub requiring: Arc<ServerConfig>,
}

/// Makes what rustls takes of the files' contents. `now` is Unix time.
pub(super) fn load(files: &TlsFiles, contents: &Contents, now: i64) -> Result<Loaded, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (roots, ca_not_after) = match (&files.ca, &contents.ca) {
        (Some(path), Some(pem)) => roots(path, pem, now)?,
        _ => (system_roots()?, None),
    };
    let roots = Arc::new(roots);
    let own = match (&files.identity, &contents.identity) {
        (Some(identity), Some((cert, key))) => Some(Own::read(identity, cert, key, now)?),
        _ => None,
    };

    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Provider(error.to_string()))?
        .with_root_certificates(Arc::clone(&roots));
    let mut client = match &own {
        Some(own) => builder
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
            .map_err(|error| own.refused(&error))?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![ALPN_H2.to_vec()];
    client.resumption = Resumption::disabled();

    let servers = match &own {
        Some(own) => Some(Servers {
            asking: server(own, &provider, &roots, false)?,
            requiring: server(own, &provider, &roots, true)?,
        }),
        None => None,
    };
    Ok(Loaded {
        servers,
        client: Arc::new(client),
        certificate_not_after: own.as_ref().map(|own| own.not_after),
        ca_not_after,
        own_name: own.and_then(|own| own.name),
    })
}

fn server(
    own: &Own,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    required: bool,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
    let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
    let verifier: Arc<dyn ClientCertVerifier> =
        verifier.build().map_err(|error| TlsError::Provider(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Provider(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(|error| own.refused(&error))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// This process's certificate and key.
struct Own {
    files: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_after: i64,
    name: Option<ServerName<'static>>,
}

impl Own {
    fn read(files: &Identity, cert: &[u8], key: &[u8], now: i64) -> Result<Self, TlsError> {
        let chain = certificates(&files.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::NotPem {
            path: files.key.clone(),
            what: "private key",
            label: "PRIVATE KEY",
            reason: match error {
                rustls::pki_types::pem::Error::NoItemsFound => {
                    "none was found; one that is encrypted cannot be used".to_owned()
                }
                other => other.to_string(),
            },
        })?;
        let mut own = Self { files: files.clone(), chain, key, not_after: 0, name: None };
        // `certificates` returns at least one, each of which can be read.
        if let Some((_, leaf)) = own.chain.first().and_then(|leaf| parse_x509_certificate(leaf).ok()) {
            check_dates(&files.cert, &leaf, now)?;
            let name = first_name(&leaf);
            own.not_after = leaf.validity().not_after.timestamp();
            own.name = name;
        }
        Ok(own)
    }

    fn refused(&self, error: &rustls::Error) -> TlsError {
        let (cert, key) = (self.files.cert.clone(), self.files.key.clone());
        match error {
            rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => {
                TlsError::KeyMismatch { cert, key }
            }
            other => TlsError::Unusable { cert, key, reason: other.to_string() },
        }
    }
}

fn first_name(certificate: &X509Certificate<'_>) -> Option<ServerName<'static>> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => ServerName::try_from((*name).to_owned()).ok(),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                _ => std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
            };
            Some(ServerName::IpAddress(address.into()))
        }
        _ => None,
    })
}

/// The certificates of a PEM file, at least one, each of which can be read.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = |reason: String| TlsError::NotPem {
        path: path.to_owned(),
        what: "certificate",
        label: "CERTIFICATE",
        reason,
    };
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_pem(error.to_string()))?;
    if found.is_empty() {
        return Err(not_pem("none was found".to_owned()));
    }
    for (index, certificate) in found.iter().enumerate() {
        parse_x509_certificate(certificate).map_err(|error| TlsError::NotCertificate {
            path: path.to_owned(),
            number: index + 1,
            reason: error.to_string(),
        })?;
    }
    Ok(found)
}

fn check_dates(path: &Path, certificate: &X509Certificate<'_>, now: i64) -> Result<(), TlsError> {
    let (path, subject) = (path.to_owned(), certificate.subject().to_string());
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() {
        return Err(TlsError::Expired { path, subject, not_after: validity.not_after.to_string() });
    }
    if now < validity.not_before.timestamp() {
        return Err(TlsError::NotYetValid { path, subject, not_before: validity.not_before.to_string() });
    }
    Ok(())
}

/// The roots of a file, and the end of the first one to end. One that has ended is no error beside one that has not:
/// roots are replaced by adding the new one first.
fn roots(path: &Path, pem: &[u8], now: i64) -> Result<(RootCertStore, Option<i64>), TlsError> {
    let mut roots = RootCertStore::empty();
    let mut ends = Vec::new();
    let mut last_refusal = None;
    for (index, certificate) in certificates(path, pem)?.into_iter().enumerate() {
        if let Ok((_, parsed)) = parse_x509_certificate(&certificate) {
            match check_dates(path, &parsed, now) {
                Ok(()) => ends.push(parsed.validity().not_after.timestamp()),
                Err(refusal) => {
                    last_refusal = Some(refusal);
                    continue;
                }
            }
        }
        roots.add(certificate).map_err(|error| TlsError::NotRoot {
            path: path.to_owned(),
            number: index + 1,
            reason: error.to_string(),
        })?;
    }
    match last_refusal {
        Some(refusal) if roots.is_empty() => Err(refusal),
        _ => Ok((roots, ends.into_iter().min())),
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or("none was found".to_owned(), ToString::to_string);
        return Err(TlsError::NoSystemRoots { reason });
    }
    Ok(roots)
}
