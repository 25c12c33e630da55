//! Stages that take checkpoints and pairs of other jobs, and jobs that ask for nodes of a kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Limits, PendingReason, curation_backlog_units, decide};
use crescendo_core::deletion::KeptParts;
use crescendo_core::error::RequestError;
use crescendo_core::estimate;
use crescendo_core::explain::{Explanation, View, explain};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{
    Generation, Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp,
};
use crescendo_core::job::JobState;
use crescendo_core::observed::Observed;
use crescendo_core::pairlog::Lease;
use crescendo_core::quotas::{Quotas, TenantLimits};
use crescendo_core::records::{
    AttemptRecord, CheckpointRecord, JobRecord, NodeKind, NodeRecord, Record, ShardRecord, UnitRecord,
    UnitResult, UnitState, Write,
};
use crescendo_core::sizes::gigabytes;
use crescendo_core::spec::{self, DataSource, JobSpec, LogSpec};
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{
    DeleteOrder, QueueLimits, Submission, checkpoint_path, commit_checkpoint, continuation, delete_job,
    lease_unit, retry_job, submit_job,
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_000_000);

struct Cluster {
    state: ClusterState,
    seen: Observed,
}

/// One stage of 8 pairs and 20 steps on two ranks.
fn spec_of(tenant: &str, preset: &str, rank: u32, more: &str) -> JobSpec {
    let yaml = format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: {tenant}}}\nspec:\n  model: {{preset: {preset}, weights: base.safetensors}}\n  resources: {{gpus: 2{}}}\n  stages:\n    - references: 1\n{}      data: {{source: compose, subjects: s, pairs: 8, unitSize: 8}}\n      train: {{adapter: {{rank: {rank}}}, steps: 20, globalBatch: 8}}\n",
        more.strip_prefix("resources:").unwrap_or_default(),
        more.strip_prefix("stage:").map(|line| format!("      {line}\n")).unwrap_or_default(),
    );
    spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

impl Cluster {
    fn new() -> Self {
        Self { state: ClusterState::default(), seen: Observed::new(NOW) }
    }

    fn node(&mut self, name: &str, device: &str, slots: u32, labels: &[(&str, &str)]) {
        self.node_with(name, (device, None), slots, labels);
    }

