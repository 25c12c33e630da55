//! All tries of one question, with what those who ask an endpoint share: its limits, its money, and how it has fared so far.

use super::dialect::Dialect;
use super::http::Http;
use super::limits::Limits;
use super::message::{self, Message};
use super::response_cache::{self, Recorded, ResponseCache};
use super::retry::{self, Failure, Verdict};
use super::spend::SpendLedger;
use super::streak::Streak;
use super::usage::Usage;
use super::{Answer, EndpointError, LlmContext, Memory, reply};
use crescendo_core::spec::EndpointSpec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Longest wait for a place among the requests under way.
const PLACE_DEADLINE: Duration = Duration::from_secs(300);
/// Time after which no further try of a question is begun, whatever the spec says: the curator tells that the endpoint
/// is out of order, and gets other work beside.
const TRY_FOR: Duration = Duration::from_secs(300);
/// Answers that are paid and neither understood nor given up yet, of which all are held; beyond it the oldest goes.
const MAX_HELD: usize = 1024;

/// What the clones of a [`Chat`](super::Chat) share.
#[derive(Debug)]
pub(crate) struct Client {
    spec: EndpointSpec,
    http: Http,
    places: Semaphore,
    limits: Mutex<Limits>,
    /// What the limits count time from.
    started: Instant,
    ledger: SpendLedger,
    replies: ResponseCache,
    held: Mutex<Held>,
    streak: Mutex<Streak>,
    /// It was said that pictures may not be seen.
    has_warned: AtomicBool,
}

/// Answers by question. A conversation that an outage interrupts is gone on with from here, and pays for no answer twice.
#[derive(Debug, Default)]
struct Held {
    answers: BTreeMap<String, (Recorded, bool)>,
    order: VecDeque<String>,
}

impl Held {
    fn put(&mut self, question: &str, recorded: Recorded, cut: bool) {
        if self.answers.insert(question.to_owned(), (recorded, cut)).is_none() {
            self.order.push_back(question.to_owned());
        }
        while self.order.len() > MAX_HELD {
            let oldest = self.order.pop_front();
            oldest.and_then(|oldest| self.answers.remove(&oldest));
        }
    }

    fn remove(&mut self, question: &str) {
        if self.answers.remove(question).is_some() {
            self.order.retain(|known| known != question);
        }
    }
}

/// What a try gave.
struct Said {
    text: String,
    usage: Option<Usage>,
    cut: bool,
}

