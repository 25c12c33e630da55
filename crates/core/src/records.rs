//! What is durable: one record a key. Everything that the controller must not forget is in one of these; everything
//! else (sessions, progress, reasons for waiting) is observed again after a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::arithmetic::{Arithmetic, PrecisionChoice, RanOn};
use crate::deletion::DeletionRecord;
pub use crate::file::FileRecord;
use crate::ids::{
    AttemptRef, Generation, Incarnation, JobId, NodeId, RequestId, StageRef, Tenant, Timestamp,
};
use crate::job::JobState;
use crate::marks::MarksRecord;
use crate::note::NotesRecord;
use crate::sampling::SamplingRecord;
use crate::segment::SegmentRecord;
use crate::spec::JobSpec;
use crate::trace::TraceParent;
pub use crate::unit::{
    FailureKind, MAX_FAILED_ON, ShardRecord, UnitFailure, UnitRecord, UnitResult, UnitState,
};
use crate::usage::UsageRecord;
use crate::webhook::NoticeRecord;

/// A job as accepted, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    pub id: JobId,
    pub request: RequestId,
    pub spec: Arc<JobSpec>,
    /// The resolved spec as it was accepted, JSON; nodes receive these very bytes.
    pub spec_json: Arc<[u8]>,
    pub state: JobState,
    pub submitted_at: Timestamp,
    /// What it was submitted from, for whoever follows it.
    pub trace: Option<TraceParent>,
    /// First time that a node worked on it.
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// Which job a request id made. Written together with the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// Each tenant has request ids of its own. `None` in records of versions in which all tenants shared them.
    pub tenant: Option<Tenant>,
    pub request: RequestId,
    pub job: JobId,
}

/// The newest attempt to train a stage. Written before the first command that carries its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    pub attempt: AttemptRef,
    /// The gang, by rank.
    pub ranks: Vec<RankPlacement>,
    pub state: AttemptState,
    pub started_at: Timestamp,
    /// Attempts of this stage before this one.
    pub restarts: u32,
    /// Attempts that ended badly since the stage's last new checkpoint, this one included once it has ended.
    pub failures_in_a_row: u32,
    /// Checkpoint of this stage that the gang goes on from.
    pub resume_from: Option<CheckpointRecord>,
    /// Final checkpoint of the stage that this one starts from.
    pub init_from: Option<CheckpointRecord>,
    /// Milliseconds for which attempts of this stage have held slots: those before this one, and this one too once it has ended.
    pub ran_millis: u64,
    /// The job that goes first and did not fit when this one was placed before its turn: to that one it makes room.
    pub ahead_of: Option<JobId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptState {
    /// Its ranks run, or are to run.
    Active,
    /// Nothing of it is wanted any more.
    Ended { reason: String, at: Timestamp },
}

/// Where one rank runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankPlacement {
    pub node: NodeId,
    /// Process of the node that was given the rank: when the node comes back as another, the rank is gone.
    pub incarnation: Incarnation,
    /// Slot on the node, from 0.
    pub device_index: u32,
}

impl AttemptRecord {
    /// Ranks that follow each other on the same node.
    pub fn by_node(&self) -> impl Iterator<Item = &[RankPlacement]> {
        self.ranks.chunk_by(|a, b| a.node == b.node)
    }

    pub fn is_active(&self) -> bool {
        match self.state {
            AttemptState::Active => true,
            AttemptState::Ended { .. } => false,
        }
    }

    /// How long attempts of this stage have held slots by `now`, which is the time that records carry.
    pub fn ran(&self, now: Timestamp) -> Duration {
        let before = Duration::from_millis(self.ran_millis);
        if self.is_active() { before.saturating_add(now.since(self.started_at)) } else { before }
    }

    pub fn ended_at(&self) -> Option<Timestamp> {
        match &self.state {
            AttemptState::Active => None,
            AttemptState::Ended { at, .. } => Some(*at),
        }
    }

    pub fn runs_on(&self, node: &NodeId) -> bool {
        self.ranks.iter().any(|rank| rank.node == *node)
    }
}

/// What is settled of a stage while its pairs are made and it is trained. Written when the first node is set to work on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRecord {
    pub stage: StageRef,
    /// What the spec's `precision: auto` has come to; none where the spec says it itself. Never changes.
    pub precision: Option<PrecisionChoice>,
    /// The kinds of gangs that its numbers come from, oldest first; as far as they went into the newest checkpoint, or may
    /// go into the next.
    pub ran_on: Vec<RanOn>,
}

/// A checkpoint exists when this record does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    pub stage: StageRef,
    /// Of the attempt that wrote it.
    pub generation: Generation,
    /// Optimizer steps done.
    pub step: u64,
    /// Folder in the object store.
    pub path: String,
    pub files: Vec<FileRecord>,
    pub committed_at: Timestamp,
    /// The stage's training ends with it.
    pub is_final: bool,
    /// Why nothing may resume from it.
    pub damaged: Option<String>,
    /// Samples of the global order that are trained.
    pub next_position: u64,
}

/// A node as it last introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub kind: NodeKind,
    /// Ranks that fit; 0 for a curator.
    pub slots: u32,
    /// `cpu` or `cuda`.
    pub device: String,
    /// host:port of the node's own gRPC server.
    pub address: String,
    pub labels: BTreeMap<String, String>,
    pub version: String,
    /// A person has said that it gets no work until further notice; not the node's own word.
    pub drained: bool,
    /// Why the controller itself gives it no new work; what runs there goes on. A person lifts it.
    pub cordon: Option<String>,
    /// What it has measured of itself; none from a node that does not say.
    pub arithmetic: Option<Arithmetic>,
    /// Memory of the smallest GPU that ranks get there; none on processors, and of a node that does not say.
    pub device_memory_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKind {
    Trainer,
    Curator,
}

