//! The thread that does all writes: transactions that wait while one commit syncs go into the next commit together.

use std::sync::Arc;

use redb::Database;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::file::{Failure, Stamp, Tables};
use super::shared::Shared;
use crate::error::StoreError;
use crate::lease::LeaseId;
use crate::types::{Expect, Op, Revision, Txn, Versioned};
use crate::watch::WatchEvent;

/// Most commands in one commit.
const MAX_BATCH: usize = 256;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Txn { txn: Txn, reply: Reply },
    Revoke { lease: LeaseId, reply: Reply },
    ExpireLeases,
    Stop,
}

pub(super) type Reply = oneshot::Sender<Result<Revision, StoreError>>;

pub(super) struct Writer {
    pub db: Arc<Database>,
    pub shared: Arc<Shared>,
    pub commands: mpsc::Receiver<Command>,
}

/// A command that was carried out within the open commit; answered when the commit is done.
struct Answer {
    reply: Reply,
    outcome: Result<Revision, StoreError>,
}

impl Writer {
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

    fn commit(&self, batch: Vec<Command>) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut changes = Vec::new();
        match self.carry_out(batch, &mut answers, &mut changes) {
            Ok(Some(latest)) => self.shared.publish(changes, latest),
            Ok(None) => {}
            Err(failed) => {
                tracing::error!(error = %failed.error, stage = failed.stage.as_str(), "embedded store cannot write");
                for pending in &mut answers {
                    let cause = format!("{}: {}", failed.stage.as_str(), failed.error);
                    pending.outcome = match (&failed.stage, &pending.outcome) {
                        (FailedStage::Commit, Ok(_)) => Err(StoreError::Unknown(cause.into())),
                        (FailedStage::Commit, Err(_)) | (FailedStage::BeforeCommit, _) => {
                            Err(StoreError::NotApplied(cause.into()))
                        }
                    };
                }
            }
        }
        for pending in answers {
            answer(pending.reply, pending.outcome);
        }
    }

    /// Carries the batch out in one commit; returns the last revision when anything changed. Every command with a reply
    /// has its answer in `answers` when this returns, whatever it returns.
    fn carry_out(
        &self,
        batch: Vec<Command>,
        answers: &mut Vec<Answer>,
        changes: &mut Vec<WatchEvent>,
    ) -> Result<Option<Revision>, FailedBatch> {
        let mut failure = None;
        let write = match self.db.begin_write() {
            Ok(write) => Some(write),
            Err(error) => {
                failure = Some(Failure::from(error));
                None
            }
        };
        let mut latest = None;
        {
            let mut tables = match write.as_ref().map(Tables::open).transpose() {
                Ok(tables) => tables,
                Err(error) => {
                    failure = Some(error);
                    None
                }
            };
            for command in batch {
                let (reply, work) = match command {
                    Command::Txn { txn, reply } => (Some(reply), Work::Txn(txn)),
                    Command::Revoke { lease, reply } => {
                        self.shared.leases.remove(lease);
                        (Some(reply), Work::EndLeases(vec![lease]))
                    }
                    Command::ExpireLeases => {
                        (None, Work::EndLeases(self.shared.leases.take_expired(Instant::now())))
                    }
                    Command::Stop => continue,
                };
                let outcome = match (&mut tables, &failure) {
                    (Some(tables), None) => self.carry_out_one(tables, work, changes, &mut latest),
                    // Replaced by the batch's failure below.
                    _ => Ok(Err(StoreError::Closed)),
                };
                let outcome = outcome.unwrap_or_else(|error| {
                    failure = Some(error);
                    Err(StoreError::Closed)
                });
                if let Some(reply) = reply {
                    answers.push(Answer { reply, outcome });
                }
            }
            if let (Some(tables), Some(latest), None) = (&mut tables, latest, &failure)
                && let Err(error) = tables.set_revision(latest)
            {
                failure = Some(error);
            }
        }
        if let Some(failure) = failure {
            // Dropping the write transaction undoes all of it.
            return Err(FailedBatch { stage: FailedStage::BeforeCommit, error: failure.not_applied() });
        }
        match (write, latest) {
            (Some(write), Some(_)) => match write.commit() {
                Ok(()) => Ok(latest),
                Err(error) => {
                    Err(FailedBatch { stage: FailedStage::Commit, error: Failure::from(error).not_applied() })
                }
            },
            _ => Ok(None),
        }
    }

    /// Outer error: the file failed. Inner error: this command is refused and has changed nothing.
    fn carry_out_one(
        &self,
        tables: &mut Tables<'_>,
        work: Work,
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

enum Work {
    Txn(Txn),
    EndLeases(Vec<LeaseId>),
}

struct FailedBatch {
    stage: FailedStage,
    error: StoreError,
}

enum FailedStage {
    BeforeCommit,
    Commit,
}

impl FailedStage {
    fn as_str(&self) -> &'static str {
        match self {
            FailedStage::BeforeCommit => "preparing the commit",
            FailedStage::Commit => "committing",
        }
    }
}

/// A caller that has stopped waiting has dropped its end, and does not want the answer.
fn answer(reply: Reply, outcome: Result<Revision, StoreError>) {
    drop(reply.send(outcome));
}
