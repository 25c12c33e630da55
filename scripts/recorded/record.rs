//! Writes one record of each kind, some messages and the shipped specs, as the version that this is built with writes them.
//! `scripts/record_version.sh` builds it within a checkout of that version.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{
    AttemptRef, Generation, Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Tenant, Timestamp,
};
use crescendo_core::job::JobState;
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, FileRecord, JobRecord, NodeKind, NodeRecord,
    RankPlacement, Record, RequestRecord, ShardRecord, UnitRecord, UnitResult, UnitState,
};
use crescendo_core::spec::JobSpec;
use crescendo_proto::{records, v1};
use prost::Message;

const JOB: &str = "uno-7f3kq2";
const SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn stage() -> StageRef {
    StageRef { job: JobId::parse(JOB).unwrap(), stage: StageName::parse("stage-1").unwrap() }
}

fn checkpoint(step: u64, damaged: Option<&str>) -> CheckpointRecord {
    CheckpointRecord {
        stage: stage(),
        generation: Generation(3),
        step,
        path: format!("jobs/{JOB}/stage-1/checkpoints/step-{step:08}-g3"),
        files: vec![FileRecord {
            name: "dit_lora.safetensors".into(),
            size_bytes: 4096,
            sha256: SHA256.into(),
        }],
        committed_at: Timestamp(1_764_000_000_500),
        is_final: damaged.is_none(),
        damaged: damaged.map(str::to_owned),
        next_position: step * 16,
    }
}

fn shard() -> ShardRecord {
    let path = format!("jobs/{JOB}/stage-1/pairs/unit-000007-l2.tar");
    ShardRecord { path, pairs: 61, size_bytes: 1_234_567, sha256: SHA256.into() }
}

fn unit(state: UnitState) -> Record {
    Record::Unit(UnitRecord { stage: stage(), unit: 7, lease_generation: 2, failures: 1, state })
}

