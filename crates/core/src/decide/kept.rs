//! What a decision leaves for the next one, so that of the many jobs and nodes only those are looked at of which something else may
//! be decided.
//!
//! ```text
//!   what has changed ─▶ follow ─▶ jobs: end, prepare, place, grow ─▶ curators ─▶ sends
//!                         │           only those that are due           only nodes that are stirred
//!                         └ more than single jobs and nodes: all anew
//! ```
//!
//! What is kept follows from what there was before a decision, never from what it has decided: whether its writes are made is
//! another's matter. A job is looked at again once
//!
//! * a record of it, or what its gang's nodes say of it, has changed;
//! * the time has come until which the last answer held ([`DecideContext::has_come`]);
//! * something was decided of it last time: then it is looked at until nothing is.
//!
//! Jobs that rest on others, or on how long they have run, are looked at each time. Those that only lack slots are gone through
//! in their order: who is like another in all that matters for that is told the same, as long as nothing was given away in between
//! ([`Classes`]). Where the answer hangs on more than that, nothing is kept ([`can_be_kept`]).

mod classes;
mod following;
mod passing;
mod serving;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::decide::jobs::{decide_lacking, free_slots};
use crate::decide::kept::classes::{ClassId, Classes};
use crate::decide::kept::serving::Serving;
use crate::decide::kept::told::Told;
use crate::decide::passes::{Active, Decided, InUse, slots_of};
use crate::decide::{DecideContext, KnownNode, Limits, NEVER, NodeList, PendingReason, Plan, PlanDraft};
use crate::decide::{curation, nodes, stage_precision, takes_work};
use crate::ids::{IdMap, JobId, NodeId, StageRef, Timestamp};
use crate::job::JobState;
use crate::observed::{GangView, NodeView, Observed};
use crate::placement::Slots;
use crate::records::{AttemptRecord, NodeKind, RankPlacement};
use crate::state::{ChangedJobs, ClusterState, Job, Stage};

/// Decides time and again for one cluster.
#[derive(Default)]
pub struct Decider {
    kept: Option<Kept>,
    jobs_looked_at: usize,
    /// Jobs that are alike are asked all the same.
    one_by_one: bool,
    /// None if that is not known.
    told_anew: Option<Vec<JobId>>,
}

impl Decider {
    pub(super) fn one_by_one() -> Self {
        Self { one_by_one: true, ..Self::default() }
    }

    /// What to do next: the same as [`decide`](crate::decide::decide), which has never looked before. `changed`: what has become of
    /// the state since the last time.
    pub fn decide(
        &mut self,
        state: &ClusterState,
        changed: &ChangedJobs,
        seen: &Observed,
        limits: &Limits,
        now: Timestamp,
    ) -> Plan {
        let before = self.kept.take().filter(|_| !changed.is_everything());
        let list = before.as_ref().map_or_else(|| Arc::new(NodeList::of(state)), |kept| kept.list.clone());
        let nodes = DecideContext::of_listed(&list, state, seen, limits, now);
        let full_tenants = limits.quotas.full_tenants(state);
        let can_be_kept = can_be_kept(&nodes);
        let before = before.filter(|before| can_be_kept && before.full_tenants == full_tenants);
        let followed = before.and_then(|before| before.followed(&nodes, changed));
        let follows = followed.is_some();
        let mut kept = followed.unwrap_or_else(|| {
            let classes = Classes::new(self.one_by_one);
            Kept::anew(&nodes, list.clone(), full_tenants, classes)
        });
        let plan = kept.decide(&nodes);
        self.jobs_looked_at = kept.jobs.iter().filter(|kept| kept.looked_at).count();
        self.told_anew = Some(kept.waits.take_told()).filter(|_| follows);
        self.kept = can_be_kept.then_some(kept);
        plan
    }

    /// Jobs that may wait for something else, by the last decision, than by the one before, or wait no more; none if it may be all.
    pub fn told_anew(&self) -> Option<&[JobId]> {
        self.told_anew.as_deref()
    }

    /// Jobs of which the last decision has asked more than whether others are told the same.
    pub fn jobs_looked_at(&self) -> usize {
        self.jobs_looked_at
    }
}

