//! The certificate files of this user: readable, of one another, valid now.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::report::Check;
use crate::settings::Tls;

/// Certificates that end sooner than this are worth a word.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
const CA: &str = "roots";
const OWN: &str = "certificate";

pub fn check(tls: &Tls) -> Vec<Check> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut checks = Vec::new();
    let roots = tls.ca.as_deref().map(|path| (path, read(path)));
    if let Some((path, roots)) = &roots {
        checks.push(judge_all(CA, path, roots, now));
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let chain = read(cert);
        let verdict = judge_all(OWN, cert, &chain, now);
        checks.push(match (&chain, verdict.remedy.is_empty()) {
            (Ok(chain), true) => match belongs(chain, key).and_then(|()| vouched(chain, roots.as_ref(), now))
            {
                Ok(()) => verdict,
                Err((what, remedy)) => Check::failed(OWN, format!("{}: {what}", cert.display()), remedy),
            },
            _ => verdict,
        });
    }
    if checks.is_empty() {
        checks
            .push(Check::skipped(OWN, "no files are named (--tls-ca, --tls-cert, --tls-key, or a context)"));
    }
    checks
}

type Certificates = Result<Vec<CertificateDer<'static>>, String>;
/// What is wrong, and what to do.
type Wrong = (String, &'static str);

fn read(path: &Path) -> Certificates {
    let found = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    match found {
        Err(error) => Err(error.to_string()),
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
    }
}

/// The first that is wrong, or what all are.
fn judge_all(name: &str, path: &Path, found: &Certificates, now: Duration) -> Check {
    let shown = path.display();
    let found = match found {
        Ok(found) => found,
        Err(why) => {
            return Check::failed(name, format!("{shown}: {why}"), "name a PEM file with certificates");
        }
    };
    let mut said = Vec::new();
    let mut soon = false;
    for certificate in found {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Check::failed(
                name,
                format!("{shown}: one of its certificates cannot be read"),
                "make it again",
            );
        };
        match dates(&parsed, now) {
            Ok((text, near)) => {
                said.push(text);
                soon |= near;
            }
            Err(what) => {
                return Check::failed(
                    name,
                    format!("{shown}: {what}"),
                    "renew it; if the date looks right, set this clock",
                );
            }
        }
    }
    let found = format!("{shown}: {}", said.join("; "));
    if soon {
        Check::warning(name, found, "renew it: connections fail when it has ended")
    } else {
        Check::ok(name, found)
    }
}

/// What it says, and whether it ends soon; or that it does not hold now.
fn dates(certificate: &X509Certificate<'_>, now: Duration) -> Result<(String, bool), String> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (from, until) = (certificate.validity().not_before, certificate.validity().not_after);
    let subject = certificate.subject();
    if until.timestamp() < now {
        return Err(format!("{subject} ended on {until}"));
    }
    if from.timestamp() > now {
        return Err(format!("{subject} holds only from {from}"));
    }
    let names = names(certificate);
    let names = if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) };
    let days = (until.timestamp() - now) / 86_400;
    let soon = i64::try_from(SOON.as_secs()).is_ok_and(|soon| until.timestamp() - now < soon);
    Ok((format!("{subject}{names}, {days} days left"), soon))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => {
                <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        _ => None,
    };
    found.value.general_names.iter().filter_map(name).collect()
}

/// The key is that of the first certificate.
fn belongs(chain: &[CertificateDer<'static>], key: &Path) -> Result<(), Wrong> {
    let shown = key.display();
    let parsed = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        (format!("its key {shown}: {error}"), "name a PEM file with one unencrypted private key")
    })?;
    let signing = ring::default_provider().key_provider.load_private_key(parsed).map_err(|error| {
        (format!("its key {shown}: {error}"), "name a file with an RSA, ECDSA or Ed25519 key")
    })?;
    match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        // Unknown: the library cannot tell for this kind of key.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => Err((
            format!("{shown} is the key of another certificate"),
            "use the key that the certificate was made for",
        )),
    }
}

/// A root vouches for the certificate, as a controller with the same roots would find.
fn vouched(
    chain: &[CertificateDer<'static>],
    roots: Option<&(&Path, Certificates)>,
    now: Duration,
) -> Result<(), Wrong> {
    let (Some((_, Ok(roots))), Some((own, between))) = (roots, chain.split_first()) else { return Ok(()) };
    let remedy = "use a certificate that one of the roots in --tls-ca vouches for, with all that are between";
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::new(ring::default_provider()))
            .build()
            .map_err(|error| (format!("the roots cannot be used: {error}"), remedy))?;
    verifier
        .verify_client_cert(own, between, UnixTime::since_unix_epoch(now))
        .map(drop)
        .map_err(|error| (format!("a controller would refuse it: {error}"), remedy))
}
