//! Around every call: its time and outcome are counted, and calls beyond a limit are refused with a hint, at once.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crescendo_proto::status;
use tokio::sync::Semaphore;
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// Hint to callers over the limit.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Counts and limits calls. A stream counts until it is open, and apart from the others: its first message may take its
/// time. Open streams have bounds of their own.
#[derive(Clone)]
pub struct CallLimit {
    metrics: Metrics,
    permits: Arc<Semaphore>,
    /// Calls whose clients send a stream.
    streams: Arc<BTreeSet<String>>,
    stream_permits: Arc<Semaphore>,
}

impl CallLimit {
    pub fn new(metrics: Metrics, max_calls: usize, streams: BTreeSet<String>) -> Self {
        let permits = || Arc::new(Semaphore::new(max_calls.clamp(1, Semaphore::MAX_PERMITS)));
        Self { metrics, permits: permits(), streams: Arc::new(streams), stream_permits: permits() }
    }
}

impl<S> Layer<S> for CallLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limit: self.clone() }
    }
}

/// A service behind [`CallLimit`].
#[derive(Clone)]
pub struct Limited<S> {
    inner: S,
    limit: CallLimit,
}

impl<S, Req, Res> Service<http::Request<Req>> for Limited<S>
where
    S: Service<http::Request<Req>, Response = http::Response<Res>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Res: Default + Send + 'static,
{
    type Response = http::Response<Res>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Req>) -> Self::Future {
        let metrics = self.limit.metrics.clone();
        // Health must answer when everything else is refused.
        let vital = request.uri().path().starts_with("/grpc.health.");
        let streaming = self.limit.streams.contains(request.uri().path());
        let permits = if streaming { &self.limit.stream_permits } else { &self.limit.permits };
        let permit = Arc::clone(permits).try_acquire_owned();
        if permit.is_err() && !vital {
            metrics.rpcs_refused.inc();
            let refused = status::exhausted("too many calls are being worked on", RETRY_AFTER).into_http();
            return Box::pin(async { Ok(refused) });
        }
        let path = request.uri().path().to_owned();
        let started = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _permit = permit;
            let response = answer.await?;
            let code = code_of(&response);
            // Only methods that exist become labels.
            let method = if code == Code::Unimplemented { "unknown" } else { path.trim_start_matches('/') };
            metrics.rpc(method, name_of(code), started.elapsed());
            Ok(response)
        })
    }
}

/// The code of a call that was refused is in the headers; a stream that opens counts as well.
fn code_of<B>(response: &http::Response<B>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

/// A code as it stands in labels and in the audit log.
pub fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
