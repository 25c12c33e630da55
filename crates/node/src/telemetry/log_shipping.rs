//! Log lines of a job on their way to the controller, and to the object store.
//!
//! A line belongs to a job when its event, or a span around it, has a `job` field; `stage`, `generation` and `rank`
//! come from the same fields. The buffer is bounded: what does not fit is dropped and counted, and the next line that
//! fits says how many are missing before it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crescendo_core::secret::redact;
use crescendo_proto::v1::LogLine;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Lines kept while the controller cannot be reached.
pub const DEFAULT_CAPACITY: usize = 4096;
/// Bytes of text kept while the object store cannot be reached.
const KEPT_BYTES: usize = 16 << 20;
/// And lines: short ones have little text, and take memory all the same.
const KEPT_LINES: usize = 1 << 16;
/// Longest text of a line.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;

#[derive(Debug, Default)]
struct Lines {
    queue: VecDeque<LogLine>,
    /// Since the last line that was kept.
    dropped_since: u64,
    dropped_ever: u64,
    /// Where the lines are kept, once the controller has said it.
    kept_at: Option<String>,
    /// Lines that are not in the object store yet, and their bytes; `None` where nobody takes them.
    kept: Option<VecDeque<LogLine>>,
    kept_bytes: usize,
    /// Lines that had no room there since the last one that had.
    lost_since: u64,
}

impl Lines {
    fn keep(&mut self, line: &LogLine) {
        let Some(kept) = &mut self.kept else { return };
        if kept.len() >= KEPT_LINES || self.kept_bytes + line.message.len() > KEPT_BYTES {
            self.lost_since += 1;
            return;
        }
        let mut line = line.clone();
        line.dropped_before = std::mem::take(&mut self.lost_since);
        self.kept_bytes += line.message.len();
        kept.push_back(line);
    }
}

/// Bounded buffer between the code that logs and the session that sends. Clones share it.
#[derive(Clone, Debug)]
pub struct LogBuffer {
    lines: Arc<Mutex<Lines>>,
    filled: Arc<Notify>,
    capacity: usize,
    node_id: Arc<str>,
}

impl LogBuffer {
    pub fn new(node_id: &str, capacity: usize) -> Self {
        Self { lines: Arc::default(), filled: Arc::default(), capacity, node_id: node_id.into() }
    }

    /// The same, with a second way out: every line also waits for [`LogBuffer::take_kept`].
    pub fn keeping(self) -> Self {
        self.lines().kept = Some(VecDeque::new());
        self
    }

    /// Who logs.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The object store in which lines are kept, as the controller says.
    pub fn set_kept_at(&self, url: &str) {
        self.lines().kept_at = Some(url.to_owned()).filter(|url| !url.is_empty());
    }

    /// What was told to [`LogBuffer::set_kept_at`].
    pub fn kept_at(&self) -> Option<String> {
        self.lines().kept_at.clone()
    }

    /// Takes the lines that are to be kept, oldest first.
    pub fn take_kept(&self) -> Vec<LogLine> {
        let mut lines = self.lines();
        lines.kept_bytes = 0;
        lines.kept.as_mut().map(std::mem::take).unwrap_or_default().into()
    }

    /// Adds a line, or counts it as dropped when the buffer is full. Never waits.
    pub fn push(&self, mut line: LogLine) {
        if let Cow::Owned(redacted) = redact(&line.message) {
            line.message = redacted;
        }
        truncate(&mut line.message, MAX_MESSAGE_BYTES);
        let mut lines = self.lines();
        lines.keep(&line);
        if lines.queue.len() >= self.capacity {
            lines.dropped_since += 1;
            lines.dropped_ever += 1;
            return;
        }
        line.dropped_before += std::mem::take(&mut lines.dropped_since);
        lines.queue.push_back(line);
        drop(lines);
        self.filled.notify_one();
    }

    /// Takes up to `max` lines, oldest first.
    pub fn take(&self, max: usize) -> Vec<LogLine> {
        let mut lines = self.lines();
        let count = lines.queue.len().min(max);
        lines.queue.drain(..count).collect()
    }

    /// Lines dropped since the start of the process.
    pub fn dropped_lines(&self) -> u64 {
        self.lines().dropped_ever
    }