/// Whether the next decision can tell what it has to look at.
fn can_be_kept(nodes: &DecideContext<'_>) -> bool {
    let (quotas, state) = (&nodes.limits.quotas, nodes.state);
    let is_made = |stage: &StageRef| {
        let is_open = state.job(&stage.job).is_some_and(|job| !job.record.state.is_terminal());
        is_open && state.stage(stage).is_some_and(|stage| !stage.log.is_sealed())
    };
    // The order follows what everybody has used; what queues are sure of is given back across them; and what curators have said of
    // sources, or cannot be read, concerns jobs beside those that it is of.
    quotas.fair_share.is_none()
        && !quotas.queues.guarantee()
        && !nodes.seen.cooldowns.stages(nodes.limits, nodes.now).any(is_made)
        && nodes.state.unreadable().is_empty()
        && nodes.open_to_work(NodeKind::Curator).next().is_some()
}

struct Kept {
    limits: Limits,
    /// See [`Observed::since`].
    since: Timestamp,
    forgotten_times: u64,
    full_tenants: BTreeMap<String, (u64, u64)>,
    /// Open ones, in the order in which they are served.
    jobs: Vec<KeptJob>,
    orders: IdMap<JobId, (i64, Timestamp)>,
    list: Arc<NodeList>,
    /// By id, as [`DecideContext::known`] has them.
    trainers: Vec<KeptNode>,
    curators: Vec<KeptNode>,
    trainer_at: IdMap<NodeId, usize>,
    /// Places of the trainers that hold slots for a job, or are told to give them back.
    run_at: IdMap<JobId, BTreeSet<usize>>,
    /// A GPU of some node has failed.
    some_are_faulty: bool,
    gangs: IdMap<StageRef, Arc<GangView>>,
    active: Active,
    slots: Slots,
    in_use: InUse,
    classes: Classes,
    serving: Serving,
    /// A job has gone whose pairs were to be made.
    wants_less: bool,
    waits: Told,
}

struct KeptJob {
    job: Arc<Job>,
    /// What was last told of why it waits; as in [`Kept::waits`].
    told: Option<Arc<PendingReason>>,
    /// What is told of it holds until then.
    until: Timestamp,
    place: Place,
    /// Something has changed of it.
    due: bool,
    /// Something was decided of it when it was last looked at.
    stirs: bool,
    /// It was looked at in this decision.
    looked_at: bool,
    /// The stage whose pairs are to be made, by its place.
    wants: Option<usize>,
    /// It runs with fewer ranks than it may have.
    is_small: bool,
}

/// Where a job is in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It runs, or waits for what concerns it alone.
    Elsewhere,
    /// Stage `index` needs so many pairs to start. `made`: a curator makes them.
    Lacks { index: usize, needed: u64, made: bool },
    /// It lacks nothing but slots. Those of a class are told the same.
    Ready(Option<ClassId>),
}

struct KeptNode {
    view: Option<NodeView>,
    is_reachable: bool,
    takes_work: bool,
    /// Stages with an active attempt that has ranks there.
    gangs: Vec<StageRef>,
    /// Nothing is to be sent to it until then.
    until: Timestamp,
    /// Something may be to be sent to it.
    stirred: bool,
}

impl KeptJob {
    fn new(job: &Arc<Job>) -> Self {
        let mut kept = Self {
            job: job.clone(),
            told: None,
            until: NEVER,
            place: Place::Elsewhere,
            due: true,
            stirs: false,
            looked_at: false,
            wants: None,
            is_small: false,
        };
        kept.take(job);
        kept
    }

    /// The job is another now.
    fn take(&mut self, job: &Arc<Job>) {
        let gpus = job.record.spec.resources.gpus;
        let mut active = active_of(job);
        self.job = job.clone();
        self.due = true;
        self.is_small = matches!(job.record.state, JobState::Running { .. })
            && active.any(|attempt| slots_of(&attempt.ranks) < gpus);
    }

    fn order(&self) -> (i64, Timestamp, &JobId) {
        self.job.order()
    }

    /// Whether it is to be looked at for more than that time has passed.
    fn is_shaken(&self) -> bool {
        self.due || self.stirs
    }

    fn tell(&mut self, wait: Option<Arc<PendingReason>>, waits: &mut Told) {
        let is_same = match (&self.told, &wait) {
            (Some(told), Some(wait)) => Arc::ptr_eq(told, wait) || told == wait,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return;
        }
        waits.tell(&self.job.record.id, wait.clone());
        self.told = wait;
    }
}

