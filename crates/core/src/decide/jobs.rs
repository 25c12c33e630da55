//! Jobs: attempts are ended and placed, states moved, waits explained.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::decide::curation::Made;
use crate::decide::lost::lost_pairs;
use crate::decide::passes::{Active, Decided, FirstWaiting, Found, Idle, InUse, Limit, Wants};
use crate::decide::{Change, DecideContext, PendingReason, PlanDraft, preemption, sources, stage_precision};
use crate::holdings::Holdings;
use crate::ids::{AttemptRef, IdMap, NodeId, Timestamp};
use crate::job::{JobEvent, JobState};
use crate::observed::{GangView, NodeFailure, NodeReport, NodeView, RESCUE_WITHIN};
use crate::placement::{self, NodeSlots, Slots};
use crate::records::{AttemptRecord, JobRecord, NodeKind, NodeRecord, RankPlacement, Record};
use crate::state::{Job, Stage};
use crate::transitions::ended;

/// An attempt that cannot go on.
pub(super) struct Ending {
    pub reason: String,
    pub kind: EndKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EndKind {
    Failed,
    /// Trying again cannot help.
    Hopeless,
    /// Not by a failure: a node of the gang drains, or its job gives up its slots, and everything trained is saved, or somebody
    /// has stopped it.
    HandedOver,
}

/// What a job is to be told of which the pairs of stage `index` are with the curators, now that it is known which have one.
pub(super) fn decide_lacking(
    nodes: &DecideContext<'_>,
    made: &Made,
    (job, index, needed): (&Job, usize, u64),
    plan: &mut PlanDraft,
) {
    let Some(log) = nodes.state.read_log(job, index) else {
        // A record of the job that makes them cannot be read.
        let log = job.stage_spec(index).and_then(|spec| spec.data.source.log());
        let stage = log.map(|log| log.from.clone()).unwrap_or_default();
        plan.wait(&job.record.id, PendingReason::Pairs { stage, committed: 0, needed });
        return;
    };
    let stage = log.of;
    let wait = if log.is_elsewhere {
        move_job(nodes.wall_now(), plan, job, placing(index));
        PendingReason::Pairs { stage: stage.id.to_string(), committed: log.committed(), needed }
    } else if made.stages.contains(&stage.id) {
        let mut events = placing(index);
        if stage.log.is_begun() {
            events.push(JobEvent::Run { stage: index });
        }
        move_job(nodes.wall_now(), plan, job, events);
        let committed = stage.log.committed();
        PendingReason::Pairs { stage: stage.id.stage.to_string(), committed, needed }
    } else if made.by_curator.is_empty() {
        PendingReason::NoCurator
    } else if stage_precision::is_open(nodes, job, stage) {
        PendingReason::NoTrainer
    } else {
        sources::wait(nodes, stage).unwrap_or(PendingReason::CuratorsBusy)
    };
    plan.wait(&job.record.id, wait);
}

/// Slots of reachable trainers that no active attempt holds.
pub(crate) fn free_slots(nodes: &DecideContext<'_>, active: &Active) -> Slots {
    let mut slots = Slots::default();
    let taken = taken_slots(active);
    for (record, view) in nodes.open_to_work(NodeKind::Trainer).filter(|(record, _)| record.slots > 0) {
        let taken = taken.get(&record.id).map(Vec::as_slice).unwrap_or_default();
        slots.add(record.id.clone(), node_slots(nodes, record, view, active, taken));
    }
    slots
}

/// Those of one node, on which active attempts hold `taken`.
pub(super) fn node_slots(
    nodes: &DecideContext<'_>,
    record: &NodeRecord,
    view: &NodeView,
    active: &Active,
    taken: &[u32],
) -> NodeSlots {
    let wanted =
        |attempt: &AttemptRef| active.get(&attempt.stage_ref()).is_some_and(|now| now.attempt == *attempt);
    let (mut stopping, mut held) = (BTreeSet::new(), BTreeMap::new());
    for attempt in view.running.iter().filter(|attempt| !wanted(attempt)) {
        match slots_of_attempt(nodes, &record.id, attempt) {
            Some(slots) => held.extend(slots.into_iter().map(|slot| (slot, attempt.stage_ref()))),
            None => {
                stopping.insert(attempt.stage_ref());
            }
        }
    }
    NodeSlots {
        incarnation: view.incarnation.clone(),
        device: nodes.device_name(&record.device),
        total: record.slots,
        free: (0..record.slots).filter(|slot| !taken.contains(slot)).collect(),
        stopping,
        held,
        stuck: view.health.stuck.keys().copied().collect(),
    }
}

/// Slots that active attempts hold.
fn taken_slots(active: &Active) -> IdMap<&NodeId, Vec<u32>> {
    let mut taken: IdMap<&NodeId, Vec<u32>> = IdMap::default();
    for ranks in active.in_any_order().flat_map(|attempt| attempt.by_node()) {
        if let [first, ..] = ranks {
            taken.entry(&first.node).or_default().extend(ranks.iter().map(|rank| rank.device_index));
        }
    }
    taken
}

/// The slots that an attempt holds on a node, if it is known: it is the newest of its stage, or was started there while this
/// controller led.
fn slots_of_attempt(nodes: &DecideContext<'_>, node: &NodeId, attempt: &AttemptRef) -> Option<BTreeSet<u32>> {
    let stage = nodes.state.stage(&attempt.stage_ref());
    let newest = stage.and_then(|stage| stage.attempt.as_ref()).filter(|newest| newest.attempt == *attempt);
    match newest {
        Some(newest) if newest.runs_on(node) => {
            let ranks = newest.ranks.iter().filter(|rank| rank.node == *node);
            Some(ranks.map(|rank| rank.device_index).collect())
        }
        Some(_) | None => nodes.view(node)?.slots.get(attempt).cloned(),
    }
}

pub(super) struct JobPass<'a, 'p> {
    pub(super) nodes: &'p DecideContext<'a>,
    pub(super) plan: &'p mut PlanDraft,
    pub(super) decided: Decided,
    pub(super) slots: Slots,
    /// The job that is looked at, once it has no active attempt.
    pub(super) idle: Option<Idle<'a>>,
    /// What active attempts hold.
    pub(super) in_use: InUse,
    /// The first job that waits for slots which it would fit into.
    pub(super) first_waiting: Option<FirstWaiting<'a>>,
    /// For each limit the first job that what is left of it is too little for.
    pub(super) first_at_limit: BTreeMap<Limit<'a>, FirstWaiting<'a>>,
    /// The gangs that may be placed, of each queue that is sure of slots, with the kind of device that they want; in order.
    pub(super) wanting: BTreeMap<(&'a str, &'a str), Rc<Vec<Wants<'a>>>>,
    /// Slots that queues hold no more once those that are to leave have left.
    pub(super) about_to_leave: Holdings,
    pub(super) found: Found<'a>,
}

impl<'a, 'p> JobPass<'a, 'p> {
    /// Nothing is decided yet: attempts, slots and what is held of them are as they are.
    pub fn new(
        nodes: &'p DecideContext<'a>,
        plan: &'p mut PlanDraft,
        (active, slots, in_use): (Active, Slots, InUse),
        full_tenants: BTreeMap<String, (u64, u64)>,
    ) -> Self {
        let (leaving, closed) = (BTreeMap::new(), BTreeSet::new());
        Self {
            nodes,
            plan,
            decided: Decided { active, leaving, closed, full_tenants },
            slots,
            idle: None,
            in_use,
            first_waiting: None,
            first_at_limit: BTreeMap::new(),
            wanting: BTreeMap::new(),
            about_to_leave: Holdings::default(),
            found: Found::default(),
        }
    }

