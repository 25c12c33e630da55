//! Leftovers in the object store: nothing that a record names, or may come to name, is ever one; everything else that is old is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{Limits, decide_folding};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{AttemptRef, Generation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::leftovers::{CollectRules, ListedObject, leftovers};
use crescendo_core::object_keys;
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, JobRecord, Record, ShardRecord, UnitRecord, UnitResult,
    UnitState, Write,
};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::unreadable::UnreadableRecords;
use proptest::prelude::*;

const GRACE: Duration = Duration::from_secs(3600);
const WALL: Timestamp = Timestamp(1_000_000_000);
/// Written longer ago than the grace time, and less long.
const OLD: Timestamp = Timestamp(WALL.0 - 3_600_000);
const YOUNG: Timestamp = Timestamp(WALL.0 - 3_599_999);

fn stage() -> StageRef {
    let job = JobId::parse("j").expect("valid");
    StageRef { job, stage: StageName::parse("stage-1").expect("valid") }
}

fn job(has_ended: bool) -> Record {
    let yaml = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: base.safetensors}\n  stages: [{data: {source: compose, subjects: lib, pairs: 1000}}]\n";
    let state = if has_ended { JobState::Succeeded } else { JobState::Running { stage: 0 } };
    Record::Job(JobRecord {
        id: stage().job,
        request: RequestId::parse("r").expect("valid"),
        spec: Arc::new(spec::parse(yaml.as_bytes()).expect("the spec is right")),
        spec_json: Arc::from(&b"{}"[..]),
        state,
        submitted_at: Timestamp(0),
        trace: None,
        started_at: None,
        finished_at: None,
    })
}

fn unit(unit: u64, lease_generation: u64, state: UnitState) -> Record {
    Record::Unit(UnitRecord {
        stage: stage(),
        unit,
        lease_generation,
        released: 0,
        failures: 0,
        failed_on: Vec::new(),
        last_failure: None,
        state,
    })
}

fn done(path: String) -> UnitState {
    let shard = ShardRecord { path, pairs: 1, size_bytes: 1, sha256: "a".repeat(64) };
    let (rejected, scores) = (BTreeMap::new(), ScoreCounts::default());
    UnitState::Done(UnitResult { shard, rejected, scores, exhausted: false })
}

fn checkpoint(step: u64, generation: u64) -> CheckpointRecord {
    CheckpointRecord {
        stage: stage(),
        generation: Generation(generation),
        step,
        path: folder(step, generation),
        files: Vec::new(),
        committed_at: Timestamp(0),
        is_final: false,
        damaged: step.is_multiple_of(2).then(|| "torn".into()),
        next_position: 0,
    }
}

fn attempt(generation: u64, is_active: bool, resume_from: Option<CheckpointRecord>) -> Record {
    let StageRef { job, stage } = stage();
    let ended = AttemptState::Ended { reason: "died".into(), at: Timestamp(0) };
    Record::Attempt(AttemptRecord {
        attempt: AttemptRef { job, stage, generation: Generation(generation) },
        ranks: Vec::new(),
        state: if is_active { AttemptState::Active } else { ended },
        started_at: Timestamp(0),
        restarts: 0,
        failures_in_a_row: 0,
        resume_from,
        init_from: None,
        ran_millis: 0,
        ahead_of: None,
    })
}

fn folder(step: u64, generation: u64) -> String {
    object_keys::checkpoint("j", "stage-1", step, generation)
}

fn shard(unit: u64, lease_generation: u64) -> String {
    object_keys::shard("j", "stage-1", unit, lease_generation)
}

fn of_job_as_a_whole() -> Vec<String> {
    vec![
        object_keys::rejected_sample("j", "stage-1", 1),
        format!("{}/events.out.tfevents.1.crescendo", object_keys::events("j", "stage-1")),
        object_keys::log_chunk("j", 1, "n-1", "id"),
        format!("{}/c0ffee.json", object_keys::spending("j", "judge")),
        // Of a version that is to come.
        "jobs/j/stage-1/novel/thing.bin".into(),
        "jobs/j/stage-1/checkpoints/best/model.safetensors".into(),
    ]
}

/// The keys that are leftovers, of objects that were all written at `modified`.
fn judged(state: &ClusterState, keys: &[String], modified: Timestamp, owns_root: bool) -> Vec<String> {
    let listed: Vec<ListedObject> =
        keys.iter().map(|key| ListedObject { key: key.clone(), size_bytes: 1, modified }).collect();
    let rules = CollectRules { grace: GRACE, owns_root };
    leftovers(state, &listed, rules, WALL).into_iter().map(|index| keys[index].clone()).collect()
}

fn load(records: Vec<Record>) -> ClusterState {
    let (state, orphans) = ClusterState::load(records);
    assert!(orphans.is_empty(), "{orphans:?}");
    state
}

#[test]
fn what_dead_attempts_and_lost_leases_have_left_goes_after_its_grace() {
    let holder = NodeId::parse("c").expect("valid");
    let state = load(vec![
        job(false),
        unit(0, 2, done(shard(0, 2))),
        unit(1, 4, UnitState::Leased { node: holder, expires_at: Timestamp(0) }),
        attempt(3, true, None),
        Record::Checkpoint(checkpoint(100, 2)),
    ]);
    let left = [
        shard(0, 1),
        format!("{}/dit_lora.safetensors", folder(200, 2)),
        format!("{}/optimizer.safetensors#1", folder(300, 3)),
    ];
    let stays = [
        shard(0, 2),
        shard(1, 3),
        shard(1, 4),
        shard(2, 1),
        format!("{}/dit_lora.safetensors", folder(100, 2)),
        format!("{}/dit_lora.safetensors", folder(300, 3)),
        format!("{}/dit_lora.safetensors", folder(300, 4)),
        "jobs/unknown/stage-1/pairs/unit-000000-l1.tar".into(),
        "prompts/of-1/a.json".into(),
        "tenants/a/b".into(),
    ];
    let all: Vec<String> = left.iter().chain(&stays).cloned().chain(of_job_as_a_whole()).collect();
    assert_eq!(judged(&state, &all, OLD, false), left);
    assert_eq!(judged(&state, &all, YOUNG, true), [""; 0]);
    assert_eq!(judged(&state, &all, Timestamp(WALL.0 + 5), true), [""; 0], "a store's clock may be ahead");
    // A job without a record has been one of this cluster where the root is its own.
    let unknown = "jobs/unknown/stage-1/pairs/unit-000000-l1.tar".to_owned();
    assert_eq!(judged(&state, &all, OLD, true).into_iter().filter(|key| *key == unknown).count(), 1);
}

