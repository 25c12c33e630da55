//! Queues: what one is sure of it gets, what it borrows it gives back, and nobody takes the same slots in turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::accounts;
use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::decide::{Change, Command, Limits, Plan, decide};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Tenant, Timestamp};
use crescendo_core::job::{JobState, Pause};
use crescendo_core::observed::{NodeReport, Observed, Progress, Report};
use crescendo_core::queues::{Packing, Queue, Queues, SlotsByDevice};
use crescendo_core::quotas::{QueueOrder, Quotas, TenantLimits};
use crescendo_core::records::{
    AttemptState, NodeKind, NodeRecord, Record, ShardRecord, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{QueueLimits, Submission, pause_job, resume_job, retry_job, submit_job};
use proptest::prelude::*;

const SEC: Duration = Duration::from_secs(1);

/// Trainers that do at once what they are told: gangs run, and leave when they are to.
struct Cluster {
    state: ClusterState,
    seen: Observed,
    now: Timestamp,
    quotas: Quotas,
    preemptions: Vec<(JobId, JobId)>,
    submitted: usize,
}

#[derive(Clone, Debug)]
struct Wanted<'a> {
    tenant: &'a str,
    queue: &'a str,
    gpus: u32,
    min_gpus: u32,
    priority: i32,
    minutes: Option<u32>,
    topology: &'a str,
}

fn wanted(queue: &str, gpus: u32) -> Wanted<'_> {
    Wanted { tenant: "research", queue, gpus, min_gpus: gpus, priority: 0, minutes: None, topology: "" }
}

