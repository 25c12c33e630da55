//! The identity behind a call.

use std::net::SocketAddr;

use crescendo_core::access::{Role, Scope};
use crescendo_core::ids::{NodeId, Tenant};
use crescendo_node::tls::{NODE_URI, PeerCertificate, ROLE_URI, TENANT_URI};
use tonic::{Request, Status};

use crate::access::audit::AuditContext;

/// What every URI of a certificate that is meant for us begins with.
const OUR_URIS: &str = "urn:crescendo:";

/// Who calls. Services find it in the extensions of every request that reaches them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub role: Role,
    /// `None`: of all tenants.
    pub tenant: Option<Tenant>,
    /// The only node that it may act as; `None` on a certificate for any.
    pub node: Option<NodeId>,
    pub from: Option<SocketAddr>,
}

/// Why a credential is none. The text goes to the caller: it says what is wrong, and never repeats a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    #[error("the certificate's {uri} {reason}")]
    CertificateUri { uri: String, reason: &'static str },
    #[error("the certificate names role {role}, which {reason}")]
    CertificateTenant { role: Role, reason: &'static str },
    #[error("the certificate names {what} and no role")]
    CertificateWithoutRole { what: &'static str },
    #[error("the certificate has expired")]
    CertificateExpired,
    #[error("the authorization metadata must be `Bearer` and a token, once")]
    Malformed,
    #[error("the token is not known")]
    Unknown,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid: {reason}")]
    Invalid { reason: &'static str },
    #[error("the token's claim `{claim}` {reason}")]
    Claim { claim: String, reason: &'static str },
    #[error("the keys of the token's issuer cannot be had at the moment")]
    NoKeys,
    #[error("the client certificate and the token disagree on who calls")]
    Disagree,
}

impl Caller {
    /// Everybody, where there is no login.
    pub fn dev(from: Option<SocketAddr>) -> Self {
        Self { name: "dev".to_owned(), role: Role::Admin, tenant: None, node: None, from }
    }

    pub fn scope(&self) -> Scope {
        match &self.tenant {
            Some(tenant) => Scope::Only(tenant.clone()),
            None => Scope::Everything,
        }
    }

    /// A node whose certificate names it speaks for no other.
    pub fn check_acts_as(&self, node: &NodeId) -> Result<(), Status> {
        match &self.node {
            Some(own) if own != node => Err(Status::permission_denied(format!(
                "the certificate is that of node {own}; it cannot speak for node {node}"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// The same rights, however it is called and wherever it calls from.
    fn agrees_with(&self, other: &Self) -> bool {
        self.role == other.role && self.tenant == other.tenant
    }
}

/// Who a client certificate says it is; `None` if it says nothing about Crescendo.
pub fn of_certificate(
    certificate: &PeerCertificate,
    now_unix_secs: i64,
) -> Result<Option<Caller>, BadCredential> {
    let (mut role, mut tenant, mut node) = (None, None, None);
    for uri in certificate.uris.iter().filter(|uri| uri.starts_with(OUR_URIS)) {
        let bad = |reason| BadCredential::CertificateUri { uri: shown(uri), reason };
        if let Some(text) = uri.strip_prefix(ROLE_URI) {
            let found = Role::parse(text).ok_or_else(|| bad("is not a role"))?;
            set(&mut role, found).map_err(bad)?;
        } else if let Some(text) = uri.strip_prefix(TENANT_URI) {
            set(&mut tenant, Tenant::parse(text).map_err(|_| bad("is not a tenant"))?).map_err(bad)?;
        } else if let Some(text) = uri.strip_prefix(NODE_URI) {
            set(&mut node, NodeId::parse(text).map_err(|_| bad("is not a node id"))?).map_err(bad)?;
        } else {
            return Err(bad("is neither a role nor a tenant nor a node"));
        }
    }
    let Some(role) = role else {
        return match (tenant, node) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(BadCredential::CertificateWithoutRole { what: "a tenant" }),
            (None, Some(_)) => Err(BadCredential::CertificateWithoutRole { what: "a node" }),
        };
    };
    if certificate.not_after_unix_secs <= now_unix_secs {
        // It was valid when the connection was opened.
        return Err(BadCredential::CertificateExpired);
    }
    role.check_tenant(tenant.as_ref()).map_err(|reason| BadCredential::CertificateTenant { role, reason })?;
    if node.is_some() && role != Role::Node {
        let reason = "has a node beside it, which only role node can have";
        return Err(BadCredential::CertificateTenant { role, reason });
    }
    Ok(Some(Caller { name: shown(&certificate.subject), role, tenant, node, from: None }))
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        Some(_) => Err("is not the only one of its kind"),
        None => Ok(()),
    }
}

/// Text from a certificate or a token as one bounded line.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect()
}

/// The one caller behind all credentials that came with a call.
pub fn agreed(certificate: Option<Caller>, token: Option<Caller>) -> Result<Option<Caller>, BadCredential> {
    match (certificate, token) {
        (Some(certificate), Some(token)) if !certificate.agrees_with(&token) => Err(BadCredential::Disagree),
        // The token's name is that of a person or service; the certificate's may be that of a machine.
        (_, Some(token)) => Ok(Some(token)),
        (certificate, None) => Ok(certificate),
    }
}

/// The caller of a request. A service that is reached without one answers nobody.
pub fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("it is not known who calls"))
}

/// Where a service notes what a request is about.
pub fn trail_of<T>(request: &Request<T>) -> AuditContext {
    request.extensions().get::<AuditContext>().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(uris: &[&str]) -> PeerCertificate {
        PeerCertificate {
            subject: "CN=someone".to_owned(),
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            not_after_unix_secs: 1000,
            fingerprint_sha256: [0; 32],
        }
    }

    fn refused(uris: &[&str]) -> String {
        of_certificate(&certificate(uris), 0).expect_err("refused").to_string()
    }

    #[test]
    fn a_certificate_says_role_tenant_and_node() {
        let node = of_certificate(&certificate(&["urn:crescendo:role:node", "urn:crescendo:node:gpu-1"]), 0);
        let node = node.expect("good").expect("a caller");
        assert_eq!((node.role, node.node.as_ref().map(NodeId::as_str)), (Role::Node, Some("gpu-1")));
        assert!(node.check_acts_as(&NodeId::parse("gpu-1").expect("valid")).is_ok());
        let refused = node.check_acts_as(&NodeId::parse("gpu-2").expect("valid")).expect_err("another");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let viewer = ["urn:crescendo:tenant:research", "https://example.org/x", "urn:crescendo:role:viewer"];
        let viewer = of_certificate(&certificate(&viewer), 0).expect("good").expect("a caller");
        assert_eq!(viewer.scope(), Scope::Only(Tenant::parse("research").expect("valid")));
    }

    #[test]
    fn a_certificate_of_something_else_is_no_credential() {
        for uris in [&[][..], &["spiffe://prod/web"], &["https://example.org"]] {
            assert_eq!(of_certificate(&certificate(uris), 0), Ok(None));
        }
    }

    #[test]
    fn a_certificate_that_contradicts_itself_is_refused() {
        assert!(refused(&["urn:crescendo:role:root"]).contains("urn:crescendo:role:root is not a role"));
        assert!(refused(&["urn:crescendo:rolle:admin"]).contains("neither a role nor a tenant nor a node"));
        let both = refused(&["urn:crescendo:role:node", "urn:crescendo:role:admin"]);
        assert!(both.contains("not the only one of its kind"), "{both}");
        assert!(refused(&["urn:crescendo:role:viewer"]).contains("needs a tenant"));
        assert!(refused(&["urn:crescendo:tenant:a"]).contains("no role"));
        assert!(
            refused(&["urn:crescendo:role:node", "urn:crescendo:tenant:a"]).contains("cannot have a tenant")
        );
        assert!(refused(&["urn:crescendo:role:admin", "urn:crescendo:node:a"]).contains("only role node"));
    }

    #[test]
    fn a_certificate_ends_while_its_connection_lives_on() {
        let admin = certificate(&["urn:crescendo:role:admin"]);
        assert!(of_certificate(&admin, 999).expect("good").is_some());
        assert_eq!(of_certificate(&admin, 1000), Err(BadCredential::CertificateExpired));
    }

    #[test]
    fn credentials_that_disagree_are_none() {
        let admin = || Caller::dev(None);
        let viewer = || Caller { role: Role::Viewer, tenant: Tenant::parse("a").ok(), ..Caller::dev(None) };
        assert_eq!(agreed(Some(admin()), Some(viewer())), Err(BadCredential::Disagree));
        let named = Caller { name: "ci".to_owned(), ..viewer() };
        assert_eq!(agreed(Some(viewer()), Some(named.clone())), Ok(Some(named)));
        assert_eq!(agreed(Some(admin()), None), Ok(Some(admin())));
        assert_eq!(agreed(None, None), Ok(None));
    }
}
