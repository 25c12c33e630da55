//! What a tenant may use: slots at once, jobs in the queue, bytes in the object store, calls a second.
//!
//! A tenant that is at its limit waits or is refused; nothing that runs is stopped. Bytes are what the registry knows:
//! committed shards and checkpoints that have not expired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::classes::PriorityClasses;
use crate::deletion::DeletionPhase;
use crate::error::{Overreach, RequestError};
use crate::ids::{NodeId, Tenant, Timestamp};
use crate::job::JobState;
pub use crate::queues::QueueOrder;
use crate::queues::{DEFAULT_HALF_LIFE, Queues};
use crate::reach::ReachRules;
use crate::sizes::gigabytes;
use crate::spec::JobSpec;
use crate::starts;
use crate::state::{ClusterState, Job, Stage};
use crate::webhook::Webhooks;

/// Hint to a submit that is refused for storage, which is not freed within seconds.
const STORAGE_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Limits of one tenant; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Slots that its attempts hold at once.
    pub max_gpus: Option<u32>,
    /// Jobs that are accepted and not running.
    pub max_queued_jobs: Option<u32>,
    /// Bytes of its shards and checkpoints; at that, no further stage is begun and no further job taken.
    pub max_stored_bytes: Option<u64>,
    /// Of each of its callers.
    pub calls: Option<CallRate>,
    /// Highest priority that its jobs may have.
    pub max_priority: Option<i32>,
    /// Curators that make pairs of its jobs at once.
    pub max_curators: Option<u32>,
    /// Its jobs are deleted by themselves this long after they have ended.
    pub keep_ended_for: Option<Duration>,
    /// Its jobs that have ended and stay; the others are deleted by themselves, the oldest first.
    pub keep_ended_jobs: Option<u32>,
    /// What is fair for it is this many times what is for a tenant of share 1; 1 if `None`.
    pub share: Option<u32>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRate {
    pub per_sec: u32,
    /// Calls that may come at once after a pause; at least 1.
    pub burst: u32,
}

/// The limits of all tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    pub listed: BTreeMap<Tenant, TenantLimits>,
    /// Limits of every tenant that is not listed.
    pub others: TenantLimits,
    /// Tenants that are not listed may submit jobs.
    pub others_may_submit: bool,
    /// Which files, keys and addresses their specs may name.
    pub reach: ReachRules,
    /// Whose jobs may take the place of whose.
    pub classes: PriorityClasses,
    /// What becomes of slots that the first job in the queue waits for and cannot use yet.
    pub order: QueueOrder,
    pub queues: Queues,
    /// Among jobs of one priority those of the tenant go first that has used least for its share; what was used this long ago
    /// counts half. `None`: the oldest goes first.
    pub fair_share: Option<Duration>,
    /// Where the ends of jobs are told.
    pub webhooks: Webhooks,
}

/// Nobody is limited, and the tenant of those who name none is the operator.
impl Default for Quotas {
    fn default() -> Self {
        Self {
            listed: BTreeMap::new(),
            others: TenantLimits::default(),
            others_may_submit: true,
            reach: ReachRules::default(),
            classes: PriorityClasses::default(),
            order: QueueOrder::default(),
            queues: Queues::default(),
            fair_share: None,
            webhooks: Webhooks::default(),
        }
    }
}

impl Quotas {
    fn listed(&self, tenant: &str) -> Option<&TenantLimits> {
        if self.listed.is_empty() {
            return None;
        }
        self.listed.get(&Tenant::parse(tenant).ok()?)
    }

    pub fn of(&self, tenant: &str) -> TenantLimits {
        *self.listed(tenant).unwrap_or(&self.others)
    }

    /// Time after which what was used counts half.
    pub fn half_life(&self) -> Duration {
        self.fair_share.unwrap_or(DEFAULT_HALF_LIFE)
    }

    /// What becomes of slots that the first job of a queue waits for.
    pub fn order_of(&self, spec: &JobSpec) -> QueueOrder {
        self.queues.of(spec).and_then(|(_, queue)| queue.order).unwrap_or(self.order)
    }

    /// Whether some tenant's jobs are deleted by themselves.
    pub fn retires(&self) -> bool {
        let mut limits = self.listed.values().chain([&self.others]);
        limits.any(|limits| limits.keep_ended_for.is_some() || limits.keep_ended_jobs.is_some())
    }

    pub fn check_may_submit(&self, tenant: &str) -> Result<(), RequestError> {
        if self.others_may_submit || self.listed(tenant).is_some() {
            return Ok(());
        }
        Err(RequestError::Forbidden {
            what: format!("tenant {tenant} is not one of those that may submit jobs"),
        })
    }

