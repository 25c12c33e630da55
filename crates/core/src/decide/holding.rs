//! Jobs that give up their slots while they stay open: paused by a person, or making room for a job that goes first.
//!
//! Their gangs are told to save and leave, as those of a node that drains are; what a gang does not save within
//! [`Limits::leave_within`](crate::decide::Limits) is lost with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::jobs::{EndKind, JobPass};
use crate::decide::passes::{AtLimit, Idle, Limit, Wants, slots_of};
use crate::decide::placing::{Ready, Turn};
use crate::decide::preemption::{self, Candidate};
use crate::decide::{Change, PendingReason};
use crate::holdings;
use crate::ids::AttemptRef;
use crate::job::{JobEvent, JobState};
use crate::placement::Slots;
use crate::records::{AttemptRecord, NodeKind};
use crate::state::{Job, Stage};

/// How far the gang of a job that gives up its slots is.
enum Leaving {
    Saves {
        slots: usize,
    },
    /// There is none any more, with the newest attempt that there was.
    Left {
        last: Option<Arc<AttemptRecord>>,
    },
}

impl<'a> JobPass<'a, '_> {
    /// Lets the gang of a paused job save and leave.
    pub(super) fn pause(&mut self, job: &'a Job, index: usize, reason: &str) {
        let slots = match self.leave(job, index, "the job is paused") {
            Leaving::Saves { slots } => slots,
            Leaving::Left { .. } => 0,
        };
        let wait = PendingReason::Paused { reason: reason.to_owned(), slots };
        self.plan.wait(&job.record.id, wait);
    }

    /// Lets the gang of a preempted job save and leave; once it has, the job is in the queue again.
    pub(super) fn yield_place(&mut self, job: &'a Job, index: usize, why: &str) {
        let slots = match self.leave(job, index, why) {
            Leaving::Saves { slots } => slots,
            Leaving::Left { last } => {
                if self.is_gone(job) {
                    self.move_job(job, vec![JobEvent::Yield]);
                    self.idle = Some(Idle { job, index, last });
                }
                0
            }
        };
        self.plan.wait(&job.record.id, PendingReason::Preempted { slots });
    }

    /// Ends a job that has held slots for as long as it may, once its gang has saved and left. Whether it is at its limit.
    pub(super) fn end_in_time(&mut self, job: &'a Job, index: usize) -> bool {
        let now = self.nodes.seen.counted(self.nodes.now);
        if job.time_left(now).is_none_or(|left| left > Duration::ZERO)
            || matches!(job.record.state, JobState::Paused(_))
        {
            return false;
        }
        let minutes = job.record.spec.time_limit_minutes.unwrap_or(0);
        let over = job.ran(now).saturating_sub(Duration::from_secs(u64::from(minutes) * 60));
        match self.leave_since(job, index, "the job has run for as long as it may", over) {
            Leaving::Saves { slots } => {
                self.plan.wait(&job.record.id, PendingReason::TimeLimit { minutes, slots });
            }
            Leaving::Left { .. } => {
                let saved = job.stages.get(index).and_then(|stage| stage.newest_checkpoint());
                let from = saved.map_or_else(
                    || "it has no checkpoint".to_owned(),
                    |saved| format!("its newest checkpoint is of step {}", saved.step),
                );
                let reason = format!(
                    "it has run for {minutes} minutes, as long as it may (spec.timeLimitMinutes); {from}"
                );
                self.move_job(job, vec![JobEvent::Fail { reason }]);
            }
        }
        true
    }

    fn leave(&mut self, job: &'a Job, index: usize, why: &str) -> Leaving {
        let held_for = self.nodes.now.since(self.nodes.seen.held_since(&job.record.id));
        self.leave_since(job, index, why, held_for)
    }

    /// `held_for`: how long it has been to leave.
    fn leave_since(&mut self, job: &'a Job, index: usize, why: &str, held_for: Duration) -> Leaving {
        let Some(stage) = job.stages.get(index) else { return Leaving::Left { last: None } };
        let Some(running) = stage.active_attempt() else {
            return Leaving::Left { last: stage.attempt.clone() };
        };
        let over = match self.ending(job, index, running) {
            Some(ending) => Some((ending.reason, ending.kind)),
            None if held_for >= self.nodes.limits.leave_within => {
                let reason = format!("{why}, and its ranks have not saved within {} s", held_for.as_secs());
                Some((reason, EndKind::HandedOver))
            }
            None => None,
        };
        if let Some((reason, kind)) = over {
            return Leaving::Left { last: Some(Arc::new(self.close(stage, running, &reason, kind))) };
        }
        self.has_to_leave(job, running, why.to_owned());
        Leaving::Saves { slots: running.ranks.len() }
    }

    /// No rank of the job holds a slot of a node that could be given something else.
    fn is_gone(&self, job: &Job) -> bool {
        let of_job = |attempt: &AttemptRef| attempt.job == job.record.id;
        !self.decided.active.in_any_order().any(|attempt| attempt.attempt.job == job.record.id)
            && !self.nodes.reachable(NodeKind::Trainer).any(|(_, view)| view.running.iter().any(of_job))
    }

    /// How many jobs leave so that this one fits with `ranks` ranks, among all slots and in the limits that it is at: those that
    /// do so anyway, if that is enough, else such as have to make room for it too. `None` if it would not fit even without them.
    pub(super) fn make_room(
        &mut self,
        ready: &Ready<'a>,
        ranks: u32,
        turn: Turn,
        at: &[AtLimit<'a>],
    ) -> Option<usize> {
        let leaving = self.leaving();
        let some_leave = !leaving.is_empty() || !self.found.stopping.is_empty();
        if some_leave && self.would_fit(&leaving, ready, ranks, at) {
            return Some(leaving.len());
        }
        let mut candidates = self.candidates(ready.job, turn);
        let counts = |one: &Candidate<'_>| at.iter().any(|at| self.counts(at.limit, &one.attempt));
        candidates.retain(|one| at.is_empty() || counts(one));
        let chosen = preemption::choose(candidates, |chosen| {
            let gone: Vec<_> = chosen.iter().map(|one| &one.attempt).chain(&leaving).cloned().collect();
            self.would_fit(&gone, ready, ranks, at)
        });
        if chosen.is_empty() {
            return None;
        }
        let count = leaving.len().saturating_add(chosen.len());
        for victim in chosen {
            self.preempt(&victim, ready.job);
        }
        Some(count)
    }

    /// The gangs that are to leave and have not left.
    fn leaving(&self) -> Vec<Arc<AttemptRecord>> {
        let leaving = self.decided.leaving.keys().filter_map(|stage| self.decided.active.get(stage));
        leaving.cloned().collect()
    }

    /// The gang is to save and leave.
    pub(super) fn has_to_leave(&mut self, job: &'a Job, attempt: &AttemptRecord, why: String) {
        let device = holdings::device_of(self.nodes.state, attempt);
        if let (Some((queue, _)), Some(device)) = (self.queue_of(job), device) {
            self.about_to_leave.add(queue, device, slots_of(&attempt.ranks));
        }
        self.decided.leaving.insert(attempt.attempt.stage_ref(), why);
    }

    /// Whether the job fits with so many ranks once these have left, and whoever stops has stopped.
    fn would_fit(
        &mut self,
        gone: &[Arc<AttemptRecord>],
        ready: &Ready<'a>,
        ranks: u32,
        at: &[AtLimit<'a>],
    ) -> bool {
        let is_within = |at: &AtLimit<'a>| {
            at.used.saturating_sub(self.counted(at.limit, gone)).saturating_add(ranks) <= at.most
        };
        if !at.iter().all(is_within) {
            return false;
        }
        let mut slots = self.slots.clone();
        slots.assume_stopped();
        gone.iter().flat_map(|attempt| &attempt.ranks).for_each(|rank| slots.give_back(rank));
        self.let_back(gone, ready, &mut slots);
        self.in_slots(slots, |pass| matches!(pass.place(ready, &[ranks]), Ok(Ok(_))))
    }

    /// Takes the slots that go to others than the job once these have left: what their queues are sure of then goes to who waits
    /// there, and to themselves if they can do with that.
    fn let_back(&mut self, gone: &[Arc<AttemptRecord>], ready: &Ready<'a>, slots: &mut Slots) {
        if !self.nodes.limits.quotas.queues.guarantee() {
            return;
        }
        let state = self.nodes.state;
        let own = self.queue_of(ready.job).map(|(name, _)| name);
        let mut freed: BTreeMap<_, Vec<Wants<'a>>> = BTreeMap::new();
        for attempt in gone {
            let Some(job) = state.job(&attempt.attempt.job) else { continue };
            let Some((name, queue)) = self.queue_of(job).filter(|(name, _)| Some(*name) != own) else {
                continue;
            };
            let Some(device) = holdings::device_of(state, attempt) else { continue };
            let of_queue = freed.entry((name, device, queue.guaranteed_of(device))).or_default();
            let comes_back = !matches!(job.record.state, JobState::Paused(_));
            of_queue.extend(Wants::of(job, &attempt.attempt).filter(|_| comes_back));
        }
        for ((name, device, guaranteed), back) in freed {
            let held = self
                .in_use
                .queues
                .of(name, device)
                .saturating_sub(self.counted(Limit::Queue(name, device), gone));
            let mut left = guaranteed.saturating_sub(held);
            if left == 0 {
                continue;
            }
            let waiting = self.wanting.get(&(name, device)).cloned().unwrap_or_default();
            for (one, waits) in
                waiting.iter().map(|one| (one, true)).chain(back.iter().map(|one| (one, false)))
            {
                let sizes: Vec<u32> = one.sizes.iter().copied().filter(|size| *size <= left).collect();
                // One that has been placed meanwhile waits no more.
                if sizes.is_empty() || waits && self.decided.active.contains(&one.stage.id) {
                    continue;
                }
                let place =
                    self.in_slots(slots.clone(), |pass| pass.place_anywhere(one.job, one.stage, &sizes));
                let ranks = place.unwrap_or_default();
                ranks.iter().for_each(|rank| slots.take(rank));
                left = left.saturating_sub(slots_of(&ranks));
            }
        }
    }

    /// Whether what the attempt holds counts against the limit, until it has left.
    fn counts(&self, limit: Limit<'a>, attempt: &AttemptRecord) -> bool {
        let state = self.nodes.state;
        let Some(job) = state.job(&attempt.attempt.job) else { return false };
        match limit {
            Limit::Tenant(tenant) => job.record.spec.tenant == tenant,
            Limit::Queue(queue, device) => {
                self.queue_of(job).is_some_and(|(name, _)| name == queue)
                    && holdings::device_of(state, attempt) == Some(device)
            }
            // Of those that leave for the job nothing counts.
            Limit::Sure(..) => false,
        }
    }

    fn counted(&self, limit: Limit<'a>, attempts: &[Arc<AttemptRecord>]) -> u32 {
        let counted = attempts.iter().filter(|attempt| self.counts(limit, attempt));
        counted.map(|attempt| slots_of(&attempt.ranks)).sum()
    }

    /// Looks at what would be if these were the slots.
    pub(super) fn in_slots<T>(&mut self, slots: Slots, look: impl FnOnce(&Self) -> T) -> T {
        let now = std::mem::replace(&mut self.slots, slots);
        let seen = look(self);
        self.slots = now;
        seen
    }

    /// Gangs whose slots the job may have: those of lower classes, those that were placed before its turn, and if it asks for
    /// what its queue is sure of, those that have borrowed. What another queue is sure of is left to that.
    fn candidates(&self, job: &Job, turn: Turn) -> Vec<Candidate<'a>> {
        let quotas = &self.nodes.limits.quotas;
        let classes = &quotas.classes;
        let sure =
            holdings::sure(self.nodes.state, quotas, self.decided.active.in_any_order().map(Arc::as_ref));
        let queue_of = |job: &Job| quotas.queues.of(&job.record.spec).map(|(name, _)| name);
        let taker = job.record.spec.priority;
        // Without classes, which most clusters do without, few have to be looked at.
        let may_take = classes.preempts(taker) || turn == Turn::Sure;
        let may = |attempt: &Arc<AttemptRecord>| {
            if !may_take && attempt.ahead_of.as_ref() != Some(&job.record.id) {
                return None;
            }
            let holder = self.nodes.state.job(&attempt.attempt.job)?;
            let stage = self.nodes.state.stage(&attempt.attempt.stage_ref())?;
            // One that was just resumed, before its ranks had left, is in the queue by its record, and has its place.
            let runs = matches!(
                holder.record.state,
                JobState::Queued | JobState::Placing { .. } | JobState::Running { .. }
            );
            let is_known = !self.nodes.is_halted(&holder.record.id) && stage.active_shared() == Some(attempt);
            let priority = holder.record.spec.priority;
            let ahead = attempt.ahead_of.as_ref() == Some(&job.record.id);
            let class = classes.of(priority).map_or(i32::MIN, |(lowest, _)| lowest);
            let lent =
                queue_of(holder) != queue_of(job) && turn == Turn::Sure && classes.is_preemptible(priority);
            let may = match queue_of(holder) == queue_of(job) {
                true => ahead || classes.may_preempt(taker, priority),
                false if sure.contains(&stage.id) => false,
                false => ahead || lent || classes.may_preempt(taker, priority),
            };
            // It would come back before this one where what it gives back of a limit lets another go first that does not fit.
            let of_another = self
                .first_at_limit
                .iter()
                .any(|(limit, first)| first.job.record.id != job.record.id && self.counts(*limit, attempt));
            (runs && is_known && may && !of_another).then(|| Candidate {
                job: holder,
                attempt: attempt.clone(),
                // Those of its own queue would only take back in their turn what that is sure of.
                class: if ahead || lent { i32::MIN } else { class },
                cost: preemption::cost(attempt.ranks.len(), self.unsaved_millis(holder, stage, attempt)),
            })
        };
        let not_leaving =
            |attempt: &&Arc<AttemptRecord>| !self.decided.leaving.contains_key(&attempt.attempt.stage_ref());
        self.decided.active.in_any_order().filter(not_leaving).filter_map(may).collect()
    }

    /// How long the gang has worked since its last checkpoint, at its present pace; 0 if that is not known.
    fn unsaved_millis(&self, job: &Job, stage: &Stage, attempt: &AttemptRecord) -> u64 {
        let Some(gang) = self.nodes.gang(&attempt.attempt) else { return 0 };
        let spec = job.stage_index(stage.id.stage.as_str()).and_then(|index| job.stage_spec(index));
        let saved = stage.newest_checkpoint().map_or(0, |checkpoint| checkpoint.step);
        let steps = gang.progress.step.saturating_sub(saved);
        let lost = spec.and_then(|spec| gang.progress.time_for(steps, spec.train.global_batch));
        lost.map_or(0, |lost| u64::try_from(lost.as_millis()).unwrap_or(u64::MAX))
    }

    fn preempt(&mut self, victim: &Candidate<'a>, by: &Job) {
        let id = victim.job.record.id.clone();
        let slots = victim.attempt.ranks.len();
        let change = Change::JobPreempted { job: id.clone(), by: by.record.id.clone(), slots };
        self.plan.change(change);
        let placed = victim.job.current_stage().filter(|_| victim.job.record.state == JobState::Queued);
        let place = placed.map(|stage| JobEvent::Place { stage });
        let preempt = JobEvent::Preempt { by: by.record.id.clone() };
        self.move_job(victim.job, place.into_iter().chain([preempt]).collect());
        let why = preemption::makes_room(victim.job, Some(by));
        self.has_to_leave(victim.job, &victim.attempt, why);
        self.plan.wait(&id, PendingReason::Preempted { slots });
    }
}
