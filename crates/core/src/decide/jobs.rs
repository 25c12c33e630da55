//! Jobs: attempts are ended and placed, states moved, waits explained.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::decide::lost::lost_log;
use crate::decide::passes::{Active, CurationAssignments, Decided, Lacking};
use crate::decide::{Change, DecideContext, PendingReason, Plan, preemption, sources, stage_precision};
use crate::ids::{AttemptRef, NodeId, StageRef, Timestamp};
use crate::job::{JobEvent, JobState};
use crate::observed::NodeReport;
use crate::placement::{self, InsufficientCapacity, NodeNeeds, NodeSlots, Slots};
use crate::precision::{self, StagePrecision};
use crate::processor::{self, GangKind, GangPart};
use crate::quotas::QueueOrder;
use crate::records::{AttemptRecord, AttemptState, JobRecord, NodeKind, RankPlacement, Record, Write};
use crate::spec::OtherCheckpoint;
use crate::state::{ClusterState, Job, Stage};
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

/// Decides every open job, in the order in which they are served.
pub(super) fn decide_jobs<'a>(nodes: &DecideContext<'a>, plan: &mut Plan) -> Decided<'a> {
    let jobs = nodes.state.open_in_order();
    let mut active = Active::new();
    for job in &jobs {
        for attempt in job.stages.iter().filter_map(Stage::active_attempt) {
            active.insert(attempt.attempt.stage_ref(), attempt.clone());
        }
    }
    let slots = free_slots(nodes, &active);
    let full_tenants = nodes.limits.quotas.full_tenants(nodes.state);
    let decided = Decided {
        active,
        leaving: BTreeMap::new(),
        closed: BTreeSet::new(),
        full_tenants,
        lacking: Vec::new(),
    };
    let (idle, in_use) = (Vec::new(), BTreeMap::new());
    let mut pass = JobPass { nodes, plan, decided, slots, idle, in_use, first_waiting: None };
    // Every slot that becomes free is known before the first one is given away.
    for job in jobs {
        pass.decide_job(job);
    }
    pass.count_in_use();
    for Idle { job, index, last } in std::mem::take(&mut pass.idle) {
        if let Some(stage) = job.stages.get(index) {
            pass.start_or_wait(job, index, stage, last.as_ref());
        }
    }
    pass.decided
}

/// Moves the jobs whose stages are with the curators, now that it is known which have one.
pub(super) fn decide_curation(
    nodes: &DecideContext<'_>,
    curation: &CurationAssignments,
    decided: &Decided<'_>,
    plan: &mut Plan,
) {
    for Lacking { job, index, needed } in &decided.lacking {
        let Some(stage) = job.stages.get(*index) else { continue };
        let wait = if curation.making.contains(&stage.id) {
            let mut events = placing(*index);
            if stage.log.is_begun() {
                events.push(JobEvent::Run { stage: *index });
            }
            move_job(nodes.wall_now(), plan, job, events);
            PendingReason::Pairs {
                stage: stage.id.stage.to_string(),
                committed: stage.log.committed(),
                needed: *needed,
            }
        } else if curation.wanted.is_empty() {
            PendingReason::NoCurator
        } else if stage_precision::is_open(nodes, job, &stage.id) {
            PendingReason::NoTrainer
        } else {
            sources::wait(nodes, stage).unwrap_or(PendingReason::CuratorsBusy)
        };
        plan.waits.insert(job.record.id.clone(), wait);
    }
}

/// Slots of reachable trainers that no active attempt holds.
pub(crate) fn free_slots(nodes: &DecideContext<'_>, active: &Active) -> Slots {
    let mut slots = Slots::default();
    for (record, view) in nodes.open_to_work(NodeKind::Trainer).filter(|(record, _)| record.slots > 0) {
        let wanted = |attempt: &AttemptRef| {
            active.get(&attempt.stage_ref()).is_some_and(|now| now.attempt == *attempt)
        };
        let (mut stopping, mut held) = (BTreeSet::new(), BTreeMap::new());
        for attempt in view.running.iter().filter(|attempt| !wanted(attempt)) {
            match slots_of_attempt(nodes, &record.id, attempt) {
                Some(slots) => held.extend(slots.into_iter().map(|slot| (slot, attempt.stage_ref()))),
                None => {
                    stopping.insert(attempt.stage_ref());
                }
            }
        }
        let node = NodeSlots {
            incarnation: view.incarnation.clone(),
            device: record.device.clone(),
            total: record.slots,
            free: (0..record.slots).collect(),
            stopping,
            held,
            stuck: view.health.stuck.keys().copied().collect(),
        };
        slots.add(record.id.clone(), node);
    }
    active.values().flat_map(|attempt| &attempt.ranks).for_each(|rank| slots.take(rank));
    slots
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
        Some(_) | None => nodes.seen.nodes.get(node)?.slots.get(attempt).cloned(),
    }
}

