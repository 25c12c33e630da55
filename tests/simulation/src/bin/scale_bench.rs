//! A real controller under the load of a large cluster: a store that is full of jobs, thousands of node sessions over gRPC whose
//! gangs step, people who look, and submits on top. Prints a table.
//!
//! The controller is a process of its own, so that what it uses can be told from what plays the nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use crescendo_core::ids::{RequestId, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::records::{Record, RecordKey, Write};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::{records, v1};
use crescendo_simulation::fixtures;
use crescendo_store::{KEY_PREFIX, Store, StoreLocation, Txn};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const SLOTS: u32 = 8;
/// Sessions on one connection.
const SESSIONS: usize = 64;
/// As nodes are told by default, and as ranks report at least.
const HEARTBEAT: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(600);

/// Puts a controller under the load of a large cluster
#[derive(Parser, Clone)]
struct Args {
    /// Trainer nodes, of 8 GPUs each
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    #[arg(long, default_value_t = 40)]
    curators: usize,
    /// Jobs that run, on all GPUs together
    #[arg(long, default_value_t = 400)]
    running: usize,
    /// Jobs that wait
    #[arg(long, default_value_t = 2000)]
    queued: usize,
    /// Jobs that have ended
    #[arg(long, default_value_t = 0)]
    ended: usize,
    /// Submits a second, whatever becomes of those before
    #[arg(long, default_value_t = 100)]
    submits: u32,
    /// Seconds of each part
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Store of the controller: `etcd:URL`; an embedded one if absent
    #[arg(long)]
    store: Option<String>,
    /// Program of the controller; the one beside this program if absent
    #[arg(long)]
    controller: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let location =
        args.store.clone().unwrap_or_else(|| format!("embedded:{}", folder.path().join("store").display()));
    let filled = fill(&args, &location).await?;
    println!("| what | figure |\n|---|---|\n| records in the store | {filled} |");

    let began = Instant::now();
    let controller = Controller::start(&args, &location)?;
    let channel = controller.ready().await?;
    row("until it answers, with the state read", format!("{:.2?}", began.elapsed()));
    row("memory then", controller.memory()?);

