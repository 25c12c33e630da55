//! What queues and tenants have and use, for people and metrics.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::Scope;
use crate::accounts;
use crate::holdings::{device_of, sure};
use crate::ids::{Tenant, Timestamp};
use crate::placement::{self, NodeNeeds};
use crate::queues::{DEFAULT_QUEUE, Queue};
use crate::quotas::Quotas;
use crate::state::{ClusterState, Job, Stage};
use crate::usage::{self, UsageRecord};

/// What one queue has of one kind of device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStanding {
    pub guaranteed: u32,
    /// `None`: as many as there are.
    pub most: Option<u32>,
    /// Slots that its jobs hold.
    pub used: u32,
    /// Of those, the ones that it has to give back when another queue is sure of them.
    pub borrowed: u32,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStanding<'a> {
    pub name: &'a str,
    /// What the operator has said of it; none for the jobs that are in no queue.
    pub queue: Option<&'a Queue>,
    pub devices: BTreeMap<String, DeviceStanding>,
    /// Jobs that hold slots.
    pub running_jobs: u32,
    /// Open jobs that hold none.
    pub waiting_jobs: u32,
    /// Slots that these want at least.
    pub pending: u32,
    /// When the one that was submitted first was.
    pub oldest_waiting: Option<Timestamp>,
}

/// One tenant's part of what is shared.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantStanding<'a> {
    pub tenant: &'a str,
    pub share: u32,
    /// Slots that its jobs hold.
    pub used: u32,
    /// Slot-seconds that it has used, those of long ago counted less.
    pub decayed_slot_seconds: f64,
    /// Part of what all tenants with open jobs have used so; 0 if nobody has used anything.
    pub used_part: f64,
    /// Part that is fair for it among them.
    pub fair_part: f64,
}

/// Every queue that the caller may know of, by name; last the jobs that are in none, if there are any.
pub fn queues<'a>(state: &'a ClusterState, quotas: &'a Quotas, scope: &Scope) -> Vec<QueueStanding<'a>> {
    let open: Vec<&Job> = state.open_jobs().collect();
    let active = open.iter().flat_map(|job| &job.stages).filter_map(Stage::active_attempt);
    let sure = sure(state, quotas, active);
    let mut standings: BTreeMap<&str, QueueStanding<'a>> = BTreeMap::new();
    for (name, queue) in &quotas.queues.by_name {
        standings.insert(name, QueueStanding::new(name, Some(queue)));
    }
    let mut apart = QueueStanding::new(DEFAULT_QUEUE, None);
    for job in &open {
        let standing = match quotas.queues.of(&job.record.spec) {
            Some((name, _)) => standings.get_mut(name).unwrap_or(&mut apart),
            None => &mut apart,
        };
        standing.add(state, quotas, job, &sure);
    }
    let admits = |standing: &QueueStanding<'_>| match (scope, standing.queue) {
        (Scope::Everything, _) | (_, None) => true,
        (Scope::Only(tenant), Some(queue)) => {
            queue.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
        }
    };
    let has_any = apart.running_jobs + apart.waiting_jobs > 0;
    standings.into_values().chain(has_any.then_some(apart)).filter(admits).collect()
}

impl<'a> QueueStanding<'a> {
    fn new(name: &'a str, queue: Option<&'a Queue>) -> Self {
        let mut devices: BTreeMap<String, DeviceStanding> = BTreeMap::new();
        for (device, slots) in queue.into_iter().flat_map(|queue| &queue.guaranteed) {
            devices.entry(device.clone()).or_default().guaranteed = *slots;
        }
        for (device, slots) in queue.into_iter().flat_map(|queue| &queue.most) {
            devices.entry(device.clone()).or_default().most = Some(*slots);
        }
        let (running_jobs, waiting_jobs, pending) = (0, 0, 0);
        Self { name, queue, devices, running_jobs, waiting_jobs, pending, oldest_waiting: None }
    }

