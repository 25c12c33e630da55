use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::decide::{Waits, decide};
use crate::ids::JobId;
use crate::ids::{AttemptRef, Incarnation, NodeId, RequestId, Tenant};
use crate::job::Pause;
use crate::observed::{NodeFailure, NodeReport, Progress, Report};
use crate::pairlog::tests::done;
use crate::quotas::{QueueOrder, Quotas, TenantLimits};
use crate::records::{CheckpointRecord, NodeRecord, Record, UnitRecord, Write};
use crate::spec;
use crate::transitions::{self, QueueLimits, Submission};

/// A cluster whose decisions are the real ones.
struct Cluster {
    state: ClusterState,
    seen: Observed,
    limits: Limits,
    waits: Waits,
    now: Timestamp,
}

const START: Timestamp = Timestamp(1_000_000);

impl Cluster {
    fn new() -> Cluster {
        Cluster {
            state: ClusterState::default(),
            seen: Observed::new(START),
            limits: Limits::default(),
            waits: Waits::default(),
            now: START,
        }
    }

    fn node(&mut self, name: &str, kind: NodeKind, slots: u32) -> NodeId {
        let id = NodeId::parse(name).unwrap();
        let incarnation = Incarnation::parse("i").unwrap();
        let record = NodeRecord {
            id: id.clone(),
            incarnation: incarnation.clone(),
            kind,
            slots,
            device: "cuda".into(),
            address: format!("{name}:1"),
            labels: BTreeMap::new(),
            version: "0".into(),
            drained: false,
            cordon: None,
            arithmetic: None,
            device_memory_bytes: None,
        };
        self.state.apply(Write::Put(Record::Node(record))).unwrap();
        self.seen.hello(id.clone(), incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
        id
    }

    fn submit(&mut self, name: &str, tenant: &str, priority: i32, gpus: u32) -> JobId {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: {name}, tenant: {tenant}}}\nspec:\n  model: {{preset: nano, weights: w}}\n  priority: {priority}\n  resources: {{gpus: {gpus}}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 16, minPairs: 8}}\n      train: {{adapter: {{rank: 4}}, steps: 100, globalBatch: 8}}\n"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap();
        let submission = Submission {
            request: RequestId::parse(name).unwrap(),
            spec: Arc::new(spec),
            spec_json: Arc::from(name.as_bytes()),
            trace: None,
        };
        let limits = QueueLimits {
            max_open_jobs: 100,
            retry_after: Duration::from_secs(1),
            tenant: TenantLimits::default(),
        };
        let submitted = transitions::submit_job(&self.state, submission, limits, self.now).unwrap();
        submitted.writes.into_iter().for_each(|write| self.state.apply(write).unwrap());
        self.wait(1);
        submitted.job
    }

    /// `pairs` more pairs of the job's first stage, and as many candidates turned down.
    fn pairs(&mut self, job: &JobId, unit: u64, pairs: u64) {
        let stage = self.state.job(job).unwrap().stages[0].id.clone();
        let mut record = UnitRecord { stage: stage.clone(), ..done(unit, pairs, false) };
        if let crate::records::UnitState::Done(result) = &mut record.state {
            result.rejected = BTreeMap::from([("similarity_low".to_owned(), pairs)]);
        }
        self.state.apply(Write::Put(Record::Unit(record))).unwrap();
        let committed = self.state.stage(&stage).unwrap().log.committed();
        self.seen.pairs_counted(&stage, committed, self.now);
    }

    /// All pairs are there, and every node of the gang reports.
    fn run(&mut self, job: &JobId, samples_per_sec: f64) {
        self.pairs(job, 0, 16);
        self.settle();
        let attempt = self.state.job(job).unwrap().stages[0].active_attempt().unwrap().clone();
        for node in attempt.ranks.iter().map(|rank| rank.node.clone()).collect::<BTreeSet<_>>() {
            let progress = Progress { step: 50, samples_per_sec, ..Progress::default() };
            self.report(&node, &attempt.attempt, NodeReport::Running, Some(progress));
        }
        self.settle();
    }

    fn report(&mut self, node: &NodeId, attempt: &AttemptRef, phase: NodeReport, progress: Option<Progress>) {
        let (node, attempt, ranks) = (node.clone(), attempt.clone(), Vec::new());
        let report = Report { node, attempt, phase, progress, ranks };
        self.seen.report(report, self.now);
    }

    /// Connected nodes go on being heard of.
    fn wait(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
        let connected: Vec<NodeId> =
            self.seen.nodes.iter().filter(|(_, view)| view.connected).map(|(id, _)| id.clone()).collect();
        connected.iter().for_each(|node| self.seen.heard(node, self.now));
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            let plan = decide(&self.state, &self.seen, &self.limits, self.now);
            for write in plan.writes {
                if let Write::Put(record) = &write {
                    self.seen.learn(record, self.now);
                }
                self.state.apply(write).unwrap();
            }
            plan.sends.iter().for_each(|send| self.seen.sent(send, self.now));
            self.waits = plan.waits;
        }
    }

    fn explain_to(&self, job: &JobId, scope: &Scope) -> Explanation {
        let view = View {
            state: &self.state,
            seen: &self.seen,
            waits: &self.waits,
            limits: &self.limits,
            now: self.now,
            scope,
        };
        explain(&view, self.state.job(job).unwrap())
    }

    fn explain(&self, job: &JobId) -> Explanation {
        self.explain_to(job, &Scope::Everything)
    }
}

