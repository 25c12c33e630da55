//! One bad trainer ends no job: what fails there goes elsewhere, and what it takes for permanent is believed only once
//! another node agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{Command, Limits, decide};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::observed::{NodeFailure, NodeHealth, NodeReport, Observed, Report};
use crescendo_core::quotas::TenantLimits;
use crescendo_core::ranks::{RankPhase, RankWord};
use crescendo_core::records::{
    AttemptRecord, AttemptState, NodeKind, NodeRecord, Record, ShardRecord, UnitRecord, UnitResult,
    UnitState, Write,
};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{self, QueueLimits, Submission, submit_job};
use proptest::prelude::*;

struct Cluster {
    state: ClusterState,
    seen: Observed,
    limits: Limits,
    now: Timestamp,
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).expect("valid")
}

fn stage_of(job: &JobId) -> StageRef {
    StageRef { job: job.clone(), stage: StageName::parse("stage-1").expect("valid") }
}

impl Cluster {
    /// Trainers by name and slots.
    fn new(trainers: &[(&str, u32)]) -> Self {
        let now = Timestamp(1_000_000);
        let (state, limits) = (ClusterState::default(), Limits::default());
        let mut cluster = Self { state, seen: Observed::new(now), limits, now };
        trainers.iter().for_each(|(name, slots)| cluster.connect(name, *slots));
        cluster
    }

    fn connect(&mut self, name: &str, slots: u32) {
        let incarnation = Incarnation::parse("first").expect("valid");
        self.put(Record::Node(NodeRecord {
            id: node(name),
            incarnation: incarnation.clone(),
            kind: NodeKind::Trainer,
            slots,
            device: "cpu".into(),
            address: "127.0.0.1:9".into(),
            labels: BTreeMap::new(),
            version: "0.1.0".into(),
            drained: false,
            cordon: None,
            arithmetic: None,
            device_memory_bytes: None,
        }));
        self.seen.hello(node(name), incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
    }

    fn put(&mut self, record: Record) {
        self.seen.learn(&record, self.now);
        self.state.apply(Write::Put(record)).expect("belongs to something");
    }

    /// A job of one rank, whose pairs are all there.
    fn submit(&mut self, name: &str) -> JobId {
        self.submit_gang(name, 1)
    }

    fn submit_gang(&mut self, name: &str, gpus: u32) -> JobId {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n  model: {{preset: nano, weights: b, precision: f32}}\n  resources: {{gpus: {gpus}}}\n  stages:\n    - name: stage-1\n      data: {{source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, steps: 20, globalBatch: 16}}\n"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let submission = Submission {
            request: RequestId::parse(name).expect("valid"),
            spec: Arc::new(spec),
            spec_json: yaml.into_bytes().into(),
            trace: None,
        };
        let (retry_after, tenant) = (Duration::from_secs(1), TenantLimits::default());
        let limits = QueueLimits { max_open_jobs: 99, retry_after, tenant };
        let submitted = submit_job(&self.state, submission, limits, self.now).expect("taken");
        submitted.writes.into_iter().for_each(|write| self.state.apply(write).expect("stands alone"));
        let shard = ShardRecord { path: "p".into(), pairs: 8, size_bytes: 9, sha256: "a".repeat(64) };
        let scores = ScoreCounts::default();
        let result = UnitResult { shard, rejected: BTreeMap::new(), scores, exhausted: true };
        let (unit, state) = (UnitRecord::new(&stage_of(&submitted.job), 0), UnitState::Done(result));
        self.put(Record::Unit(UnitRecord { lease_generation: 1, state, ..unit }));
        submitted.job
    }

