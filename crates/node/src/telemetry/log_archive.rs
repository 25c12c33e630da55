//! Log lines of jobs in the object store, where they outlive the job, its nodes and the controllers.
//!
//! Each process writes the lines of its own in chunks, `jobs/JOB/logs/TIME-NODE-ID.jsonl`, one JSON object a line. The
//! newest chunk of a job is written anew as it grows, every few seconds; once it is full the next one begins. Of a job
//! each process keeps its last [`MAX_CHUNKS`]; what was before is deleted. Curators read them again for people
//! ([`read_tail`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crescendo_core::object_keys;
use crescendo_proto::v1::LogLine;
use futures::StreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::log_shipping::LogBuffer;
use crate::objects;
use crate::runtime::random;

/// Bytes after which a chunk is full.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks of one job that one process keeps: 8 MiB.
pub const MAX_CHUNKS: usize = 32;
/// Bytes of all jobs that are not in the object store, beyond which no more are taken out of the buffer.
const MAX_UNSAVED_BYTES: usize = 8 << 20;
/// Time between two looks whether there is something to write.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Limit of one request to the object store.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
/// Limit of the last writing, when the process ends.
const LAST_DEADLINE: Duration = Duration::from_secs(3);
/// A job without a line for so long is forgotten here; what it wrote stays.
const FORGET_AFTER: Duration = Duration::from_secs(900);
/// Bytes of a log that one reader gets at most, the last ones.
pub const MAX_LOG_BYTES: usize = 8 << 20;
/// Chunks that are looked at, when somebody reads.
const MAX_LISTED: usize = 100_000;

/// A line as it lies in the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct KeptLine {
    /// Nanoseconds since 1970.
    at: i64,
    stage: String,
    generation: u64,
    node: String,
    rank: i32,
    level: String,
    message: String,
    dropped_before: u64,
}

impl Default for KeptLine {
    fn default() -> Self {
        KeptLine {
            at: 0,
            stage: String::new(),
            generation: 0,
            node: String::new(),
            rank: -1,
            level: String::new(),
            message: String::new(),
            dropped_before: 0,
        }
    }
}

const NANOS: i64 = 1_000_000_000;

/// When a line was written, nanoseconds since 1970.
pub fn nanos_of(line: &LogLine) -> i64 {
    line.at.map_or(0, |at| at.seconds.saturating_mul(NANOS).saturating_add(i64::from(at.nanos)))
}

fn written(line: &LogLine) -> Vec<u8> {
    let kept = KeptLine {
        at: nanos_of(line),
        stage: line.stage.clone(),
        generation: line.generation,
        node: line.node_id.clone(),
        rank: line.rank,
        level: line.level.clone(),
        message: line.message.clone(),
        dropped_before: line.dropped_before,
    };
    let mut text = serde_json::to_vec(&kept).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The lines in `text`, of `job`. What is no line, such as the half of one, is left out.
pub fn parse(job: &str, text: &[u8]) -> Vec<LogLine> {
    let parsed = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    parsed
        .map(|KeptLine { at, stage, generation, node, rank, level, message, dropped_before }| LogLine {
            at: Some(prost_types::Timestamp {
                seconds: at.div_euclid(NANOS),
                nanos: i32::try_from(at.rem_euclid(NANOS)).unwrap_or(0),
            }),
            job_id: job.to_owned(),
            stage,
            generation,
            node_id: node,
            rank,
            level,
            message,
            dropped_before,
        })
        .collect()
}

/// The chunks of one job that this process writes.
struct JobLog {
    /// Keys of those that are full, oldest first, and of those that this node wrote before.
    full: Vec<String>,
    /// What the open one holds.
    open: Vec<u8>,
    key: Option<String>,
    /// Bytes of `open` that are in the object store.
    stored: usize,
    /// It was looked for what this node has written before.
    is_known: bool,
    last_line: tokio::time::Instant,
}

/// Writes what `logs` keeps, until `stop`; then what is left, once.
pub async fn run(logs: LogBuffer, stop: CancellationToken) {
    let mut archive = Archive { logs, jobs: BTreeMap::new(), store: None, has_failed: false };
    loop {
        let ends = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(WRITE_EVERY) => false,
        };
        if ends {
            // What comes after is lost to the archive; the session has its own end.
            let _ = tokio::time::timeout(LAST_DEADLINE, archive.write()).await;
            return;
        }
        archive.write().await;
    }
}

