//! Jobs that are told the same while they wait for slots.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::decide::placing::Ready;
use crate::decide::{DecideContext, PendingReason};
use crate::job::JobState;
use crate::precision::{self, StagePrecision};
use crate::spec::{DeviceChoice, ModelPreset, Topology};

/// A place in [`Classes`].
pub(super) type ClassId = usize;

/// All that bears on whether a job is given slots, beside what the passes have come to, and on what it is told. Its stage has written
/// no checkpoint: where that was would matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    tenant: String,
    queue: Option<String>,
    priority: i32,
    preset: ModelPreset,
    device: DeviceChoice,
    labels: BTreeMap<String, String>,
    topology: Option<Topology>,
    memory_bytes: u64,
    sizes: Vec<u32>,
    precision: Option<StagePrecision>,
}

struct Class {
    told: Option<Arc<PendingReason>>,
    /// When that was told.
    round: u64,
}

/// The classes of jobs, and what was told last of each.
#[derive(Default)]
pub(super) struct Classes {
    /// No job is taken for like another.
    one_by_one: bool,
    ids: BTreeMap<Likeness, ClassId>,
    list: Vec<Class>,
    round: u64,
}

impl Classes {
    pub fn new(one_by_one: bool) -> Self {
        Self { one_by_one, ..Self::default() }
    }

    /// The class of a job that has its place and is like others; none if it is like no other.
    pub fn of(&mut self, nodes: &DecideContext<'_>, ready: &Ready<'_>) -> Option<ClassId> {
        let (record, stage) = (&ready.job.record, ready.stage);
        let has_place = record.state == (JobState::Placing { stage: ready.index });
        if self.one_by_one || !has_place || ready.required.is_some() || stage.newest_checkpoint().is_some() {
            return None;
        }
        let (spec, queues) = (&record.spec, &nodes.limits.quotas.queues);
        let likeness = Likeness {
            tenant: spec.tenant.clone(),
            queue: queues.of(spec).map(|(name, _)| name.to_owned()),
            priority: spec.priority,
            preset: spec.model.preset,
            device: spec.resources.asked_device(),
            labels: spec.resources.node_labels.clone(),
            topology: spec.resources.topology.clone(),
            memory_bytes: ready.job.device_bytes,
            sizes: ready.sizes.clone(),
            precision: precision::of_stage(spec, stage),
        };
        let next = self.list.len();
        let id = *self.ids.entry(likeness).or_insert(next);
        if id == next {
            self.list.push(Class { told: None, round: 0 });
        }
        Some(id)
    }

    /// Something else may be told from here on.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// What the others of the class have been told since.
    pub fn told(&self, class: ClassId) -> Option<Arc<PendingReason>> {
        let class = self.list.get(class).filter(|class| class.round == self.round)?;
        class.told.clone()
    }

    /// Takes note of what one of the class is told, and gives what is told to all.
    pub fn tell(&mut self, class: ClassId, wait: PendingReason) -> Arc<PendingReason> {
        let Some(class) = self.list.get_mut(class) else { return Arc::new(wait) };
        class.round = self.round;
        let same = class.told.take().filter(|told| **told == wait);
        class.told.insert(same.unwrap_or_else(|| Arc::new(wait))).clone()
    }
}