impl KeptNode {
    fn new(nodes: &DecideContext<'_>, (record, view): &KnownNode<'_>) -> Self {
        let is_reachable = view.is_some_and(|view| nodes.is_reachable(view));
        Self {
            view: view.cloned(),
            is_reachable,
            takes_work: is_reachable && view.is_some_and(|view| takes_work(record, view)),
            gangs: Vec::new(),
            until: NEVER,
            stirred: true,
        }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.stirred || now >= self.until
    }
}

/// The job's active attempts that count; where there is more than one, all but one are about to end.
fn active_of(job: &Job) -> impl Iterator<Item = &Arc<AttemptRecord>> {
    let stages = job.stages.iter().filter(|_| job.facts().is_placed && !job.record.state.is_terminal());
    stages.filter_map(Stage::active_shared)
}

/// What it comes to does not follow from its own records and gang alone, or changes with every moment.
fn is_watched(job: &Job) -> bool {
    !job.facts().is_plain || matches!(job.record.state, JobState::Preempting { .. })
}

impl Kept {
    /// Nothing was kept: all is to be looked at.
    fn anew(
        nodes: &DecideContext<'_>,
        list: Arc<NodeList>,
        full_tenants: BTreeMap<String, (u64, u64)>,
        classes: Classes,
    ) -> Self {
        let mut jobs = Vec::with_capacity(nodes.state.open_count());
        jobs.extend(nodes.state.open_shared().map(KeptJob::new));
        nodes.put_in_order(&mut jobs, |kept| &kept.job);
        let active: Active = jobs.iter().flat_map(|kept| active_of(&kept.job)).cloned().collect();
        let of_kind = |kind| nodes.known(kind).iter().map(|seen| KeptNode::new(nodes, seen)).collect();
        let trainers = nodes.known(NodeKind::Trainer).iter().map(|(record, _)| record.id.clone());
        let mut kept = Self {
            limits: nodes.limits.clone(),
            since: nodes.seen.since,
            forgotten_times: nodes.seen.forgotten_times(),
            full_tenants,
            orders: jobs.iter().map(|kept| order_of(&kept.job)).collect(),
            jobs,
            list,
            trainers: of_kind(NodeKind::Trainer),
            curators: of_kind(NodeKind::Curator),
            trainer_at: trainers.zip(0..).collect(),
            run_at: IdMap::default(),
            some_are_faulty: nodes.seen.nodes.values().any(|view| view.health.device_fault.is_some()),
            gangs: nodes.seen.gangs.clone().into_iter().collect(),
            slots: free_slots(nodes, &active),
            active: Active::default(),
            in_use: InUse::default(),
            classes,
            serving: Serving::new(nodes),
            wants_less: false,
            waits: Told::default(),
        };
        for (at, (_, view)) in nodes.known(NodeKind::Trainer).iter().enumerate() {
            for attempt in view.iter().flat_map(|view| &view.running) {
                kept.run_at.entry(attempt.job.clone()).or_default().insert(at);
            }
        }
        for attempt in active.in_any_order() {
            if let Some(job) = nodes.state.job(&attempt.attempt.job) {
                kept.put_active(nodes, job, attempt);
            }
        }
        kept
    }

    fn decide(&mut self, nodes: &DecideContext<'_>) -> Plan {
        let mut plan = PlanDraft::default();
        let decided = self.decide_jobs(nodes, &mut plan);
        // Whatever was decided is decided of a job: it is looked at until nothing is.
        let leaving = decided.leaving.keys().map(|stage| &stage.job);
        self.mark(plan.jobs_written().chain(leaving));
        let wants_others = self.follow_wants(nodes, &decided);
        let newly_made = self.serving.make(nodes, &self.jobs, wants_others);
        self.tell_lacking(nodes, newly_made.is_some(), &mut plan);
        let looked_at: Vec<usize> = (0..self.jobs.len()).filter(|at| self.jobs[*at].looked_at).collect();
        let stages = self.sync_served(nodes, &decided, &looked_at, newly_made.unwrap_or_default());
        stage_precision::decide_stages(nodes, &stages, &decided.active, &mut plan);
        self.mark(plan.jobs_written());
        if self.some_are_faulty || !nodes.seen.failures.is_empty() {
            nodes::decide_cordons(nodes, &mut plan);
        }
        self.stir_nodes(&decided, &looked_at);
        self.send(nodes, &decided, &looked_at, &mut plan);
        self.tell(&looked_at, &mut plan);
        plan.finish(self.waits.all().clone())
    }

