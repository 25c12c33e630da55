//! Records of units that are over become few, and whoever reads the log sees no difference, whenever the controller dies
//! meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{Folding, Limits, decide_folding};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{JobId, NodeId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::invariants::check_invariants;
use crescendo_core::job::JobState;
use crescendo_core::object_keys;
use crescendo_core::pairlog::PairLog;
use crescendo_core::records::{
    FailureKind, JobRecord, Record, ShardRecord, UnitFailure, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::state::{ClusterState, StateLoader};
use proptest::prelude::*;

fn stage() -> StageRef {
    StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse("stage-1").expect("valid") }
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).expect("valid")
}

fn job(pairs: u64, state: JobState) -> Record {
    let yaml = format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno}}\nspec:\n  model: {{preset: nano, weights: base.safetensors}}\n  stages: [{{data: {{source: compose, subjects: lib, pairs: {pairs}}}}}]\n"
    );
    Record::Job(JobRecord {
        id: stage().job,
        request: RequestId::parse("r").expect("valid"),
        spec: Arc::new(crescendo_core::spec::parse(yaml.as_bytes()).expect("the spec is right")),
        spec_json: Arc::from(&b"{}"[..]),
        submitted_at: Timestamp(0),
        trace: None,
        started_at: None,
        finished_at: state.is_terminal().then_some(Timestamp(9)),
        state,
    })
}

/// What may become of a unit.
#[derive(Clone, Debug)]
struct Fate {
    kind: u8,
    pairs: u64,
    lease_generation: u64,
    failures: u32,
    score: f64,
    failed_at: u64,
}

fn fates() -> impl Strategy<Value = Vec<(Fate, u32)>> {
    let fate = (0u8..16, 0u64..5, 1u64..9, 0u32..3, 0.0..4.0, 0u64..4).prop_map(
        |(kind, pairs, lease_generation, failures, score, failed_at)| Fate {
            kind,
            pairs,
            lease_generation,
            failures,
            score,
            failed_at,
        },
    );
    prop::collection::vec((fate, any::<u32>()), 1..40)
}

fn unit(number: u64, fate: &Fate, last: bool) -> UnitRecord {
    let Fate { kind, pairs, lease_generation, failures, score, failed_at } = *fate;
    let record = UnitRecord { lease_generation, failures, ..UnitRecord::new(&stage(), number) };
    let failure = UnitFailure {
        node: node("c-1"),
        kind: FailureKind::Passing,
        reason: format!("unit {number} is broken"),
        at: Timestamp(failed_at),
    };
    let mut scores = ScoreCounts::default();
    scores.count("judge", score);
    let stage = stage();
    let path = object_keys::shard(stage.job.as_str(), stage.stage.as_str(), number, lease_generation);
    let shard = match (kind, pairs) {
        (_, 0) if kind != 1 => ShardRecord::default(),
        (0, _) => ShardRecord { path: "elsewhere".into(), pairs, size_bytes: 7, sha256: "AB".repeat(32) },
        (1, _) => ShardRecord { path: String::new(), pairs, size_bytes: 100, sha256: "a".repeat(64) },
        (_, _) => ShardRecord { path, pairs, size_bytes: 10 * pairs, sha256: format!("{number:064x}") },
    };
    let rejected = BTreeMap::from([("similarity_low".to_owned(), number % 3)]);
    let done = UnitResult { shard, rejected, scores, exhausted: last && kind == 7 };
    match kind {
        2 => UnitRecord { last_failure: Some(failure), ..record }.quarantined(),
        // They leave a gap, as units do that are under way when a job ends.
        3 if number > 20 => UnitRecord {
            state: UnitState::Leased { node: node("c-2"), expires_at: Timestamp(50) },
            last_failure: Some(failure),
            ..record
        },
        4 if number > 20 => UnitRecord {
            state: UnitState::Free { from: Timestamp(3), wait: Duration::ZERO },
            last_failure: Some(failure),
            ..record
        },
        _ => UnitRecord { state: UnitState::Done(done), ..record },
    }
}

/// Everything that can be asked of a log.
fn reads(log: &PairLog) -> impl Clone + PartialEq + std::fmt::Debug + use<> {
    let failure = log.last_failure().map(|(unit, failure)| (unit.unit, unit.is_done(), failure.clone()));
    let shards: Vec<(u64, ShardRecord, u64)> = log.shards_from(0).collect();
    let holders: Vec<NodeId> = log.holders(Timestamp(1)).cloned().collect();
    let open: Vec<UnitRecord> = log.open_units().cloned().collect();
    (
        (log.prefix_units(), log.committed(), log.stored_bytes(), log.is_sealed(), log.is_begun()),
        (log.target(), log.given_up(), log.ends_short(), log.empty_in_a_row(), log.has_made()),
        (log.failures(), log.lost_leases(), failure),
        (log.rejected().clone(), log.scores().clone()),
        (shards, holders, open),
    )
}

struct World {
    /// The store.
    records: BTreeMap<String, Record>,
    state: ClusterState,
    limits: Limits,
    from: Option<JobId>,
}

impl World {
    fn put(&mut self, record: Record) {
        self.records.insert(record.key().to_string(), record.clone());
        self.state.apply(Write::Put(record)).expect("it belongs to the job");
    }

    /// One decision, of whose writes `persisted` become durable before the controller dies; all of them if it lives on.
    fn fold(&mut self, persisted: Option<usize>) -> usize {
        let Folding { writes, next } = decide_folding(&self.state, &self.limits, self.from.as_ref());
        self.from = next;
        let count = writes.len();
        for write in writes.into_iter().take(persisted.unwrap_or(count)) {
            match &write {
                Write::Put(record) => {
                    self.records.insert(record.key().to_string(), record.clone());
                }
                Write::Delete(key) => {
                    assert!(self.records.remove(&key.to_string()).is_some(), "{key} is deleted twice");
                }
            }
            self.state.apply(write).expect("it belongs to the job");
        }
        if persisted.is_some() {
            self.reload();
        }
        count
    }

