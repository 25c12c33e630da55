//! Calls to etcd: which endpoint, how long, and what a failure means.

use std::error::Error as _;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;
use tonic::transport::Endpoint;

use super::ConnectEtcd;
use crate::error::StoreError;

/// Pause after the first failed attempt within a call; doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that says nothing for both of these together is dead. etcd closes connections pinged more than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The members of an etcd cluster, one of which is in use.
pub(super) struct Endpoints {
    members: Vec<Client>,
    /// Only grows; taken modulo the number of members.
    in_use: AtomicUsize,
    call_timeout: Duration,
    connect_timeout: Duration,
}

/// Whether a call may be sent again when its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A read, or a write that does no harm twice.
    Harmless,
    /// A write whose second run would meet the first one's result.
    Never,
}

/// What the failure of one attempt means.
#[derive(Debug)]
pub(super) enum Sorted {
    /// Refused, or never sent.
    NotApplied(Error),
    /// Its quota is used up: that does not pass within a call.
    Full(Error),
    /// Sent, and no answer.
    Unknown(Error),
    /// The named thing (a lease) is not there.
    NotFound(Error),
    /// A revision is compacted or a message too large.
    OutOfRange(Error),
    /// Wrong in itself; trying again cannot help.
    Refused(Error),
}

/// The failure of a call, after every attempt that made sense.
#[derive(Debug)]
pub(super) enum CallError {
    Sorted(Sorted),
    TimedOut(Repeat),
}

impl CallError {
    pub fn into_store_error(self) -> StoreError {
        match self {
            CallError::Sorted(Sorted::NotApplied(error) | Sorted::Full(error)) => {
                StoreError::NotApplied(error.into())
            }
            CallError::Sorted(Sorted::Unknown(error)) => StoreError::Unknown(error.into()),
            CallError::Sorted(
                Sorted::NotFound(error) | Sorted::OutOfRange(error) | Sorted::Refused(error),
            ) => StoreError::Refused(error.into()),
            CallError::TimedOut(Repeat::Harmless) => {
                StoreError::NotApplied("no answer before the deadline".into())
            }
            CallError::TimedOut(Repeat::Never) => StoreError::Unknown("no answer before the deadline".into()),
        }
    }
}

