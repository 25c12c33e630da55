//! What the services ask of the engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use crescendo_core::access::Scope;
use crescendo_core::deletion::{KeptParts, ObjectTotals};
use crescendo_core::error::{Overreach, RequestError};
use crescendo_core::ids::{Generation, JobId, NodeId, StageRef, Timestamp};
use crescendo_core::job::Pause;
use crescendo_core::leftovers::{ListedObject, Wanted};
use crescendo_core::notices::{DeliveryKey, EndNotice, Webhook};
use crescendo_core::observed::{NodeHealth, Report};
use crescendo_core::records::CheckpointRecord;
use crescendo_core::sampling::DrawnSamples;
use crescendo_core::spec::JobSpec;
use crescendo_core::transitions::{MarkOrder, Submission, UnitCommit, UnitFate, UnitLeaseRef};
use crescendo_proto::convert::Introduction;
use crescendo_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::engine::review::{PairsAsked, PairsWanted};
use crate::engine::views::Snapshot;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    RequestError(#[from] RequestError),
    /// The outcome of a write is not known; the same request may be sent again.
    #[error("the controller reads its state again; try again")]
    Reloading,
    /// Nothing was carried out; it may work once the store takes writes.
    #[error("the controller's store takes no writes, so nothing was done; try again later: {cause}")]
    StoreRefuses { cause: String },
    #[error("this controller does not lead")]
    NotLeading,
}

pub type Answer<T> = Result<T, EngineError>;
pub type Reply<T> = oneshot::Sender<Answer<T>>;

/// An answer that its caller works out, so that the engine goes on meanwhile. It is of the moment at which it was asked for.
pub struct Later<T>(Box<dyn FnOnce() -> Answer<T> + Send>);

impl<T> Later<T> {
    pub fn new(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Works it out; in a large cluster that takes a while.
    pub fn answer(self) -> Answer<T> {
        (self.0)()
    }
}

/// Counts sessions; a later one of the same node replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

#[derive(Debug)]
pub struct OpenedSession {
    pub id: SessionId,
    /// What the controller tells the node, Welcome first.
    pub outgoing: mpsc::Receiver<Result<v1::OpenSessionResponse, Status>>,
}

pub type JobWatch = mpsc::Receiver<Result<v1::WatchJobResponse, Status>>;
pub type ShardWatch = mpsc::Receiver<Result<v1::WatchPairLogResponse, Status>>;

/// What a person wants of a job that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Cancel {
        reason: String,
    },
    Pause(Pause),
    Resume,
    Retry,
    /// Said by the caller of this name.
    Note {
        by: String,
        text: String,
    },
}

/// The node whose certificate a request came with; `None` for one that may speak for any.
pub type ActingNode = Option<NodeId>;

pub enum Request {
    Submit {
        submission: Submission,
        reply: Reply<(v1::Job, bool)>,
    },
    /// What the nodes that there are make of a spec's precision, if it is to be warned of.
    Crawls {
        spec: Arc<JobSpec>,
        reply: Reply<Option<String>>,
    },
    /// What in a spec its tenant may not have.
    Overreaches {
        spec: Arc<JobSpec>,
        reply: Reply<Vec<Overreach>>,
    },
    Look(LookRequest),
    SteerJob {
        job: JobId,
        scope: Scope,
        wish: Wish,
        reply: Reply<v1::Job>,
    },
    WatchJob {
        job: JobId,
        scope: Scope,
        from_revision: u64,
        reply: Reply<JobWatch>,
    },
    /// Ends when the job is terminal or gone.
    JobExists {
        job: JobId,
        scope: Scope,
        reply: Reply<bool>,
    },
    ForgetNode {
        node: NodeId,
        reply: Reply<()>,
    },
    DrainNode {
        node: NodeId,
        undo: bool,
        scope: Scope,
        reply: Reply<v1::Node>,
    },
    ListCheckpoints {
        job: JobId,
        scope: Scope,
        stage: Option<String>,
        reply: Reply<Vec<v1::Checkpoint>>,
    },
    Objects(ObjectRequest),
    Samples(SamplesRequest),
    Deletions(DeletionRequest),
    Notices(NoticeRequest),
    Marks(MarksRequest),
    CommitCheckpoint {
        checkpoint: CheckpointRecord,
        by: ActingNode,
        reply: Reply<v1::CommitCheckpointResponse>,
    },
    MarkDamaged {
        stage: StageRef,
        generation: Generation,
        path: String,
        reason: String,
        by: ActingNode,
        reply: Reply<()>,
    },
    LeaseUnit {
        stage: StageRef,
        node: NodeId,
        reply: Reply<v1::LeaseUnitResponse>,
    },
    RenewUnit {
        lease: UnitLeaseRef,
        node: NodeId,
        by: ActingNode,
        reply: Reply<v1::RenewUnitResponse>,
    },
    CommitUnit {
        commit: UnitCommit,
        node: NodeId,
        by: ActingNode,
        reply: Reply<v1::CommitUnitResponse>,
    },
    FailUnit {
        lease: UnitLeaseRef,
        node: NodeId,
        reason: String,
        fate: UnitFate,
        by: ActingNode,
        reply: Reply<v1::FailUnitResponse>,
    },
    WatchPairLog {
        stage: StageRef,
        scope: Scope,
        from_unit: u64,
        reply: Reply<ShardWatch>,
    },
    OpenSession {
        introduction: Box<Introduction>,
        reply: Reply<OpenedSession>,
    },
    Heartbeat {
        node: NodeId,
        session: SessionId,
    },
    /// A curator cannot take up a stage.
    AssignmentRefused {
        node: NodeId,
        session: SessionId,
        stage: StageRef,
        reason: String,
    },
    /// Whether a node that is about to leave hands over through this controller.
    HandsOver {
        reply: Reply<bool>,
    },
    NodeDrains {
        node: NodeId,
        session: SessionId,
    },
    NodeHealth {
        node: NodeId,
        session: SessionId,
        health: NodeHealth,
    },
    Report {
        session: SessionId,
        report: Report,
    },
    CloseSession {
        node: NodeId,
        session: SessionId,
    },
}

