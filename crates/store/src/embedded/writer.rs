//! The thread that does all writes: transactions that wait while one commit syncs go into the next commit together.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::file::{self, Failure, Stamp, Tables};
use super::handle::Handle;
use super::shared::Shared;
use crate::error::{StoreError, with_causes};
use crate::lease::LeaseId;
use crate::types::{Expect, Op, Revision, Txn, Versioned};
use crate::watch::WatchEvent;

/// Most commands in one commit.
const MAX_BATCH: usize = 256;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Txn {
        txn: Txn,
        reply: Reply,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply,
    },
    ExpireLeases,
    /// The disk had failed: it may have room again.
    OpenAnew,
    Stop,
}

pub(super) type Reply = oneshot::Sender<Result<Revision, StoreError>>;

pub(super) struct Writer {
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// Leases that have ended while nothing could be written: their records go with the next commit.
    ended: Vec<LeaseId>,
    /// Of a commit of which nobody knows yet whether it is in the file.
    in_doubt: Option<(Vec<WatchEvent>, Revision)>,
}

/// A command that was carried out within the open commit; answered when the commit is done.
struct Answer {
    reply: Reply,
    outcome: Result<Revision, StoreError>,
}

/// What became of a commit that failed.
enum Fate {
    /// It is in the file all the same.
    Done,
    NotDone,
    Unknown,
}

impl Writer {
    pub fn new(handle: Arc<Handle>, shared: Arc<Shared>, commands: mpsc::Receiver<Command>) -> Self {
        Self { handle, shared, commands, ended: Vec::new(), in_doubt: None }
    }

