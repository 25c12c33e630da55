//! Queues: slots that a group of jobs is sure of, and slots that it borrows while nobody who is sure of them needs them.
//!
//! A job goes first as long as its queue holds no more than it is sure of with it, and takes back borrowed slots for that. What
//! a queue holds beyond is borrowed: preemptible jobs only, each to leave when another queue takes back its own. A gang is
//! borrowed as a whole or not at all, so that two queues cannot take the same slots from each other in turns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use crate::error::Overreach;
use crate::ids::Tenant;
use crate::spec::JobSpec;

/// Queue of the jobs that name none and whose tenant has none, if there is such a queue.
pub const DEFAULT_QUEUE: &str = "default";

/// Slots by kind of device.
pub type SlotsByDevice = BTreeMap<String, u32>;

/// Who may use slots that the first job in the queue waits for, while there are too few of them for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueOrder {
    /// Later jobs that fit and are preemptible: they leave as soon as the first one fits without them.
    #[default]
    Backfill,
    /// Nobody.
    Strict,
}

/// How the ranks of a gang are put on nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// On as few nodes as can be, the fullest ones first: large holes stay for large gangs.
    #[default]
    Pack,
    /// On as many nodes as can be, the emptiest ones first: a node that fails takes fewer ranks along.
    Spread,
}

/// A group of jobs that shares slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Slots that it is sure of.
    pub guaranteed: SlotsByDevice,
    /// Slots that it holds at most, with those that it borrows; of a kind that is not named as many as there are.
    pub most: SlotsByDevice,
    /// Tenants whose jobs may be in it; everybody's if `None`.
    pub tenants: Option<BTreeSet<Tenant>>,
    /// What becomes of slots that its first job waits for; as the cluster does if `None`.
    pub order: Option<QueueOrder>,
    pub packing: Packing,
    /// Labels of the nodes that its jobs run on.
    pub node_labels: BTreeMap<String, String>,
}

impl Queue {
    pub fn guaranteed_of(&self, device: &str) -> u32 {
        self.guaranteed.get(device).copied().unwrap_or(0)
    }

    /// Whether it is sure of a number of slots, or may have no more than one.
    pub fn counts_slots(&self) -> bool {
        !self.guaranteed.is_empty() || !self.most.is_empty()
    }

    pub fn counts(&self, device: &str) -> bool {
        self.guaranteed.contains_key(device) || self.most.contains_key(device)
    }

    fn admits(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|admitted| admitted.as_str() == tenant))
    }
}

/// All queues of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    pub by_name: BTreeMap<String, Queue>,
    /// Queue of a tenant's jobs that name none.
    pub of_tenants: BTreeMap<Tenant, String>,
}

impl Queues {
    /// Queue that the job is in, if there is one.
    pub fn of(&self, spec: &JobSpec) -> Option<(&str, &Queue)> {
        if self.by_name.is_empty() {
            return None;
        }
        let named = spec.queue.as_deref();
        let of_tenant = || {
            let known = (!self.of_tenants.is_empty()).then(|| Tenant::parse(&spec.tenant).ok())??;
            self.of_tenants.get(&known).map(String::as_str)
        };
        let name = named.or_else(of_tenant).unwrap_or(DEFAULT_QUEUE);
        self.by_name.get_key_value(name).map(|(name, queue)| (name.as_str(), queue))
    }

    /// Whether some queue is sure of slots.
    pub fn guarantee(&self) -> bool {
        self.by_name.values().any(|queue| queue.guaranteed.values().any(|slots| *slots > 0))
    }

    /// Why a job may not be in the queue that it names.
    pub fn overreach(&self, spec: &JobSpec) -> Option<Overreach> {
        let named = spec.queue.as_deref()?;
        let open = || {
            let admit = self.by_name.iter().filter(|(_, queue)| queue.admits(&spec.tenant));
            let names: Vec<&str> = admit.map(|(name, _)| name.as_str()).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let message = match self.by_name.get(named) {
            Some(queue) if queue.admits(&spec.tenant) => return None,
            // Whether there is one for others is not told.
            Some(_) | None => {
                format!("{named} is no queue for jobs of tenant {}; those that are: {}", spec.tenant, open())
            }
        };
        Some(Overreach { field: "spec.queue".to_owned(), message })
    }
}

/// Half-life of usage where the operator has not said another.
pub const DEFAULT_HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