    fn add(
        &mut self,
        state: &ClusterState,
        quotas: &Quotas,
        job: &Job,
        sure: &BTreeSet<crate::ids::StageRef>,
    ) {
        let mut holds = false;
        for attempt in job.stages.iter().filter_map(Stage::active_attempt) {
            holds = true;
            let slots = u32::try_from(attempt.ranks.len()).unwrap_or(u32::MAX);
            let device = device_of(state, attempt).unwrap_or("unknown");
            let standing = self.devices.entry(device.to_owned()).or_default();
            standing.used = standing.used.saturating_add(slots);
            if !sure.contains(&attempt.attempt.stage_ref()) {
                standing.borrowed = standing.borrowed.saturating_add(slots);
            }
        }
        if holds {
            self.running_jobs += 1;
            return;
        }
        self.waiting_jobs += 1;
        let spec = job.current_stage().and_then(|index| job.stage_spec(index));
        let least = spec.and_then(|stage| placement::gang_sizes(&job.record.spec, stage).last().copied());
        self.pending = self.pending.saturating_add(least.unwrap_or(0));
        let submitted = job.record.submitted_at;
        self.oldest_waiting = Some(self.oldest_waiting.map_or(submitted, |oldest| oldest.min(submitted)));
        // So that a kind shows that is asked for and not counted.
        if let Some(device) = NodeNeeds::of(job, quotas, state).device() {
            self.devices.entry(device.to_owned()).or_default();
        }
    }
}

/// Every tenant that has open jobs or has used something, by name. `now` is the time that records carry.
pub fn tenants<'a>(
    state: &'a ClusterState,
    quotas: &Quotas,
    scope: &Scope,
    now: Timestamp,
) -> Vec<TenantStanding<'a>> {
    let open: Vec<&Job> = state.open_jobs().collect();
    let half_life = quotas.half_life();
    let mut used = accounts::by_tenant(state, &open, half_life, now);
    let in_need: BTreeSet<&str> = used.keys().copied().collect();
    for record in state.usages() {
        let ended = || usage::used(Some(record), std::iter::empty(), half_life, now);
        used.entry(record.tenant.as_str()).or_insert_with(ended);
    }
    let mut slots: BTreeMap<&str, u32> = BTreeMap::new();
    for job in &open {
        let held = job.stages.iter().filter_map(Stage::active_attempt).map(|attempt| attempt.ranks.len());
        *slots.entry(job.record.spec.tenant.as_str()).or_insert(0) +=
            u32::try_from(held.sum::<usize>()).unwrap_or(0);
    }
    let share = |tenant: &str| quotas.of(tenant).share.unwrap_or(1);
    let shares: f64 = in_need.iter().map(|tenant| f64::from(share(tenant))).sum();
    let all: f64 = in_need.iter().filter_map(|tenant| used.get(tenant)).sum();
    let standing = |(tenant, used): (&'a str, f64)| TenantStanding {
        tenant,
        share: share(tenant),
        used: slots.get(tenant).copied().unwrap_or(0),
        decayed_slot_seconds: used / 1000.0,
        used_part: if all > 0.0 && in_need.contains(tenant) { used / all } else { 0.0 },
        fair_part: if in_need.contains(tenant) { f64::from(share(tenant)) / shares } else { 0.0 },
    };
    used.into_iter().filter(|(tenant, _)| scope.sees(tenant)).map(standing).collect()
}

/// What each tenant has used by month, with what runs up to now.
pub fn accounts(state: &ClusterState, quotas: &Quotas, scope: &Scope, now: Timestamp) -> Vec<UsageRecord> {
    let mut accounts: BTreeMap<Tenant, UsageRecord> =
        state.usages().map(|record| (record.tenant.clone(), record.clone())).collect();
    for job in state.open_jobs() {
        let Ok(tenant) = Tenant::parse(&job.record.spec.tenant) else { continue };
        for attempt in job.stages.iter().filter_map(Stage::active_attempt) {
            let account = accounts
                .entry(tenant.clone())
                .or_insert_with(|| UsageRecord::new(tenant.clone(), attempt.started_at));
            let device = device_of(state, attempt).unwrap_or("unknown");
            account.add(device, attempt.ranks.len(), attempt.started_at, now, quotas.half_life());
        }
    }
    accounts.into_values().filter(|account| scope.sees(account.tenant.as_str())).collect()
}