impl Request {
    /// Refuses what would write a record; gives the rest back.
    pub(super) fn unless_it_writes(self, error: &EngineError) -> Option<Self> {
        fn refuse<T>(reply: Reply<T>, error: &EngineError) -> Option<Request> {
            // The caller may have gone.
            let _ = reply.send(Err(error.clone()));
            None
        }
        match self {
            Self::Submit { reply, .. } => refuse(reply, error),
            Self::SteerJob { reply, .. } => refuse(reply, error),
            Self::ForgetNode { reply, .. } => refuse(reply, error),
            Self::DrainNode { reply, .. } => refuse(reply, error),
            Self::CommitCheckpoint { reply, .. } => refuse(reply, error),
            Self::MarkDamaged { reply, .. } => refuse(reply, error),
            Self::LeaseUnit { reply, .. } => refuse(reply, error),
            Self::CommitUnit { reply, .. } => refuse(reply, error),
            Self::FailUnit { reply, .. } => refuse(reply, error),
            Self::OpenSession { reply, .. } => refuse(reply, error),
            Self::Deletions(request) => request.unless_it_writes(error).map(Self::Deletions),
            Self::Samples(SamplesRequest::Report { reply, word: SamplesWord::Done(_), .. }) => {
                refuse(reply, error)
            }
            // What is delivered could not be noted, and would be delivered over and over.
            Self::Notices(NoticeRequest::Due { reply, .. }) => refuse(reply, error),
            Self::Marks(MarksRequest::Mark { reply, .. }) => refuse(reply, error),
            Self::Notices(NoticeRequest::Settled { reply, .. }) => refuse(reply, error),
            Self::Crawls { .. }
            | Self::Overreaches { .. }
            | Self::Look(_)
            | Self::WatchJob { .. }
            | Self::JobExists { .. }
            | Self::ListCheckpoints { .. }
            | Self::Objects(_)
            | Self::Samples(_)
            | Self::Marks(MarksRequest::List { .. })
            | Self::RenewUnit { .. }
            | Self::WatchPairLog { .. }
            | Self::Heartbeat { .. }
            | Self::AssignmentRefused { .. }
            | Self::HandsOver { .. }
            | Self::NodeDrains { .. }
            | Self::NodeHealth { .. }
            | Self::Report { .. }
            | Self::CloseSession { .. } => Some(self),
        }
    }
}

/// Looking at what there is: answered beside the engine, of the moment at which it was asked for.
pub enum LookRequest {
    /// Everything, for those who look often and at much: one for all of them.
    Snapshot {
        reply: Reply<Later<Arc<Snapshot>>>,
    },
    GetJob {
        job: JobId,
        scope: Scope,
        reply: Reply<Later<v1::Job>>,
    },
    ExplainJob {
        job: JobId,
        scope: Scope,
        reply: Reply<Later<v1::ExplainJobResponse>>,
    },
    ListJobs {
        request: v1::ListJobsRequest,
        scope: Scope,
        reply: Reply<Later<v1::ListJobsResponse>>,
    },
    ListNodes {
        scope: Scope,
        reply: Reply<Later<v1::ListNodesResponse>>,
    },
    ListQueues {
        scope: Scope,
        reply: Reply<Later<v1::ListQueuesResponse>>,
    },
    ListUsage {
        scope: Scope,
        reply: Reply<Later<Vec<v1::Usage>>>,
    },
    /// What is drawn of a job's stages, or of one.
    ListSamples {
        job: JobId,
        stage: String,
        scope: Scope,
        reply: Reply<Later<Vec<v1::Sampling>>>,
    },
    /// The spec of a job that goes on where this one stopped, YAML.
    Continuation {
        job: JobId,
        scope: Scope,
        steps: u64,
        name: Option<String>,
        reply: Reply<Later<String>>,
    },
}

