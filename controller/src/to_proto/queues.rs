//! Queues, shares and use as messages.

use crescendo_core::access::Scope;
use crescendo_core::ids::{Tenant, Timestamp};
use crescendo_core::queues::{Packing, Queue};
use crescendo_core::quotas::{QueueOrder, Quotas};
use crescendo_core::standings::{self, DeviceStanding, QueueStanding, TenantStanding};
use crescendo_core::state::ClusterState;
use crescendo_proto::{convert, v1};

/// `now` is the time that records carry.
pub fn queues(
    state: &ClusterState,
    quotas: &Quotas,
    scope: &Scope,
    now: Timestamp,
) -> v1::ListQueuesResponse {
    v1::ListQueuesResponse {
        queues: standings::queues(state, quotas, scope)
            .into_iter()
            .map(|standing| queue(standing, quotas, scope))
            .collect(),
        tenants: standings::tenants(state, quotas, scope, now).into_iter().map(tenant).collect(),
        fair_share: quotas.fair_share.is_some(),
        half_life_seconds: quotas.half_life().as_secs(),
    }
}

fn queue(standing: QueueStanding<'_>, quotas: &Quotas, scope: &Scope) -> v1::Queue {
    let QueueStanding { name, queue, devices, running_jobs, waiting_jobs, pending, oldest_waiting } =
        standing;
    let slots = |(device, standing): (String, DeviceStanding)| {
        let DeviceStanding { guaranteed, most, used, borrowed } = standing;
        v1::QueueSlots { device, guaranteed, max: most, used, borrowed }
    };
    let tenants = queue.and_then(|queue| queue.tenants.as_ref()).into_iter().flatten();
    let order = match queue.and_then(|queue| queue.order).unwrap_or(quotas.order) {
        QueueOrder::Backfill => "backfill",
        QueueOrder::Strict => "strict",
    };
    let packing = match queue.map_or(Packing::default(), |queue| queue.packing) {
        Packing::Pack => "pack",
        Packing::Spread => "spread",
    };
    let labels = queue.map(|queue: &Queue| queue.node_labels.clone()).unwrap_or_default();
    v1::Queue {
        name: queue.map_or_else(String::new, |_| name.to_owned()),
        slots: devices.into_iter().map(slots).collect(),
        running_jobs,
        waiting_jobs,
        pending_slots: pending,
        oldest_waiting_since: oldest_waiting.map(convert::timestamp),
        tenants: tenants.filter(|tenant| scope.sees(tenant.as_str())).map(Tenant::to_string).collect(),
        open_to_all: queue.is_none_or(|queue| queue.tenants.is_none()),
        order: order.to_owned(),
        packing: packing.to_owned(),
        node_labels: labels,
    }
}

fn tenant(standing: TenantStanding<'_>) -> v1::TenantShare {
    let TenantStanding { tenant, share, used, decayed_slot_seconds, used_part, fair_part } = standing;
    v1::TenantShare {
        tenant: tenant.to_owned(),
        share,
        used_slots: used,
        used_slot_seconds: decayed_slot_seconds,
        used_part,
        fair_part,
    }
}

/// What the tenants have used by month. `now` is the time that records carry.
pub fn usage(state: &ClusterState, quotas: &Quotas, scope: &Scope, now: Timestamp) -> Vec<v1::Usage> {
    let mut all = Vec::new();
    for account in standings::accounts(state, quotas, scope, now) {
        for (month, by_device) in &account.months {
            all.extend(by_device.iter().map(|(device, millis)| v1::Usage {
                tenant: account.tenant.to_string(),
                month: month.to_string(),
                device: device.clone(),
                slot_seconds: std::time::Duration::from_millis(*millis).as_secs_f64(),
            }));
        }
    }
    all
}
