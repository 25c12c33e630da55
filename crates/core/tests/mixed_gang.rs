//! Nodes with unlike processors: a stage computes in one precision for good, and where it goes on from its checkpoint on
//! another kind of processor it says so, or waits if the spec asks for the same bits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Change, Limits, PendingReason, Plan, Waits, decide};
use crescendo_core::explain::{Explanation, View, explain};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::observed::{NodeFailure, NodeReport, Observed, Report};
use crescendo_core::precision::{self, Arithmetic, StagePrecision};
use crescendo_core::processor;
use crescendo_core::quotas::TenantLimits;
use crescendo_core::records::{
    CheckpointRecord, NodeKind, NodeRecord, Record, ShardRecord, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::spec::{self, Precision};
use crescendo_core::state::{ClusterState, Stage};
use crescendo_core::transitions::{QueueLimits, Submission, checkpoint_path, submit_job};

const WIDE: &str = "AuthenticAMD avx512_bf16";
const NARROW: &str = "AuthenticAMD avx2";

struct Cluster {
    state: ClusterState,
    seen: Observed,
    now: Timestamp,
    waits: Waits,
}

impl Cluster {
    fn new() -> Self {
        let now = Timestamp(1_000_000);
        let (state, seen) = (ClusterState::default(), Observed::new(now));
        Self { state, seen, now, waits: Waits::default() }
    }

    /// A node of one slot says hello. It runs bf16 at this many hundredths of f32's speed.
    fn connect(&mut self, id: &str, processor: &str, hundredths: u64) {
        let kind = if id.starts_with('c') { NodeKind::Curator } else { NodeKind::Trainer };
        let (id, incarnation) =
            (NodeId::parse(id).expect("valid"), Incarnation::parse("first").expect("valid"));
        self.put(Record::Node(NodeRecord {
            id: id.clone(),
            incarnation: incarnation.clone(),
            kind,
            slots: u32::from(kind == NodeKind::Trainer),
            device: "cpu".into(),
            address: "127.0.0.1:9".into(),
            labels: BTreeMap::new(),
            version: "0.1.0".into(),
            drained: false,
            cordon: None,
            device_memory_bytes: None,
            arithmetic: Some(Arithmetic {
                f32_time: Duration::from_micros(hundredths),
                bf16_time: Duration::from_micros(100),
                processor: processor.into(),
                threads: 1,
            }),
        }));
        self.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
    }

    /// The node's process has gone, and its session with it.
    fn lose(&mut self, id: &str) {
        self.seen.disconnected(&NodeId::parse(id).expect("valid"));
    }

    fn put(&mut self, record: Record) {
        self.state.apply(Write::Put(record)).expect("belongs to something");
    }

    /// A job of one stage; `more` are fields of its spec.
    fn submit(&mut self, gpus: u32, more: &str) -> JobId {
        self.submit_as("trial", gpus, more)
    }

    fn submit_as(&mut self, name: &str, gpus: u32, more: &str) -> JobId {
        let stage = "    - name: stage-1\n      data: {source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}\n      train: {adapter: {rank: 4}, steps: 20, globalBatch: 16}\n";
        self.submit_spec(name, gpus, more, stage)
    }

    /// A job of two stages of one rank, the second of which begins with the first's checkpoint.
    fn submit_stages(&mut self, more: &str) -> JobId {
        let stage = |name: &str, init: &str| {
            format!(
                "    - name: {name}\n{init}      data: {{source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, steps: 20, globalBatch: 16}}\n"
            )
        };
        let stages = stage("stage-1", "") + &stage("stage-2", "      initFrom: stage-1\n");
        self.submit_spec("trial", 1, more, &stages)
    }

    fn submit_spec(&mut self, name: &str, gpus: u32, more: &str, stages: &str) -> JobId {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n  model: {{preset: nano, weights: b}}\n  resources: {{gpus: {gpus}}}\n{more}  stages:\n{stages}"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let submission = Submission {
            request: RequestId::parse(name).expect("valid"),
            spec: Arc::new(spec),
            spec_json: yaml.into_bytes().into(),
            trace: None,
        };
        let retry_after = Duration::from_secs(1);
        let limits = QueueLimits { max_open_jobs: 9, retry_after, tenant: TenantLimits::default() };
        let submitted = submit_job(&self.state, submission, limits, self.now).expect("taken");
        submitted.writes.into_iter().for_each(|write| self.state.apply(write).expect("stands alone"));
        submitted.job
    }

    fn curate(&mut self, job: &JobId) {
        self.curate_stage(job, "stage-1");
    }

    /// All its pairs are there.
    fn curate_stage(&mut self, job: &JobId, stage: &str) {
        let shard = ShardRecord { path: "p".into(), pairs: 8, size_bytes: 9, sha256: "a".repeat(64) };
        let scores = ScoreCounts::default();
        let result = UnitResult { shard, rejected: BTreeMap::new(), scores, exhausted: true };
        let stage = StageRef { job: job.clone(), stage: StageName::parse(stage).expect("valid") };
        let unit = UnitRecord::new(&stage, 0);
        let state = UnitState::Done(result);
        self.put(Record::Unit(UnitRecord { lease_generation: 1, state, ..unit }));
    }

    /// Decides as the controller does after each request; deciding once more changes nothing.
    fn decide(&mut self) -> Plan {
        let plan = decide(&self.state, &self.seen, &Limits::default(), self.now);
        for write in plan.writes.clone() {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.state.apply(write).expect("belongs to something");
        }
        plan.sends.iter().for_each(|send| self.seen.sent(send, self.now));
        let again = decide(&self.state, &self.seen, &Limits::default(), self.now);
        assert!(again.writes.is_empty() && again.changes.is_empty(), "deciding again gives {again:?}");
        self.waits = plan.waits.clone();
        plan
    }

    fn stage(&self, job: &JobId) -> &Stage {
        self.state.stage(&stage_ref(job)).expect("it is there")
    }

    /// What the stage computes in, and why.
    fn precision(&self, job: &JobId) -> (StagePrecision, &str) {
        let settled = self.stage(job).precision_choice().expect("a node works on it");
        (settled.precision, &settled.why)
    }

    /// The nodes that its ranks are on.
    fn gang(&self, job: &JobId) -> Vec<&str> {
        let attempt = self.stage(job).active_attempt();
        attempt.iter().flat_map(|attempt| &attempt.ranks).map(|rank| rank.node.as_str()).collect()
    }

    /// The gang saves this step.
    fn save(&mut self, job: &JobId, step: u64) {
        self.checkpoint(job, step, false);
    }

    /// The gang saves its last step.
    fn finish(&mut self, job: &JobId) {
        self.checkpoint(job, 20, true);
    }

    fn checkpoint(&mut self, job: &JobId, step: u64, is_final: bool) {
        let (stage, generation) = (stage_ref(job), self.stage(job).generation());
        let path = checkpoint_path(&stage, step, generation);
        self.put(Record::Checkpoint(CheckpointRecord {
            stage,
            generation,
            step,
            path,
            files: Vec::new(),
            committed_at: self.now,
            is_final,
            damaged: None,
            next_position: 0,
        }));
    }

    /// A rank of the gang fails on this node.
    fn fail(&mut self, job: &JobId, node: &str) {
        let attempt = self.stage(job).active_attempt().expect("it runs").attempt.clone();
        let phase = NodeReport::Failed { reason: "signal 9".into(), kind: NodeFailure::Retryable };
        let node = NodeId::parse(node).expect("valid");
        self.seen.report(Report { node, attempt, phase, progress: None, ranks: Vec::new() }, self.now);
    }

    fn explain(&self, job: &JobId) -> Explanation {
        let (state, seen, waits, now) = (&self.state, &self.seen, &self.waits, self.now);
        let limits = Limits::default();
        let view = View { state, seen, waits, limits: &limits, now, scope: &Scope::Everything };
        explain(&view, state.job(job).expect("it is there"))
    }
}

