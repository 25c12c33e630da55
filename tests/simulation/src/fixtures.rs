//! Records that the tools around [`decide`](crescendo_core::decide::decide) begin with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, InvalidId, NodeId, RequestId, StageRef, Timestamp};
use crescendo_core::quotas::TenantLimits;
use crescendo_core::records::{NodeKind, NodeRecord, ShardRecord, UnitRecord, UnitResult, UnitState};
use crescendo_core::spec::JobSpec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{self, QueueLimits, Submission, Submitted};

/// A node of GPUs that nothing is known of but its slots.
pub fn node(name: &str, kind: NodeKind, slots: u32) -> Result<NodeRecord, InvalidId> {
    Ok(NodeRecord {
        id: NodeId::parse(name)?,
        incarnation: Incarnation::parse("i")?,
        kind,
        slots,
        device: "cuda".into(),
        address: format!("{name}:1"),
        labels: BTreeMap::new(),
        version: "0".into(),
        drained: false,
        cordon: None,
        arithmetic: None,
        device_memory_bytes: None,
    })
}

/// A job that trains for long, of one of twenty tenants in turn.
pub fn spec_yaml(gpus: u32, number: usize) -> String {
    let tenant = format!("team-{}", number % 20);
    format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: j, tenant: {tenant}}}\nspec:\n  model: {{preset: nano, weights: w}}\n  resources: {{gpus: {gpus}}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 8000, unitSize: 80}}\n      train: {{adapter: {{rank: 4}}, steps: 100000, globalBatch: 64}}\n"
    )
}

/// A stage's only unit, with all pairs of its source.
pub fn all_pairs(stage: &StageRef, pairs: u64) -> UnitRecord {
    let shard = ShardRecord { path: "p".into(), pairs, size_bytes: 8, sha256: "b".repeat(64) };
    let result =
        UnitResult { shard, rejected: BTreeMap::new(), scores: ScoreCounts::default(), exhausted: true };
    UnitRecord { lease_generation: 1, state: UnitState::Done(result), ..UnitRecord::new(stage, 0) }
}

/// Submits a job, however many there are.
pub fn submit(
    state: &ClusterState,
    request: RequestId,
    spec: JobSpec,
    now: Timestamp,
) -> Result<Submitted, RequestError> {
    let spec_json = Arc::from(request.to_string().into_bytes());
    let submission = Submission { request, spec: Arc::new(spec), spec_json, trace: None };
    let limits = QueueLimits {
        max_open_jobs: usize::MAX,
        retry_after: Duration::from_secs(1),
        tenant: TenantLimits::default(),
    };
    transitions::submit_job(state, submission, limits, now)
}
