//! Trainers, and jobs of several queues and tenants, as a controller's decisions see them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::accounts;
use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::decide::{Change, Command, Limits, PendingReason, Plan, decide};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::observed::{NodeFailure, NodeReport, Observed, Progress, Report};
use crescendo_core::queues::{Queue, Queues, SlotsByDevice};
use crescendo_core::quotas::{Quotas, TenantLimits};
use crescendo_core::records::{
    AttemptRecord, CheckpointRecord, FileRecord, NodeKind, NodeRecord, Record, ShardRecord, UnitRecord,
    UnitResult, UnitState, Write,
};
use crescendo_core::spec::{self, JobSpec};
use crescendo_core::state::{ClusterState, Job};
use crescendo_core::transitions::{
    QueueLimits, Submission, cancel_job, checkpoint_path, commit_checkpoint, drain_node, submit_job,
};

pub const SEC: Duration = Duration::from_secs(1);
/// Of every job.
const STEPS: u64 = 20;

/// Trainers that do at once what they are told: gangs run, and leave when they are to.
pub struct Cluster {
    pub state: ClusterState,
    pub seen: Observed,
    pub now: Timestamp,
    pub quotas: Quotas,
    pub preemptions: Vec<(JobId, JobId)>,
    submitted: usize,
    /// Trainers whose machines are gone.
    gone: BTreeSet<NodeId>,
    /// Times that a trainer came back.
    returns: u32,
}

#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub tenant: &'a str,
    pub queue: &'a str,
    pub gpus: u32,
    pub min_gpus: u32,
    pub priority: i32,
    pub minutes: Option<u32>,
    pub topology: &'a str,
}

pub fn wanted(queue: &str, gpus: u32) -> Wanted<'_> {
    Wanted { tenant: "research", queue, gpus, min_gpus: gpus, priority: 0, minutes: None, topology: "" }
}

