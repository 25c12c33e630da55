//! The pass over the jobs: of those that are due each is looked at, and those that lack slots are gone through in their order.

use std::sync::Arc;

use crate::decide::jobs::JobPass;
use crate::decide::kept::classes::Classes;
use crate::decide::kept::{Kept, KeptJob, Place, Told, is_watched};
use crate::decide::passes::{Decided, Idle};
use crate::decide::placing::{Prepared, Ready, Turn};
use crate::decide::{DecideContext, PlanDraft};
use crate::ids::{IdSet, StageRef, Timestamp};

impl Kept {
    /// Ends what cannot go on, and places what waits, of the jobs that are due.
    pub(super) fn decide_jobs(&mut self, nodes: &DecideContext<'_>, plan: &mut PlanDraft) -> Decided {
        let Self { jobs, classes, waits, .. } = self;
        let start = (self.active.clone(), self.slots.clone(), self.in_use.clone());
        let mut pass = JobPass::new(nodes, plan, start, self.full_tenants.clone());
        nodes.holds_until();
        let mut idle: Vec<(usize, Idle<'_>)> = Vec::new();
        for (at, kept) in jobs.iter_mut().enumerate() {
            kept.looked_at = kept.is_shaken() || nodes.now >= kept.until;
            if !kept.looked_at {
                continue;
            }
            let Some(job) = nodes.state.job(&kept.job.record.id) else { continue };
            let before = pass.extent();
            idle.extend(pass.decide_job(job).map(|idle| (at, idle)));
            // What was decided of it last time may not have come about: whoever was near it is looked at too.
            kept.due = kept.is_shaken();
            kept.stirs = pass.extent() != before;
            kept.place = Place::Elsewhere;
            kept.until = if is_watched(job) { Timestamp(0) } else { nodes.holds_until() };
        }
        pass.begin_placing();
        let mut ready: Vec<(usize, Ready<'_>)> = Vec::new();
        for (at, idle) in idle {
            let Some(kept) = jobs.get_mut(at) else { continue };
            let (before, index) = (pass.extent(), idle.index);
            nodes.holds_until();
            match pass.prepare(idle) {
                Prepared::Ready(one) => {
                    let class = (!kept.stirs && !is_watched(one.job)).then(|| classes.of(nodes, &one));
                    kept.place = Place::Ready(class.flatten());
                    ready.push((at, one));
                }
                Prepared::Lacks(needed) => kept.place = Place::Lacks { index, needed, made: false },
                Prepared::Waits => {}
            }
            kept.until = kept.until.min(nodes.holds_until());
            kept.stirs |= pass.extent() != before;
        }
        if nodes.limits.quotas.queues.guarantee() {
            pass.place_on_sure(&mut ready);
        }
        place_ready(nodes, &mut pass, jobs, classes, waits, ready);
        let small = jobs.iter().filter(|kept| kept.is_small);
        pass.grow(small.filter_map(|kept| nodes.state.job(&kept.job.record.id)));
        pass.decided
    }
}

/// Gives slots to the jobs that lack nothing else, in order, as far as there are any, and tells the others what they wait for.
/// `ready`: those that have been looked at.
fn place_ready<'a>(
    nodes: &DecideContext<'a>,
    pass: &mut JobPass<'a, '_>,
    jobs: &mut [KeptJob],
    classes: &mut Classes,
    waits: &mut Told,
    ready: Vec<(usize, Ready<'a>)>,
) {
    let failed: IdSet<&StageRef> = nodes.seen.failures.stages().collect();
    let mut ready = ready.into_iter().peekable();
    classes.begin();
    for (at, kept) in jobs.iter_mut().enumerate() {
        let looked_at = ready.next_if(|(of, _)| *of == at).map(|(_, ready)| ready);
        let Place::Ready(class) = kept.place else { continue };
        // Who was looked at and is not ready any more has been given what its queue is sure of.
        if kept.looked_at && looked_at.is_none() {
            continue;
        }
        let Some(stage) = kept.job.current_stage().and_then(|index| kept.job.stages.get(index)) else {
            continue;
        };
        let is_alone = failed.contains(&stage.id) || pass.found.stopping.contains(&stage.id);
        let class = class.filter(|_| !is_alone);
        if let Some(told) = class.and_then(|class| classes.told(class)) {
            kept.tell(Some(told), waits);
            continue;
        }
        let Some(one) = looked_at.or_else(|| prepared(nodes, pass, kept)) else {
            kept.stirs = true;
            continue;
        };
        let before = pass.standing();
        pass.place_or_wait(&one, Turn::Shared);
        let is_as_before = pass.standing() == before;
        let Some(wait) = pass.plan.waits.remove(&kept.job.record.id) else { continue };
        let wait = match class {
            Some(class) if is_as_before => classes.tell(class, wait),
            Some(_) | None => Arc::new(wait),
        };
        if !is_as_before {
            classes.begin();
        }
        kept.tell(Some(wait), waits);
    }
}

/// The job as it was ready when it was looked at: nothing of that has changed since.
fn prepared<'a>(nodes: &DecideContext<'a>, pass: &mut JobPass<'a, '_>, kept: &KeptJob) -> Option<Ready<'a>> {
    let job = nodes.state.job(&kept.job.record.id)?;
    let index = job.current_stage()?;
    let last = job.stages.get(index)?.attempt.clone();
    match pass.prepare(Idle { job, index, last }) {
        Prepared::Ready(ready) => Some(ready),
        Prepared::Lacks(_) | Prepared::Waits => None,
    }
}
