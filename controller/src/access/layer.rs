//! Around every call: who calls, whether it may, and the line in the audit log.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crescendo_core::access::{self, CallEffect, Denied, Role, Rule};
use crescendo_node::tls::Peer;
use crescendo_proto::status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::access::Access;
use crate::access::audit::{AuditContext, Line};
use crate::access::caller::{BadCredential, Caller, agreed, of_certificate, shown};
use crate::concurrency_limit::name_of;

/// Longest token that is looked at, bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Puts [`AccessService`] around a server's services.
#[derive(Clone)]
pub struct AccessLayer {
    access: Access,
}

impl AccessLayer {
    pub fn new(access: Access) -> Self {
        Self { access }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService { inner, access: self.access.clone() }
    }
}

/// Services that are reached by callers that are known and may do what they ask for.
#[derive(Clone)]
pub struct AccessService<S> {
    inner: S,
    access: Access,
}

/// Why a call does not reach its service.
struct Refusal {
    /// Who asked, as far as that is known.
    caller: Option<Caller>,
    status: Status,
    /// Label in metrics, from a fixed set.
    label: &'static str,
}

impl<S, Req, Res> Service<http::Request<Req>> for AccessService<S>
where
    S: Service<http::Request<Req>, Response = http::Response<Res>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    Req: Send + 'static,
    Res: Default + Send + 'static,
{
    type Response = http::Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Req>) -> Self::Future {
        let access = self.access.clone();
        // The one that is ready takes the call; its copy waits for the next.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let Some(rule) = access::rule_of(&path) else {
                return Ok(Status::unimplemented("there is no such call").into_http());
            };
            let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
            let trail = AuditContext::default();
            let caller = match access.admit(rule, &peer, request.headers()).await {
                Ok(caller) => caller,
                Err(Refusal { caller, status, label }) => {
                    access.refused.with_label_values(&[label]).inc();
                    access.note(rule, caller.as_ref(), peer.addr, &trail, &status);
                    return Ok(status.into_http());
                }
            };
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            request.extensions_mut().insert(trail.clone());
            let response = inner.call(request).await?;
            let status = Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok(""));
            access.note(rule, caller.as_ref(), peer.addr, &trail, &status);
            Ok(response)
        })
    }
}

impl Access {
    /// Whom a call is from, if it may be made. `None` where nobody has to be known.
    async fn admit(&self, rule: &Rule, peer: &Peer, headers: &HeaderMap) -> Result<Option<Caller>, Refusal> {
        if self.dev {
            return Ok(Some(Caller::dev(peer.addr)));
        }
        if access::decide(rule, None).is_ok() {
            return Ok(None);
        }
        let caller = self.authenticate(peer, headers).await.map_err(|bad| Refusal {
            caller: None,
            status: match bad {
                BadCredential::NoKeys => Status::unavailable(bad.to_string()),
                _ => Status::unauthenticated(bad.to_string()),
            },
            label: "bad_credential",
        })?;
        let decided = access::decide(rule, caller.as_ref().map(|caller| caller.role));
        if let Err(denied) = decided {
            let (status, label) = match denied {
                Denied::NoCredential { .. } => (Status::unauthenticated(denied.to_string()), "no_credential"),
                Denied::Role { .. } => (Status::permission_denied(denied.to_string()), "role"),
            };
            return Err(Refusal { caller, status, label });
        }
        let Some(caller) = caller else { return Ok(None) };
        match self.check_rate(&caller) {
            Ok(()) => Ok(Some(caller)),
            Err(status) => Err(Refusal { caller: Some(caller), status, label: "rate" }),
        }
    }

    async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Caller>, BadCredential> {
        let certificate = match &peer.certificate {
            Some(certificate) => of_certificate(certificate, now_unix_secs())?,
            None => None,
        };
        let token = match bearer(headers)? {
            Some(token) => Some(self.of_token(token).await?),
            None => None,
        };
        let caller = agreed(certificate, token)?;
        Ok(caller.map(|caller| Caller { from: peer.addr, ..caller }))
    }

    async fn of_token(&self, token: &str) -> Result<Caller, BadCredential> {
        if let Some(tokens) = &self.tokens {
            let tokens = tokens.borrow().clone();
            match tokens.find(token, SystemTime::now()) {
                Err(BadCredential::Unknown) => {}
                found => return found,
            }
        }
        match &self.oidc {
            Some(oidc) => oidc.caller(token).await,
            None => Err(BadCredential::Unknown),
        }
    }

    /// Nodes are not slowed down: what they say is bounded by what they do.
    fn check_rate(&self, caller: &Caller) -> Result<(), Status> {
        let Some(tenant) = caller.tenant.as_ref().filter(|_| caller.role != Role::Node) else {
            return Ok(());
        };
        let Some(rate) = self.quotas.borrow().of(tenant.as_str()).calls else { return Ok(()) };
        self.buckets.take(tenant.as_str(), &caller.name, rate, Instant::now()).map_err(|wait| {
            let what =
                format!("{} of tenant {tenant} makes more than {} calls a second", caller.name, rate.per_sec);
            status::exhausted(&what, wait)
        })
    }

    fn note(
        &self,
        rule: &Rule,
        caller: Option<&Caller>,
        from: Option<SocketAddr>,
        trail: &AuditContext,
        status: &Status,
    ) {
        let (on, changes_nothing) = trail.subject();
        let changes = rule.effect == CallEffect::Change && !changes_nothing;
        if !changes && !is_refusal(status.code()) {
            return;
        }
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        self.audit.write(Line {
            time: String::new(),
            who: text(caller.map(|caller| caller.name.as_str())),
            role: caller.map_or("", |caller| caller.role.as_str()),
            tenant: text(caller.and_then(|caller| caller.tenant.as_ref()).map(|tenant| tenant.as_str())),
            call: format!("{}/{}", rule.service.rsplit('.').next().unwrap_or(rule.service), rule.method),
            on,
            from: from.map(|from| from.to_string()).unwrap_or_default(),
            result: name_of(status.code()),
            reason: shown(status.message()),
        });
    }
}

/// The caller was told no; as opposed to: something is not working, or somebody else leads.
fn is_refusal(code: Code) -> bool {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}

/// The bearer token of a call, if it has one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, BadCredential> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadCredential::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(BadCredential::Malformed)?;
    let token = token.trim_start();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains(' ') {
        return Err(BadCredential::Malformed);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(BadCredential::Invalid { reason: "it is too long" });
    }
    Ok(Some(token))
}

fn now_unix_secs() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn a_token_is_taken_from_one_header_in_one_form() {
        assert_eq!(bearer(&headers(&[])), Ok(None));
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok(Some("abc")));
        assert_eq!(bearer(&headers(&["bearer  abc"])), Ok(Some("abc")));
        let bad: [&[&str]; 7] = [
            &["abc"],
            &["Basic abc"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a b"],
            &["Bearer a", "Bearer b"],
            &["Bearer a", ""],
        ];
        for values in bad {
            assert_eq!(bearer(&headers(values)), Err(BadCredential::Malformed), "{values:?}");
        }
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        assert!(matches!(bearer(&headers(&[&long])), Err(BadCredential::Invalid { .. })));
    }

    #[test]
    fn no_text_of_a_refusal_has_the_token_in_it() {
        let bad = bearer(&headers(&["Basic c2VjcmV0"])).expect_err("refused").to_string();
        assert!(!bad.contains("c2VjcmV0"), "{bad}");
    }
}
