//! How long a controller takes to lead a cluster with very many units, and the memory that it has then. One JSON line.
//!
//! A process of its own fills an embedded store, so that what is measured is the memory of loading alone.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use crescendo_controller::access::AccessConfig;
use crescendo_controller::{Config, Controller};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{JobId, RequestId, StageName, StageRef, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::object_keys;
use crescendo_core::records::{JobRecord, Record, ShardRecord, UnitRecord, UnitResult, UnitState};
use crescendo_core::rejection::Rejection;
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::tls::{ConnectionMetrics, Incoming};
use crescendo_proto::records;
use crescendo_store::{KEY_PREFIX, Store, StoreLocation, Txn};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Records of one transaction.
const TXN_RECORDS: u64 = 100;
/// Transactions under way at a time.
const WRITERS: usize = 64;

/// Measures how a controller begins to lead a cluster with very many units
#[derive(Parser)]
struct Args {
    /// Units of the one job, all done
    #[arg(long, default_value_t = 1_000_000)]
    units: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

/// A part of the work, in a process of its own.
#[derive(Subcommand)]
enum Part {
    /// Write the records to a store, such as `embedded:DIR`
    Fill { store: String },
    /// Lead with what is in a store
    Lead { store: String },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match &args.part {
        Some(Part::Fill { store }) => fill(store, args.units).await,
        Some(Part::Lead { store }) => lead(store, args.units).await,
        None => {
            let folder = tempfile::tempdir()?;
            let store = format!("embedded:{}", folder.path().display());
            let program = std::env::current_exe().context("find this program")?;
            run_part(&program, args.units, "fill", &store)?;
            run_part(&program, args.units, "lead", &store)
        }
    }
}

fn run_part(program: &Path, units: u64, part: &str, store: &str) -> anyhow::Result<()> {
    let status = Command::new(program).args(["--units", &units.to_string(), part, store]).status()?;
    ensure!(status.success(), "{part} ends with {status}");
    Ok(())
}

async fn fill(store: &str, units: u64) -> anyhow::Result<()> {
    let store = store.parse::<StoreLocation>()?.open(KEY_PREFIX, None).await?;
    let id = JobId::parse("bench-load")?;
    let yaml = format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: bench}}\nspec:\n  model: {{preset: nano, weights: base.safetensors}}\n  stages:\n    - name: stage-1\n      data: {{source: compose, subjects: subjects, pairs: {}, unitSize: 64}}\n",
        units.saturating_mul(64)
    );
    let spec = crescendo_core::spec::parse(yaml.as_bytes())
        .map_err(|problems| anyhow::anyhow!("{problems:?}"))
        .context("read the spec")?;
    let job = Record::Job(JobRecord {
        id: id.clone(),
        request: RequestId::parse("bench")?,
        spec_json: serde_json::to_vec(&spec)?.into(),
        spec: Arc::new(spec),
        state: JobState::Queued,
        submitted_at: Timestamp(1),
        trace: None,
        started_at: None,
        finished_at: None,
    });
    store.txn(Txn::new().put(job.key().to_string(), records::encode(&job))).await?;
    let stage = StageRef { job: id, stage: StageName::parse("stage-1")? };
    let mut writing = JoinSet::new();
    for first in (0..units).step_by(TXN_RECORDS as usize) {
        let end = units.min(first.saturating_add(TXN_RECORDS));
        let txn = (first..end).map(|number| Record::Unit(unit(&stage, number)));
        let txn =
            txn.fold(Txn::new(), |txn, record| txn.put(record.key().to_string(), records::encode(&record)));
        if writing.len() >= WRITERS {
            written(writing.join_next().await)?;
        }
        let store = store.clone();
        writing.spawn(async move { write(store.as_ref(), txn).await });
    }
    while let Some(done) = writing.join_next().await {
        written(Some(done))?;
    }
    store.close().await;
    Ok(())
}

async fn write(store: &dyn Store, txn: Txn) -> anyhow::Result<()> {
    store.txn(txn).await.context("write units")?;
    Ok(())
}

fn written(done: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    done.unwrap_or(Ok(Ok(())))?
}

/// A unit as curators commit it, with what a filter and a judge say of its candidates.
fn unit(stage: &StageRef, number: u64) -> UnitRecord {
    let mut scores = ScoreCounts::default();
    for candidate in 0..64u32 {
        let share = f64::from(candidate) / 64.0;
        scores.count("similarity", share);
        scores.count("judge", 4.0 * share);
    }
    let shard = ShardRecord {
        path: object_keys::shard(stage.job.as_str(), stage.stage.as_str(), number, 1),
        pairs: 60,
        size_bytes: 2_000_000 + number,
        sha256: format!("{number:064x}"),
    };
    let rejected = [(Rejection::SimilarityLow, 3), (Rejection::JudgeLow, 1)];
    let rejected = rejected.map(|(reason, count)| (reason.name().to_owned(), count)).into();
    UnitRecord {
        lease_generation: 1,
        state: UnitState::Done(UnitResult { shard, rejected, scores, exhausted: false }),
        ..UnitRecord::new(stage, number)
    }
}

async fn lead(store: &str, units: u64) -> anyhow::Result<()> {
    let store = store.parse::<StoreLocation>()?.open(KEY_PREFIX, None).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (tasks, supervisor) = Tasks::new();
    let registry = Registry::new();
    let incoming = Incoming::new(listener, None, 64, ConnectionMetrics::register(&registry)?);
    let (config, access, drain) =
        (Config::new("file:///nowhere"), AccessConfig::dev(), Drain::new(Duration::ZERO));
    let before = memory_mib("VmRSS")?;
    let controller = Controller { config, access, store: store.clone(), registry, address, drain };
    let start = Instant::now();
    controller.start(incoming, &tasks)?.leads().await?;
    let seconds = start.elapsed().as_secs_f64();
    let line = serde_json::json!({
        "bench": "load",
        "units": units,
        "seconds_to_lead": (seconds * 100.0).round() / 100.0,
        "memory_before_mib": before,
        "memory_mib": memory_mib("VmRSS")?,
        "peak_memory_mib": memory_mib("VmHWM")?,
    });
    println!("{line}");
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;
    store.close().await;
    Ok(())
}

/// A figure of this process's memory.
fn memory_mib(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("/proc/self/status has no {field}"))? / 1024)
}