fn says(lines: &[String], part: &str) {
    assert!(lines.iter().any(|line| line.contains(part)), "no line says {part:?}: {lines:#?}");
}

/// Two nodes of four slots; `big` runs on one of them, at a pace at which it is done in 100 s.
fn busy() -> (Cluster, JobId) {
    let mut cluster = Cluster::new();
    cluster.node("curator", NodeKind::Curator, 0);
    cluster.node("h100-0", NodeKind::Trainer, 4);
    cluster.node("h100-3", NodeKind::Trainer, 4);
    let big = cluster.submit("big", "a", 0, 4);
    cluster.run(&big, 4.0);
    (cluster, big)
}

#[test]
fn who_waits_for_slots_is_told_how_many_are_free_where_and_who_would_have_to_end() {
    let (mut cluster, big) = busy();
    let next = cluster.submit("next", "a", 5, 8);
    cluster.pairs(&next, 0, 16);
    cluster.settle();
    let told = cluster.explain(&next);
    assert_eq!(told.cause, "slots");
    assert_eq!(told.stage, "stage-1");
    assert_eq!(told.summary, "waits for 8 slots: 4 of 8 are free");
    says(&told.findings, "4 of 8 cuda slots are free, most of them on h100-3: 4");
    says(&told.findings, &format!("it would fit once {big} gave back 4 slots, in about 1m 40s"));
    says(&told.remedies, "spec.resources.minGpus at 4 or less");
    says(&told.remedies, &format!("crescendo cancel {big}"));
    assert_eq!(told.goes_on_in, Some(Duration::from_secs(100)));
    let [blocker] = &told.blockers[..] else { panic!("{:?}", told.blockers) };
    assert_eq!((blocker.job.as_ref(), blocker.slots, blocker.enough), (Some(&big), 4, true));
    let free: Vec<(&str, u32)> = told.nodes.iter().map(|node| (node.node.as_str(), node.free)).collect();
    assert_eq!(free, [("h100-3", 4), ("h100-0", 0)]);
}

#[test]
fn what_it_says_would_be_enough_is_enough() {
    let (mut cluster, big) = busy();
    let small = cluster.submit("small", "a", 0, 2);
    cluster.run(&small, 1.0);
    let next = cluster.submit("next", "a", 0, 4);
    cluster.pairs(&next, 0, 16);
    cluster.settle();
    let told = cluster.explain(&next);
    // `small` alone, whose end is later, would do as well; `big` ends sooner.
    let enough: Vec<&JobId> = told
        .blockers
        .iter()
        .filter(|blocker| blocker.enough)
        .filter_map(|blocker| blocker.job.as_ref())
        .collect();
    assert_eq!(enough, [&big]);
    let writes = transitions::cancel_job(&cluster.state, &big, "", cluster.now).unwrap();
    writes.into_iter().for_each(|write| cluster.state.apply(write).unwrap());
    let attempt = cluster.state.job(&big).unwrap().stages[0].attempt.clone().unwrap();
    cluster.settle();
    for rank in &attempt.ranks {
        cluster.report(&rank.node, &attempt.attempt, NodeReport::Stopped, None);
    }
    cluster.settle();
    assert!(cluster.state.job(&next).unwrap().stages[0].active_attempt().is_some());
}

