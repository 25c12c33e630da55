//! Jobs that have what they need but slots are given those, or wait for them.
//!
//! First those whose queues hold no more than they are sure of with them, then all others, in order.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::jobs::{JobPass, placing};
use crate::decide::passes::{Asks, AtLimit, FirstWaiting, Idle, Limit, Needs, Wants, slots_of};
use crate::decide::{Change, PendingReason};
use crate::holdings::device_of;
use crate::ids::{AttemptRef, IdSet, JobId, NodeId, StageRef, Timestamp};
use crate::placement::{self, InsufficientCapacity, NodeNeeds, Slots};
use crate::precision::{self, StagePrecision};
use crate::processor::{self, GangKind, GangPart};
use crate::queues::{DEFAULT_QUEUE, Packing, Queue};
use crate::quotas::{QueueOrder, Quotas};
use crate::records::{AttemptRecord, AttemptState, CheckpointRecord, NodeKind, RankPlacement, Record};
use crate::state::{ClusterState, Job, Stage};

/// Which of its queue's slots a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those that the queue is sure of: it takes them back from whoever has borrowed them.
    Sure,
    /// Any that are free.
    Shared,
}

/// A job that lacks nothing but slots.
pub(super) struct Ready<'a> {
    pub job: &'a Job,
    pub index: usize,
    pub stage: &'a Stage,
    pub last: Option<Arc<AttemptRecord>>,
    pub init_from: Option<&'a CheckpointRecord>,
    /// The gang that it has to be like.
    pub required: Option<&'a GangKind>,
    /// Ranks that it may have, largest first.
    pub sizes: Vec<u32>,
    /// Kind of device that it is on, if only one will do.
    pub device: Option<&'a str>,
}

/// What an idle job comes to before any slots are given away.
pub(super) enum Prepared<'a> {
    Ready(Ready<'a>),
    /// Its current stage needs so many pairs before training starts, and has fewer.
    Lacks(u64),
    /// It waits for something else.
    Waits,
}

/// What the passes have come to, as far as it bears on whom slots are given next: as long as it is the same, jobs that are alike in
/// all that matters there are told the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    extent: (usize, usize),
    first_waiting: Option<(JobId, bool)>,
    at_limits: usize,
}

