//! What a tenant may use: a job waits or is refused at the limit, says why, and holds up nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::RequestError;
use crescendo_core::decide::{Command, Limits, Plan, decide};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{Incarnation, JobId, NodeId, RequestId, StageName, StageRef, Tenant, Timestamp};
use crescendo_core::observed::Observed;
use crescendo_core::quotas::{QueueOrder, Quotas, TenantLimits};
use crescendo_core::records::{
    NodeKind, NodeRecord, Record, ShardRecord, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions::{QueueLimits, Submission, Submitted, submit_job};

struct Cluster {
    state: ClusterState,
    seen: Observed,
    now: Timestamp,
    quotas: Quotas,
}

impl Cluster {
    /// One trainer of `slots` slots, and a curator.
    fn new(slots: u32, quotas: Quotas) -> Self {
        let now = Timestamp(1_000_000);
        let mut cluster = Self { state: ClusterState::default(), seen: Observed::new(now), now, quotas };
        cluster.add("t-1", NodeKind::Trainer, slots);
        cluster.add("c-1", NodeKind::Curator, 0);
        cluster
    }

    fn add(&mut self, id: &str, kind: NodeKind, slots: u32) {
        let incarnation = Incarnation::parse("first").expect("valid");
        let id = NodeId::parse(id).expect("valid");
        self.put(Record::Node(NodeRecord {
            id: id.clone(),
            incarnation: incarnation.clone(),
            kind,
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
        self.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
    }

    fn put(&mut self, record: Record) {
        self.state.apply(Write::Put(record)).expect("belongs to something");
    }

    fn try_submit(
        &mut self,
        tenant: &str,
        request: &str,
        gpus: u32,
        min_gpus: u32,
    ) -> Result<Submitted, RequestError> {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: {tenant}}}\nspec:\n  model: {{preset: nano, weights: base.safetensors}}\n  resources: {{gpus: {gpus}, minGpus: {min_gpus}}}\n  stages:\n    - name: stage-1\n      data: {{source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, steps: 20, globalBatch: 16}}\n"
        );
        let spec = spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        let submission = Submission {
            request: RequestId::parse(request).expect("valid"),
            spec: Arc::new(spec),
            spec_json: yaml.into_bytes().into(),
            trace: None,
        };
        let retry_after = Duration::from_secs(2);
        let tenant = self.quotas.of(tenant);
        let submitted = submit_job(
            &self.state,
            submission,
            QueueLimits { max_open_jobs: 100, retry_after, tenant },
            self.now,
        )?;
        self.now = self.now.plus(Duration::from_millis(1));
        for write in submitted.writes.clone() {
            self.state.apply(write).expect("belongs to something");
        }
        Ok(submitted)
    }

    /// A job whose pairs are all there.
    fn ready(&mut self, tenant: &str, request: &str, gpus: u32, min_gpus: u32) -> JobId {
        let job = self.try_submit(tenant, request, gpus, min_gpus).expect("taken").job;
        self.curate(&job, 1000);
        job
    }

    fn curate(&mut self, job: &JobId, size_bytes: u64) {
        let stage = StageRef { job: job.clone(), stage: StageName::parse("stage-1").expect("valid") };
        let shard = ShardRecord { path: "p".into(), pairs: 8, size_bytes, sha256: "a".repeat(64) };
        let (rejected, scores) = (BTreeMap::new(), ScoreCounts::default());
        let result = UnitResult { shard, rejected, scores, exhausted: true };
        let state = UnitState::Done(result);
        self.put(Record::Unit(UnitRecord { lease_generation: 1, state, ..UnitRecord::new(&stage, 0) }));
    }

    fn decide(&mut self) -> Plan {
        let limits = Limits { quotas: Arc::new(self.quotas.clone()), ..Limits::default() };
        let plan = decide(&self.state, &self.seen, &limits, self.now);
        for write in plan.writes.clone() {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.state.apply(write).expect("belongs to something");
        }
        plan
    }

    fn ranks(&self, job: &JobId) -> usize {
        let stages = &self.state.job(job).expect("there").stages;
        stages.iter().filter_map(|stage| stage.active_attempt()).map(|attempt| attempt.ranks.len()).sum()
    }
}

fn quotas(tenant: &str, limits: TenantLimits) -> Quotas {
    Quotas { listed: BTreeMap::from([(Tenant::parse(tenant).expect("valid"), limits)]), ..Quotas::default() }
}

fn why(plan: &Plan, job: &JobId) -> String {
    plan.waits.get(job).map(ToString::to_string).unwrap_or_default()
}

#[test]
fn a_tenant_at_its_gpu_limit_waits_and_holds_up_nobody() {
    let limits = TenantLimits { max_gpus: Some(4), ..TenantLimits::default() };
    let mut cluster = Cluster::new(16, quotas("research", limits));
    let first = cluster.ready("research", "r-1", 4, 4);
    let second = cluster.ready("research", "r-2", 2, 2);
    let other = cluster.ready("products", "r-1", 8, 8);
    let plan = cluster.decide();
    assert_eq!([&first, &second, &other].map(|job| cluster.ranks(job)), [4, 0, 8]);
    assert_eq!(why(&plan, &second), "waits for 2 GPUs: tenant research uses 4 of its 4 GPUs");
    assert_eq!(plan.waits.get(&second).map(|wait| wait.label()), Some("quota"));
    // The limit is raised: nothing else has to happen.
    cluster.quotas = Quotas::default();
    cluster.decide();
    assert_eq!(cluster.ranks(&second), 2);
}

#[test]
fn a_gang_shrinks_to_what_its_tenant_may_use_and_says_when_it_never_fits() {
    let limits = TenantLimits { max_gpus: Some(6), ..TenantLimits::default() };
    let mut cluster = Cluster::new(16, quotas("research", limits));
    let elastic = cluster.ready("research", "r-1", 8, 2);
    let large = cluster.ready("research", "r-2", 16, 16);
    let plan = cluster.decide();
    assert_eq!(cluster.ranks(&elastic), 6, "any number from 2 to 8");
    assert_eq!(why(&plan, &large), "waits for 16 GPUs: tenant research may use 6 GPUs in all");
}

#[test]
fn the_queue_of_a_tenant_is_bounded_and_a_repeated_submit_is_no_second_job() {
    let limits = TenantLimits { max_queued_jobs: Some(2), ..TenantLimits::default() };
    let mut cluster = Cluster::new(0, quotas("research", limits));
    let first = cluster.try_submit("research", "r-1", 1, 1).expect("taken");
    cluster.try_submit("research", "r-2", 1, 1).expect("taken");
    let refused = cluster.try_submit("research", "r-3", 1, 1).expect_err("over the limit");
    assert_eq!(refused.to_string(), "tenant research has 2 of its 2 queued jobs");
    assert!(
        matches!(refused, RequestError::Full { retry_after, .. } if retry_after == Duration::from_secs(2)),
        "{refused:?}"
    );
    let again = cluster.try_submit("research", "r-1", 1, 1).expect("the same job");
    assert_eq!((again.already, &again.job), (true, &first.job));
    cluster.try_submit("products", "r-3", 1, 1).expect("another tenant");
}

#[test]
fn a_tenant_that_stores_too_much_begins_nothing_and_ends_what_it_has_begun() {
    let limits = TenantLimits { max_stored_bytes: Some(5_000_000_000), ..TenantLimits::default() };
    let mut cluster = Cluster::new(4, quotas("research", limits));
    let waits = cluster.try_submit("research", "r-1", 1, 1).expect("taken").job;
    let begun = cluster.try_submit("research", "r-2", 1, 1).expect("taken").job;
    cluster.curate(&begun, 6_000_000_000);
    let plan = cluster.decide();
    assert_eq!(cluster.ranks(&begun), 1, "what has begun goes on");
    assert_eq!(why(&plan, &waits), "waits for storage: tenant research stores 6.00 GB of its 5.00 GB");
    let curated = plan.sends.iter().map(|send| format!("{:?}", send.command)).collect::<String>();
    assert!(!curated.contains(waits.as_str()), "no curator works for it: {curated}");
    let refused = cluster.try_submit("research", "r-3", 1, 1).expect_err("over the limit");
    assert_eq!(refused.to_string(), "tenant research stores 6.00 GB of its 5.00 GB");
    let again = cluster.try_submit("research", "r-1", 1, 1).expect("the same job");
    assert!(again.already);
    let other = cluster.try_submit("products", "r-1", 1, 1).expect("another tenant").job;
    assert!(!cluster.decide().sends.is_empty(), "{other} gets the curator");
}

#[test]
fn a_job_behind_one_of_another_tenant_is_not_told_its_id() {
    let mut cluster = Cluster::new(4, Quotas { order: QueueOrder::Strict, ..Quotas::default() });
    let running = cluster.ready("research", "r-1", 2, 2);
    let first = cluster.ready("research", "r-2", 4, 4);
    let own = cluster.ready("research", "r-3", 1, 1);
    let foreign = cluster.ready("products", "r-1", 1, 1);
    let plan = cluster.decide();
    assert_eq!(cluster.ranks(&running), 2);
    assert_eq!(why(&plan, &own), format!("waits behind job {first}, which waits for slots"));
    assert_eq!(why(&plan, &foreign), "waits behind a job of another tenant, which waits for slots");
}

#[test]
fn request_ids_are_those_of_a_tenant() {
    let mut cluster = Cluster::new(0, Quotas::default());
    let research = cluster.try_submit("research", "nightly", 1, 1).expect("taken");
    let products = cluster.try_submit("products", "nightly", 2, 2).expect("neither refused nor the same");
    assert!(!products.already);
    assert_ne!(research.job, products.job);
    assert!(cluster.try_submit("products", "nightly", 2, 2).expect("the same job").already);
}

#[test]
fn tenants_that_are_not_listed_may_be_kept_out() {
    let closed = Quotas { others_may_submit: false, ..quotas("research", TenantLimits::default()) };
    assert!(closed.check_may_submit("research").is_ok());
    let refused = closed.check_may_submit("products").expect_err("not listed");
    assert_eq!(refused.to_string(), "tenant products is not one of those that may submit jobs");
}

/// Curators that each tenant's stages are given, by the commands of a plan.
fn curators_of(cluster: &Cluster, plan: &Plan) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for send in &plan.sends {
        if let Command::AssignCuration(stage) = &send.command {
            let tenant = cluster.state.job(&stage.job).expect("there").record.spec.tenant.clone();
            *counts.entry(tenant).or_insert(0) += 1;
        }
    }
    counts
}

