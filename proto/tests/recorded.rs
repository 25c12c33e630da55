//! What earlier versions have written is read: records, messages and resolved specs, as `scripts/record_version.sh` kept them.

use std::path::PathBuf;

use crescendo_core::ids::{Generation, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::records::{AttemptState, NodeKind, Record, UnitState};
use crescendo_core::spec::JobSpec;
use crescendo_core::state::ClusterState;
use crescendo_proto::{convert, records, v1};
use prost::Message;

const JOB: &str = "uno-7f3kq2";
const VERSIONS: [&str; 1] = ["v0.1.0"];

/// The files of one kind that a version has written, by name.
fn kept(version: &str, kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(version).join(kind);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("read"))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

fn kept_one(version: &str, kind: &str, name: &str) -> Vec<u8> {
    let found = kept(version, kind).into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("{version} has no {kind}/{name}")).1
}

fn record(version: &str, name: &str) -> Record {
    records::decode(&kept_one(version, "records", name))
        .unwrap_or_else(|error| panic!("{version} {name}: {error}"))
}

#[test]
fn every_record_is_read_and_none_is_an_orphan() {
    for version in VERSIONS {
        let all: Vec<Record> = kept(version, "records")
            .into_iter()
            .map(|(name, bytes)| {
                records::decode(&bytes).unwrap_or_else(|error| panic!("{version} {name}: {error}"))
            })
            .collect();
        let (state, orphans) = ClusterState::load(all);
        assert!(orphans.is_empty(), "{orphans:?}");
        assert_eq!((state.jobs().count(), state.nodes().count()), (1, 1), "{version}");
        for (name, bytes) in kept(version, "records") {
            let read = records::decode(&bytes).expect("as above");
            let again = records::decode(&records::encode(&read)).expect("what this version writes");
            assert_eq!(again, read, "{version} {name}: written and read again");
        }
    }
}

#[test]
fn records_mean_what_they_meant() {
    for version in VERSIONS {
        let Record::Job(job) = record(version, "job-running") else { panic!("a job") };
        assert_eq!((job.id.as_str(), job.request.as_str()), (JOB, "nightly-1"));
        assert_eq!(job.state, JobState::Running { stage: 1 });
        assert_eq!(job.submitted_at, Timestamp(1_764_000_000_000));
        assert_eq!(job.started_at, Some(Timestamp(1_764_000_000_100)));
        let Record::Job(failed) = record(version, "job-failed") else { panic!("a job") };
        assert_eq!(failed.state, JobState::Failed { reason: "no such file".into() });
        let Record::Request(request) = record(version, "request") else { panic!("a request") };
        assert_eq!(request.tenant.as_ref().map(|tenant| tenant.as_str()), Some("research"));

        let Record::Attempt(attempt) = record(version, "attempt-active") else { panic!("an attempt") };
        assert_eq!((attempt.attempt.generation, attempt.ranks.len()), (Generation(3), 2));
        assert_eq!((attempt.restarts, attempt.failures_in_a_row), (2, 1));
        assert_eq!(attempt.resume_from.as_ref().map(|checkpoint| checkpoint.step), Some(500));
        assert_eq!(attempt.state, AttemptState::Active);
        let Record::Attempt(ended) = record(version, "attempt-ended") else { panic!("an attempt") };
        let at = Timestamp(1_764_000_003_000);
        assert_eq!(ended.state, AttemptState::Ended { reason: "rank 1 died".into(), at });

        let Record::Unit(free) = record(version, "unit-free") else { panic!("a unit") };
        assert_eq!((free.unit, free.lease_generation, free.failures), (7, 2, 1));
        // It kept an instant; waits are durations, and one that is not told is over.
        assert_eq!(free.state, UnitState::Free { from: Timestamp(0), wait: std::time::Duration::ZERO });
        let Record::Unit(leased) = record(version, "unit-leased") else { panic!("a unit") };
        assert!(matches!(&leased.state, UnitState::Leased { node, .. } if node.as_str() == "curator-0"));
        let Record::Unit(done) = record(version, "unit-done") else { panic!("a unit") };
        let result = done.result().expect("it is done");
        assert_eq!((result.shard.pairs, result.shard.size_bytes, result.exhausted), (61, 1_234_567, true));
        assert_eq!(result.rejected.get("similarity_low"), Some(&3));

        let Record::Checkpoint(saved) = record(version, "checkpoint") else { panic!("a checkpoint") };
        assert_eq!((saved.step, saved.next_position, saved.is_final), (500, 8000, true));
        assert_eq!(saved.files[0].name, "dit_lora.safetensors");
        let Record::Checkpoint(torn) = record(version, "checkpoint-damaged") else { panic!("a checkpoint") };
        assert_eq!(torn.damaged.as_deref(), Some("torn"));
        let Record::Node(node) = record(version, "node") else { panic!("a node") };
        assert_eq!((node.kind, node.slots, node.drained), (NodeKind::Trainer, 2, true));
        assert_eq!((node.cordon, node.arithmetic), (None, None), "what it did not know is not made up");
    }
}