    /// A node of a kind of device, with the memory that it says its GPUs have.
    fn node_with(
        &mut self,
        name: &str,
        (device, device_memory_bytes): (&str, Option<u64>),
        slots: u32,
        labels: &[(&str, &str)],
    ) {
        let id = NodeId::parse(name).expect("valid");
        let incarnation = Incarnation::parse("i").expect("valid");
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        let record = NodeRecord {
            id: id.clone(),
            incarnation: incarnation.clone(),
            kind: NodeKind::Trainer,
            slots,
            device: device.to_owned(),
            address: format!("{name}:1"),
            labels,
            version: "0".into(),
            drained: false,
            cordon: None,
            arithmetic: None,
            device_memory_bytes,
        };
        self.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), NOW);
        self.write(vec![Write::Put(Record::Node(record))]);
    }

    fn write(&mut self, writes: Vec<Write>) {
        writes.into_iter().for_each(|write| self.state.apply(write).expect("it belongs to something"));
    }

    /// A job whose pairs are there.
    fn ready(&mut self, request: &str, spec: JobSpec) -> JobId {
        let job = self.submit(request, spec);
        self.pairs(&job, 0);
        job
    }

    fn submit(&mut self, request: &str, spec: JobSpec) -> JobId {
        let submission = Submission {
            request: RequestId::parse(request).expect("valid"),
            spec: Arc::new(spec),
            spec_json: Arc::from(request.as_bytes()),
            trace: None,
        };
        let limits = QueueLimits {
            max_open_jobs: 100,
            retry_after: Duration::from_secs(1),
            tenant: TenantLimits::default(),
        };
        let submitted = submit_job(&self.state, submission, limits, NOW).expect("taken");
        self.write(submitted.writes);
        submitted.job
    }

    /// The next eight pairs of a job.
    fn pairs(&mut self, job: &JobId, unit: u64) {
        let result = UnitResult {
            shard: ShardRecord { path: "p".into(), pairs: 8, size_bytes: 8, sha256: "b".repeat(64) },
            rejected: BTreeMap::new(),
            scores: ScoreCounts::default(),
            exhausted: false,
        };
        let unit = UnitRecord {
            stage: stage_of(job),
            unit,
            lease_generation: 1,
            state: UnitState::Done(result),
            failures: 0,
            released: 0,
            last_failure: None,
            failed_on: Vec::new(),
        };
        self.write(vec![Write::Put(Record::Unit(unit))]);
    }

    fn delete(&self, job: &JobId) -> Result<Vec<Write>, RequestError> {
        let order = DeleteOrder {
            keep: KeptParts { checkpoints: true, pairs: true, ..KeptParts::default() },
            spec_sha256: "a".repeat(64),
            root: None,
            scope: &Scope::Everything,
            by_retention: None,
        };
        delete_job(&self.state, job, order, NOW).map(|(_, writes)| writes)
    }

    /// Why the job waits, once decided; it is carried out.
    fn decide(&mut self, job: &JobId) -> Option<PendingReason> {
        let plan = decide(&self.state, &self.seen, &Limits::default(), NOW);
        self.write(plan.writes);
        plan.waits.get(job).cloned()
    }

    fn explained(&self, job: &JobId) -> Explanation {
        let limits = Limits::default();
        let waits = decide(&self.state, &self.seen, &limits, NOW).waits;
        let (state, seen, scope) = (&self.state, &self.seen, &Scope::Everything);
        let view = View { state, seen, waits: &waits, limits: &limits, now: NOW, scope };
        explain(&view, self.state.job(job).expect("it is there"))
    }

    fn attempt(&self, job: &JobId) -> Option<&AttemptRecord> {
        self.state.job(job).expect("it is there").stages[0].active_attempt()
    }

    fn nodes(&self, job: &JobId) -> BTreeSet<&str> {
        let ranks = self.attempt(job).into_iter().flat_map(|attempt| &attempt.ranks);
        ranks.map(|rank| rank.node.as_str()).collect()
    }

    fn checkpoint(&mut self, job: &JobId, step: u64) -> CheckpointRecord {
        let stage = stage_of(job);
        let generation = Generation(1);
        let checkpoint = CheckpointRecord {
            path: checkpoint_path(&stage, step, generation),
            stage,
            generation,
            step,
            files: vec![crescendo_core::records::FileRecord {
                name: "state.json".into(),
                size_bytes: 1,
                sha256: "a".repeat(64),
            }],
            committed_at: NOW,
            is_final: step == 20,
            damaged: None,
            next_position: step * 8,
        };
        let committed = commit_checkpoint(&self.state, checkpoint, NOW).expect("the newest may");
        self.write(committed.writes);
        committed.checkpoint
    }

    fn end(&mut self, job: &JobId, state: JobState) {
        let record = self.state.job(job).expect("it is there").record.clone();
        let attempts =
            self.state.job(job).expect("there").stages.iter().filter_map(|stage| stage.attempt.clone());
        let ended = attempts.map(|attempt| {
            let reason = "a test".to_owned();
            let state = crescendo_core::records::AttemptState::Ended { reason, at: NOW };
            Write::Put(Record::Attempt(AttemptRecord { state, ..(*attempt).clone() }))
        });
        let ended = ended.collect();
        self.write(ended);
        self.write(vec![Write::Put(Record::Job(JobRecord { state, finished_at: Some(NOW), ..record }))]);
    }

    fn state_of(&self, job: &JobId) -> &JobState {
        &self.state.job(job).expect("it is there").record.state
    }

    /// What is said of a spec.
    fn told(&self, spec: &JobSpec) -> String {
        let found = Quotas::default().overreaches(spec, &self.state);
        found.iter().map(|one| format!("{}: {}", one.field, one.message)).collect()
    }
}

fn stage_of(job: &JobId) -> StageRef {
    StageRef { job: job.clone(), stage: StageName::parse("stage-1").expect("valid") }
}