    /// Waits until a line is added. Safe to cancel.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The layer that fills this buffer.
    pub fn layer(&self) -> ForwardLayer {
        ForwardLayer { buffer: self.clone() }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // The queue is whole after every method, so a panic elsewhere leaves nothing half done.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts `text` to at most `max_bytes`, at a character's border.
pub fn truncate(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
    }
}

/// See [`LogBuffer::layer`].
#[derive(Debug)]
pub struct ForwardLayer {
    buffer: LogBuffer,
}

/// The fields that say what a line is about.
#[derive(Clone, Debug, Default)]
struct Subject {
    job: Option<String>,
    stage: Option<String>,
    generation: Option<u64>,
    rank: Option<i64>,
}

impl Subject {
    fn take_text(&mut self, name: &str, value: String) -> bool {
        match name {
            "job" => self.job = Some(value),
            "stage" => self.stage = Some(value),
            "generation" => self.generation = value.parse().ok(),
            "rank" => self.rank = value.parse().ok(),
            _ => return false,
        }
        true
    }

    /// Fields of the inner span or event win.
    fn overlay(&mut self, inner: &Subject) {
        self.job = inner.job.clone().or(self.job.take());
        self.stage = inner.stage.clone().or(self.stage.take());
        self.generation = inner.generation.or(self.generation);
        self.rank = inner.rank.or(self.rank);
    }
}

#[derive(Default)]
struct Fields {
    subject: Subject,
    message: String,
    rest: String,
}

impl Fields {
    fn take(&mut self, name: &str, value: String) {
        if name == "message" {
            self.message = value;
        } else if !self.subject.take_text(name, value.clone()) {
            let _ = write!(self.rest, " {name}={value}");
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), value.to_owned());
    }
}

impl<S> Layer<S> for ForwardLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields.subject);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(subject) = span.extensions_mut().get_mut::<Subject>()
        {
            subject.overlay(&fields.subject);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut subject = Subject::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(outer) = span.extensions().get::<Subject>() {
                subject.overlay(outer);
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        subject.overlay(&fields.subject);
        let Some(job_id) = subject.job else { return };
        self.buffer.push(LogLine {
            at: Some(prost_types::Timestamp::from(SystemTime::now())),
            job_id,
            stage: subject.stage.unwrap_or_default(),
            generation: subject.generation.unwrap_or(0),
            node_id: self.buffer.node_id.to_string(),
            rank: subject.rank.and_then(|rank| i32::try_from(rank).ok()).unwrap_or(-1),
            level: event.metadata().level().to_string(),
            message: fields.message + &fields.rest,
            dropped_before: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn lines_carry_the_fields_of_their_spans() {
        let buffer = LogBuffer::new("node-1", 8);
        let subscriber = tracing_subscriber::registry().with(buffer.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("of no job");
            let outer =
                tracing::info_span!("attempt", job = "j-1", stage = %"one", generation = 3u64).entered();
            tracing::info_span!("rank", rank = 1).in_scope(|| tracing::warn!(step = 7, "slow"));
            drop(outer);
        });
        let lines = buffer.take(10);
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!(
            (line.job_id.as_str(), line.stage.as_str(), line.generation, line.rank),
            ("j-1", "one", 3, 1)
        );
        assert_eq!((line.level.as_str(), line.message.as_str()), ("WARN", "slow step=7"));
        assert_eq!(line.node_id, "node-1");
    }

    #[test]
    fn overflow_is_counted() {
        let buffer = LogBuffer::new("node-1", 2);
        for _ in 0..5 {
            buffer.push(LogLine::default());
        }
        assert_eq!(buffer.take(1).len(), 1);
        buffer.push(LogLine::default());
        assert_eq!(buffer.take(10).iter().map(|line| line.dropped_before).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(buffer.dropped_lines(), 3);
    }

    #[test]
    fn lines_wait_for_the_object_store_within_a_bound() {
        let buffer = LogBuffer::new("node-1", 2).keeping();
        let line = || LogLine { message: "x".repeat(MAX_MESSAGE_BYTES), ..LogLine::default() };
        let fits = KEPT_BYTES / MAX_MESSAGE_BYTES;
        for _ in 0..fits + 3 {
            buffer.push(line());
        }
        assert_eq!(buffer.take_kept().len(), fits, "however few the session takes");
        buffer.push(line());
        assert_eq!(buffer.take_kept().iter().map(|line| line.dropped_before).collect::<Vec<_>>(), [3]);
        assert!(LogBuffer::new("node-1", 2).take_kept().is_empty());
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let buffer = LogBuffer::new("node-1", 2);
        buffer.push(LogLine { message: "ä".repeat(MAX_MESSAGE_BYTES), ..LogLine::default() });
        assert_eq!(buffer.take(1)[0].message.len(), MAX_MESSAGE_BYTES);
    }
}