impl Cluster {
    pub fn new(nodes: &[u32], quotas: Quotas) -> Self {
        let now = Timestamp(1_000_000_000);
        let (state, seen) = (ClusterState::default(), Observed::new(now));
        let mut cluster = Self {
            state,
            seen,
            now,
            quotas,
            preemptions: Vec::new(),
            submitted: 0,
            gone: BTreeSet::new(),
            returns: 0,
        };
        for (n, slots) in nodes.iter().enumerate() {
            let id = NodeId::parse(&format!("t-{n}")).expect("valid");
            let incarnation = Incarnation::parse("first").expect("valid");
            cluster.put(Record::Node(NodeRecord {
                id: id.clone(),
                incarnation: incarnation.clone(),
                kind: NodeKind::Trainer,
                slots: *slots,
                device: "cuda".into(),
                address: "127.0.0.1:9".into(),
                labels: BTreeMap::from([("pool".to_owned(), format!("p{}", n % 2))]),
                version: "0.1.0".into(),
                drained: false,
                cordon: None,
                arithmetic: None,
                device_memory_bytes: None,
            }));
            cluster.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), now);
        }
        cluster
    }

    pub fn put(&mut self, record: Record) {
        self.write(Write::Put(record));
    }

    pub fn write(&mut self, write: Write) {
        let settled =
            accounts::settle(&self.state, std::slice::from_ref(&write), self.quotas.half_life(), self.now);
        for write in settled.into_iter().chain([write]) {
            self.state.apply(write).expect("belongs to something");
        }
    }

    /// A job whose pairs are all there.
    pub fn submit(&mut self, wanted: &Wanted<'_>) -> JobId {
        let Wanted { tenant, queue, gpus, min_gpus, priority, minutes, topology } = wanted;
        let topology =
            if topology.is_empty() { String::new() } else { format!(", topology: {{pool: {topology}}}") };
        let mut queue = if queue.is_empty() { String::new() } else { format!("  queue: {queue}\n") };
        if let Some(minutes) = minutes {
            queue.push_str(&format!("  timeLimitMinutes: {minutes}\n"));
        }
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: {tenant}}}\nspec:\n{queue}  priority: {priority}\n  model: {{preset: nano, weights: base.safetensors}}\n  resources: {{gpus: {gpus}, minGpus: {min_gpus}{topology}}}\n  stages:\n    - name: stage-1\n      data: {{source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, steps: 20, globalBatch: 840}}\n"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        self.submitted += 1;
        let submission = Submission {
            request: RequestId::parse(&format!("r-{}", self.submitted)).expect("valid"),
            spec: Arc::new(spec),
            spec_json: yaml.into_bytes().into(),
            trace: None,
        };
        let limits = QueueLimits { max_open_jobs: 10_000, retry_after: SEC, tenant: TenantLimits::default() };
        let submitted = submit_job(&self.state, submission, limits, self.now).expect("taken");
        submitted.writes.into_iter().for_each(|write| self.write(write));
        let stage =
            StageRef { job: submitted.job.clone(), stage: StageName::parse("stage-1").expect("valid") };
        let shard = ShardRecord { path: "p".into(), pairs: 8, size_bytes: 1, sha256: "a".repeat(64) };
        let result =
            UnitResult { shard, rejected: BTreeMap::new(), scores: ScoreCounts::default(), exhausted: true };
        let state = UnitState::Done(result);
        self.put(Record::Unit(UnitRecord { lease_generation: 1, state, ..UnitRecord::new(&stage, 0) }));
        submitted.job
    }

    pub fn decide(&mut self) -> Plan {
        self.now = self.now.plus(SEC);
        let nodes: Vec<NodeId> = self.state.nodes().map(|node| node.id.clone()).collect();
        for node in nodes.iter().filter(|node| !self.gone.contains(node)) {
            self.seen.heard(node, self.now);
        }
        let limits = Limits { quotas: Arc::new(self.quotas.clone()), ..Limits::default() };
        let plan = decide(&self.state, &self.seen, &limits, self.now);
        for write in plan.writes.clone() {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.write(write);
        }
        for change in &plan.changes {
            if let Change::JobPreempted { job, by, .. } = change {
                self.preemptions.push((job.clone(), by.clone()));
            }
        }
        plan
    }

    /// Until nothing changes; gangs that are told to leave have saved, and those that are stopped are gone, a moment later.
    pub fn settle(&mut self) -> Plan {
        for _ in 0..50 {
            let plan = self.decide();
            let mut left = false;
            for send in plan.sends.iter().filter(|send| !self.gone.contains(&send.node)) {
                let told = match &send.command {
                    Command::DrainAttempt(attempt, reason) => {
                        Some((attempt, NodeReport::Drained { reason: reason.clone() }))
                    }
                    Command::StopAttempt(attempt, _) => Some((attempt, NodeReport::Stopped)),
                    Command::StartAttempt(..)
                    | Command::RescueAttempt(..)
                    | Command::UpdateCurators(..)
                    | Command::AssignCuration(_)
                    | Command::ReleaseCuration(..) => None,
                };
                if let Some((attempt, phase)) = told {
                    let (node, attempt) = (send.node.clone(), attempt.clone());
                    let report = Report { node, attempt, phase, progress: None, ranks: Vec::new() };
                    self.seen.report(report, self.now);
                    left = true;
                }
            }
            if plan.writes.is_empty() && !left {
                return plan;
            }
        }
        panic!("it does not come to rest: {:?}", self.preemptions);
    }

    /// Gangs step at this pace, in samples a second, and time passes.
    pub fn work(&mut self, samples_per_sec: f64, time: Duration) {
        let jobs = self.state.open_jobs();
        let active = jobs.flat_map(|job| job.stages.iter().filter_map(|stage| stage.active_attempt()));
        for attempt in active.cloned().collect::<Vec<_>>() {
            for node in attempt.ranks.iter().map(|rank| rank.node.clone()).collect::<BTreeSet<_>>() {
                let progress = Some(Progress { step: 1, samples_per_sec, ..Progress::default() });
                let (attempt, phase) = (attempt.attempt.clone(), NodeReport::Running);
                self.seen.report(Report { node, attempt, phase, progress, ranks: Vec::new() }, self.now);
            }
        }
        self.decide();
        self.now = self.now.plus(time);
    }

    pub fn ranks(&self, job: &JobId) -> usize {
        let stages = &self.state.job(job).expect("there").stages;
        stages.iter().filter_map(|stage| stage.active_attempt()).map(|attempt| attempt.ranks.len()).sum()
    }

    pub fn nodes_of(&self, job: &JobId) -> BTreeSet<String> {
        let stages = &self.state.job(job).expect("there").stages;
        let attempts = stages.iter().filter_map(|stage| stage.active_attempt());
        attempts.flat_map(|attempt| &attempt.ranks).map(|rank| rank.node.to_string()).collect()
    }

    fn active(&self, job: &JobId) -> Option<&AttemptRecord> {
        self.state.job(job)?.stages.iter().find_map(|stage| stage.active_attempt())
    }

    pub fn write_all(&mut self, writes: Vec<Write>) {
        writes.into_iter().for_each(|write| self.write(write));
    }

    pub fn cancel(&mut self, job: &JobId) {
        let writes = cancel_job(&self.state, job, "enough", self.now);
        self.write_all(writes.expect("open"));
    }

    /// A rank of the job dies, if it has any.
    pub fn fail(&mut self, job: &JobId) {
        let Some(attempt) = self.active(job).cloned() else { return };
        let phase =
            NodeReport::Failed { reason: "rank 0 ended: signal 9".into(), kind: NodeFailure::Retryable };
        let node = attempt.ranks[0].node.clone();
        self.seen.report(
            Report { node, attempt: attempt.attempt, phase, progress: None, ranks: Vec::new() },
            self.now,
        );
    }

    /// The job's gang registers its final checkpoint, if it runs.
    pub fn finish(&mut self, job: &JobId) {
        let Some(attempt) = self.active(job).map(|active| active.attempt.clone()) else { return };
        let stage = attempt.stage_ref();
        let file = FileRecord { name: "state.json".into(), size_bytes: 1, sha256: "a".repeat(64) };
        let checkpoint = CheckpointRecord {
            path: checkpoint_path(&stage, STEPS, attempt.generation),
            stage,
            generation: attempt.generation,
            step: STEPS,
            files: vec![file],
            committed_at: Timestamp(0),
            is_final: true,
            damaged: None,
            next_position: 8,
        };
        let committed = commit_checkpoint(&self.state, checkpoint, self.now).expect("it is the newest");
        self.write_all(committed.writes);
    }

    /// A trainer's machine is gone, without a word.
    pub fn lose(&mut self, node: &NodeId) {
        self.gone.insert(node.clone());
        self.seen.disconnected(node);
    }

    /// One is gone, or was closed since job after job has failed there.
    pub fn misses_a_trainer(&self) -> bool {
        !self.gone.is_empty() || self.state.nodes().any(|node| node.cordon.is_some())
    }

    /// It is there again, with no ranks.
    pub fn bring_back(&mut self, node: &NodeId) {
        if !self.gone.remove(node) {
            return;
        }
        self.returns += 1;
        let incarnation = Incarnation::parse(&format!("return-{}", self.returns)).expect("valid");
        let record = self.state.node(node).expect("it was there").clone();
        self.put(Record::Node(NodeRecord { incarnation: incarnation.clone(), ..record }));
        self.seen.hello(node.clone(), incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
    }

    /// A person empties a trainer, or takes it back, with whatever had closed it.
    pub fn drain(&mut self, node: &NodeId, drained: bool) {
        let writes = drain_node(&self.state, node, drained).expect("it is there");
        self.write_all(writes);
    }

    fn looks_at(&self) -> Plan {
        let limits = Limits { quotas: Arc::new(self.quotas.clone()), ..Limits::default() };
        decide(&self.state, &self.seen, &limits, self.now)
    }

    /// Whether the job waits for another that goes first.
    pub fn is_behind(&self, job: &JobId) -> bool {
        let plan = self.looks_at();
        matches!(plan.waits.get(job), Some(PendingReason::Behind { .. } | PendingReason::BehindOthers))
    }

    /// The open jobs with what they want, have, and wait for.
    pub fn scene(&self) -> String {
        let plan = self.looks_at();
        let line = |job: &Job| {
            let JobSpec { tenant, queue, priority, resources, .. } = &*job.record.spec;
            let queue = queue.as_deref().unwrap_or("-");
            let (least, most) = (resources.min_gpus, resources.gpus);
            let (id, has, state) = (&job.record.id, self.ranks(&job.record.id), job.record.state.name());
            let why = why(&plan, id);
            format!(
                "{id} of {tenant} in {queue}, {priority}: wants {least} to {most}, has {has}, is {state}: {why}"
            )
        };
        self.state.open_jobs().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Time passes, in steps that the controller sees.
    pub fn wait(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.decide();
        }
    }

    /// Slots that a queue's jobs hold.
    pub fn held(&self, queue: &str) -> u32 {
        let of_queue = self.state.open_jobs().filter(|job| job.record.spec.queue.as_deref() == Some(queue));
        of_queue.map(|job| u32::try_from(self.ranks(&job.record.id)).expect("few")).sum()
    }
}

pub fn why(plan: &Plan, job: &JobId) -> String {
    plan.waits.get(job).map(ToString::to_string).unwrap_or_default()
}

pub fn slots(count: u32) -> SlotsByDevice {
    BTreeMap::from([("cuda".to_owned(), count)])
}

/// Queues that are sure of so many slots.
pub fn queues(sure: &[(&str, u32)]) -> Quotas {
    let queue = |(name, sure): &(&str, u32)| {
        ((*name).to_owned(), Queue { guaranteed: slots(*sure), ..Queue::default() })
    };
    let queues = Queues { by_name: sure.iter().map(queue).collect(), ..Queues::default() };
    Quotas { queues, ..Quotas::default() }
}

pub fn with_classes(quotas: Quotas) -> Quotas {
    let class = |name: &str, preemptible| PriorityClass { name: name.into(), preempts: true, preemptible };
    let classes = BTreeMap::from([(0, class("normal", true)), (100, class("fixed", false))]);
    Quotas { classes: PriorityClasses::new(classes), ..quotas }
}