fn from(tenant: &str, rank: u32, name: &str) -> JobSpec {
    spec_of(tenant, "nano", rank, &format!("stage:initFrom: {name}"))
}

#[test]
fn a_stage_starts_from_another_jobs_once_that_has_trained_it() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 4, &[]);
    let first = cluster.ready("first", spec_of("default", "nano", 4, ""));
    let named = format!("{first}/stage-1");
    let second = cluster.ready("second", from("default", 4, &named));
    assert_eq!(cluster.decide(&second), Some(PendingReason::Start { from: named }));
    assert!(cluster.attempt(&first).is_some(), "the other one trains");
    let last = cluster.checkpoint(&first, 20);
    cluster.decide(&second);
    assert_eq!(cluster.attempt(&second).and_then(|attempt| attempt.init_from.as_ref()), Some(&last));
}

#[test]
fn a_checkpoint_that_an_open_job_starts_from_is_not_expired() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let first = cluster.ready("first", spec_of("default", "nano", 4, ""));
    cluster.decide(&first);
    let early = cluster.checkpoint(&first, 1);
    let second = cluster.ready("second", from("default", 4, &format!("{first}/stage-1/1")));
    (2..12).for_each(|step| drop(cluster.checkpoint(&first, step)));
    let kept: Vec<u64> =
        cluster.state.job(&first).expect("there").stages[0].checkpoints.keys().map(|key| key.0).collect();
    assert!(kept.contains(&1) && !kept.contains(&2), "{kept:?}");
    cluster.checkpoint(&first, 20);
    cluster.decide(&second);
    assert_eq!(cluster.attempt(&second).and_then(|attempt| attempt.init_from.as_ref()), Some(&early));
}

#[test]
fn a_job_goes_on_from_the_newest_checkpoint_of_one_that_has_ended() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 4, &[]);
    let job = cluster.ready("first", spec_of("default", "nano", 4, ""));
    cluster.decide(&job);
    let goes_on = |cluster: &Cluster, job: &JobId, steps| {
        continuation(&cluster.state, job, steps, Some("more".into())).map_err(|refused| refused.to_string())
    };
    let refused = goes_on(&cluster, &job, 30).expect_err("it trains");
    let said = format!("job {job} is placing, and goes on by itself: wait for its end");
    assert!(refused.starts_with(&said), "{refused}");
    cluster.checkpoint(&job, 5);
    cluster.end(&job, JobState::Cancelled { reason: "enough".into() });
    let next = goes_on(&cluster, &job, 30).expect("it has a checkpoint");
    let start = next.stages[0].init_from.clone().expect("it starts from that");
    assert_eq!((start.checkpoint, start.optimizer), (format!("{job}/stage-1/5"), true));
    assert_eq!((next.name.as_str(), next.stages[0].train.steps), ("more", 30));
    let log = next.stages[0].data.source.log().map(|log| log.from.clone());
    assert_eq!(log, Some(format!("{job}/stage-1")), "all its pairs are there");
    assert_eq!(goes_on(&cluster, &job, 0), Err("steps: must be 1 to 10000000".into()));
    let none = cluster.submit("second", spec_of("default", "nano", 4, ""));
    for (state, instead) in [
        (JobState::Failed { reason: "r".into() }, format!("have it tried again (crescendo retry {none})")),
        (JobState::Cancelled { reason: "r".into() }, "submit its spec again".to_owned()),
    ] {
        cluster.end(&none, state);
        let said = format!("job {none} has no checkpoint to go on from: {instead}");
        assert_eq!(goes_on(&cluster, &none, 30), Err(said));
    }
    let nobody = JobId::parse("nobody-1").expect("valid");
    assert_eq!(goes_on(&cluster, &nobody, 30), Err("job nobody-1 does not exist".into()));
}

