//! Pictures of checkpoints: wanted when they should be, drawn once, and never at the price of what is trained.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{Limits, next_samplings};
use crescendo_core::ids::{
    AttemptRef, Generation, Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp,
};
use crescendo_core::job::JobState;
use crescendo_core::leftovers::{CollectRules, ListedObject, leftovers};
use crescendo_core::object_keys;
use crescendo_core::observed::Observed;
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, FileRecord, JobRecord, NodeKind, NodeRecord, Record, Write,
};
use crescendo_core::sampling::{DrawnSamples, MAX_TRIES, SamplingRef, SamplingState, ValidationLoss};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{commit_checkpoint, commit_samples, fail_samples};

const NOW: Timestamp = Timestamp(1_000_000);
const NONE: [u64; 0] = [];

fn node(name: &str) -> NodeId {
    NodeId::parse(name).expect("valid")
}

fn stage(name: &str) -> StageRef {
    StageRef {
        job: JobId::parse("uno-aaaaaa").expect("valid"),
        stage: StageName::parse(name).expect("valid"),
    }
}

fn sampling(of: &str, step: u64) -> SamplingRef {
    SamplingRef { stage: stage(of), step, generation: Generation(u64::from(step > 0)) }
}

/// A job with two stages of 100 steps, a checkpoint every 10, and what `samples` says.
struct World {
    state: ClusterState,
    seen: Observed,
}

impl World {
    fn new(samples: &str) -> World {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno}}\nspec:\n  model: {{preset: nano, weights: w}}\n  \
             checkpoints: {{every: 10, keepLast: 1}}\n  samples: {{{samples}}}\n  stages:\n    - &s {{data: {{source: compose, subjects: lib, holdOutOneIn: 4, \
             pairs: 100}}, train: {{steps: 100, globalBatch: 1}}}}\n    - {{references: 2, data: {{source: compose, subjects: lib, pairs: 100}}, \
             train: {{steps: 100, globalBatch: 1}}}}\n"
        )
        .replace("&s ", "");
        let spec = Arc::new(spec::parse(yaml.as_bytes()).expect("a valid spec"));
        let mut state = ClusterState::default();
        let job = JobRecord {
            id: stage("stage-1").job,
            request: RequestId::parse("request").expect("valid"),
            spec,
            spec_json: Arc::from(&b"{}"[..]),
            state: JobState::Running { stage: 0 },
            submitted_at: Timestamp(0),
            trace: None,
            started_at: None,
            finished_at: None,
        };
        state.apply(Write::Put(Record::Job(job))).expect("a job stands alone");
        World { state, seen: Observed::new(NOW) }
    }

    fn apply(&mut self, writes: Vec<Write>) {
        writes.into_iter().for_each(|write| self.state.apply(write).expect("its job is there"));
    }

    /// Registers a checkpoint; the steps that expire.
    fn train_to(&mut self, name: &str, step: u64) -> Vec<u64> {
        let stage = stage(name);
        let StageRef { job, stage: stage_name } = stage.clone();
        let attempt = AttemptRecord {
            attempt: AttemptRef { job, stage: stage_name, generation: Generation(1) },
            ranks: Vec::new(),
            state: AttemptState::Active,
            started_at: Timestamp(0),
            restarts: 0,
            failures_in_a_row: 0,
            resume_from: None,
            init_from: None,
            ran_millis: 0,
            ahead_of: None,
        };
        if step < 100 {
            self.apply(vec![Write::Put(Record::Attempt(attempt))]);
        }
        let file = FileRecord { name: "model.safetensors".into(), size_bytes: 1, sha256: "c".repeat(64) };
        let checkpoint = CheckpointRecord {
            path: object_keys::checkpoint(stage.job.as_str(), name, step, 1),
            stage,
            generation: Generation(1),
            step,
            files: vec![file],
            committed_at: Timestamp(0),
            is_final: step == 100,
            damaged: None,
            next_position: 0,
        };
        let committed = commit_checkpoint(&self.state, checkpoint, NOW).expect("it is the newest");
        self.apply(committed.writes);
        committed.expired.iter().map(|old| old.step).collect()
    }

    fn wanted(&self) -> Vec<(String, u64)> {
        self.state.wanted_samplings().map(|one| (one.stage.stage.to_string(), one.step)).collect()
    }

    fn draw(&mut self, id: &SamplingRef) {
        let writes = commit_samples(&self.state, id, drawn(id, "a"), NOW).expect("it is there");
        self.apply(writes);
    }

    fn state_of(&self, of: &str, step: u64) -> &SamplingState {
        &self.state.sampling(&stage(of), step).expect("it is there").state
    }

    fn add_curator(&mut self, name: &str, device: &str) {
        let incarnation = Incarnation::parse("first").expect("valid");
        let record = NodeRecord {
            id: node(name),
            incarnation: incarnation.clone(),
            kind: NodeKind::Curator,
            slots: 0,
            device: device.into(),
            address: "127.0.0.1:9".into(),
            labels: BTreeMap::new(),
            version: String::new(),
            drained: false,
            cordon: None,
            arithmetic: None,
            device_memory_bytes: None,
        };
        self.apply(vec![Write::Put(Record::Node(record))]);
        self.seen.hello(node(name), incarnation, BTreeSet::new(), BTreeSet::new(), NOW);
    }

    fn chosen(&self, under_way: &[(&SamplingRef, &NodeId)]) -> Vec<(String, u64)> {
        let next =
            next_samplings(&self.state, &self.seen, &Limits::default(), under_way, |one| one.step != 20, NOW);
        next.into_iter().map(|(node, one)| (node.to_string(), one.step)).collect()
    }
}

