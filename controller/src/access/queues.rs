//! The queues in the file with what each tenant may use.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::ids::Tenant;
use crescendo_core::queues::{Packing, Queue, Queues, SlotsByDevice};
use crescendo_core::quotas::QueueOrder;
use serde::Deserialize;

use super::names::check_name;
use super::tenants::TenantsError;

/// Kinds of devices, as nodes say them.
const DEVICES: [&str; 2] = ["cuda", "cpu"];
/// Most queues that a file may have.
const MAX_QUEUES: usize = 256;
/// Most slots of a queue.
const MAX_SLOTS: u32 = 1_000_000;
const SHORTEST_HALF_LIFE: Duration = Duration::from_secs(60);
const LONGEST_HALF_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);

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
    pub fn check(self) -> Result<Duration, TenantsError> {
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
) -> Result<Queues, TenantsError> {
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
    fn check(self, path: &str) -> Result<Queue, TenantsError> {
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

fn check_devices(slots: &SlotsByDevice, path: &str) -> Result<(), TenantsError> {
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

fn bad(path: impl Into<String>, reason: impl Into<String>) -> TenantsError {
    TenantsError::Queue { path: path.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::super::tenants::parse;
    use super::*;

    #[test]
    fn a_queue_is_what_its_entry_says() {
        let text = "
queues:
  research: {guaranteed: {cuda: 16}, max: {cuda: 32}, tenants: [research], order: strict}
  default: {packing: spread, nodeLabels: {pool: spare}}
fairShare: {halfLife: 24h}
clusterSlots: {cuda: 16}
tenants:
  research: {queue: research, share: 3}
";
        let quotas = parse(text).expect("good");
        let research = &quotas.queues.by_name["research"];
        assert_eq!((research.guaranteed_of("cuda"), research.most["cuda"]), (16, 32));
        assert_eq!((research.order, research.packing), (Some(QueueOrder::Strict), Packing::Pack));
        let default = &quotas.queues.by_name["default"];
        assert_eq!((default.packing, default.node_labels["pool"].as_str()), (Packing::Spread, "spare"));
        assert!(!default.counts_slots() && research.counts("cuda") && !research.counts("cpu"));
        assert_eq!(quotas.fair_share, Some(Duration::from_secs(24 * 3600)));
        assert_eq!((quotas.of("research").share, quotas.of("other").share), (Some(3), None));
        let none = parse("fairShare: {}").expect("good");
        assert_eq!(none.fair_share, Some(crescendo_core::queues::DEFAULT_HALF_LIFE));
        assert_eq!((none.queues, parse("").expect("empty").fair_share), (Queues::default(), None));
    }

    #[test]
    fn what_is_wrong_with_a_queue_is_named() {
        let cases = [
            ("queues: {Big One: {}}", "queues.\"Big One\": must be [a-z0-9-]"),
            ("queues: {a: {guaranteed: {tpu: 1}}}", "queues.a.guaranteed.tpu: there is no such kind"),
            ("queues: {a: {guaranteed: {cuda: 2000000}}}", "queues.a.guaranteed.cuda: must be at most"),
            (
                "queues: {a: {guaranteed: {cuda: 8}, max: {cuda: 4}}}",
                "queues.a.max.cuda: 4 is less than the 8",
            ),
            ("queues: {a: {tenants: [The Team]}}", "queues.a.tenants[0]: "),
            ("queues: {a: {borrow: true}}", "unknown field `borrow`"),
            ("queues: {a: {packing: dense}}", "unknown variant `dense`"),
            (
                "queues: {a: {}}\ntenants: {t: {queue: b}}",
                "tenants.t.queue: there is no queue b below queues: a",
            ),
            (
                "queues: {a: {tenants: [x]}}\ntenants: {t: {queue: a}}",
                "tenants.t.queue: queues.a.tenants does not name t",
            ),
            (
                "clusterSlots: {cuda: 8}\nqueues: {a: {guaranteed: {cuda: 6}}, b: {guaranteed: {cuda: 3}}}",
                "clusterSlots.cuda: the queues are sure of 9 cuda slots, and there are 8",
            ),
            ("clusterSlots: {gpu: 8}", "clusterSlots.gpu: there is no such kind"),
            ("fairShare: {halfLife: 1s}", "fairShare.halfLife: must be a time such as 24h"),
            ("tenants: {a: {share: 0}}", "tenants.a.share: must be 1 to 1000"),
        ];
        for (text, said) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
