//! Which jobs and nodes a decision has to look at.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::decide::jobs::node_slots;
use crate::decide::kept::{Kept, KeptJob, KeptNode, active_of, firsts, order_of, stir_running};
use crate::decide::{DecideContext, KnownNode, NEVER};
use crate::ids::{IdMap, IdSet, JobId, Timestamp};
use crate::records::{AttemptRecord, NodeKind};
use crate::state::{ChangedJobs, Job};

impl Kept {
    /// The same, after what has happened since; none if more has changed than single jobs and what single nodes do.
    pub(super) fn followed(mut self, nodes: &DecideContext<'_>, changed: &ChangedJobs) -> Option<Self> {
        let is_for_these = self.limits == *nodes.limits && self.since == nodes.seen.since;
        let follows = is_for_these
            && follow_nodes(nodes, NodeKind::Trainer, &mut self.trainers, &mut self.run_at)
            // They train nothing.
            && follow_nodes(nodes, NodeKind::Curator, &mut self.curators, &mut IdMap::default())
            && self.gangs.len() <= nodes.seen.gangs.len();
        if !follows {
            return None;
        }
        self.follow_times(nodes);
        let spoken = self.follow_gangs(nodes);
        self.follow_jobs(nodes, changed);
        for job in spoken.iter().chain(changed.jobs()) {
            stir_running(&mut self.trainers, &self.run_at, job);
        }
        let has_marks =
            |id| nodes.state.job(id).is_some_and(|job| job.stages.iter().any(|stage| stage.marks.is_some()));
        if changed.jobs().any(has_marks) {
            // Others may train on what was marked.
            for kept in self.jobs.iter().filter(|kept| !kept.job.facts().is_plain) {
                stir_running(&mut self.trainers, &self.run_at, &kept.job.record.id);
            }
        }
        self.follow_slots(nodes);
        Some(self)
    }

    /// Of some stages it is not known any more since when they are as they are: what rests on time is asked anew.
    fn follow_times(&mut self, nodes: &DecideContext<'_>) {
        let forgotten_times = nodes.seen.forgotten_times();
        if std::mem::replace(&mut self.forgotten_times, forgotten_times) != forgotten_times {
            let of_jobs = self.jobs.iter_mut().map(|kept| &mut kept.until);
            let all = of_jobs.chain(self.trainers.iter_mut().map(|kept| &mut kept.until));
            all.filter(|until| **until != NEVER).for_each(|until| *until = Timestamp(0));
        }
    }

