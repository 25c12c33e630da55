//! Language models behind an OpenAI-compatible interface: one question, one answer, at most once paid.
//!
//! ```text
//!   ask ─▶ written down already? ─▶ a place (concurrency) ─▶ money left? ─▶ rate ─▶ one try ─▶ answer ─▶ written down
//!             reply_log                semaphore              ledger       limits    http     reply     reply_log
//!                                                                            ▲        │
//!                                                                            └ retry ─┘
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`message`] | a conversation, as a request's body |
//! | [`reply`] | an answer, read strictly; what it cost |
//! | [`retry`] | what a failure means and how long to wait: pure |
//! | [`limits`] | requests and tokens a minute: pure, time is an argument |
//! | [`spend`] | money spent by all curators of a job |
//! | [`response_cache`] | answers by content, in the object store |
//! | [`keys`] | what the operator has set up: keys, and the addresses that they go to |
//! | [`network`] | what a curator process shares between stages |
//! | `http` | one try: deadlines, no redirects, a bounded body |
//!
//! An answer is a function of nothing that we hold. So it is written down under the hash of the question, once, under a
//! conditional create, and everybody reads it from there: a unit that is made again says the same and pays nothing.

mod http;
pub mod keys;
pub mod limits;
pub mod message;
pub mod network;
pub mod reply;
pub mod response_cache;
pub mod retry;
pub mod spend;
pub mod usage;

use crescendo_core::spec::EndpointSpec;
use http::Http;
use limits::Limits;
use message::Message;
use network::LlmContext;
use response_cache::{Recorded, ResponseCache};
use retry::{Failure, Verdict};
use spend::{SpendLedger, Spent};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Longest wait for a place among the requests under way.
const PLACE_DEADLINE: Duration = Duration::from_secs(1800);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("endpoint {name}: {reason}")]
    Setup { name: String, reason: String },
    #[error("endpoint {name} refuses the content: {reason}")]
    Refused { name: String, reason: String },
    #[error("endpoint {name} cannot be used: {reason}")]
    Denied { name: String, reason: String },
    #[error("endpoint {name} failed {tries} times, at last: {last}")]
    Failed { name: String, tries: u32, last: Failure },
    #[error(
        "endpoint {name}: the job's spending limit of {limit} is reached: {spent} are spent or under way"
    )]
    SpendLimit { name: String, spent: Spent, limit: Spent },
    #[error("endpoint {name} is too busy: {reason}")]
    Busy { name: String, reason: String },
    #[error("endpoint {name}: {reason}")]
    Store { name: String, reason: String },
}

impl EndpointError {
    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            EndpointError::Failed { .. } | EndpointError::Busy { .. } | EndpointError::Store { .. } => true,
            EndpointError::Setup { .. }
            | EndpointError::Refused { .. }
            | EndpointError::Denied { .. }
            | EndpointError::SpendLimit { .. } => false,
        }
    }
}

/// A client of one endpoint. Its clones, and all stages of a job on this curator, share the limits.
#[derive(Clone, Debug)]
pub struct Chat {
    inner: Arc<Client>,
    context: LlmContext,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    /// It had been written down before; nothing was sent.
    pub recorded: bool,
}

/// What the clones share.
#[derive(Debug)]
pub(crate) struct Client {
    spec: EndpointSpec,
    http: Http,
    places: Semaphore,
    limits: std::sync::Mutex<Limits>,
    /// What the limits count time from.
    started: Instant,
    ledger: SpendLedger,
    replies: ResponseCache,
}

impl Chat {
    /// Opens the endpoint of `spec` with what this curator has been set up with.
    pub fn open(spec: &EndpointSpec, context: Option<&LlmContext>) -> Result<Chat, EndpointError> {
        let context = context.cloned().ok_or_else(|| EndpointError::Setup {
            name: spec.name.clone(),
            reason: "this process has no way to the network".to_owned(),
        })?;
        let inner = context.network.shared(&context.job_id, spec, || {
            let setup = |reason: String| EndpointError::Setup { name: spec.name.clone(), reason };
            let key = match &spec.key {
                None => None,
                Some(name) => {
                    Some(context.network.keys().find(name, &spec.url).map_err(|e| setup(e.to_string()))?)
                }
            };
            Ok(Client {
                spec: spec.clone(),
                http: Http::open(spec, key).map_err(setup)?,
                places: Semaphore::new(spec.concurrency.max(1) as usize),
                limits: std::sync::Mutex::new(Limits::new(spec.requests_per_minute, spec.tokens_per_minute)),
                started: Instant::now(),
                ledger: SpendLedger::new(spec, context.objects.clone(), &context.job_id),
                replies: ResponseCache::new(context.objects.clone()),
            })
        })?;
        Ok(Chat { inner, context })
    }

    /// What the spec says of it.
    pub fn spec(&self) -> &EndpointSpec {
        &self.inner.spec
    }

    /// Where waiting for it is done, from a thread that is not the runtime's.
    pub fn handle(&self) -> &tokio::runtime::Handle {
        self.context.network.handle()
    }

