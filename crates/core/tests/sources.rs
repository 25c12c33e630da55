//! A stage whose source some curators, or all, cannot open: who is asked, when the others go on, and when the job fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{
    Limits, PendingReason, Waits, benched_curators, decide, is_cooling_down, peers_of, reachable_curators,
};
use crescendo_core::explain::{View, explain, short_logs};
use crescendo_core::ids::{
    Generation, Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp,
};
use crescendo_core::job::JobState;
use crescendo_core::observed::Observed;
use crescendo_core::pairlog::{Lease, UnitPolicy};
use crescendo_core::quotas::TenantLimits;
use crescendo_core::records::{
    CheckpointRecord, FailureKind, NodeKind, NodeRecord, Record, ShardRecord, Write,
};
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{self, QueueLimits, Submission, UnitCommit, UnitFate, UnitLeaseRef};
use crescendo_core::under_way::UnitProgress;
use crescendo_core::{access::Scope, spec};
use proptest::prelude::*;

/// A curator as it really is.
#[derive(Clone, Default)]
struct Curator {
    can_open: bool,
    /// It opens the source and then fails at every unit.
    fails: bool,
    connected: bool,
    incarnation: u32,
    holds: Vec<UnitLeaseRef>,
}

struct World {
    state: ClusterState,
    seen: Observed,
    limits: Limits,
    now: Timestamp,
    curators: Vec<Curator>,
    waits: Waits,
}

const PATH: &str = "cannot read /library/subjectz/index.json: No such file or directory";

fn stage_name() -> StageName {
    StageName::parse("stage-1").expect("valid")
}

fn node(n: usize) -> NodeId {
    NodeId::parse(&format!("c-{n}")).expect("valid")
}

impl World {
    fn new(can_open: &[bool]) -> World {
        let now = Timestamp(1_000_000);
        let curators =
            can_open.iter().map(|can_open| Curator { can_open: *can_open, ..Curator::default() }).collect();
        let mut world = World {
            state: ClusterState::default(),
            seen: Observed::new(now),
            limits: Limits::default(),
            now,
            curators,
            waits: Waits::default(),
        };
        (0..can_open.len()).for_each(|n| world.restart(n));
        world
    }

    fn submit(&mut self, name: &str) -> JobId {
        let stage =
            "    - data: {source: compose, subjects: subjectz, pairs: 800, minPairs: 400, unitSize: 4}\n";
        self.submit_stages(name, stage)
    }

