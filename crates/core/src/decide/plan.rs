//! What a decision gives: writes, commands, and what there is to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::decide::Waits;
use crate::ids::{AttemptRef, IdMap, JobId, NodeId, StageRef};
use crate::precision::PrecisionChoice;
use crate::processor::{GangKind, KindChange};
use crate::records::{Record, RecordKey, Write};
use crate::sizes::gigabytes;
use crate::unreadable::UnreadableRecord;

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

/// Why a job does not go on at this moment.
#[derive(Clone, Debug, PartialEq)]
pub enum PendingReason {
    NoCurator,
    /// A record of the job cannot be read: nothing is done for it.
    Unreadable {
        record: UnreadableRecord,
    },
    /// Every curator works on stages that go first.
    CuratorsBusy,
    /// Too few pairs are committed.
    Pairs {
        stage: String,
        committed: u64,
        needed: u64,
    },
    /// No curator can open what the stage is made of; those that are named have said so.
    Source {
        stage: String,
        told: String,
    },
    NoTrainer,
    /// Trainer nodes are connected, and none that the spec asks for.
    NoSuchTrainer {
        needs: String,
    },
    /// What the stage starts from is still to be trained.
    Start {
        from: String,
    },
    /// The spec asks for the same bits, and the nodes that could go on with them are not there.
    Processor {
        /// The ranks that there are not the nodes for, of the gang that wrote its checkpoint.
        gang: GangKind,
    },
    Slots {
        wanted: u32,
        free: u32,
        total: u32,
    },
    /// A job that goes first waits for slots.
    Behind {
        job: JobId,
    },
    /// The same, and that job is of another tenant: to whoever reads this it does not exist.
    BehindOthers,
    /// The tenant uses as many slots as it may.
    TenantGpus {
        tenant: String,
        wanted: u32,
        used: u32,
        limit: u32,
    },
    /// The queue uses as many slots of this kind as it may.
    QueueGpus {
        queue: String,
        device: String,
        wanted: u32,
        used: u32,
        limit: u32,
    },
    /// What the queue is sure of is too little, and the job is of a class that borrows nothing.
    QueueGuarantee {
        queue: String,
        device: String,
        wanted: u32,
        used: u32,
        guaranteed: u32,
    },
    /// The tenant stores as much as it may, so that no further stage of it is begun.
    TenantStorage {
        tenant: String,
        stored_bytes: u64,
        limit_bytes: u64,
    },
    /// The last attempt failed; the next one waits a little.
    Backoff {
        reason: String,
        failures: u32,
    },
    /// Ranks are placed and have not reported yet.
    Ranks {
        ranks: usize,
        nodes: usize,
    },
    /// A person has paused it.
    Paused {
        /// What the person has said, if anything.
        reason: String,
        /// Slots that it holds until its ranks have saved.
        slots: usize,
    },
    /// It makes room for a job that goes first.
    Preempted {
        slots: usize,
    },
    /// It has held slots for as long as it may.
    TimeLimit {
        minutes: u32,
        /// Slots that it holds until its ranks have saved.
        slots: usize,
    },
    /// It runs, and leaves to come back with more ranks.
    Grows {
        ranks: u32,
        /// Ranks that it has until they have saved.
        now: u32,
    },
    /// Jobs that go later save and leave, so that it fits.
    MakingRoom {
        wanted: u32,
        jobs: usize,
    },
}

impl PendingReason {
    /// Label in metrics, from this fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCurator => "no_curator",
            Self::Unreadable { .. } => "unreadable",
            Self::CuratorsBusy => "curators_busy",
            Self::Pairs { .. } | Self::Source { .. } => "pairs",
            Self::NoTrainer | Self::NoSuchTrainer { .. } => "no_trainer",
            Self::Start { .. } => "start",
            Self::Processor { .. } => "processor",
            Self::Slots { .. } => "slots",
            Self::Behind { .. } | Self::BehindOthers => "behind",
            Self::TenantGpus { .. }
            | Self::TenantStorage { .. }
            | Self::QueueGpus { .. }
            | Self::QueueGuarantee { .. } => "quota",
            Self::Backoff { .. } => "backoff",
            Self::Ranks { .. } => "ranks",
            Self::Paused { .. } => "paused",
            Self::Preempted { .. } => "preempted",
            Self::TimeLimit { .. } => "time_limit",
            Self::Grows { .. } => "growing",
            Self::MakingRoom { .. } => "making_room",
        }
    }
}