fn stage_ref(job: &JobId) -> StageRef {
    StageRef { job: job.clone(), stage: StageName::parse("stage-1").expect("valid") }
}

fn changes_of_kind(plan: &Plan) -> Vec<String> {
    let told = |change: &Change| match change {
        Change::KindChanged { change, .. } => Some(change.to_string()),
        _ => None,
    };
    plan.changes.iter().filter_map(told).collect()
}

#[test]
fn a_mixed_gang_trains_in_one_precision_and_keeps_it() {
    let mut cluster = Cluster::new();
    cluster.connect("c-1", WIDE, 210);
    cluster.connect("t-1", WIDE, 210);
    cluster.connect("t-2", NARROW, 12);
    let job = cluster.submit(2, "");
    cluster.decide();
    let settled = (StagePrecision::F32, "node t-2 runs bf16 at 0.12 of f32");
    assert_eq!(cluster.precision(&job), settled, "by its first unit, before a rank is placed");
    cluster.curate(&job);
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-1", "t-2"]);
    // Whoever works on the stage is given that precision, not `auto`.
    let spec = &cluster.state.job(&job).expect("there").record.spec;
    let given = precision::spec_of_stage(spec, cluster.stage(&job)).expect("the spec says auto");
    assert_eq!(given.model.precision, Precision::F32);

    // Neither another controller nor other nodes change it.
    cluster.seen = Observed::new(cluster.now);
    cluster.connect("c-1", WIDE, 210);
    cluster.connect("t-1", WIDE, 210);
    cluster.connect("t-2", WIDE, 700);
    cluster.decide();
    assert_eq!(cluster.precision(&job), settled);
}