#[test]
fn a_job_whose_start_will_never_be_there_fails() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 4, &[]);
    let first = cluster.ready("first", spec_of("default", "nano", 4, ""));
    let second = cluster.ready("second", from("default", 4, &format!("{first}/stage-1")));
    cluster.decide(&second);
    cluster.end(&first, JobState::Cancelled { reason: "enough".into() });
    cluster.decide(&second);
    let JobState::Failed { reason } = cluster.state_of(&second) else {
        panic!("{}", cluster.state_of(&second))
    };
    let said = format!(
        "stage stage-1 starts from {first}/stage-1, which is not there, and job {first} is cancelled"
    );
    assert_eq!(*reason, said);
}

#[test]
fn what_a_stage_cannot_start_from_is_refused_with_its_field() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let first = cluster.ready("first", spec_of("default", "nano", 4, ""));
    let of = |stage: &str| format!("{first}/{stage}");
    let told = |spec: &JobSpec| cluster.told(spec);
    assert_eq!(told(&from("default", 4, &of("stage-1"))), "", "it may wait for it");
    let at = "spec.stages[0].initFrom: ";
    assert_eq!(told(&from("other", 4, &of("stage-1"))), format!("{at}there is no job {first}"));
    assert_eq!(told(&from("default", 4, "nobody-abc/stage-1")), format!("{at}there is no job nobody-abc"));
    assert_eq!(
        told(&from("default", 4, &of("stage-2"))),
        format!("{at}job {first} has no stage stage-2; it has stage-1")
    );
    assert_eq!(
        told(&from("default", 8, &of("stage-1"))),
        format!("{at}rank 8 cannot start from {first}/stage-1, which has rank 4")
    );
    let other = spec_of("default", "flux-dev", 4, &format!("stage:initFrom: {first}/stage-1"));
    assert!(told(&other).contains("trains another network"), "{}", told(&other));
    cluster.end(&first, JobState::Failed { reason: "a test".into() });
    let said = cluster.told(&from("default", 4, &format!("{first}/stage-1/5")));
    assert_eq!(said, format!("{at}job {first} is failed and has no checkpoint of step 5 of stage-1"));
}

#[test]
fn a_job_is_given_nodes_with_its_labels_alone() {
    let mut cluster = Cluster::new();
    cluster.node("a", "cpu", 2, &[("pool", "small")]);
    cluster.node("b", "cpu", 4, &[("pool", "large"), ("rack", "7")]);
    let picky =
        |labels: &str| spec_of("default", "nano", 4, &format!("resources:, nodeLabels: {{{labels}}}"));
    let large = cluster.ready("large", picky("pool: large, rack: '7'"));
    let none = cluster.ready("none", picky("pool: huge"));
    let small = cluster.ready("small", picky("pool: small"));
    let wait = cluster.decide(&none);
    assert_eq!(cluster.nodes(&large), BTreeSet::from(["b"]));
    assert_eq!(
        cluster.nodes(&small),
        BTreeSet::from(["a"]),
        "one that waits for other nodes holds nobody up"
    );
    assert_eq!(
        wait.expect("it waits").to_string(),
        "waits for a trainer node with pool=huge: none is connected"
    );
}

#[test]
fn a_large_network_waits_for_gpus_where_there_are_any() {
    let mut cluster = Cluster::new();
    cluster.node("cpu", "cpu", 8, &[]);
    let early = cluster.ready("early", spec_of("default", "flux-dev", 4, ""));
    cluster.decide(&early);
    assert_eq!(cluster.nodes(&early), BTreeSet::from(["cpu"]), "a cluster without GPUs has nothing better");
    cluster.node("gpu", "cuda", 1, &[]);
    let flux = cluster.ready("flux", spec_of("default", "flux-dev", 4, ""));
    let wait = cluster.decide(&flux);
    assert_eq!(wait, Some(PendingReason::Slots { wanted: 2, free: 1, total: 1 }));
    let anywhere = cluster.ready("anywhere", spec_of("default", "flux-dev", 4, "resources:, device: cpu"));
    cluster.decide(&anywhere);
    assert_eq!(cluster.nodes(&anywhere), BTreeSet::from(["cpu"]));
    let nano = cluster.ready("nano", spec_of("default", "nano", 4, ""));
    cluster.decide(&nano);
    assert_eq!(cluster.nodes(&nano), BTreeSet::from(["cpu"]), "small ones go where there is room");
}

