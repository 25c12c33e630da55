//! What to do next, as a pure function of what is durable and what is seen.
//!
//! Three passes: jobs, in the order in which they are served, get their attempts ended, placed and their states moved;
//! curators are spread over the stages that lack pairs; then every node is compared with what it should do, and the
//! difference is sent. Deciding again after a plan has been carried out gives an empty plan, so that a controller may
//! stop between persisting and sending, at any point.

mod curation;
mod curator_shares;
mod deleting;
mod folding;
mod growing;
mod holding;
mod jobs;
mod kept;
mod known_nodes;
mod limits;
mod lost;
mod nodes;
mod passes;
mod pending;
mod placing;
mod plan;
mod preemption;
mod readers;
mod samplings;
mod servers;
pub(crate) mod sources;
pub(crate) mod stage_precision;
mod waits;

pub use curation::curation_backlog_units;
pub use deleting::{Retired, decide_deleting, decide_retention, next_files, still_works_on};
pub use folding::{Folding, decide_folding};
pub use kept::Decider;
use known_nodes::{KnownNode, KnownNodes, NodeList};
pub use limits::Limits;
pub use pending::PendingReason;
use plan::PlanDraft;
pub use plan::{Change, Command, PairsFrom, Plan, Send};
pub use readers::choose_reader;
pub use samplings::next_samplings;
pub use waits::Waits;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::accounts;
use crate::ids::{AttemptRef, IdMap, JobId, NodeId, StageName, StageRef, Timestamp};
use crate::observed::{GangView, NodeView, Observed};
use crate::records::{NodeKind, NodeRecord};
use crate::state::{ChangedJobs, ClusterState, Job};

pub(crate) use jobs::free_slots;
pub(crate) use lost::{lost_pairs, short_log};

/// What to do next, by who has never looked before and asks each job by itself: what a [`Decider`] decides is held to this.
pub fn decide(state: &ClusterState, seen: &Observed, limits: &Limits, now: Timestamp) -> Plan {
    Decider::one_by_one().decide(state, &ChangedJobs::everything(), seen, limits, now)
}

/// The inputs of a decision, with the questions that every pass asks.
pub(crate) struct DecideContext<'a> {
    pub(crate) state: &'a ClusterState,
    pub(crate) seen: &'a Observed,
    pub(crate) limits: &'a Limits,
    pub(crate) now: Timestamp,
    /// Found once for all who ask.
    nodes: OnceCell<KnownNodes<'a>>,
    gangs: OnceCell<IdMap<(&'a JobId, &'a StageName), &'a GangView>>,
    devices: RefCell<Vec<Arc<str>>>,
    /// When the first of the answers that rest on the time will be another.
    wake: Cell<Timestamp>,
}

/// Not as long as nothing else changes.
const NEVER: Timestamp = Timestamp(u64::MAX);

impl<'a> DecideContext<'a> {
    pub(crate) fn new(
        state: &'a ClusterState,
        seen: &'a Observed,
        limits: &'a Limits,
        now: Timestamp,
    ) -> Self {
        let (nodes, gangs) = (OnceCell::new(), OnceCell::new());
        let (devices, wake) = (RefCell::default(), Cell::new(NEVER));
        Self { state, seen, limits, now, nodes, gangs, devices, wake }
    }

    /// Whether it is that late; what is decided because it is not holds until then.
    pub(crate) fn has_come(&self, at: Timestamp) -> bool {
        let has_come = self.now >= at;
        if !has_come {
            self.wake.set(self.wake.get().min(at));
        }
        has_come
    }

    /// The same of so long after `since`.
    pub(crate) fn has_passed(&self, since: Timestamp, limit: Duration) -> bool {
        self.has_come(since.plus(limit))
    }

    /// Until when what was asked of the time since this was last called goes on to be answered so.
    fn holds_until(&self) -> Timestamp {
        self.wake.replace(NEVER)
    }

    /// A name of a kind of device, shared by all who have it.
    fn device_name(&self, name: &str) -> Arc<str> {
        let mut known = self.devices.borrow_mut();
        if let Some(known) = known.iter().find(|known| ***known == *name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        known.push(name.clone());
        name
    }

    /// The same, where the nodes are listed already.
    fn of_listed(
        list: &'a NodeList,
        state: &'a ClusterState,
        seen: &'a Observed,
        limits: &'a Limits,
        now: Timestamp,
    ) -> Self {
        let nodes = OnceCell::from(KnownNodes::listed(list, seen));
        Self { nodes, ..Self::new(state, seen, limits, now) }
    }

    fn nodes(&self) -> &KnownNodes<'a> {
        self.nodes.get_or_init(|| KnownNodes::of(self.state, self.seen))
    }

    /// Nodes of a kind, by id, with what is seen of them.
    pub(crate) fn known(&self, kind: NodeKind) -> &[KnownNode<'a>] {
        match kind {
            NodeKind::Trainer => &self.nodes().trainers,
            NodeKind::Curator => &self.nodes().curators,
        }
    }

