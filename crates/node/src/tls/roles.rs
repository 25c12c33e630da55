//! The servers of nodes are for nodes: a certificate that vouches for something else opens nothing there.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tower::{Layer, Service};

use super::peer::{NODE_ROLE, Peer, ROLE_URI};
use super::reload::unix_now;

/// Lets calls through whose peer has shown a certificate with the role `node`. Health may be asked by everybody who got
/// as far as here.
#[derive(Clone, Debug)]
pub struct NodesOnly {
    enforced: bool,
}

impl NodesOnly {
    /// Not enforced: every call passes, as `--dev` wants.
    pub fn new(enforced: bool) -> Self {
        Self { enforced }
    }

    /// Why a call is refused, at this Unix time.
    fn refusal(&self, peer: Option<&Peer>, now: i64) -> Option<Status> {
        if !self.enforced {
            return None;
        }
        let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) else {
            return Some(Status::unauthenticated("this server is for nodes: show a node's certificate"));
        };
        if certificate.not_after_unix_secs < now {
            return Some(Status::unauthenticated(
                "the certificate that this connection was made with has expired: connect again with a new one",
            ));
        }
        if certificate.roles().any(|role| role == NODE_ROLE) {
            return None;
        }
        Some(Status::permission_denied(format!(
            "this server is for nodes: the certificate of {} has no {ROLE_URI}{NODE_ROLE}",
            certificate.subject
        )))
    }
}

impl<S> Layer<S> for NodesOnly {
    type Service = OnlyNodes<S>;

    fn layer(&self, inner: S) -> OnlyNodes<S> {
        OnlyNodes { inner, rule: self.clone() }
    }
}

/// A service behind [`NodesOnly`].
#[derive(Clone)]
pub struct OnlyNodes<S> {
    inner: S,
    rule: NodesOnly,
}

impl<S, Req, Res> Service<http::Request<Req>> for OnlyNodes<S>
where
    S: Service<http::Request<Req>, Response = http::Response<Res>>,
    S::Future: Send + 'static,
    Res: Default + Send + 'static,
{
    type Response = http::Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Req>) -> Self::Future {
        let vital = request.uri().path().starts_with("/grpc.health.");
        let refusal = self.rule.refusal(request.extensions().get(), unix_now());
        if let Some(status) = refusal.filter(|_| !vital) {
            tracing::warn!(
                call = request.uri().path(),
                addr = ?request.extensions().get::<Peer>().and_then(|peer| peer.addr),
                reason = status.message(),
                "refused a call"
            );
            let refused = status.into_http();
            return Box::pin(async { Ok(refused) });
        }
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::tls::PeerCertificate;

    #[test]
    fn only_a_valid_node_passes() {
        let peer = |uris: &[&str]| Peer {
            addr: None,
            certificate: Some(PeerCertificate {
                subject: "CN=x".into(),
                uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
                not_after_unix_secs: 100,
                fingerprint_sha256: [0; 32],
            }),
        };
        let code = |peer: Option<&Peer>, now| NodesOnly::new(true).refusal(peer, now).map(|s| s.code());
        assert_eq!(code(Some(&peer(&["urn:crescendo:role:node"])), 100), None);
        assert_eq!(code(Some(&peer(&["urn:crescendo:role:node"])), 101), Some(Code::Unauthenticated));
        let others = ["urn:crescendo:role:admin", "urn:crescendo:role:nodes", "urn:crescendo:node:a"];
        assert_eq!(code(Some(&peer(&others)), 1), Some(Code::PermissionDenied));
        assert_eq!(code(Some(&Peer::default()), 1), Some(Code::Unauthenticated));
        assert_eq!(code(None, 1), Some(Code::Unauthenticated));
        assert!(NodesOnly::new(false).refusal(None, 1).is_none());
    }
}
