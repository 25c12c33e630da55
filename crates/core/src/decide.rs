//! What to do next, as a pure function of what is durable and what is seen.
//!
//! Three passes: jobs, in the order in which they are served, get their attempts ended, placed and their states moved;
//! curators are spread over the stages that lack pairs; then every node is compared with what it should do, and the
//! difference is sent. Deciding again after a plan has been carried out gives an empty plan, so that a controller may
//! stop between persisting and sending, at any point.

mod curation;
mod jobs;
mod nodes;
mod readers;
pub(crate) mod settle;
pub(crate) mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use curation::curation_backlog_units;
pub use readers::choose_reader;

use crate::ids::{AttemptRef, JobId, NodeId, StageRef, Timestamp};
use crate::observed::{NodeView, Observed};
use crate::pairlog::UnitPolicy;
use crate::precision::Settled;
use crate::processor::{GangKind, KindChange};
use crate::quotas::{Quotas, gigabytes};
use crate::records::{NodeKind, NodeRecord, Write};
use crate::state::ClusterState;

pub(crate) use jobs::free_slots;

/// Limits that the decisions depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node that was not heard of for this long is silent: it gets no new work.
    pub silent_after: Duration,
    /// Ranks on a silent node are given up after this, if their gang has not stepped for as long.
    pub ranks_lost_after: Duration,
    /// Ranks that have saved their final checkpoint are left this long to end by themselves.
    pub finish_within: Duration,
    /// Failures of a stage without a new checkpoint in between after which its job fails.
    pub max_failures_in_a_row: u32,
    /// Wait before the third attempt; doubles with each further one.
    pub restart_backoff: Duration,
    pub max_restart_backoff: Duration,
    /// Units without any pair, one after the other, after which the job fails.
    pub max_empty_units: u64,
    pub lease_ttl: Duration,
    pub max_unit_failures: u32,
    /// Leases of a unit, however they ended.
    pub max_unit_leases: u64,
    /// Wait before a unit is tried again after its first failure; doubles with each further one.
    pub unit_backoff: Duration,
    pub max_unit_backoff: Duration,
    /// A curator that cannot open a stage's source is asked again after this; twice as long each further time.
    pub bench: Duration,
    pub max_bench: Duration,
    /// Where a stage's source could be opened before, its job fails once no curator can for this long.
    pub source_lost_after: Duration,
    /// Units under way past the readable prefix: `base + per_curator * curators`.
    pub look_ahead_base: u64,
    pub look_ahead_per_curator: u64,
    /// What each tenant may use.
    pub quotas: Arc<Quotas>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silent_after: Duration::from_secs(15),
            ranks_lost_after: Duration::from_secs(60),
            finish_within: Duration::from_secs(20),
            max_failures_in_a_row: 10,
            restart_backoff: Duration::from_millis(500),
            max_restart_backoff: Duration::from_secs(30),
            max_empty_units: 200,
            lease_ttl: Duration::from_secs(20),
            max_unit_failures: 3,
            max_unit_leases: 16,
            unit_backoff: Duration::from_secs(3),
            max_unit_backoff: Duration::from_secs(60),
            bench: Duration::from_secs(30),
            max_bench: Duration::from_secs(600),
            source_lost_after: Duration::from_secs(60),
            look_ahead_base: 4,
            look_ahead_per_curator: 2,
            quotas: Arc::default(),
        }
    }
}

impl Limits {
    pub fn unit_policy(&self, curators: usize) -> UnitPolicy {
        UnitPolicy {
            lease_ttl: self.lease_ttl,
            max_failures: self.max_unit_failures,
            max_leases: self.max_unit_leases,
            retry_backoff: self.unit_backoff,
            max_retry_backoff: self.max_unit_backoff,
            look_ahead: self
                .look_ahead_base
                .saturating_add(self.look_ahead_per_curator.saturating_mul(curators as u64)),
        }
    }
}

/// What is to be done, in this order: persist the writes, then send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub sends: Vec<Send>,
    /// Why each waiting job waits.
    pub waits: BTreeMap<JobId, Wait>,
    /// What has changed and why, for logs and counters.
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    pub node: NodeId,
    pub command: Command,
}

