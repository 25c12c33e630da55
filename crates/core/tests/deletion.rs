//! Deleting jobs: only what has ended and nobody needs goes; it goes to the end, wherever a controller dies in between; and nothing of
//! another job goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::RequestError;
use crescendo_core::access::Scope;
use crescendo_core::decide::{Limits, decide_deleting, decide_retention, next_files};
use crescendo_core::deletion::{DeletionPhase, DeletionRecord, KeptParts, MAX_LINEAGES, ObjectTotals};
use crescendo_core::ids::{
    AttemptRef, Generation, JobId, NodeId, RequestId, StageName, StageRef, Tenant, Timestamp,
};
use crescendo_core::invariants::check_invariants;
use crescendo_core::job::JobState;
use crescendo_core::leftovers::{CollectRules, ListedObject, deleted_objects, leftovers};
use crescendo_core::object_keys;
use crescendo_core::observed::Observed;
use crescendo_core::quotas::{Quotas, TenantLimits, stored_bytes};
use crescendo_core::reach::{Bounds, Reach};
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, FileRecord, JobRecord, Record, RecordKey, RequestRecord,
    ShardRecord, StageRecord, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::references::{names_deleted, references_to};
use crescendo_core::spec::{self, JobSpec};
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{
    DeleteOrder, QueueLimits, Submission, commit_checkpoint, delete_job, files_gone, keep_checkpoint,
    lineage_of, submit_job,
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_000_000_000);
const ALL: KeptParts = KeptParts { checkpoints: true, pairs: true, logs: true };
const NONE: KeptParts = KeptParts { checkpoints: false, pairs: false, logs: false };

fn id(job: &str) -> JobId {
    JobId::parse(job).expect("valid")
}

fn stage_of(job: &str) -> StageRef {
    StageRef { job: id(job), stage: StageName::parse("stage-1").expect("valid") }
}

fn spec_with(weights: &str) -> JobSpec {
    let yaml = format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno}}\nspec:\n  model: {{preset: nano, weights: \"{weights}\"}}\n  stages: [{{data: {{source: compose, subjects: lib, pairs: 1000}}}}]\n"
    );
    spec::parse(yaml.as_bytes()).expect("the spec is right")
}

fn job(name: &str, state: JobState, weights: &str) -> JobRecord {
    let finished_at = state.is_terminal().then_some(Timestamp(2000));
    JobRecord {
        id: id(name),
        request: RequestId::parse(&format!("request-{name}")).expect("valid"),
        spec: Arc::new(spec_with(weights)),
        spec_json: Arc::from(&b"{}"[..]),
        state,
        submitted_at: Timestamp(1000),
        trace: None,
        started_at: None,
        finished_at,
    }
}

fn ended(name: &str) -> Record {
    Record::Job(job(name, JobState::Succeeded, "base.safetensors"))
}

fn checkpoint(job: &str, step: u64, is_final: bool) -> CheckpointRecord {
    let path = object_keys::checkpoint(job, "stage-1", step, 1);
    let file = FileRecord { name: "model.safetensors".into(), size_bytes: 100, sha256: "c".repeat(64) };
    CheckpointRecord {
        stage: stage_of(job),
        generation: Generation(1),
        step,
        path,
        files: vec![file],
        committed_at: Timestamp(0),
        is_final,
        damaged: None,
        next_position: 0,
    }
}

fn unit(job: &str, unit: u64) -> Record {
    let shard = ShardRecord {
        path: object_keys::shard(job, "stage-1", unit, 1),
        pairs: 1,
        size_bytes: 10,
        sha256: "a".repeat(64),
    };
    let result =
        UnitResult { shard, rejected: BTreeMap::new(), scores: Default::default(), exhausted: false };
    let mut record = UnitRecord::new(&stage_of(job), unit);
    (record.lease_generation, record.state) = (1, UnitState::Done(result));
    Record::Unit(record)
}

