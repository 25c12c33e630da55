//! The queues in the file with what each tenant may use.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::ids::Tenant;
use crescendo_core::queues::{Packing, Queue, Queues, SlotsByDevice};
use crescendo_core::quotas::QueueOrder;
use serde::Deserialize;

use super::names::check_name;

/// Kinds of devices, as nodes say them.
const DEVICES: [&str; 2] = ["cuda", "cpu"];
/// Most queues that a file may have.
const MAX_QUEUES: usize = 256;
/// Most slots of a queue.
const MAX_SLOTS: u32 = 1_000_000;
const SHORTEST_HALF_LIFE: Duration = Duration::from_secs(60);
const LONGEST_HALF_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);

/// What is wrong with a queue.
pub(super) struct BadQueue {
    pub path: String,
    pub reason: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct QueueEntry {
    guaranteed: SlotsByDevice,
    max: SlotsByDevice,
    tenants: Option<Vec<String>>,
    order: Option<QueueOrder>,
    packing: Packing,
    node_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FairShare {
    half_life: Option<String>,
}

impl FairShare {
    pub fn check(self) -> Result<Duration, BadQueue> {
        let Some(text) = self.half_life else { return Ok(crescendo_core::queues::DEFAULT_HALF_LIFE) };
        match humantime::parse_duration(&text) {
            Ok(time) if (SHORTEST_HALF_LIFE..=LONGEST_HALF_LIFE).contains(&time) => Ok(time),
            Ok(_) | Err(_) => {
                Err(bad("fairShare.halfLife", "must be a time such as 24h or 7days, 1m to 366days"))
            }
        }
    }
}

/// The queues, with those of the tenants' jobs that name none. `cluster` says what there is to be sure of, if it is known.
pub(super) fn queues_of(
    entries: BTreeMap<String, QueueEntry>,
    of_tenants: BTreeMap<Tenant, String>,
    cluster: Option<SlotsByDevice>,
) -> Result<Queues, BadQueue> {
    if entries.len() > MAX_QUEUES {
        return Err(bad("queues", format!("must be at most {MAX_QUEUES}")));
    }
    let mut by_name = BTreeMap::new();
    for (name, entry) in entries {
        check_name(&name)
            .map_err(|()| bad(format!("queues.{name:?}"), "must be [a-z0-9-], 1 to 40 characters"))?;
        let queue = entry.check(&format!("queues.{name}"))?;
        by_name.insert(name, queue);
    }
    for (tenant, name) in &of_tenants {
        let path = format!("tenants.{tenant}.queue");
        let Some(queue) = by_name.get(name) else {
            let known: Vec<&str> = by_name.keys().map(String::as_str).collect();
            return Err(bad(path, format!("there is no queue {name} below queues: {}", known.join(", "))));
        };
        if queue.tenants.as_ref().is_some_and(|tenants| !tenants.contains(tenant)) {
            return Err(bad(path, format!("queues.{name}.tenants does not name {tenant}")));
        }
    }
    if let Some(cluster) = cluster {
        check_devices(&cluster, "clusterSlots")?;
        for device in DEVICES {
            let sure = by_name.values().map(|queue| u64::from(queue.guaranteed_of(device))).sum::<u64>();
            let there = u64::from(cluster.get(device).copied().unwrap_or(0));
            if sure > there {
                let said = format!("the queues are sure of {sure} {device} slots, and there are {there}");
                return Err(bad(format!("clusterSlots.{device}"), said));
            }
        }
    }
    Ok(Queues { by_name, of_tenants })
}

impl QueueEntry {
    fn check(self, path: &str) -> Result<Queue, BadQueue> {
        let Self { guaranteed, max, tenants, order, packing, node_labels } = self;
        check_devices(&guaranteed, &format!("{path}.guaranteed"))?;
        check_devices(&max, &format!("{path}.max"))?;
        for (device, slots) in &guaranteed {
            if let Some(most) = max.get(device).filter(|most| *most < slots) {
                let said = format!("{most} is less than the {slots} that it is sure of");
                return Err(bad(format!("{path}.max.{device}"), said));
            }
        }
        let tenant = |(index, name): (usize, &String)| {
            Tenant::parse(name).map_err(|error| bad(format!("{path}.tenants[{index}]"), error.to_string()))
        };
        let tenants = tenants.map(|names| names.iter().enumerate().map(tenant).collect());
        Ok(Queue { guaranteed, most: max, tenants: tenants.transpose()?, order, packing, node_labels })
    }
}

fn check_devices(slots: &SlotsByDevice, path: &str) -> Result<(), BadQueue> {
    for (device, slots) in slots {
        if !DEVICES.contains(&device.as_str()) {
            return Err(bad(format!("{path}.{device}"), "there is no such kind of device: cuda or cpu"));
        }
        if *slots > MAX_SLOTS {
            return Err(bad(format!("{path}.{device}"), format!("must be at most {MAX_SLOTS}")));
        }
    }
    Ok(())
}

fn bad(path: impl Into<String>, reason: impl Into<String>) -> BadQueue {
    BadQueue { path: path.into(), reason: reason.into() }
}
