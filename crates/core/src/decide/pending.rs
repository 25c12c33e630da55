//! Why jobs do not go on, in words and by label.

use std::fmt;

use crate::ids::JobId;
use crate::processor::GangKind;
use crate::sizes::gigabytes;
use crate::unreadable::UnreadableRecord;

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