fn attempt(job: &str, active: bool) -> Record {
    let StageRef { job, stage } = stage_of(job);
    let ended = AttemptState::Ended { reason: "done".into(), at: Timestamp(0) };
    Record::Attempt(AttemptRecord {
        attempt: AttemptRef { job, stage, generation: Generation(1) },
        ranks: Vec::new(),
        state: if active { AttemptState::Active } else { ended },
        started_at: Timestamp(0),
        restarts: 0,
        failures_in_a_row: 0,
        resume_from: None,
        init_from: None,
        ran_millis: 0,
        ahead_of: None,
    })
}

/// Everything that a job leaves: its own record, its request, `units` units and two checkpoints.
fn whole_job(name: &str, units: u64) -> Vec<Record> {
    let request = RequestRecord {
        tenant: Tenant::parse("default").ok(),
        request: RequestId::parse(&format!("request-{name}")).expect("valid"),
        job: id(name),
    };
    let settled = StageRecord { stage: stage_of(name), precision: None, ran_on: Vec::new() };
    let mut records =
        vec![ended(name), Record::Request(request), Record::Stage(settled), attempt(name, false)];
    records.extend((0..units).map(|number| unit(name, number)));
    records.push(Record::Checkpoint(checkpoint(name, 5, false)));
    records.push(Record::Checkpoint(checkpoint(name, 10, true)));
    records
}

fn order(keep: KeptParts) -> DeleteOrder<'static> {
    DeleteOrder {
        keep,
        spec_sha256: "b".repeat(64),
        root: Some("/mnt/objects"),
        scope: &Scope::Everything,
        by_retention: None,
    }
}

struct World {
    /// The store.
    records: BTreeMap<RecordKey, Record>,
    state: ClusterState,
    limits: Limits,
}

impl World {
    fn new(records: Vec<Record>) -> Self {
        let mut world = Self {
            records: BTreeMap::new(),
            state: ClusterState::default(),
            limits: Limits { fold_deletes: 2, ..Limits::default() },
        };
        records.into_iter().for_each(|record| world.write(Write::Put(record)));
        world
    }

    fn write(&mut self, write: Write) {
        match &write {
            Write::Put(record) => {
                self.records.insert(record.key(), record.clone());
            }
            Write::Delete(key) => {
                assert!(self.records.remove(key).is_some(), "{key} is deleted twice");
            }
        }
        self.state.apply(write).expect("it belongs to something");
    }

    fn delete(&mut self, job: &str, keep: KeptParts) -> Result<DeletionRecord, RequestError> {
        let (record, writes) = delete_job(&self.state, &id(job), order(keep), NOW)?;
        writes.into_iter().for_each(|write| self.write(write));
        Ok(record)
    }

    fn files_gone(&mut self, job: &str) {
        let removed = ObjectTotals { objects: 3, bytes: 30 };
        files_gone(&self.state, &id(job), removed).into_iter().for_each(|write| self.write(write));
    }

    /// One decision, of which `persisted` writes become durable before the controller dies; all of them if it lives on. What has to
    /// be written together is.
    fn step(&mut self, persisted: Option<usize>) -> usize {
        let records = &self.records;
        let records_of = |deletion: &DeletionRecord| {
            let of_job = |key: &&RecordKey| match key {
                RecordKey::Request(_, request) => *request == deletion.lineage.request,
                key => key.job() == Some(&deletion.job),
            };
            records.keys().filter(of_job).cloned().collect::<Vec<_>>().into_iter()
        };
        let writes = decide_deleting(&self.state, &self.limits, records_of, NOW);
        let count = writes.len();
        let ends = writes.iter().any(|write| matches!(write, Write::Delete(RecordKey::Job(_))));
        let persisted = match persisted {
            Some(_) if ends => count * usize::from(persisted != Some(0)),
            persisted => persisted.unwrap_or(count),
        };
        writes.into_iter().take(persisted).for_each(|write| self.write(write));
        count
    }

    fn reload(&mut self) {
        let (state, orphans) = ClusterState::load(self.records.values().cloned().collect());
        assert!(orphans.is_empty(), "{orphans:?}");
        self.state = state;
    }

    fn of_job(&self, job: &str) -> Vec<String> {
        let of_job = |key: &&RecordKey| key.job() == Some(&id(job));
        self.records.keys().filter(of_job).map(ToString::to_string).collect()
    }
}