    fn submit_stages(&mut self, name: &str, stages: &str) -> JobId {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n  model: {{preset: nano, weights: base.safetensors, precision: f32}}\n  resources: {{gpus: 1}}\n  stages:\n{stages}"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let submission = Submission {
            request: RequestId::parse(name).expect("valid"),
            spec: Arc::new(spec),
            spec_json: yaml.into_bytes().into(),
            trace: None,
        };
        let limits = QueueLimits {
            max_open_jobs: 9,
            retry_after: Duration::from_secs(1),
            tenant: TenantLimits::default(),
        };
        let submitted = transitions::submit_job(&self.state, submission, limits, self.now).expect("taken");
        self.apply(submitted.writes);
        self.settle();
        submitted.job
    }

    fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.state.apply(write).expect("belongs to something");
        }
    }

    /// A new process of the curator says hello.
    fn restart(&mut self, n: usize) {
        let curator = &mut self.curators[n];
        curator.incarnation += 1;
        curator.holds.clear();
        self.connect(n, BTreeSet::new());
    }

    fn connect(&mut self, n: usize, curating: BTreeSet<StageRef>) {
        self.curators[n].connected = true;
        let incarnation = Incarnation::parse(&format!("i-{}", self.curators[n].incarnation)).expect("valid");
        let record = NodeRecord {
            id: node(n),
            incarnation: incarnation.clone(),
            kind: NodeKind::Curator,
            slots: 0,
            device: "cpu".into(),
            address: "127.0.0.1:9".into(),
            labels: BTreeMap::new(),
            version: String::new(),
            drained: false,
            cordon: None,
            arithmetic: None,
            device_memory_bytes: None,
        };
        self.apply(vec![Write::Put(Record::Node(record))]);
        self.seen.hello(node(n), incarnation, BTreeSet::new(), curating, self.now);
        self.settle();
    }

    fn disconnect(&mut self, n: usize) {
        self.curators[n].connected = false;
        self.seen.disconnected(&node(n));
        self.settle();
    }

    /// Decides as the controller does after each request.
    fn settle(&mut self) {
        let plan = decide(&self.state, &self.seen, &self.limits, self.now);
        self.apply(plan.writes);
        plan.sends.iter().for_each(|send| self.seen.sent(send, self.now));
        self.waits = plan.waits;
        let again = decide(&self.state, &self.seen, &self.limits, self.now);
        assert!(again.writes.is_empty() && again.sends.is_empty(), "deciding again gives {again:?}");
    }

    fn stages_of(&self, n: usize) -> Vec<StageRef> {
        self.seen.nodes.get(&node(n)).map(|view| view.curating.iter().cloned().collect()).unwrap_or_default()
    }

    /// The curator does what it is assigned to: a unit of each of its stages. Gives the units that it got.
    fn work(&mut self, n: usize) -> usize {
        if !self.curators[n].connected {
            return 0;
        }
        let mut units = 0;
        for stage in self.stages_of(n) {
            if let Some(lease) = self.lease(n, &stage) {
                units += 1;
                self.finish(n, lease);
            }
        }
        units
    }

    fn policy(&self, n: usize, stage: &StageRef) -> UnitPolicy {
        let (state, seen, limits, now) = (&self.state, &self.seen, &self.limits, self.now);
        let peers = peers_of(state, seen, limits, stage, &node(n), now);
        UnitPolicy { peers, ..limits.unit_policy(reachable_curators(state, seen, limits, now)) }
    }

    fn lease(&mut self, n: usize, stage: &StageRef) -> Option<UnitLeaseRef> {
        self.seen.heard(&node(n), self.now);
        let policy = self.policy(n, stage);
        let (lease, writes) =
            transitions::lease_unit(&self.state, stage, &node(n), &policy, self.now).expect("it exists");
        if is_cooling_down(&self.state, &self.seen, &self.limits, stage, &node(n), self.now) {
            return None;
        }
        self.apply(writes);
        let Lease::Granted(record) = lease else { return None };
        let lease = UnitLeaseRef {
            stage: stage.clone(),
            unit: record.unit,
            lease_generation: record.lease_generation,
        };
        self.settle();
        Some(lease)
    }

    /// The curator hands in the unit, or says why it cannot.
    fn finish(&mut self, n: usize, lease: UnitLeaseRef) {
        let policy = self.policy(n, &lease.stage);
        if self.curators[n].fails {
            let fate = UnitFate::Failed(FailureKind::Passing);
            let failed =
                transitions::fail_unit(&self.state, &lease, &node(n), &policy, fate, "boom", self.now);
            if let Ok((_, writes)) = failed {
                self.apply(writes);
                self.seen.failed_at(&lease.stage, &node(n), FailureKind::Passing, "boom", self.now);
            }
        } else if self.curators[n].can_open {
            let shard = ShardRecord {
                path: transitions::shard_path(&lease),
                pairs: 4,
                size_bytes: 9,
                sha256: "a".repeat(64),
            };
            let stage = lease.stage.clone();
            let commit = UnitCommit {
                lease,
                shard,
                rejected: BTreeMap::new(),
                scores: Default::default(),
                exhausted: false,
            };
            if let Ok(committed) = transitions::commit_unit(&self.state, commit) {
                self.apply(committed.writes);
                self.seen.cooldowns.lift(&stage, &node(n));
            }
        } else {
            let fate = UnitFate::Failed(FailureKind::Source);
            let failed = transitions::fail_unit(&self.state, &lease, &node(n), &policy, fate, PATH, self.now);
            if let Ok((quarantined, writes)) = failed {
                assert!(!quarantined, "the unit is not to blame");
                self.apply(writes);
                self.seen.cannot_open(&lease.stage, &node(n), PATH, self.now);
            }
        }
        self.settle();
    }

    fn wait(&mut self, seconds: u64) {
        // In small steps, as heartbeats come.
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_secs(1));
            for n in 0..self.curators.len() {
                if self.curators[n].connected {
                    self.seen.heard(&node(n), self.now);
                }
            }
            self.settle();
        }
    }

    fn failed(&self, job: &JobId) -> Option<String> {
        match &self.state.job(job).expect("it exists").record.state {
            JobState::Failed { reason } => Some(reason.clone()),
            _ => None,
        }
    }
}

/// Units that were given up.
fn quarantined(world: &World, job: &JobId) -> u64 {
    let rejected = world.state.job(job).expect("there").stages[0].log.rejected();
    rejected.get("unit_quarantined").copied().unwrap_or(0)
}