/// What is one for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Made up by the first controller that led.
    pub id: String,
    /// What the marks in the roots of object stores say, by the roots' URLs; at most [`MAX_STORES`].
    pub stores: BTreeMap<String, String>,
}

/// Roots of object stores that are remembered.
pub const MAX_STORES: usize = 64;

/// A checkpoint that a person wants kept: it does not expire, and its job is not deleted by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepRecord {
    pub stage: StageRef,
    pub step: u64,
    pub generation: Generation,
    /// When the person said so.
    pub at: Timestamp,
}

/// Any record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Job(JobRecord),
    Request(RequestRecord),
    Stage(StageRecord),
    Attempt(AttemptRecord),
    Segment(SegmentRecord),
    Unit(UnitRecord),
    Checkpoint(CheckpointRecord),
    Node(NodeRecord),
    Cluster(ClusterRecord),
    Deletion(DeletionRecord),
    Keep(KeepRecord),
    Sampling(SamplingRecord),
    Usage(UsageRecord),
    Notice(NoticeRecord),
    Notes(NotesRecord),
    Marks(MarksRecord),
}

/// Identity of a record. The order is the order in which a snapshot can be applied: jobs before what belongs to them,
/// segments before the records of the units that they hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    Job(JobId),
    Request(Option<Tenant>, RequestId),
    Stage(StageRef),
    Attempt(StageRef),
    /// With its first unit.
    Segment(StageRef, u64),
    Unit(StageRef, u64),
    Checkpoint(StageRef, u64, Generation),
    Node(NodeId),
    Cluster,
    Deletion(JobId),
    Keep(StageRef, u64, Generation),
    /// By the step that is drawn from.
    Sampling(StageRef, u64),
    Usage(Tenant),
    /// What is to be told of the job's end.
    Notice(JobId),
    /// What people have noted on the job.
    Notes(JobId),
    /// What people have marked in the stage's log.
    Marks(StageRef),
}

impl Record {
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Job(record) => RecordKey::Job(record.id.clone()),
            Self::Request(record) => RecordKey::Request(record.tenant.clone(), record.request.clone()),
            Self::Stage(record) => RecordKey::Stage(record.stage.clone()),
            Self::Attempt(record) => RecordKey::Attempt(record.attempt.stage_ref()),
            Self::Segment(record) => RecordKey::Segment(record.stage.clone(), record.first_unit),
            Self::Unit(record) => RecordKey::Unit(record.stage.clone(), record.unit),
            Self::Checkpoint(record) => {
                RecordKey::Checkpoint(record.stage.clone(), record.step, record.generation)
            }
            Self::Node(record) => RecordKey::Node(record.id.clone()),
            Self::Cluster(_) => RecordKey::Cluster,
            Self::Deletion(record) => RecordKey::Deletion(record.job.clone()),
            Self::Keep(record) => RecordKey::Keep(record.stage.clone(), record.step, record.generation),
            Self::Sampling(record) => RecordKey::Sampling(record.stage.clone(), record.step),
            Self::Usage(record) => RecordKey::Usage(record.tenant.clone()),
            Self::Notice(record) => RecordKey::Notice(record.job.clone()),
            Self::Notes(record) => RecordKey::Notes(record.job.clone()),
            Self::Marks(record) => RecordKey::Marks(record.stage.clone()),
        }
    }
}

impl RecordKey {
    /// The job that the record belongs to.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Job(job) | Self::Deletion(job) | Self::Notice(job) | Self::Notes(job) => Some(job),
            Self::Stage(stage)
            | Self::Marks(stage)
            | Self::Attempt(stage)
            | Self::Segment(stage, _)
            | Self::Unit(stage, _)
            | Self::Checkpoint(stage, _, _)
            | Self::Keep(stage, _, _)
            | Self::Sampling(stage, _) => Some(&stage.job),
            Self::Request(..) | Self::Node(_) | Self::Cluster | Self::Usage(_) => None,
        }
    }
}

/// The key in the store, below its versioned prefix.
impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "jobs/{id}"),
            Self::Request(None, id) => write!(f, "requests/{id}"),
            Self::Request(Some(tenant), id) => write!(f, "requests/{tenant}/{id}"),
            Self::Stage(stage) => write!(f, "stages/{stage}"),
            Self::Attempt(stage) => write!(f, "attempts/{stage}"),
            Self::Segment(stage, first_unit) => write!(f, "segments/{stage}/{first_unit:012}"),
            Self::Unit(stage, unit) => write!(f, "units/{stage}/{unit:012}"),
            Self::Checkpoint(stage, step, generation) => {
                write!(f, "checkpoints/{stage}/{step:012}-g{generation:08}", generation = generation.0)
            }
            Self::Node(id) => write!(f, "nodes/{id}"),
            Self::Cluster => f.write_str("cluster"),
            Self::Deletion(id) => write!(f, "deletions/{id}"),
            Self::Usage(tenant) => write!(f, "usage/{tenant}"),
            Self::Notice(id) => write!(f, "notices/{id}"),
            Self::Notes(id) => write!(f, "notes/{id}"),
            Self::Sampling(stage, step) => write!(f, "samplings/{stage}/{step:012}"),
            Self::Marks(stage) => write!(f, "marks/{stage}"),
            Self::Keep(stage, step, generation) => {
                write!(f, "keeps/{stage}/{step:012}-g{generation:08}", generation = generation.0)
            }
        }
    }
}

/// A change to be made durable.
#[expect(clippy::large_enum_variant, reason = "lives for one plan; deletes are rare")]
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Put(Record),
    Delete(RecordKey),
}

impl Write {
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Put(record) => record.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}
