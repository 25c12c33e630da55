//! Tells webhooks that jobs have ended, on whichever controller leads.
//!
//! ```text
//!   engine ──due──▶ at most 8 deliveries at a time ──POST──▶ receivers
//!     ▲                          │
//!     └─────how it went──────────┘     noted durably; what is not noted is delivered again
//! ```
//!
//! Headers and signature are those of Standard Webhooks (standard-webhooks/standard-webhooks, spec/standard-webhooks.md).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crescendo_core::ids::Timestamp;
use crescendo_core::notices::{DeliveryKey, MAX_UNDER_WAY};
use crescendo_node::objects::with_causes;
use reqwest::{Client, StatusCode};
use ring::hmac;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{Delivery, DeliveryOutcome, NoticeRequest, Request};
use crate::http_client::{BadClient, client};
use crate::leadership::EngineHandle;

/// Looks for something to deliver this often, and after each delivery.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two looks: for each the engine goes through all that waits.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Limit of one exchange with a receiver.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most that is read of an answer, which says nothing but its status.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Longest file with a secret.
const MAX_SECRET_BYTES: u64 = 4096;
/// Limit of reading one.
const SECRET_DEADLINE: Duration = Duration::from_secs(5);
/// Tries to have an outcome noted, and the pause between them.
const NOTE_TRIES: u32 = 10;
const NOTE_PAUSE: Duration = Duration::from_secs(1);

/// What deliveries are made with.
pub struct Webhooks {
    https: Client,
    http: Client,
    /// Where the secrets are that deliveries are signed with.
    secrets: Option<PathBuf>,
    clock: fn() -> Timestamp,
}

/// The body of a delivery.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    id: &'a str,
    event: String,
    job_id: &'a str,
    name: &'a str,
    tenant: &'a str,
    state: &'static str,
    reason: &'a str,
    labels: &'a BTreeMap<String, String>,
    submitted_at: String,
    started_at: Option<String>,
    finished_at: String,
    attempt: u32,
}

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
enum NoSecret {
    #[error("the controller has no folder of secrets: --webhook-secrets")]
    NoFolder,
    #[error("secret {name} cannot be read")]
    Read {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("secret {name} is longer than {MAX_SECRET_BYTES} bytes")]
    TooLong { name: String },
    #[error("secret {name} is empty")]
    Empty { name: String },
    #[error("secret {name} begins with whsec_ and goes on with what is no base64")]
    NoBase64 { name: String },
}

impl Webhooks {
    pub fn new(secrets: Option<PathBuf>, clock: fn() -> Timestamp) -> Result<Self, BadClient> {
        Ok(Self { https: client("https", DEADLINE)?, http: client("http", DEADLINE)?, secrets, clock })
    }

    /// Delivers while this controller leads, until `stop`.
    pub async fn run(self, engine: EngineHandle, stop: CancellationToken) {
        let webhooks = Arc::new(self);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            // Deliveries that are under way end with the lead: the next leader makes them again.
            tokio::select! {
                () = stop.cancelled() => return,
                _ = engine.as_leader(deliver_all(&webhooks, &engine)) => {}
            }
        }
    }

    async fn deliver(&self, delivery: &Delivery) -> DeliveryOutcome {
        let id = message_id(&delivery.key);
        let body = body(&id, delivery);
        let timestamp = (self.clock)().0 / 1000;
        let url = delivery.webhook.url.expose();
        let client = if url.starts_with("https:") { &self.https } else { &self.http };
        let mut request = client
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp);
        if let Some(name) = &delivery.webhook.secret {
            match read_secret(self.secrets.as_deref(), name).await {
                Ok(secret) => {
                    request = request.header("webhook-signature", sign(&secret, &id, timestamp, &body))
                }
                Err(error) => {
                    return DeliveryOutcome::Failed { why: with_causes(&error), no_secret: true };
                }
            }
        }
        match request.body(body).send().await {
            Ok(mut answer) => {
                let outcome = outcome_of(answer.status());
                // So that the connection can be used again; what it says is nobody's concern.
                let mut read = 0;
                while read < MAX_ANSWER_BYTES
                    && let Ok(Some(chunk)) = answer.chunk().await
                {
                    read += chunk.len();
                }
                outcome
            }
            // Its URL may hold a key.
            Err(error) => {
                DeliveryOutcome::Failed { why: with_causes(&error.without_url()), no_secret: false }
            }
        }
    }
}

/// Until the engine leads no more, or for as long as this is awaited.
async fn deliver_all(webhooks: &Arc<Webhooks>, engine: &EngineHandle) {
    let mut deliveries: JoinSet<DeliveryKey> = JoinSet::new();
    let mut under_way: BTreeSet<DeliveryKey> = BTreeSet::new();
    loop {
        let asked = under_way.clone();
        let due = engine.ask(|reply| Request::Notices(NoticeRequest::Due { under_way: asked, reply })).await;
        // While the engine cannot say what is due, it is asked again.
        for delivery in due.unwrap_or_default() {
            if deliveries.len() < MAX_UNDER_WAY && under_way.insert(delivery.key.clone()) {
                deliveries.spawn(deliver_one(webhooks.clone(), engine.clone(), delivery));
            }
        }
        let first = tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => None,
            Some(ended) = deliveries.join_next() => Some(ended),
        };
        tokio::time::sleep(LOOK_PAUSE).await;
        // All that have ended by now: a look can fill every place that is free.
        let mut next = first.or_else(|| deliveries.try_join_next());
        while let Some(ended) = next {
            match ended {
                Ok(key) => under_way.remove(&key),
                Err(error) => {
                    // Whose it was is not known; all that goes on under way says so itself.
                    tracing::error!(%error, "a delivery to a webhook has broken off");
                    return;
                }
            };
            next = deliveries.try_join_next();
        }
    }
}