    fn decide(&mut self) {
        let plan = decide(&self.state, &self.seen, &self.limits, self.now);
        for write in plan.writes {
            match write {
                Write::Put(record) => self.put(record),
                Write::Delete(_) => panic!("nothing is deleted here"),
            }
        }
        plan.sends.iter().for_each(|send| self.seen.sent(send, self.now));
        let again = decide(&self.state, &self.seen, &self.limits, self.now);
        assert!(again.writes.is_empty() && again.changes.is_empty(), "deciding again gives {again:?}");
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_secs(1));
            let nodes: Vec<NodeId> = self.seen.nodes.keys().cloned().collect();
            nodes.iter().for_each(|node| self.seen.heard(node, self.now));
            self.decide();
        }
    }

    fn attempt(&self, job: &JobId) -> Option<AttemptRecord> {
        self.state.stage(&stage_of(job))?.active_attempt().cloned()
    }

    fn runs_on(&self, job: &JobId) -> Option<String> {
        Some(self.attempt(job)?.ranks.first()?.node.to_string())
    }

    fn fail(&mut self, job: &JobId, permanent: bool) {
        self.fail_with(job, if permanent { NodeFailure::Permanent } else { NodeFailure::Retryable });
    }

    fn fail_with(&mut self, job: &JobId, kind: NodeFailure) {
        let attempt = self.attempt(job).expect("it runs");
        let reason = "no space left on device".to_owned();
        let phase = NodeReport::Failed { reason, kind };
        let node = attempt.ranks[0].node.clone();
        self.seen.report(
            Report { node, attempt: attempt.attempt, phase, progress: None, ranks: Vec::new() },
            self.now,
        );
        self.decide();
    }

    /// What is said of the gang's first rank's node, or of another's; and what is decided then.
    fn say(&mut self, job: &JobId, rank: usize, phase: NodeReport) {
        let attempt = self.attempt(job).expect("it runs");
        let node = attempt.ranks[rank].node.clone();
        let (attempt, ranks) = (attempt.attempt, Vec::new());
        self.seen.report(Report { node, attempt, phase, progress: None, ranks }, self.now);
        self.decide();
    }

    fn generation(&self, job: &JobId) -> u64 {
        self.ended(job).attempt.generation.0
    }

    fn ended(&self, job: &JobId) -> AttemptRecord {
        self.state.stage(&stage_of(job)).and_then(|stage| stage.attempt.as_deref().cloned()).expect("there")
    }

    fn fail_if_placed(&mut self, job: &JobId) {
        if self.attempt(job).is_some() {
            self.fail(job, false);
        }
    }

    fn state_of(&self, job: &JobId) -> &JobState {
        &self.state.job(job).expect("there").record.state
    }
}

#[test]
fn what_one_node_takes_for_permanent_is_tried_on_another_which_decides() {
    let mut cluster = Cluster::new(&[("bad", 1), ("other", 1)]);
    let job = cluster.submit("trial");
    cluster.decide();
    let first = cluster.runs_on(&job).expect("placed");
    cluster.fail(&job, true);
    let second = cluster.runs_on(&job).expect("placed again at once");
    assert_ne!(first, second, "not where it has just failed for good");
    cluster.fail(&job, true);
    let JobState::Failed { reason } = cluster.state_of(&job) else { panic!("two agree") };
    assert!(reason.contains("no space left on device"), "{reason}");
}

#[test]
fn who_has_lost_a_peer_is_not_to_blame() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1)]);
    let job = cluster.submit("trial");
    cluster.decide();
    let there = cluster.runs_on(&job).expect("placed");
    cluster.fail_with(&job, NodeFailure::PeerLost);
    assert_eq!(cluster.runs_on(&job).as_ref(), Some(&there));
    cluster.fail(&job, false);
    cluster.wait(3);
    assert!(cluster.runs_on(&job).is_some_and(|node| node != there));
}

#[test]
fn the_only_node_is_believed_at_once() {
    let mut cluster = Cluster::new(&[("only", 2)]);
    let job = cluster.submit("trial");
    cluster.decide();
    cluster.fail(&job, true);
    assert!(cluster.state_of(&job).is_terminal());
}

#[test]
fn a_job_waits_for_slots_elsewhere_rather_than_for_the_node_that_fails_it() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1)]);
    let (one, two) = (cluster.submit("one"), cluster.submit("two"));
    cluster.decide();
    let there = cluster.runs_on(&one).expect("placed");
    cluster.fail(&one, true);
    cluster.wait(60);
    assert_eq!(cluster.attempt(&one), None, "the other node is taken, and this one has failed it for good");
    cluster.fail(&two, false);
    cluster.wait(3);
    assert!(cluster.runs_on(&one).is_none_or(|node| node != there));
    assert!(!cluster.state_of(&one).is_terminal());
}