#[test]
fn a_gang_that_never_fits_is_told_what_is_missing_and_which_silent_nodes_have_it() {
    let (mut cluster, _) = busy();
    let lost = cluster.node("h100-9", NodeKind::Trainer, 4);
    cluster.seen.disconnected(&lost);
    let huge = cluster.submit("huge", "a", 0, 8);
    cluster.wait(60);
    // One node fewer than it needs.
    cluster.seen.disconnected(&NodeId::parse("h100-3").unwrap());
    cluster.pairs(&huge, 0, 16);
    cluster.wait(20);
    let told = cluster.explain(&huge);
    says(&told.findings, "even with nothing else running it would not fit: 8 of 4");
    says(&told.findings, "node h100-9 (4 slots) is silent for");
    says(&told.remedies, "bring the silent nodes back: they have 8 slots");
    assert_eq!(told.goes_on_in, None);
}

#[test]
fn jobs_of_other_tenants_are_counted_and_not_named() {
    let (mut cluster, big) = busy();
    cluster.limits.quotas = Arc::new(Quotas { order: QueueOrder::Strict, ..Quotas::default() });
    let first = cluster.submit("first", "a", 5, 8);
    cluster.pairs(&first, 0, 16);
    let mine = cluster.submit("mine", "b", 0, 4);
    cluster.pairs(&mine, 0, 16);
    cluster.settle();
    let told = cluster.explain_to(&mine, &Scope::Only(Tenant::parse("b").unwrap()));
    assert_eq!(told.cause, "behind");
    assert_eq!(
        told.summary,
        "waits behind a job of another tenant, which has the higher priority and waits for slots"
    );
    let everything = format!("{told:?}");
    for hidden in [&big, &first] {
        assert!(!everything.contains(hidden.as_str()), "{everything}");
    }
    // Its own tenant and an operator are told.
    assert!(cluster.explain(&mine).summary.contains(first.as_str()));
    says(&cluster.explain(&mine).remedies, "spec.priority above 5");
}

#[test]
fn a_job_that_goes_ahead_is_told_whom_it_makes_room_for() {
    let (mut cluster, _) = busy();
    let first = cluster.submit("first", "a", 5, 8);
    cluster.pairs(&first, 0, 16);
    let small = cluster.submit("small", "b", 0, 4);
    cluster.pairs(&small, 0, 16);
    cluster.settle();
    says(
        &cluster.explain(&small).findings,
        &format!("ahead of its turn, in slots that are too few for job {first}"),
    );
    let told = cluster.explain_to(&small, &Scope::Only(Tenant::parse("b").unwrap()));
    says(&told.findings, "too few for a job of another tenant");
}

#[test]
fn who_is_paused_is_told_what_is_kept_and_how_it_goes_on() {
    let (mut cluster, big) = busy();
    let pause = Pause { curates: false, reason: "the demo".to_owned() };
    let writes = transitions::pause_job(&cluster.state, &big, pause).expect("it is open");
    writes.into_iter().for_each(|write| cluster.state.apply(write).unwrap());
    cluster.settle();
    let told = cluster.explain(&big);
    assert_eq!(
        (told.cause, told.summary.as_str()),
        ("paused", "is paused: the demo; 4 ranks save and leave")
    );
    says(&told.findings, "it holds 4 slots until its ranks have saved a checkpoint");
    says(&told.findings, "no pairs are made for it");
    says(&told.remedies, &format!("crescendo resume {big}"));
}

#[test]
fn a_tenant_at_its_quota_is_told_what_is_left_and_which_of_its_jobs_hold_the_rest() {
    let (mut cluster, big) = busy();
    let limits = TenantLimits { max_gpus: Some(6), ..TenantLimits::default() };
    let listed = BTreeMap::from([(Tenant::parse("a").unwrap(), limits)]);
    let quotas = Quotas { listed, ..Quotas::default() };
    cluster.limits.quotas = Arc::new(quotas);
    let more = cluster.submit("more", "a", 0, 4);
    cluster.pairs(&more, 0, 16);
    cluster.settle();
    let told = cluster.explain(&more);
    assert_eq!(told.cause, "quota", "{told:?}");
    says(&told.findings, "it needs 4 GPUs, and its tenant has 2 of 6 left");
    says(&told.findings, "the first of its jobs that holds enough ends its stage in about 1m 40s");
    says(&told.remedies, "spec.resources.minGpus at 2 or less");
    says(&told.remedies, "raise maxGpus of tenant a to 8 or more");
    assert_eq!(told.blockers[0].job.as_ref(), Some(&big));
}