    /// Something was decided of these jobs.
    fn mark<'j>(&mut self, jobs: impl Iterator<Item = &'j JobId>) {
        for id in jobs {
            if let Some(kept) = self.place_of(id).and_then(|at| self.jobs.get_mut(at)) {
                kept.stirs = true;
                kept.looked_at = true;
            }
        }
    }

    /// Whether other stages' pairs are to be made than before.
    fn follow_wants(&mut self, nodes: &DecideContext<'_>, decided: &Decided) -> bool {
        let mut others = std::mem::take(&mut self.wants_less);
        for kept in self.jobs.iter_mut().filter(|kept| kept.looked_at) {
            let wanted = curation::wanted_of(nodes, &kept.job, decided);
            let wants = wanted.and_then(|_| kept.job.facts().makes);
            others |= std::mem::replace(&mut kept.wants, wants) != wants;
        }
        others
    }

    /// Tells those whose pairs are with the curators whether any makes them. `anew`: it was divided anew who makes what.
    fn tell_lacking(&mut self, nodes: &DecideContext<'_>, anew: bool, plan: &mut PlanDraft) {
        for kept in self.jobs.iter_mut().filter(|kept| anew || kept.looked_at) {
            let Place::Lacks { index, needed, made: before } = kept.place else { continue };
            let made = kept.job.stages.get(index).is_some_and(|stage| self.serving.is_made(&stage.id));
            if !kept.looked_at && made == before {
                continue;
            }
            kept.place = Place::Lacks { index, needed, made };
            let extent = plan.extent();
            decide_lacking(nodes, &self.serving.made, (&kept.job, index, needed), plan);
            kept.looked_at = true;
            kept.stirs |= plan.extent() != extent;
        }
    }

    /// Follows what is trained now, and gives the stages of which something may be to be settled.
    fn sync_served(
        &mut self,
        nodes: &DecideContext<'_>,
        decided: &Decided,
        looked_at: &[usize],
        newly_made: Vec<StageRef>,
    ) -> BTreeSet<StageRef> {
        let mut stages: BTreeSet<StageRef> = newly_made.into_iter().collect();
        let jobs = looked_at.iter().filter_map(|at| self.jobs.get(*at));
        // Of those that are looked at because time has passed, and of which nothing was decided, all is as before.
        let changed = jobs.filter(|kept| kept.is_shaken() || is_watched(&kept.job));
        let mut changed: Vec<&StageRef> =
            changed.flat_map(|kept| &kept.job.stages).map(|stage| &stage.id).collect();
        changed.sort_unstable();
        for stage in changed {
            let is_trained = decided.active.contains(stage);
            if is_trained || self.serving.is_made(stage) {
                stages.insert(stage.clone());
            }
            if self.serving.serve(nodes, stage, is_trained)
                && let Some(attempt) = decided.active.get(stage)
            {
                stir(&mut self.trainers, &self.trainer_at, attempt);
            }
        }
        stages
    }

    /// Marks the nodes that jobs have, had or are about to have to do with.
    fn stir_nodes(&mut self, decided: &Decided, looked_at: &[usize]) {
        for kept in looked_at.iter().filter_map(|at| self.jobs.get(*at)).filter(|kept| kept.is_shaken()) {
            stir_running(&mut self.trainers, &self.run_at, &kept.job.record.id);
            for stage in kept.job.stages.iter().map(|stage| &stage.id) {
                let attempts = self.active.get(stage).into_iter().chain(decided.active.get(stage));
                attempts.for_each(|attempt| stir(&mut self.trainers, &self.trainer_at, attempt));
            }
        }
    }

    /// The difference between what nodes do and what they should do.
    fn send(
        &mut self,
        nodes: &DecideContext<'_>,
        decided: &Decided,
        looked_at: &[usize],
        plan: &mut PlanDraft,
    ) {
        let jobs = looked_at.iter().filter_map(|at| self.jobs.get(*at));
        let mut placed: IdMap<&NodeId, Vec<&StageRef>> = IdMap::default();
        for stage in jobs.flat_map(|kept| &kept.job.stages).map(|stage| &stage.id) {
            let attempt = decided.active.get(stage);
            let is_new = |attempt: &&Arc<AttemptRecord>| {
                self.active.get(stage).is_none_or(|known| known.attempt != attempt.attempt)
            };
            for rank in attempt.filter(is_new).into_iter().flat_map(|attempt| firsts(attempt)) {
                placed.entry(&rank.node).or_default().push(stage);
            }
        }
        for ((record, view), kept) in nodes.known(NodeKind::Trainer).iter().zip(&mut self.trainers) {
            if !kept.is_due(nodes.now) {
                continue;
            }
            (kept.stirred, kept.until) = (false, NEVER);
            let Some(view) = view.filter(|view| view.connected) else { continue };
            let placed = placed.get(&record.id).into_iter().flatten().copied();
            let stages: BTreeSet<&StageRef> = kept.gangs.iter().chain(placed).collect();
            let gangs = stages.iter().filter_map(|stage| decided.active.get(stage));
            let gangs: Vec<_> = gangs.filter(|attempt| attempt.runs_on(&record.id)).cloned().collect();
            let sent = plan.sends.len();
            nodes.holds_until();
            let served_at = |stage: &StageRef| self.serving.addresses(nodes, stage);
            nodes::trainer_sends(nodes, (record, view), decided, &gangs, served_at, plan);
            kept.until = nodes.holds_until();
            kept.stirred = plan.sends.len() > sent;
        }
        self.serving.send(nodes, plan);
    }

    /// Takes over why those wait that were looked at.
    fn tell(&mut self, looked_at: &[usize], plan: &mut PlanDraft) {
        for at in looked_at {
            let Some(kept) = self.jobs.get_mut(*at) else { continue };
            kept.due = false;
            let wait = plan.waits.remove(&kept.job.record.id);
            // Those that lack slots were told in their turn.
            if wait.is_some() || !matches!(kept.place, Place::Ready(_)) {
                kept.tell(wait.map(Arc::new), &mut self.waits);
            }
        }
    }

    fn place_of(&self, id: &JobId) -> Option<usize> {
        let (priority, submitted) = self.orders.get(id).copied()?;
        // By what tenants have used they are in another order; but then all are looked at, and nothing is kept.
        self.jobs.binary_search_by(|kept| kept.order().cmp(&(priority, submitted, id))).ok()
    }

    fn put_active(&mut self, nodes: &DecideContext<'_>, job: &Job, attempt: &Arc<AttemptRecord>) {
        self.in_use.count(nodes, job, attempt);
        let stage = attempt.attempt.stage_ref();
        for rank in firsts(attempt) {
            let at = self.trainer_at.get(&rank.node).copied();
            if let Some(kept) = at.and_then(|at| self.trainers.get_mut(at))
                && !kept.gangs.contains(&stage)
            {
                kept.gangs.push(stage.clone());
            }
        }
        self.active.put(attempt.clone());
    }
}

fn order_of(job: &Job) -> (JobId, (i64, Timestamp)) {
    let (priority, submitted, id) = job.order();
    (id.clone(), (priority, submitted))
}

/// A rank for each node of the attempt, or more.
fn firsts(attempt: &AttemptRecord) -> impl Iterator<Item = &RankPlacement> {
    attempt.by_node().filter_map(<[RankPlacement]>::first)
}

/// Something may be to be sent to the nodes of the attempt.
fn stir(trainers: &mut [KeptNode], trainer_at: &IdMap<NodeId, usize>, attempt: &AttemptRecord) {
    for rank in firsts(attempt) {
        if let Some(kept) = trainer_at.get(&rank.node).and_then(|at| trainers.get_mut(*at)) {
            kept.stirred = true;
        }
    }
}

/// The same of those that hold slots for the job.
fn stir_running(trainers: &mut [KeptNode], run_at: &IdMap<JobId, BTreeSet<usize>>, job: &JobId) {
    for at in run_at.get(job).into_iter().flatten() {
        if let Some(kept) = trainers.get_mut(*at) {
            kept.stirred = true;
        }
    }
}