/// Delivers, and has noted how it went.
async fn deliver_one(webhooks: Arc<Webhooks>, engine: EngineHandle, delivery: Delivery) -> DeliveryKey {
    let key = delivery.key.clone();
    let outcome = webhooks.deliver(&delivery).await;
    for _ in 0..NOTE_TRIES {
        let (delivery, outcome) = (key.clone(), outcome.clone());
        let noted =
            engine.ask(|reply| Request::Notices(NoticeRequest::Settled { delivery, outcome, reply })).await;
        if noted.is_ok() || !engine.leads() {
            return key;
        }
        tokio::time::sleep(NOTE_PAUSE).await;
    }
    tracing::warn!(job = %key.job, "how a delivery to a webhook went cannot be noted; it is made again");
    key
}

fn outcome_of(status: StatusCode) -> DeliveryOutcome {
    match status {
        status if status.is_success() => DeliveryOutcome::Delivered,
        StatusCode::GONE => DeliveryOutcome::Gone,
        status => {
            let why = if status.is_redirection() {
                format!("it answers {}, and redirects are not followed", status.as_u16())
            } else {
                format!("it answers {}", status.as_u16())
            };
            DeliveryOutcome::Failed { why, no_secret: false }
        }
    }
}

/// The same for every try, by whichever controller.
fn message_id(key: &DeliveryKey) -> String {
    format!("{}-{}", key.job, key.finished_at.0)
}

fn body(id: &str, delivery: &Delivery) -> Vec<u8> {
    let Delivery { key, spec, submitted_at, end, attempt, .. } = delivery;
    let (state, reason) = (end.state.name(), end.state.end_reason());
    let body = Body {
        id,
        event: format!("job.{state}"),
        job_id: key.job.as_str(),
        name: &spec.name,
        tenant: &spec.tenant,
        state,
        reason,
        labels: &spec.labels,
        submitted_at: shown(*submitted_at),
        started_at: end.started_at.map(shown),
        finished_at: shown(end.finished_at),
        attempt: *attempt,
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

/// RFC 3339 in UTC.
fn shown(time: Timestamp) -> String {
    // Beyond the year 9999 there is no such form.
    const LAST_MILLIS: u64 = 253_402_300_799_999;
    let since_epoch = Duration::from_millis(time.0.min(LAST_MILLIS));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since_epoch).to_string()
}

fn sign(secret: &[u8], id: &str, timestamp: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

/// Read anew for each delivery, so that another can take its place at any time.
async fn read_secret(folder: Option<&Path>, name: &str) -> Result<Vec<u8>, NoSecret> {
    let path = folder.ok_or(NoSecret::NoFolder)?.join(name);
    let reading = async {
        let mut text = Vec::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut text).await?;
        Ok(text)
    };
    let reading = tokio::time::timeout(SECRET_DEADLINE, reading);
    let text = reading.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let text = text.map_err(|source| NoSecret::Read { name: name.to_owned(), source })?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(NoSecret::TooLong { name: name.to_owned() });
    }
    parse_secret(&text, name)
}

/// `whsec_` and base64, or the bytes themselves; without white space around them.
fn parse_secret(text: &[u8], name: &str) -> Result<Vec<u8>, NoSecret> {
    let text = text.trim_ascii();
    let secret = match text.strip_prefix(b"whsec_") {
        Some(encoded) => {
            STANDARD.decode(encoded).map_err(|_| NoSecret::NoBase64 { name: name.to_owned() })?
        }
        None => text.to_vec(),
    };
    if secret.is_empty() { Err(NoSecret::Empty { name: name.to_owned() }) } else { Ok(secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The vector of its reference libraries, e.g. libraries/python/tests/test_webhooks.py.
        let secret = parse_secret(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", "s").expect("a secret");
        let signed = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_secret_is_said() {
        assert_eq!(parse_secret(b" plain \n", "s").expect("a secret"), b"plain");
        for (text, said) in [(&b"whsec_!"[..], "no base64"), (b"whsec_", "empty"), (b"\n", "empty")] {
            let error = parse_secret(text, "chat").expect_err("not a secret").to_string();
            assert!(error.contains(said) && error.contains("secret chat"), "{error}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("long"), vec![b'x'; 5000]).expect("written");
        for (at, name, said) in [
            (None, "chat", "--webhook-secrets"),
            (Some(folder.path()), "chat", "secret chat cannot be read"),
            (Some(folder.path()), "long", "longer than 4096"),
        ] {
            let error = read_secret(at, name).await.expect_err("not a secret").to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(shown(Timestamp(1_614_265_330_042)), "2021-02-25T15:02:10.042Z");
        assert_eq!(shown(Timestamp(u64::MAX)), "9999-12-31T23:59:59.999Z");
    }
}