#[test]
fn who_waits_for_pairs_is_told_how_many_and_when() {
    let mut cluster = Cluster::new();
    cluster.node("curator", NodeKind::Curator, 0);
    cluster.node("h100-0", NodeKind::Trainer, 4);
    let job = cluster.submit("job", "a", 0, 1);
    let stage = cluster.state.job(&job).unwrap().stages[0].id.clone();
    let told = cluster.explain(&job);
    says(&told.findings, "no pair has come since this controller began to lead");
    assert_eq!(told.goes_on_in, None);
    cluster.seen.pairs_counted(&stage, 0, cluster.now);
    cluster.wait(10);
    cluster.pairs(&job, 0, 2);
    cluster.wait(10);
    let told = cluster.explain(&job);
    assert_eq!(told.cause, "pairs");
    assert_eq!(
        told.summary,
        "waits for 6 more pairs of stage-1: 2 of the 8 that training starts with are there"
    );
    says(&told.findings, "6.0 pairs a minute come at present: 6 take about 1m 0s");
    says(&told.findings, "50% of the candidates were turned down: 2 of 4 (similarity_low 2)");
    assert_eq!(told.goes_on_in, Some(Duration::from_secs(60)));
    let pairs = told.pairs.unwrap();
    assert_eq!((pairs.committed, pairs.needed, pairs.target), (2, 8, 16));
}

#[test]
fn skipped_steps_are_told() {
    let mut cluster = Cluster::new();
    cluster.node("curator", NodeKind::Curator, 0);
    let trainer = cluster.node("h100-0", NodeKind::Trainer, 1);
    let job = cluster.submit("job", "a", 0, 1);
    cluster.run(&job, 4.0);
    let attempt = cluster.state.job(&job).unwrap().stages[0].active_attempt().unwrap().attempt.clone();
    let progress = Progress { step: 60, skipped_steps: 2, ..Progress::default() };
    cluster.report(&trainer, &attempt, NodeReport::Running, Some(progress));
    cluster.settle();
    says(
        &cluster.explain(&job).findings,
        "2 steps skipped so far, because the loss or the gradients were not finite",
    );
}

#[test]
fn without_nodes_the_silent_ones_are_named() {
    let mut cluster = Cluster::new();
    let job = cluster.submit("job", "a", 0, 1);
    says(&cluster.explain(&job).findings, "no curator has ever connected");
    let curator = cluster.node("curator", NodeKind::Curator, 0);
    cluster.seen.disconnected(&curator);
    cluster.wait(30);
    assert_eq!(cluster.explain(&job).cause, "no_curator");
    says(&cluster.explain(&job).findings, "node curator is silent for 30s");
    cluster.pairs(&job, 0, 16);
    cluster.settle();
    assert_eq!(cluster.explain(&job).cause, "no_trainer");
    says(&cluster.explain(&job).findings, "no trainer node has ever connected");
}

#[test]
fn a_running_job_says_how_far_it_is_and_what_is_out_of_sight() {
    let (mut cluster, big) = busy();
    let told = cluster.explain(&big);
    assert_eq!(told.cause, "running");
    assert_eq!(told.summary, "trains stage-1: step 50 of 100, the last step 0s ago");
    assert_eq!(told.goes_on_in, Some(Duration::from_secs(100)));
    cluster.seen.disconnected(&NodeId::parse("h100-0").unwrap());
    cluster.wait(30);
    let told = cluster.explain(&big);
    assert_eq!(told.cause, "unseen");
    says(&told.findings, "h100-0 (silent for 30s)");
    says(&told.findings, "out of sight is not failed");
}