impl Cluster {
    fn new(nodes: &[u32], quotas: Quotas) -> Self {
        let now = Timestamp(1_000_000_000);
        let (state, seen) = (ClusterState::default(), Observed::new(now));
        let mut cluster = Self { state, seen, now, quotas, preemptions: Vec::new(), submitted: 0 };
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

    fn put(&mut self, record: Record) {
        self.write(Write::Put(record));
    }

    fn write(&mut self, write: Write) {
        let settled =
            accounts::settle(&self.state, std::slice::from_ref(&write), self.quotas.half_life(), self.now);
        for write in settled.into_iter().chain([write]) {
            self.state.apply(write).expect("belongs to something");
        }
    }

    /// A job whose pairs are all there.
    fn submit(&mut self, wanted: &Wanted<'_>) -> JobId {
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

    fn decide(&mut self) -> Plan {
        self.now = self.now.plus(SEC);
        let nodes: Vec<NodeId> = self.state.nodes().map(|node| node.id.clone()).collect();
        for node in nodes {
            self.seen.heard(&node, self.now);
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
    fn settle(&mut self) -> Plan {
        for _ in 0..50 {
            let plan = self.decide();
            let mut left = false;
            for send in &plan.sends {
                let told = match &send.command {
                    Command::DrainAttempt(attempt, reason) => {
                        Some((attempt, NodeReport::Drained { reason: reason.clone() }))
                    }
                    Command::StopAttempt(attempt, _) => Some((attempt, NodeReport::Stopped)),
                    Command::StartAttempt(..)
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
    fn work(&mut self, samples_per_sec: f64, time: Duration) {
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

    fn ranks(&self, job: &JobId) -> usize {
        let stages = &self.state.job(job).expect("there").stages;
        stages.iter().filter_map(|stage| stage.active_attempt()).map(|attempt| attempt.ranks.len()).sum()
    }

    fn nodes_of(&self, job: &JobId) -> BTreeSet<String> {
        let stages = &self.state.job(job).expect("there").stages;
        let attempts = stages.iter().filter_map(|stage| stage.active_attempt());
        attempts.flat_map(|attempt| &attempt.ranks).map(|rank| rank.node.to_string()).collect()
    }

    fn cancel(&mut self, job: &JobId) {
        let writes = crescendo_core::transitions::cancel_job(&self.state, job, "enough", self.now);
        writes.expect("open").into_iter().for_each(|write| self.write(write));
    }

    /// Slots that a queue's jobs hold.
    fn held(&self, queue: &str) -> u32 {
        let of_queue = self.state.open_jobs().filter(|job| job.record.spec.queue.as_deref() == Some(queue));
        of_queue.map(|job| u32::try_from(self.ranks(&job.record.id)).expect("few")).sum()
    }
}

fn why(plan: &Plan, job: &JobId) -> String {
    plan.waits.get(job).map(ToString::to_string).unwrap_or_default()
}

fn slots(count: u32) -> SlotsByDevice {
    BTreeMap::from([("cuda".to_owned(), count)])
}

/// Queues that are sure of so many slots.
fn queues(sure: &[(&str, u32)]) -> Quotas {
    let queue = |(name, sure): &(&str, u32)| {
        ((*name).to_owned(), Queue { guaranteed: slots(*sure), ..Queue::default() })
    };
    let queues = Queues { by_name: sure.iter().map(queue).collect(), ..Queues::default() };
    Quotas { queues, ..Quotas::default() }
}

fn with_classes(quotas: Quotas) -> Quotas {
    let class = |name: &str, preemptible| PriorityClass { name: name.into(), preempts: true, preemptible };
    let classes = BTreeMap::from([(0, class("normal", true)), (100, class("fixed", false))]);
    Quotas { classes: PriorityClasses::new(classes), ..quotas }
}

#[test]
fn a_queue_takes_back_what_it_is_sure_of_and_no_more() {
    let mut cluster = Cluster::new(&[8], queues(&[("a", 4), ("b", 4)]));
    let borrowers: Vec<JobId> = (0..4).map(|_| cluster.submit(&wanted("a", 2))).collect();
    cluster.settle();
    assert_eq!(cluster.held("a"), 8, "what nobody is sure of now is borrowed");
    let own = cluster.submit(&wanted("b", 2));
    cluster.settle();
    assert_eq!((cluster.ranks(&own), cluster.held("a")), (2, 6));
    assert_eq!(cluster.preemptions.len(), 1, "one gang is enough");
    let (victim, by) = cluster.preemptions[0].clone();
    assert!(by == own && borrowers.contains(&victim));
    // More than b is sure of is not taken back.
    let more = cluster.submit(&wanted("b", 4));
    let plan = cluster.settle();
    assert_eq!((cluster.ranks(&more), cluster.held("a"), cluster.preemptions.len()), (0, 6, 1));
    assert!(why(&plan, &more).starts_with("waits"), "{}", why(&plan, &more));
}

#[test]
fn a_gang_that_borrowed_goes_on_with_what_its_queue_is_sure_of() {
    let mut cluster = Cluster::new(&[8], queues(&[("a", 4), ("b", 4)]));
    let elastic = cluster.submit(&Wanted { min_gpus: 1, ..wanted("a", 8) });
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 8);
    let own = cluster.submit(&wanted("b", 4));
    cluster.settle();
    assert_eq!((cluster.ranks(&own), cluster.ranks(&elastic)), (4, 4));
    assert_eq!(cluster.preemptions.len(), 1);
}

#[test]
fn a_gang_grows_into_slots_that_nobody_waits_for() {
    let mut cluster = Cluster::new(&[8], Quotas::default());
    let other = cluster.submit(&wanted("", 5));
    let elastic = cluster.submit(&Wanted { min_gpus: 2, ..wanted("", 7) });
    cluster.settle();
    assert_eq!([&other, &elastic].map(|job| cluster.ranks(job)), [5, 3], "any number from 2 to 7");
    cluster.cancel(&other);
    // 19 of its steps are left, of 840 samples each.
    cluster.work(20.0, 100 * SEC);
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 3, "it has just begun");
    cluster.work(20.0, 300 * SEC);
    let plan = cluster.decide();
    assert_eq!(why(&plan, &elastic), "goes on with 7 ranks instead of 3, once those have saved and left");
    let told = |send: &crescendo_core::decide::Send| matches!(send.command, Command::DrainAttempt(..));
    assert!(plan.sends.iter().any(told), "it saves first");
    cluster.seen.nodes.values_mut().for_each(|view| std::sync::Arc::make_mut(view).drains_sent.clear());
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 7);
    assert!(cluster.preemptions.is_empty());
}

#[test]
fn a_gang_does_not_grow_for_little_or_at_the_cost_of_others() {
    let grown = |pace: f64, waits: bool, most: Option<u32>| {
        let mut quotas = Quotas::default();
        let tenant = Tenant::parse("research").expect("valid");
        quotas.listed.insert(tenant, TenantLimits { max_gpus: most, ..TenantLimits::default() });
        let mut cluster = Cluster::new(&[8], quotas);
        let other = cluster.submit(&Wanted { tenant: "products", ..wanted("", 4) });
        let elastic = cluster.submit(&Wanted { min_gpus: 2, ..wanted("", 8) });
        cluster.settle();
        if waits {
            cluster.submit(&Wanted { tenant: "products", ..wanted("", 8) });
        }
        cluster.cancel(&other);
        cluster.work(pace, 400 * SEC);
        cluster.settle();
        cluster.ranks(&elastic)
    };
    assert_eq!(grown(20.0, false, None), 8);
    assert_eq!(grown(20.0, false, Some(5)), 5, "no more than its tenant may have");
    assert_eq!(grown(20.0, true, None), 4, "another waits");
    assert_eq!(grown(40.0, false, None), 4, "it ends in less than ten minutes");
    assert_eq!(grown(0.0, false, None), 4, "its pace is not known");
}

#[test]
fn what_another_queue_is_sure_of_is_safe_from_higher_classes() {
    let quotas = with_classes(queues(&[("a", 4), ("b", 4)]));
    let mut cluster = Cluster::new(&[8], quotas);
    let own = cluster.submit(&wanted("b", 4));
    let low = cluster.submit(&wanted("a", 4));
    cluster.settle();
    let urgent = cluster.submit(&Wanted { priority: 100, ..wanted("a", 4) });
    cluster.settle();
    let ranks = [&own, &low, &urgent].map(|job| cluster.ranks(job));
    assert_eq!(ranks, [4, 0, 4], "its own queue's lower class makes room");
    // One that cannot be preempted does not borrow.
    let second = cluster.submit(&Wanted { priority: 100, ..wanted("a", 2) });
    cluster.cancel(&own);
    let plan = cluster.settle();
    assert_eq!(cluster.ranks(&second), 0);
    assert_eq!(
        why(&plan, &second),
        "waits for 2 cuda slots: queue a uses 4, is sure of 4, and a job that cannot be preempted borrows none"
    );
    assert_eq!(cluster.ranks(&low), 4, "its place is free");
}

#[test]
fn a_queue_has_no_more_than_it_may() {
    let mut quotas = queues(&[("a", 2)]);
    quotas.queues.by_name.get_mut("a").expect("there").most = slots(6);
    let mut cluster = Cluster::new(&[8], quotas);
    let first = cluster.submit(&wanted("a", 4));
    let second = cluster.submit(&wanted("a", 4));
    let elastic = cluster.submit(&Wanted { min_gpus: 1, ..wanted("a", 4) });
    let plan = cluster.settle();
    assert_eq!([&first, &second, &elastic].map(|job| cluster.ranks(job)), [4, 0, 2]);
    assert_eq!(why(&plan, &second), "waits for 4 cuda slots: queue a uses 6 of the 6 that it may");
}

#[test]
fn a_queue_keeps_its_order_for_what_it_is_sure_of() {
    let mut cluster = Cluster::new(&[4, 4], queues(&[("a", 4), ("b", 4)]));
    let running = cluster.submit(&wanted("a", 2));
    let other = cluster.submit(&wanted("b", 4));
    let borrowed = cluster.submit(&wanted("b", 2));
    cluster.settle();
    assert_eq!([&running, &other, &borrowed].map(|job| cluster.ranks(job)), [2, 4, 2]);
    let large = cluster.submit(&wanted("a", 4));
    let small = cluster.submit(&wanted("a", 2));
    let plan = cluster.settle();
    assert_eq!((cluster.ranks(&large), cluster.ranks(&small)), (0, 0), "{:?}", plan.waits);
    assert_eq!(cluster.ranks(&borrowed), 2, "the small one does not go first by asking for less");
    cluster.cancel(&running);
    cluster.settle();
    assert_eq!((cluster.ranks(&large), cluster.ranks(&borrowed)), (4, 0));
}

#[test]
fn a_queue_has_its_own_order_nodes_and_packing() {
    let mut quotas = queues(&[("pool", 0), ("spread", 0)]);
    let labels = BTreeMap::from([("pool".to_owned(), "p1".to_owned())]);
    quotas.queues.by_name.get_mut("pool").expect("there").node_labels = labels;
    quotas.queues.by_name.get_mut("spread").expect("there").packing = Packing::Spread;
    let mut cluster = Cluster::new(&[4, 4, 4, 4], quotas);
    let pooled = cluster.submit(&wanted("pool", 6));
    cluster.settle();
    assert_eq!(cluster.nodes_of(&pooled), BTreeSet::from(["t-1".to_owned(), "t-3".to_owned()]));
    let spread = cluster.submit(&wanted("spread", 4));
    let packed = cluster.submit(&wanted("", 2));
    let plan = cluster.settle();
    assert!(cluster.nodes_of(&spread).len() >= 2, "{:?}", cluster.nodes_of(&spread));
    assert_eq!(cluster.nodes_of(&packed).len(), 1);
    let more = cluster.submit(&wanted("pool", 10));
    assert!(!why(&plan, &more).contains("pool=p1"));
    let plan = cluster.settle();
    assert_eq!(
        why(&plan, &more),
        "waits for 10 slots: the connected trainer nodes have 8 of one kind, 2 free"
    );
}

#[test]
fn a_gang_stays_on_nodes_that_are_near_each_other() {
    // t-0 and t-2 are of p0, t-1 and t-3 of p1.
    let mut cluster = Cluster::new(&[4, 2, 4, 2], Quotas::default());
    let near = |gpus, mode| Wanted { topology: mode, ..wanted("", gpus) };
    let small = cluster.submit(&near(4, "require"));
    cluster.settle();
    assert_eq!(
        cluster.nodes_of(&small),
        BTreeSet::from(["t-1".to_owned(), "t-3".to_owned()]),
        "the smaller hole"
    );
    let large = cluster.submit(&near(10, "require"));
    let plan = cluster.settle();
    assert_eq!(cluster.ranks(&large), 0);
    let said = "waits for 10 slots: the connected trainer nodes have 8 of one kind, 8 free";
    assert_eq!(why(&plan, &large), said, "it never fits, and keeps nobody waiting");
    let other = cluster.submit(&wanted("", 2));
    cluster.settle();
    assert_eq!(cluster.ranks(&other), 2);
    cluster.cancel(&small);
    cluster.cancel(&large);
    let wide = cluster.submit(&near(10, "prefer"));
    cluster.settle();
    assert_eq!(cluster.ranks(&wide), 10, "where it must it goes further");
}

#[test]
fn a_strict_queue_lets_none_of_its_own_go_ahead() {
    let mut quotas = queues(&[("strict", 0)]);
    quotas.queues.by_name.get_mut("strict").expect("there").order = Some(QueueOrder::Strict);
    let mut cluster = Cluster::new(&[8], quotas);
    let running = cluster.submit(&wanted("", 6));
    cluster.settle();
    let first = cluster.submit(&wanted("strict", 8));
    let later = cluster.submit(&wanted("strict", 1));
    let other = cluster.submit(&wanted("", 1));
    let plan = cluster.settle();
    assert_eq!([&running, &first, &later, &other].map(|job| cluster.ranks(job)), [6, 0, 0, 1]);
    assert_eq!(why(&plan, &later), format!("waits behind job {first}, which waits for slots"));
}

#[test]
fn tenants_that_have_used_less_go_first() {
    let share = |share| TenantLimits { share: Some(share), ..TenantLimits::default() };
    let tenant = |name: &str| Tenant::parse(name).expect("valid");
    let listed = BTreeMap::from([(tenant("half"), share(1)), (tenant("whole"), share(2))]);
    let quotas = Quotas { listed, fair_share: Some(3600 * SEC), ..Quotas::default() };
    let mut cluster = Cluster::new(&[1], quotas);
    let of = |tenant: &'static str| Wanted { tenant, ..wanted("", 1) };
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    let mut jobs: Vec<JobId> =
        (0..30).flat_map(|_| ["half", "whole"]).map(|tenant| cluster.submit(&of(tenant))).collect();
    for _ in 0..30 {
        cluster.settle();
        let at = jobs.iter().position(|job| cluster.ranks(job) > 0).expect("one runs");
        let job = jobs.remove(at);
        let name = cluster.state.job(&job).expect("there").record.spec.tenant.clone();
        *ran.entry(name).or_insert(0) += 1;
        cluster.now = cluster.now.plus(600 * SEC);
        cluster.cancel(&job);
    }
    assert_eq!(ran, BTreeMap::from([("half".to_owned(), 10), ("whole".to_owned(), 20)]));
    // A tenant that comes later is not owed the past for ever, and goes first until it has its share.
    let newcomer = cluster.submit(&of("new"));
    cluster.settle();
    assert_eq!(cluster.ranks(&newcomer), 1);
    let used = |name: &str| {
        cluster.state.usage(&tenant(name)).expect("used").months.values().next().unwrap()["cuda"]
    };
    assert!(used("whole") > used("half") && used("half") > 6_000_000, "{} {}", used("whole"), used("half"));
}

#[test]
fn a_job_that_has_run_for_as_long_as_it_may_saves_and_ends() {
    let mut cluster = Cluster::new(&[2], Quotas::default());
    let limited = cluster.submit(&Wanted { minutes: Some(10), ..wanted("", 2) });
    let next = cluster.submit(&wanted("", 2));
    cluster.settle();
    assert_eq!([&limited, &next].map(|job| cluster.ranks(job)), [2, 0]);
    cluster.now = cluster.now.plus(500 * SEC);
    // The time that it waits does not count.
    let writes =
        pause_job(&cluster.state, &limited, Pause { curates: false, reason: String::new() }).expect("open");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!([&limited, &next].map(|job| cluster.ranks(job)), [0, 2]);
    cluster.now = cluster.now.plus(3600 * SEC);
    cluster.cancel(&next);
    let writes = resume_job(&cluster.state, &limited).expect("paused");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    let left = cluster.state.job(&limited).expect("there").time_left(cluster.now).expect("limited");
    assert!((60 * SEC..100 * SEC).contains(&left), "{left:?}");
    // A wall clock that is set forward ends no job.
    cluster.seen.wall_ahead_millis = 3_600_000;
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    cluster.seen.wall_ahead_millis = 0;
    cluster.now = cluster.now.plus(left);
    let plan = cluster.decide();
    assert_eq!(why(&plan, &limited), "has run for 10 minutes, as long as it may: 2 ranks save and leave");
    let told = plan.sends.iter().any(|send| matches!(send.command, Command::DrainAttempt(..)));
    assert!(told, "it saves first");
    // Ranks that do not save are not waited for without end.
    cluster.now = cluster.now.plus(Limits::default().leave_within);
    cluster.decide();
    let job = &cluster.state.job(&limited).expect("there").record;
    let JobState::Failed { reason } = &job.state else { panic!("{:?}", job.state) };
    assert_eq!(
        reason,
        "it has run for 10 minutes, as long as it may (spec.timeLimitMinutes); it has no checkpoint"
    );
    // Trying again gives it as much time again.
    let limits = QueueLimits { max_open_jobs: 10_000, retry_after: SEC, tenant: TenantLimits::default() };
    let writes = retry_job(&cluster.state, &limited, limits, &Limits::default()).expect("failed");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    let left = cluster.state.job(&limited).expect("there").time_left(cluster.now).expect("limited");
    assert!(left > 590 * SEC, "{left:?}");
}

#[test]
fn a_queue_that_is_not_for_a_job_is_refused() {
    let mut quotas = queues(&[("a", 4), ("closed", 4)]);
    let closed = quotas.queues.by_name.get_mut("closed").expect("there");
    closed.tenants = Some(BTreeSet::from([Tenant::parse("products").expect("valid")]));
    let spec_of = |queue: &str| {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: research}}\nspec:\n  queue: {queue}\n  model: {{preset: nano, weights: base.safetensors}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 8}}\n      train: {{steps: 20}}\n"
        );
        spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
    };
    for queue in ["closed", "nowhere"] {
        let found = quotas.queues.overreach(&spec_of(queue)).expect("refused");
        assert_eq!(found.field, "spec.queue");
        let said = format!("{queue} is no queue for jobs of tenant research; those that are: a");
        assert_eq!(found.message, said);
    }
    assert_eq!(quotas.queues.overreach(&spec_of("a")), None);
    assert!(Quotas::default().queues.overreach(&spec_of("a")).is_some(), "there are none");
}

#[derive(Clone, Debug)]
enum Step {
    Submit {
        queue: usize,
        gpus: u32,
        min_gpus: u32,
        priority: i32,
        tenant: usize,
    },
    Cancel(usize),
    /// Gangs run for ten minutes.
    Work,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let submit = (0..3usize, 1..9u32, 1..9u32, prop_oneof![Just(0), Just(50), Just(100)], 0..2usize)
        .prop_map(|(queue, gpus, min_gpus, priority, tenant)| Step::Submit {
            queue,
            gpus,
            min_gpus: min_gpus.min(gpus),
            priority,
            tenant,
        });
    let cancel = (0..100usize).prop_map(Step::Cancel);
    prop::collection::vec(prop_oneof![6 => submit, 2 => cancel, 1 => Just(Step::Work)], 1..25)
}

proptest! {
    #[test]
    fn queues_come_to_rest_and_each_has_what_it_is_sure_of(
        steps in steps(),
        sure in (0..9u32, 0..9u32),
        fair in prop::bool::ANY,
    ) {
        let names = ["a", "b", ""];
        let mut quotas = with_classes(queues(&[("a", sure.0), ("b", sure.1.min(8 - sure.0.min(8)))]));
        quotas.fair_share = fair.then_some(3600 * SEC);
        let guaranteed: Vec<u32> = ["a", "b"].iter().map(|name| quotas.queues.by_name[*name].guaranteed_of("cuda")).collect();
        let mut cluster = Cluster::new(&[8], quotas);
        for step in steps {
            match step {
                Step::Submit { queue, gpus, min_gpus, priority, tenant } => {
                    let tenant = ["research", "products"][tenant];
                    cluster.submit(&Wanted { tenant, queue: names[queue], gpus, min_gpus, priority, minutes: None, topology: "" });
                }
                Step::Cancel(at) => {
                    let open: Vec<JobId> = cluster.state.open_jobs().map(|job| job.record.id.clone()).collect();
                    if let Some(job) = open.get(at % open.len().max(1)) {
                        cluster.cancel(job);
                    }
                }
                Step::Work => cluster.work(1.0, 600 * SEC),
            }
            // It comes to rest: nobody takes slots in turns.
            cluster.settle();
            let held: u32 = cluster.state.open_jobs().map(|job| cluster.ranks(&job.record.id) as u32).sum();
            prop_assert!(held <= 8);
            // The first waiting job of a queue that fits into what the queue is sure of runs.
            for (name, guaranteed) in ["a", "b"].iter().zip(&guaranteed) {
                let left = guaranteed.saturating_sub(cluster.held(name));
                let mut waiting: Vec<_> = cluster.state.open_jobs().filter(|job| {
                    job.record.spec.queue.as_deref() == Some(name) && cluster.ranks(&job.record.id) == 0
                }).collect();
                waiting.sort_by_key(|job| job.order());
                if let Some(first) = waiting.first().filter(|_| !fair) {
                    let others_fixed: u32 = cluster.state.open_jobs()
                        .filter(|job| job.record.spec.priority >= 100)
                        .map(|job| cluster.ranks(&job.record.id) as u32)
                        .sum();
                    prop_assert!(
                        first.record.spec.resources.min_gpus > left || others_fixed > 0,
                        "{} waits, and {name} has {left} left", first.record.id
                    );
                }
            }
            for job in cluster.state.open_jobs() {
                let attempts: usize = job.stages.iter().filter_map(|stage| stage.attempt.as_ref())
                    .filter(|attempt| attempt.state == AttemptState::Active).count();
                prop_assert!(attempts <= 1);
            }
        }
    }
}
