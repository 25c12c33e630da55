//! Log lines of the jobs' processes: a bounded ring for each job, in memory. Never in the way of the engine.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crescendo_core::ids::JobId;
use crescendo_core::secret::redact;
use crescendo_node::telemetry::log_archive::nanos_of;
use crescendo_proto::v1;
use tokio::sync::Notify;

/// Lines kept of one job.
pub const MAX_LINES: usize = 10_000;
/// Bytes of text kept of one job.
const MAX_BYTES: usize = 8 << 20;
/// Jobs whose lines are kept; the one that was silent longest goes first.
const MAX_JOBS: usize = 64;
/// Text of one line.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Lines taken from one batch.
const MAX_BATCH_LINES: usize = 512;

/// The rings. Cheap to clone.
#[derive(Clone, Default)]
pub struct LogHub {
    rings: Arc<Mutex<Rings>>,
    added: Arc<Notify>,
}

#[derive(Default)]
struct Rings {
    by_job: BTreeMap<JobId, Ring>,
    /// Counts batches, to find the ring that was silent longest.
    clock: u64,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<v1::LogLine>,
    bytes: usize,
    /// Number of the first line in the ring, counted from the job's first.
    first: u64,
    touched: u64,
}

/// What a reader gets: lines, and where to go on.
pub struct Excerpt {
    pub lines: Vec<v1::LogLine>,
    pub next: u64,
}

impl LogHub {
    /// Takes over a node's batch. Lines without a job that could exist are left out.
    pub fn push(&self, node: &str, batch: v1::LogBatch) {
        {
            let mut rings = self.lock();
            rings.clock += 1;
            for mut line in batch.lines.into_iter().take(MAX_BATCH_LINES) {
                let Ok(job) = JobId::parse(&line.job_id) else { continue };
                // The node has done so; a message may come from elsewhere.
                if let Cow::Owned(redacted) = redact(&line.message) {
                    line.message = redacted;
                }
                truncate(&mut line.message, MAX_LINE_BYTES);
                node.clone_into(&mut line.node_id);
                rings.add(job, line);
            }
        }
        self.added.notify_waiters();
    }

    /// The last `tail` lines.
    pub fn tail(&self, job: &JobId, tail: usize) -> Excerpt {
        let rings = self.lock();
        let Some(ring) = rings.by_job.get(job) else { return Excerpt { lines: Vec::new(), next: 0 } };
        let skip = ring.lines.len().saturating_sub(tail);
        Excerpt { lines: ring.lines.iter().skip(skip).cloned().collect(), next: ring.end() }
    }

    /// At most `limit` lines from number `from` on. Lines that were pushed out in between are counted in the first one.
    pub fn read(&self, job: &JobId, from: u64, limit: usize) -> Excerpt {
        let rings = self.lock();
        let Some(ring) = rings.by_job.get(job) else { return Excerpt { lines: Vec::new(), next: from } };
        let start = from.clamp(ring.first, ring.end());
        let skip = usize::try_from(start - ring.first).unwrap_or(usize::MAX);
        let mut lines: Vec<v1::LogLine> = ring.lines.iter().skip(skip).take(limit).cloned().collect();
        if let Some(line) = lines.first_mut() {
            line.dropped_before += start.saturating_sub(from);
        }
        Excerpt { next: start + lines.len() as u64, lines }
    }

    /// The last lines of the rank that last wrote an error, of its newest attempt; the job's last lines if none did.
    pub fn of_the_failed_rank(&self, job: &JobId, most: usize) -> Vec<v1::LogLine> {
        let rings = self.lock();
        let Some(ring) = rings.by_job.get(job) else { return Vec::new() };
        let newest = ring.lines.iter().map(|line| line.generation).max().unwrap_or(0);
        let errors = ring.lines.iter().rev().filter(|line| line.level == "ERROR" && line.rank >= 0);
        let failed = errors.clone().find(|line| line.generation == newest).or(errors.clone().next());
        let wanted = |line: &&v1::LogLine| {
            failed.is_none_or(|failed| {
                line.rank == failed.rank
                    && line.generation == failed.generation
                    && line.node_id == failed.node_id
            })
        };
        last(ring.lines.iter().rev().filter(wanted), most)
    }

