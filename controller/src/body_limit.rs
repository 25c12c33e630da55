//! Requests are read before they are worked on. A peer that sends its request slowly, or not at all, then holds nothing
//! that others wait for: no place among the calls, and no more memory than there is for all requests under way.
//!
//! ```text
//!   connection ─▶ BodyLimit ─ whole request, in time and within bounds ─▶ CallLimit ─▶ service
//!                     └────── a client's stream: as it comes ──────────────┘
//! ```

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crescendo_proto::status;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tower::{Layer, Service};

/// A request has to be there within this. The largest takes a fraction of a second on any network that is meant for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest request of one message. Job specs are the largest, with 256 KiB.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Largest question after this process's health.
const MAX_VITAL_BYTES: usize = 4096;
/// Memory for the requests that are being read, all together.
const MAX_TOTAL_BYTES: usize = 64 << 20;
/// Hint to callers for whom there is no room.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Paths of the calls whose clients send a stream.
pub fn client_streams(descriptors: &[&[u8]]) -> Result<BTreeSet<String>, prost::DecodeError> {
    let mut paths = BTreeSet::new();
    for encoded in descriptors {
        for file in FileDescriptorSet::decode(*encoded)?.file {
            for service in &file.service {
                for method in service.method.iter().filter(|method| method.client_streaming()) {
                    paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    Ok(paths)
}

/// Reads requests whole.
#[derive(Clone, Debug)]
pub struct BodyLimit {
    streams: Arc<BTreeSet<String>>,
    room: Arc<Semaphore>,
    timeout: Duration,
}

impl BodyLimit {
    /// `streams` are the calls that are handed on unread.
    pub fn new(streams: BTreeSet<String>) -> Self {
        Self {
            streams: Arc::new(streams),
            room: Arc::new(Semaphore::new(MAX_TOTAL_BYTES)),
            timeout: REQUEST_TIMEOUT,
        }
    }
}

impl<S> Layer<S> for BodyLimit {
    type Service = Reading<S>;

    fn layer(&self, inner: S) -> Reading<S> {
        Reading { inner, intake: self.clone() }
    }
}

/// A service behind [`BodyLimit`].
#[derive(Clone, Debug)]
pub struct Reading<S> {
    inner: S,
    intake: BodyLimit,
}

impl<S, B, R> Service<http::Request<B>> for Reading<S>
where
    S: Service<http::Request<Body>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError> + Send,
    R: Default + Send,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if self.intake.streams.contains(request.uri().path()) {
            return Box::pin(self.inner.call(request.map(Body::new)));
        }
        // Health must answer when there is room for nothing else, and needs next to none.
        let vital = request.uri().path().starts_with("/grpc.health.");
        let (room, most) = match vital {
            true => (None, MAX_VITAL_BYTES),
            false => (Some(self.intake.room.clone()), MAX_REQUEST_BYTES),
        };
        let timeout = self.intake.timeout;
        // The one that has said that it is ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let read = match tokio::time::timeout(timeout, read(body, room, most)).await {
                Ok(read) => read,
                Err(_) => {
                    Err(Status::deadline_exceeded(format!("the request did not arrive within {timeout:?}")))
                }
            };
            match read {
                Ok((bytes, _held)) => {
                    inner.call(http::Request::from_parts(parts, Body::new(Full::new(bytes)))).await
                }
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

/// The whole body, and its share of the room.
async fn read<B>(
    mut body: B,
    room: Option<Arc<Semaphore>>,
    most: usize,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut whole: Vec<u8> = Vec::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(Status::cancelled("the request was broken off")) };
        // Trailers of a request mean nothing.
        let Ok(data) = frame.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if whole.len() + data.len() > most {
            return Err(Status::out_of_range(format!("the request is larger than {most} bytes")));
        }
        if let Some(room) = &room {
            // Fits: a request has at most 2^20 bytes.
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let Ok(more) = room.clone().try_acquire_many_owned(bytes) else {
                return Err(status::exhausted("too many requests are being read", RETRY_AFTER));
            };
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use http_body_util::combinators::BoxBody;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tower::ServiceExt as _;

    type Calls = Arc<AtomicUsize>;

    /// Counts the calls that reach it.
    fn service(
        intake: BodyLimit,
        calls: &Calls,
    ) -> impl Service<
        http::Request<BoxBody<Bytes, Infallible>>,
        Response = http::Response<String>,
        Error = Infallible,
    > {
        let calls = calls.clone();
        let counting = tower::service_fn(move |request: http::Request<Body>| {
            let calls = calls.clone();
            async move {
                calls.fetch_add(1, Ordering::Relaxed);
                drop(request);
                Ok::<_, Infallible>(http::Response::new(String::new()))
            }
        });
        intake.layer(counting)
    }

    fn intake(timeout: Duration) -> BodyLimit {
        BodyLimit { timeout, ..BodyLimit::new(BTreeSet::from(["/s/Stream".to_owned()])) }
    }

    fn request(path: &str, body: BoxBody<Bytes, Infallible>) -> http::Request<BoxBody<Bytes, Infallible>> {
        http::Request::builder().uri(path).body(body).unwrap()
    }

    fn never() -> BoxBody<Bytes, Infallible> {
        let nothing = tokio_stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        StreamBody::new(nothing).boxed()
    }

    fn whole(size_bytes: usize) -> BoxBody<Bytes, Infallible> {
        Full::new(Bytes::from(vec![0; size_bytes])).boxed()
    }

    fn code(response: &http::Response<String>) -> Option<&str> {
        response.headers().get("grpc-status")?.to_str().ok()
    }

    #[tokio::test]
    async fn whole_requests_and_streams_are_handed_on() {
        let calls = Calls::default();
        for (path, body) in [("/s/Unary", whole(100)), ("/s/Unary", whole(0)), ("/s/Stream", never())] {
            let answer = service(intake(Duration::from_secs(60)), &calls).oneshot(request(path, body)).await;
            assert_eq!(code(&answer.unwrap()), None, "{path}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn what_is_late_or_too_large_reaches_no_one() {
        let (calls, soon) = (Calls::default(), intake(Duration::from_millis(1)));
        let late = service(soon, &calls).oneshot(request("/s/Unary", never())).await.unwrap();
        assert_eq!(code(&late), Some("4"));
        let large = service(intake(Duration::from_secs(60)), &calls);
        let large = large.oneshot(request("/s/Unary", whole(MAX_REQUEST_BYTES + 1))).await.unwrap();
        assert_eq!(code(&large), Some("11"));
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn there_is_room_for_so_much_and_it_comes_back() {
        let (calls, intake) = (Calls::default(), intake(Duration::from_secs(60)));
        let taken = intake.room.clone().try_acquire_many_owned((MAX_TOTAL_BYTES - 50) as u32).unwrap();
        let full = service(intake.clone(), &calls).oneshot(request("/s/Unary", whole(51))).await.unwrap();
        assert_eq!(code(&full), Some("8"));
        let health =
            service(intake.clone(), &calls).oneshot(request("/grpc.health.v1.Health/Check", whole(51)));
        assert_eq!(code(&health.await.unwrap()), None);
        drop(taken);
        let fits = service(intake.clone(), &calls).oneshot(request("/s/Unary", whole(51))).await.unwrap();
        assert_eq!(code(&fits), None);
        assert_eq!(intake.room.available_permits(), MAX_TOTAL_BYTES);
    }

    #[test]
    fn streams_are_found_in_the_descriptors() {
        let found = client_streams(&[crescendo_proto::DESCRIPTORS]).unwrap();
        assert!(found.contains("/crescendo.v1.NodeService/OpenSession"), "{found:?}");
        assert!(!found.contains("/crescendo.v1.JobService/WatchJob"));
    }
}