#[test]
fn one_that_fails_at_every_unit_is_benched_and_the_other_makes_them_all() {
    let mut world = World::new(&[true, true]);
    world.curators[0].fails = true;
    let job = world.submit("trial");
    // It fails at once, the other takes its time.
    for _ in 0..250 {
        (0..4).for_each(|_| {
            world.work(0);
        });
        if benched_curators(&world.state, &world.seen, &world.limits, world.now) > 0 {
            let scope = Scope::Everything;
            let (state, seen) = (&world.state, &world.seen);
            let view = View {
                state,
                seen,
                waits: &world.waits,
                limits: &world.limits,
                now: world.now,
                scope: &scope,
            };
            let told = explain(&view, state.job(&job).expect("there")).findings;
            assert!(told.iter().any(|line| line.starts_with("c-0 is benched, after ")), "{told:?}");
        }
        world.work(1);
        world.wait(1);
    }
    let log = &world.state.job(&job).expect("there").stages[0].log;
    assert_eq!((log.committed(), log.prefix_units(), quarantined(&world, &job)), (800, 200, 0));
}

#[test]
fn a_stage_that_a_curator_cannot_take_up_goes_to_another_and_is_offered_again() {
    let mut world = World::new(&[true]);
    world.submit("trial");
    let stage = world.stages_of(0).remove(0);
    world.seen.refuses(&node(0), &stage, "the resolved spec\ncannot be read", world.now);
    world.settle();
    assert!(world.stages_of(0).is_empty(), "it is not asked again at once");
    world.wait(29);
    assert!(world.stages_of(0).is_empty());
    world.wait(2);
    assert_eq!(world.stages_of(0), std::slice::from_ref(&stage), "but after a while");
    world.seen.refuses(&node(0), &stage, "the resolved spec cannot be read", world.now);
    world.settle();
    world.wait(31);
    assert!(world.stages_of(0).is_empty(), "twice as long the second time");
    world.curators.push(Curator { can_open: true, ..Curator::default() });
    world.restart(1);
    assert_eq!(world.stages_of(1), [stage], "another is asked at once");
}

#[test]
fn the_only_curator_gives_a_unit_up_as_before() {
    let mut world = World::new(&[true]);
    world.curators[0].fails = true;
    let job = world.submit("trial");
    for _ in 0..60 {
        world.work(0);
        world.wait(1);
    }
    assert!(quarantined(&world, &job) > 0, "else its job would never end");
    assert_eq!(benched_curators(&world.state, &world.seen, &world.limits, world.now), 0);
}

#[test]
fn a_log_that_lost_many_units_fails_its_job_and_one_that_ends_short_says_so() {
    for (lost, fails) in [(0, false), (5, false), (6, true)] {
        let mut world = World::new(&[true]);
        let job = world.submit("trial");
        let stage = world.stages_of(0).remove(0);
        for unit in 0..25 {
            let lease = world.lease(0, &stage).expect("a unit");
            if unit < lost {
                let record =
                    world.state.stage(&stage).and_then(|stage| stage.log.open_unit(unit)).expect("leased");
                let given_up = record.quarantined();
                world.apply(vec![Write::Put(Record::Unit(given_up))]);
                continue;
            }
            let path = transitions::shard_path(&lease);
            let shard = ShardRecord { path, pairs: 4, size_bytes: 9, sha256: "a".repeat(64) };
            let (rejected, scores) = (BTreeMap::new(), Default::default());
            let commit = UnitCommit { lease, shard, rejected, scores, exhausted: unit == 24 };
            world.apply(transitions::commit_unit(&world.state, commit).expect("taken").writes);
        }
        world.settle();
        let told = format!(
            "the source of stage stage-1 has ended with {} of the 800 pairs that were asked for: ",
            100 - 4 * lost
        );
        match world.failed(&job) {
            Some(reason) => assert!(
                fails && reason.starts_with(&told) && reason.contains("6 of its 25 units were given up"),
                "{reason}"
            ),
            None => {
                assert!(!fails, "{lost} units are lost");
                let short = short_logs(world.state.job(&job).expect("there"));
                assert!(short.len() == 1 && short[0].starts_with(&told), "{short:?}");
            }
        }
    }
}

