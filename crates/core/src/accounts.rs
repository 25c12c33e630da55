//! What tenants use is added up: as attempts end, and for whoever asks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::holdings::device_of;
use crate::ids::{Tenant, Timestamp};
use crate::records::{AttemptRecord, Record, Write};
use crate::state::{ClusterState, Job, Stage};
use crate::usage::{UsageRecord, used};

/// What each tenant of the open `jobs` has used.
pub fn by_tenant<'a>(
    state: &ClusterState,
    jobs: &[&'a Job],
    half_life: Duration,
    now: Timestamp,
) -> BTreeMap<&'a str, f64> {
    let mut active: BTreeMap<&str, Vec<&AttemptRecord>> = BTreeMap::new();
    for job in jobs {
        let of_tenant = active.entry(job.record.spec.tenant.as_str()).or_default();
        of_tenant.extend(job.stages.iter().filter_map(Stage::active_attempt));
    }
    let used_by = |(tenant, active): (&'a str, Vec<&AttemptRecord>)| {
        let record = Tenant::parse(tenant).ok().and_then(|tenant| state.usage(&tenant));
        (
            tenant,
            used(
                record,
                active.into_iter().map(|attempt| (attempt.ranks.len(), attempt.started_at)),
                half_life,
                now,
            ),
        )
    };
    active.into_iter().map(used_by).collect()
}

/// The tenants' records once those attempts have ended that `writes` end. Nothing is counted past `now`.
pub fn settle(state: &ClusterState, writes: &[Write], half_life: Duration, now: Timestamp) -> Vec<Write> {
    let mut records: BTreeMap<Tenant, UsageRecord> = BTreeMap::new();
    for write in writes {
        let Write::Put(Record::Attempt(ended)) = write else { continue };
        let Some(at) = ended.ended_at().map(|at| at.min(now)) else { continue };
        let running = state.stage(&ended.attempt.stage_ref()).and_then(|stage| stage.active_attempt());
        // One that was placed and ended in one step has used nothing.
        if running.is_none_or(|running| running.attempt != ended.attempt) {
            continue;
        }
        let tenant = state.tenant_of(&ended.attempt.job).and_then(|tenant| Tenant::parse(tenant).ok());
        let Some(tenant) = tenant else { continue };
        let device = device_of(state, ended).unwrap_or("unknown");
        let record = records.entry(tenant).or_insert_with_key(|tenant| {
            state.usage(tenant).cloned().unwrap_or_else(|| UsageRecord::new(tenant.clone(), at))
        });
        record.add(device, ended.ranks.len(), ended.started_at, at, half_life);
    }
    records.into_values().map(|record| Write::Put(Record::Usage(record))).collect()
}
