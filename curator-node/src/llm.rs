//! Language models behind an OpenAI-compatible interface: one question, one answer, at most once paid.
//!
//! ```text
//!   ask ─▶ written down already? ─▶ a place (concurrency) ─▶ money left? ─▶ rate ─▶ one try ─▶ answer ─▶ understood? ─▶ keep
//!          response_cache            semaphore              spend          limits    http     reply    its caller    response_cache
//!                                                                            ▲        │
//!                                                                            └ retry ─┘
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`message`] | a conversation, as a request's body |
//! | [`dialect`] | how an endpoint wants to be asked: pure |
//! | [`reply`] | an answer; what it cost |
//! | [`thinking`] | what a model thought, taken out of what it said: pure |
//! | [`json_object`] | the one JSON object in an answer: pure |
//! | [`excerpt`] | the beginning of a text from outside, fit for a log: pure |
//! | [`server_error`] | what a server says when it gives no answer: pure |
//! | [`retry`] | what a failure means and how long to wait: pure |
//! | [`streak`] | when an endpoint is not worth asking any more: pure |
//! | [`limits`] | requests and tokens a minute: pure, time is an argument |
//! | [`spend`] | money spent by all curators of a job |
//! | [`response_cache`] | answers by content, in the object store |
//! | [`keys`] | what the operator has set up: keys, and the addresses that they go to |
//! | [`network`] | what a curator process shares between stages |
//! | `guard` | to which addresses connections may go |
//! | `http` | one try: deadlines, no redirects, a bounded body |
//! | `client` | all tries of one question |
//!
//! An answer is a function of nothing that we hold. So it is written down under the hash of the question, under a conditional
//! create, and everybody reads it from there: a unit that is made again says the same and pays nothing. That is done by who
//! asked, once the answer was understood: what nothing can be read from is never found again.

mod client;
pub mod dialect;
pub mod excerpt;
mod guard;
mod http;
pub mod json_object;
pub mod keys;
pub mod limits;
pub mod message;
pub mod network;
pub mod reply;
pub mod response_cache;
pub mod retry;
pub mod server_error;
pub mod spend;
pub mod streak;
pub mod thinking;
pub mod usage;

use client::Client;
use crescendo_core::reach::Reach;
use crescendo_core::spec::EndpointSpec;
use message::Message;
use network::{Curators, Network};
use response_cache::Recorded;
use retry::Failure;
use spend::Spent;
use std::sync::Arc;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("endpoint {name}: {reason}")]
    Setup { name: String, reason: String },
    #[error("endpoint {name} refuses the content: {reason}")]
    Refused { name: String, reason: String },
    /// Answers to other questions may be of use.
    #[error("endpoint {name} gives no answer that can be read: {reason}")]
    Unreadable { name: String, reason: String },
    /// Nothing is answered until somebody changes something.
    #[error("endpoint {name} cannot be used: {reason}")]
    Denied {
        name: String,
        reason: String,
        /// It may be tried a few times more: somebody may be at it.
        may_pass: bool,
    },
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
            | EndpointError::Unreadable { .. }
            | EndpointError::Denied { .. }
            | EndpointError::SpendLimit { .. } => false,
        }
    }

    /// Whether no unit of any curator would fare better, so that the job is to fail.
    pub fn ends_the_job(&self) -> bool {
        matches!(self, EndpointError::Denied { .. } | EndpointError::SpendLimit { .. })
    }
}

/// What a stage needs of the world to ask a language model.
#[derive(Clone, Debug)]
pub struct LlmContext {
    pub network: Network,
    pub objects: Arc<dyn object_store::ObjectStore>,
    /// Whose money is counted together.
    pub job_id: String,
    /// Keys and addresses that the job may use.
    pub reach: Reach,
    /// Curators that work on the job, among whom its rate limits are divided.
    pub curators: Curators,
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
    /// It stopped at the limit of its tokens, so that its end is missing.
    pub cut: bool,
    memory: Memory,
    question: String,
    usage: usage::Usage,
}

/// Whether an answer that is written down will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    #[default]
    Used,
    /// It did not: the question is asked once more, and its answer takes the place of that one.
    PassedOver,
}