/// What curators do in the object store for others.
pub enum ObjectRequest {
    /// Has a curator send this file to the relay that waits under the read id.
    ReadFile {
        job: JobId,
        scope: Scope,
        path: String,
        name: String,
        read_id: String,
        reply: Reply<v1::CheckpointFile>,
    },
    /// Has a curator send the end of the job's log to the relay that waits under the read id.
    ReadKeptLog { job: JobId, scope: Scope, read_id: String, reply: Reply<()> },
    /// Has a curator send pairs to the relay that waits under the read id.
    ReadPairs { wanted: PairsWanted, scope: Scope, read_id: String, reply: Reply<PairsAsked> },
    /// Has a curator look for leftovers, of one job or of all.
    CollectLeftovers { collect_id: String, job: Option<JobId>, dry_run: bool, reply: Reply<()> },
    /// Which of these are leftovers, as indices. They lie in a root with this mark.
    JudgeObjects { listed: Vec<ListedObject>, mark: v1::StoreMark, wanted: Wanted, reply: Reply<Vec<usize>> },
}

/// Pictures of checkpoints.
pub enum SamplesRequest {
    /// A curator's word on what it draws.
    Report { draw_id: String, node: NodeId, word: SamplesWord, by: ActingNode, reply: Reply<()> },
    /// Has a curator send the pictures of a step to the relay that waits under the read id.
    Read { stage: StageRef, step: u64, scope: Scope, read_id: String, reply: Reply<v1::CheckpointFile> },
}

/// What a curator says of pictures that it draws.
#[derive(Clone, Debug)]
pub enum SamplesWord {
    Progress { done: u32, of: u32 },
    Done(DrawnSamples),
    Failed(String),
}

/// Deleting jobs, what stays of them, and what is to stay.
pub enum DeletionRequest {
    /// Begins to delete a job, or only says what would go.
    Delete {
        job: JobId,
        scope: Scope,
        keep: KeptParts,
        dry_run: bool,
        reply: Reply<v1::DeleteJobResponse>,
    },
    Lineage {
        job: JobId,
        scope: Scope,
        reply: Reply<v1::GetLineageResponse>,
    },
    /// Marks a checkpoint to be kept, or releases it.
    Keep {
        stage: StageRef,
        step: u64,
        release: bool,
        scope: Scope,
        reply: Reply<v1::Checkpoint>,
    },
    /// The job whose files are to be removed now, with what is kept of it.
    NextFiles {
        reply: Reply<Option<(JobId, KeptParts)>>,
    },
    /// There are none left of it that are to go.
    FilesGone {
        job: JobId,
        removed: ObjectTotals,
        reply: Reply<()>,
    },
    /// Some were removed, and others could not be.
    FilesStay {
        job: JobId,
        removed: ObjectTotals,
        why: String,
    },
}

impl DeletionRequest {
    fn unless_it_writes(self, error: &EngineError) -> Option<Self> {
        match self {
            Self::Delete { dry_run: false, reply, .. } => {
                // The caller may have gone.
                let _ = reply.send(Err(error.clone()));
                None
            }
            Self::Keep { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
                None
            }
            Self::FilesGone { reply, .. } => {
                let _ = reply.send(Err(error.clone()));
                None
            }
            // It is tried again all the same.
            Self::FilesStay { .. } => None,
            Self::Delete { dry_run: true, .. } | Self::Lineage { .. } | Self::NextFiles { .. } => Some(self),
        }
    }
}

/// Marks of people on pairs.
pub enum MarksRequest {
    Mark { order: MarkOrder, scope: Scope, reply: Reply<v1::PairMarkList> },
    List { stage: StageRef, scope: Scope, reply: Reply<v1::PairMarkList> },
}

/// Telling webhooks that jobs have ended.
pub enum NoticeRequest {
    /// What is to be delivered now, beside what is under way.
    Due { under_way: BTreeSet<DeliveryKey>, reply: Reply<Vec<Delivery>> },
    /// How it went.
    Settled { delivery: DeliveryKey, outcome: DeliveryOutcome, reply: Reply<()> },
}

/// What one webhook is to be told.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub key: DeliveryKey,
    pub webhook: Webhook,
    pub spec: Arc<JobSpec>,
    pub submitted_at: Timestamp,
    pub end: EndNotice,
    /// Which try it is, from 1; a new leader counts anew.
    pub attempt: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    Delivered,
    /// The receiver wants no more of it.
    Gone,
    Failed {
        why: String,
        no_secret: bool,
    },
}

/// An answer that waits for its batch to be durable.
pub(super) struct DeferredReply(Box<dyn FnOnce(Option<EngineError>) + Send>);

impl DeferredReply {
    pub fn new<T: Send + 'static>(reply: Reply<T>, answer: Answer<T>) -> Self {
        Self(Box::new(move |lost| {
            // The caller may have gone; its request stands all the same.
            let _ = reply.send(match lost {
                Some(error) => Err(error),
                None => answer,
            });
        }))
    }

    pub fn release(self) {
        (self.0)(None);
    }

    pub fn refuse(self, error: EngineError) {
        (self.0)(Some(error));
    }
}