    /// Where answers are written down.
    pub fn objects(&self) -> &Arc<dyn object_store::ObjectStore> {
        &self.context.objects
    }

    /// Puts a question. Every wait in it has a deadline, so it ends.
    pub async fn ask(&self, conversation: &[Message]) -> Result<Answer, EndpointError> {
        let spec = &self.inner.spec;
        let outcome = self.inner.ask(conversation, &self.context).await;
        let counted = match &outcome {
            Ok(Answer { recorded: true, .. }) => "recorded",
            Ok(Answer { recorded: false, .. }) => "answered",
            Err(EndpointError::Refused { .. }) => "refused",
            Err(EndpointError::SpendLimit { .. }) => "spend_limit",
            Err(
                EndpointError::Setup { .. }
                | EndpointError::Denied { .. }
                | EndpointError::Failed { .. }
                | EndpointError::Busy { .. }
                | EndpointError::Store { .. },
            ) => "failed",
        };
        self.context.network.metrics().endpoint_questions.with_label_values(&[counted]).inc();
        if let Err(error) = &outcome {
            tracing::debug!(endpoint = spec.name, %error, "a question has no answer");
        }
        outcome
    }
}

impl Client {
    async fn ask(&self, conversation: &[Message], context: &LlmContext) -> Result<Answer, EndpointError> {
        let name = || self.spec.name.clone();
        let store = |reason: String| EndpointError::Store { name: name(), reason };
        let body = message::body(&self.spec.model, self.spec.max_tokens, conversation);
        let question = response_cache::question(&self.spec.url, &body);
        if let Some(recorded) = self.replies.read(&question).await.map_err(store)? {
            return Ok(Answer { text: recorded.text, recorded: true });
        }
        let place = tokio::time::timeout(PLACE_DEADLINE, self.places.acquire()).await;
        let _place = place
            .map_err(|_| EndpointError::Busy { name: name(), reason: "no place came free".to_owned() })?
            // Never closed.
            .map_err(|_| EndpointError::Busy { name: name(), reason: "it is closing".to_owned() })?;
        let expected = message::estimate(conversation, self.spec.max_tokens);
        let reservation = self.ledger.reserve(expected).await?;
        let mut tries = 0;
        let (answer, usage) = loop {
            self.keep_rate(expected.total(), context).await?;
            tries += 1;
            let metrics = context.network.metrics();
            metrics.endpoint_tries.inc();
            let failure = match self.http.post(body.clone()).await {
                Ok(bytes) => match reply::read(&bytes) {
                    Ok(reply::Reply::Answer { text, usage }) => {
                        let usage = reply::plausible(usage, expected, self.spec.max_tokens, &text);
                        break (text, usage);
                    }
                    Ok(reply::Reply::Refusal { reason }) => Failure::Refusal { reason },
                    Err(reason) => Failure::Broken { reason },
                },
                Err(failure) => failure,
            };
            if failure.may_have_cost() {
                // Asked for all the same, so it may be on the bill; what was answered nobody knows.
                self.ledger.spend(expected.input, 0);
            }
            let verdict = failure.verdict();
            if verdict == Verdict::Retry && tries < self.spec.tries {
                let wait =
                    retry::delay(tries, failure.retry_after(), crescendo_node::runtime::backoff::random());
                tracing::debug!(endpoint = self.spec.name, %failure, tries, ?wait, "trying again");
                tokio::time::sleep(wait).await;
                continue;
            }
            self.ledger.write_down().await?;
            let (name, reason) = (name(), failure.to_string());
            return Err(match verdict {
                Verdict::Retry => EndpointError::Failed { name, tries, last: failure },
                Verdict::Refused => EndpointError::Refused { name, reason },
                Verdict::Denied => EndpointError::Denied { name, reason },
            });
        };
        drop(reservation);
        self.ledger.spend(usage.input, usage.output);
        if let Ok(mut limits) = self.limits.lock() {
            limits.correct(expected.total(), usage.total());
        }
        context.network.metrics().endpoint_tokens.with_label_values(&["input"]).inc_by(usage.input);
        context.network.metrics().endpoint_tokens.with_label_values(&["output"]).inc_by(usage.output);
        let recorded = Recorded { text: answer, input_tokens: usage.input, output_tokens: usage.output };
        // Whoever was first is right: the others take over what that one wrote.
        let kept = self.replies.write(&question, recorded).await.map_err(store)?;
        self.ledger.write_down().await?;
        Ok(Answer { text: kept.text, recorded: false })
    }

    async fn keep_rate(&self, tokens: u64, context: &LlmContext) -> Result<(), EndpointError> {
        let busy = |reason: String| EndpointError::Busy { name: self.spec.name.clone(), reason };
        let now = self.started.elapsed();
        let wait = match self.limits.lock() {
            Ok(mut limits) => {
                limits.divide(context.curators.get(), now);
                limits.reserve(tokens, now)
            }
            Err(_) => return Err(busy("the count of its limits is lost".to_owned())),
        };
        let wait =
            wait.map_err(|too_long| busy(format!("its rate limits allow the next request in {too_long:?}")))?;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
