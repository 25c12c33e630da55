//! One try of one request.

use super::guard::{Guard, is_out_of_reach};
use super::keys::Secret;
use super::reply::excerpt;
use super::retry::{Failure, WaitHeaders, asked_wait};
use super::server_error::ServerError;
use crescendo_core::reach::{Bounds, Reach};
use crescendo_core::spec::EndpointSpec;
use flate2::read::MultiGzDecoder;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Largest answer that is read. A thousand times what a judge says.
pub const MAX_REPLY_BYTES: usize = 1 << 20;
/// How much of a refusal is read, for its reason.
const MAX_ERROR_BYTES: usize = 16 * 1024;
/// Time to connect; the whole try has the spec's.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A client that follows no redirect and buffers no more than it may.
#[derive(Debug)]
pub struct Http {
    client: Client,
    url: Url,
    key: Option<Secret>,
    deadline: Duration,
}

impl Http {
    /// Checks the address and sets the client up; sends nothing.
    pub fn open(spec: &EndpointSpec, key: Option<Secret>, reach: &Reach) -> Result<Http, String> {
        let base = spec.url.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/chat/completions")).map_err(|e| format!("url {base}: {e}"))?;
        let deadline =
            Duration::try_from_secs_f64(spec.timeout_seconds).map_err(|e| format!("timeout: {e}"))?;
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_DEADLINE.min(deadline))
            .timeout(deadline)
            .pool_max_idle_per_host(spec.concurrency.max(1) as usize)
            .user_agent(concat!("crescendo/", env!("CARGO_PKG_VERSION")));
        // A proxy has no business between a curator and a server on its own machine.
        if url.host_str().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]")) {
            builder = builder.no_proxy();
        }
        if let Reach::Bounded(Bounds { endpoints, .. }) = reach {
            let guard = Guard::of(&url, endpoints)?;
            builder = builder.dns_resolver(Arc::new(guard));
        }
        builder = if url.scheme() == "https" {
            // Only fails where there is a provider already, which is as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
            builder
        } else {
            // Nothing is verified, so no certificates of the system need to be there.
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.tls_backend_preconfigured(config)
        };
        let client = builder.build().map_err(|e| with_causes(&e))?;
        Ok(Http { client, url, key, deadline })
    }

    /// Sends `body`; the body of a successful answer, and the wait that its headers ask for.
    pub async fn post(&self, body: Vec<u8>) -> Result<(Vec<u8>, Option<Duration>), Failure> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(body);
        if let Some(key) = &self.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .map_err(|_| Failure::Connect { reason: "the key does not fit into a header".to_owned() })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let response = request.send().await.map_err(|e| self.failure(&e))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(Failure::Redirect { status: status.as_u16() });
        }
        if !status.is_success() {
            return Err(self.status(response).await);
        }
        let found =
            response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("of no type");
        let essence = found.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::ContentType { found: excerpt(found) });
        }
        let (wait, is_gzip) = (wait(response.headers()), is_gzip(response.headers()));
        let (bytes, whole) = self.bounded(response, MAX_REPLY_BYTES).await?;
        let (bytes, whole) =
            if is_gzip && whole { unpacked(&bytes, MAX_REPLY_BYTES)? } else { (bytes, whole) };
        if whole { Ok((bytes, wait)) } else { Err(Failure::Large { most: MAX_REPLY_BYTES }) }
    }

    async fn status(&self, response: Response) -> Failure {
        let status = response.status().as_u16();
        let (retry_after, is_gzip) = (wait(response.headers()), is_gzip(response.headers()));
        // The status says enough where the reason cannot be read.
        let (bytes, _) = self.bounded(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let bytes = if is_gzip {
            unpacked(&bytes, MAX_ERROR_BYTES).map(|(bytes, _)| bytes).unwrap_or_default()
        } else {
            bytes
        };
        let text = self.without_key(&String::from_utf8_lossy(&bytes));
        Failure::Server { error: ServerError::of_response(status, &text), retry_after }
    }

    /// A text from the server, which may have sent the key back.
    pub fn without_key(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.removed_from(text))
    }

    /// At most `most` bytes of a body, and whether that is all of it. What is sent is counted as it comes, and once
    /// there is too much the connection is dropped: whatever a server promises, no more is held.
    async fn bounded(&self, mut response: Response, most: usize) -> Result<(Vec<u8>, bool), Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.failure(&e))? {
            let room = most - bytes.len();
            bytes.extend_from_slice(chunk.get(..room).unwrap_or(&chunk[..]));
            if chunk.len() > room {
                return Ok((bytes, false));
            }
        }
        Ok((bytes, true))
    }

    fn failure(&self, error: &reqwest::Error) -> Failure {
        let reason = with_causes(error);
        if is_out_of_reach(error) {
            Failure::OutOfReach { reason }
        } else if error.is_connect() {
            Failure::Connect { reason }
        } else if error.is_timeout() {
            Failure::Timeout { after: self.deadline }
        } else {
            Failure::Cut { reason }
        }
    }
}

/// The wait that a response asks for. LiteLLM's proxy hands the headers of the server behind it on under names of their own.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let asked = |before: &str| {
        let text = |name: &HeaderName| {
            let value = headers.get(format!("{before}{name}"))?;
            value.to_str().ok().map(str::to_owned)
        };
        let finer = text(&HeaderName::from_static("retry-after-ms"));
        let (asked, date) = (text(&RETRY_AFTER), text(&DATE));
        let headers = WaitHeaders {
            retry_after_ms: finer.as_deref(),
            retry_after: asked.as_deref(),
            date: date.as_deref(),
        };
        asked_wait(headers, SystemTime::now())
    };
    asked("").or_else(|| asked("llm_provider-"))
}

/// Packing is not asked for, since answers are short; some gateways do it all the same.
fn is_gzip(headers: &HeaderMap) -> bool {
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    encoding.is_some_and(|encoding| matches!(encoding.trim().to_lowercase().as_str(), "gzip" | "x-gzip"))
}

/// At most `most` bytes of what was packed, and whether that is all of it: however much is packed into little, no more is held.
fn unpacked(packed: &[u8], most: usize) -> Result<(Vec<u8>, bool), Failure> {
    let mut bytes = Vec::new();
    let reading = MultiGzDecoder::new(packed).take(most as u64 + 1).read_to_end(&mut bytes);
    reading.map_err(|e| Failure::Broken { reason: format!("its answer cannot be unpacked: {e}") })?;
    let whole = bytes.len() <= most;
    bytes.truncate(most);
    Ok((bytes, whole))
}

/// An error with its causes, on one line. They cannot hold the key: it is in no address.
fn with_causes(error: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = error;
    let causes: Vec<String> =
        std::iter::successors(Some(first), |error| error.source()).map(ToString::to_string).collect();
    excerpt(&causes.join(": "))
}
