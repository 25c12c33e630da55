//! A controller that cannot read the state gives the lead up to one that can.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use crescendo_controller::access::AccessConfig;
use crescendo_controller::{Config, Controller};
use crescendo_core::ids::{JobId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::object_keys;
use crescendo_core::records::{JobRecord, Record, RecordKey, ShardRecord, UnitRecord, UnitResult, UnitState};
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::tls::{ConnectionMetrics, Incoming};
use crescendo_proto::{records, v1};
use crescendo_store::{
    KEY_PREFIX, Lease, Page, Revision, SnapshotPages, Store, StoreError, StoreLocation, Txn, Versioned, Watch,
};
use crescendo_testing::eventually;
use prometheus::Registry;
use tokio::net::TcpListener;

/// The same store, of which everything can be read but all at once.
struct Unloadable(Arc<dyn Store>);

#[tonic::async_trait]
impl Store for Unloadable {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.0.get(key).await
    }
    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.0.list(prefix, page_after, limit).await
    }
    fn read_pages(&self, _: &str, _: usize) -> Box<dyn SnapshotPages> {
        Box::new(NoPages)
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.0.txn(txn).await
    }
    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        self.0.watch(prefix, after)
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.0.grant(ttl).await
    }
    async fn close(&self) {
        self.0.close().await;
    }
}

struct NoPages;

#[tonic::async_trait]
impl SnapshotPages for NoPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        Err(StoreError::NotApplied("no answer before the deadline".into()))
    }
}

/// A controller of this process.
async fn start(store: Arc<dyn Store>, tasks: &Tasks) -> Result<(crescendo_controller::Serving, String)> {
    start_with(store, Config::new("file:///nowhere"), tasks).await
}

async fn start_with(
    store: Arc<dyn Store>,
    config: Config,
    tasks: &Tasks,
) -> Result<(crescendo_controller::Serving, String)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let registry = Registry::new();
    let incoming = Incoming::new(listener, None, 64, ConnectionMetrics::register(&registry)?);
    let access = AccessConfig::dev();
    let drain = Drain::new(Duration::ZERO);
    let controller = Controller { config, access, store, registry, address: address.clone(), drain };
    Ok((controller.start(incoming, tasks)?, address))
}

#[tokio::test]
async fn one_that_cannot_load_resigns_and_another_leads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let location: StoreLocation = format!("embedded:{}", folder.path().display()).parse()?;
    let store = location.open(KEY_PREFIX, None).await?;
    let (tasks, supervisor) = Tasks::new();
    let (_blind, there) = start(Arc::new(Unloadable(store.clone())), &tasks).await?;
    eventually("it is elected", async || {
        let leader = store.leader("controller").await?;
        Ok(leader.is_some_and(|leader| leader.identity.starts_with(&there)).then_some(()))
    })
    .await?;
    let (mut other, _) = start(store.clone(), &tasks).await?;
    tokio::time::timeout(crescendo_testing::LIMIT, other.leads()).await??;
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;
    store.close().await;
    Ok(())
}

/// The same store, of which each page takes a while.
struct Slow {
    store: Arc<dyn Store>,
    page: Duration,
}

#[tonic::async_trait]
impl Store for Slow {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.store.get(key).await
    }
    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.store.list(prefix, page_after, limit).await
    }
    fn read_pages(&self, prefix: &str, limit: usize) -> Box<dyn SnapshotPages> {
        Box::new(SlowPages { pages: self.store.read_pages(prefix, limit), page: self.page, read: 0 })
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.store.txn(txn).await
    }
    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        self.store.watch(prefix, after)
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(ttl).await
    }
    async fn close(&self) {
        self.store.close().await;
    }
}

struct SlowPages {
    pages: Box<dyn SnapshotPages>,
    page: Duration,
    read: usize,
}

#[tonic::async_trait]
impl SnapshotPages for SlowPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        tokio::time::sleep(self.page).await;
        self.read += 1;
        // Every now and then one is lost, and asked for again.
        if self.read % 10 == 3 {
            return Err(StoreError::NotApplied("no answer before the deadline".into()));
        }
        self.pages.next_page().await
    }
}

const UNITS: u64 = 60_000;
const PAIRS: u64 = 3;
/// Units of which is awaited that they are folded.
const FOLDED: u64 = 5000;