#[test]
fn a_node_on_which_job_after_job_fails_is_cordoned_until_a_person_takes_it_back() {
    let mut cluster = Cluster::new(&[("bad", 1), ("good", 8)]);
    let mut failed = 0;
    for n in 0..6 {
        let job = cluster.submit(&format!("job-{n}"));
        cluster.decide();
        if cluster.runs_on(&job).expect("placed") == "bad" {
            failed += 1;
            cluster.fail(&job, false);
            assert_eq!(cluster.runs_on(&job).as_deref(), Some("good"), "the retry goes elsewhere");
        }
        // Nothing is avoided for ever on the word of a single job.
        assert!(failed > 0);
    }
    assert!(failed <= 3, "{failed} jobs were sent there");
    let mut cluster = Cluster::new(&[("bad", 8), ("good", 1)]);
    // Only the bad one has room.
    let keeper = cluster.submit("keeper");
    cluster.decide();
    assert_eq!(cluster.runs_on(&keeper).as_deref(), Some("good"));
    for n in 0..3 {
        let job = cluster.submit(&format!("job-{n}"));
        cluster.decide();
        cluster.fail(&job, false);
    }
    let cordon = cluster.state.node(&node("bad")).expect("known").cordon.clone().expect("cordoned");
    assert!(cordon.ends_with("no space left on device"), "{cordon}");
    let taken_back = transitions::drain_node(&cluster.state, &node("bad"), false).expect("known");
    taken_back.into_iter().for_each(|write| cluster.state.apply(write).expect("there"));
    cluster.seen.failures.forgive(&node("bad"));
    cluster.decide();
    assert_eq!(cluster.state.node(&node("bad")).expect("known").cordon, None);
}

#[test]
fn a_node_whose_gpu_has_failed_is_cordoned_once_for_each_fault() {
    let mut cluster = Cluster::new(&[("sick", 8), ("sound", 8)]);
    let cordon = |cluster: &Cluster| cluster.state.node(&node("sick")).expect("known").cordon.clone();
    let says = |cluster: &mut Cluster, fault: &str| {
        let health = NodeHealth { device_fault: Some(fault.to_owned()), ..NodeHealth::default() };
        cluster.seen.health(&node("sick"), health);
        cluster.decide();
    };
    says(&mut cluster, "GPU 3: XID 94");
    assert_eq!(cordon(&cluster).as_deref(), Some("GPU 3: XID 94"));
    let job = cluster.submit("trial");
    cluster.decide();
    assert_eq!(cluster.runs_on(&job).as_deref(), Some("sound"));
    let take_back = |cluster: &mut Cluster| {
        let writes = transitions::drain_node(&cluster.state, &node("sick"), false).expect("known");
        writes.into_iter().for_each(|write| cluster.state.apply(write).expect("there"));
        cluster.seen.forgive(&node("sick"));
        cluster.decide();
    };
    take_back(&mut cluster);
    assert_eq!(cordon(&cluster), None, "a person knows of it");
    says(&mut cluster, "GPU 3: XID 94");
    assert_eq!(cordon(&cluster), None, "and it is the same");
    says(&mut cluster, "GPU 3: XID 94; GPU 4: XID 79");
    assert_eq!(cordon(&cluster).as_deref(), Some("GPU 3: XID 94; GPU 4: XID 79"), "this is another");
    // Where there is no other node, a sick one is better than none.
    let mut alone = Cluster::new(&[("sick", 8)]);
    says(&mut alone, "GPU 3: XID 94");
    assert_eq!(cordon(&alone), None);
}

#[test]
fn a_slot_whose_rank_does_not_die_is_given_to_nobody_and_the_others_are() {
    let mut cluster = Cluster::new(&[("node", 2)]);
    let first = cluster.submit("first");
    cluster.decide();
    let slot = cluster.attempt(&first).expect("placed").ranks[0].device_index;
    // Its rank is killed and stays; the node says so, and then that the attempt is over.
    let health =
        NodeHealth { stuck: BTreeMap::from([(slot, "state D".to_owned())]), ..NodeHealth::default() };
    cluster.seen.health(&node("node"), health.clone());
    cluster.fail(&first, false);
    cluster.wait(5);
    let again = cluster.attempt(&first).expect("there is another slot").ranks[0].device_index;
    assert_ne!(again, slot);
    let second = cluster.submit("second");
    cluster.wait(60);
    assert_eq!(cluster.attempt(&second), None, "the free slot is taken, and the held one is nobody's");
    // A new session of the same process says it again.
    let (incarnation, none) = (Incarnation::parse("first").expect("valid"), BTreeSet::new());
    let runs = BTreeSet::from([cluster.attempt(&first).expect("it runs").attempt]);
    cluster.seen.hello(node("node"), incarnation, runs, none, cluster.now);
    cluster.seen.health(&node("node"), health);
    cluster.wait(5);
    assert_eq!(cluster.attempt(&second), None);
    cluster.seen.health(&node("node"), NodeHealth::default());
    cluster.wait(1);
    assert_eq!(cluster.attempt(&second).expect("it is gone").ranks[0].device_index, slot);
}