#[test]
fn a_rank_is_given_no_gpu_that_is_too_small_for_it() {
    let mut cluster = Cluster::new();
    cluster.node_with("small", ("cuda", Some(25_400_000_000)), 8, &[]);
    cluster.node("cpu", "cpu", 8, &[]);
    let flux = |more: &str| spec_of("default", "flux-dev", 64, more);
    let estimated = cluster.ready("estimated", flux(""));
    let wait = cluster.decide(&estimated).expect("it waits").to_string();
    let needs = estimate::device_bytes(&flux(""));
    assert!(needs > 25_400_000_000, "{needs}");
    let shown = gigabytes(needs);
    assert_eq!(
        wait,
        format!("waits for a trainer node with device cuda, {shown} of GPU memory: none is connected")
    );
    let told = cluster.explained(&estimated);
    let said = format!(
        "GPU memory: a rank needs {shown} at least by the estimate, unless spec.resources.deviceMemoryGb says otherwise; small has 25.40 GB"
    );
    assert!(told.findings.contains(&said), "{told:?}");
    // Who knows better says so.
    let tight = cluster.ready("tight", flux("resources:, deviceMemoryGb: 24"));
    cluster.decide(&tight);
    assert_eq!(cluster.nodes(&tight), BTreeSet::from(["small"]));
    cluster.node("quiet", "cuda", 2, &[]);
    cluster.decide(&estimated);
    assert_eq!(cluster.nodes(&estimated), BTreeSet::from(["quiet"]), "as an older version's node");
    let mut cluster = Cluster::new();
    cluster.node("cpu", "cpu", 8, &[]);
    let large = cluster.ready("large", spec_of("default", "nano", 4, "resources:, deviceMemoryGb: 80"));
    let wait = cluster.decide(&large).expect("it does not go to processors").to_string();
    assert_eq!(wait, "waits for a trainer node with device cuda, 80.00 GB of GPU memory: none is connected");
    cluster.node_with("huge", ("cuda", Some(85_000_000_000)), 2, &[]);
    cluster.decide(&large);
    assert_eq!(cluster.nodes(&large), BTreeSet::from(["huge"]));
}

#[test]
fn what_an_open_job_starts_from_is_not_deleted_and_what_is_deleted_starts_nothing() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let first = cluster.ready("first", spec_of("default", "nano", 4, ""));
    cluster.decide(&first);
    cluster.checkpoint(&first, 20);
    let named = format!("{first}/stage-1");
    let second = cluster.ready("second", from("default", 4, &named));
    let refused = cluster.delete(&first).expect_err("it is needed").to_string();
    assert!(refused.contains(second.as_str()) && refused.contains("spec.stages[0].initFrom"), "{refused}");
    cluster.end(&second, JobState::Cancelled { reason: "enough".into() });
    let writes = cluster.delete(&first).expect("nobody needs it");
    cluster.write(writes);
    let told = cluster.told(&from("default", 4, &named));
    assert_eq!(told, format!("spec.stages[0].initFrom: job {first} is being deleted"));
}

/// A job of one stage that takes up to `pairs` pairs of another, and begins with `least`.
fn takes(tenant: &str, from: &str, least: u64, pairs: u64) -> JobSpec {
    let mut spec = spec_of(tenant, "nano", 4, "");
    let data = &mut spec.stages[0].data;
    data.source = DataSource::Log(LogSpec { from: from.to_owned() });
    (data.min_pairs, data.pairs) = (least, pairs);
    spec
}

/// Like the job that pairs are taken of, with more of them to be made.
fn makes(pairs: u64) -> JobSpec {
    let mut spec = spec_of("default", "nano", 4, "");
    spec.stages[0].data.pairs = pairs;
    spec
}

impl Cluster {
    /// Pairs that the job's only stage can read, and whether there will be no more.
    fn reads(&self, job: &JobId) -> (u64, bool) {
        let log = self.state.read_log_of(&stage_of(job)).expect("it is there");
        (log.committed(), log.is_sealed())
    }

