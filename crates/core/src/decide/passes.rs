//! What the passes of a decision hand to each other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::decide::DecideContext;
use crate::holdings::{Holdings, device_of};
use crate::ids::{AttemptRef, IdMap, IdSet, JobId, NodeId, StageRef};
use crate::placement::{self, NodeNeeds};
use crate::records::{AttemptRecord, RankPlacement};
use crate::spec::{DeviceChoice, ModelPreset, Topology};
use crate::state::{Job, Stage};

/// Active attempts; in a pass, once the plan's writes are made.
#[derive(Clone, Default)]
pub(crate) struct Active {
    by_stage: IdMap<StageRef, Arc<AttemptRecord>>,
}

impl Active {
    pub fn put(&mut self, attempt: Arc<AttemptRecord>) {
        self.by_stage.insert(attempt.attempt.stage_ref(), attempt);
    }

    pub fn remove(&mut self, stage: &StageRef) -> Option<Arc<AttemptRecord>> {
        self.by_stage.remove(stage)
    }

    pub fn get(&self, stage: &StageRef) -> Option<&Arc<AttemptRecord>> {
        self.by_stage.get(stage)
    }

    pub fn contains(&self, stage: &StageRef) -> bool {
        self.by_stage.contains_key(stage)
    }

    /// In an order that is another in every process: for sums, and what is put in order by who asks.
    pub fn in_any_order(&self) -> impl Iterator<Item = &Arc<AttemptRecord>> {
        self.by_stage.values()
    }
}

impl FromIterator<Arc<AttemptRecord>> for Active {
    fn from_iter<I: IntoIterator<Item = Arc<AttemptRecord>>>(attempts: I) -> Self {
        let by_stage = attempts.into_iter().map(|attempt| (attempt.attempt.stage_ref(), attempt));
        Self { by_stage: by_stage.collect() }
    }
}

/// What the pass over the jobs leaves for the others.
pub(super) struct Decided {
    /// Attempts that are active once the plan's writes are made.
    pub active: Active,
    /// Of those, the ones whose ranks are to save and leave, with the reason.
    pub leaving: BTreeMap<StageRef, String>,
    /// Jobs that have become terminal.
    pub closed: BTreeSet<JobId>,
    /// Tenants that store as much as they may: stored and allowed bytes.
    pub full_tenants: BTreeMap<String, (u64, u64)>,
}

/// A job whose current stage has no active attempt.
pub(super) struct Idle<'a> {
    pub job: &'a Job,
    pub index: usize,
    /// The attempt before.
    pub last: Option<Arc<AttemptRecord>>,
}

/// A job for whose sake later ones may have to wait.
#[derive(Clone, Copy)]
pub(super) struct FirstWaiting<'a> {
    pub job: &'a Job,
    /// What it waits for is on its way: nobody takes that.
    pub comes: bool,
}

/// What jobs hold slots of at once, and no more than so many.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limit<'a> {
    Tenant(&'a str),
    /// What a queue may have of a kind of device.
    Queue(&'a str, &'a str),
    /// What a queue is sure of, for those who may not borrow.
    Sure(&'a str, &'a str),
}

/// A job that does not fit into what is left of a limit.
pub(super) struct AtLimit<'a> {
    pub limit: Limit<'a>,
    /// Slots that it wants at least, those that are held, and how many there may be.
    pub wanted: u32,
    pub used: u32,
    pub most: u32,
}

/// A gang that may be placed, and how large.
#[derive(Clone)]
pub(super) struct Wants<'a> {
    pub job: &'a Job,
    pub stage: &'a Stage,
    /// Largest first.
    pub sizes: Rc<[u32]>,
}

impl<'a> Wants<'a> {
    /// As the attempt's stage would be placed anew.
    pub fn of(job: &'a Job, attempt: &AttemptRef) -> Option<Self> {
        let index = job.stage_index(attempt.stage.as_str())?;
        let sizes = placement::gang_sizes(&job.record.spec, job.stage_spec(index)?);
        Some(Self { job, stage: job.stages.get(index)?, sizes: sizes.into() })
    }
}

/// Slots that active attempts hold.
#[derive(Clone, Default)]
pub(super) struct InUse {
    pub tenants: BTreeMap<String, u32>,
    pub queues: Holdings,
}

impl InUse {
    /// The job's attempt holds its slots too.
    pub fn count(&mut self, nodes: &DecideContext<'_>, job: &Job, attempt: &AttemptRecord) {
        self.recount(nodes, job, attempt, u32::saturating_add);
    }

    /// As if it held nothing.
    pub fn uncount(&mut self, nodes: &DecideContext<'_>, job: &Job, attempt: &AttemptRecord) {
        self.recount(nodes, job, attempt, u32::saturating_sub);
    }

    fn recount(
        &mut self,
        nodes: &DecideContext<'_>,
        job: &Job,
        attempt: &AttemptRecord,
        change: fn(u32, u32) -> u32,
    ) {
        let (slots, tenant) = (slots_of(&attempt.ranks), &job.record.spec.tenant);
        match self.tenants.get_mut(tenant) {
            Some(held) => *held = change(*held, slots),
            None => {
                self.tenants.insert(tenant.clone(), change(0, slots));
            }
        }
        let Some((queue, _)) = nodes.limits.quotas.queues.of(&job.record.spec) else { return };
        if let Some(device) = device_of(nodes.state, attempt) {
            self.queues.change(queue, device, |held| change(held, slots));
        }
    }
}

/// What jobs have in common that may be given the same nodes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asks<'a> {
    pub preset: ModelPreset,
    pub queue: Option<&'a str>,
    pub device: DeviceChoice,
    pub labels: &'a BTreeMap<String, String>,
    pub topology: Option<&'a Topology>,
    pub memory_bytes: u64,
}

/// What some jobs ask of their nodes, and which have it.
pub(super) struct Needs<'a> {
    pub needs: NodeNeeds<'a>,
    /// None if any node has.
    pub met_by: Option<IdSet<&'a NodeId>>,
    /// Some of those may be given work.
    pub are_met: bool,
}

/// What is found out for one job and holds for those after it that are like it.
#[derive(Default)]
pub(super) struct Found<'a> {
    pub needs: RefCell<BTreeMap<Asks<'a>, Rc<Needs<'a>>>>,
    /// The smallest gangs that fit nowhere, by what they need. As long as slots are only taken, they go on not to fit.
    pub too_large: BTreeMap<(NodeNeeds<'a>, Option<&'a Topology>), u32>,
    /// Stages for which more slots may be free than for others.
    pub stopping: IdSet<StageRef>,
}

/// Slots that ranks hold.
pub(super) fn slots_of(ranks: &[RankPlacement]) -> u32 {
    u32::try_from(ranks.len()).unwrap_or(u32::MAX)
}