    /// The last warnings and errors of curators and agents.
    pub fn complaints(&self, job: &JobId, most: usize) -> Vec<v1::LogLine> {
        let rings = self.lock();
        let Some(ring) = rings.by_job.get(job) else { return Vec::new() };
        let complains =
            |line: &&v1::LogLine| line.rank < 0 && matches!(line.level.as_str(), "WARN" | "ERROR");
        last(ring.lines.iter().rev().filter(complains), most)
    }

    /// Resolves at the next batch of any job.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        // Nothing panics while it is held; the rings are whole in any case.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rings {
    fn add(&mut self, job: JobId, line: v1::LogLine) {
        if !self.by_job.contains_key(&job) && self.by_job.len() >= MAX_JOBS {
            let oldest = self.by_job.iter().min_by_key(|(_, ring)| ring.touched).map(|(job, _)| job.clone());
            oldest.and_then(|oldest| self.by_job.remove(&oldest));
        }
        let clock = self.clock;
        let ring = self.by_job.entry(job).or_default();
        ring.touched = clock;
        ring.bytes += line.message.len();
        ring.lines.push_back(line);
        while ring.lines.len() > MAX_LINES || ring.bytes > MAX_BYTES {
            let Some(out) = ring.lines.pop_front() else { break };
            ring.bytes -= out.message.len();
            ring.first += 1;
        }
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }
}

/// The last `tail` of what was kept in the object store and what is here: each line once, in the order of time.
pub fn merged(kept: Vec<v1::LogLine>, here: Vec<v1::LogLine>, tail: usize) -> Vec<v1::LogLine> {
    let mut told = Told { lines: BTreeSet::new(), since_nanos: i64::MIN };
    told.add(&here);
    let mut lines = told.untold(kept);
    lines.extend(here);
    // Stable: what a node has logged in one moment stays in its order.
    lines.sort_by_key(nanos_of);
    let surplus = lines.len().saturating_sub(tail);
    lines.drain(..surplus);
    lines
}

/// The lines that a reader was told.
pub struct Told {
    lines: BTreeSet<(i64, String, i32, String)>,
    /// What is older was not asked for.
    since_nanos: i64,
}

impl Told {
    /// Of a reader who asked for the last `tail` lines and got `lines`, in the order of time.
    pub fn of_tail(lines: &[v1::LogLine], tail: usize) -> Told {
        let since_nanos = lines.first().filter(|_| lines.len() >= tail).map_or(i64::MIN, nanos_of);
        let mut told = Told { lines: BTreeSet::new(), since_nanos };
        told.add(lines);
        told
    }

    pub fn add(&mut self, lines: &[v1::LogLine]) {
        self.lines.extend(lines.iter().map(Self::key));
    }

    /// How many lines they are.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// Those of `lines` that were asked for and not told.
    pub fn untold(&self, lines: Vec<v1::LogLine>) -> Vec<v1::LogLine> {
        let is_new =
            |line: &v1::LogLine| nanos_of(line) >= self.since_nanos && !self.lines.contains(&Self::key(line));
        lines.into_iter().filter(is_new).collect()
    }

    fn key(line: &v1::LogLine) -> (i64, String, i32, String) {
        (nanos_of(line), line.node_id.clone(), line.rank, line.message.clone())
    }
}

/// The first of lines that come newest first, oldest first.
fn last<'a>(newest_first: impl Iterator<Item = &'a v1::LogLine>, most: usize) -> Vec<v1::LogLine> {
    let mut lines: Vec<v1::LogLine> = newest_first.take(most).cloned().collect();
    lines.reverse();
    lines
}