#[test]
fn a_job_with_a_record_that_cannot_be_read_keeps_everything() {
    let mut unreadable = UnreadableRecords::default();
    unreadable.add("units/j/stage-1/000000000009".into(), "a newer version".into());
    let state = load(vec![job(true), attempt(3, false, None)]).with_unreadable(unreadable);
    let keys = [shard(0, 1), format!("{}/state.json", folder(200, 2))];
    assert_eq!(judged(&state, &keys, OLD, true), [""; 0]);
    let mut unreadable = UnreadableRecords::default();
    unreadable.add("jobs/j".into(), "a newer version".into());
    let hidden = ClusterState::default().with_unreadable(unreadable);
    assert_eq!(judged(&hidden, &keys, OLD, true), [""; 0]);
}

#[test]
fn a_log_whose_units_are_folded_keeps_its_shards() {
    let records = (0..5).map(|number| unit(number, 2, done(shard(number, 2))));
    let mut state = ClusterState::new(2);
    for record in std::iter::once(job(true)).chain(records) {
        state.apply(Write::Put(record)).expect("it belongs to the job");
    }
    let keys: Vec<String> = (0..5).flat_map(|number| [shard(number, 1), shard(number, 2)]).collect();
    let lost: Vec<String> = (0..5).map(|number| shard(number, 1)).collect();
    let limits = Limits::default();
    let mut folded = 0;
    loop {
        assert_eq!(judged(&state, &keys, OLD, true), lost);
        let writes = decide_folding(&state, &limits, None).writes;
        if writes.is_empty() {
            break;
        }
        folded += writes.len();
        writes.into_iter().for_each(|write| state.apply(write).expect("it belongs to the job"));
    }
    assert!(folded >= 4, "nothing was folded");
}

#[derive(Clone, Debug)]
struct Scene {
    has_ended: bool,
    /// What became of each unit: done by this lease, done without a pair, or under way.
    units: Vec<(u64, u8)>,
    checkpoints: Vec<(u64, u64)>,
    generation: u64,
    is_active: bool,
    /// It goes on from this one, which is not registered any more.
    resumed: Option<(u64, u64)>,
}

fn scene() -> impl Strategy<Value = Scene> {
    let units = prop::collection::vec((1..4u64, 0..3u8), 0..5);
    let checkpoints = prop::collection::vec((1..4u64, 1..4u64), 0..4);
    let resumed = prop::option::of((1..4u64, 1..4u64));
    (any::<bool>(), units, checkpoints, 1..4u64, any::<bool>(), resumed).prop_map(
        |(has_ended, units, checkpoints, generation, is_active, resumed)| Scene {
            has_ended,
            units,
            checkpoints,
            generation,
            is_active: is_active && !has_ended,
            resumed,
        },
    )
}

fn records(scene: &Scene) -> Vec<Record> {
    let resumed = scene.resumed.map(|(step, generation)| checkpoint(step, generation));
    let mut records = vec![job(scene.has_ended), attempt(scene.generation, scene.is_active, resumed)];
    for (number, (lease, fate)) in (0..).zip(&scene.units) {
        let holder = NodeId::parse("c").expect("valid");
        let state = match fate {
            0 => done(shard(number, *lease)),
            1 => done(String::new()),
            _ => UnitState::Leased { node: holder, expires_at: Timestamp(0) },
        };
        records.push(unit(number, *lease, state));
    }
    records.extend(scene.checkpoints.iter().map(|(step, of)| Record::Checkpoint(checkpoint(*step, *of))));
    records
}

proptest! {
    #[test]
    fn nothing_that_is_named_goes_and_everything_else_does(scene in scene()) {
        let state = load(records(&scene));
        let mut keys = of_job_as_a_whole();
        // Whether each may go.
        let mut expected = vec![false; keys.len()];
        for number in 0..6 {
            let fate = usize::try_from(number).ok().and_then(|at| scene.units.get(at));
            for lease in 0..5 {
                keys.push(shard(number, lease));
                expected.push(match fate {
                    Some((named, 0)) => *named != lease,
                    Some((_, 1)) => true,
                    Some(_) | None => scene.has_ended,
                });
            }
        }
        for step in 1..5 {
            for generation in 1..5 {
                keys.push(format!("{}/dit_lora.safetensors", folder(step, generation)));
                let named = scene.checkpoints.contains(&(step, generation))
                    || scene.resumed == Some((step, generation));
                let may_come = !scene.has_ended
                    && (generation > scene.generation || generation == scene.generation && scene.is_active);
                expected.push(!named && !may_come);
            }
        }
        let old: Vec<String> =
            keys.iter().zip(&expected).filter(|(_, goes)| **goes).map(|(key, _)| key.clone()).collect();
        prop_assert_eq!(judged(&state, &keys, OLD, true), old);
        prop_assert_eq!(judged(&state, &keys, YOUNG, true), Vec::<String>::new());
    }
}