/// Places the ranks of a gang on nodes of their own kind each, without taking the slots.
fn place_parts(
    state: &ClusterState,
    slots: &Slots,
    stage: &StageRef,
    gang: &GangKind,
) -> Option<Vec<RankPlacement>> {
    let (mut slots, mut ranks) = (slots.clone(), Vec::new());
    for part in &gang.parts {
        let alike = slots.among(|node| processor::may_run_on(part, state, node));
        let placed = placement::place(&alike, stage, &[part.ranks]).ok()?;
        placed.iter().for_each(|rank| slots.take(rank));
        ranks.extend(placed);
    }
    (!ranks.is_empty()).then_some(ranks)
}

/// A job whose current stage has no active attempt.
pub(super) struct Idle<'a> {
    pub job: &'a Job,
    pub index: usize,
    /// The attempt before.
    pub last: Option<AttemptRecord>,
}

pub(super) struct JobPass<'a, 'p> {
    pub(super) nodes: &'p DecideContext<'a>,
    pub(super) plan: &'p mut Plan,
    pub(super) decided: Decided<'a>,
    pub(super) slots: Slots,
    /// In order.
    pub(super) idle: Vec<Idle<'a>>,
    /// Slots that each tenant's active attempts hold. Filled once every attempt that cannot go on has ended.
    in_use: BTreeMap<&'a str, u32>,
    /// The first job that waits for slots which it would fit into.
    first_waiting: Option<FirstWaiting<'a>>,
}

/// A job for whose sake later ones may have to wait.
#[derive(Clone, Copy)]
struct FirstWaiting<'a> {
    job: &'a Job,
    /// What it waits for is on its way: nobody takes that.
    comes: bool,
}