proptest! {
    #[test]
    fn a_deletion_comes_to_the_same_end_wherever_it_is_interrupted(
        units in 0u64..12,
        fold_deletes in 1usize..5,
        deaths in prop::collection::vec(prop::option::weighted(0.5, 0usize..5), 0..40),
        gone_after in 0usize..4,
        keep_checkpoints in any::<bool>(),
    ) {
        let mut world = World::new([whole_job("gone", units), whole_job("stays", 3)].concat());
        world.limits.fold_deletes = fold_deletes;
        let before: BTreeSet<String> = world.of_job("stays").into_iter().collect();
        let whole = stored_bytes(&world.state, "default");
        let keep = KeptParts { checkpoints: keep_checkpoints, ..NONE };
        world.delete("gone", keep).expect("it has ended");
        for step in 0..gone_after {
            prop_assert_eq!(world.step(None), 0, "records go after files, step {}", step);
            prop_assert_eq!(stored_bytes(&world.state, "default"), whole, "bytes count until they are gone");
        }
        world.files_gone("gone");
        let kept = if keep_checkpoints { 200 } else { 0 };
        let rest = 230 + kept;
        prop_assert_eq!(stored_bytes(&world.state, "default"), rest);
        for death in deaths {
            world.step(death);
            if death.is_some() {
                world.reload();
            }
            prop_assert_eq!(check_invariants(&world.state), Vec::<String>::new());
            prop_assert_eq!(stored_bytes(&world.state, "default"), rest);
            // The job goes last: whoever asks meanwhile is told.
            let is_gone = matches!(world.state.deletion(&id("gone")).expect("there").phase, DeletionPhase::Gone { .. });
            prop_assert_eq!(world.state.job(&id("gone")).is_none(), is_gone);
        }
        let mut rounds = 0;
        while world.step(None) > 0 {
            rounds += 1;
            prop_assert!(rounds < 100, "it comes to no end");
        }
        world.reload();
        prop_assert_eq!(world.of_job("gone"), ["deletions/gone"]);
        prop_assert_eq!(world.records.keys().filter(|key| matches!(key, RecordKey::Request(..))).count(), 1);
        prop_assert_eq!(world.of_job("stays").into_iter().collect::<BTreeSet<_>>(), before);
        prop_assert_eq!(stored_bytes(&world.state, "default"), rest);
        let deletion = world.state.deletion(&id("gone")).expect("it stays");
        prop_assert_eq!(deletion.phase, DeletionPhase::Gone { at: NOW });
        prop_assert_eq!(deletion.removed, ObjectTotals { objects: 3, bytes: 30 });
        let lineage = &deletion.lineage;
        prop_assert_eq!((lineage.finals.len(), lineage.finals[0].step), (1, 10));
        prop_assert_eq!(&lineage.from, &["base.safetensors"]);
    }
}

#[test]
fn a_job_that_is_not_over_is_refused_and_says_what_to_do() {
    let mut world = World::new(vec![Record::Job(job("runs", JobState::Queued, "base.safetensors"))]);
    let refused = world.delete("runs", NONE).expect_err("it has not ended");
    assert_eq!(refused.to_string(), "job runs is queued and not over: cancel it first, then delete it");
    assert!(matches!(world.delete("none", NONE), Err(RequestError::NotFound { .. })));
    assert_eq!(world.records.len(), 1, "nothing is written");
}