#[test]
fn resolved_specs_are_read() {
    for version in VERSIONS {
        for (name, json) in kept(version, "specs") {
            let spec: JobSpec =
                serde_json::from_slice(&json).unwrap_or_else(|error| panic!("{version} {name}: {error}"));
            assert!(
                !spec.stages.is_empty() && spec.stages.iter().all(|stage| stage.train.steps > 0),
                "{name}"
            );
            // A version refuses fields that it does not know: what is new is written only where it is used.
            let before: serde_json::Value = serde_json::from_slice(&json).expect("as above");
            assert_eq!(serde_json::to_value(&spec).expect("it can be written"), before, "{version} {name}");
        }
        let json = kept_one(version, "specs", "flux-dev");
        let spec: JobSpec = serde_json::from_slice(&json).expect("as above");
        assert_eq!((spec.name.as_str(), spec.tenant.as_str(), spec.stages.len()), ("uno", "research", 2));
        assert_eq!((spec.stages[0].train.steps, spec.stages[0].data.pairs), (5000, 230_000));
    }
}

fn message<M: Message + Default>(version: &str, name: &str) -> M {
    M::decode(kept_one(version, "messages", name).as_slice())
        .unwrap_or_else(|error| panic!("{version} {name}: {error}"))
}

#[test]
fn messages_mean_what_they_meant() {
    for version in VERSIONS {
        let hello: v1::Hello = message(version, "hello");
        assert_eq!((hello.node_id.as_str(), hello.slots, hello.running.len()), ("trainer-0", 2, 1));
        assert_eq!(hello.kind(), v1::NodeKind::Trainer);
        let report: v1::AttemptReport = message(version, "attempt-report");
        assert_eq!((report.phase(), report.step, report.failed_rank), (v1::AttemptPhase::Running, 120, -1));
        assert_eq!(report.replay_passes, 2, "it had another name");
        let start: v1::StartAttempt = message(version, "start-attempt");
        serde_json::from_slice::<JobSpec>(&start.resolved_spec_json).expect("its spec is read");
        assert_eq!((start.ranks.len(), start.ranks[0].device_index), (1, 1));
        // A controller that says nothing of bounds has none.
        let reach = convert::reach(start.reach).expect("good");
        assert_eq!(reach, crescendo_core::reach::Reach::Everything);
        let assign: v1::AssignCuration = message(version, "assign-curation");
        assert_eq!(assign.stage.map(|stage| stage.job_id).as_deref(), Some(JOB));
        let commit: v1::CommitUnitRequest = message(version, "commit-unit");
        assert_eq!((commit.node_id.as_str(), commit.exhausted), ("curator-0", true));
        assert_eq!(commit.shard.map(|shard| shard.pairs), Some(61));
    }
}