impl<'a> JobPass<'a, '_> {
    fn decide_job(&mut self, job: &'a Job) {
        // Whatever is decided would rest on half of what there is: what runs is left to run.
        if let Some(record) = self.nodes.state.halted(&job.record.id) {
            self.plan.waits.insert(job.record.id.clone(), PendingReason::Unreadable { record });
            return;
        }
        let current = job.current_stage();
        // At most one stage trains; one whose successor has lost its starting point trains again.
        for (index, stage) in job.stages.iter().enumerate() {
            if let Some(attempt) = stage.active_attempt().filter(|_| Some(index) != current) {
                self.end(attempt, "another stage goes first".to_owned(), attempt.failures_in_a_row);
            }
        }
        let Some(index) = current else {
            self.move_job(job, vec![JobEvent::Succeed]);
            return;
        };
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
        let needed = job.stage_spec(index).map_or(0, |spec| spec.data.min_pairs.min(spec.data.pairs));
        if let Some(reason) = self.hopeless(job, index, stage, needed) {
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
            attempt = Some(closed);
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
        self.idle.push(Idle { job, index, last: attempt });
    }

    /// Why the stage will never have the pairs that it needs.
    fn hopeless(&self, job: &Job, index: usize, stage: &Stage, needed: u64) -> Option<String> {
        let lost = lost_log(self.nodes.limits, stage).or_else(|| self.lost_start(job, index, stage));
        lost.or_else(|| sources::nobody_opens(self.nodes, stage, needed))
    }

    /// Why what the stage starts from in another job will never be there.
    fn lost_start(&self, job: &Job, index: usize, stage: &Stage) -> Option<String> {
        let named = OtherCheckpoint::parse(job.stage_spec(index)?.init_from.as_deref()?)?;
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
        let alive = self.nodes.seen.gang(&attempt.attempt).is_some_and(|gang| gang.is_alive());
        if alive {
            self.move_job(job, vec![JobEvent::Place { stage: index }, JobEvent::Run { stage: index }]);
        } else if job.record.state != (JobState::Running { stage: index }) {
            self.move_job(job, vec![JobEvent::Place { stage: index }]);
            let nodes: BTreeSet<&NodeId> = attempt.ranks.iter().map(|rank| &rank.node).collect();
            let wait = PendingReason::Ranks { ranks: attempt.ranks.len(), nodes: nodes.len() };
            self.plan.waits.insert(job.record.id.clone(), wait);
        }
    }

    /// Why the attempt cannot go on, if it cannot. What is not seen is unknown, and unknown is not failed.
    pub(super) fn ending(&self, job: &Job, index: usize, attempt: &AttemptRecord) -> Option<Ending> {
        let believed = || self.is_permanent(job, index, attempt);
        let gang = self.nodes.seen.gang(&attempt.attempt);
        let reports = gang.map(|gang| &gang.nodes);
        let told = |node: &NodeId, report: &NodeReport| match report {
            NodeReport::Failed { reason, permanent } => Some(Ending {
                reason: format!("{reason} (on {node})"),
                kind: if *permanent && believed() { EndKind::Hopeless } else { EndKind::Failed },
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
        let of_kind = |kind: EndKind| {
            let all = reports.into_iter().flatten();
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
        for rank in &attempt.ranks {
            let view = self.nodes.seen.nodes.get(&rank.node);
            if view.is_some_and(|view| view.incarnation != rank.incarnation) {
                return Some(Ending {
                    reason: format!("node {} was restarted", rank.node),
                    kind: EndKind::Failed,
                });
            }
        }
        let since = self.nodes.seen.since;
        let began = self.nodes.seen.began(&attempt.attempt);
        let stepped_at = gang.map_or(since, |gang| gang.stepped_at).max(began);
        if self.nodes.now.since(stepped_at) < self.nodes.limits.ranks_lost_after {
            return None;
        }
        attempt.ranks.iter().find_map(|rank| {
            let heard = self.nodes.seen.nodes.get(&rank.node).map_or(since, |view| view.last_heard);
            let silence = self.nodes.now.since(heard);
            (silence >= self.nodes.limits.ranks_lost_after).then(|| Ending {
                reason: format!(
                    "node {} is silent for {} s and its gang does not step",
                    rank.node,
                    silence.as_secs()
                ),
                kind: EndKind::Failed,
            })
        })
    }

    /// Whether what one node takes for permanent is: two nodes say so of the stage, or no gang fits without those that do.
    fn is_permanent(&self, job: &Job, index: usize, attempt: &AttemptRecord) -> bool {
        let stage = attempt.attempt.stage_ref();
        let says = self.nodes.seen.failures.permanent_on(&stage, self.nodes.limits, self.nodes.now);
        let sizes = job.stage_spec(index).map(|spec| placement::gang_sizes(&job.record.spec, spec));
        let least = sizes.and_then(|sizes| sizes.last().copied()).unwrap_or(job.record.spec.resources.gpus);
        let others = self.slots_for_job(job).among(|node| !says.contains(node));
        says.len() >= 2 || !placement::room(&others, &stage, least).fits_when_empty()
    }

    /// The slots of nodes that the job may be given.
    fn slots_for_job(&self, job: &Job) -> Slots {
        let needs = NodeNeeds::of(&job.record.spec, self.nodes.state);
        if needs.are_none() {
            return self.slots.clone();
        }
        let is_met = |node: &NodeId| self.nodes.state.node(node).is_some_and(|node| needs.are_met_by(node));
        self.slots.among(is_met)
    }

    /// Those that a stage may take: none on nodes that take its failure for permanent, as long as it fits elsewhere.
    fn slots_for(&self, job: &Job, stage: &StageRef, least: u32) -> Slots {
        let says = self.nodes.seen.failures.permanent_on(stage, self.nodes.limits, self.nodes.now);
        let slots = self.slots_for_job(job);
        let others = slots.among(|node| !says.contains(node));
        if placement::room(&others, stage, least).fits_when_empty() { others } else { slots }
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
        }
        let record =
            AttemptRecord { failures_in_a_row, ..ended(attempt, reason.clone(), self.nodes.wall_now()) };
        let attempt = attempt.attempt.clone();
        self.plan.changes.push(Change::AttemptEnded { attempt, reason, handed_over });
        self.write(Record::Attempt(record.clone()));
        record
    }

    fn start_or_wait(&mut self, job: &'a Job, index: usize, stage: &Stage, last: Option<&AttemptRecord>) {
        let Some(spec) = job.stage_spec(index) else { return };
        if let Some((stored_bytes, limit_bytes)) = self.decided.full_tenants.get(&job.record.spec.tenant)
            && !stage.is_begun()
        {
            let (stored_bytes, limit_bytes) = (*stored_bytes, *limit_bytes);
            let wait = PendingReason::TenantStorage {
                tenant: job.record.spec.tenant.clone(),
                stored_bytes,
                limit_bytes,
            };
            self.plan.waits.insert(job.record.id.clone(), wait);
            return;
        }
        let log = &stage.log;
        let needed = spec.data.min_pairs.min(spec.data.pairs);
        if !log.is_sealed() && log.committed() < needed {
            self.decided.lacking.push(Lacking { job, index, needed });
            return;
        }
        if let Some((until, wait)) = last.and_then(|last| self.backoff(stage, last))
            && self.nodes.now < until
        {
            self.move_job(job, placing(index));
            self.plan.waits.insert(job.record.id.clone(), wait);
            return;
        }
        // Placed, it waits for its ranks; else for what keeps it from being placed.
        let (Ok(wait) | Err(wait)) = self.try_place(job, index, stage, last);
        self.move_job(job, placing(index));
        self.plan.waits.insert(job.record.id.clone(), wait);
    }

    /// When the next attempt may start: at once after the first failure, later and later after more of them.
    fn backoff(&self, stage: &Stage, last: &AttemptRecord) -> Option<(Timestamp, PendingReason)> {
        let AttemptState::Ended { reason, .. } = &last.state else { return None };
        let failures = last.failures_in_a_row;
        if failures <= 1 {
            return None;
        }
        let limits = self.nodes.limits;
        let factor = 1u32.checked_shl(failures - 2).unwrap_or(u32::MAX);
        let wait: Duration = limits.restart_backoff.saturating_mul(factor).min(limits.max_restart_backoff);
        // One that this very plan ends is not learnt of yet.
        let ends_now = stage.active_attempt().is_some();
        let ended = if ends_now { self.nodes.now } else { self.nodes.seen.ended(&last.attempt) };
        Some((ended.plus(wait), PendingReason::Backoff { reason: reason.clone(), failures }))
    }

    fn try_place(
        &mut self,
        job: &'a Job,
        index: usize,
        stage: &Stage,
        last: Option<&AttemptRecord>,
    ) -> Result<PendingReason, PendingReason> {
        let Some(spec) = job.stage_spec(index) else { return Err(PendingReason::NoTrainer) };
        if self.slots.is_empty() {
            return Err(PendingReason::NoTrainer);
        }
        let needs = NodeNeeds::of(&job.record.spec, self.nodes.state);
        let is_met = |node: &NodeId| self.nodes.state.node(node).is_some_and(|node| needs.are_met_by(node));
        if !self.slots.nodes().any(is_met) {
            return Err(PendingReason::NoSuchTrainer { needs: needs.to_string() });
        }
        let init_from = self.nodes.state.init_checkpoint(job, index);
        let init_from = init_from.map_err(|from| PendingReason::Start { from })?;
        let required = processor::required(&job.record.spec, self.nodes.state, stage, init_from);
        let sizes = match required {
            Some(gang) => vec![gang.ranks()],
            None => placement::gang_sizes(&job.record.spec, spec),
        };
        let sizes = self.allowed_sizes(job, sizes)?;
        let first = self.first_waiting;
        if first.is_some_and(|first| first.comes) || !self.may_go_ahead(job) {
            return Err(self.behind(job));
        }
        let place = match required {
            Some(gang) => self.place_like(job, gang, &stage.id)?,
            None => self.place_anywhere(job, stage, &sizes),
        };
        let ranks = place.map_err(|shortage| match first {
            None => self.wait_for_slots(job, stage, &shortage, required),
            Some(_) => self.behind(job),
        })?;
        ranks.iter().for_each(|rank| self.slots.take(rank));
        *self.in_use.entry(&job.record.spec.tenant).or_insert(0) += slots_of(&ranks);
        let StageRef { job: job_id, stage: name } = stage.id.clone();
        let attempt = AttemptRef { job: job_id, stage: name, generation: stage.generation().next() };
        let nodes: BTreeSet<&NodeId> = ranks.iter().map(|rank| &rank.node).collect();
        let wait = PendingReason::Ranks { ranks: ranks.len(), nodes: nodes.len() };
        let ahead_of = first.map(|first| first.job.record.id.clone());
        let placed = Change::AttemptPlaced {
            attempt: attempt.clone(),
            ranks: ranks.len(),
            ahead_of: ahead_of.clone(),
        };
        self.plan.changes.push(placed);
        let record = AttemptRecord {
            attempt,
            ranks,
            state: AttemptState::Active,
            started_at: self.nodes.wall_now(),
            restarts: last.map_or(0, |last| last.restarts.saturating_add(1)),
            failures_in_a_row: last.map_or(0, |last| last.failures_in_a_row),
            resume_from: stage.newest_checkpoint().cloned(),
            init_from: init_from.cloned(),
            ahead_of,
        };
        self.decided.active.insert(stage.id.clone(), record.clone());
        self.write(Record::Attempt(record));
        Ok(wait)
    }

    /// Whether a later job may use what the first one waits for and cannot use yet: it is to leave when that one fits.
    fn may_go_ahead(&self, job: &Job) -> bool {
        let quotas = &self.nodes.limits.quotas;
        self.first_waiting.is_none()
            || quotas.order == QueueOrder::Backfill && quotas.classes.is_preemptible(job.record.spec.priority)
    }

    /// A job of another tenant is not named.
    fn behind(&self, job: &Job) -> PendingReason {
        match self.first_waiting {
            Some(first) if first.job.record.spec.tenant == job.record.spec.tenant => {
                PendingReason::Behind { job: first.job.record.id.clone() }
            }
            Some(_) | None => PendingReason::BehindOthers,
        }
    }

    /// Keeps what becomes free for a job that would fit if others left, and has those leave that are to.
    fn wait_for_slots(
        &mut self,
        job: &'a Job,
        stage: &Stage,
        shortage: &InsufficientCapacity,
        required: Option<&GangKind>,
    ) -> PendingReason {
        let InsufficientCapacity { wanted, free, total } = *shortage;
        if shortage.fits_when_empty() {
            let room = self.make_room(job, stage, wanted, required);
            self.first_waiting = Some(FirstWaiting { job, comes: room.is_some() });
            if let Some(jobs) = room.filter(|jobs| *jobs > 0) {
                return PendingReason::MakingRoom { wanted, jobs };
            }
        }
        PendingReason::Slots { wanted, free, total }
    }

    /// Places a gang of one of `sizes` on nodes of any kind: on such that crawl in the stage's precision only where it
    /// fits nowhere else, and where the kind that wrote its checkpoint is free on that, since the bits stay the same then.
    pub(super) fn place_anywhere(
        &self,
        job: &Job,
        stage: &Stage,
        sizes: &[u32],
    ) -> Result<Vec<RankPlacement>, InsufficientCapacity> {
        let state = self.nodes.state;
        // Only bf16 crawls anywhere.
        let allowed = self.slots_for(job, &stage.id, sizes.last().copied().unwrap_or(0));
        let quick = (precision::of_stage(&job.record.spec, stage) == Some(StagePrecision::Bf16))
            .then(|| allowed.among(|node| !state.node(node).is_some_and(precision::bf16_crawls_on)));
        let wrote = stage.newest_checkpoint().and_then(|checkpoint| processor::wrote(stage, checkpoint));
        let (seen, limits, now) = (self.nodes.seen, self.nodes.limits, self.nodes.now);
        let sound = |slots: &Slots| slots.among(|node| !seen.failures.avoids(node, &stage.id, limits, now));
        // Where it has just failed it goes only if it fits nowhere else.
        let tiers = quick.into_iter().chain([allowed.clone()]).flat_map(|slots| [sound(&slots), slots]);
        for slots in tiers.collect::<Vec<_>>().iter() {
            for size in sizes {
                let alike = wrote.filter(|gang| gang.ranks() == *size);
                if let Some(ranks) = alike.and_then(|gang| place_parts(state, slots, &stage.id, gang)) {
                    return Ok(ranks);
                }
                if let Ok(ranks) = placement::place(slots, &stage.id, &[*size]) {
                    return Ok(ranks);
                }
            }
        }
        Err(placement::room(&allowed, &stage.id, sizes.last().copied().unwrap_or(0)))
    }

    /// Places a gang that gives the same bits as one of this kind; `Err` if there are not the nodes for it, free or not.
    pub(super) fn place_like(
        &self,
        job: &Job,
        gang: &GangKind,
        stage: &StageRef,
    ) -> Result<Result<Vec<RankPlacement>, InsufficientCapacity>, PendingReason> {
        let state = self.nodes.state;
        let (seen, limits, now) = (self.nodes.seen, self.nodes.limits, self.nodes.now);
        let mine = self.slots_for_job(job);
        let sound = mine.among(|node| !seen.failures.avoids(node, stage, limits, now));
        for slots in [&sound, &mine] {
            if let Some(ranks) = place_parts(state, slots, stage, gang) {
                return Ok(Ok(ranks));
            }
        }
        let rooms = gang.by_kind().into_iter().map(|part| {
            let alike = mine.among(|node| processor::may_run_on(&part, state, node));
            (placement::room(&alike, stage, part.ranks), part)
        });
        let rooms: Vec<(InsufficientCapacity, GangPart)> = rooms.collect();
        let missing: Vec<GangPart> =
            rooms.iter().filter(|(room, _)| !room.fits_when_empty()).map(|(_, part)| part.clone()).collect();
        if !missing.is_empty() {
            return Err(PendingReason::Processor { gang: GangKind { parts: missing } });
        }
        let taken = rooms.into_iter().map(|(room, _)| room).find(|room| room.free < room.wanted);
        Ok(Err(taken.unwrap_or_else(|| placement::room(&mine, stage, gang.ranks()))))
    }

    fn count_in_use(&mut self) {
        let state = self.nodes.state;
        for (stage, attempt) in &self.decided.active {
            if let Some(job) = state.job(&stage.job) {
                *self.in_use.entry(&job.record.spec.tenant).or_insert(0) += slots_of(&attempt.ranks);
            }
        }
    }

    /// The gang sizes, largest first, that the job's tenant has slots left for.
    fn allowed_sizes(&self, job: &Job, sizes: Vec<u32>) -> Result<Vec<u32>, PendingReason> {
        let tenant = job.record.spec.tenant.as_str();
        let Some(limit) = self.nodes.limits.quotas.of(tenant).max_gpus else { return Ok(sizes) };
        let used = self.in_use.get(tenant).copied().unwrap_or(0);
        let left = limit.saturating_sub(used);
        let wanted = sizes.last().copied().unwrap_or(0);
        let allowed: Vec<u32> = sizes.into_iter().filter(|size| *size <= left).collect();
        if allowed.is_empty() {
            return Err(PendingReason::TenantGpus { tenant: tenant.to_owned(), wanted, used, limit });
        }
        Ok(allowed)
    }

    pub(super) fn move_job(&mut self, job: &Job, events: Vec<JobEvent>) {
        if move_job(self.nodes.wall_now(), self.plan, job, events) {
            self.decided.closed.insert(job.record.id.clone());
        }
    }

    fn write(&mut self, record: Record) {
        write(self.plan, record);
    }
}

/// To its place; one that was preempted and has left, through the queue.
fn placing(stage: usize) -> Vec<JobEvent> {
    vec![JobEvent::Yield, JobEvent::Place { stage }]
}

fn slots_of(ranks: &[RankPlacement]) -> u32 {
    u32::try_from(ranks.len()).unwrap_or(u32::MAX)
}

/// Applies events one after the other; one that the state does not allow is left out. Whether the job has ended. `now` is
/// only shown.
fn move_job(now: Timestamp, plan: &mut Plan, job: &Job, events: Vec<JobEvent>) -> bool {
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
    plan.changes.retain(|known| !matches!(known, Change::JobMoved { job: of, .. } if *of == job.record.id));
    plan.changes.push(Change::JobMoved { job: job.record.id.clone(), from, to, reason });
    let runs = matches!(state, JobState::Running { .. });
    let closed = state.is_terminal();
    let record = JobRecord {
        started_at: job.record.started_at.or(runs.then_some(now)),
        finished_at: closed.then_some(now),
        state,
        ..job.record.clone()
    };
    write(plan, Record::Job(record));
    closed
}

/// Later writes of a key replace earlier ones.
fn write(plan: &mut Plan, record: Record) {
    let key = record.key();
    plan.writes.retain(|write| write.key() != key);
    plan.writes.push(Write::Put(record));
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