    /// What is seen of a node.
    pub(crate) fn view(&self, node: &NodeId) -> Option<&'a NodeView> {
        self.nodes().view(node)
    }

    /// The gang of exactly this attempt, if any of it was seen.
    pub(crate) fn gang(&self, attempt: &AttemptRef) -> Option<&'a GangView> {
        let gangs = self.gangs.get_or_init(|| {
            let seen = self.seen.gangs.iter();
            seen.map(|(stage, gang)| ((&stage.job, &stage.stage), gang.as_ref())).collect()
        });
        gangs.get(&(&attempt.job, &attempt.stage)).copied().filter(|gang| gang.attempt == *attempt)
    }

    /// Nodes of a kind that have an open session and were heard of lately.
    pub(crate) fn reachable(&self, kind: NodeKind) -> impl Iterator<Item = (&'a NodeRecord, &'a NodeView)> {
        let seen = self.known(kind).iter().filter_map(|(record, view)| Some((*record, (*view)?)));
        seen.filter(|(_, view)| self.is_reachable(view))
    }

    /// Reachable nodes that may be given something new: none that drains or is cordoned.
    pub(crate) fn open_to_work(
        &self,
        kind: NodeKind,
    ) -> impl Iterator<Item = (&'a NodeRecord, &'a NodeView)> {
        self.reachable(kind).filter(|(record, view)| takes_work(record, view))
    }

    /// A record of the job, or the job itself, cannot be read: what it has is left to it.
    pub(crate) fn is_halted(&self, job: &JobId) -> bool {
        let unreadable = self.state.unreadable();
        !unreadable.is_empty() && (self.state.halted(job).is_some() || unreadable.hides_job(job))
    }

    /// Jobs that are not terminal, in the order in which they are served: by priority, then the tenants that have used least for
    /// their shares if that is wanted, then by age.
    pub(crate) fn in_order(&self) -> Vec<&'a Job> {
        let mut jobs: Vec<&Job> = self.state.open_jobs().collect();
        self.put_in_order(&mut jobs, |job| job);
        jobs
    }

    /// Puts all open jobs, which are by priority and age, in that order.
    fn put_in_order<T>(&self, jobs: &mut [T], job_of: impl Fn(&T) -> &Job) {
        let quotas = &self.limits.quotas;
        let Some(half_life) = quotas.fair_share else { return };
        let open: Vec<&Job> = self.state.open_jobs().collect();
        let used = accounts::by_tenant(self.state, &open, half_life, self.seen.counted(self.now));
        let share = |tenant: &str| f64::from(quotas.of(tenant).share.unwrap_or(1).max(1));
        let used = |job: &Job| {
            let tenant = job.record.spec.tenant.as_str();
            used.get(tenant).copied().unwrap_or(0.0) / share(tenant)
        };
        // Stable: by age among those of one tenant.
        jobs.sort_by(|a, b| {
            let (a, b) = (job_of(a), job_of(b));
            let by_priority = b.record.spec.priority.cmp(&a.record.spec.priority);
            by_priority.then_with(|| used(a).total_cmp(&used(b)))
        });
    }

    /// The time that records of what is decided now carry for people.
    pub(crate) fn wall_now(&self) -> Timestamp {
        self.seen.wall(self.now)
    }

    pub(crate) fn is_reachable(&self, view: &NodeView) -> bool {
        view.connected && self.now.since(view.last_heard) < self.limits.silent_after
    }
}

/// Whether the node, if it is reachable, may be given something new.
fn takes_work(record: &NodeRecord, view: &NodeView) -> bool {
    !record.drained && record.cordon.is_none() && !view.draining && view.health.store_fault.is_none()
}

/// Curators that can be given work now.
pub fn reachable_curators(state: &ClusterState, seen: &Observed, limits: &Limits, now: Timestamp) -> usize {
    DecideContext::new(state, seen, limits, now).open_to_work(NodeKind::Curator).count()
}

/// The other curators that may make units of the stage, as far as they are known.
pub fn peers_of(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    stage: &StageRef,
    node: &NodeId,
    now: Timestamp,
) -> BTreeSet<NodeId> {
    DecideContext::new(state, seen, limits, now).peers(stage, node).cloned().collect()
}

/// Curators that are benched, counted once for each stage of an open job.
pub fn benched_curators(state: &ClusterState, seen: &Observed, limits: &Limits, now: Timestamp) -> usize {
    let nodes = DecideContext::new(state, seen, limits, now);
    let stages = state.open_jobs().flat_map(|job| &job.stages).filter(|stage| !stage.log.is_sealed());
    stages.map(|stage| nodes.benched(&stage.id).count()).sum()
}

/// Whether none of the stage's units is to be given to the curator: it has said that it cannot open the stage's source, or is
/// benched.
pub fn is_cooling_down(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    stage: &StageRef,
    node: &NodeId,
    now: Timestamp,
) -> bool {
    DecideContext::new(state, seen, limits, now).cooldown(stage, node).is_some()
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
    let nodes = DecideContext::new(state, seen, limits, now);
    let (open, reachable) = (nodes.open_to_work(kind).count(), nodes.reachable(kind).count());
    let known = nodes.known(kind).len();
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
    let nodes = DecideContext::new(state, seen, limits, now);
    // A log that is sealed is only served.
    let open = state.job(job).into_iter().flat_map(|job| &job.stages).filter(|stage| !stage.log.is_sealed());
    let open: Vec<&StageRef> = open.map(|stage| &stage.id).collect();
    let makes = |view: &NodeView| open.iter().any(|stage| view.curating.contains(*stage));
    nodes.reachable(NodeKind::Curator).filter(|(_, view)| makes(view)).count().max(1)
}
