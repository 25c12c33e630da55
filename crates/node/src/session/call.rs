//! Unary calls to the controller that are repeated until they are accepted or refused.
//!
//! A node's results (a checkpoint, a unit) are worth more than the time it takes to hand them over, so an outage only
//! delays them. Only answers that cannot change end the tries.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crescendo_proto::status::{self, is_passing};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::runtime::backoff::{Backoff, random};
pub use crate::tls::AddressError;
use crate::tls::Dialer;

/// Longest wait that a controller's hint is followed for.
const MAX_HINTED_WAIT: Duration = Duration::from_secs(60);

/// What calls to a controller go through: a connection that is dialed, or whatever else takes a request and answers.
pub type ControllerChannel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

/// The way to one controller.
#[derive(Clone)]
pub struct Link {
    address: String,
    connect: Arc<dyn Fn() -> ControllerChannel + Send + Sync>,
}

impl Link {
    /// `connect` is asked for every call and session; what it gives may connect when it is first used.
    pub fn new(
        address: impl Into<String>,
        connect: impl Fn() -> ControllerChannel + Send + Sync + 'static,
    ) -> Self {
        Self { address: address.into(), connect: Arc::new(connect) }
    }

    fn dialed(address: &str, dialer: &Dialer) -> Result<Self, AddressError> {
        let (endpoint, dialer) = (dialer.endpoint(address)?, dialer.clone());
        let address = endpoint.uri().authority().map(ToString::to_string).unwrap_or_default();
        Ok(Self::new(address, move || {
            let connection = dialer.connect(endpoint.clone());
            BoxCloneSyncService::new(connection.map_err(|error| Status::from_error(error.into())))
        }))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The controllers of a cluster: one leads, the others refuse, and which is which changes. Clones share the choice.
#[derive(Clone, Debug)]
pub struct Controllers {
    links: Arc<Vec<Link>>,
    current: Arc<AtomicUsize>,
}

impl Controllers {
    pub fn new<S: AsRef<str>>(addresses: &[S], dialer: &Dialer) -> Result<Self, AddressError> {
        let links = addresses
            .iter()
            .map(|address| Link::dialed(address.as_ref().trim(), dialer))
            .collect::<Result<_, _>>()?;
        Self::over(links)
    }

    /// Over ways that are given.
    pub fn over(links: Vec<Link>) -> Result<Self, AddressError> {
        if links.is_empty() {
            return Err(AddressError::None);
        }
        Ok(Self { links: Arc::new(links), current: Arc::default() })
    }

    /// A connection, made when first used, to the controller that answered last.
    pub fn channel(&self) -> ControllerChannel {
        (self.link().connect)()
    }

    /// Address of the controller that [`Controllers::channel`] goes to.
    pub fn address(&self) -> String {
        self.link().address.clone()
    }

    fn link(&self) -> &Link {
        // There is at least one.
        &self.links[self.choice() % self.links.len()]
    }

    /// The controller that the next connection goes to, for [`Controllers::failed`].
    pub fn choice(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The controller `tried` has failed, or does not lead: the next connection goes to the one that it names, or else to
    /// the next one. Callers that have failed at the same one at the same time go on together, and skip none. Gives the
    /// wait before the next try, after so many `failures` in a row.
    pub fn failed(&self, tried: usize, status: &Status, failures: u32) -> Duration {
        let named = status::leader(status)
            .and_then(|leader| self.links.iter().position(|known| known.address == leader));
        let named = named.filter(|named| *named != tried);
        let next = named.unwrap_or_else(|| tried.wrapping_add(1) % self.links.len());
        // Another caller may have moved on already.
        let _ = self.current.compare_exchange(tried, next, Ordering::Relaxed, Ordering::Relaxed);
        // One that is known to lead is asked soon; two that name each other are not asked without end.
        let failures = if named.is_some() { failures.min(2) } else { failures };
        let wait = Backoff::default().delay(failures, random());
        status::retry_after(status).map_or(wait, |hint| wait.max(hint.min(MAX_HINTED_WAIT)))
    }

    /// Calls until the answer is final, each try at most `deadline`, with waits that grow to 5 s in between.
    ///
    /// `Err` is a refusal (see [`is_passing`]), or `CANCELLED` once `stop` is cancelled. `what` names the call in the log.
    pub async fn call_until_decided<T, F, Fut>(
        &self,
        what: &'static str,
        deadline: Duration,
        stop: &CancellationToken,
        mut call: F,
    ) -> Result<T, Status>
    where
        F: FnMut(ControllerChannel) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut failures = 0u32;
        loop {
            let tried = self.choice();
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Status::cancelled("stopping")),
                outcome = tokio::time::timeout(deadline, call(self.channel())) => outcome,
            };
            let status = match outcome {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) if !is_passing(status.code()) => return Err(status),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {deadline:?}")),
            };
            failures = failures.saturating_add(1);
            let controller = self.address();
            let wait = self.failed(tried, &status, failures);
            tracing::warn!(call = what, controller, %status, failures, ?wait, "call failed, trying again");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Status::cancelled("stopping")),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use tonic::Response;