    let began = Instant::now();
    let cluster = connect(&args, &controller.address).await?;
    row("until every node has a session", format!("{:.2?}", began.elapsed()));
    let running = |cluster: &Cluster| cluster.started.load(Ordering::Relaxed);
    let mut placing = None;
    while running(&cluster) < args.running {
        ensure!(began.elapsed() < LIMIT, "{} of {} run", running(&cluster), args.running);
        if placing.is_none() && running(&cluster) > 0 {
            placing = Some((Instant::now(), running(&cluster)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some((since, first)) = placing {
        let count = (args.running - first) as f64;
        row(
            "gangs placed and told to start, a second",
            format!("{:.0}", count / since.elapsed().as_secs_f64()),
        );
    }
    tokio::time::sleep(HEARTBEAT * 2).await;

    let (cpu, began) = (controller.cpu()?, Instant::now());
    let looks = look(&channel, Duration::from_secs(args.seconds)).await?;
    let share = (controller.cpu()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    row("while nodes beat, gangs step and people look: CPU", format!("{:.0} % of a core", share * 100.0));
    for (what, times) in looks {
        row(what, percentiles(times));
    }
    row("memory then", controller.memory()?);
    let (cpu, began) = (controller.cpu()?, Instant::now());
    let times = submit(&args, &channel).await?;
    let share = (controller.cpu()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    row(&format!("{} submits a second on top, from when each was due", args.submits), percentiles(times));
    row("meanwhile: CPU", format!("{:.0} % of a core", share * 100.0));
    row("memory then", controller.memory()?);
    Ok(())
}

fn row(what: &str, figure: String) {
    println!("| {what} | {figure} |");
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at =
        |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied();
    match (at(50), at(99)) {
        (Some(p50), Some(p99)) => format!("p50 {p50:.1?}, p99 {p99:.1?} of {}", times.len()),
        _ => "none".to_owned(),
    }
}

/// Writes the jobs into the store before a controller reads it. How many records there are.
async fn fill(args: &Args, location: &str) -> Result<usize> {
    let store = location.parse::<StoreLocation>()?.open(KEY_PREFIX, None).await?;
    let mut state = ClusterState::default();
    let now = Timestamp(1_700_000_000_000);
    let each = u32::try_from(args.nodes * SLOTS as usize / args.running.max(1))?.clamp(1, 64);
    let mut count = 0;
    let mut batch: Vec<Record> = Vec::new();
    for number in 0..args.running + args.queued + args.ended {
        let gpus = if number >= args.running && number % 10 == 0 {
            64
        } else if number < args.running {
            each
        } else {
            8
        };
        let spec = spec::parse(fixtures::spec_yaml(gpus, number).as_bytes())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let json = serde_json::to_vec(&spec)?;
        let at = now.plus(Duration::from_millis(number as u64));
        let submitted = fixtures::submit(&state, RequestId::parse(&format!("r{number}"))?, spec, at)?;
        for write in submitted.writes {
            let Write::Put(mut record) = write else { continue };
            if let Record::Job(job) = &mut record {
                job.spec_json = Arc::from(json.clone());
                if number >= args.running + args.queued {
                    job.state = JobState::Succeeded;
                    job.finished_at = Some(at);
                }
            }
            state.apply(Write::Put(record.clone()))?;
            batch.push(record);
        }
        let stage = state.job(&submitted.job).and_then(|job| job.stages.first()).context("a stage")?;
        if number < args.running + args.queued && (number < args.running || number % 2 == 0) {
            batch.push(Record::Unit(fixtures::all_pairs(&stage.id, 8000)));
        }
        if batch.len() >= 90 {
            count += put(store.as_ref(), std::mem::take(&mut batch)).await?;
        }
    }
    count += put(store.as_ref(), batch).await?;
    store.close().await;
    Ok(count)
}

async fn put(store: &dyn Store, batch: Vec<Record>) -> Result<usize> {
    let written: BTreeMap<RecordKey, Vec<u8>> =
        batch.iter().map(|record| (record.key(), records::encode(record))).collect();
    let count = written.len();
    let txn = written.into_iter().fold(Txn::new(), |txn, (key, value)| txn.put(key.to_string(), value));
    if count > 0 {
        store.txn(txn).await?;
    }
    Ok(count)
}

struct Controller {
    process: Child,
    address: String,
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Controller {
    fn start(args: &Args, location: &str) -> Result<Self> {
        let beside = std::env::current_exe()?.with_file_name("crescendo-controller");
        let program = args.controller.clone().unwrap_or(beside);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let process = Command::new(&program)
            .args(["--dev", "--listen", &address, "--metrics-listen", "127.0.0.1:0"])
            .args(["--store", location, "--object-store", "file:///nowhere"])
            .args(["--max-nodes", "20000", "--max-open-jobs", "100000"])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { process, address })
    }

    async fn ready(&self) -> Result<Channel> {
        let began = Instant::now();
        loop {
            ensure!(began.elapsed() < LIMIT, "the controller does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Ok(channel) = Endpoint::from_shared(format!("http://{}", self.address))?.connect().await
            else {
                continue;
            };
            let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
            if JobServiceClient::new(channel.clone()).list_jobs(request).await.is_ok() {
                return Ok(channel);
            }
        }
    }

    fn stat(&self, file: &str) -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id()))?)
    }

    fn memory(&self) -> Result<String> {
        let status = self.stat("status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok(format!("{:.0} MiB", kib / 1024.0))
    }

    /// Time that it has used, in user and kernel.
    fn cpu(&self) -> Result<Duration> {
        let stat = self.stat("stat")?;
        let rest = stat.rsplit(')').next().context("fields")?;
        let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }
}

/// The nodes that are played.
struct Cluster {
    /// Gangs of which rank 0 was started.
    started: Arc<AtomicUsize>,
    _nodes: JoinSet<()>,
}

async fn connect(args: &Args, address: &str) -> Result<Cluster> {
    let started = Arc::new(AtomicUsize::new(0));
    let (opened, mut open) = mpsc::channel::<()>(1024);
    let mut nodes = JoinSet::new();
    let names = (0..args.nodes).map(|n| (format!("t{n:05}"), v1::NodeKind::Trainer));
    let names: Vec<_> =
        names.chain((0..args.curators).map(|n| (format!("c{n:05}"), v1::NodeKind::Curator))).collect();
    for group in names.chunks(SESSIONS) {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        for (name, kind) in group {
            let node =
                Node { name: name.clone(), kind: *kind, started: started.clone(), running: Vec::new() };
            nodes.spawn(node.live(channel.clone(), opened.clone()));
        }
    }
    for _ in 0..names.len() {
        tokio::time::timeout(LIMIT, open.recv()).await?;
    }
    Ok(Cluster { started, _nodes: nodes })
}

struct Node {
    name: String,
    kind: v1::NodeKind,
    started: Arc<AtomicUsize>,
    /// Attempts that run here, with their ranks here, and the step.
    running: Vec<(v1::AttemptRef, Vec<u32>, u64)>,
}

impl Node {
    async fn live(mut self, channel: Channel, opened: mpsc::Sender<()>) {
        let mut opened = Some(opened);
        loop {
            if let Err(error) = self.session(channel.clone(), &mut opened).await {
                eprintln!("{}: {error:#}", self.name);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn session(&mut self, channel: Channel, opened: &mut Option<mpsc::Sender<()>>) -> Result<()> {
        let (up, outgoing) = mpsc::channel(64);
        let hello = v1::Hello {
            node_id: self.name.clone(),
            incarnation: "i".into(),
            kind: self.kind.into(),
            slots: if self.kind == v1::NodeKind::Trainer { SLOTS } else { 0 },
            device: "cuda".into(),
            address: format!("{}:1", self.name),
            version: "0".into(),
            running: self.running.iter().map(|(attempt, ..)| attempt.clone()).collect(),
            ..Default::default()
        };
        send(&up, Up::Hello(hello)).await?;
        let mut client = NodeServiceClient::new(channel);
        let mut down = client.open_session(ReceiverStream::new(outgoing)).await?.into_inner();
        // Nodes began at some time, each at its own.
        let spread = self.name.bytes().fold(0u64, |sum, byte| sum * 31 + u64::from(byte)) % 2000;
        let mut beat =
            tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_millis(spread), HEARTBEAT);
        loop {
            tokio::select! {
                message = down.message() => match message?.context("the session ended")?.message {
                    Some(Down::Welcome(_)) => {
                        if let Some(opened) = opened.take() {
                            opened.send(()).await?;
                        }
                    }
                    Some(Down::StartAttempt(start)) => self.start(start, &up).await?,
                    Some(Down::StopAttempt(stop)) => {
                        if let Some(attempt) = stop.attempt {
                            self.running.retain(|(known, ..)| *known != attempt);
                            send(&up, report(&attempt, v1::AttemptPhase::Stopped, &[], 0)).await?;
                        }
                    }
                    Some(_) | None => {}
                },
                _ = beat.tick() => {
                    send(&up, Up::Heartbeat(v1::Heartbeat::default())).await?;
                    for (attempt, ranks, step) in &mut self.running {
                        *step += 1;
                        send(&up, report(attempt, v1::AttemptPhase::Running, ranks, *step)).await?;
                    }
                }
            }
        }
    }

    async fn start(
        &mut self,
        start: v1::StartAttempt,
        up: &mpsc::Sender<v1::OpenSessionRequest>,
    ) -> Result<()> {
        let Some(attempt) = start.attempt else { return Ok(()) };
        if self.running.iter().any(|(known, ..)| *known == attempt) {
            return Ok(());
        }
        let here = start.ranks.iter().filter(|rank| rank.node_id == self.name).map(|rank| rank.rank);
        let here: Vec<u32> = here.collect();
        if here.contains(&0) {
            self.started.fetch_add(1, Ordering::Relaxed);
        }
        send(up, report(&attempt, v1::AttemptPhase::Running, &here, 1)).await?;
        self.running.push((attempt, here, 1));
        Ok(())
    }
}

async fn send(up: &mpsc::Sender<v1::OpenSessionRequest>, message: Up) -> Result<()> {
    Ok(up.send(v1::OpenSessionRequest { message: Some(message) }).await?)
}

fn report(attempt: &v1::AttemptRef, phase: v1::AttemptPhase, ranks: &[u32], step: u64) -> Up {
    let rank = |rank: &u32| v1::RankStatus {
        rank: *rank,
        phase: v1::RankPhase::Forward.into(),
        step,
        moves: step * 8,
        beats: step * 2,
        steps_done: step,
        step_seconds: 2.0,
        own_seconds: 1.9,
    };
    Up::AttemptReport(v1::AttemptReport {
        attempt: Some(attempt.clone()),
        phase: phase.into(),
        step,
        loss: 0.5,
        samples_per_sec: 4.0,
        failed_rank: -1,
        ranks: ranks.iter().map(rank).collect(),
        ..Default::default()
    })
}

/// People look, twice a second each.
async fn look(channel: &Channel, limit: Duration) -> Result<Vec<(&'static str, Vec<Duration>)>> {
    let mut client = JobServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let page = v1::ListJobsRequest { page_size: 100, ..Default::default() };
    let jobs = client.list_jobs(page.clone()).await?.into_inner().jobs;
    let (mut listed, mut explained, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    let mut at = jobs.iter().cycle();
    while began.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = Instant::now();
        client.list_jobs(page.clone()).await?;
        listed.push(asked.elapsed());
        let asked = Instant::now();
        let job_id = at.next().context("a job")?.job_id.clone();
        client.explain_job(v1::ExplainJobRequest { job_id }).await?;
        explained.push(asked.elapsed());
        let asked = Instant::now();
        let mut client = NodeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        client.list_nodes(v1::ListNodesRequest::default()).await?;
        nodes.push(asked.elapsed());
    }
    Ok(vec![("`jobs`, a page of 100", listed), ("`explain`", explained), ("`nodes`", nodes)])
}

async fn submit(args: &Args, channel: &Channel) -> Result<Vec<Duration>> {
    let every = Duration::from_secs(1) / args.submits.max(1);
    let count = u64::from(args.submits) * args.seconds;
    let began = tokio::time::Instant::now();
    let mut calls = JoinSet::new();
    for number in 0..count {
        let due = began + every * u32::try_from(number)?;
        let mut client = JobServiceClient::new(channel.clone());
        let number = usize::try_from(number)?;
        calls.spawn(async move {
            tokio::time::sleep_until(due).await;
            let request = v1::SubmitJobRequest {
                request_id: format!("late-{number}"),
                spec_yaml: fixtures::spec_yaml(8, number).into_bytes(),
                validate_only: false,
            };
            client.submit_job(request).await?;
            anyhow::Ok(due.elapsed())
        });
    }
    let mut times = Vec::new();
    while let Some(done) = calls.join_next().await {
        times.push(done??);
    }
    Ok(times)
}