    /// How much was decided: as long as it is the same, nothing more was.
    pub fn extent(&self) -> (usize, usize) {
        (self.plan.extent(), self.decided.leaving.len())
    }

    /// Ends what cannot go on, and moves the job. Every slot that becomes free so is to be known before the first one is given
    /// away. What is returned has no active attempt.
    pub fn decide_job(&mut self, job: &'a Job) -> Option<Idle<'a>> {
        self.look_at(job);
        self.idle.take()
    }

    fn look_at(&mut self, job: &'a Job) {
        // Whatever is decided would rest on half of what there is: what runs is left to run.
        if let Some(record) = self.nodes.state.halted(&job.record.id) {
            self.plan.wait(&job.record.id, PendingReason::Unreadable { record });
            return;
        }
        let current = job.current_stage();
        // At most one stage trains; one whose successor has lost its starting point trains again.
        for (index, stage) in job.stages.iter().enumerate().filter(|_| job.facts().is_placed) {
            if let Some(attempt) = stage.active_attempt().filter(|_| Some(index) != current) {
                self.end(attempt, "another stage goes first".to_owned(), attempt.failures_in_a_row);
            }
        }
        let Some(index) = current else {
            self.move_job(job, vec![JobEvent::Succeed]);
            return;
        };
        if !job.facts().is_plain && self.end_in_time(job, index) {
            return;
        }
        match &job.record.state {
            JobState::Paused(pause) => self.pause(job, index, &pause.reason),
            JobState::Preempting { by, .. } => {
                let why = preemption::makes_room(job, self.nodes.state.job(by));
                self.yield_place(job, index, &why);
            }
            JobState::Queued | JobState::Placing { .. } | JobState::Running { .. } => {
                if let Some(stage) = job.stages.get(index) {
                    self.decide_stage(job, index, stage);
                }
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled { .. } => {}
        }
    }

    fn decide_stage(&mut self, job: &'a Job, index: usize, stage: &Stage) {
        if let Some(reason) = self.hopeless(job, index, stage) {
            if let Some(attempt) = stage.active_attempt() {
                self.end(attempt, reason.clone(), attempt.failures_in_a_row);
            }
            self.move_job(job, vec![JobEvent::Fail { reason }]);
            return;
        }
        let mut attempt = stage.attempt.clone();
        if let Some(running) = stage.active_attempt() {
            let Some(ending) = self.ending(job, index, running) else {
                self.keep_running(job, index, running);
                return;
            };
            let closed = self.close(stage, running, &ending.reason, ending.kind);
            let failures = closed.failures_in_a_row;
            attempt = Some(Arc::new(closed));
            let handed_over = ending.kind == EndKind::HandedOver;
            let hopeless = ending.kind == EndKind::Hopeless;
            let tried_enough = !handed_over && failures > self.nodes.limits.max_failures_in_a_row;
            if hopeless || tried_enough {
                let tries = if hopeless {
                    String::new()
                } else {
                    format!(" {failures} times without a new checkpoint")
                };
                let reason = format!("stage {} failed{tries}: {}", stage.id.stage, ending.reason);
                self.move_job(job, vec![JobEvent::Fail { reason }]);
                return;
            }
        }
        self.idle = Some(Idle { job, index, last: attempt });
    }

    /// Why the stage will never have the pairs that it needs.
    fn hopeless(&self, job: &Job, index: usize, stage: &Stage) -> Option<String> {
        if job.facts().is_plain && self.nodes.seen.cooldowns.is_empty() {
            return None;
        }
        let needed = job.stage_spec(index).map_or(0, |spec| spec.data.pairs_to_start());
        let lost = lost_pairs(self.nodes.state, self.nodes.limits, job, index);
        let lost = lost.or_else(|| self.lost_start(job, index, stage));
        lost.or_else(|| sources::nobody_opens(self.nodes, job.making_stage(index)?, needed))
    }

    /// Why what the stage starts from in another job will never be there.
    fn lost_start(&self, job: &Job, index: usize, stage: &Stage) -> Option<String> {
        let named = job.stage_spec(index)?.init_from.as_ref()?.elsewhere()?;
        // One that has checkpoints of its own goes on from those, and a record that cannot be read may hold it.
        let state = self.nodes.state;
        if stage.newest_checkpoint().is_some()
            || state.other_checkpoint(&job.record.spec.tenant, &named).is_some()
            || self.nodes.is_halted(&named.job)
        {
            return None;
        }
        let why = match state.job(&named.job) {
            None => "does not exist any more".to_owned(),
            Some(other) if other.record.state.is_terminal() => format!("is {}", other.record.state),
            Some(_) => return None,
        };
        let name = &stage.id.stage;
        Some(format!("stage {name} starts from {named}, which is not there, and job {} {why}", named.job))
    }

    fn keep_running(&mut self, job: &Job, index: usize, attempt: &AttemptRecord) {
        let alive = self.nodes.gang(&attempt.attempt).is_some_and(|gang| gang.is_alive());
        if alive {
            self.move_job(job, vec![JobEvent::Place { stage: index }, JobEvent::Run { stage: index }]);
        } else if job.record.state != (JobState::Running { stage: index }) {
            self.move_job(job, vec![JobEvent::Place { stage: index }]);
            let nodes: BTreeSet<&NodeId> = attempt.ranks.iter().map(|rank| &rank.node).collect();
            let wait = PendingReason::Ranks { ranks: attempt.ranks.len(), nodes: nodes.len() };
            self.plan.wait(&job.record.id, wait);
        }
    }

    /// Why the attempt cannot go on, if it cannot. What is not seen is unknown, and unknown is not failed.
    pub(super) fn ending(&self, job: &'a Job, index: usize, attempt: &AttemptRecord) -> Option<Ending> {
        let believed = || self.is_permanent(job, index, attempt);
        let gang = self.nodes.gang(&attempt.attempt);
        let reports = gang.map(|gang| &gang.nodes);
        let rescued = gang.is_some_and(|gang| self.is_being_rescued(gang, attempt));
        let told = |node: &NodeId, report: &NodeReport| match report {
            // Others save what it had done before: that they have, or cannot, ends it.
            NodeReport::Failed { kind: NodeFailure::RankDied, .. } if rescued => None,
            NodeReport::Failed { reason, kind } => Some(Ending {
                reason: format!("{reason} (on {node})"),
                kind: if *kind == NodeFailure::Permanent && believed() {
                    EndKind::Hopeless
                } else {
                    EndKind::Failed
                },
            }),
            // Nobody here has asked for it: somebody has stopped the node, which is no failure.
            NodeReport::Stopped => {
                Some(Ending { reason: format!("node {node} was stopped"), kind: EndKind::HandedOver })
            }
            NodeReport::Drained { reason } => {
                Some(Ending { reason: format!("{reason} (on {node})"), kind: EndKind::HandedOver })
            }
            NodeReport::Starting | NodeReport::Running | NodeReport::Succeeded => None,
        };
        // Who has lost a peer knows less of why than the peer's own node.
        let lost =
            |report: &NodeReport| matches!(report, NodeReport::Failed { kind: NodeFailure::PeerLost, .. });
        let of_kind = |kind: EndKind| {
            let all = || reports.into_iter().flatten();
            let all =
                all().filter(|(_, report)| !lost(report)).chain(all().filter(|(_, report)| lost(report)));
            all.filter_map(|(node, report)| told(node, report)).find(|ending| ending.kind == kind)
        };
        // Ranks say that they are drained once all is saved: what goes wrong on a node after that costs nothing.
        let order = [EndKind::Hopeless, EndKind::HandedOver, EndKind::Failed];
        if let Some(ending) = order.into_iter().find_map(of_kind) {
            return Some(ending);
        }
        if let Some(hang) = gang.and_then(|gang| gang.hang.as_ref()) {
            return Some(Ending { reason: hang.to_string(), kind: EndKind::Failed });
        }
        let succeeded =
            |node: &NodeId| reports.is_some_and(|nodes| nodes.get(node) == Some(&NodeReport::Succeeded));
        if attempt.ranks.iter().all(|rank| succeeded(&rank.node)) {
            let reason = "every rank ended and no final checkpoint is committed".to_owned();
            return Some(Ending { reason, kind: EndKind::Failed });
        }
        for rank in attempt.by_node().filter_map(<[RankPlacement]>::first) {
            let view = self.nodes.view(&rank.node);
            if view.is_some_and(|view| view.incarnation != rank.incarnation) {
                return Some(Ending {
                    reason: format!("node {} was restarted", rank.node),
                    kind: EndKind::Failed,
                });
            }
        }
        self.lost_node(gang, attempt)
    }

    /// The end of a gang that does not step and of which a node is silent.
    fn lost_node(&self, gang: Option<&GangView>, attempt: &AttemptRecord) -> Option<Ending> {
        let since = self.nodes.seen.since;
        let began = self.nodes.seen.began(&attempt.attempt);
        let stepped_at = gang.map_or(since, |gang| gang.stepped_at).max(began);
        let limits = self.nodes.limits;
        let lost_early = limits.silent_after.saturating_mul(2).min(limits.ranks_lost_after);
        if !self.nodes.has_passed(stepped_at, lost_early) {
            return None;
        }
        // Before its ranks have met there is nothing to lose but the time that they have loaded for.
        let is_meeting = gang.is_some_and(|gang| self.is_meeting(gang, attempt));
        let lost_after = if is_meeting { lost_early } else { limits.ranks_lost_after };
        if !self.nodes.has_passed(stepped_at, lost_after) {
            return None;
        }
        let nodes = attempt.by_node().filter_map(<[RankPlacement]>::first);
        let mut heard =
            nodes.map(|rank| (&rank.node, self.nodes.view(&rank.node).map_or(since, |view| view.last_heard)));
        let (node, heard) = heard.find(|(_, heard)| self.nodes.has_passed(*heard, lost_after))?;
        let silence = self.nodes.now.since(heard).as_secs();
        Some(Ending {
            reason: format!("node {node} is silent for {silence} s and its gang does not step"),
            kind: EndKind::Failed,
        })
    }

    /// Whether ranks on nodes in sight may be saving what the gang had done before one of them died.
    fn is_being_rescued(&self, gang: &GangView, attempt: &AttemptRecord) -> bool {
        if gang.rank_died_at.is_none_or(|at| self.nodes.has_passed(at, RESCUE_WITHIN)) {
            return false;
        }
        let nodes = attempt.ranks.iter().filter(|rank| {
            let view = self.nodes.view(&rank.node);
            view.is_some_and(|view| view.connected && view.incarnation == rank.incarnation)
        });
        gang.is_being_rescued(nodes.map(|rank| &rank.node), self.nodes.now)
    }

    /// Whether a node that was heard of just now says that its ranks have not met the others.
    fn is_meeting(&self, gang: &GangView, attempt: &AttemptRecord) -> bool {
        attempt.ranks.iter().any(|rank| {
            let view = self.nodes.view(&rank.node);
            gang.nodes.get(&rank.node) == Some(&NodeReport::Starting)
                && view.is_some_and(|view| {
                    view.connected && self.nodes.now.since(view.last_heard) < self.nodes.limits.silent_after
                })
        })
    }

    /// Whether what one node takes for permanent is: two nodes say so of the stage, or no gang fits without those that do.
    fn is_permanent(&self, job: &'a Job, index: usize, attempt: &AttemptRecord) -> bool {
        let stage = attempt.attempt.stage_ref();
        let says = self.nodes.seen.failures.permanent_on(&stage, self.nodes.limits, self.nodes.now);
        let sizes = job.stage_spec(index).map(|spec| placement::gang_sizes(&job.record.spec, spec));
        let least = sizes.and_then(|sizes| sizes.last().copied()).unwrap_or(job.record.spec.resources.gpus);
        let others = self.slots_for_job(job).among(|node| !says.contains(node));
        says.len() >= 2 || !placement::room(&others, &stage, least).fits_when_empty()
    }

    /// Ends the stage's active attempt, and counts it if it has failed.
    pub(super) fn close(
        &mut self,
        stage: &Stage,
        running: &AttemptRecord,
        reason: &str,
        kind: EndKind,
    ) -> AttemptRecord {
        // A checkpoint in between makes this failure the first of its row.
        let progressed =
            stage.checkpoints.values().any(|saved| saved.generation == running.attempt.generation);
        let before = if progressed { 0 } else { running.failures_in_a_row };
        let failures = match kind {
            EndKind::HandedOver => before,
            EndKind::Failed | EndKind::Hopeless => before.saturating_add(1),
        };
        self.end_as(running, reason.to_owned(), failures, kind == EndKind::HandedOver)
    }

    fn end(&mut self, attempt: &AttemptRecord, reason: String, failures_in_a_row: u32) -> AttemptRecord {
        self.end_as(attempt, reason, failures_in_a_row, false)
    }

    fn end_as(
        &mut self,
        attempt: &AttemptRecord,
        reason: String,
        failures_in_a_row: u32,
        handed_over: bool,
    ) -> AttemptRecord {
        if self.decided.active.remove(&attempt.attempt.stage_ref()).is_some() {
            attempt.ranks.iter().for_each(|rank| self.slots.give_back(rank));
            if let Some(job) = self.nodes.state.job(&attempt.attempt.job) {
                self.in_use.uncount(self.nodes, job, attempt);
            }
        }
        let ran = attempt.ran(self.nodes.seen.counted(self.nodes.now));
        let record = AttemptRecord {
            failures_in_a_row,
            ran_millis: u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
            ..ended(attempt, reason.clone(), self.nodes.wall_now())
        };
        let attempt = attempt.attempt.clone();
        self.plan.change(Change::AttemptEnded { attempt, reason, handed_over });
        self.write(Record::Attempt(record.clone()));
        record
    }

    pub(super) fn move_job(&mut self, job: &Job, events: Vec<JobEvent>) {
        if move_job(self.nodes.wall_now(), self.plan, job, events) {
            self.decided.closed.insert(job.record.id.clone());
        }
    }

    pub(super) fn write(&mut self, record: Record) {
        self.plan.write(record);
    }
}

/// To its place; one that was preempted and has left, through the queue.
pub(super) fn placing(stage: usize) -> Vec<JobEvent> {
    vec![JobEvent::Yield, JobEvent::Place { stage }]
}

/// Applies events one after the other; one that the state does not allow is left out. Whether the job has ended. `now` is
/// only shown.
fn move_job(now: Timestamp, plan: &mut PlanDraft, job: &Job, events: Vec<JobEvent>) -> bool {
    // `Place` leads to `Run` from where there was no place yet; a job that runs that stage stays running.
    let runs_already = run_event(&job.record.state);
    if events.iter().any(|event| Some(event) == runs_already.as_ref()) {
        return false;
    }
    let mut state = job.record.state.clone();
    for event in events {
        if let Ok(next) = state.step(event) {
            state = next;
        }
    }
    if state == job.record.state {
        return false;
    }
    let reason = match &state {
        JobState::Failed { reason } | JobState::Cancelled { reason } => reason.clone(),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Paused(_)
        | JobState::Preempting { .. }
        | JobState::Succeeded => String::new(),
    };
    let (from, to) = (job.record.state.name(), state.name());
    plan.change(Change::JobMoved { job: job.record.id.clone(), from, to, reason });
    let runs = matches!(state, JobState::Running { .. });
    let closed = state.is_terminal();
    let record = JobRecord {
        started_at: job.record.started_at.or(runs.then_some(now)),
        finished_at: closed.then_some(now),
        state,
        ..job.record.clone()
    };
    plan.write(Record::Job(record));
    closed
}

fn run_event(state: &JobState) -> Option<JobEvent> {
    match state {
        JobState::Running { stage } => Some(JobEvent::Run { stage: *stage }),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Paused(_)
        | JobState::Preempting { .. }
        | JobState::Succeeded
        | JobState::Failed { .. }
        | JobState::Cancelled { .. } => None,
    }
}