#[test]
fn who_cannot_use_the_object_store_gets_no_work() {
    let mut cluster = Cluster::new(&[("apart", 8), ("well", 1)]);
    let health = NodeHealth { store_fault: Some("not mounted".into()), ..NodeHealth::default() };
    cluster.seen.health(&node("apart"), health);
    let (one, two) = (cluster.submit("one"), cluster.submit("two"));
    cluster.decide();
    let placed = [&one, &two].map(|job| cluster.runs_on(job));
    assert_eq!(placed, [Some("well".to_owned()), None]);
    cluster.seen.health(&node("apart"), NodeHealth::default());
    cluster.decide();
    assert_eq!(cluster.runs_on(&two).as_deref(), Some("apart"));
}

/// Two gangs that step, one whose node is silent all the time and one whose node is heard.
fn silent_and_heard() -> (Cluster, JobId, JobId) {
    let mut cluster = Cluster::new(&[("silent", 1), ("heard", 1)]);
    let jobs = (cluster.submit("one"), cluster.submit("two"));
    cluster.decide();
    (cluster, jobs.0, jobs.1)
}

#[test]
fn who_stood_still_listens_for_a_minute_before_it_judges() {
    for passed in [0, 70, 3600] {
        let (mut cluster, one, two) = silent_and_heard();
        let before = (cluster.attempt(&one), cluster.attempt(&two));
        let silent = before.0.clone().expect("placed").ranks[0].node.clone();
        let heard = before.1.clone().expect("placed").ranks[0].node.clone();
        // It is silent for nearly as long as it may be when the controller stands still.
        for _ in 0..55 {
            cluster.now = cluster.now.plus(Duration::from_secs(1));
            cluster.seen.heard(&heard, cluster.now);
            cluster.decide();
        }
        cluster.now = cluster.now.plus(Duration::from_secs(passed));
        cluster.seen.stood_still(cluster.now);
        cluster.decide();
        assert_eq!((cluster.attempt(&one), cluster.attempt(&two)), before, "{passed}");
        for _ in 0..59 {
            cluster.now = cluster.now.plus(Duration::from_secs(1));
            cluster.seen.heard(&heard, cluster.now);
            cluster.decide();
            let attempt = cluster.attempt(&one).expect("it is listened for");
            assert_eq!(attempt.attempt.generation.0, 1);
        }
        cluster.now = cluster.now.plus(Duration::from_secs(2));
        cluster.seen.heard(&heard, cluster.now);
        cluster.decide();
        let reason = cluster.state.stage(&stage_of(&one)).and_then(|stage| stage.attempt.clone());
        assert!(cluster.attempt(&one).is_none_or(|attempt| attempt.ranks[0].node != silent), "{reason:?}");
        assert_eq!(cluster.attempt(&two).expect("it runs").attempt.generation.0, 1);
    }
}

/// What records say of time was written by any clock: it is shown, and decides nothing.
#[test]
fn a_back_off_is_counted_from_when_it_was_learnt_of_whatever_the_clock_of_its_record() {
    let ahead_secs = [-3600, -120, 0, 120, 3600];
    for (wrote, reads) in ahead_secs.into_iter().flat_map(|wrote| ahead_secs.map(|reads| (wrote, reads))) {
        let mut cluster = Cluster::new(&[("only", 1)]);
        cluster.seen.wall_ahead_millis = wrote * 1000;
        let job = cluster.submit("trial");
        cluster.decide();
        cluster.fail(&job, false);
        cluster.fail(&job, false);
        cluster.fail_if_placed(&job);
        let AttemptState::Ended { at, .. } = cluster.ended(&job).state else { panic!("it waits") };
        assert_eq!(at, cluster.seen.wall(cluster.now), "people are shown wall time");
        // Another controller takes over, with another clock.
        let mut seen = Observed::new(cluster.now);
        seen.wall_ahead_millis = reads * 1000;
        let (id, view) = cluster.seen.nodes.pop_first().expect("one node");
        seen.hello(id, view.incarnation.clone(), BTreeSet::new(), BTreeSet::new(), cluster.now);
        cluster.seen = seen;
        cluster.decide();
        assert_eq!(cluster.attempt(&job), None, "{wrote} {reads}: it waits a little");
        cluster.wait(2);
        assert!(cluster.attempt(&job).is_some(), "{wrote} {reads}: and no longer than that");
    }
}