    /// Another controller takes over.
    fn reload(&mut self) {
        let mut loader = StateLoader::new(self.limits.segment_units);
        self.records.values().for_each(|record| loader.add(record.clone()));
        let (state, orphans) = loader.finish();
        assert!(orphans.is_empty(), "{orphans:?}");
        self.state = state;
        self.from = None;
    }

    fn log(&self) -> &PairLog {
        &self.state.stage(&stage()).expect("there").log
    }

    fn count(&self, kind: &str) -> usize {
        self.records.keys().filter(|key| key.starts_with(kind)).count()
    }
}

proptest! {
    #[test]
    fn a_folded_log_answers_as_before(
        fates in fates(),
        target in 1u64..90,
        segment_units in 1u64..7,
        fold_deletes in 1usize..5,
        deaths in prop::collection::vec(prop::option::weighted(0.3, 0usize..4), 0..60),
        later_segment_units in 1u64..7,
    ) {
        let units: Vec<UnitRecord> = fates
            .iter()
            .enumerate()
            .map(|(number, (fate, _))| unit(number as u64, fate, number + 1 == fates.len()))
            .collect();
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|&at| fates[at].1);
        let limits = Limits { segment_units, fold_deletes, ..Limits::default() };
        let state = ClusterState::new(segment_units);
        let mut world = World { records: BTreeMap::new(), state, limits, from: None };
        world.put(job(target, JobState::Running { stage: 0 }));
        for at in order {
            world.put(Record::Unit(units[at].clone()));
            prop_assert_eq!(world.fold(None), 0, "of a stage that is worked on");
        }
        let before = reads(world.log());
        world.put(job(target, JobState::Cancelled { reason: "enough".into() }));
        prop_assert_eq!(reads(world.log()), before.clone());
        let before = reads(world.log());
        for death in deaths {
            world.fold(death);
            prop_assert_eq!(reads(world.log()), before.clone());
            prop_assert_eq!(check_invariants(&world.state), Vec::<String>::new());
        }
        let mut rounds = 0;
        while world.fold(None) > 0 {
            rounds += 1;
            prop_assert!(rounds < 500, "folding comes to no end");
            prop_assert_eq!(reads(world.log()), before.clone());
        }
        // One that is left alone stays as it is.
        let open = world.log().open_units().count();
        let left = world.count("units/") - open;
        prop_assert!(left <= 1 || segment_units == 1, "{left} records of {} units", units.len());
        world.reload();
        prop_assert_eq!(reads(world.log()), before.clone());
        // A controller that is set otherwise goes on from what is there.
        world.limits.segment_units = later_segment_units;
        world.reload();
        while world.fold(None) > 0 {}
        prop_assert_eq!(reads(world.log()), before.clone());
        // The observer who takes every change as it comes sees the same.
        prop_assert_eq!(check_invariants(&world.state), Vec::<String>::new());
    }
}

/// Whoever follows the changes, such as the simulation's checker, need not know how many units a segment has.
#[test]
fn segments_of_any_length_are_taken_over_by_a_log_that_has_the_units() {
    let fate = |kind| Fate { kind, pairs: 2, lease_generation: 1, failures: 1, score: 1.0, failed_at: 2 };
    let units: Vec<UnitRecord> =
        (0..10).map(|number| unit(number, &fate(if number == 4 { 2 } else { 9 }), false)).collect();
    let mut writer = PairLog::new(&stage(), 18, 4);
    let mut reader = PairLog::new(&stage(), 18, 1000);
    let mut other = PairLog::new(&stage(), 18, 3);
    for unit in units {
        writer.put(unit.clone());
        reader.put(unit.clone());
        other.put(unit);
    }
    let before = reads(&writer);
    while let Some(segment) = writer.next_segment() {
        writer.put_segment(segment.clone());
        reader.put_segment(segment.clone());
        other.put_segment(segment);
        for log in [&mut writer, &mut reader, &mut other] {
            let superfluous: Vec<u64> = log.superfluous().collect();
            superfluous.into_iter().for_each(|unit| log.forget_record(unit));
        }
    }
    for log in [&writer, &reader, &other] {
        assert_eq!(reads(log), before);
        assert_eq!((log.folded_units(), log.segments_apart()), (10, 0));
    }
}

/// Without the segment before it, it is not known what comes between.
#[test]
fn a_segment_behind_a_gap_is_told_of_and_kept() {
    let fate = Fate { kind: 9, pairs: 2, lease_generation: 1, failures: 0, score: 1.0, failed_at: 0 };
    let mut writer = PairLog::new(&stage(), 18, 4);
    (0..9).for_each(|number| writer.put(unit(number, &fate, false)));
    let mut segments = Vec::new();
    while let Some(segment) = writer.next_segment() {
        writer.put_segment(segment.clone());
        let superfluous: Vec<u64> = writer.superfluous().collect();
        superfluous.into_iter().for_each(|unit| writer.forget_record(unit));
        segments.push(segment);
    }
    assert_eq!(segments.iter().map(|segment| segment.first_unit).collect::<Vec<_>>(), [0, 4]);
    let mut torn = PairLog::new(&stage(), 18, 4);
    torn.put_segment(segments[1].clone());
    assert_eq!((torn.prefix_units(), torn.segments_apart()), (0, 1));
    torn.put_segment(segments[0].clone());
    assert_eq!((torn.prefix_units(), torn.segments_apart()), (8, 0));
}