#[test]
fn bf16_once_settled_stays_when_a_slow_node_comes() {
    let mut cluster = Cluster::new();
    cluster.connect("t-1", WIDE, 210);
    let job = cluster.submit(1, "");
    cluster.curate(&job);
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-1"]);
    assert_eq!(cluster.precision(&job).0, StagePrecision::Bf16);
    cluster.connect("t-2", NARROW, 12);
    cluster.lose("t-1");
    cluster.fail(&job, "t-1");
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-2"]);
    assert_eq!(cluster.precision(&job).0, StagePrecision::Bf16);
}

/// A stage of one rank that has saved step 10 on `t-1` and lost that node; `t-2` has another processor.
fn interrupted(more: &str) -> (Cluster, JobId) {
    let mut cluster = Cluster::new();
    cluster.connect("t-1", WIDE, 210);
    let job = cluster.submit(1, more);
    cluster.curate(&job);
    assert!(changes_of_kind(&cluster.decide()).is_empty(), "it only begins");
    cluster.save(&job, 10);
    cluster.connect("t-2", NARROW, 12);
    cluster.lose("t-1");
    cluster.fail(&job, "t-1");
    (cluster, job)
}

#[test]
fn a_resume_on_another_kind_goes_on_and_says_so() {
    let (mut cluster, job) = interrupted("");
    let told = changes_of_kind(&cluster.decide());
    let expected = format!(
        "resumed at step 10 on 1 rank of 1 thread on {NARROW}, before on 1 rank of 1 thread on {WIDE}: last bits may differ"
    );
    assert_eq!(told, std::slice::from_ref(&expected));
    assert_eq!(cluster.gang(&job), ["t-2"]);
    let kept: Vec<String> =
        processor::changes(cluster.stage(&job)).map(|change| change.to_string()).collect();
    assert_eq!(kept, std::slice::from_ref(&expected), "and it stays with the stage");
    assert!(cluster.explain(&job).findings.contains(&expected), "{:?}", cluster.explain(&job));

    // That gang fails before it has saved anything, and the stage goes on where it began: nothing of it is left.
    cluster.connect("t-1", WIDE, 210);
    cluster.lose("t-2");
    cluster.fail(&job, "t-2");
    cluster.decide();
    cluster.now = cluster.now.plus(Duration::from_secs(1)); // the second failure in a row waits a little
    assert!(changes_of_kind(&cluster.decide()).is_empty());
    assert_eq!(cluster.gang(&job), ["t-1"]);
    assert_eq!(processor::changes(cluster.stage(&job)).count(), 0);
}

