//! Who follows a job or a pair log. A watcher that is slow misses what lies between, never the newest state.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::error::RequestError;
use crescendo_core::ids::{JobId, StageRef, Timestamp};
use crescendo_core::log_reads::ReadLog;
use crescendo_proto::{convert, v1};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tonic::Status;

use crate::engine::request::{Answer, JobWatch, ShardWatch};
use crate::engine::{Engine, OVERVIEW};

/// Messages that wait for a watcher at most.
const WAITING: usize = 8;
/// Shards in one message.
const MAX_SHARDS: usize = 512;
/// Progress alone is sent at most this often; changes of records are sent at once.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

struct JobWatcher {
    out: mpsc::Sender<Result<v1::WatchJobResponse, Status>>,
    /// Newest revision that it has.
    revision: u64,
    sent_at: Timestamp,
    /// There is something newer than what was sent.
    behind: bool,
}

struct LogWatcher {
    out: mpsc::Sender<Result<v1::WatchPairLogResponse, Status>>,
    next_unit: u64,
    /// What was sent last: pairs committed, sealed.
    sent: Option<(u64, bool)>,
    /// There is something that it had no room for, or that it was not sent yet.
    is_behind: bool,
}

pub(super) struct Watchers {
    limit: usize,
    jobs: BTreeMap<JobId, Vec<JobWatcher>>,
    logs: BTreeMap<StageRef, Vec<LogWatcher>>,
    /// Some of the latter are behind.
    logs_behind: bool,
}

impl Watchers {
    pub fn new(limit: usize) -> Self {
        Self { limit, jobs: BTreeMap::new(), logs: BTreeMap::new(), logs_behind: false }
    }

    fn job_watchers(&self) -> usize {
        self.jobs.values().map(Vec::len).sum()
    }

    fn log_watchers(&self) -> usize {
        self.logs.values().map(Vec::len).sum()
    }

    pub fn close_all(&mut self, why: &str) {
        for watcher in std::mem::take(&mut self.jobs).into_values().flatten() {
            let _ = watcher.out.try_send(Err(Status::unavailable(why)));
        }
        for watcher in std::mem::take(&mut self.logs).into_values().flatten() {
            let _ = watcher.out.try_send(Err(Status::unavailable(why)));
        }
    }
}

impl Engine {
    pub(super) fn watch_job(&mut self, job: JobId, scope: &Scope, from_revision: u64) -> Answer<JobWatch> {
        self.job(&job, scope)?;
        self.check_room(self.watchers.job_watchers())?;
        let (out, receiver) = mpsc::channel(WAITING);
        // The present state goes out with the batch, once it is durable.
        let watcher =
            JobWatcher { out, revision: from_revision, sent_at: Timestamp::default(), behind: true };
        self.watchers.jobs.entry(job).or_default().push(watcher);
        Ok(receiver)
    }

    pub(super) fn watch_pair_log(
        &mut self,
        stage: StageRef,
        scope: &Scope,
        from_unit: u64,
    ) -> Answer<ShardWatch> {
        if self.job(&stage.job, scope).is_err() || self.state.stage(&stage).is_none() {
            return Err(RequestError::NotFound { what: format!("stage {stage}") }.into());
        }
        self.check_room(self.watchers.log_watchers())?;
        let (out, receiver) = mpsc::channel(WAITING);
        self.watchers.logs_behind = true;
        self.watchers.logs.entry(stage).or_default().push(LogWatcher {
            out,
            next_unit: from_unit,
            sent: None,
            is_behind: true,
        });
        Ok(receiver)
    }

    fn check_room(&self, open: usize) -> Answer<()> {
        if open < self.watchers.limit {
            return Ok(());
        }
        let what = format!("{open} watches are open, which is the limit");
        Err(RequestError::Full { what, retry_after: self.around.config.queue.retry_after }.into())
    }

