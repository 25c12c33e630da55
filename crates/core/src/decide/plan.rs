//! What a decision gives: writes, commands, and what there is to tell.

use std::collections::{BTreeMap, BTreeSet};

use crate::decide::{PendingReason, Waits};
use crate::ids::{AttemptRef, IdMap, JobId, NodeId, StageRef};
use crate::precision::PrecisionChoice;
use crate::processor::KindChange;
use crate::records::{Record, RecordKey, Write};

/// What is to be done, in this order: persist the writes, then send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub sends: Vec<Send>,
    /// Why each waiting job waits.
    pub waits: Waits,
    /// What has changed and why, for logs and counters.
    pub changes: Vec<Change>,
}

/// A plan in the making: what is decided last of a record, or of where a job goes, stands.
#[derive(Default)]
pub(super) struct PlanDraft {
    writes: Latest<RecordKey, Write>,
    changes: Latest<JobId, Change>,
    pub sends: Vec<Send>,
    /// Of the jobs that were looked at.
    pub waits: IdMap<JobId, PendingReason>,
}

impl PlanDraft {
    pub fn write(&mut self, record: Record) {
        self.writes.push(Some(record.key()), Write::Put(record));
    }

    pub fn change(&mut self, change: Change) {
        let moved = match &change {
            Change::JobMoved { job, .. } => Some(job.clone()),
            _ => None,
        };
        self.changes.push(moved, change);
    }

    pub fn wait(&mut self, job: &JobId, wait: PendingReason) {
        self.waits.insert(job.clone(), wait);
    }

    /// How much was decided, beside what waits: as long as it is the same, nothing more was.
    pub fn extent(&self) -> usize {
        self.writes.list.len().saturating_add(self.changes.list.len())
    }

    /// Jobs of which something is written.
    pub fn jobs_written(&self) -> impl Iterator<Item = &JobId> {
        self.writes.at.keys().filter_map(RecordKey::job)
    }

    pub fn finish(self, waits: Waits) -> Plan {
        let Self { writes, changes, sends, waits: _ } = self;
        Plan { writes: writes.finish(), sends, waits, changes: changes.finish() }
    }
}

/// A list in which what has a key takes the place of what had it before, at the end.
struct Latest<K, T> {
    list: Vec<Option<T>>,
    at: BTreeMap<K, usize>,
}

impl<K, T> Default for Latest<K, T> {
    fn default() -> Self {
        Self { list: Vec::new(), at: BTreeMap::new() }
    }
}

impl<K: Ord, T> Latest<K, T> {
    fn push(&mut self, key: Option<K>, item: T) {
        let before = key.and_then(|key| self.at.insert(key, self.list.len()));
        if let Some(replaced) = before.and_then(|at| self.list.get_mut(at)) {
            *replaced = None;
        }
        self.list.push(Some(item));
    }

    fn finish(self) -> Vec<T> {
        self.list.into_iter().flatten().collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    pub node: NodeId,
    pub command: Command,
}

/// Where an attempt's pairs come from, and which of them are marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairsFrom {
    /// The curators' addresses.
    pub curators: Vec<String>,
    /// Version of the marks of the log.
    pub marks: u64,
}

/// A command to a node; repeating one changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start the ranks of this attempt.
    StartAttempt(AttemptRef, PairsFrom),
    StopAttempt(AttemptRef, String),
    /// Save a checkpoint and end, on every node of the gang.
    DrainAttempt(AttemptRef, String),
    /// These nodes of the gang are lost: save what was done before, and end.
    RescueAttempt(AttemptRef, BTreeSet<NodeId>),
    /// Something of where its pairs come from has changed.
    UpdateCurators(AttemptRef, PairsFrom),
    AssignCuration(StageRef),
    ReleaseCuration(StageRef, String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    AttemptPlaced {
        attempt: AttemptRef,
        ranks: usize,
        /// The job before whose turn it is, which does not fit yet.
        ahead_of: Option<JobId>,
    },
    /// `handed_over`: nothing went wrong, a node of its gang drains.
    AttemptEnded {
        attempt: AttemptRef,
        reason: String,
        handed_over: bool,
    },
    /// What the stage's nodes compute in, from now on.
    PrecisionChosen {
        stage: StageRef,
        choice: PrecisionChoice,
    },
    /// It goes on from its checkpoint with other last bits than before.
    KindChanged {
        attempt: AttemptRef,
        change: KindChange,
    },
    /// The controller gives a node no new work.
    NodeCordoned {
        node: NodeId,
        reason: String,
    },
    /// The job is to make room for another.
    JobPreempted {
        job: JobId,
        by: JobId,
        /// Slots that it holds.
        slots: usize,
    },
    JobMoved {
        job: JobId,
        from: &'static str,
        to: &'static str,
        reason: String,
    },
}
