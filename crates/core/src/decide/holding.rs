//! Jobs that give up their slots while they stay open: paused by a person, or making room for a job that goes first.
//!
//! Their gangs are told to save and leave, as those of a node that drains are; what a gang does not save within
//! [`Limits::leave_within`](crate::decide::Limits) is lost with it.

use std::sync::Arc;
use std::time::Duration;

use crate::decide::jobs::{EndKind, JobPass};
use crate::decide::passes::Idle;
use crate::decide::placing::Turn;
use crate::decide::preemption::{self, Candidate};
use crate::decide::{Change, PendingReason};
use crate::holdings;
use crate::ids::AttemptRef;
use crate::job::{JobEvent, JobState};
use crate::placement::Slots;
use crate::processor::GangKind;
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
                    self.idle.push(Idle { job, index, last });
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
        self.decided.leaving.insert(stage.id.clone(), why.to_owned());
        Leaving::Saves { slots: running.ranks.len() }
    }

    /// No rank of the job holds a slot of a node that could be given something else.
    fn is_gone(&self, job: &Job) -> bool {
        let of_job = |attempt: &AttemptRef| attempt.job == job.record.id;
        !self.decided.active.in_any_order().any(|attempt| attempt.attempt.job == job.record.id)
            && !self.nodes.reachable(NodeKind::Trainer).any(|(_, view)| view.running.iter().any(of_job))
    }

    /// How many jobs leave so that this one fits with `ranks` ranks: those that do so anyway, if that is enough, else such as
    /// have to make room for it too. `None` if it would not fit even without them.
    pub(super) fn make_room(
        &mut self,
        job: &'a Job,
        stage: &Stage,
        ranks: u32,
        required: Option<&GangKind>,
        turn: Turn,
    ) -> Option<usize> {
        let leaving: Vec<_> = self.decided.leaving.keys().cloned().collect();
        let mut slots = self.slots.clone();
        slots.assume_stopped();
        let attempts = leaving.iter().filter_map(|stage| self.decided.active.get(stage));
        attempts.flat_map(|attempt| &attempt.ranks).for_each(|rank| slots.give_back(rank));
        let some_leave = !leaving.is_empty() || !self.found.stopping.is_empty();
        if some_leave && self.would_fit(slots.clone(), job, stage, ranks, required) {
            return Some(leaving.len());
        }
        let candidates = self.candidates(job, turn);
        let chosen = preemption::choose(candidates, |chosen| {
            let mut slots = slots.clone();
            chosen.iter().flat_map(|one| &one.attempt.ranks).for_each(|rank| slots.give_back(rank));
            self.would_fit(slots, job, stage, ranks, required)
        });
        if chosen.is_empty() {
            return None;
        }
        let count = leaving.len().saturating_add(chosen.len());
        for victim in chosen {
            self.preempt(&victim, job);
        }
        Some(count)
    }

    fn would_fit(
        &mut self,
        slots: Slots,
        job: &'a Job,
        stage: &Stage,
        ranks: u32,
        required: Option<&GangKind>,
    ) -> bool {
        self.in_slots(slots, |pass| match required {
            Some(gang) => matches!(pass.place_like(job, gang, &stage.id), Ok(Ok(_))),
            None => pass.place_anywhere(job, stage, &[ranks]).is_ok(),
        })
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
        let may = |attempt: &Arc<AttemptRecord>| {
            let holder = self.nodes.state.job(&attempt.attempt.job)?;
            let stage = self.nodes.state.stage(&attempt.attempt.stage_ref())?;
            let runs = matches!(holder.record.state, JobState::Placing { .. } | JobState::Running { .. });
            let is_known = !self.nodes.is_halted(&holder.record.id) && stage.active_shared() == Some(attempt);
            let priority = holder.record.spec.priority;
            let ahead = attempt.ahead_of.as_ref() == Some(&job.record.id);
            let class = classes.of(priority).map_or(i32::MIN, |(lowest, _)| lowest);
            let may = match queue_of(holder) == queue_of(job) {
                true => ahead || classes.may_preempt(taker, priority),
                false if sure.contains(&stage.id) => false,
                false => {
                    let lent = turn == Turn::Sure && classes.is_preemptible(priority);
                    ahead || lent || classes.may_preempt(taker, priority)
                }
            };
            (runs && is_known && may).then(|| Candidate {
                job: holder,
                attempt: attempt.clone(),
                class: if ahead { i32::MIN } else { class },
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
        self.move_job(victim.job, vec![JobEvent::Preempt { by: by.record.id.clone() }]);
        let why = preemption::makes_room(victim.job, Some(by));
        self.decided.leaving.insert(victim.attempt.attempt.stage_ref(), why);
        self.plan.wait(&id, PendingReason::Preempted { slots });
    }
}
