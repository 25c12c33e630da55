//! Submits per second, and how long one takes, against a controller with everything that a real one has: parsing, the
//! engine, a durable store. One JSON line for each store.

use std::net::TcpListener as StdListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use crescendo_controller::access::AccessConfig;
use crescendo_controller::{Config, Controller};
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::tls::{ConnectionMetrics, Incoming};
use crescendo_proto::v1;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_store::{KEY_PREFIX, StoreLocation};
use prometheus::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: bench}
spec:
  model: {preset: nano, weights: base.safetensors}
  resources: {gpus: 2}
  stages:
    - name: stage-1
      references: 1
      data: {source: compose, subjects: subjects, pairs: 64}
      train: {adapter: {rank: 64}, steps: 100, globalBatch: 32}
";
/// Limit of one submit, and of the start of an etcd.
const LIMIT: Duration = Duration::from_secs(30);

/// Measures how fast a controller takes jobs
#[derive(Parser)]
struct Args {
    /// Address of a controller that runs already, instead of one of this process on each store
    #[arg(long)]
    controller: Option<String>,
    /// Store of the controller of this process, instead of an embedded one and an etcd of its own, one after the other
    #[arg(long)]
    store: Option<String>,
    /// Program that the etcd is started with
    #[arg(long, env = "CRESCENDO_ETCD", default_value = "etcd")]
    etcd: String,
    /// Jobs to submit
    #[arg(long, default_value_t = 4000)]
    jobs: u64,
    /// Callers that submit at a time
    #[arg(long, default_value_t = 64)]
    writers: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(address) = &args.controller {
        return measure(&args, "running", address).await;
    }
    if let Some(store) = &args.store {
        let name = store.split(':').next().unwrap_or("store").to_owned();
        return on_store(&args, &name, store).await;
    }
    let folder = tempfile::tempdir()?;
    on_store(&args, "embedded", &format!("embedded:{}", folder.path().display())).await?;
    let folder = tempfile::tempdir()?;
    let (etcd, endpoint) = start_etcd(&args.etcd, folder.path()).await?;
    let measured = on_store(&args, "etcd", &format!("etcd:{endpoint}")).await;
    drop(etcd);
    measured
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An etcd of one member with its usual settings; ends with the handle.
async fn start_etcd(program: &str, folder: &std::path::Path) -> anyhow::Result<(Killed, String)> {
    let free_port = || -> anyhow::Result<u16> { Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let client = format!("http://127.0.0.1:{}", free_port()?);
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let child = Command::new(program)
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let etcd = Killed(child);
    let start = Instant::now();
    while TcpStream::connect(client.trim_start_matches("http://")).await.is_err() {
        ensure!(start.elapsed() < LIMIT, "{program} does not listen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((etcd, client))
}

/// Measures a controller of this process, over a real socket.
async fn on_store(args: &Args, name: &str, location: &str) -> anyhow::Result<()> {
    let store = location.parse::<StoreLocation>()?.open(KEY_PREFIX, None).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (tasks, supervisor) = Tasks::new();
    let mut config = Config::new("file:///nowhere");
    config.queue.max_open_jobs = usize::MAX;
    let registry = Registry::new();
    let incoming = Incoming::new(listener, None, 64, ConnectionMetrics::register(&registry)?);
    let access = AccessConfig::dev();
    let drain = Drain::new(Duration::ZERO);
    let controller =
        Controller { config, access, store: store.clone(), registry, address: address.clone(), drain };
    controller.start(incoming, &tasks)?.leads().await?;
    measure(args, name, &address).await?;
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;
    store.close().await;
    Ok(())
}

async fn measure(args: &Args, store: &str, address: &str) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.timeout(LIMIT).connect().await?;
    let next = Arc::new(AtomicU64::new(0));
    let run = uuid::Uuid::new_v4().simple().to_string();
    let start = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..args.writers.max(1) {
        let mut client = JobServiceClient::new(channel.clone());
        let (next, run, jobs) = (next.clone(), run.clone(), args.jobs);
        writers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= jobs {
                    return anyhow::Ok(times);
                }
                let request = v1::SubmitJobRequest {
                    request_id: format!("{run}-{n}"),
                    spec_yaml: SPEC.into(),
                    validate_only: false,
                };
                let begun = Instant::now();
                let answer = client.submit_job(request).await.context("submit a job")?.into_inner();
                times.push(begun.elapsed());
                ensure!(!answer.already_submitted, "a fresh request id was known");
            }
        });
    }
    let mut times = Vec::new();
    while let Some(done) = writers.join_next().await {
        times.extend(done??);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let percentile_ms = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        let time = times.get(index).copied().unwrap_or_default();
        (time.as_secs_f64() * 100_000.0).round() / 100.0
    };
    let count = u32::try_from(times.len()).context("count the submits")?;
    let line = serde_json::json!({
        "bench": "submit",
        "store": store,
        "jobs": count,
        "writers": args.writers,
        "submits_per_sec": (f64::from(count) / seconds).round(),
        "p50_ms": percentile_ms(50),
        "p99_ms": percentile_ms(99),
    });
    println!("{line}");
    Ok(())
}