    /// Runs until it is told to stop, or every sender is gone.
    pub fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let Some(first) = self.commands.blocking_recv() else {
                break;
            };
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH
                && let Ok(command) = self.commands.try_recv()
            {
                batch.push(command);
            }
            stopping = batch.iter().any(|command| matches!(command, Command::Stop));
            self.commit(batch);
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Txn { reply, .. } | Command::Revoke { reply, .. } = command {
                answer(reply, Err(StoreError::Closed));
            }
        }
    }

    fn commit(&mut self, batch: Vec<Command>) {
        if batch.iter().any(|command| matches!(command, Command::OpenAnew)) {
            self.open_anew();
        }
        let mut answers = Vec::with_capacity(batch.len());
        let mut changes = Vec::new();
        let mut ended = std::mem::take(&mut self.ended);
        let work = self.sort(batch, &mut ended);
        match self.carry_out(work, &ended, &mut answers, &mut changes) {
            Ok(Some(latest)) => self.shared.publish(changes, latest),
            Ok(None) => {}
            Err(failed) => {
                let cause = with_causes(&failed.error);
                tracing::error!(error = cause, stage = failed.stage.as_str(), "embedded store cannot write");
                self.ended = ended;
                let fate = match failed.stage {
                    FailedStage::BeforeCommit => Fate::NotDone,
                    FailedStage::Commit(latest) => {
                        self.in_doubt = Some((changes, latest));
                        self.open_anew()
                    }
                };
                for pending in &mut answers {
                    pending.outcome =
                        match (&fate, std::mem::replace(&mut pending.outcome, Err(StoreError::Closed))) {
                            (Fate::Done, outcome) => outcome,
                            (Fate::Unknown, Ok(_)) => Err(StoreError::Unknown(cause.clone().into())),
                            (Fate::NotDone, _) | (Fate::Unknown, Err(_)) => {
                                Err(StoreError::NotApplied(cause.clone().into()))
                            }
                        };
                }
            }
        }
        for pending in answers {
            answer(pending.reply, pending.outcome);
        }
    }

    /// Opens the file anew if its disk has failed, and sees what became of the commit that nobody knows of.
    fn open_anew(&mut self) -> Fate {
        let opened = self.handle.open_anew().and_then(|()| self.handle.database());
        let revision = opened.and_then(|db| {
            file::committed_revision(&db).map_err(|failure| {
                self.handle.note(&failure);
                failure.not_applied()
            })
        });
        let revision = match revision {
            Ok(revision) => revision,
            Err(error) => {
                tracing::debug!(error = with_causes(&error), "the embedded store is not open again yet");
                return Fate::Unknown;
            }
        };
        match self.in_doubt.take() {
            Some((changes, latest)) if revision >= latest => {
                self.shared.publish(changes, latest);
                Fate::Done
            }
            Some(_) | None => Fate::NotDone,
        }
    }

    /// What there is to do, in order, with whoever waits for it; the leases that end with it come first.
    fn sort(&self, batch: Vec<Command>, ended: &mut Vec<LeaseId>) -> Vec<(Reply, Option<Txn>)> {
        let mut work = Vec::with_capacity(batch.len());
        for command in batch {
            match command {
                Command::Txn { txn, reply } => work.push((reply, Some(txn))),
                Command::Revoke { lease, reply } => {
                    self.shared.leases.remove(lease);
                    ended.push(lease);
                    work.push((reply, None));
                }
                Command::ExpireLeases => ended.extend(self.shared.leases.take_expired(Instant::now())),
                Command::OpenAnew | Command::Stop => {}
            }
        }
        work
    }

    /// Carries all of it out in one commit; returns the last revision when anything changed. Everything in `work` has its
    /// answer in `answers` when this returns, whatever it returns.
    fn carry_out(
        &self,
        work: Vec<(Reply, Option<Txn>)>,
        ended: &[LeaseId],
        answers: &mut Vec<Answer>,
        changes: &mut Vec<WatchEvent>,
    ) -> Result<Option<Revision>, FailedBatch> {
        let mut work = work.into_iter();
        let outcome = self.try_to_carry_out(&mut work, ended, answers, changes);
        // What it did not come to: replaced by the batch's failure.
        answers.extend(work.map(|(reply, _)| Answer { reply, outcome: Err(StoreError::Closed) }));
        outcome.map_err(|(stage, failure)| {
            self.handle.note(&failure);
            FailedBatch { stage, error: failure.not_applied() }
        })
    }

    fn try_to_carry_out(
        &self,
        work: &mut std::vec::IntoIter<(Reply, Option<Txn>)>,
        ended: &[LeaseId],
        answers: &mut Vec<Answer>,
        changes: &mut Vec<WatchEvent>,
    ) -> Result<Option<Revision>, (FailedStage, Failure)> {
        let before = |failure: Failure| (FailedStage::BeforeCommit, failure);
        let db = self.handle.database().map_err(|error| before(Failure::Store(error)))?;
        // Dropping the write transaction undoes all of it.
        let write = db.begin_write().map_err(|error| before(error.into()))?;
        let mut tables = Tables::open(&write).map_err(before)?;
        let mut latest = None;
        self.carry_out_one(&mut tables, Work::EndLeases(ended), changes, &mut latest)
            .map_err(before)?
            .map_err(|refused| before(Failure::Store(refused)))?;
        for (reply, txn) in work {
            let done = match txn {
                Some(txn) => self.carry_out_one(&mut tables, Work::Txn(txn), changes, &mut latest),
                // Its lease has ended above.
                None => latest.map_or_else(|| tables.revision(), Ok).map(Ok),
            };
            let (outcome, failure) = match done {
                Ok(outcome) => (outcome, None),
                Err(failure) => (Err(StoreError::Closed), Some(failure)),
            };
            answers.push(Answer { reply, outcome });
            if let Some(failure) = failure {
                return Err(before(failure));
            }
        }
        let Some(latest) = latest else { return Ok(None) };
        tables.set_revision(latest).map_err(before)?;
        drop(tables);
        write.commit().map_err(|error| (FailedStage::Commit(latest), error.into()))?;
        Ok(Some(latest))
    }

    /// Outer error: the file failed. Inner error: this command is refused and has changed nothing.
    fn carry_out_one(
        &self,
        tables: &mut Tables<'_>,
        work: Work<'_>,
        changes: &mut Vec<WatchEvent>,
        latest: &mut Option<Revision>,
    ) -> Result<Result<Revision, StoreError>, Failure> {
        let now = match *latest {
            Some(revision) => revision,
            None => tables.revision()?,
        };
        let revision = Revision(now.0 + 1);
        let changes_before = changes.len();
        match work {
            Work::Txn(txn) => {
                if let Some(refusal) = self.refuse(tables, &txn)? {
                    return Ok(Err(refusal));
                }
                for op in txn.ops {
                    self.apply(tables, op, revision, changes)?;
                }
            }
            Work::EndLeases(leases) => {
                for lease in leases {
                    for (lease, full_key) in tables.leased_keys(lease.0..=lease.0)? {
                        tables.remove(&full_key, Some(lease))?;
                        changes.push(WatchEvent::Delete { key: full_key, revision });
                    }
                }
            }
        }
        if changes.len() > changes_before {
            *latest = Some(revision);
            Ok(Ok(revision))
        } else {
            Ok(Ok(now))
        }
    }

    fn refuse(&self, tables: &Tables<'_>, txn: &Txn) -> Result<Option<StoreError>, Failure> {
        if let Some(fence) = &txn.fence {
            let stamp = tables.stamp(&self.full_key(&fence.key))?;
            if stamp.map(|stamp| stamp.mod_revision) != Some(fence.revision) {
                return Ok(Some(StoreError::NotLeader { name: fence.name.clone() }));
            }
        }
        for precondition in &txn.preconditions {
            let stamp = tables.stamp(&self.full_key(&precondition.key))?;
            let holds = match precondition.expect {
                Expect::Absent => stamp.is_none(),
                Expect::Exists => stamp.is_some(),
                Expect::ModRevision(revision) => stamp.is_some_and(|stamp| stamp.mod_revision == revision),
            };
            if !holds {
                return Ok(Some(StoreError::Conflict { key: precondition.key.clone() }));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.shared.leases.is_alive(*lease, Instant::now())
            {
                return Ok(Some(StoreError::LeaseNotFound { lease: lease.0 }));
            }
        }
        Ok(None)
    }

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        op: Op,
        revision: Revision,
        changes: &mut Vec<WatchEvent>,
    ) -> Result<(), Failure> {
        match op {
            Op::Put { key, value, lease } => {
                let full_key = self.full_key(&key);
                tables.put(&full_key, &value, Stamp { mod_revision: revision, lease })?;
                changes.push(WatchEvent::Put(Versioned {
                    key: full_key,
                    value,
                    mod_revision: revision,
                    lease,
                }));
            }
            Op::Delete { key } => {
                let full_key = self.full_key(&key);
                let lease = tables.stamp(&full_key)?.and_then(|stamp| stamp.lease);
                if tables.remove(&full_key, lease)? {
                    changes.push(WatchEvent::Delete { key: full_key, revision });
                }
            }
        }
        Ok(())
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.shared.prefix)
    }
}

enum Work<'a> {
    Txn(Txn),
    EndLeases(&'a [LeaseId]),
}

struct FailedBatch {
    stage: FailedStage,
    error: StoreError,
}

#[derive(Clone, Copy)]
enum FailedStage {
    BeforeCommit,
    /// At this revision.
    Commit(Revision),
}

impl FailedStage {
    fn as_str(&self) -> &'static str {
        match self {
            FailedStage::BeforeCommit => "preparing the commit",
            FailedStage::Commit(_) => "committing",
        }
    }
}

/// A caller that has stopped waiting has dropped its end, and does not want the answer.
fn answer(reply: Reply, outcome: Result<Revision, StoreError>) {
    drop(reply.send(outcome));
}