#[test]
fn deleting_again_changes_nothing_but_that_what_was_kept_may_go() {
    let mut world = World::new(whole_job("gone", 2));
    world.delete("gone", ALL).expect("it has ended");
    world.delete("gone", ALL).expect("the same again");
    let refused = world.delete("gone", NONE).expect_err("it is under way").to_string();
    assert!(refused.contains("once it is gone"), "{refused}");
    world.files_gone("gone");
    while world.step(None) > 0 {}
    assert_eq!(stored_bytes(&world.state, "default"), 220, "what is kept counts");
    world.delete("gone", KeptParts { pairs: false, ..ALL }).expect("the pairs may go too");
    world.reload();
    assert_eq!(world.state.deletion(&id("gone")).expect("there").phase, DeletionPhase::Files);
    assert_eq!(stored_bytes(&world.state, "default"), 220, "not before they are gone");
    world.files_gone("gone");
    assert_eq!(stored_bytes(&world.state, "default"), 200);
    while world.step(None) > 0 {}
    let last = world.delete("gone", KeptParts { pairs: true, ..ALL }).expect("nothing is left of it");
    assert!(matches!(last.phase, DeletionPhase::Gone { .. }));
    assert_eq!(world.of_job("gone"), ["deletions/gone"]);
}

/// Every way in which an open job may name another's files.
#[test]
fn what_an_open_job_needs_is_not_deleted() {
    let final_file = "jobs/gone/stage-1/checkpoints/step-00000010-g1/model.safetensors";
    let checkpoints = KeptParts { checkpoints: true, ..NONE };
    for (weights, kept_is_enough) in [
        (format!("store:{final_file}"), true),
        (format!("store:/{final_file}"), true),
        ("store:jobs//gone/./stage-1/checkpoints".to_owned(), true),
        (format!("/mnt/objects/{final_file}"), true),
        ("store:jobs/gone/stage-1".to_owned(), false),
        ("store:jobs/gone".to_owned(), false),
        ("store:jobs".to_owned(), false),
        ("/mnt/objects/jobs/gone/stage-1/pairs/unit-000000-l1.tar".to_owned(), false),
    ] {
        let open = Record::Job(job("open", JobState::Running { stage: 0 }, &weights));
        let mut world = World::new([whole_job("gone", 2), vec![open]].concat());
        let refused = world.delete("gone", NONE).expect_err(&weights).to_string();
        assert!(refused.contains("spec.model.weights of job open"), "{refused}");
        assert_eq!(
            references_to(&world.state, &id("gone"), checkpoints, order(NONE).root).count() == 0,
            kept_is_enough,
            "{weights}"
        );
        assert_eq!(world.delete("gone", checkpoints).is_ok(), kept_is_enough, "{weights}");
    }
    // Of jobs that whoever asks does not see, it is only said that there are some.
    let open = Record::Job(job("open", JobState::Queued, &format!("store:{final_file}")));
    let world = World::new([whole_job("gone", 1), vec![open]].concat());
    let other = Scope::Only(Tenant::parse("other").expect("valid"));
    let refused = delete_job(&world.state, &id("gone"), DeleteOrder { scope: &other, ..order(NONE) }, NOW);
    let refused = refused.expect_err("it is needed").to_string();
    assert!(
        refused.contains("needed by a job of another tenant") && !refused.contains("open ("),
        "{refused}"
    );
    for elsewhere in
        ["store:jobs/gone-2/stage-1/checkpoints/x", "/mnt/other/jobs/gone", "jobs/gone", "store:jobs/g"]
    {
        let open = Record::Job(job("open", JobState::Queued, elsewhere));
        let mut world = World::new([whole_job("gone", 1), vec![open]].concat());
        world.delete("gone", NONE).expect(elsewhere);
    }
    let over = Record::Job(job("over", JobState::Succeeded, &format!("store:{final_file}")));
    let mut world = World::new([whole_job("gone", 1), vec![over]].concat());
    world.delete("gone", NONE).expect("who has ended needs nothing");
}

fn submission(request: &str, weights: &str) -> Submission {
    Submission {
        request: RequestId::parse(request).expect("valid"),
        spec: Arc::new(spec_with(weights)),
        spec_json: Arc::from(&b"{}"[..]),
        trace: None,
    }
}