    /// Whether `node` may begin a unit for `tenant`: it works for it already, or fewer others do than may.
    pub fn may_curate(&self, state: &ClusterState, tenant: &str, node: &NodeId, now: Timestamp) -> bool {
        let Some(most) = self.of(tenant).max_curators else { return true };
        let jobs = state.open_jobs().filter(|job| job.record.spec.tenant == tenant);
        let stages = jobs.flat_map(|job| &job.stages).filter(|stage| !stage.log.is_sealed());
        let holders: BTreeSet<&NodeId> = stages.flat_map(|stage| stage.log.holders(now)).collect();
        holders.contains(node) || holders.len() < most as usize
    }

    /// What in a spec its tenant may not have: files, keys and addresses out of its reach, a priority above its own.
    pub fn overreaches(&self, spec: &JobSpec, state: &ClusterState) -> Vec<Overreach> {
        let mut found = self.reach.of(&spec.tenant, spec, state).overreaches(spec);
        found.extend(starts::of(spec, state));
        found.extend(self.queues.overreach(spec));
        if let Some(most) = self.of(&spec.tenant).max_priority.filter(|most| spec.priority > *most) {
            let (tenant, priority) = (&spec.tenant, spec.priority);
            let message = format!("{priority} is more than tenant {tenant} may have: at most {most}");
            found.push(Overreach { field: "spec.priority".to_owned(), message });
        }
        found
    }

    /// Tenants that store as much as they may, or more: stored bytes and limit.
    pub fn full_tenants(&self, state: &ClusterState) -> BTreeMap<String, (u64, u64)> {
        let limits = self.listed.values().chain([&self.others]);
        if limits.into_iter().all(|limits| limits.max_stored_bytes.is_none()) {
            return BTreeMap::new();
        }
        let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
        for (tenant, bytes) in stored_parts(state) {
            let sum = stored.entry(tenant).or_insert(0);
            *sum = sum.saturating_add(bytes);
        }
        let full = |(tenant, stored): (&str, u64)| {
            let limit = self.of(tenant).max_stored_bytes.filter(|limit| stored >= *limit)?;
            Some((tenant.to_owned(), (stored, limit)))
        };
        stored.into_iter().filter_map(full).collect()
    }
}

/// Bytes that a tenant's jobs have in the object store, as registered. Those of a job that is being deleted count until they are
/// gone, and what was kept of it counts on.
pub fn stored_bytes(state: &ClusterState, tenant: &str) -> u64 {
    let own = stored_parts(state).filter(|(of, _)| *of == tenant);
    own.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(bytes))
}

/// What each job has stored, and what is kept of each that is deleted, with its tenant.
fn stored_parts(state: &ClusterState) -> impl Iterator<Item = (&str, u64)> {
    let has_files = |job: &&Job| {
        state.deletion(&job.record.id).is_none_or(|deletion| deletion.phase == DeletionPhase::Files)
    };
    let of_jobs = state.jobs().filter(has_files).map(|job| {
        let stages = job.stages.iter().map(Stage::stored_bytes);
        (job.record.spec.tenant.as_str(), stages.fold(0, |sum: u64, bytes| sum.saturating_add(bytes)))
    });
    of_jobs.chain(state.deletions().map(|deletion| (deletion.tenant.as_str(), deletion.kept_bytes())))
}

/// Whether the tenant has room for one more job.
pub(crate) fn check_submit(
    state: &ClusterState,
    tenant: &Tenant,
    limits: &TenantLimits,
    retry_after: Duration,
) -> Result<(), RequestError> {
    if let Some(limit) = limits.max_queued_jobs {
        let queued = state.open_jobs().filter(|job| {
            job.record.spec.tenant == tenant.as_str() && !matches!(job.record.state, JobState::Running { .. })
        });
        let queued = queued.count();
        if queued >= limit as usize {
            let what = format!("tenant {tenant} has {queued} of its {limit} queued jobs");
            return Err(RequestError::Full { what, retry_after });
        }
    }
    if let Some(limit) = limits.max_stored_bytes {
        let stored = stored_bytes(state, tenant.as_str());
        if stored >= limit {
            let what = format!("tenant {tenant} stores {} of its {}", gigabytes(stored), gigabytes(limit));
            return Err(RequestError::Full { what, retry_after: STORAGE_RETRY_AFTER });
        }
    }
    Ok(())
}