impl Client {
    /// Asks nothing yet.
    pub fn new(spec: &EndpointSpec, http: Http, context: &LlmContext) -> Client {
        Client {
            spec: spec.clone(),
            http,
            places: Semaphore::new(spec.concurrency.max(1) as usize),
            limits: Mutex::new(Limits::new(spec.requests_per_minute, spec.tokens_per_minute)),
            started: Instant::now(),
            ledger: SpendLedger::new(spec, context.objects.clone(), &context.job_id),
            replies: ResponseCache::new(context.objects.clone(), &spec.url, &spec.model),
            held: Mutex::default(),
            streak: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// What the spec says of it.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    fn name(&self) -> String {
        self.spec.name.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streak(&self) -> MutexGuard<'_, Streak> {
        self.streak.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error where the endpoint has given too much in a row that is of no use.
    fn is_worth_asking(&self) -> Result<(), EndpointError> {
        match self.streak().end() {
            None => Ok(()),
            Some(reason) => Err(EndpointError::Denied { name: self.name(), reason, may_pass: false }),
        }
    }

    /// An answer was understood.
    pub fn understood(&self) {
        self.streak().understood();
    }

    /// One was not.
    pub fn count_unreadable(&self, why: &str, said: &str) -> Result<(), EndpointError> {
        self.streak().unreadable(why, said);
        self.is_worth_asking()
    }

    /// A question was refused.
    pub fn count_refused(&self, why: &str) -> Result<(), EndpointError> {
        self.streak().refused(why);
        self.is_worth_asking()
    }

    /// Writes an answer down; what stands then.
    pub async fn keep(&self, answer: &Answer) -> Result<Recorded, EndpointError> {
        let store = |reason: String| EndpointError::Store { name: self.name(), reason };
        let Answer { text, question, usage, .. } = answer;
        let recorded =
            Recorded { text: text.clone(), input_tokens: usage.input, output_tokens: usage.output };
        let standing = match answer.memory {
            // Whoever was first is right: the others take over what that one wrote.
            Memory::Used => self.replies.write(question, recorded).await.map_err(store)?,
            Memory::PassedOver => {
                self.replies.replace(question, &recorded).await.map_err(store)?;
                recorded
            }
        };
        self.held().remove(question);
        Ok(standing)
    }

    /// Has an answer asked for once more, should its question come again.
    pub fn forget(&self, answer: &Answer) {
        self.held().remove(&answer.question);
    }

    /// Puts a question, unless its answer is known.
    pub async fn ask(
        &self,
        conversation: &[Message],
        memory: Memory,
        context: &LlmContext,
    ) -> Result<Answer, EndpointError> {
        let store = |reason: String| EndpointError::Store { name: self.name(), reason };
        self.is_worth_asking()?;
        let usual = message::body(&self.spec.model, self.spec.max_tokens, conversation, Dialect::default());
        let question = response_cache::question(&self.spec.url, &usual);
        let held = self.held().answers.get(&question).cloned();
        if let Some((held, cut)) = held {
            return Ok(Answer { cut, ..Answer::of(question, held, false, memory) });
        }
        if memory == Memory::Used
            && let Some(recorded) = self.replies.read(&question).await.map_err(store)?
        {
            return Ok(Answer::of(question, recorded, true, memory));
        }
        let place = tokio::time::timeout(PLACE_DEADLINE, self.places.acquire()).await;
        let _place = place
            .map_err(|_| EndpointError::Busy { name: self.name(), reason: "no place came free".to_owned() })?
            // Never closed.
            .map_err(|_| EndpointError::Busy { name: self.name(), reason: "it is closing".to_owned() })?;
        // Others may have found out while this one waited.
        self.is_worth_asking()?;
        let expected = message::estimate(conversation, self.spec.max_tokens);
        let reservation = self.ledger.reserve(expected).await?;
        let Said { text, usage, cut } = self.try_until_answered(conversation, expected, context).await?;
        drop(reservation);
        self.warn_of_unseen_pictures(conversation, usage);
        let usage = reply::plausible(usage, expected, self.spec.max_tokens, &text);
        self.ledger.spend(usage.input, usage.output);
        if let Ok(mut limits) = self.limits.lock() {
            limits.correct(expected.total(), usage.total());
        }
        context.network.metrics().endpoint_tokens.with_label_values(&["input"]).inc_by(usage.input);
        context.network.metrics().endpoint_tokens.with_label_values(&["output"]).inc_by(usage.output);
        let recorded = Recorded { text, input_tokens: usage.input, output_tokens: usage.output };
        self.held().put(&question, recorded.clone(), cut);
        self.ledger.write_down().await?;
        Ok(Answer { cut, ..Answer::of(question, recorded, false, memory) })
    }

    async fn try_until_answered(
        &self,
        conversation: &[Message],
        expected: Usage,
        context: &LlmContext,
    ) -> Result<Said, EndpointError> {
        let has_pictures = conversation.iter().any(|message| !message.pictures.is_empty());
        let mut dialect = context.network.dialect(&self.spec);
        let (mut tries, begun) = (0, Instant::now());
        loop {
            self.keep_rate(expected.total(), context).await?;
            context.network.metrics().endpoint_tries.inc();
            let body = message::body(&self.spec.model, self.spec.max_tokens, conversation, dialect);
            let failure = match self.try_once(body).await {
                Ok(said) => {
                    context.network.remember_dialect(&self.spec, dialect);
                    return Ok(said);
                }
                Err(failure) => failure,
            };
            if let Some(answered) = failure.cost() {
                // Asked for all the same, so it may be on the bill.
                self.ledger.spend(expected.input, answered.min(expected.output));
            }
            if let Failure::Server { error, .. } = &failure
                && let Some(next) = dialect.after(error)
            {
                tracing::debug!(endpoint = self.spec.name, %failure, ?next, "asking in another way");
                dialect = next;
                continue;
            }
            tries += 1;
            let verdict = failure.verdict(tries, self.spec.tries, has_pictures);
            if verdict == Verdict::Retry && tries < self.spec.tries && begun.elapsed() < TRY_FOR {
                let random = crescendo_node::runtime::backoff::random();
                let wait = retry::delay(tries, failure.retry_after(), random);
                tracing::debug!(endpoint = self.spec.name, %failure, tries, ?wait, "trying again");
                tokio::time::sleep(wait).await;
                continue;
            }
            self.ledger.write_down().await?;
            let (name, reason) = (self.name(), failure.to_string());
            return Err(match verdict {
                Verdict::Retry => EndpointError::Failed { name, tries, last: failure },
                Verdict::Refused => EndpointError::Refused { name, reason },
                Verdict::Unreadable => EndpointError::Unreadable { name, reason },
                Verdict::Denied => EndpointError::Denied { name, reason, may_pass: true },
                Verdict::Unable => EndpointError::Denied { name, reason, may_pass: false },
            });
        }
    }

    async fn try_once(&self, body: Vec<u8>) -> Result<Said, Failure> {
        let (bytes, retry_after) = self.http.post(body).await?;
        // It may have sent the key back.
        let text = self.http.without_key(&String::from_utf8_lossy(&bytes));
        match reply::read(text.as_bytes()) {
            Ok(reply::Reply::Answer { text, usage, cut }) => Ok(Said { text, usage, cut }),
            Ok(reply::Reply::Refusal { reason }) => Err(Failure::Refusal { reason }),
            Ok(reply::Reply::Error(error)) => Err(Failure::Server { error, retry_after }),
            Ok(reply::Reply::Thought { tokens }) => {
                Err(Failure::Thought { tokens: tokens.unwrap_or(u64::from(self.spec.max_tokens)) })
            }
            Ok(reply::Reply::Empty) => Err(Failure::Empty),
            Err(reason) => Err(Failure::Broken { reason }),
        }
    }

    /// Says once that the server counts fewer tokens than the pictures need that it was sent: some drop or shrink them in silence.
    fn warn_of_unseen_pictures(&self, conversation: &[Message], claimed: Option<Usage>) {
        let (Some(claimed), Some(least)) = (claimed, message::least_with_pictures(conversation)) else {
            return;
        };
        if claimed.input < least && !self.has_warned.swap(true, Ordering::Relaxed) {
            let (endpoint, counted) = (&self.spec.name, claimed.input);
            tracing::warn!(
                endpoint,
                counted,
                least,
                "the endpoint counts fewer tokens than its pictures need: it may not look at them, or at small copies"
            );
        }
    }

    async fn keep_rate(&self, tokens: u64, context: &LlmContext) -> Result<(), EndpointError> {
        let busy = |reason: String| EndpointError::Busy { name: self.name(), reason };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_answers_are_bounded() {
        let mut held = Held::default();
        let recorded = || Recorded { text: "x".into(), input_tokens: 1, output_tokens: 1 };
        for n in 0..MAX_HELD + 5 {
            held.put(&format!("{n}"), recorded(), false);
        }
        held.remove("7");
        assert_eq!((held.answers.len(), held.order.len()), (MAX_HELD - 1, MAX_HELD - 1));
        assert!(!held.answers.contains_key("4") && held.answers.contains_key("5"));
    }
}
