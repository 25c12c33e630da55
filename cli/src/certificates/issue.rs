//! Makes keys and certificates.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use super::plan::{Authority, Leaf, Usage};

/// A certificate and its key, PEM.
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the key of {secret} cannot be used")]
    Key {
        secret: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("{secret}: {name} is no name that a certificate may have")]
    Name { secret: String, name: String },
    #[error("make the certificate of {secret}")]
    Make {
        secret: String,
        #[source]
        source: rcgen::Error,
    },
}

/// An authority, with the key that it had or with a new one.
pub fn issue_authority(
    wanted: &Authority,
    key_pem: Option<&str>,
    now_unix_secs: i64,
) -> Result<Issued, IssueError> {
    let key = key(&wanted.secret, key_pem)?;
    let mut params = authority_params(&wanted.common_name);
    set_validity(&mut params, now_unix_secs, wanted.lifetime);
    let certificate = params.self_signed(&key).map_err(made(&wanted.secret))?;
    Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// A certificate with a new key, signed by `authority`, which was made as `by` says.
pub fn issue_leaf(
    wanted: &Leaf,
    by: &Authority,
    authority: &Issued,
    now_unix_secs: i64,
) -> Result<Issued, IssueError> {
    let signing = key(&by.secret, Some(&authority.key_pem))?;
    let issuer = Issuer::new(authority_params(&by.common_name), signing);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "crescendo");
    params.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = wanted
        .usages
        .iter()
        .map(|usage| match usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        })
        .collect();
    params.subject_alt_names = names(wanted)?;
    set_validity(&mut params, now_unix_secs, wanted.lifetime);
    let own = key(&wanted.secret, None)?;
    let certificate = params.signed_by(&own, &issuer).map_err(made(&wanted.secret))?;
    Ok(Issued { certificate_pem: certificate.pem(), key_pem: own.serialize_pem() })
}

fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn names(wanted: &Leaf) -> Result<Vec<SanType>, IssueError> {
    let refused = |name: &str| IssueError::Name { secret: wanted.secret.clone(), name: name.to_owned() };
    let mut names = Vec::new();
    for name in &wanted.dns_names {
        names.push(SanType::DnsName(name.as_str().try_into().map_err(|_| refused(name))?));
    }
    for uri in &wanted.uris {
        names.push(SanType::URI(uri.as_str().try_into().map_err(|_| refused(uri))?));
    }
    names.extend(wanted.ip_addresses.iter().map(|address: &IpAddr| SanType::IpAddress(*address)));
    Ok(names)
}

fn set_validity(params: &mut CertificateParams, now_unix_secs: i64, lifetime: Duration) {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now_unix_secs.max(0).unsigned_abs());
    (params.not_before, params.not_after) = (now, now + lifetime);
}

fn key(secret: &str, pem: Option<&str>) -> Result<KeyPair, IssueError> {
    let key = pem.map_or_else(KeyPair::generate, KeyPair::from_pem);
    key.map_err(|source| IssueError::Key { secret: secret.to_owned(), source })
}

fn made(secret: &str) -> impl FnOnce(rcgen::Error) -> IssueError {
    move |source| IssueError::Make { secret: secret.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::super::Plan;
    use super::*;

    const PLAN: &str = r#"
authorities: [{secret: ca, commonName: x-ca, lifetime: 1h}]
certificates:
  - {secret: tls, authority: ca, commonName: x, dnsNames: ["*.x.ml.svc"], ipAddresses: [127.0.0.1],
     uris: ["urn:crescendo:role:node"], usages: [server auth, client auth], lifetime: 10m}
"#;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
    }

    /// Whether a client that trusts `root` takes `leaf` for `host`, at `now`.
    fn takes(root: &Issued, leaf: &Issued, host: &str, now: i64) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(der(&root.certificate_pem)).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("a verifier");
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
        let host = ServerName::try_from(host.to_owned()).expect("a name");
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &der(&leaf.certificate_pem),
            &[],
            &host,
            &[],
            now,
        )
        .is_ok()
    }

    #[test]
    fn what_is_made_is_good_for_its_names_and_its_time() {
        let plan = Plan::parse(PLAN).expect("a plan");
        let (by, wanted) = (&plan.authorities[0], &plan.certificates[0]);
        let now = 1_800_000_000;
        let root = issue_authority(by, None, now).expect("an authority");
        let leaf = issue_leaf(wanted, by, &root, now).expect("a certificate");
        assert!(takes(&root, &leaf, "x-0.x.ml.svc", now + 1));
        assert!(takes(&root, &leaf, "127.0.0.1", now + 1));
        assert!(!takes(&root, &leaf, "x-0.y.ml.svc", now + 1));
        assert!(!takes(&root, &leaf, "x-0.x.ml.svc", now + 700));
        let peer =
            crescendo_node::tls::PeerCertificate::from_der(&der(&leaf.certificate_pem)).expect("a peer");
        assert_eq!(peer.roles().collect::<Vec<_>>(), ["node"]);
        // Who trusts the authority as it was takes what the renewed one signs, and the other way round.
        let renewed = issue_authority(by, Some(&root.key_pem), now + 1000).expect("an authority");
        let later = issue_leaf(wanted, by, &renewed, now + 1000).expect("a certificate");
        assert!(takes(&root, &later, "x-0.x.ml.svc", now + 1001));
        assert!(takes(&renewed, &leaf, "x-0.x.ml.svc", now + 1));
        let other = issue_authority(by, None, now).expect("an authority");
        assert!(!takes(&other, &leaf, "x-0.x.ml.svc", now + 1));
    }
}