impl fmt::Display for PendingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCurator => f.write_str("waits for a curator: none is connected"),
            Self::Unreadable { record } => write!(f, "is halted: {record}"),
            Self::CuratorsBusy => f.write_str("waits for a curator: all work on jobs that go first"),
            Self::Pairs { stage, committed, needed } => {
                write!(f, "waits for pairs of {stage}: {committed} of the {needed} that training starts with")
            }
            Self::Source { stage, told } => write!(f, "waits for pairs of {stage}: {told}"),
            Self::NoTrainer => f.write_str("waits for a trainer node: none is connected"),
            Self::NoSuchTrainer { needs } => {
                write!(f, "waits for a trainer node with {needs}: none is connected")
            }
            Self::Start { from } => write!(f, "waits for {from}, which it starts from"),
            Self::Processor { gang } => {
                write!(f, "waits for {gang}, which wrote its checkpoint (spec.reproducible: strict)")
            }
            Self::Slots { wanted, free, total } if wanted > total => {
                write!(
                    f,
                    "waits for {wanted} slots: the connected trainer nodes have {total} of one kind, {free} free"
                )
            }
            Self::Slots { wanted, free, total } => {
                write!(f, "waits for {wanted} slots: {free} of {total} are free")
            }
            Self::Behind { job } => write!(f, "waits behind job {job}, which waits for slots"),
            Self::BehindOthers => f.write_str("waits behind a job of another tenant, which waits for slots"),
            Self::TenantGpus { tenant, wanted, limit, .. } if wanted > limit => {
                write!(f, "waits for {wanted} GPUs: tenant {tenant} may use {limit} GPUs in all")
            }
            Self::TenantGpus { tenant, wanted, used, limit } => {
                write!(f, "waits for {wanted} GPUs: tenant {tenant} uses {used} of its {limit} GPUs")
            }
            Self::QueueGpus { queue, device, wanted, limit, .. } if wanted > limit => {
                write!(f, "waits for {wanted} {device} slots: queue {queue} may use {limit} in all")
            }
            Self::QueueGpus { queue, device, wanted, used, limit } => {
                write!(
                    f,
                    "waits for {wanted} {device} slots: queue {queue} uses {used} of the {limit} that it may"
                )
            }
            Self::QueueGuarantee { queue, device, wanted, used, guaranteed } => write!(
                f,
                "waits for {wanted} {device} slots: queue {queue} uses {used}, is sure of {guaranteed}, and a job that \
                 cannot be preempted borrows none"
            ),
            Self::TenantStorage { tenant, stored_bytes, limit_bytes } => {
                let (stored, limit) = (gigabytes(*stored_bytes), gigabytes(*limit_bytes));
                write!(f, "waits for storage: tenant {tenant} stores {stored} of its {limit}")
            }
            Self::Backoff { reason, failures } => {
                write!(f, "starts again shortly after {failures} failures: {reason}")
            }
            Self::Ranks { ranks, nodes } => write!(f, "starts {ranks} ranks on {nodes} nodes"),
            Self::Paused { reason, slots } => {
                f.write_str("is paused")?;
                if !reason.is_empty() {
                    write!(f, ": {reason}")?;
                }
                if *slots > 0 { write!(f, "; {slots} ranks save and leave") } else { Ok(()) }
            }
            Self::Preempted { slots } => {
                write!(f, "makes room for a job that goes first: {slots} ranks save and leave")
            }
            Self::TimeLimit { minutes, slots } => {
                write!(f, "has run for {minutes} minutes, as long as it may: {slots} ranks save and leave")
            }
            Self::Grows { ranks, now } => {
                write!(f, "goes on with {ranks} ranks instead of {now}, once those have saved and left")
            }
            Self::MakingRoom { wanted, jobs } => {
                write!(f, "waits for {wanted} slots: {jobs} jobs that go later save and leave")
            }
        }
    }
}