#[test]
fn a_strict_job_waits_for_the_kind_that_wrote_its_checkpoint() {
    let (mut cluster, job) = interrupted("  reproducible: strict\n");
    cluster.decide();
    assert!(cluster.gang(&job).is_empty(), "t-2 is free and of another kind");
    let explanation = cluster.explain(&job);
    assert_eq!(explanation.cause, "processor");
    let gang = format!("1 rank of 1 thread on {WIDE}");
    assert!(explanation.summary.starts_with(&format!("waits for {gang}")), "{explanation:?}");
    assert!(explanation.findings.contains(&format!("its checkpoint of step 10 was written by {gang}")));
    assert!(
        explanation
            .findings
            .iter()
            .any(|line| line.contains(&format!("node t-2 has 1 rank of 1 thread on {NARROW}"))),
        "{explanation:?}"
    );
    assert!(!explanation.remedies.is_empty());

    // Another node of that kind will do.
    cluster.connect("t-3", WIDE, 210);
    assert!(changes_of_kind(&cluster.decide()).is_empty());
    assert_eq!(cluster.gang(&job), ["t-3"]);
}

#[test]
fn a_strict_job_begins_anywhere() {
    let mut cluster = Cluster::new();
    cluster.connect("t-2", NARROW, 12);
    let job = cluster.submit(1, "  reproducible: strict\n");
    cluster.curate(&job);
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-2"]);
}

/// A strict job with a rank of each kind, `wide` first, that has saved step 10 and lost its gang.
fn interrupted_pair(wide: &str, narrow: &str) -> (Cluster, JobId) {
    let mut cluster = Cluster::new();
    cluster.connect(wide, WIDE, 210);
    cluster.connect(narrow, NARROW, 12);
    let job = cluster.submit(2, "  reproducible: strict\n");
    cluster.curate(&job);
    cluster.decide();
    assert_eq!(cluster.gang(&job), [wide, narrow]);
    cluster.save(&job, 10);
    cluster.lose(wide);
    cluster.fail(&job, wide);
    (cluster, job)
}

#[test]
fn a_strict_gang_of_two_kinds_takes_one_of_each_whatever_they_are_called() {
    let (mut cluster, job) = interrupted_pair("t-2", "t-3");
    cluster.decide();
    assert!(cluster.gang(&job).is_empty(), "t-3 is free and alone");
    let missing = format!("waits for 1 rank of 1 thread on {WIDE}");
    let explanation = cluster.explain(&job);
    assert!(
        explanation.summary.starts_with(&missing) && !explanation.summary.contains(NARROW),
        "{explanation:?}"
    );
    assert!(explanation.remedies[0].contains("node t-2 (1 slot) is silent"), "{explanation:?}");
    // By their names the first two slots are both wide.
    cluster.connect("t-0", WIDE, 210);
    cluster.connect("t-1", WIDE, 210);
    assert!(changes_of_kind(&cluster.decide()).is_empty());
    assert_eq!(cluster.gang(&job), ["t-0", "t-3"]);
}

#[test]
fn a_strict_gang_that_lacks_a_kind_keeps_no_slots_from_others() {
    let (mut cluster, job) = interrupted_pair("t-2", "t-3");
    cluster.lose("t-3");
    cluster.connect("t-4", WIDE, 210);
    cluster.connect("t-5", WIDE, 210);
    let later = cluster.submit_as("later", 1, "");
    cluster.curate(&later);
    cluster.decide();
    assert!(
        matches!(&cluster.waits[&job], PendingReason::Processor { gang } if gang.to_string().contains(NARROW))
    );
    assert_eq!(cluster.gang(&later).len(), 1, "it does not wait behind what cannot start");
}

#[test]
fn a_strict_stage_waits_for_a_slot_of_the_kind_that_another_job_has() {
    let (mut cluster, job) = interrupted_pair("t-2", "t-3");
    let other = cluster.submit_as("other", 1, "  priority: 100\n");
    cluster.curate(&other);
    cluster.connect("t-2", WIDE, 210);
    cluster.lose("t-3");
    cluster.decide();
    assert_eq!(cluster.gang(&other), ["t-2"]);
    cluster.connect("t-3", NARROW, 12);
    cluster.decide();
    assert!(
        matches!(cluster.waits[&job], PendingReason::Slots { wanted: 1, free: 0, total: 1 }),
        "{:?}",
        cluster.waits
    );
}

#[test]
fn curators_that_only_encode_have_no_say_in_the_precision() {
    let mut cluster = Cluster::new();
    cluster.connect("c-1", NARROW, 12);
    cluster.connect("t-1", WIDE, 210);
    let job = cluster.submit(1, "");
    cluster.decide();
    assert_eq!(cluster.precision(&job).0, StagePrecision::Bf16);
}