    fn lease(&self, stage: &StageRef) -> Lease {
        let node = NodeId::parse("c").expect("valid");
        let policy = Limits::default().unit_policy(1);
        lease_unit(&self.state, stage, &node, &policy, NOW).expect("it is open").0
    }
}

#[test]
fn the_pairs_of_another_job_are_taken_while_they_are_made_and_none_are_made_for_it() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 4, &[]);
    let first = cluster.ready("first", makes(32));
    let named = format!("{first}/stage-1");
    let second = cluster.submit("second", takes("default", &named, 12, 20));
    let wait = PendingReason::Pairs { stage: named, committed: 8, needed: 12 };
    assert_eq!(cluster.decide(&second), Some(wait));
    assert_eq!(cluster.lease(&stage_of(&second)), Lease::Sealed);
    assert_eq!(curation_backlog_units(&cluster.state), 3, "those of the first job");
    cluster.pairs(&first, 1);
    assert_eq!(cluster.reads(&second), (16, false));
    cluster.decide(&second);
    assert!(cluster.attempt(&second).is_some(), "there are enough to begin with");
    cluster.pairs(&first, 2);
    assert_eq!(cluster.reads(&second), (20, true), "no more than it has asked for");
    let log = cluster.state.read_log_of(&stage_of(&second)).expect("it is there");
    let shards: Vec<_> = log.shards_from(1).map(|(unit, _, first_index)| (unit, first_index)).collect();
    assert_eq!(shards, [(1, 8), (2, 16)]);
}

#[test]
fn a_log_whose_job_has_ended_is_taken_as_it_is_unless_that_job_may_go_on() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 4, &[]);
    let first = cluster.ready("first", makes(32));
    let named = format!("{first}/stage-1");
    let second = cluster.submit("second", takes("default", &named, 12, 20));
    cluster.decide(&second);
    let mut failing = Cluster { state: cluster.state.clone(), seen: cluster.seen.clone() };

    cluster.end(&first, JobState::Cancelled { reason: "enough".into() });
    assert_eq!(cluster.reads(&second), (8, true));
    cluster.decide(&second);
    assert!(cluster.attempt(&second).is_some(), "it is trained on what there is");

    failing.end(&first, JobState::Failed { reason: "a test".into() });
    failing.decide(&second);
    let JobState::Failed { reason } = failing.state_of(&second) else {
        panic!("{}", failing.state_of(&second))
    };
    let said = format!(
        "stage stage-1 takes the pairs of {named}, whose log is not complete: job {first} is failed with 8 of them"
    );
    assert_eq!(*reason, said);
    let queue = QueueLimits {
        max_open_jobs: 100,
        retry_after: Duration::from_secs(1),
        tenant: TenantLimits::default(),
    };
    let refused =
        retry_job(&failing.state, &second, queue, &Limits::default()).expect_err("as before").to_string();
    assert!(refused.contains(&said), "{refused}");
    let writes = retry_job(&failing.state, &first, queue, &Limits::default()).expect("it has failed");
    failing.write(writes);
    let writes = retry_job(&failing.state, &second, queue, &Limits::default()).expect("there may be more");
    failing.write(writes);
    assert!(matches!(failing.decide(&second), Some(PendingReason::Pairs { committed: 8, .. })));
}

#[test]
fn an_earlier_stages_pairs_are_made_on_for_the_one_that_takes_them() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let mut spec = makes(32);
    spec.stages.push(takes("default", "stage-1", 12, 20).stages.remove(0));
    spec.stages[1].name = "stage-2".into();
    let job = cluster.ready("both", spec);
    cluster.decide(&job);
    cluster.checkpoint(&job, 20);
    assert_eq!(curation_backlog_units(&cluster.state), 3, "the log of the stage that is done");
    assert!(matches!(cluster.lease(&stage_of(&job)), Lease::Granted(_)));
    cluster.decide(&job);
    let second =
        |cluster: &Cluster| cluster.state.job(&job).expect("there").stages[1].active_attempt().cloned();
    assert_eq!(second(&cluster), None, "8 of 12");
    cluster.pairs(&job, 1);
    cluster.decide(&job);
    assert!(second(&cluster).is_some());
}