struct Archive {
    logs: LogBuffer,
    jobs: BTreeMap<String, JobLog>,
    store: Option<(String, Arc<dyn ObjectStore>)>,
    /// It was said that nothing can be written.
    has_failed: bool,
}

impl Archive {
    async fn write(&mut self) {
        let Some(store) = self.opened() else { return };
        // What cannot be written waits in the buffer, which is bounded.
        let unsaved: usize = self.jobs.values().map(|log| log.open.len() - log.stored).sum();
        let lines = if unsaved < MAX_UNSAVED_BYTES { self.logs.take_kept() } else { Vec::new() };
        for line in lines {
            if object_keys::is_plain(&line.job_id) {
                let job = self.jobs.entry(line.job_id.clone()).or_insert_with(JobLog::new);
                job.add(&line, &self.logs);
            }
        }
        let mut failed = None;
        for (job, log) in &mut self.jobs {
            if let Err(reason) = log.write(job, self.logs.node_id(), store.as_ref()).await {
                failed = Some(reason);
                // Where one cannot be written, others hardly can.
                break;
            }
        }
        self.jobs.retain(|_, log| log.stored < log.open.len() || log.last_line.elapsed() < FORGET_AFTER);
        match (failed, self.has_failed) {
            (Some(reason), false) => {
                tracing::warn!(reason, "log lines cannot be written to the object store; they wait");
                self.has_failed = true;
            }
            (None, true) => {
                tracing::info!("log lines are written to the object store again");
                self.has_failed = false;
            }
            (Some(_), true) | (None, false) => {}
        }
    }

    /// The object store that the controller has named, if it has.
    fn opened(&mut self) -> Option<Arc<dyn ObjectStore>> {
        let url = self.logs.kept_at()?;
        if let Some((known, store)) = &self.store
            && *known == url
        {
            return Some(store.clone());
        }
        match objects::open(&url) {
            Ok(store) => {
                self.store = Some((url, store.clone()));
                Some(store)
            }
            Err(error) => {
                if !self.has_failed {
                    tracing::warn!(reason = objects::with_causes(&error), "log lines cannot be kept");
                    self.has_failed = true;
                }
                None
            }
        }
    }
}

impl JobLog {
    fn new() -> JobLog {
        JobLog {
            full: Vec::new(),
            open: Vec::new(),
            key: None,
            stored: 0,
            is_known: false,
            last_line: tokio::time::Instant::now(),
        }
    }

    fn add(&mut self, line: &LogLine, logs: &LogBuffer) {
        self.last_line = tokio::time::Instant::now();
        let millis = nanos_of(line) / 1_000_000;
        let id = || random::id().chars().take(8).collect::<String>();
        let name = || {
            object_keys::log_chunk(&line.job_id, u64::try_from(millis).unwrap_or(0), logs.node_id(), &id())
        };
        self.key.get_or_insert_with(name);
        self.open.extend_from_slice(&written(line));
    }

    async fn write(&mut self, job: &str, node: &str, store: &dyn ObjectStore) -> Result<(), String> {
        let Some(key) = self.key.clone().filter(|_| self.stored < self.open.len()) else { return Ok(()) };
        if !self.is_known {
            // A process of this node that was here before.
            let chunks = chunks(job, store).await?;
            let own = chunks.into_iter().map(|chunk| chunk.location.to_string());
            self.full = own.filter(|key| object_keys::node_of_log_chunk(key) == Some(node)).collect();
            self.is_known = true;
        }
        let bytes = Bytes::copy_from_slice(&self.open);
        let length = bytes.len();
        within(store.put(&Key::from(key.as_str()), PutPayload::from_bytes(bytes))).await?;
        self.stored = length;
        if length >= CHUNK_BYTES {
            self.full.push(key);
            (self.key, self.stored) = (None, 0);
            self.open.clear();
        }
        while self.full.len() >= MAX_CHUNKS {
            let oldest = self.full.remove(0);
            match within(store.delete(&Key::from(oldest.as_str()))).await {
                Ok(()) => {}
                Err(reason) => tracing::debug!(oldest, reason, "an old chunk of a log stays"),
            }
        }
        Ok(())
    }
}

async fn within<T>(request: impl Future<Output = object_store::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(done) => done.map_err(|error| objects::with_causes(&error)),
        Err(_) => Err(format!("no answer within {REQUEST_DEADLINE:?}")),
    }
}