    /// Tells the watchers what has become durable, and forgets those that have gone or have seen the end.
    pub(super) fn publish(&mut self, now: Timestamp) {
        let changed = std::mem::take(&mut self.changed);
        let progressed = std::mem::take(&mut self.progressed);
        let mut jobs = std::mem::take(&mut self.watchers.jobs);
        jobs.retain(|id, watchers| {
            let Some(job) = self.state.job(id) else { return false };
            let terminal = job.record.state.is_terminal();
            let revision = self.records.job_revision(id);
            let moved = changed.contains(id);
            let stepped = progressed.contains(id);
            watchers.retain_mut(|watcher| {
                watcher.behind |= moved || stepped;
                let known = revision <= watcher.revision;
                // The first look of a watcher that comes back: nothing newer, nothing to say.
                if known && watcher.sent_at == Timestamp::default() && !stepped {
                    watcher.behind = false;
                }
                let due = !known || now.since(watcher.sent_at) >= PROGRESS_EVERY;
                if watcher.behind && due {
                    let message = v1::WatchJobResponse { job: Some(self.views(now).job(job, false)) };
                    match watcher.out.try_send(Ok(message)) {
                        Ok(()) => {
                            watcher.revision = revision;
                            watcher.sent_at = now;
                            watcher.behind = false;
                        }
                        Err(TrySendError::Full(_)) => {}
                        Err(TrySendError::Closed(_)) => return false,
                    }
                }
                // A stream ends after the job's last state; one that is slow is waited for.
                !watcher.out.is_closed() && (watcher.behind || !terminal)
            });
            !watchers.is_empty()
        });
        self.watchers.jobs = jobs;

        let began = Instant::now();
        let all = self.overview.is_due(OVERVIEW);
        self.publish_logs(all);
        if all {
            self.drop_unresponsive(now);
            self.count_sessions();
            self.around.metrics.cluster(&self.state, &self.observed, &self.waiting, &self.limits, now);
            self.overview.done(began);
        }
    }

    /// Tells those who follow logs what was added to them. Of the others it is seen now and then whether they have gone.
    fn publish_logs(&mut self, all: bool) {
        let grown = std::mem::take(&mut self.grown_logs);
        if !all && grown.is_empty() && !self.watchers.logs_behind {
            return;
        }
        let mut logs = std::mem::take(&mut self.watchers.logs);
        logs.retain(|stage, watchers| {
            let Some(log) = self.state.read_log_of(stage) else { return false };
            let has_news = all || grown.contains(&log.of.id);
            watchers.retain_mut(|watcher| !(has_news || watcher.is_behind) || watcher.feed(&log));
            !watchers.is_empty()
        });
        self.watchers.logs_behind = logs.values().flatten().any(|watcher| watcher.is_behind);
        self.watchers.logs = logs;
    }
}

impl LogWatcher {
    /// Sends what is new; `false` once there is no more to come.
    fn feed(&mut self, log: &ReadLog<'_>) -> bool {
        self.is_behind = true;
        loop {
            let shards: Vec<v1::Shard> = log
                .shards_from(self.next_unit)
                .take(MAX_SHARDS)
                .map(|(unit, shard, first_index)| convert::shard_message(unit, &shard, first_index))
                .collect();
            let Some(next_unit) = shards.last().map(|shard| shard.unit + 1) else { break };
            let last = log.shards_from(next_unit).next().is_none();
            // Pairs beyond the shards that were sent are not told of yet.
            let committed =
                if last { log.committed() } else { shards.last().map_or(0, |s| s.first_index + s.pairs) };
            let committed = committed.min(log.committed());
            let sealed = last && log.is_sealed();
            match self.out.try_send(Ok(v1::WatchPairLogResponse { shards, committed, sealed })) {
                Ok(()) => {
                    self.next_unit = next_unit;
                    self.sent = Some((committed, sealed));
                }
                Err(TrySendError::Full(_)) => return true,
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        let status = (log.committed(), log.is_sealed());
        if self.sent != Some(status) {
            let message =
                v1::WatchPairLogResponse { shards: Vec::new(), committed: status.0, sealed: status.1 };
            match self.out.try_send(Ok(message)) {
                Ok(()) => self.sent = Some(status),
                Err(TrySendError::Full(_)) => return true,
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        self.is_behind = false;
        !log.is_sealed() && !self.out.is_closed()
    }
}
