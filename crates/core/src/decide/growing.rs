//! Gangs with fewer ranks than their jobs ask for are given more once there are slots for them that nobody waits for.
//!
//! Such a gang saves, leaves, and is placed anew as any job that lacks nothing but slots: it keeps its place in the queue, so
//! whoever goes before it comes first.

use std::sync::Arc;

use crate::decide::PendingReason;
use crate::decide::jobs::JobPass;
use crate::decide::passes::slots_of;
use crate::decide::placing::Ready;
use crate::job::JobState;
use crate::placement;
use crate::processor;
use crate::records::{AttemptRecord, RankPlacement};
use crate::spec::StageSpec;
use crate::state::Job;

/// Work that is left, in waits before a gang grows, without which leaving for more ranks does not pay.
const WORTH: u32 = 2;

impl<'a> JobPass<'a, '_> {
    /// Has gangs of these jobs leave that can come back with more ranks. Nobody else may wait for those slots.
    pub(super) fn grow(&mut self, jobs: impl Iterator<Item = &'a Job>) {
        if self.first_waiting.is_some() {
            return;
        }
        for job in jobs {
            let Some((ready, attempt)) = self.may_grow(job) else { continue };
            if self.first_of_limits(&ready).next().is_some() {
                continue;
            }
            let Some(ranks) = self.larger_place(&ready, &attempt) else { continue };
            let now = slots_of(&attempt.ranks);
            attempt.ranks.iter().for_each(|rank| self.slots.give_back(rank));
            ranks.iter().for_each(|rank| self.slots.take(rank));
            let wait = PendingReason::Grows { ranks: slots_of(&ranks), now };
            self.has_to_leave(job, &attempt, format!("the job {wait}"));
            self.plan.wait(&job.record.id, wait);
        }
    }

    /// What the job would ask for with more ranks, if it runs with fewer than it may have, does not leave already, and has enough to
    /// do.
    fn may_grow(&self, job: &'a Job) -> Option<(Ready<'a>, Arc<AttemptRecord>)> {
        if !matches!(job.record.state, JobState::Running { .. }) || self.nodes.is_halted(&job.record.id) {
            return None;
        }
        let index = job.current_stage()?;
        let (stage, spec) = (job.stages.get(index)?, job.stage_spec(index)?);
        let attempt = self.decided.active.get(&stage.id)?;
        // Of most jobs no more has to be looked at.
        if slots_of(&attempt.ranks) >= job.record.spec.resources.gpus
            || stage.active_attempt() != Some(&**attempt)
            || self.decided.leaving.contains_key(&stage.id)
            || !self.is_worth_it(spec, attempt)
        {
            return None;
        }
        let init_from = self.nodes.state.init_checkpoint(job, index).ok()?;
        if processor::required(&job.record.spec, self.nodes.state, stage, init_from).is_some() {
            return None;
        }
        let sizes = placement::gang_sizes(&job.record.spec, spec);
        let device = self.needs_of(job).needs.device();
        let ready = Ready { job, index, stage, last: None, init_from, required: None, sizes, device };
        Some((ready, attempt.clone()))
    }

    /// Whether the gang has run for long enough, and has enough left to do at its present pace.
    fn is_worth_it(&self, spec: &StageSpec, attempt: &AttemptRecord) -> bool {
        let wait = self.nodes.limits.grow_after;
        let began = self.nodes.seen.began(&attempt.attempt);
        let Some(gang) = self.nodes.gang(&attempt.attempt).filter(|gang| gang.is_alive()) else {
            return false;
        };
        let steps = spec.train.steps.saturating_sub(gang.progress.step);
        let left = gang.progress.time_for(steps, spec.train.global_batch);
        self.nodes.now.since(began) >= wait && left.is_some_and(|left| left >= wait.saturating_mul(WORTH))
    }

    /// Where the gang would be placed once it has left, if that is with more ranks.
    fn larger_place(&mut self, ready: &Ready<'a>, attempt: &AttemptRecord) -> Option<Vec<RankPlacement>> {
        self.in_use.uncount(self.nodes, ready.job, attempt);
        let sizes = self.allowed_sizes(ready);
        self.in_use.count(self.nodes, ready.job, attempt);
        let mut slots = self.slots.clone();
        attempt.ranks.iter().for_each(|rank| slots.give_back(rank));
        let sizes = sizes.ok()?;
        let place = self.in_slots(slots, |pass| pass.place_anywhere(ready.job, ready.stage, &sizes).ok());
        place.filter(|ranks| ranks.len() > attempt.ranks.len())
    }
}