#[test]
fn pairs_that_cannot_be_taken_are_refused_with_the_field() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let first = cluster.submit("first", makes(32));
    let named = format!("{first}/stage-1");
    let told = |cluster: &Cluster, tenant: &str, from: &str| {
        let told = cluster.told(&takes(tenant, from, 8, 8));
        told.strip_prefix("spec.stages[0].data.from: ").unwrap_or(&told).to_owned()
    };
    assert_eq!(told(&cluster, "default", &named), "", "it may wait for them");
    assert_eq!(told(&cluster, "other", &named), format!("there is no job {first}"));
    assert_eq!(told(&cluster, "default", "nobody-abc/stage-1"), "there is no job nobody-abc");
    let said = format!("job {first} has no stage stage-2; it has stage-1");
    assert_eq!(told(&cluster, "default", &format!("{first}/stage-2")), said);
    let mut two = takes("default", &named, 8, 8);
    two.stages[0].references = 2;
    let said = format!("the pairs of `{named}` are of `references: 1`, and this stage has 2");
    assert!(cluster.told(&two).ends_with(&said), "{}", cluster.told(&two));
    let second = cluster.submit("second", takes("default", &named, 8, 8));
    let said = format!("`{second}/stage-1` makes no pairs, and takes those of `{named}`: name that one");
    assert_eq!(told(&cluster, "default", &format!("{second}/stage-1")), said);
    cluster.end(&first, JobState::Cancelled { reason: "enough".into() });
    assert_eq!(
        told(&cluster, "default", &named),
        format!("job {first} is cancelled and has no pairs of stage-1")
    );
    cluster.end(&first, JobState::Failed { reason: "a test".into() });
    assert!(told(&cluster, "default", &named).contains("is not complete: it has 0 pairs"));
}

#[test]
fn a_job_whose_pairs_an_open_one_takes_is_not_deleted() {
    let mut cluster = Cluster::new();
    cluster.node("n", "cpu", 2, &[]);
    let first = cluster.ready("first", makes(8));
    let second = cluster.submit("second", takes("default", &format!("{first}/stage-1"), 8, 8));
    cluster.end(&first, JobState::Cancelled { reason: "enough".into() });
    let refused = cluster.delete(&first).expect_err("it is needed").to_string();
    assert!(refused.contains(second.as_str()) && refused.contains("spec.stages[0].data.from"), "{refused}");
    cluster.end(&second, JobState::Cancelled { reason: "enough".into() });
    cluster.delete(&first).expect("nobody needs it");
}

proptest! {
    /// Alone in a cluster of GPUs, a job is placed if enough of them are large enough, and then on such alone.
    #[test]
    fn placement_goes_by_memory_and_by_nothing_it_was_not_told(
        nodes in prop::collection::vec((0..5usize, 1..4u32), 1..6),
        asked in prop::option::of(1..160u32),
    ) {
        let memories = [None, Some(16), Some(42), Some(85), Some(150)].map(|gb| gb.map(|gb: u64| gb * 1_000_000_000));
        let mut cluster = Cluster::new();
        for (at, (memory, slots)) in nodes.iter().enumerate() {
            cluster.node_with(&format!("n-{at}"), ("cuda", memories[*memory]), *slots, &[]);
        }
        let more = asked.map_or_else(String::new, |gb| format!("resources:, deviceMemoryGb: {gb}"));
        let spec = spec_of("default", "flux-dev", 512, &more);
        let needs = estimate::device_bytes(&spec);
        let job = cluster.ready("j", spec);
        cluster.decide(&job);
        let fits = |memory: usize| memories[memory].is_none_or(|has| has >= needs);
        let room: u32 = nodes.iter().filter(|(memory, _)| fits(*memory)).map(|(_, slots)| slots).sum();
        let given = cluster.nodes(&job);
        prop_assert_eq!(given.is_empty(), room < 2, "{} of {}", needs, room);
        for (at, (memory, _)) in nodes.iter().enumerate() {
            let name = format!("n-{at}");
            prop_assert!(!given.contains(name.as_str()) || fits(*memory));
        }
    }
}