fn drawn(id: &SamplingRef, draw_id: &str) -> DrawnSamples {
    let StageRef { job, stage } = &id.stage;
    let key = object_keys::samples(job.as_str(), stage.as_str(), id.step, id.generation.0, draw_id);
    let name = key.rsplit('/').next().expect("a name").to_owned();
    DrawnSamples {
        file: Some(FileRecord { name, size_bytes: 9, sha256: "d".repeat(64) }),
        pictures: 2,
        validation: Some(ValidationLoss { mean: 0.5, pairs: 4, by_time: vec![0.25, 0.75] }),
        at: Timestamp(0),
    }
}

fn of(stage: &str, steps: &[u64]) -> Vec<(String, u64)> {
    steps.iter().map(|step| (stage.to_owned(), *step)).collect()
}

#[test]
fn a_checkpoint_is_drawn_with_when_its_step_is_due_and_the_base_before_the_first() {
    let mut world =
        World::new("every: 20, heldOut: 2, prompts: [{prompt: a cup, references: [a.png, b.png]}]");
    world.train_to("stage-1", 10);
    assert_eq!(world.wanted(), []);
    world.train_to("stage-1", 20);
    assert_eq!(world.wanted(), of("stage-1", &[0, 20]));
    world.train_to("stage-1", 30);
    world.draw(&sampling("stage-1", 0));
    world.draw(&sampling("stage-1", 20));
    assert_eq!(world.wanted(), []);
    world.train_to("stage-1", 100);
    assert_eq!(world.wanted(), of("stage-1", &[100]), "the end is always drawn");
    world.draw(&sampling("stage-1", 100));
    // It begins with the end of the one before, and has no held-out subjects: the prompt with two references is its own.
    world.train_to("stage-2", 20);
    assert_eq!(world.wanted(), of("stage-2", &[20]));
}

#[test]
fn what_a_stage_draws_nothing_of_is_not_wanted() {
    let mut world = World::new("prompts: [{prompt: a cup, references: [a.png, b.png]}]");
    world.train_to("stage-1", 10);
    assert_eq!(world.wanted(), []);
    let mut plain = World::new("heldOut: 0, validationPairs: 2");
    plain.train_to("stage-1", 10);
    assert_eq!(plain.wanted(), of("stage-1", &[0, 10]));
    plain.train_to("stage-2", 10);
    assert_eq!(plain.wanted(), of("stage-1", &[0, 10]));
}