#[test]
fn what_is_being_deleted_is_not_named_and_its_request_makes_no_second_job() {
    let limits = QueueLimits {
        max_open_jobs: 10,
        retry_after: Duration::from_secs(1),
        tenant: TenantLimits::default(),
    };
    let mut world = World::new(whole_job("gone", 2));
    let names = |world: &World, weights: &str| {
        names_deleted(&spec_with(weights), &world.state, &Reach::Everything, Some("/mnt/objects"))
    };
    let weights = "store:jobs/gone/stage-1/checkpoints/step-00000010-g1/model.safetensors";
    assert!(names(&world, weights).is_empty(), "it is there");
    world.delete("gone", KeptParts { pairs: true, ..NONE }).expect("it has ended");
    for phase in 0..3 {
        let found = names(&world, weights);
        assert_eq!(found.len(), 1, "phase {phase}");
        assert_eq!(found[0].field, "spec.model.weights");
        assert!(found[0].message.contains("is being deleted") || found[0].message.contains("was deleted"));
        assert!(names(&world, "store:jobs/gone/stage-1/pairs/unit-000000-l1.tar").is_empty(), "kept");
        let bounded = Reach::Bounded(Bounds::default());
        let told = names_deleted(&spec_with(weights), &world.state, &bounded, Some("/mnt/objects"));
        assert!(told.is_empty(), "to others it was never there");
        let refused = submit_job(&world.state, submission("request-gone", "base.safetensors"), limits, NOW);
        let refused = refused.expect_err("its request is known").to_string();
        assert!(refused.contains("job gone, which was deleted"), "{refused}");
        if phase == 0 {
            world.files_gone("gone");
        } else {
            while world.step(None) > 0 {}
            world.reload();
        }
    }
    let other = submit_job(&world.state, submission("another", "base.safetensors"), limits, NOW);
    assert!(other.expect("a new request").job != id("gone"));
}

/// A deleted job's id is not given out again as long as it is remembered.
#[test]
fn the_id_of_a_deleted_job_stays_its_own() {
    let limits = QueueLimits {
        max_open_jobs: 10,
        retry_after: Duration::from_secs(1),
        tenant: TenantLimits::default(),
    };
    let first = submit_job(&ClusterState::default(), submission("r", "base.safetensors"), limits, NOW)
        .expect("taken");
    let mut world = World::new(whole_job(first.job.as_str(), 0));
    world.delete(first.job.as_str(), NONE).expect("it has ended");
    world.files_gone(first.job.as_str());
    while world.step(None) > 0 {}
    let again = submit_job(&world.state, submission("r", "base.safetensors"), limits, NOW)
        .expect("another request's job");
    assert_ne!(again.job, first.job);
}

#[test]
fn files_go_once_no_node_works_on_the_job() {
    let mut world = World::new([whole_job("a", 0), whole_job("b", 0)].concat());
    world.delete("a", NONE).expect("it has ended");
    world.delete("b", NONE).expect("it has ended");
    let mut seen = Observed::new(Timestamp(0));
    let next = |world: &World, seen: &Observed, may: &dyn Fn(&JobId) -> bool| {
        next_files(&world.state, seen, may).map(|deletion| deletion.job.to_string())
    };
    assert_eq!(next(&world, &seen, &|_| true).as_deref(), Some("a"));
    assert_eq!(next(&world, &seen, &|job| *job != id("a")).as_deref(), Some("b"), "a is tried later");
    let node = NodeId::parse("n").expect("valid");
    let incarnation = crescendo_core::ids::Incarnation::parse("i").expect("valid");
    seen.hello(node.clone(), incarnation, BTreeSet::new(), BTreeSet::from([stage_of("a")]), Timestamp(0));
    assert_eq!(next(&world, &seen, &|_| true).as_deref(), Some("b"), "its curator may still write");
    seen.disconnected(&node);
    assert_eq!(next(&world, &seen, &|_| true).as_deref(), Some("a"));
}