#[test]
fn the_word_of_a_single_curator_decides_at_once() {
    let mut world = World::new(&[false]);
    let job = world.submit("trial");
    assert_eq!(world.work(0), 1);
    let reason = world.failed(&job).expect("at once");
    assert_eq!(reason, format!("stage stage-1 cannot be made: c-0 cannot open its source: {PATH}"));
    let scope = Scope::Everything;
    let view = View {
        state: &world.state,
        seen: &world.seen,
        waits: &world.waits,
        limits: &world.limits,
        now: world.now,
        scope: &scope,
    };
    let told = explain(&view, world.state.job(&job).expect("there"));
    assert!(told.remedies[0].contains("a path in spec.stages[0].data"), "{:?}", told.remedies);
    assert!(told.remedies.iter().all(|remedy| !remedy.contains("add curators")), "{:?}", told.remedies);
    let failure = format!("unit 0 failed on c-0 0s ago: {PATH}");
    assert!(told.findings.contains(&failure), "{:?}", told.findings);
}

#[test]
fn one_that_says_so_alone_cools_down_and_the_others_go_on() {
    let mut world = World::new(&[false, true]);
    let job = world.submit("trial");
    assert_eq!((world.work(0), world.work(0)), (1, 0), "it is asked once");
    for _ in 0..5 {
        assert_eq!((world.work(0), world.work(1)), (0, 1));
    }
    let stage = &world.state.job(&job).expect("there").stages[0];
    assert_eq!(stage.log.committed(), 20, "and unit 0 was tried again");
    let cooldowns: Vec<String> = world
        .seen
        .cooldowns
        .of(&stage.id, &world.limits, world.now)
        .map(|(node, cooldown)| format!("{node}: {}", cooldown.reason))
        .collect();
    assert_eq!(cooldowns, [format!("c-0: {PATH}")]);
    world.wait(30);
    // Asked again after a while, then after twice as long.
    assert_eq!((world.work(0), world.work(0)), (1, 0));
    world.wait(59);
    assert_eq!(world.work(0), 0);
    world.restart(0);
    assert_eq!(world.work(0), 1, "another process has its own say");
    assert_eq!(world.failed(&job), None);
}

#[test]
fn every_curator_in_sight_is_heard_before_a_job_fails() {
    let mut world = World::new(&[false, false, false]);
    let job = world.submit("trial");
    let stage = world.state.job(&job).expect("there").stages[0].id.clone();
    let held = world.lease(1, &stage).expect("a unit");
    world.disconnect(1);
    world.work(0);
    world.work(2);
    // It has a unit, and it may be back in a moment.
    world.wait(10);
    assert_eq!(world.failed(&job), None);
    world.connect(1, BTreeSet::from([stage]));
    world.finish(1, held);
    let reason = world.failed(&job).expect("now all have said so");
    assert_eq!(reason, format!("stage stage-1 cannot be made: c-0, c-1, c-2 cannot open its source: {PATH}"));
}

#[test]
fn a_curator_that_is_gone_is_not_waited_for_long() {
    let mut world = World::new(&[false, true]);
    let job = world.submit("trial");
    world.disconnect(1);
    world.work(0);
    world.wait(14);
    assert_eq!(world.failed(&job), None, "it may be back in a moment");
    world.wait(1);
    assert!(world.failed(&job).is_some());
}

#[test]
fn a_source_that_somebody_could_open_is_waited_for() {
    let mut world = World::new(&[false, true]);
    let job = world.submit("trial");
    world.work(1);
    world.work(0);
    world.disconnect(1);
    world.wait(25);
    assert_eq!(world.failed(&job), None);
    assert!(
        matches!(world.waits.get(&job), Some(PendingReason::Source { .. })),
        "{:?}",
        world.waits.get(&job)
    );
    world.restart(1);
    assert_eq!(world.work(1), 1, "and it goes on");
    // Now it stays away, and the one that is left says the same each time it is asked.
    world.disconnect(1);
    for _ in 0..200 {
        world.work(0);
        world.wait(1);
    }
    assert!(world.failed(&job).is_some());
}

#[test]
fn after_a_restart_of_the_controller_those_it_knows_of_are_waited_for() {
    let mut world = World::new(&[false, true]);
    let job = world.submit("trial");
    world.seen = Observed::new(world.now);
    world.curators[1].connected = false;
    world.connect(0, BTreeSet::new());
    world.work(0);
    assert_eq!(world.failed(&job), None, "the other has not come back yet");
    world.connect(1, BTreeSet::new());
    assert_eq!(world.work(1), 1);
    world.wait(100);
    assert_eq!(world.failed(&job), None);
}