/// A job that was cancelled after all of its units were made, as it lies in the store.
async fn write_job(store: &Arc<dyn Store>) -> Result<StageRef> {
    let id = JobId::parse("big-1")?;
    let yaml = crescendo_testing::specs::SPEC;
    let mut spec = crescendo_core::spec::parse(yaml.as_bytes()).expect("the spec is right");
    spec.stages[0].data.pairs = UNITS * PAIRS;
    let stage = StageRef { job: id.clone(), stage: StageName::parse(&spec.stages[0].name)? };
    let job = Record::Job(JobRecord {
        id,
        request: RequestId::parse("r-1")?,
        spec_json: serde_json::to_vec(&spec)?.into(),
        spec: Arc::new(spec),
        state: JobState::Cancelled { reason: "enough".into() },
        submitted_at: Timestamp(1),
        trace: None,
        started_at: Some(Timestamp(2)),
        finished_at: Some(Timestamp(3)),
    });
    store.txn(Txn::new().put(job.key().to_string(), records::encode(&job))).await?;
    let unit = |number: u64| {
        let shard = ShardRecord {
            path: object_keys::shard(stage.job.as_str(), stage.stage.as_str(), number, 1),
            pairs: PAIRS,
            size_bytes: 10,
            sha256: format!("{number:064x}"),
        };
        let rejected = [("similarity_low".to_owned(), 1)].into();
        let result = UnitResult { shard, rejected, scores: Default::default(), exhausted: false };
        let state = UnitState::Done(result);
        Record::Unit(UnitRecord { lease_generation: 1, state, ..UnitRecord::new(&stage, number) })
    };
    let mut writing = tokio::task::JoinSet::new();
    for first in (0..UNITS).step_by(100) {
        let txn = (first..first + 100)
            .map(unit)
            .fold(Txn::new(), |txn, record| txn.put(record.key().to_string(), records::encode(&record)));
        if writing.len() >= 16
            && let Some(written) = writing.join_next().await
        {
            written??;
        }
        let store = store.clone();
        writing.spawn(async move { store.txn(txn).await });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    Ok(stage)
}

/// What people and curators are told of the job's one stage.
async fn told(address: &str, stage: &StageRef) -> Result<(v1::StageStatus, u64, String)> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let mut jobs = v1::job_service_client::JobServiceClient::new(channel.clone());
    let request = v1::GetJobRequest { job_id: stage.job.to_string() };
    let job = jobs.get_job(request).await?.into_inner().job.context("a job")?;
    let mut curation = v1::curation_service_client::CurationServiceClient::new(channel);
    let request = v1::WatchPairLogRequest {
        job_id: stage.job.to_string(),
        stage: stage.stage.to_string(),
        from_unit: UNITS - 7,
    };
    let mut log = curation.watch_pair_log(request).await?.into_inner();
    let (mut shards, mut last) = (0, String::new());
    while let Some(part) = log.message().await? {
        shards += part.shards.len() as u64;
        last = part.shards.last().map_or(last, |shard| format!("{shard:?}"));
    }
    Ok((job.stages.into_iter().next().context("a stage")?, shards, last))
}

/// A state that takes longer to read than a lease lives is read page by page, and once a job is over its records become few;
/// the next controller tells the same of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_state_is_read_page_by_page_and_folded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let location: StoreLocation = format!("embedded:{}", folder.path().display()).parse()?;
    let store = location.open(KEY_PREFIX, None).await?;
    let stage = write_job(&store).await?;
    let mut config = Config::new("file:///nowhere");
    config.leader_lease = Duration::from_secs(1);
    config.load_page_records = 2000;
    config.limits.segment_units = 2500;
    config.limits.fold_deletes = 500;
    let (tasks, supervisor) = Tasks::new();
    let slow = Slow { store: store.clone(), page: Duration::from_millis(60) };
    let (mut serving, address) = start_with(Arc::new(slow), config.clone(), &tasks).await?;
    tokio::time::timeout(crescendo_testing::LIMIT, serving.leads()).await??;
    let before = told(&address, &stage).await?;
    assert_eq!((before.0.pairs_committed, before.0.pairs_sealed, before.1), (UNITS * PAIRS, true, 7));
    assert_eq!(before.0.pairs_rejected.get("similarity_low"), Some(&UNITS));
    let key = RecordKey::Unit(stage.clone(), FOLDED - 1).to_string();
    eventually("its records are fewer", async || Ok(store.get(&key).await?.is_none().then_some(()))).await?;
    assert_eq!(told(&address, &stage).await?, before);
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;

    // Half-way: some are folded, others are records of their own.
    let keys = async |kind: &str| anyhow::Ok(store.snapshot(kind).await?.items.len() as u64);
    let (units, segments) = (keys("units/").await?, keys("segments/").await?);
    assert!(units <= UNITS - FOLDED && segments >= FOLDED / 2500, "{units} units, {segments} segments");
    let (tasks, supervisor) = Tasks::new();
    let (mut serving, address) = start_with(store.clone(), config, &tasks).await?;
    tokio::time::timeout(crescendo_testing::LIMIT, serving.leads()).await??;
    assert_eq!(told(&address, &stage).await?, before);
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;
    store.close().await;
    Ok(())
}