#[test]
fn no_precision_is_settled_before_a_trainer_was_there() {
    let mut cluster = Cluster::new();
    cluster.connect("c-1", WIDE, 210);
    let job = cluster.submit(1, "");
    assert!(cluster.decide().sends.is_empty());
    assert!(matches!(cluster.waits[&job], PendingReason::NoTrainer));
    assert!(cluster.explain(&job).findings.iter().any(|line| line.contains("settled by the trainers")));
    cluster.connect("t-1", NARROW, 12);
    cluster.decide();
    assert_eq!(cluster.precision(&job), (StagePrecision::F32, "node t-1 runs bf16 at 0.12 of f32"));
}

#[test]
fn a_controller_that_has_just_begun_counts_the_trainers_that_have_yet_to_come_back() {
    let mut cluster = Cluster::new();
    cluster.connect("t-1", WIDE, 210);
    cluster.connect("t-2", NARROW, 12);
    cluster.seen = Observed::new(cluster.now);
    cluster.connect("c-1", WIDE, 210);
    cluster.connect("t-1", WIDE, 210);
    let job = cluster.submit(1, "");
    cluster.decide();
    assert_eq!(cluster.precision(&job).0, StagePrecision::F32);
    // One that had the time and did not come is not waited for.
    let mut cluster = Cluster::new();
    cluster.connect("t-2", NARROW, 12);
    cluster.seen = Observed::new(cluster.now);
    cluster.now = cluster.now.plus(Duration::from_secs(60));
    cluster.connect("c-1", WIDE, 210);
    cluster.connect("t-1", WIDE, 210);
    let job = cluster.submit(1, "");
    cluster.decide();
    assert_eq!(cluster.precision(&job).0, StagePrecision::Bf16);
}

#[test]
fn a_stage_of_bf16_goes_where_bf16_is_fast_and_says_where_it_is_not() {
    let mut cluster = Cluster::new();
    cluster.connect("t-2", WIDE, 210);
    let job = cluster.submit(1, "");
    cluster.curate(&job);
    cluster.decide();
    cluster.save(&job, 10);
    cluster.connect("t-1", NARROW, 12);
    cluster.lose("t-2");
    cluster.fail(&job, "t-2");
    cluster.connect("t-2", WIDE, 210);
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-2"], "although t-1 is first by name");
    cluster.lose("t-2");
    cluster.fail(&job, "t-2");
    cluster.decide();
    cluster.now = cluster.now.plus(Duration::from_secs(1)); // the second failure in a row waits a little
    cluster.connect("t-1", NARROW, 12);
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-1"]);
    let told = "bf16, as the stage was settled, runs at 0.12 of f32 on t-1, and works on it".to_owned();
    assert!(cluster.explain(&job).findings.contains(&told), "{:?}", cluster.explain(&job));
}

/// Not only within a stage: the second begins with what the first has written.
#[test]
fn a_strict_job_begins_its_second_stage_on_the_kind_of_its_first() {
    let mut cluster = Cluster::new();
    cluster.connect("t-1", WIDE, 210);
    cluster.connect("t-2", NARROW, 12);
    let job = cluster.submit_stages("  reproducible: strict\n");
    for stage in ["stage-1", "stage-2"] {
        cluster.curate_stage(&job, stage);
    }
    cluster.decide();
    assert_eq!(cluster.gang(&job), ["t-1"]);
    cluster.finish(&job);
    cluster.lose("t-1");
    cluster.decide();
    let explanation = cluster.explain(&job);
    assert_eq!((explanation.cause, explanation.stage.as_str()), ("processor", "stage-2"), "{explanation:?}");
    let begun =
        format!("the checkpoint that it begins with, of step 20 was written by 1 rank of 1 thread on {WIDE}");
    assert!(explanation.findings.contains(&begun), "{explanation:?}");
    cluster.connect("t-3", WIDE, 210);
    cluster.decide();
    let second = cluster.state.job(&job).expect("there").stages[1].active_attempt().expect("it runs");
    assert_eq!(second.ranks[0].node.as_str(), "t-3");
}