    /// Jobs of whose gangs something was heard but that they step.
    fn follow_gangs(&mut self, nodes: &DecideContext<'_>) -> IdSet<JobId> {
        let mut spoken = IdSet::default();
        for (stage, gang) in &nodes.seen.gangs {
            let known = self.gangs.get_mut(stage);
            if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, gang)) {
                continue;
            }
            if known.as_ref().is_none_or(|known| !known.says_the_same(gang)) {
                spoken.insert(stage.job.clone());
            }
            match known {
                Some(known) => *known = gang.clone(),
                None => {
                    self.gangs.insert(stage.clone(), gang.clone());
                }
            }
        }
        for id in &spoken {
            if let Some(kept) = self.place_of(id).and_then(|at| self.jobs.get_mut(at)) {
                kept.due = true;
            }
        }
        spoken
    }

    /// Takes over the jobs that have changed.
    fn follow_jobs(&mut self, nodes: &DecideContext<'_>, changed: &ChangedJobs) {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for id in changed.jobs() {
            let job = nodes.state.job_shared(id).filter(|job| !job.record.state.is_terminal());
            let at = self.place_of(id);
            let before = at.and_then(|at| self.jobs.get(at)).map(|kept| kept.job.clone());
            self.follow_attempts(nodes, before.as_deref(), job.map(Arc::as_ref));
            match (at.and_then(|at| self.jobs.get_mut(at)), job) {
                (Some(kept), Some(job)) if kept.order() == job.order() => kept.take(job),
                (Some(_), Some(job)) => {
                    gone.extend(at);
                    new.push(KeptJob::new(job));
                }
                (None, Some(job)) => new.push(KeptJob::new(job)),
                (Some(_), None) => gone.extend(at),
                (None, None) => {}
            }
            let unserved = before.iter().filter(|_| job.is_none()).flat_map(|job| &job.stages);
            unserved.for_each(|stage| {
                self.serving.serve(nodes, &stage.id, false);
            });
        }
        self.remove(gone);
        if !new.is_empty() {
            self.insert(new);
        }
    }

    /// Takes out the jobs at these places.
    fn remove(&mut self, mut places: Vec<usize>) {
        if places.is_empty() {
            return;
        }
        places.sort_unstable();
        let (mut places, mut at) = (places.into_iter().peekable(), 0);
        let gone = self.jobs.extract_if(.., |_| {
            let goes = places.next_if_eq(&at).is_some();
            at += 1;
            goes
        });
        for kept in gone {
            self.wants_less |= kept.wants.is_some();
            self.waits.tell(&kept.job.record.id, None);
            self.orders.remove(&kept.job.record.id);
        }
    }

    /// Takes in jobs, each at its place.
    fn insert(&mut self, mut new: Vec<KeptJob>) {
        self.orders.extend(new.iter().map(|kept| order_of(&kept.job)));
        new.sort_by(|a, b| a.order().cmp(&b.order()));
        let (last, first) = (self.jobs.last().map(KeptJob::order), new.first().map(KeptJob::order));
        // Who has just come is the last, unless it has priority.
        let is_in_order = last < first;
        self.jobs.append(&mut new);
        if !is_in_order {
            self.jobs.sort_by(|a, b| a.order().cmp(&b.order()));
        }
    }

    fn follow_attempts(&mut self, nodes: &DecideContext<'_>, before: Option<&Job>, now: Option<&Job>) {
        let with_job = |job| active_of(job).map(move |attempt| (job, attempt));
        let before: Vec<(&Job, &Arc<AttemptRecord>)> = before.into_iter().flat_map(with_job).collect();
        let now: Vec<(&Job, &Arc<AttemptRecord>)> = now.into_iter().flat_map(with_job).collect();
        let mut both = before.iter().zip(&now);
        if before.len() == now.len() && both.all(|((_, old), (_, new))| Arc::ptr_eq(old, new)) {
            return;
        }
        for (job, attempt) in before {
            self.in_use.uncount(nodes, job, attempt);
            let stage = attempt.attempt.stage_ref();
            self.active.remove(&stage);
            for rank in firsts(attempt) {
                let at = self.trainer_at.get(&rank.node).copied();
                if let Some(kept) = at.and_then(|at| self.trainers.get_mut(at)) {
                    kept.gangs.retain(|known| *known != stage);
                    kept.stirred = true;
                }
            }
        }
        for (job, attempt) in now {
            self.put_active(nodes, job, attempt);
            super::stir(&mut self.trainers, &self.trainer_at, attempt);
        }
    }

    /// Works out again which slots of the stirred nodes are free.
    fn follow_slots(&mut self, nodes: &DecideContext<'_>) {
        let stirred = nodes.known(NodeKind::Trainer).iter().zip(&self.trainers);
        for ((record, view), kept) in stirred.filter(|(_, kept)| kept.stirred && kept.takes_work) {
            let Some(view) = view else { continue };
            let gangs = kept.gangs.iter().filter_map(|stage| self.active.get(stage));
            let ranks = gangs.flat_map(|attempt| &attempt.ranks).filter(|rank| rank.node == record.id);
            let taken: Vec<u32> = ranks.map(|rank| rank.device_index).collect();
            self.slots.put(&record.id, node_slots(nodes, record, view, &self.active, &taken));
        }
    }
}

/// Takes over what is seen of nodes; false if one has come or gone, or is to the others what it was not before.
fn follow_nodes(
    nodes: &DecideContext<'_>,
    kind: NodeKind,
    kept: &mut [KeptNode],
    run_at: &mut IdMap<JobId, BTreeSet<usize>>,
) -> bool {
    let known = nodes.known(kind);
    let follow = |(at, ((_, view), kept)): (usize, (&KnownNode<'_>, &mut KeptNode))| {
        let is_reachable = view.is_some_and(|view| nodes.is_reachable(view));
        if is_reachable != kept.is_reachable {
            return false;
        }
        match (view, &kept.view) {
            (Some(view), Some(before)) if view.shares_facts_with(before) => true,
            (Some(view), Some(before)) if view.is_as(before) => {
                for attempt in &before.running {
                    if let Some(places) = run_at.get_mut(&attempt.job) {
                        places.remove(&at);
                        if places.is_empty() {
                            run_at.remove(&attempt.job);
                        }
                    }
                }
                for attempt in &view.running {
                    run_at.entry(attempt.job.clone()).or_default().insert(at);
                }
                kept.view = Some((*view).clone());
                kept.stirred = true;
                true
            }
            (None, None) => true,
            (Some(_), Some(_) | None) | (None, Some(_)) => false,
        }
    };
    known.len() == kept.len() && known.iter().zip(kept).enumerate().all(follow)
}