fn with_curators(count: usize, quotas: Quotas) -> Cluster {
    let mut cluster = Cluster::new(0, quotas);
    for n in 2..=count {
        cluster.add(&format!("c-{n}"), NodeKind::Curator, 0);
    }
    cluster
}

#[test]
fn curators_are_shared_between_tenants_however_many_jobs_each_has() {
    let mut cluster = with_curators(4, Quotas::default());
    for n in 0..10 {
        cluster.try_submit("research", &format!("r-{n}"), 1, 1).expect("taken");
    }
    cluster.try_submit("products", "r-1", 1, 1).expect("taken");
    let plan = cluster.decide();
    let expected = BTreeMap::from([("products".to_owned(), 2), ("research".to_owned(), 2)]);
    assert_eq!(curators_of(&cluster, &plan), expected);
}

#[test]
fn a_tenant_has_no_more_curators_than_it_may() {
    let limits = TenantLimits { max_curators: Some(1), ..TenantLimits::default() };
    let mut cluster = with_curators(4, quotas("research", limits));
    let jobs: Vec<JobId> =
        (0..3).map(|n| cluster.try_submit("research", &format!("r-{n}"), 1, 1).expect("taken").job).collect();
    let plan = cluster.decide();
    assert_eq!(curators_of(&cluster, &plan), BTreeMap::from([("research".to_owned(), 1)]));
    // A stage that trains is served by every curator, and made by as many as may.
    let stage = StageRef { job: jobs[0].clone(), stage: StageName::parse("stage-1").expect("valid") };
    let node = |name| NodeId::parse(name).expect("valid");
    let expires_at = cluster.now.plus(Duration::from_secs(20));
    let state = UnitState::Leased { node: node("c-1"), expires_at };
    cluster.put(Record::Unit(UnitRecord { lease_generation: 1, state, ..UnitRecord::new(&stage, 0) }));
    let may = |cluster: &Cluster, tenant, name| {
        cluster.quotas.may_curate(&cluster.state, tenant, &node(name), cluster.now)
    };
    assert!(may(&cluster, "research", "c-1") && !may(&cluster, "research", "c-2"));
    assert!(may(&cluster, "products", "c-2"));
    cluster.now = expires_at;
    assert!(may(&cluster, "research", "c-2"), "the lease is over");
}

#[test]
fn a_priority_above_the_tenants_is_refused() {
    let limits = TenantLimits { max_priority: Some(10), ..TenantLimits::default() };
    let cluster = Cluster::new(0, quotas("research", limits));
    let spec = |tenant: &str, priority: i32| {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: {tenant}}}\nspec:\n  model: {{preset: nano, weights: base.safetensors}}\n  priority: {priority}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 8}}\n"
        );
        spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
    };
    let told = |spec| cluster.quotas.overreaches(&spec, &cluster.state);
    assert_eq!(told(spec("research", 10)), []);
    assert_eq!(told(spec("products", 1000)), []);
    let found = told(spec("research", 11));
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].field.as_str(), found[0].message.as_str()),
        ("spec.priority", "11 is more than tenant research may have: at most 10")
    );
}
