//! Slots that the gangs of queues hold, and which of them their queues are sure of.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::StageRef;
use crate::quotas::Quotas;
use crate::records::AttemptRecord;
use crate::state::ClusterState;

/// What the queues hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holdings {
    /// By queue and kind of device.
    held: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Holdings {
    pub fn add(&mut self, queue: &str, device: &str, slots: u32) {
        self.change(queue, device, |held| held.saturating_add(slots));
    }

    pub fn change(&mut self, queue: &str, device: &str, change: impl Fn(u32) -> u32) {
        let of_queue = self.held.get_mut(queue);
        match of_queue.and_then(|of_queue| of_queue.get_mut(device)) {
            Some(held) => *held = change(*held),
            None => {
                self.held.entry(queue.to_owned()).or_default().insert(device.to_owned(), change(0));
            }
        }
    }

    pub fn of(&self, queue: &str, device: &str) -> u32 {
        self.held.get(queue).and_then(|of_queue| of_queue.get(device)).copied().unwrap_or(0)
    }
}

/// Kind of device that a gang is on; a gang is on one kind.
pub(crate) fn device_of<'a>(state: &'a ClusterState, attempt: &AttemptRecord) -> Option<&'a str> {
    attempt.ranks.iter().find_map(|rank| state.node(&rank.node)).map(|node| node.device.as_str())
}

/// Active gangs whose slots their queues are sure of, highest priority first, then oldest: of those that fit together.
pub(crate) fn sure<'a>(
    state: &ClusterState,
    quotas: &Quotas,
    active: impl Iterator<Item = &'a AttemptRecord>,
) -> BTreeSet<StageRef> {
    if !quotas.queues.guarantee() {
        return BTreeSet::new();
    }
    let in_queue = |attempt: &'a AttemptRecord| {
        let job = state.job(&attempt.attempt.job)?;
        let (name, queue) = quotas.queues.of(&job.record.spec)?;
        let device = device_of(state, attempt)?;
        let order = (-i64::from(job.record.spec.priority), attempt.started_at, attempt.attempt.stage_ref());
        Some((order, name, queue.guaranteed_of(device), device, attempt))
    };
    let mut gangs: Vec<_> = active.filter_map(in_queue).collect();
    gangs.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut held, mut sure) = (Holdings::default(), BTreeSet::new());
    for ((_, _, stage), queue, guaranteed, device, attempt) in gangs {
        let slots = u32::try_from(attempt.ranks.len()).unwrap_or(u32::MAX);
        if held.of(queue, device).saturating_add(slots) <= guaranteed {
            held.add(queue, device, slots);
            sure.insert(stage);
        }
    }
    sure
}