fn truncate(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let mut end = max_bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(job: &str, from: usize, count: usize) -> v1::LogBatch {
        let line =
            |n: usize| v1::LogLine { job_id: job.into(), message: n.to_string(), ..Default::default() };
        v1::LogBatch { lines: (from..from + count).map(line).collect() }
    }

    fn job(id: &str) -> JobId {
        JobId::parse(id).expect("valid")
    }

    #[test]
    fn a_ring_keeps_the_newest_lines_and_counts_the_rest() {
        let hub = LogHub::default();
        for start in (0..MAX_LINES + 1000).step_by(500) {
            hub.push("n", batch("j", start, 500));
        }
        let excerpt = hub.read(&job("j"), 0, 2);
        assert_eq!(excerpt.lines[0].message, "1000");
        assert_eq!(excerpt.lines[0].dropped_before, 1000);
        assert_eq!(excerpt.next, 1002);
        assert_eq!(hub.tail(&job("j"), 3).lines.len(), 3);
        assert_eq!(hub.tail(&job("j"), usize::MAX).lines.len(), MAX_LINES);
    }

    #[test]
    fn the_job_that_was_silent_longest_makes_room() {
        let hub = LogHub::default();
        for n in 0..=MAX_JOBS {
            hub.push("n", batch(&format!("j{n}"), 0, 1));
        }
        assert!(hub.tail(&job("j0"), 9).lines.is_empty());
        assert_eq!(hub.tail(&job("j1"), 9).lines.len(), 1);
    }

    #[test]
    fn the_lines_of_the_rank_that_failed_last_are_found() {
        let hub = LogHub::default();
        let line = |rank: i32, generation: u64, level: &str, message: &str| v1::LogLine {
            job_id: "j".into(),
            rank,
            generation,
            level: level.into(),
            message: message.into(),
            ..Default::default()
        };
        let lines = vec![
            line(0, 1, "ERROR", "old"),
            line(0, 2, "INFO", "fine"),
            line(1, 2, "INFO", "loading"),
            line(-1, 2, "WARN", "judge endpoint is slow"),
            line(1, 2, "ERROR", "loss is not finite"),
            line(0, 2, "INFO", "stopped"),
        ];
        hub.push("n", v1::LogBatch { lines });
        let text =
            |lines: Vec<v1::LogLine>| -> Vec<String> { lines.into_iter().map(|line| line.message).collect() };
        assert_eq!(text(hub.of_the_failed_rank(&job("j"), 9)), ["loading", "loss is not finite"]);
        assert_eq!(text(hub.of_the_failed_rank(&job("j"), 1)), ["loss is not finite"]);
        assert_eq!(text(hub.complaints(&job("j"), 9)), ["judge endpoint is slow"]);
        assert!(hub.of_the_failed_rank(&job("other"), 9).is_empty());
    }

    #[test]
    fn kept_lines_and_those_here_are_each_told_once() {
        let line = |seconds: i64, node: &str| v1::LogLine {
            at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            node_id: node.into(),
            message: format!("{seconds}"),
            ..Default::default()
        };
        let kept = vec![line(1, "a"), line(2, "a"), line(3, "a"), line(2, "b")];
        let here = vec![line(3, "a"), line(4, "a")];
        let told = |tail| -> Vec<(String, String)> {
            let lines = merged(kept.clone(), here.clone(), tail);
            lines.into_iter().map(|line| (line.message, line.node_id)).collect()
        };
        let expected = [("1", "a"), ("2", "a"), ("2", "b"), ("3", "a"), ("4", "a")];
        let expected: Vec<_> = expected.map(|(at, node)| (at.to_owned(), node.to_owned())).into();
        assert_eq!(told(100), expected);
        assert_eq!(told(2), expected[3..]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut text = "é".repeat(10);
        truncate(&mut text, 5);
        assert_eq!(text, "éé");
    }

    #[test]
    fn a_reader_is_told_late_what_was_kept_and_nothing_twice() {
        let at = |seconds: i64, message: &str| v1::LogLine {
            at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            message: message.into(),
            ..Default::default()
        };
        let messages =
            |lines: Vec<v1::LogLine>| -> Vec<String> { lines.into_iter().map(|line| line.message).collect() };
        let kept = vec![at(1, "before"), at(3, "told"), at(4, "missed"), at(5, "followed")];
        // All that there was.
        let mut told = Told::of_tail(&[at(3, "told")], 2);
        told.add(&[at(5, "followed")]);
        assert_eq!(messages(told.untold(kept.clone())), ["before", "missed"]);
        // There was more than was asked for.
        let mut told = Told::of_tail(&[at(3, "told")], 1);
        told.add(&[at(5, "followed")]);
        assert_eq!(messages(told.untold(kept)), ["missed"]);
    }
}
