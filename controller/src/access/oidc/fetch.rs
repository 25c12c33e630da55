//! Fetches the issuer's keys: when a token names one that is not known, and now and then unasked.

use std::sync::Arc;
use std::time::Duration;

use crescendo_node::runtime::supervise::Tasks;
use prometheus::IntCounter;
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::oidc::keys::Keys;
use crate::http_client::{BadClient, client, is_safe};

/// Limit of one exchange with the issuer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const MAX_BYTES: usize = 1 << 20;
/// Keys that the issuer has withdrawn are forgotten after this at most, as long as it can be reached.
const REFRESH: Duration = Duration::from_secs(600);
/// Calls that wait for one fetch at most; more are refused.
const MAX_WAITING: usize = 32;

/// Asks for a fetch. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fetcher {
    wanted: mpsc::Sender<oneshot::Sender<()>>,
}

/// Why there are no newer keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("get {url}")]
    Get {
        url: Url,
        #[source]
        source: reqwest::Error,
    },
    #[error("{url} answers {status}")]
    Status { url: Url, status: u16 },
    #[error("{url} answers more than {MAX_BYTES} bytes")]
    TooLong { url: Url },
    #[error("{url} does not answer what it should")]
    Content {
        url: Url,
        #[source]
        source: serde_json::Error,
    },
    #[error("the issuer calls itself {found}")]
    OtherIssuer { found: String },
    #[error("the issuer's key set is at {url}, which is neither https nor on this machine")]
    Plain { url: String },
    #[error("the issuer has no key that can be used: RSA, P-256 or Ed25519")]
    NoKeys,
}

/// An issuer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadIssuer {
    #[error("it is not a URL")]
    Url,
    #[error("it must be https; http is for an issuer on this machine alone")]
    Plain,
    #[error(transparent)]
    Client(#[from] BadClient),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

struct Source {
    client: Client,
    issuer: String,
    discovery: Url,
}

/// Where an issuer says what it has: with TLS, unless it is on this machine.
pub fn discovery_of(issuer: &str) -> Result<Url, BadIssuer> {
    let url = Url::parse(issuer).map_err(|_| BadIssuer::Url)?;
    if !is_safe(&url) {
        return Err(BadIssuer::Plain);
    }
    let base = issuer.trim_end_matches('/');
    Url::parse(&format!("{base}/.well-known/openid-configuration")).map_err(|_| BadIssuer::Url)
}

impl Fetcher {
    /// Begins to fetch at once. `pause` is the least time between two fetches.
    pub fn start(
        issuer: &str,
        pause: Duration,
        failures: IntCounter,
        tasks: &Tasks,
    ) -> Result<(Self, watch::Receiver<Arc<Keys>>), BadIssuer> {
        let discovery = discovery_of(issuer)?;
        let client = client(discovery.scheme(), DEADLINE)?;
        let source = Source { client, issuer: issuer.to_owned(), discovery };
        let (wanted, asked) = mpsc::channel(MAX_WAITING);
        let (keys, seen) = watch::channel(Arc::default());
        tasks.spawn(run(source, pause, keys, asked, failures, tasks.stop_token()));
        Ok((Self { wanted }, seen))
    }

    /// Waits for a fetch, or finds that the last one was just now.
    pub async fn fetch(&self) {
        let (done, wait) = oneshot::channel();
        if self.wanted.try_send(done).is_ok() {
            // However it ends, the keys are what they are then.
            let _ = tokio::time::timeout(DEADLINE * 3, wait).await;
        }
    }
}

async fn run(
    source: Source,
    pause: Duration,
    keys: watch::Sender<Arc<Keys>>,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    failures: IntCounter,
    stop: CancellationToken,
) {
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let mut failing = false;
    loop {
        let fetched = tokio::select! {
            () = stop.cancelled() => return,
            fetched = source.fetch() => fetched,
        };
        let at = Instant::now();
        match fetched {
            Ok(new) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(issuer = source.issuer, "the issuer's keys can be had again");
                }
                keys.send_replace(Arc::new(new));
            }
            Err(error) => {
                failures.inc();
                if !std::mem::replace(&mut failing, true) {
                    let (issuer, none) = (&source.issuer, keys.borrow().is_empty());
                    tracing::error!(
                        issuer,
                        none,
                        error = &error as &dyn std::error::Error,
                        "cannot fetch the issuer's keys; those from before are used"
                    );
                }
            }
        }
        // Those who wait learn that there is nothing newer to be had.
        waiting.clear();
        let next = at + if keys.borrow().is_empty() { pause } else { REFRESH };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => break,
                done = asked.recv() => match done {
                    // Within the pause nothing is fetched; the answer is what is there.
                    Some(_) if at.elapsed() < pause => {}
                    Some(done) => {
                        waiting.push(done);
                        break;
                    }
                    None => return,
                },
            }
        }
    }
}

impl Source {
    async fn fetch(&self) -> Result<Keys, FetchError> {
        let body = self.get(&self.discovery).await?;
        let found: Discovery = serde_json::from_slice(&body)
            .map_err(|source| FetchError::Content { url: self.discovery.clone(), source })?;
        if found.issuer != self.issuer {
            return Err(FetchError::OtherIssuer { found: found.issuer.chars().take(200).collect() });
        }
        let url = Url::parse(&found.jwks_uri)
            .ok()
            .filter(|url| url.scheme() == "https" || (is_safe(url) && self.discovery.scheme() == "http"))
            .ok_or(FetchError::Plain { url: found.jwks_uri })?;
        let body = self.get(&url).await?;
        let keys = Keys::parse(&body).map_err(|source| FetchError::Content { url, source })?;
        if keys.is_empty() { Err(FetchError::NoKeys) } else { Ok(keys) }
    }

    async fn get(&self, url: &Url) -> Result<Vec<u8>, FetchError> {
        let failed = |source| FetchError::Get { url: url.clone(), source };
        let mut answer = self.client.get(url.clone()).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(FetchError::Status { url: url.clone(), status: answer.status().as_u16() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLong { url: url.clone() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