    #[tokio::test]
    async fn tries_until_the_answer_is_final() {
        let controllers = Controllers::new(&["127.0.0.1:1", "127.0.0.1:2"], &Dialer::plain()).unwrap();
        let mut tries = 0;
        let answer = controllers
            .call_until_decided("test", Duration::from_secs(1), &CancellationToken::new(), |_| {
                tries += 1;
                let answer = match tries {
                    1 => Err(Status::unavailable("not the leader")),
                    2 => Err(Status::unknown("connection reset")),
                    _ => Ok(Response::new(7)),
                };
                std::future::ready(answer)
            })
            .await;
        assert_eq!((answer.unwrap(), tries), (7, 3));

        let refused = controllers
            .call_until_decided("test", Duration::from_secs(1), &CancellationToken::new(), |_| {
                std::future::ready(Err::<Response<()>, _>(Status::failed_precondition("old generation")))
            })
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    }

    #[tokio::test]
    async fn a_call_without_an_answer_ends_at_its_deadline() {
        let controllers = Controllers::new(&["127.0.0.1:1"], &Dialer::plain()).unwrap();
        let stop = CancellationToken::new();
        let mut tries = 0;
        let answer = controllers
            .call_until_decided("test", Duration::from_millis(10), &stop, |_| {
                tries += 1;
                if tries == 3 {
                    stop.cancel();
                }
                std::future::pending::<Result<Response<()>, Status>>()
            })
            .await;
        assert_eq!((answer.unwrap_err().code(), tries), (Code::Cancelled, 3));
    }

    #[test]
    fn callers_that_fail_together_skip_no_controller_and_follow_its_hints() {
        let addresses = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"];
        let controllers = Controllers::new(&addresses, &Dialer::plain()).unwrap();
        let dead = Status::unavailable("connection refused");
        let tried = [controllers.choice(); 3];
        for tried in tried {
            controllers.failed(tried, &dead, 1);
        }
        assert_eq!(controllers.address(), "10.0.0.2:1", "three callers of the first go to the second");
        let hint = status::not_leader(Some("10.0.0.1:1"));
        let wait = controllers.failed(controllers.choice(), &hint, 30);
        assert_eq!(controllers.address(), "10.0.0.1:1");
        assert!(wait <= Duration::from_millis(200), "one that is said to lead is asked soon: {wait:?}");
        let hint = status::not_leader(Some("elsewhere:1"));
        controllers.failed(controllers.choice(), &hint, 1);
        assert_eq!(controllers.address(), "10.0.0.2:1", "one that is not known is not dialled");
        let full = status::exhausted("full", Duration::from_secs(7));
        assert_eq!(controllers.failed(controllers.choice(), &full, 1), Duration::from_secs(7));
        let full = status::exhausted("full", Duration::from_secs(7000));
        assert_eq!(controllers.failed(controllers.choice(), &full, 1), MAX_HINTED_WAIT);
    }

    #[test]
    fn addresses_are_checked() {
        let plain = Dialer::plain();
        assert!(Controllers::new::<&str>(&[], &plain).is_err());
        assert!(Controllers::new(&["no-port"], &plain).is_err());
        assert!(Controllers::new(&["a b:1"], &plain).is_err());
        let controllers = Controllers::new(&["localhost:1", "http://10.0.0.1:2"], &plain).unwrap();
        assert_eq!(controllers.address(), "localhost:1");
    }
}
