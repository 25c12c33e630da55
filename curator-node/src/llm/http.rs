//! One try of one request.

use super::keys::Secret;
use super::reply::excerpt;
use super::retry::{Failure, retry_after};
use crescendo_core::spec::EndpointSpec;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use std::sync::Arc;
use std::time::Duration;

/// Largest answer that is read. A thousand times what a judge says.
pub const MAX_REPLY_BYTES: usize = 1 << 20;
/// How much of a refusal is read, for its reason.
const MAX_ERROR_BYTES: usize = 4096;
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
    pub fn open(spec: &EndpointSpec, key: Option<Secret>) -> Result<Http, String> {
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

    /// Sends `body`; the body of a successful answer.
    pub async fn post(&self, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
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
        let (bytes, whole) = self.bounded(response, MAX_REPLY_BYTES).await?;
        if whole { Ok(bytes) } else { Err(Failure::Large { most: MAX_REPLY_BYTES }) }
    }

    async fn status(&self, response: Response) -> Failure {
        let status = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(retry_after);
        // The status says enough where the reason cannot be read.
        let (bytes, _) = self.bounded(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let text = self.key.as_ref().map_or_else(|| text.to_string(), |key| key.removed_from(&text));
        Failure::Status { status, excerpt: excerpt(&text), retry_after }
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
        if error.is_connect() {
            Failure::Connect { reason }
        } else if error.is_timeout() {
            Failure::Timeout { after: self.deadline }
        } else {
            Failure::Cut { reason }
        }
    }
}

/// An error with its causes, on one line. They cannot hold the key: it is in no address.
fn with_causes(error: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = error;
    let causes: Vec<String> =
        std::iter::successors(Some(first), |error| error.source()).map(ToString::to_string).collect();
    excerpt(&causes.join(": "))
}