impl Endpoints {
    pub async fn new(
        urls: &[String],
        call_timeout: Duration,
        connect_timeout: Duration,
        connect: Option<&ConnectEtcd>,
    ) -> Result<Self, StoreError> {
        let mut members = Vec::with_capacity(urls.len());
        for url in urls {
            // Who connects knows of TLS; the transport below it must not.
            let plain_url = match (url.strip_prefix("https://"), connect) {
                (Some(rest), Some(_)) => format!("http://{rest}"),
                (Some(_), None) => {
                    return Err(StoreError::Invalid(format!("etcd endpoint {url:?} needs TLS")));
                }
                (None, _) => url.clone(),
            };
            let endpoint = Endpoint::from_shared(plain_url)
                .map_err(|error| StoreError::Invalid(format!("etcd endpoint {url:?}: {error}")))?
                .connect_timeout(connect_timeout)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true);
            let channel = match connect {
                Some(connect) => connect(endpoint),
                None => endpoint.connect_lazy(),
            };
            // A member cut off from the others must say so instead of waiting.
            let options = ConnectOptions::new().with_require_leader(true);
            let client = Client::from_channel(Channel::Tonic(channel), Some(options))
                .await
                .map_err(|error| StoreError::Refused(error.into()))?;
            members.push(client);
        }
        if members.is_empty() {
            return Err(StoreError::Invalid("no etcd endpoint is given".to_owned()));
        }
        Ok(Self { members, in_use: AtomicUsize::new(0), call_timeout, connect_timeout })
    }

    /// The member in use, and a ticket for [`Endpoints::give_up_on`].
    pub fn current(&self) -> (usize, Client) {
        let ticket = self.in_use.load(Ordering::Relaxed);
        // The modulus keeps the index in range: there is at least one member.
        (ticket, self.members[ticket % self.members.len()].clone())
    }

    /// Moves on to the next member, unless somebody else has since `ticket`.
    pub fn give_up_on(&self, ticket: usize) {
        // When it fails, another caller has moved on already.
        let _ = self.in_use.compare_exchange(
            ticket,
            ticket.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    pub fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// Makes a call, within the deadline again and again while that is harmless.
    pub async fn call<T, F>(&self, repeat: Repeat, call: impl Fn(Client) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + self.call_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let (ticket, client) = self.current();
            let sorted = match timeout_at(deadline, call(client)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => sort(error),
                Err(_elapsed) => {
                    self.give_up_on(ticket);
                    return Err(CallError::TimedOut(repeat));
                }
            };
            let again = match (&sorted, repeat) {
                (Sorted::NotApplied(_), _) | (Sorted::Unknown(_), Repeat::Harmless) => true,
                (Sorted::Unknown(_), Repeat::Never) => false,
                (Sorted::Full(_) | Sorted::NotFound(_) | Sorted::OutOfRange(_) | Sorted::Refused(_), _) => {
                    return Err(CallError::Sorted(sorted));
                }
            };
            self.give_up_on(ticket);
            // An attempt that runs into the deadline while connecting would look as if it had been sent.
            let room = deadline.saturating_duration_since(Instant::now());
            if !again || room < pause + self.connect_timeout {
                return Err(CallError::Sorted(match (sorted, repeat) {
                    (Sorted::Unknown(error), Repeat::Harmless) => Sorted::NotApplied(error),
                    (sorted, _) => sorted,
                }));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

/// Sorts an error by what it says about the call, from its type and status code.
pub(super) fn sort(error: Error) -> Sorted {
    let Error::GRpcStatus(status) = &error else {
        return match &error {
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Sorted::Refused(error)
            }
            Error::TransportError(transport) if failed_to_connect(transport.source()) => {
                Sorted::NotApplied(error)
            }
            _ => Sorted::Unknown(error),
        };
    };
    match status.code() {
        Code::Unavailable if failed_to_connect(status.source()) => Sorted::NotApplied(error),
        // Refused on arrival. Both have the same code: what tells them apart are etcd's own words.
        Code::ResourceExhausted if status.message().contains("database space exceeded") => {
            Sorted::Full(error)
        }
        Code::ResourceExhausted => Sorted::NotApplied(error),
        Code::NotFound => Sorted::NotFound(error),
        Code::OutOfRange => Sorted::OutOfRange(error),
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Sorted::Refused(error),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Sorted::Unknown(error),
    }
}

/// Whether the chain of causes says that there was no connection to send the call on.
fn failed_to_connect(mut cause: Option<&(dyn std::error::Error + 'static)>) -> bool {
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_surely_not_applied() {
        let sorted = |code| sort(Error::GRpcStatus(tonic::Status::new(code, "")));
        assert!(matches!(sorted(Code::Unavailable), Sorted::Unknown(_)));
        assert!(matches!(sorted(Code::DeadlineExceeded), Sorted::Unknown(_)));
        assert!(matches!(sorted(Code::ResourceExhausted), Sorted::NotApplied(_)));
        assert!(matches!(sorted(Code::PermissionDenied), Sorted::Refused(_)));
    }

    #[tokio::test]
    async fn a_refused_connection_is_surely_not_applied() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let timeout = Duration::from_millis(300);
        let urls = [format!("http://{address}")];
        let endpoints = Endpoints::new(&urls, timeout, Duration::from_millis(100), None).await.unwrap();
        let result =
            endpoints.call(Repeat::Never, |mut client| async move { client.put("a", "1", None).await }).await;
        let error = result.map(|_| ()).unwrap_err();
        assert!(matches!(error, CallError::Sorted(Sorted::NotApplied(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_member_is_given_up_on_once() {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let endpoints =
            Endpoints::new(&urls, Duration::from_secs(1), Duration::from_secs(1), None).await.unwrap();
        let (ticket, _) = endpoints.current();
        endpoints.give_up_on(ticket);
        endpoints.give_up_on(ticket);
        assert_eq!(endpoints.current().0, ticket + 1);
    }
}