#[test]
fn a_checkpoint_stays_until_it_is_drawn_with_and_few_wait() {
    let mut world = World::new("heldOut: 2");
    assert_eq!(world.train_to("stage-1", 10), NONE);
    assert_eq!(world.train_to("stage-1", 20), NONE, "10 is still to be drawn with");
    assert_eq!(world.wanted(), of("stage-1", &[0, 10, 20]));
    assert_eq!(world.train_to("stage-1", 30), NONE, "10 is passed over, and goes with the next");
    assert_eq!(world.wanted(), of("stage-1", &[0, 20, 30]));
    let SamplingState::GivenUp { reason } = world.state_of("stage-1", 10) else { panic!("not passed over") };
    assert_eq!(reason, "a newer checkpoint came first, that of step 30");
    world.draw(&sampling("stage-1", 20));
    assert_eq!(world.train_to("stage-1", 40), [20, 10]);
    // A curator that was at it meanwhile hands it in all the same.
    world.draw(&sampling("stage-1", 10));
    assert!(matches!(world.state_of("stage-1", 10), SamplingState::Drawn(_)));
}

#[test]
fn pictures_are_handed_in_once_by_their_own_name_and_a_few_tries_are_enough() {
    let mut world = World::new("heldOut: 2");
    world.train_to("stage-1", 10);
    let (id, base) = (sampling("stage-1", 10), sampling("stage-1", 0));
    let refused = |id: &SamplingRef, drawn: DrawnSamples| {
        commit_samples(&world.state, id, drawn, NOW).expect_err("it is wrong").to_string()
    };
    let other = SamplingRef { generation: Generation(2), ..id.clone() };
    assert_eq!(
        refused(&other, drawn(&other, "a")),
        "sampling of step 10 of uno-aaaaaa/stage-1, generation 2 does not exist"
    );
    assert_eq!(refused(&id, drawn(&base, "a")), "drawn.file.name: must be of step 10 and generation 1");
    let mut odd = drawn(&id, "a");
    odd.validation = Some(ValidationLoss { mean: f64::NAN, pairs: 1, by_time: vec![] });
    assert_eq!(refused(&id, odd), "drawn.validation: is not finite");
    for attempt in 1..=MAX_TRIES {
        let writes = fail_samples(&world.state, &base, "no\nmemory").expect("it is there");
        world.apply(writes);
        assert_eq!(world.wanted().len(), if attempt < MAX_TRIES { 2 } else { 1 });
    }
    let expected = SamplingState::GivenUp { reason: "after 5 tries: no memory".into() };
    assert_eq!(world.state_of("stage-1", 0), &expected);
    world.draw(&id);
    let again = commit_samples(&world.state, &id, drawn(&id, "b"), NOW).expect("it is there");
    assert_eq!(again, []);
    assert_eq!(fail_samples(&world.state, &id, "late").expect("it is there"), []);
    // The other try's file is a leftover; what may still be handed in is not.
    world.train_to("stage-1", 20);
    let listed = [(10, "a"), (10, "b"), (20, "c"), (7, "d")].map(|(step, draw_id)| ListedObject {
        key: object_keys::samples("uno-aaaaaa", "stage-1", step, 1, draw_id),
        size_bytes: 9,
        modified: Timestamp(0),
    });
    let rules = CollectRules { grace: Duration::from_secs(1), owns_root: false };
    assert_eq!(leftovers(&world.state, &listed, rules, Timestamp(10_000)), [1, 3]);
}

#[test]
fn each_curator_draws_for_one_and_an_idle_one_goes_first() {
    let mut world = World::new("heldOut: 2");
    world.train_to("stage-1", 10);
    assert_eq!(world.chosen(&[]), []);
    world.add_curator("busy", "cpu");
    let (base, ten) = (sampling("stage-1", 0), sampling("stage-1", 10));
    assert_eq!(world.chosen(&[]), [("busy".to_owned(), 0)]);
    world.add_curator("idle", "cpu");
    let view = world.seen.nodes.get_mut(&node("busy")).expect("it is there");
    view.curating.insert(stage("stage-1"));
    assert_eq!(world.chosen(&[]), [("idle".to_owned(), 0), ("busy".to_owned(), 10)]);
    assert_eq!(world.chosen(&[(&base, &node("idle"))]), [("busy".to_owned(), 10)]);
    assert_eq!(world.chosen(&[(&base, &node("idle")), (&ten, &node("busy"))]), []);
    world.draw(&base);
    world.train_to("stage-1", 20);
    assert_eq!(world.chosen(&[(&ten, &node("idle"))]), [], "the other one rests");
}