/// The chunks of a job, oldest first.
async fn chunks(job: &str, store: &dyn ObjectStore) -> Result<Vec<ObjectMeta>, String> {
    let prefix = Key::from(object_keys::logs(job));
    let listing = async {
        let mut found = Vec::new();
        let mut listed = store.list(Some(&prefix));
        while let Some(chunk) = listed.next().await {
            let chunk = chunk?;
            if object_keys::node_of_log_chunk(chunk.location.as_ref()).is_some() {
                found.push(chunk);
            }
            if found.len() >= MAX_LISTED {
                break;
            }
        }
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    };
    within(listing).await
}

/// The end of a job's log, as much as fits into `most_bytes`, in the form of [`parse`]. Lines of one node are in their
/// order.
pub async fn read_tail(job: &str, store: &dyn ObjectStore, most_bytes: usize) -> Result<Vec<u8>, String> {
    let mut wanted = BTreeSet::new();
    let mut left = most_bytes as u64;
    for chunk in chunks(job, store).await?.into_iter().rev() {
        let Some(rest) = left.checked_sub(chunk.size) else { break };
        left = rest;
        wanted.insert(chunk.location);
    }
    let mut text = Vec::new();
    for key in wanted {
        let read = async { store.get(&key).await?.bytes().await };
        match within(read).await {
            Ok(bytes) if text.len() + bytes.len() <= most_bytes => text.extend_from_slice(&bytes),
            // It has grown since it was listed.
            Ok(_) => break,
            // Deleted in between, to keep the log within its bound.
            Err(reason) => tracing::debug!(%key, reason, "a chunk of a log cannot be read"),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn line(n: usize, bytes: usize) -> LogLine {
        let seconds = 1_000 + i64::try_from(n).expect("small");
        LogLine {
            at: Some(prost_types::Timestamp { seconds, nanos: 5 }),
            job_id: "j".into(),
            node_id: "n-1".into(),
            rank: -1,
            message: format!("{n} {}", "x".repeat(bytes)),
            ..LogLine::default()
        }
    }

    async fn read(store: &dyn ObjectStore, most: usize) -> Vec<LogLine> {
        parse("j", &read_tail("j", store, most).await.expect("read"))
    }

    #[tokio::test]
    async fn what_was_written_is_read() {
        let (store, logs) = (InMemory::new(), LogBuffer::new("n-1", 16));
        let mut log = JobLog::new();
        for n in 0..3 {
            log.add(&line(n, 1), &logs);
            log.write("j", "n-1", &store).await.expect("write");
        }
        assert_eq!(read(&store, 1 << 20).await, [line(0, 1), line(1, 1), line(2, 1)]);
        assert_eq!(chunks("j", &store).await.expect("list").len(), 1, "one that grows");
        // The process begins anew: nothing of before is written over.
        let mut log = JobLog::new();
        log.add(&line(3, 1), &logs);
        log.write("j", "n-1", &store).await.expect("write");
        assert_eq!(read(&store, 1 << 20).await.len(), 4);
        assert!(read(&store, 10).await.is_empty(), "no chunk fits");
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_keeps_its_end() {
        let (store, logs) = (InMemory::new(), LogBuffer::new("n-1", 16));
        let mut log = JobLog::new();
        let many = 2 * MAX_CHUNKS;
        for n in 0..many {
            log.add(&line(n, CHUNK_BYTES), &logs);
            log.write("j", "n-1", &store).await.expect("write");
        }
        let kept = chunks("j", &store).await.expect("list");
        assert!(kept.len() <= MAX_CHUNKS, "{}", kept.len());
        let lines = read(&store, usize::MAX).await;
        assert_eq!(lines.last().map(nanos_of), Some(nanos_of(&line(many - 1, 0))));
        // A new process of the node goes on within the same bound.
        let mut log = JobLog::new();
        for n in many..many + 5 {
            log.add(&line(n, CHUNK_BYTES), &logs);
            log.write("j", "n-1", &store).await.expect("write");
        }
        assert!(chunks("j", &store).await.expect("list").len() <= MAX_CHUNKS);
        let tail = read(&store, 3 * CHUNK_BYTES).await;
        assert_eq!(
            tail.last().map(nanos_of),
            Some(nanos_of(&line(many + 4, 0))),
            "the end, not the beginning"
        );
    }

    #[test]
    fn what_is_torn_is_left_out() {
        let mut text = written(&line(1, 1));
        text.extend_from_slice(&written(&line(2, 1))[..20]);
        assert_eq!(parse("j", &text), [line(1, 1)]);
    }
}