impl Chat {
    /// Opens the endpoint of `spec` with what this curator has been set up with.
    pub fn open(spec: &EndpointSpec, context: Option<&LlmContext>) -> Result<Chat, EndpointError> {
        let context = context.cloned().ok_or_else(|| EndpointError::Setup {
            name: spec.name.clone(),
            reason: "this process has no way to the network".to_owned(),
        })?;
        let inner = context.network.shared(&context.job_id, spec, &context.reach, || {
            let setup = |reason: String| EndpointError::Setup { name: spec.name.clone(), reason };
            context.reach.check_url(&spec.url).map_err(setup)?;
            spec.key.as_ref().map_or(Ok(()), |key| context.reach.check_key(key)).map_err(setup)?;
            let key = match &spec.key {
                None => None,
                Some(name) => {
                    Some(context.network.keys().find(name, &spec.url).map_err(|e| setup(e.to_string()))?)
                }
            };
            let http = http::Http::open(spec, key, &context.reach).map_err(setup)?;
            Ok(Client::new(spec, http, &context))
        })?;
        Ok(Chat { inner, context })
    }

    /// What the spec says of it.
    pub fn spec(&self) -> &EndpointSpec {
        self.inner.spec()
    }

    /// Where waiting for it is done, from a thread that is not the runtime's.
    pub fn handle(&self) -> &tokio::runtime::Handle {
        self.context.network.handle()
    }

    /// Where answers are written down.
    pub fn objects(&self) -> &Arc<dyn object_store::ObjectStore> {
        &self.context.objects
    }

    /// Puts a question. Every wait in it has a deadline, so it ends. Who understands the answer says so with [`Chat::keep`], who
    /// does not with [`Chat::not_understood`].
    pub async fn ask(&self, conversation: &[Message], memory: Memory) -> Result<Answer, EndpointError> {
        let spec = self.spec();
        let mut outcome = self.inner.ask(conversation, memory, &self.context).await;
        if let Err(EndpointError::Unreadable { reason, .. }) = &outcome
            && let Err(ended) = self.inner.count_unreadable(reason, "")
        {
            outcome = Err(ended);
        }
        let counted = match &outcome {
            Ok(Answer { recorded: true, .. }) => "recorded",
            Ok(Answer { recorded: false, .. }) => "answered",
            Err(EndpointError::Refused { .. }) => "refused",
            Err(EndpointError::SpendLimit { .. }) => "spend_limit",
            Err(EndpointError::Unreadable { .. }) => "unreadable",
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

    /// Writes down answers that were understood. What the last one says where it is written down: this, or what another curator
    /// wrote that was faster.
    pub async fn keep(&self, answers: &[Answer]) -> Result<Option<String>, EndpointError> {
        self.inner.understood();
        let mut standing = None;
        for answer in answers.iter().filter(|answer| !answer.recorded) {
            standing = Some(self.inner.keep(answer).await?.text);
        }
        Ok(standing)
    }

    /// Says that nothing could be read from an answer, and why: it is forgotten. An error where it has been so too often in a row;
    /// then nobody should go on asking.
    pub fn not_understood(&self, answer: &Answer, why: &str) -> Result<(), EndpointError> {
        self.inner.forget(answer);
        let said = reply::excerpt(&answer.text);
        tracing::debug!(endpoint = self.spec().name, why, said, "an answer is not understood");
        self.context.network.metrics().endpoint_questions.with_label_values(&["unreadable"]).inc();
        self.inner.count_unreadable(why, &said)
    }

    /// Has what was asked for nothing asked for anew, should the same come again.
    pub fn forget(&self, answers: &[Answer]) {
        answers.iter().for_each(|answer| self.inner.forget(answer));
    }

    /// Says that a whole question was refused. An error where it has been so too often in a row.
    pub fn was_refused(&self, why: &str) -> Result<(), EndpointError> {
        self.inner.count_refused(why)
    }
}

impl Answer {
    fn of(question: String, recorded: Recorded, is_recorded: bool, memory: Memory) -> Answer {
        let Recorded { text, input_tokens, output_tokens } = recorded;
        // Older records have what was thought in them.
        let visible = thinking::taken_out(&text);
        let text = if visible.text.trim().is_empty() { text } else { visible.text.trim().to_owned() };
        let usage = usage::Usage { input: input_tokens, output: output_tokens };
        Answer { text, recorded: is_recorded, cut: false, memory, question, usage }
    }

    /// Why it is not understood, with its being cut short if that is so.
    pub fn why(&self, error: &dyn std::fmt::Display) -> String {
        if self.cut {
            format!("{error} (it stopped at its limit of tokens: raise maxTokens)")
        } else {
            error.to_string()
        }
    }
}