fn node_record() -> Record {
    Record::Node(NodeRecord {
        id: NodeId::parse("trainer-0").unwrap(),
        incarnation: Incarnation::parse("a1b2").unwrap(),
        kind: NodeKind::Trainer,
        slots: 2,
        device: "cpu".into(),
        address: "10.0.0.1:7100".into(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        version: "0.1.0".into(),
        drained: true,
    })
}

/// By name of the file.
fn all_records(spec: &JobSpec) -> Vec<(&'static str, Record)> {
    let job = |state| {
        Record::Job(JobRecord {
            id: JobId::parse(JOB).unwrap(),
            request: RequestId::parse("nightly-1").unwrap(),
            spec: Arc::new(spec.clone()),
            spec_json: serde_json::to_vec(spec).unwrap().into(),
            state,
            submitted_at: Timestamp(1_764_000_000_000),
            trace: None,
            started_at: Some(Timestamp(1_764_000_000_100)),
            finished_at: None,
        })
    };
    let attempt = |state| {
        Record::Attempt(AttemptRecord {
            attempt: AttemptRef {
                job: JobId::parse(JOB).unwrap(),
                stage: StageName::parse("stage-1").unwrap(),
                generation: Generation(3),
            },
            ranks: (0..2)
                .map(|device_index| RankPlacement {
                    node: NodeId::parse("trainer-0").unwrap(),
                    incarnation: Incarnation::parse("a1b2").unwrap(),
                    device_index,
                })
                .collect(),
            state,
            started_at: Timestamp(1_764_000_000_200),
            restarts: 2,
            failures_in_a_row: 1,
            resume_from: Some(checkpoint(500, None)),
            init_from: None,
        ahead_of: None,
        })
    };
    let mut scores = ScoreCounts::default();
    scores.count("similarity", 0.7);
    let result = UnitResult {
        shard: shard(),
        rejected: BTreeMap::from([("similarity_low".to_owned(), 3)]),
        scores,
        exhausted: true,
    };
    let (node, expires_at) = (NodeId::parse("curator-0").unwrap(), Timestamp(1_764_000_020_000));
    vec![
        ("job-queued", job(JobState::Queued)),
        ("job-running", job(JobState::Running { stage: 1 })),
        ("job-failed", job(JobState::Failed { reason: "no such file".into() })),
        (
            "request",
            Record::Request(RequestRecord {
                tenant: Tenant::parse("research").ok(),
                request: RequestId::parse("nightly-1").unwrap(),
                job: JobId::parse(JOB).unwrap(),
            }),
        ),
        ("attempt-active", attempt(AttemptState::Active)),
        (
            "attempt-ended",
            attempt(AttemptState::Ended { reason: "rank 1 died".into(), at: Timestamp(1_764_000_003_000) }),
        ),
        ("unit-free", unit(UnitState::Free { from: Timestamp(1_764_000_009_000) })),
        ("unit-leased", unit(UnitState::Leased { node, expires_at })),
        ("unit-done", unit(UnitState::Done(result))),
        ("checkpoint", Record::Checkpoint(checkpoint(500, None))),
        ("checkpoint-damaged", Record::Checkpoint(checkpoint(400, Some("torn")))),
        ("node", node_record()),
    ]
}

/// By name of the file.
fn messages(spec: &JobSpec) -> Vec<(&'static str, Vec<u8>)> {
    let resolved_spec_json = serde_json::to_vec(spec).unwrap();
    let attempt = v1::AttemptRef { job_id: JOB.into(), stage: "stage-1".into(), generation: 3 };
    let hello = v1::Hello {
        node_id: "trainer-0".into(),
        incarnation: "a1b2".into(),
        kind: v1::NodeKind::Trainer.into(),
        slots: 2,
        device: "cpu".into(),
        address: "10.0.0.1:7100".into(),
        version: "0.1.0".into(),
        running: vec![attempt.clone()],
        ..Default::default()
    };
    let report = v1::AttemptReport {
        attempt: Some(attempt.clone()),
        phase: v1::AttemptPhase::Running.into(),
        step: 120,
        loss: 0.5,
        failed_rank: -1,
        laps: 2,
        ..Default::default()
    };
    let start = v1::StartAttempt {
        attempt: Some(attempt),
        stage_index: 0,
        ranks: vec![v1::RankPlacement { rank: 0, node_id: "trainer-0".into(), device_index: 1 }],
        resolved_spec_json: resolved_spec_json.clone(),
        curator_addresses: vec!["10.0.0.2:7200".into()],
        object_store_url: "s3://bucket/prefix".into(),
        ..Default::default()
    };
    let assign = v1::AssignCuration {
        stage: Some(v1::StageRef { job_id: JOB.into(), stage: "stage-1".into() }),
        stage_index: 0,
        resolved_spec_json,
        object_store_url: "s3://bucket/prefix".into(),
        ..Default::default()
    };
    let commit = v1::CommitUnitRequest {
        lease: Some(v1::UnitLease {
            job_id: JOB.into(),
            stage: "stage-1".into(),
            unit: 7,
            lease_generation: 2,
            ..Default::default()
        }),
        node_id: "curator-0".into(),
        shard: Some(v1::Shard {
            path: shard().path,
            pairs: 61,
            size_bytes: 1_234_567,
            sha256: SHA256.into(),
            ..Default::default()
        }),
        exhausted: true,
        ..Default::default()
    };
    vec![
        ("hello", hello.encode_to_vec()),
        ("attempt-report", report.encode_to_vec()),
        ("start-attempt", start.encode_to_vec()),
        ("assign-curation", assign.encode_to_vec()),
        ("commit-unit", commit.encode_to_vec()),
    ]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (examples, out) = (arguments.next().expect("EXAMPLES OUT"), arguments.next().expect("EXAMPLES OUT"));
    let write = |folder: &str, name: String, bytes: &[u8]| {
        let folder = Path::new(&out).join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let mut specs = BTreeMap::new();
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let spec = crescendo_core::spec::parse(&std::fs::read(&path).unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            write("specs", format!("{name}.json"), &serde_json::to_vec_pretty(&spec).unwrap());
            specs.insert(name, spec);
        }
    }
    let spec = &specs["flux-dev"];
    for (name, record) in all_records(spec) {
        write("records", format!("{name}.bin"), &records::encode(&record));
    }
    for (name, bytes) in messages(spec) {
        write("messages", format!("{name}.bin"), &bytes);
    }
}