proptest! {
    /// However the bad node fails, and whatever it says of it: no job ends for its sake as long as there is room elsewhere.
    #[test]
    fn one_bad_node_ends_no_job(
        permanents in prop::collection::vec(any::<bool>(), 40),
        waits in prop::collection::vec(0u64..5, 40),
        good_slots in 1u32..4,
    ) {
        let mut cluster = Cluster::new(&[("bad", 2), ("good", good_slots)]);
        let jobs: Vec<JobId> = (0..4).map(|n| cluster.submit(&format!("job-{n}"))).collect();
        cluster.decide();
        for (permanent, wait) in permanents.into_iter().zip(waits) {
            for job in &jobs {
                if cluster.runs_on(job).as_deref() == Some("bad") {
                    cluster.fail(job, permanent);
                }
                prop_assert!(!cluster.state_of(job).is_terminal(), "{:?}", cluster.state_of(job));
            }
            cluster.wait(wait);
        }
    }
}

fn failed(reason: &str, kind: NodeFailure) -> NodeReport {
    NodeReport::Failed { reason: reason.into(), kind }
}

/// A gang of two on two nodes that steps; there is a third node.
fn stepping() -> (Cluster, JobId) {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1), ("c", 1)]);
    let job = cluster.submit_gang("trial", 2);
    cluster.decide();
    for rank in 0..2 {
        cluster.say(&job, rank, NodeReport::Running);
    }
    (cluster, job)
}

#[test]
fn a_gang_of_which_a_rank_has_died_is_given_time_to_save_what_it_had_done() {
    let (mut cluster, job) = stepping();
    cluster.say(&job, 1, failed("rank 1 ended: killed by signal 9", NodeFailure::RankDied));
    cluster.wait(30);
    assert_eq!(cluster.generation(&job), 1, "the other may be saving");
    let victim = cluster.attempt(&job).expect("it runs").ranks[1].node.clone();
    cluster.say(&job, 0, failed("connection reset", NodeFailure::PeerLost));
    cluster.wait(3);
    assert_eq!(cluster.generation(&job), 2, "it has");
    let ranks = cluster.attempt(&job).expect("placed again").ranks;
    assert!(ranks.iter().all(|rank| rank.node != victim), "where the rank died is avoided: {ranks:?}");
}

#[test]
fn a_gang_of_which_a_rank_has_died_is_not_waited_for_in_vain() {
    // Nobody says anything.
    let (mut cluster, job) = stepping();
    cluster.say(&job, 0, failed("rank 0 ended: killed by signal 9", NodeFailure::RankDied));
    cluster.wait(44);
    assert_eq!(cluster.generation(&job), 1);
    cluster.wait(3);
    assert_eq!(cluster.generation(&job), 2);
    // Nobody is left.
    let (mut cluster, job) = stepping();
    cluster.say(&job, 0, failed("rank 0 ended: killed by signal 9", NodeFailure::RankDied));
    cluster.say(&job, 1, failed("rank 1 ended: killed by signal 9", NodeFailure::RankDied));
    cluster.wait(3);
    assert_eq!(cluster.generation(&job), 2);
    // It had not begun.
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1)]);
    let job = cluster.submit_gang("trial", 2);
    cluster.decide();
    cluster.say(&job, 1, NodeReport::Starting);
    cluster.say(&job, 0, failed("rank 0 ended: killed by signal 9", NodeFailure::RankDied));
    cluster.wait(3);
    assert_eq!(cluster.generation(&job), 2);
}

#[test]
fn a_node_that_is_lost_before_the_ranks_have_met_is_given_up_sooner() {
    let lost = |met: bool| {
        let mut cluster = Cluster::new(&[("a", 1), ("b", 1), ("c", 1)]);
        let job = cluster.submit_gang("trial", 2);
        cluster.decide();
        let gone = cluster.attempt(&job).expect("placed").ranks[1].node.clone();
        for seconds in 1..100 {
            let phase = if met { NodeReport::Running } else { NodeReport::Starting };
            cluster.say(&job, 0, phase);
            cluster.now = cluster.now.plus(Duration::from_secs(1));
            let nodes: Vec<NodeId> =
                cluster.seen.nodes.keys().filter(|node| **node != gone).cloned().collect();
            nodes.iter().for_each(|node| cluster.seen.heard(node, cluster.now));
            cluster.decide();
            if cluster.generation(&job) > 1 {
                return seconds;
            }
        }
        unreachable!("it waits for ever")
    };
    assert_eq!((lost(false), lost(true)), (30, 60));
}