#[test]
fn failures_in_a_row_are_counted_and_the_job_that_failed_says_why() {
    let (mut cluster, big) = busy();
    let mut generation = 0;
    for _ in 0..40 {
        cluster.wait(40);
        let Some(attempt) = cluster.state.job(&big).unwrap().stages[0].active_attempt().cloned() else {
            break;
        };
        assert!(attempt.attempt.generation.0 > generation);
        generation = attempt.attempt.generation.0;
        if generation == 3 {
            let saved = CheckpointRecord {
                stage: attempt.attempt.stage_ref(),
                generation: attempt.attempt.generation,
                step: 60,
                path: "jobs/big/step-60".into(),
                files: Vec::new(),
                committed_at: cluster.now,
                is_final: false,
                damaged: None,
                next_position: 480,
            };
            cluster.state.apply(Write::Put(Record::Checkpoint(saved))).unwrap();
        }
        let failed =
            NodeReport::Failed { reason: "rank 1 ended: signal 9".into(), kind: NodeFailure::Retryable };
        cluster.report(&attempt.ranks[0].node, &attempt.attempt, failed, None);
        cluster.settle();
        if generation == 5 {
            let told = cluster.explain(&big);
            assert_eq!(told.cause, "backoff", "{told:?}");
            says(
                &told.findings,
                "the last 3 attempts ended without a new checkpoint; after 11 the job fails",
            );
            says(&told.findings, "goes on from step 60");
        }
    }
    let told = cluster.explain(&big);
    assert_eq!((told.cause, told.stage.as_str()), ("failed", "stage-1"));
    assert!(told.summary.contains("signal 9"), "{}", told.summary);
    says(&told.findings, "11 times in a row without a new checkpoint");
    says(&told.findings, "the newest checkpoint of stage-1 is kept: jobs/big/step-60 (step 60)");
    says(&told.remedies, "crescendo logs");
}

#[test]
fn a_stage_without_pairs_is_told_which_filter_to_loosen() {
    let mut cluster = Cluster::new();
    cluster.limits.max_empty_units = 3;
    cluster.node("curator", NodeKind::Curator, 0);
    let job = cluster.submit("job", "a", 0, 1);
    let stage = cluster.state.job(&job).unwrap().stages[0].id.clone();
    for unit in 0..3 {
        let mut record = UnitRecord { stage: stage.clone(), ..done(unit, 0, false) };
        if let crate::records::UnitState::Done(result) = &mut record.state {
            result.rejected =
                BTreeMap::from([("similarity_low".to_owned(), 64), ("too_small".to_owned(), 1)]);
        }
        cluster.state.apply(Write::Put(Record::Unit(record))).unwrap();
    }
    cluster.settle();
    let told = cluster.explain(&job);
    assert_eq!(told.cause, "failed");
    says(&told.remedies, "similarity_low turns down most: lower spec.stages[0].data.filter.similarity.min");
    says(&told.findings, "100% of the candidates were turned down: 195 of 195");
}

#[test]
fn what_has_ended_says_how() {
    let (mut cluster, big) = busy();
    let writes = transitions::cancel_job(&cluster.state, &big, "enough", cluster.now).unwrap();
    writes.into_iter().for_each(|write| cluster.state.apply(write).unwrap());
    let told = cluster.explain(&big);
    assert_eq!((told.cause, told.summary.as_str()), ("cancelled", "was cancelled: enough"));
    says(&told.findings, "having waited");
}

#[test]
fn what_is_wrong_with_a_node_is_said_to_who_waits_for_it() {
    let mut cluster = Cluster::new();
    let node = cluster.node("t-1", NodeKind::Trainer, 2);
    let curator = cluster.node("c-1", NodeKind::Curator, 0);
    let job = cluster.submit("waits", "research", 0, 2);
    cluster.pairs(&job, 0, 16);
    let incarnation = Incarnation::parse("other").unwrap();
    cluster.seen.refuse_rival(&node, &incarnation, "10.0.0.9:7000", cluster.now);
    cluster.seen.refuse_rival(&curator, &incarnation, "10.0.0.8:7000", cluster.now);
    let stuck =
        BTreeMap::from([(1, "rank 0, process 4711, was killed and does not die: state D".to_owned())]);
    let device_fault = Some("GPU 0: XID 79".to_owned());
    let health = crate::observed::NodeHealth { stuck, device_fault, ..Default::default() };
    cluster.seen.health(&node, health);
    cluster.settle();
    let explained = cluster.explain(&job);
    assert_eq!(explained.cause, "slots");
    says(&explained.findings, "another process, at 10.0.0.9:7000, calls itself node t-1 too");
    says(&explained.findings, "slot 1 of node t-1 is held: rank 0, process 4711");
    says(&explained.findings, "node t-1 has a device that has failed: GPU 0: XID 79");
    assert!(!explained.findings.iter().any(|line| line.contains("c-1")), "{:?}", explained.findings);
    let fault = Some("/data is not mounted".to_owned());
    let health = crate::observed::NodeHealth { store_fault: fault, ..Default::default() };
    cluster.seen.health(&node, health);
    cluster.settle();
    let explained = cluster.explain(&job);
    says(
        &explained.findings,
        "node t-1 gets no work, since it cannot use the object store: /data is not mounted",
    );
}