impl<'a> JobPass<'a, '_> {
    /// Every attempt that cannot go on has ended.
    pub(super) fn begin_placing(&mut self) {
        self.found.stopping = self.slots.stopping().into_iter().cloned().collect();
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            extent: self.extent(),
            first_waiting: self.first_waiting.map(|first| (first.job.record.id.clone(), first.comes)),
            at_limits: self.first_at_limit.len(),
        }
    }

    /// Those whose turn it is with what their queues are sure of get slots, or wait for them; the others stay, in order.
    pub(super) fn place_on_sure(&mut self, ready: &mut Vec<(usize, Ready<'a>)>) {
        for (_, one) in &*ready {
            let Some(((name, queue), device)) = self.queue_of(one.job).zip(one.device) else { continue };
            let guaranteed = queue.guaranteed_of(device);
            let sizes: Rc<[u32]> = one.sizes.iter().copied().filter(|size| *size <= guaranteed).collect();
            if !sizes.is_empty() {
                let wants = Wants { job: one.job, stage: one.stage, sizes };
                Rc::make_mut(self.wanting.entry((name, device)).or_default()).push(wants);
            }
        }
        // A queue keeps its order: behind one that has to borrow nobody of it asks for what the queue is sure of.
        let mut borrowing = BTreeSet::new();
        let queues: BTreeSet<_> =
            ready.iter().map(|(_, ready)| self.queue_of(ready.job).map(|(name, _)| name)).collect();
        let alone = queues.len() == 1;
        ready.retain_mut(|(_, ready)| !self.place_on_sure_slots(ready, alone, &mut borrowing));
    }

    fn quotas(&self) -> &'a Quotas {
        &self.nodes.limits.quotas
    }

    pub(super) fn queue_of(&self, job: &'a Job) -> Option<(&'a str, &'a Queue)> {
        self.quotas().queues.of(&job.record.spec)
    }

    pub(super) fn needs_of(&self, job: &'a Job) -> Rc<Needs<'a>> {
        let spec = &job.record.spec;
        let queue = self.queue_of(job).map(|(name, _)| name);
        let asks = Asks {
            preset: spec.model.preset,
            queue,
            device: spec.resources.asked_device(),
            labels: &spec.resources.node_labels,
            topology: spec.resources.topology.as_ref(),
            memory_bytes: job.device_bytes,
        };
        let mut known = self.found.needs.borrow_mut();
        known.entry(asks).or_insert_with(|| Rc::new(self.find_needs(job))).clone()
    }

    fn find_needs(&self, job: &'a Job) -> Needs<'a> {
        let needs = NodeNeeds::of(job, self.quotas(), self.nodes.state);
        if needs.are_none() {
            return Needs { needs, met_by: None, are_met: !self.slots.is_empty() };
        }
        let trainers = self.nodes.known(NodeKind::Trainer).iter().map(|(node, _)| *node);
        let met_by: IdSet<&NodeId> =
            trainers.filter(|node| needs.are_met_by(node)).map(|node| &node.id).collect();
        let are_met = self.slots.nodes().any(|node| met_by.contains(node));
        Needs { needs, met_by: Some(met_by), are_met }
    }

    /// Whether the job was in its turn with what its queue is sure of. A gang that may be of several sizes borrows at once if
    /// only jobs of its own queue wait, and otherwise leaves what it would borrow to those whose it is.
    fn place_on_sure_slots(
        &mut self,
        ready: &mut Ready<'a>,
        alone: bool,
        borrowing: &mut BTreeSet<(&'a str, &'a str)>,
    ) -> bool {
        let Some((name, queue)) = self.queue_of(ready.job) else { return false };
        let Some(device) = ready.device else { return false };
        // What leaves makes room for those whose turn it is, before anybody else counts on it.
        let leaves = self.about_to_leave.of(name, device);
        let held = self.in_use.queues.of(name, device).saturating_sub(leaves);
        let left = queue.guaranteed_of(device).saturating_sub(held);
        let least = ready.sizes.last().copied().unwrap_or(u32::MAX);
        if least > left || borrowing.contains(&(name, device)) {
            // One that is larger than a limit holds up nobody.
            if self.limits_of(ready).all(|(_, most)| least <= most) {
                borrowing.insert((name, device));
            }
            return false;
        }
        if !alone {
            ready.sizes.retain(|size| *size <= left);
        }
        self.place_or_wait(ready, Turn::Sure);
        true
    }

    /// What the job asks for, unless it waits for something else.
    pub(super) fn prepare(&mut self, idle: Idle<'a>) -> Prepared<'a> {
        let Idle { job, index, last } = idle;
        let Some((stage, spec)) = job.stages.get(index).zip(job.stage_spec(index)) else {
            return Prepared::Waits;
        };
        if !self.decided.full_tenants.is_empty()
            && let Some((stored_bytes, limit_bytes)) = self.decided.full_tenants.get(&job.record.spec.tenant)
            && !stage.is_begun()
        {
            let (stored_bytes, limit_bytes) = (*stored_bytes, *limit_bytes);
            let tenant = job.record.spec.tenant.clone();
            self.wait(job, PendingReason::TenantStorage { tenant, stored_bytes, limit_bytes });
            return Prepared::Waits;
        }
        if let Some(needed) = job.facts().lacks {
            return Prepared::Lacks(needed);
        }
        let log = self.nodes.state.read_log(job, index);
        let needed = spec.data.pairs_to_start();
        if log.is_none_or(|log| !log.is_sealed() && log.committed() < needed) {
            return Prepared::Lacks(needed);
        }
        if let Some((ended, limit, wait)) = last.as_ref().and_then(|last| self.backoff(stage, last))
            && !self.nodes.has_passed(ended, limit)
        {
            self.move_job(job, placing(index));
            self.wait(job, wait);
            return Prepared::Waits;
        }
        match self.gang_of(job, index, stage, last) {
            Ok(ready) => Prepared::Ready(ready),
            Err(wait) => {
                self.move_job(job, placing(index));
                self.wait(job, wait);
                Prepared::Waits
            }
        }
    }

    fn gang_of(
        &self,
        job: &'a Job,
        index: usize,
        stage: &'a Stage,
        last: Option<Arc<AttemptRecord>>,
    ) -> Result<Ready<'a>, PendingReason> {
        let Some(spec) = job.stage_spec(index) else { return Err(PendingReason::NoTrainer) };
        if self.slots.is_empty() {
            return Err(PendingReason::NoTrainer);
        }
        let needs = self.needs_of(job);
        if !needs.are_met {
            return Err(PendingReason::NoSuchTrainer { needs: needs.needs.to_string() });
        }
        let init_from = self.nodes.state.init_checkpoint(job, index);
        let init_from = init_from.map_err(|from| PendingReason::Start { from })?;
        let required = processor::required(&job.record.spec, self.nodes.state, stage, init_from);
        let sizes = match required {
            Some(gang) => vec![gang.ranks()],
            None => placement::gang_sizes(&job.record.spec, spec),
        };
        Ok(Ready { job, index, stage, last, init_from, required, sizes, device: needs.needs.device() })
    }

    pub(super) fn place_or_wait(&mut self, ready: &Ready<'a>, turn: Turn) {
        // Placed, it waits for its ranks; else for what keeps it from being placed.
        let (Ok(wait) | Err(wait)) = self.try_place(ready, turn);
        self.move_job(ready.job, placing(ready.index));
        self.wait(ready.job, wait);
    }

    fn wait(&mut self, job: &Job, wait: PendingReason) {
        self.plan.wait(&job.record.id, wait);
    }

    fn try_place(&mut self, ready: &Ready<'a>, turn: Turn) -> Result<PendingReason, PendingReason> {
        let (job, stage) = (ready.job, ready.stage);
        let sizes = match self.allowed_sizes(ready) {
            Ok(sizes) => sizes,
            Err(at) => return Err(self.wait_at_limits(ready, &at, turn)),
        };
        let first = self.goes_ahead_of(ready)?;
        let least = sizes.last().copied().unwrap_or(0);
        let like_others = ready.required.is_none() && !self.found.stopping.contains(&stage.id);
        let alike = like_others
            .then(|| (self.needs_of(job).needs.clone(), job.record.spec.resources.topology.as_ref()));
        // Behind the first that waits it is enough to know that this one does not fit either.
        if let Some(first) = first
            && alike
                .as_ref()
                .and_then(|alike| self.found.too_large.get(alike))
                .is_some_and(|size| *size <= least)
        {
            return Err(behind(job, first));
        }
        let ranks = self.place(ready, &sizes)?.map_err(|shortage| {
            // One that is kept from nodes on which it fails for good says nothing of the others.
            let failures = &self.nodes.seen.failures;
            let kept_off = !failures.permanent_on(&stage.id, self.nodes.limits, self.nodes.now).is_empty();
            if let Some(alike) = alike.filter(|_| !kept_off) {
                let known = self.found.too_large.entry(alike).or_insert(least);
                *known = least.min(*known);
            }
            match first {
                None => self.wait_for_slots(ready, &shortage, turn),
                Some(first) => behind(job, first),
            }
        })?;
        let wait = ranks_wait(&ranks);
        self.start(ready, ranks, first);
        Ok(wait)
    }

    /// The job that this one goes ahead of if it is placed now: one that waits for slots, or in a limit of both for those
    /// that it leaves. An error if it may not: it is to leave when that one fits, and there is but one that it can leave for.
    fn goes_ahead_of(&self, ready: &Ready<'a>) -> Result<Option<&'a Job>, PendingReason> {
        let job = ready.job;
        let mut first: Option<&'a Job> = self.first_waiting.map(|first| first.job);
        if let Some(waiting) = self.first_waiting.filter(|first| first.comes || !self.may_go_ahead(job)) {
            return Err(behind(job, waiting.job));
        }
        let queue_of = |job| self.queue_of(job).map(|(name, _)| name);
        for waiting in self.first_of_limits(ready) {
            let is_other = first.is_some_and(|first| first.record.id != waiting.job.record.id);
            // What another queue is sure of would not be given back.
            let gives_back = queue_of(waiting.job) == queue_of(job) && self.may_go_ahead(job);
            if waiting.comes || is_other || !gives_back {
                return Err(behind(job, waiting.job));
            }
            first = Some(waiting.job);
        }
        Ok(first)
    }

    /// Those that wait first in the limits that the job falls under.
    pub(super) fn first_of_limits(&self, ready: &Ready<'a>) -> impl Iterator<Item = FirstWaiting<'a>> {
        let limits = self.limits_of(ready).filter(|_| !self.first_at_limit.is_empty());
        limits.filter_map(|(limit, _)| self.first_at_limit.get(&limit).copied())
    }

    /// Keeps what is left of the limits for the first job that it is too little for, and has those leave that are to make room
    /// there.
    fn wait_at_limits(&mut self, ready: &Ready<'a>, at: &[AtLimit<'a>], turn: Turn) -> PendingReason {
        let never = at.iter().find(|at| at.wanted > at.most);
        let Some(told) = never.or(at.first()) else { return PendingReason::BehindOthers };
        let (waits, wanted) = (at_limit(ready.job, told), told.wanted);
        let is_first = at.iter().any(|at| !self.first_at_limit.contains_key(&at.limit));
        if never.is_some() || !is_first || !self.fits_when_empty(ready, wanted) {
            return waits;
        }
        // Behind another it would not start even so.
        let is_next = self.first_waiting.is_none() && self.first_of_limits(ready).next().is_none();
        let room = is_next.then(|| self.make_room(ready, wanted, turn, at)).flatten();
        let waiting = FirstWaiting { job: ready.job, comes: room.is_some() };
        if waiting.comes {
            // The slots that it is about to have are its own too.
            self.first_waiting = Some(waiting);
        }
        for at in at {
            self.first_at_limit.entry(at.limit).or_insert(waiting);
        }
        match room.filter(|jobs| *jobs > 0) {
            Some(jobs) => PendingReason::MakingRoom { wanted, jobs },
            None => waits,
        }
    }

    /// Whether there are the slots for so many ranks of the job, free or not.
    fn fits_when_empty(&self, ready: &Ready<'a>, ranks: u32) -> bool {
        let place = self.place(ready, &[ranks]);
        place.is_ok_and(|place| place.err().is_none_or(|shortage| shortage.fits_when_empty()))
    }

    /// Where a gang of one of `sizes` goes, or one like that which it has to be like; `Err` if there are not the nodes for that one,
    /// free or not.
    pub(super) fn place(
        &self,
        ready: &Ready<'a>,
        sizes: &[u32],
    ) -> Result<Result<Vec<RankPlacement>, InsufficientCapacity>, PendingReason> {
        match ready.required {
            Some(gang) => self.place_like(ready.job, gang, &ready.stage.id),
            None => Ok(self.place_anywhere(ready.job, ready.stage, sizes)),
        }
    }

    fn start(&mut self, ready: &Ready<'a>, ranks: Vec<RankPlacement>, ahead_of: Option<&Job>) {
        let Ready { job, stage, last, init_from, .. } = ready;
        ranks.iter().for_each(|rank| self.slots.take(rank));
        let StageRef { job: job_id, stage: name } = stage.id.clone();
        let attempt = AttemptRef { job: job_id, stage: name, generation: stage.generation().next() };
        let ahead_of = ahead_of.map(|first| first.record.id.clone());
        let placed = Change::AttemptPlaced {
            attempt: attempt.clone(),
            ranks: ranks.len(),
            ahead_of: ahead_of.clone(),
        };
        self.plan.change(placed);
        let record = AttemptRecord {
            attempt,
            ranks,
            state: AttemptState::Active,
            started_at: self.nodes.wall_now(),
            restarts: last.as_ref().map_or(0, |last| last.restarts.saturating_add(1)),
            failures_in_a_row: last.as_ref().map_or(0, |last| last.failures_in_a_row),
            ran_millis: last.as_ref().map_or(0, |last| last.ran_millis),
            resume_from: stage.newest_checkpoint().cloned(),
            init_from: init_from.cloned(),
            ahead_of,
        };
        self.in_use.count(self.nodes, job, &record);
        self.decided.active.put(Arc::new(record.clone()));
        self.write(Record::Attempt(record));
    }

    /// Whether a later job may use what the first one waits for and cannot use yet: it is to leave when that one fits.
    fn may_go_ahead(&self, job: &Job) -> bool {
        let (quotas, spec) = (self.quotas(), &job.record.spec);
        quotas.order_of(spec) == QueueOrder::Backfill && quotas.classes.is_preemptible(spec.priority)
    }

    /// Keeps what becomes free for a job that would fit if others left, and has those leave that are to.
    fn wait_for_slots(
        &mut self,
        ready: &Ready<'a>,
        shortage: &InsufficientCapacity,
        turn: Turn,
    ) -> PendingReason {
        let InsufficientCapacity { wanted, free, total } = *shortage;
        if shortage.fits_when_empty() {
            let room = self.make_room(ready, wanted, turn, &[]);
            self.first_waiting = Some(FirstWaiting { job: ready.job, comes: room.is_some() });
            if let Some(jobs) = room.filter(|jobs| *jobs > 0) {
                return PendingReason::MakingRoom { wanted, jobs };
            }
        }
        PendingReason::Slots { wanted, free, total }
    }

    /// When the next attempt may start: at once after the first failure, later and later after more of them.
    fn backoff(&self, stage: &Stage, last: &AttemptRecord) -> Option<(Timestamp, Duration, PendingReason)> {
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
        Some((ended, wait, PendingReason::Backoff { reason: reason.clone(), failures }))
    }

    /// The slots of nodes that the job may be given.
    pub(super) fn slots_for_job(&self, job: &'a Job) -> Cow<'_, Slots> {
        let needs = self.needs_of(job);
        let packing = self.queue_of(job).map_or(Packing::default(), |(_, queue)| queue.packing);
        let slots = match &needs.met_by {
            None => Cow::Borrowed(&self.slots),
            Some(nodes) => Cow::Owned(self.slots.among(|node| nodes.contains(node))),
        };
        if slots.packing() == packing { slots } else { Cow::Owned(slots.into_owned().with_packing(packing)) }
    }

    /// Those that a stage may take: none on nodes that take its failure for permanent, as long as it fits elsewhere.
    fn slots_for(&self, job: &'a Job, stage: &StageRef, least: u32) -> Cow<'_, Slots> {
        let says = self.nodes.seen.failures.permanent_on(stage, self.nodes.limits, self.nodes.now);
        let slots = self.slots_for_job(job);
        if says.is_empty() {
            return slots;
        }
        let others = slots.among(|node| !says.contains(node));
        if placement::room(&others, stage, least).fits_when_empty() { Cow::Owned(others) } else { slots }
    }

    /// Of these slots those on nodes on which the stage has not just failed; `None` if that is all.
    fn sound(&self, slots: &Slots, stage: &StageRef) -> Option<Slots> {
        let (seen, limits, now) = (self.nodes.seen, self.nodes.limits, self.nodes.now);
        if seen.failures.is_empty() {
            return None;
        }
        Some(slots.among(|node| !seen.failures.avoids(node, stage, limits, now)))
    }

    /// Places a gang of one of `sizes` on nodes of any kind: on such that crawl in the stage's precision only where it
    /// fits nowhere else, and where the kind that wrote its checkpoint is free on that, since the bits stay the same then.
    pub(super) fn place_anywhere(
        &self,
        job: &'a Job,
        stage: &Stage,
        sizes: &[u32],
    ) -> Result<Vec<RankPlacement>, InsufficientCapacity> {
        let state = self.nodes.state;
        // Only bf16 crawls anywhere.
        let allowed = self.slots_for(job, &stage.id, sizes.last().copied().unwrap_or(0));
        let quick = (precision::of_stage(&job.record.spec, stage) == Some(StagePrecision::Bf16))
            .then(|| allowed.among(|node| !state.node(node).is_some_and(precision::bf16_crawls_on)));
        let wrote = stage.newest_checkpoint().and_then(|checkpoint| processor::wrote(stage, checkpoint));
        let topology = job.record.spec.resources.topology.as_ref();
        for slots in quick.iter().chain([&*allowed]) {
            // Where it has just failed it goes only if it fits nowhere else.
            let sound = self.sound(slots, &stage.id);
            for tier in sound.iter().chain([slots]) {
                let domains = placement::domains(tier, topology, state);
                if let Some(ranks) = place_in(state, &domains, stage, sizes, wrote) {
                    return Ok(ranks);
                }
            }
        }
        let least = sizes.last().copied().unwrap_or(0);
        let rooms = placement::domains(&allowed, topology, state).into_iter();
        let rooms = rooms.map(|slots| placement::room(&slots, &stage.id, least));
        let most = rooms.max_by_key(|room| (room.total, room.free));
        Err(most.unwrap_or_else(|| placement::room(&allowed, &stage.id, least)))
    }

    /// Places a gang that gives the same bits as one of this kind; `Err` if there are not the nodes for it, free or not.
    fn place_like(
        &self,
        job: &'a Job,
        gang: &GangKind,
        stage: &StageRef,
    ) -> Result<Result<Vec<RankPlacement>, InsufficientCapacity>, PendingReason> {
        let state = self.nodes.state;
        let mine = self.slots_for_job(job);
        let sound = self.sound(&mine, stage);
        let topology = job.record.spec.resources.topology.as_ref();
        let tiers = sound.iter().chain([&*mine]);
        for slots in tiers.flat_map(|slots| placement::domains(slots, topology, state)) {
            if let Some(ranks) = place_parts(state, &slots, stage, gang) {
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

    /// The gang sizes, largest first, that the job's tenant and its queue have slots left for; or the limits that leave it too few.
    pub(super) fn allowed_sizes(&self, ready: &Ready<'a>) -> Result<Vec<u32>, Vec<AtLimit<'a>>> {
        let wanted = ready.sizes.last().copied().unwrap_or(0);
        let (mut sizes, mut at) = (ready.sizes.clone(), Vec::new());
        for (limit, most) in self.limits_of(ready) {
            let used = self.used_of(limit, ready.job);
            let left = most.saturating_sub(used);
            sizes.retain(|size| *size <= left);
            if wanted > left {
                at.push(AtLimit { limit, wanted, used, most });
            }
        }
        if at.is_empty() { Ok(sizes) } else { Err(at) }
    }

    /// The limits that the job falls under, each with how many slots that leaves with nobody else there.
    pub(super) fn limits_of(&self, ready: &Ready<'a>) -> impl Iterator<Item = (Limit<'a>, u32)> + use<'a> {
        let spec = &ready.job.record.spec;
        let of_tenant =
            self.quotas().of(&spec.tenant).max_gpus.map(|most| (Limit::Tenant(&spec.tenant), most));
        let (name, queue) = self.queue_of(ready.job).unzip();
        let name = name.unwrap_or(DEFAULT_QUEUE);
        let borrows =
            self.quotas().classes.is_preemptible(spec.priority) || !self.quotas().queues.guarantee();
        let of_queue = ready.device.and_then(|device| {
            let most = queue.and_then(|queue| queue.most.get(device).copied())?;
            Some((Limit::Queue(name, device), most))
        });
        let sure = ready.device.filter(|_| !borrows).map(|device| {
            let guaranteed = queue.map_or(0, |queue| queue.guaranteed_of(device));
            (Limit::Sure(name, device), guaranteed)
        });
        [of_tenant, of_queue, sure].into_iter().flatten()
    }

    /// Slots that count against a limit of the job.
    fn used_of(&self, limit: Limit<'a>, job: &'a Job) -> u32 {
        match limit {
            Limit::Tenant(tenant) => self.in_use.tenants.get(tenant).copied().unwrap_or(0),
            Limit::Queue(queue, device) => self.in_use.queues.of(queue, device),
            Limit::Sure(_, device) => self.kept_from(job, device),
        }
    }

    /// Slots of this kind that gangs of its own queue hold which leave for no job of its class.
    fn kept_from(&self, job: &'a Job, device: &str) -> u32 {
        let own = self.queue_of(job).map(|(name, _)| name);
        let is_kept = |attempt: &&Arc<AttemptRecord>| {
            let Some(holder) = self.nodes.state.job(&attempt.attempt.job) else { return false };
            holder.record.id != job.record.id
                && self.queue_of(holder).map(|(name, _)| name) == own
                && device_of(self.nodes.state, attempt) == Some(device)
                && !self.quotas().classes.may_preempt(job.record.spec.priority, holder.record.spec.priority)
        };
        self.decided.active.in_any_order().filter(is_kept).map(|attempt| slots_of(&attempt.ranks)).sum()
    }
}

/// A job of another tenant is not named.
fn behind(job: &Job, first: &Job) -> PendingReason {
    if first.record.spec.tenant == job.record.spec.tenant {
        PendingReason::Behind { job: first.record.id.clone() }
    } else {
        PendingReason::BehindOthers
    }
}

fn at_limit(job: &Job, at: &AtLimit<'_>) -> PendingReason {
    let AtLimit { wanted, used, most, .. } = *at;
    match at.limit {
        Limit::Tenant(_) => {
            let tenant = job.record.spec.tenant.clone();
            PendingReason::TenantGpus { tenant, wanted, used, limit: most }
        }
        Limit::Queue(queue, device) => {
            let (queue, device) = (queue.to_owned(), device.to_owned());
            PendingReason::QueueGpus { queue, device, wanted, used, limit: most }
        }
        Limit::Sure(queue, device) => {
            let (queue, device) = (queue.to_owned(), device.to_owned());
            PendingReason::QueueGuarantee { queue, device, wanted, used, guaranteed: most }
        }
    }
}

fn ranks_wait(ranks: &[RankPlacement]) -> PendingReason {
    let nodes: BTreeSet<&NodeId> = ranks.iter().map(|rank| &rank.node).collect();
    PendingReason::Ranks { ranks: ranks.len(), nodes: nodes.len() }
}

/// Places the largest gang of `sizes` in the first of these parts of the cluster, where the kind `wrote` is free on that.
fn place_in(
    state: &ClusterState,
    domains: &[Cow<'_, Slots>],
    stage: &Stage,
    sizes: &[u32],
    wrote: Option<&GangKind>,
) -> Option<Vec<RankPlacement>> {
    let tries = sizes.iter().flat_map(|size| domains.iter().map(move |slots| (*size, slots)));
    tries.into_iter().find_map(|(size, slots)| {
        let alike = wrote.filter(|gang| gang.ranks() == size);
        let alike = alike.and_then(|gang| place_parts(state, slots, &stage.id, gang));
        alike.or_else(|| placement::place(slots, &stage.id, &[size]).ok())
    })
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