impl Cluster {
    /// Nodes of the gang are heard of, and their ranks are at this.
    fn step(&mut self, job: &JobId, nodes: &[NodeId], step: u64, phase: RankPhase) {
        let attempt = self.attempt(job).expect("it runs");
        for node in nodes {
            let here = attempt.ranks.iter().enumerate().filter(|(_, rank)| rank.node == *node);
            let word = |rank: usize| RankWord {
                rank: u32::try_from(rank).expect("few"),
                phase,
                step,
                moves: 1 + step,
                beats: 1 + self.now.0 / 1000,
                steps_done: step,
                step_time: Duration::from_millis(100),
                own_time: Duration::from_millis(90),
            };
            let ranks = here.map(|(rank, _)| word(rank)).collect();
            let (node, attempt, phase) = (node.clone(), attempt.attempt.clone(), NodeReport::Running);
            self.seen.report(Report { node, attempt, phase, progress: None, ranks }, self.now);
        }
    }

    fn lost(&mut self) -> Vec<BTreeSet<NodeId>> {
        self.seen.find_lost_nodes(&self.state, self.now).into_iter().map(|(_, nodes)| nodes).collect()
    }
}

/// The nodes that are told to save what is left, with those that are lost.
fn rescues(cluster: &Cluster) -> Vec<(NodeId, BTreeSet<NodeId>)> {
    let plan = decide(&cluster.state, &cluster.seen, &cluster.limits, cluster.now);
    let of = |send: crescendo_core::decide::Send| match send.command {
        Command::RescueAttempt(_, lost) => Some((send.node, lost)),
        _ => None,
    };
    plan.sends.into_iter().filter_map(of).collect()
}

#[test]
fn ranks_that_wait_for_nodes_of_which_nothing_is_heard_save_and_go_elsewhere() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1), ("c", 1)]);
    let job = cluster.submit_gang("trial", 3);
    cluster.decide();
    cluster.connect("spare", 1);
    let all = ["a", "b", "c"].map(node);
    for second in 0..20 {
        cluster.now = cluster.now.plus(Duration::from_secs(1));
        cluster.step(&job, &all, 10 + second, RankPhase::Forward);
        cluster.decide();
    }
    // Unreachable is not failed: the others go on.
    for second in 0..20 {
        cluster.now = cluster.now.plus(Duration::from_secs(1));
        cluster.step(&job, &all[..2], 30 + second, RankPhase::AllReduce);
        assert_eq!(cluster.lost(), []);
    }
    // They stand. What they wait for is not waited for longer than it takes to be sure of that.
    let mut waited = 0;
    let lost = loop {
        cluster.now = cluster.now.plus(Duration::from_secs(1));
        cluster.seen.heard(&node("spare"), cluster.now);
        cluster.step(&job, &all[..2], 49, RankPhase::AllReduce);
        waited += 1;
        if let [lost] = cluster.lost().as_slice() {
            break lost.clone();
        }
    };
    assert_eq!((waited, &lost), (3, &BTreeSet::from([node("c")])));
    assert_eq!(cluster.lost(), [], "found once");
    let told: Vec<_> = all[..2].iter().map(|node| (node.clone(), lost.clone())).collect();
    assert_eq!(rescues(&cluster), told);
    cluster.decide();
    assert_eq!(rescues(&cluster), [], "told once");
    assert!(cluster.attempt(&job).is_some(), "they save");
    let lost_peer = NodeReport::Failed { reason: "saved".into(), kind: NodeFailure::PeerLost };
    cluster.say(&job, 0, lost_peer);
    let ranks = cluster.attempt(&job).expect("placed again").ranks;
    let nodes: Vec<&str> = ranks.iter().map(|rank| rank.node.as_str()).collect();
    assert_eq!(nodes, ["a", "b", "spare"], "not on what is lost, though it is not silent for long");
}

#[test]
fn ranks_that_are_at_work_themselves_wait_for_nobody() {
    let mut cluster = Cluster::new(&[("a", 1), ("b", 1)]);
    let job = cluster.submit_gang("trial", 2);
    cluster.decide();
    let all = ["a", "b"].map(node);
    cluster.step(&job, &all, 10, RankPhase::Forward);
    for phase in [RankPhase::Saving, RankPhase::WaitingForPairs, RankPhase::Forward, RankPhase::Meeting] {
        for _ in 0..15 {
            cluster.now = cluster.now.plus(Duration::from_secs(1));
            cluster.step(&job, &all[..1], 10, phase);
            assert_eq!(cluster.lost(), [], "{phase}");
        }
    }
}