/// A command to a node; repeating one changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start the ranks of this attempt, with the curators' addresses.
    StartAttempt(AttemptRef, Vec<String>),
    StopAttempt(AttemptRef, String),
    /// Save a checkpoint and end, on every node of the gang.
    DrainAttempt(AttemptRef, String),
    UpdateCurators(AttemptRef, Vec<String>),
    AssignCuration(StageRef),
    ReleaseCuration(StageRef, String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    AttemptPlaced {
        attempt: AttemptRef,
        ranks: usize,
    },
    /// `handed_over`: nothing went wrong, a node of its gang drains.
    AttemptEnded {
        attempt: AttemptRef,
        reason: String,
        handed_over: bool,
    },
    /// What the stage's nodes compute in, from now on.
    PrecisionSettled {
        stage: StageRef,
        settled: Settled,
    },
    /// It goes on from its checkpoint with other last bits than before.
    KindChanged {
        attempt: AttemptRef,
        change: KindChange,
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
pub enum Wait {
    NoCurator,
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
    Paused,
    Preempted,
}

impl Wait {
    /// Label in metrics, from this fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCurator => "no_curator",
            Self::CuratorsBusy => "curators_busy",
            Self::Pairs { .. } | Self::Source { .. } => "pairs",
            Self::NoTrainer => "no_trainer",
            Self::Processor { .. } => "processor",
            Self::Slots { .. } => "slots",
            Self::Behind { .. } | Self::BehindOthers => "behind",
            Self::TenantGpus { .. } | Self::TenantStorage { .. } => "quota",
            Self::Backoff { .. } => "backoff",
            Self::Ranks { .. } => "ranks",
            Self::Paused => "paused",
            Self::Preempted => "preempted",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCurator => f.write_str("waits for a curator: none is connected"),
            Self::CuratorsBusy => f.write_str("waits for a curator: all work on jobs that go first"),
            Self::Pairs { stage, committed, needed } => {
                write!(f, "waits for pairs of {stage}: {committed} of the {needed} that training starts with")
            }
            Self::Source { stage, told } => write!(f, "waits for pairs of {stage}: {told}"),
            Self::NoTrainer => f.write_str("waits for a trainer node: none is connected"),
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
            Self::TenantStorage { tenant, stored_bytes, limit_bytes } => {
                let (stored, limit) = (gigabytes(*stored_bytes), gigabytes(*limit_bytes));
                write!(f, "waits for storage: tenant {tenant} stores {stored} of its {limit}")
            }
            Self::Backoff { reason, failures } => {
                write!(f, "starts again shortly after {failures} failures: {reason}")
            }
            Self::Ranks { ranks, nodes } => write!(f, "starts {ranks} ranks on {nodes} nodes"),
            Self::Paused => f.write_str("is paused"),
            Self::Preempted => f.write_str("makes room for a more important job"),
        }
    }
}

/// What to do next.
pub fn decide(state: &ClusterState, seen: &Observed, limits: &Limits, now: Timestamp) -> Plan {
    let nodes = Nodes { state, seen, limits, now };
    let mut plan = Plan::default();
    let decided = jobs::decide_jobs(&nodes, &mut plan);
    let curation = curation::spread(&nodes, &decided);
    jobs::decide_curation(&nodes, &curation, &decided, &mut plan);
    settle::decide_stages(&nodes, &curation, &decided.active, &mut plan);
    nodes::decide_sends(&nodes, &curation, &decided.active, &mut plan);
    plan
}

/// The inputs of a decision, with the questions that every pass asks.
pub(crate) struct Nodes<'a> {
    pub(crate) state: &'a ClusterState,
    pub(crate) seen: &'a Observed,
    pub(crate) limits: &'a Limits,
    pub(crate) now: Timestamp,
}

impl<'a> Nodes<'a> {
    /// Nodes of a kind that have an open session and were heard of lately.
    pub(crate) fn reachable(&self, kind: NodeKind) -> impl Iterator<Item = (&'a NodeRecord, &'a NodeView)> {
        self.state.nodes().filter(move |record| record.kind == kind).filter_map(|record| {
            let view = self.seen.nodes.get(&record.id)?;
            self.is_reachable(view).then_some((record, view))
        })
    }

    /// Reachable nodes that may be given something new: none that drains.
    pub(crate) fn open_to_work(
        &self,
        kind: NodeKind,
    ) -> impl Iterator<Item = (&'a NodeRecord, &'a NodeView)> {
        self.reachable(kind).filter(|(record, view)| !record.drained && !view.draining)
    }

    pub(crate) fn is_reachable(&self, view: &NodeView) -> bool {
        view.connected && self.now.since(view.last_heard) < self.limits.silent_after
    }
}

/// Curators that can be given work now.
pub fn reachable_curators(state: &ClusterState, seen: &Observed, limits: &Limits, now: Timestamp) -> usize {
    Nodes { state, seen, limits, now }.open_to_work(NodeKind::Curator).count()
}

/// Whether none of the stage's units is to be given to the curator: it has said that it cannot open the stage's source.
pub fn is_benched(seen: &Observed, limits: &Limits, stage: &StageRef, node: &NodeId, now: Timestamp) -> bool {
    seen.benches.get(stage, node, limits, now).is_some()
}

/// Nodes of one kind, by what can be done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// May be given work.
    pub open: usize,
    /// Reachable, and given nothing new.
    pub draining: usize,
    /// Without a session, or not heard of lately.
    pub silent: usize,
}

/// The nodes of a kind that are known.
pub fn count_nodes(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    kind: NodeKind,
    now: Timestamp,
) -> NodeCounts {
    let nodes = Nodes { state, seen, limits, now };
    let (open, reachable) = (nodes.open_to_work(kind).count(), nodes.reachable(kind).count());
    let known = state.nodes().filter(|record| record.kind == kind).count();
    NodeCounts { open, draining: reachable.saturating_sub(open), silent: known.saturating_sub(reachable) }
}

/// Curators that can be given work now and make pairs of this job, at least 1: among them its rate limits are divided.
pub fn curators_of(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    job: &JobId,
    now: Timestamp,
) -> usize {
    let nodes = Nodes { state, seen, limits, now };
    // A log that is sealed is only served.
    let open = |id: &StageRef| state.stage(id).is_some_and(|stage| !stage.log.is_sealed());
    let makes = |view: &NodeView| view.curating.iter().any(|stage| stage.job == *job && open(stage));
    nodes.reachable(NodeKind::Curator).filter(|(_, view)| makes(view)).count().max(1)
}
