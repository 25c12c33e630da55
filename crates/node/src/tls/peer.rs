//! Who is at the other end of a connection.

use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What a certificate's URIs about its owner's role begin with.
pub const ROLE_URI: &str = "urn:crescendo:role:";
/// What a certificate's URI about its owner's tenant begins with.
pub const TENANT_URI: &str = "urn:crescendo:tenant:";
/// What a certificate's URI about the one node that it is for begins with.
pub const NODE_URI: &str = "urn:crescendo:node:";
/// The role of trainer and curator nodes.
pub const NODE_ROLE: &str = "node";

/// Who made a connection. Every request that came over it carries this in its extensions.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Absent where the transport has no addresses, as in tests.
    pub addr: Option<SocketAddr>,
    /// Verified against this process's roots. Absent over plain connections, and if the peer showed none.
    pub certificate: Option<PeerCertificate>,
}

/// What a verified certificate says of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Distinguished name, as `CN=trainer-0, O=example`. For people: nothing is decided by it.
    pub subject: String,
    /// Uniform resource identifiers among the subject's alternative names.
    pub uris: Vec<String>,
    /// The end of its validity.
    pub not_after_unix_secs: i64,
    /// SHA-256 of the whole certificate.
    pub fingerprint_sha256: [u8; 32],
}

impl PeerCertificate {
    /// Reads what is needed of a certificate; `None` if it is not one. The TLS handshake has verified it before.
    pub fn from_der(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()?;
        let uris = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Some(Self {
            subject: parsed.subject().to_string(),
            uris,
            not_after_unix_secs: parsed.validity().not_after.timestamp(),
            fingerprint_sha256: Sha256::digest(certificate).into(),
        })
    }

    /// Roles that the certificate gives its owner.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.after(ROLE_URI)
    }

    /// Tenants that the certificate binds its owner to.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.after(TENANT_URI)
    }

    /// Nodes that the certificate is for.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.after(NODE_URI)
    }

    fn after(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        self.uris.iter().filter_map(move |uri| uri.strip_prefix(prefix))
    }
}