/// Nothing that is trained is given up for a stage that is not reached yet.
#[test]
fn a_later_stage_that_cannot_be_made_fails_the_job_once_it_is_reached() {
    let mut world = World::new(&[true]);
    let stage = "    - data: {source: compose, subjects: subjectz, pairs: 8, unitSize: 4}\n";
    let job = world.submit_stages("trial", &stage.repeat(2));
    assert_eq!((world.work(0), world.work(0)), (1, 1), "the first stage is made");
    world.curators[0].can_open = false;
    assert_eq!((world.work(0), world.work(0)), (1, 0), "the second is begun ahead");
    assert_eq!(world.failed(&job), None);
    assert_eq!(world.waits.get(&job), Some(&PendingReason::NoTrainer));
    let first = world.state.job(&job).expect("there").stages[0].id.clone();
    let done = CheckpointRecord {
        stage: first,
        generation: Generation(1),
        step: 1,
        path: "c".into(),
        files: Vec::new(),
        committed_at: world.now,
        is_final: true,
        damaged: None,
        next_position: 0,
    };
    world.apply(vec![Write::Put(Record::Checkpoint(done))]);
    world.settle();
    assert!(world.failed(&job).expect("now").starts_with("stage stage-2 cannot be made: c-0"));
}

/// What a process says that has no session may be said by one that is gone: the next one has its own say.
#[test]
fn the_word_of_a_process_that_is_not_known_is_not_kept() {
    let mut world = World::new(&[false]);
    let job = world.submit("trial");
    let stage = world.state.job(&job).expect("there").stages[0].id.clone();
    let held = world.lease(0, &stage).expect("a unit");
    world.seen = Observed::new(world.now);
    world.curators[0].connected = false;
    world.wait(20);
    world.finish(0, held);
    world.curators[0].can_open = true;
    world.restart(0);
    assert_eq!((world.failed(&job), world.work(0)), (None, 1));
}

#[test]
fn a_stage_without_a_maker_gets_the_one_that_can() {
    let mut world = World::new(&[false, true]);
    let first = world.submit("first");
    let second = world.submit("second");
    let stage_of = |world: &World, job: &JobId| world.state.job(job).expect("there").stages[0].id.clone();
    let (one, two) = (stage_of(&world, &first), stage_of(&world, &second));
    assert_eq!((world.stages_of(0), world.stages_of(1)), (vec![one.clone()], vec![two.clone()]));
    world.work(0);
    // c-0 cannot make the first; it takes the second, and c-1 comes over.
    assert_eq!((world.stages_of(0), world.stages_of(1)), (vec![two.clone()], vec![one.clone()]));
    world.work(0);
    // Nor can it make the second, which waits for c-1 and is no reason to fail.
    assert_eq!((world.stages_of(0), world.stages_of(1)), (vec![], vec![one]));
    assert_eq!((world.failed(&first), world.failed(&second)), (None, None));
    assert_eq!(world.waits.get(&second), Some(&PendingReason::CuratorsBusy));
}

#[derive(Clone, Debug)]
enum Act {
    Work(usize),
    Take(usize),
    Finish(usize),
    Restart(usize, bool),
    Disconnect(usize),
    Reconnect(usize),
    Wait(u64),
    RestartController,
}

fn acts() -> impl Strategy<Value = Act> {
    let n = || 0usize..3;
    prop_oneof![
        6 => n().prop_map(Act::Work),
        2 => n().prop_map(Act::Take),
        2 => n().prop_map(Act::Finish),
        1 => (n(), any::<bool>()).prop_map(|(n, can)| Act::Restart(n, can)),
        1 => n().prop_map(Act::Disconnect),
        2 => n().prop_map(Act::Reconnect),
        3 => (1u64..40).prop_map(Act::Wait),
        1 => Just(Act::RestartController),
    ]
}