#[test]
fn only_files_of_the_job_go_and_none_that_are_kept() {
    let mut world = World::new([whole_job("j", 1), whole_job("jj", 1)].concat());
    let keys = [
        "jobs/j/stage-1/pairs/unit-000000-l1.tar",
        "jobs/j/stage-1/rejected/unit-000000.tar",
        "jobs/j/stage-1/checkpoints/step-00000010-g1/model.safetensors",
        "jobs/j/stage-1/checkpoints/step-00000010-g1/model.safetensors#3",
        "jobs/j/logs/1-n-id.jsonl",
        "jobs/j/logs/checkpoints/step-00000001-g1/x.bin",
        "jobs/j/stage-1/tensorboard/events.out.tfevents.1.crescendo",
        "jobs/j/endpoints/judge/spent/x.json",
        "jobs/j/novel/thing.bin",
        "jobs/jj/stage-1/pairs/unit-000000-l1.tar",
        "tenants/j/x",
        "jobs/j",
    ];
    let listed = keys.map(|key| ListedObject { key: key.into(), size_bytes: 1, modified: NOW });
    let goes = |world: &World, keep: KeptParts, dry_run: bool| {
        let found = deleted_objects(&world.state, &listed, &id("j"), keep, dry_run);
        found.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(goes(&world, NONE, false), [0usize; 0], "it is not being deleted");
    assert_eq!(goes(&world, NONE, true), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    world.delete("j", ALL).expect("it has ended");
    assert_eq!(goes(&world, ALL, false), [3, 7, 8]);
    assert_eq!(goes(&world, NONE, false), [0usize; 0], "another order than that of the record");
    world.files_gone("j");
    assert_eq!(goes(&world, ALL, false), [0usize; 0], "its files have gone");
    // What comes later is collected, even where jobs without a record are not judged.
    while world.step(None) > 0 {}
    let old = Timestamp(NOW.0 + 10_000);
    let rules = CollectRules { grace: Duration::from_secs(1), owns_root: false };
    assert_eq!(leftovers(&world.state, &listed, rules, old), [3, 7, 8].map(|at| at).to_vec());
}

#[test]
fn a_marked_checkpoint_stays_and_so_does_its_job() {
    let mut world = World::new(whole_job("j", 0));
    let marked = |world: &mut World, step: u64, keep: bool| {
        let (checkpoint, writes) = keep_checkpoint(&world.state, &stage_of("j"), step, keep, NOW)?;
        writes.into_iter().for_each(|write| world.write(write));
        Ok::<_, RequestError>(checkpoint.step)
    };
    assert!(matches!(marked(&mut world, 7, true), Err(RequestError::NotFound { .. })));
    assert_eq!(marked(&mut world, 5, true), Ok(5));
    assert_eq!(marked(&mut world, 5, true), Ok(5), "the same again");
    world.reload();
    let refused = world.delete("j", NONE).expect_err("it is marked").to_string();
    assert!(refused.contains("crescendo checkpoints release j stage-1 5"), "{refused}");
    let (_, writes) = delete_job(&world.state, &id("j"), order(KeptParts { checkpoints: true, ..NONE }), NOW)
        .expect("its checkpoints stay");
    assert_eq!(writes.len(), 1);
    assert_eq!(marked(&mut world, 5, false), Ok(5));
    world.delete("j", NONE).expect("it is released");
    assert!(matches!(marked(&mut world, 5, true), Err(RequestError::TooLate { .. })));
}

#[test]
fn a_marked_checkpoint_does_not_expire() {
    let mut running = job("j", JobState::Running { stage: 0 }, "base.safetensors");
    let mut spec = (*running.spec).clone();
    (spec.checkpoints.keep_last, spec.stages[0].train.steps) = (1, 1000);
    running.spec = Arc::new(spec);
    let mut world = World::new(vec![Record::Job(running), attempt("j", true)]);
    let mut expired = Vec::new();
    for step in 1..=4 {
        let committed =
            commit_checkpoint(&world.state, checkpoint("j", step, false), NOW).expect("the newest");
        expired.extend(committed.expired.iter().map(|old| old.step));
        committed.writes.into_iter().for_each(|write| world.write(write));
        if step == 2 {
            let (_, writes) = keep_checkpoint(&world.state, &stage_of("j"), 2, true, NOW).expect("there");
            writes.into_iter().for_each(|write| world.write(write));
        }
    }
    assert_eq!(expired, [1, 3]);
}

/// Jobs a to e have ended one after the other, an hour apart.
fn ended_hourly() -> World {
    let mut records = Vec::new();
    for (hours, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let mut record = job(name, JobState::Succeeded, "base.safetensors");
        record.finished_at = Some(Timestamp(hours as u64 * 3_600_000));
        records.push(Record::Job(record));
        records.push(attempt(name, false));
        records.push(Record::Checkpoint(checkpoint(name, 10, true)));
    }
    World::new(records)
}

fn retired(world: &World, limits: TenantLimits, now: Timestamp) -> Vec<String> {
    let quotas = Quotas { others: limits, ..Quotas::default() };
    let limits = Limits { quotas: Arc::new(quotas), ..world.limits.clone() };
    let due = decide_retention(&world.state, &limits, None, now);
    due.into_iter().map(|retired| retired.job.to_string()).collect()
}

#[test]
fn retention_takes_the_oldest_a_few_at_a_time_and_spares_what_is_marked_or_needed() {
    let mut world = ended_hourly();
    let at = |hours: u64| Timestamp(hours * 3_600_000 + 1);
    let by_age =
        TenantLimits { keep_ended_for: Some(Duration::from_secs(2 * 3600)), ..TenantLimits::default() };
    let by_number = TenantLimits { keep_ended_jobs: Some(3), ..TenantLimits::default() };
    assert_eq!(retired(&world, TenantLimits::default(), at(1000)), [""; 0], "nobody has said so");
    assert_eq!(retired(&world, by_age, at(1)), [""; 0]);
    assert_eq!(retired(&world, by_age, at(3)), ["a", "b"]);
    assert_eq!(retired(&world, by_age, at(100)), ["a", "b", "c", "d"], "four at a time");
    assert_eq!(retired(&world, by_number, at(4)), ["a", "b"]);
    let both = TenantLimits { keep_ended_jobs: Some(4), ..by_age };
    assert_eq!(retired(&world, both, at(3)), ["a", "b"]);
    // A clock that has not come to the jobs' ends yet takes none for old.
    assert_eq!(retired(&world, by_age, Timestamp(0)), [""; 0]);

    let (_, writes) = keep_checkpoint(&world.state, &stage_of("a"), 10, true, NOW).expect("there");
    writes.into_iter().for_each(|write| world.write(write));
    let needs = job("open", JobState::Queued, "store:jobs/b/stage-1/checkpoints/x/model.safetensors");
    world.write(Write::Put(Record::Job(needs)));
    assert_eq!(retired(&world, by_age, at(100)), ["c", "d", "e"]);

    let by_retention = Some("it is old".to_owned());
    let order = DeleteOrder { by_retention, ..order(NONE) };
    for name in ["c", "d", "e"] {
        let (_, writes) = delete_job(&world.state, &id(name), order.clone(), NOW).expect("it may go");
        writes.into_iter().for_each(|write| world.write(write));
    }
    assert_eq!(retired(&world, by_age, at(100)), [""; 0], "those that are left are spared");
}

#[test]
fn the_oldest_lineages_are_forgotten_and_none_of_which_something_is_kept() {
    let mut world = World::new(Vec::new());
    let gone = |number: usize, keep: KeptParts| {
        let name = format!("gone-{number:06}");
        let state = World::new(vec![ended(&name)]).state;
        let (record, _) = delete_job(&state, &id(&name), order(keep), NOW).expect("it has ended");
        let at = Timestamp(number as u64);
        Record::Deletion(DeletionRecord { phase: DeletionPhase::Gone { at }, ..record })
    };
    for number in 0..MAX_LINEAGES + 2 {
        let keep = if number == 0 { ALL } else { NONE };
        world.write(Write::Put(gone(number, keep)));
    }
    while world.step(None) > 0 {}
    assert_eq!(world.records.len(), MAX_LINEAGES);
    let remembered = |number: usize| world.state.deletion(&id(&format!("gone-{number:06}"))).is_some();
    assert_eq!([0, 1, 2, 3, MAX_LINEAGES + 1].map(remembered), [true, false, false, true, true]);
    let state = &world.state;
    assert!(lineage_of(state, &id("gone-000001"), |_| String::new()).is_none());
    assert!(state.request_job("default", &RequestId::parse("request-gone-000001").expect("valid")).is_none());
}