#[test]
fn a_stage_whose_endpoint_is_out_of_order_keeps_no_curator_from_another() {
    let mut world = World::new(&[true]);
    let (broken, other) = (world.submit("broken"), world.submit("other"));
    let stages = |jobs: &[&JobId]| -> Vec<StageRef> {
        let stage = |job: &&JobId| StageRef { job: (*job).clone(), stage: stage_name() };
        jobs.iter().map(stage).collect()
    };
    assert_eq!(world.stages_of(0), stages(&[&broken]));
    let told = |world: &World, job: &JobId| {
        let view = View {
            state: &world.state,
            seen: &world.seen,
            waits: &world.waits,
            limits: &world.limits,
            now: world.now,
            scope: &Scope::Everything,
        };
        explain(&view, world.state.job(job).expect("it is there"))
    };
    assert_eq!(told(&world, &other).cause, "curators_busy");
    let reason = "judge: endpoint vlm failed 5 times, at last: status 503: out of order";
    let waits = |world: &mut World| {
        let progress =
            UnitProgress { waits_for: Some(reason.into()), at: world.now, ..UnitProgress::default() };
        world.seen.under_way.put(&stages(&[&broken])[0], &node(0), progress);
        world.settle();
    };
    waits(&mut world);
    // It goes on waiting with the one and makes the other.
    assert_eq!(world.stages_of(0), stages(&[&broken, &other]));
    world.now = world.now.plus(Duration::from_secs(10));
    waits(&mut world);
    let (first, second) = (told(&world, &broken), told(&world, &other));
    let line = format!("c-0 waits and goes on by itself: {reason}, for 10s now");
    assert!(first.findings.contains(&line), "{:?}", first.findings);
    for told in [&first, &second] {
        assert_eq!(told.cause, "pairs");
    }
    assert!(first.remedies.iter().all(|remedy| !remedy.contains("add curators")), "{:?}", first.remedies);
    assert!(first.remedies.iter().any(|remedy| remedy.contains(reason)), "{:?}", first.remedies);
    // Another curator that has nothing to do tries its luck with it only where nothing else is to be made.
    world.curators.push(Curator { can_open: true, ..Curator::default() });
    world.restart(1);
    assert_eq!(world.stages_of(1), stages(&[&other]));
    // Once it has not waited for a while the stage is one like any other.
    world.now = world.now.plus(Duration::from_secs(400));
    for n in [0, 1] {
        world.seen.heard(&node(n), world.now);
    }
    world.settle();
    assert_eq!((world.stages_of(0), world.stages_of(1)), (stages(&[&broken]), stages(&[&other])));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever comes when: no job fails for its source while a curator that can open it is there and at work; and once
    /// none is, and those that are there go on trying, it fails.
    #[test]
    fn a_job_fails_exactly_when_nobody_can_open_its_source(
        can_open in prop::collection::vec(any::<bool>(), 3),
        acts in prop::collection::vec(acts(), 1..60),
    ) {
        let mut world = World::new(&can_open);
        let job = world.submit("trial");
        for act in acts {
            match act {
                Act::Work(n) => { world.work(n); }
                Act::Take(n) if world.curators[n].connected => {
                    let taken: Vec<_> =
                        world.stages_of(n).iter().filter_map(|stage| world.lease(n, stage)).collect();
                    world.curators[n].holds.extend(taken);
                }
                Act::Take(_) => {}
                Act::Finish(n) => {
                    if let Some(lease) = world.curators[n].holds.pop() {
                        world.finish(n, lease);
                    }
                }
                Act::Restart(n, can_open) => {
                    world.curators[n].can_open = can_open;
                    world.restart(n);
                }
                Act::Disconnect(n) => world.disconnect(n),
                Act::Reconnect(n) => {
                    let curating = world.stages_of(n).into_iter().collect();
                    world.connect(n, curating);
                }
                Act::Wait(seconds) => world.wait(seconds),
                Act::RestartController => {
                    world.seen = Observed::new(world.now);
                    (0..world.curators.len()).for_each(|n| world.curators[n].connected = false);
                    world.settle();
                }
            }
            // Looked at after each act: one that can, is in sight and was in no cooldown before it could.
            let able = |n: &usize| {
                let curator = &world.curators[*n];
                curator.can_open && curator.connected
            };
            let someone = (0..world.curators.len()).any(|n| able(&n));
            if let Some(reason) = world.failed(&job) {
                prop_assert!(!someone, "failed although a curator can: {reason}");
                prop_assert!(reason.contains(PATH), "{reason}");
                return Ok(());
            }
        }
        // From here on all are there, and try.
        for n in 0..world.curators.len() {
            if !world.curators[n].connected {
                world.restart(n);
            }
            world.curators[n].holds.clear();
        }
        let someone = world.curators.iter().any(|curator| curator.can_open);
        for _ in 0..150 {
            (0..world.curators.len()).for_each(|n| { world.work(n); });
            world.wait(1);
        }
        let stage = &world.state.job(&job).expect("there").stages[0];
        let enough = stage.log.committed() >= 400;
        prop_assert_eq!(world.failed(&job).is_some(), !someone && !enough, "{:?}", world.waits.get(&job));
        prop_assert!(!someone || stage.log.committed() > 0);
    }
}
