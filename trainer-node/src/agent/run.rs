//! The agent's loop: carries events to the table and its effects out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use clap::Args;
use crescendo_device::{DeviceChoice, Gpus};
use crescendo_model::speed;
use crescendo_node::runtime::args::{NodeArgs, ServerArgs};
use crescendo_node::runtime::server::{Process, serve_nodes};
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::session::call::Controllers;
use crescendo_node::session::health::HealthReport;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::store_watch::{NamedRoot, watch_store};
use crescendo_node::session::{Command, Computes, NodeSession, introduction, measured};
use crescendo_node::telemetry::gpu;
use crescendo_node::telemetry::log_archive;
use crescendo_node::telemetry::log_shipping::{DEFAULT_CAPACITY, LogBuffer};
use crescendo_node::tls::ClientCertificates;
use crescendo_proto::v1::agent_service_server::AgentServiceServer;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::open_rank_session_request::Message as Up;
use crescendo_proto::v1::open_rank_session_response::Message as Down;
use crescendo_proto::v1::{
    AttemptRef, Checkpoint, CommitCheckpointRequest, Hello, MarkCheckpointDamagedRequest, NodeKind,
    OpenRankSessionResponse, RankAssignment, RankCheckpoint, RankCheckpointOutcome, RankDamage, RankDrain,
    RankPeerLost, RankPhase, RankStop, StuckSlot,
};
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument as _;

use super::departure::{self, Unregistered};
use super::environment;
use super::event::{Event, RankSender};
use super::lines;
use super::metrics::{Counted, Metrics};
use super::process::{self, RankCommand};
use super::rendezvous::Rendezvous;
use super::service::Service;
use super::threads;
use crate::kernel_choice::KernelChoice;
use crescendo_attempts::{AttemptTable, Effect, KillSignal, RankKey};

/// Events that wait for the loop at most.
const EVENTS: usize = 256;
/// Pace of checks for ranks that do not stop.
const TICK: Duration = Duration::from_millis(250);
/// Limit of one try to reach the controller.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of the ranks' end when the agent stops.
const RANKS_GRACE: Duration = Duration::from_secs(5);
/// Limit of reading where a rank's threads stand.
const NOTE_WITHIN: Duration = Duration::from_secs(1);
/// Limit of reading what a dead rank has written.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Why ranks are drained when this process is asked to stop.
const LEAVING: &str = "the node drains";
/// Limit of the whole process's end.
const GRACE: Duration = Duration::from_secs(9);

/// Arguments of `agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub node: NodeArgs,
    /// Ranks that fit here; with GPUs at most one for each, and all of them if absent
    #[arg(long, env = "CRESCENDO_SLOTS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// Host name or address at which ranks of other nodes reach those here; --advertise-host if absent
    #[arg(long, env = "CRESCENDO_RANK_HOST")]
    pub rank_host: Option<String>,
    /// What ranks train on
    #[arg(long, env = "CRESCENDO_DEVICE", value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Threads for the arithmetic of one CPU rank
    #[arg(long, env = "CRESCENDO_THREADS_PER_RANK", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads_per_rank: u32,
    /// What runs blocks between matrix products; the same on all nodes that share gangs, or their weights drift apart
    #[arg(long, env = "CRESCENDO_KERNELS", value_enum, default_value_t)]
    pub kernels: KernelChoice,
    /// Peak of one device in dense bfloat16, 10^12 operations a second; known for the H100, H200 and A100 if absent
    #[arg(long, env = "CRESCENDO_PEAK_TFLOPS", value_parser = parse_peak_tflops)]
    pub peak_tflops: Option<f64>,
    /// Folder for files that are only needed while training; must have room for --cache-gib
    #[arg(long, env = "CRESCENDO_SCRATCH")]
    pub scratch: PathBuf,
    /// Room in the scratch folder for base weights and checkpoints of the object store, which all ranks here share, GiB
    #[arg(long, env = "CRESCENDO_CACHE_GIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub cache_gib: u64,
}

/// Runs the agent until it is told to stop. Must be called on the main thread, in a single-threaded runtime: ranks are
/// tied to the thread that starts them.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let logs = LogBuffer::new(&args.node.node_id, DEFAULT_CAPACITY).keeping();
    let process =
        Process::start("crescendo-trainer-node", &args.node.node_id, &args.server, Some(&logs)).await?;
    let (process, drain) = process.draining(args.node.drain_within());
    let (tasks, registry) = (process.tasks.clone(), process.registry.clone());
    tasks.spawn(log_archive::run(logs.clone(), tasks.stop_token()));
    let (cuda, slots) = devices(&args)?;
    std::fs::create_dir_all(&args.scratch).with_context(|| format!("create {}", args.scratch.display()))?;
    let library_root = std::path::absolute(&args.node.library_root).context("resolve --library-root")?;
    let scratch = std::path::absolute(&args.scratch).context("resolve --scratch")?;
    let health = HealthReport::default();
    let gpus = if cuda { watch_gpus(&registry, &health, &tasks)? } else { Vec::new() };
    let of_gpu = cuda.then(|| gpus.first().map_or("", String::as_str));
    let arithmetic = measured(speed::of_node(of_gpu, args.threads_per_rank, args.kernels.into()));
    let metrics = Metrics::register(&registry, peaks(args.peak_tflops, &gpus, slots))?;

    let controllers = Controllers::new(&args.node.controller, &process.security.dialer())?;
    let nodes_only = process.security.nodes_only();
    let (server, incoming) = process.listen(ClientCertificates::Required).await?;
    let grpc = server.grpc_at;
    let (events, inbox) = mpsc::channel(EVENTS);
    let (running, running_now) = watch::channel(Vec::new());
    let reports = ReportSink::default();
    let (device, device_memory_bytes) = if cuda { ("cuda", smallest_memory(slots)) } else { ("cpu", None) };
    let computes = Computes { slots, device, arithmetic: &arithmetic, device_memory_bytes };
    let identity = introduction(&args.node, NodeKind::Trainer, server.address(), computes);
    let left = departure::read(&scratch);
    let hello =
        move || Hello { running: running_now.borrow().clone(), left: left.clone(), ..identity.clone() };
    let (session, commands) = NodeSession::new(controllers.clone(), reports.clone(), logs.clone(), hello);
    let root = NamedRoot::default();
    let session = session.draining(drain.clone()).health(health.clone()).root(root.clone());
    tasks.spawn(watch_store(root, health.clone(), tasks.stop_token()));
    tasks.spawn_critical("session", session.run(tasks.stop_token()));
    tasks.spawn(hand_on(commands, events.clone()));

    let rendezvous = Arc::<Rendezvous>::default();
    let service =
        Service { events: events.clone(), rendezvous: Arc::clone(&rendezvous), tasks: tasks.clone() };
    let serving = serve_nodes(AgentServiceServer::new(service), nodes_only, incoming, tasks.stop_token());
    tasks.spawn_critical("grpc server", serving);
    let (rank_host, advertised) = (args.rank_host.as_deref(), args.server.advertise_host.as_deref());
    let bind_ip = rank_ip(grpc.ip(), rank_host, advertised).await?;
    let agent = Agent {
        table: AttemptTable::new(args.node.node_id.clone(), slots),
        command: RankCommand {
            program: std::env::current_exe().context("find this program's file")?,
            agent: reachable(grpc.ip(), grpc.port()),
            cuda,
            threads: args.threads_per_rank,
            kernels: args.kernels,
            bind_ip,
            environment: environment::of_ranks(cuda, bind_ip),
            scratch,
            cache_gib: args.cache_gib,
            library_root,
            log_filter: args.server.log.log_filter.clone(),
            trace: args.server.log.trace.clone(),
            security: args.server.security.clone(),
        },
        ranks: BTreeMap::new(),
        controllers,
        rendezvous,
        reports,
        running,
        metrics,
        logs,
        events,
        tasks: tasks.clone(),
        drain,
        unregistered: Unregistered::default(),
        health,
    };
    tasks.spawn_critical("agent", agent.run(inbox, tasks.stop_token()));
    tracing::info!(slots, cuda, "the agent takes ranks");
    Ok(server.run(GRACE).await?)
}

/// Hands the controller's commands to the loop.
async fn hand_on(mut commands: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    while let Some(command) = commands.recv().await {
        if events.send(Event::Command(command)).await.is_err() {
            break;
        }
    }
}

/// Watches the GPUs; what they come to is told to the controller. Gives their names.
fn watch_gpus(registry: &Registry, health: &HealthReport, tasks: &Tasks) -> anyhow::Result<Vec<String>> {
    let health = health.clone();
    let told =
        Box::new(move |fault: &str| health.update(|health| fault.clone_into(&mut health.device_fault)));
    Ok(gpu::watch_if_there(registry, told, tasks.stop_token())?)
}

fn devices(args: &AgentArgs) -> anyhow::Result<(bool, u32)> {
    let Gpus { count, passed_over } = args.device.gpus()?;
    if let Some(error) = passed_over {
        tracing::warn!(%error, "ranks compute on the CPU");
    }
    match (count, args.slots) {
        (0, slots) => Ok((false, slots.unwrap_or(1))),
        (gpus, None) => Ok((true, gpus)),
        (gpus, Some(slots)) if slots <= gpus => Ok((true, slots)),
        (gpus, Some(slots)) => anyhow::bail!("--slots {slots}: this machine has {gpus} GPUs"),
    }
}

/// Memory of the smallest GPU that ranks get here. None if one cannot be asked: then the controller goes by no memory.
fn smallest_memory(slots: u32) -> Option<u64> {
    let each = (0..slots as usize).map(crescendo_device::cuda::total_bytes);
    match each.collect::<Result<Vec<u64>, _>>() {
        Ok(each) => each.into_iter().min(),
        Err(error) => {
            tracing::warn!(%error, "the memory of a GPU is not known, so that jobs may be placed here which do not fit");
            None
        }
    }
}

fn parse_peak_tflops(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(peak) if peak > 0.0 && f64::is_finite(peak) => Ok(peak),
        _ => Err("must be a number above 0".into()),
    }
}

/// Operations a second that each slot's device can do at most: as given, or by the names of the GPUs.
fn peaks(given_tflops: Option<f64>, gpus: &[String], slots: u32) -> Vec<Option<f64>> {
    let known = |slot: u32| gpus.get(slot as usize).and_then(|name| gpu::known_peak_flops_per_sec(name));
    (0..slots).map(|slot| given_tflops.map(|peak| peak * 1e12).or_else(|| known(slot))).collect()
}

/// Ranks of this node reach the agent over loopback when it listens everywhere.
fn reachable(ip: IpAddr, port: u16) -> String {
    let ip = if ip.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { ip };
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Address at which ranks of other nodes reach those here.
async fn rank_ip(
    listen: IpAddr,
    rank_host: Option<&str>,
    advertise_host: Option<&str>,
) -> anyhow::Result<IpAddr> {
    let (flag, host) = match (rank_host, advertise_host) {
        (Some(host), _) => ("--rank-host", host),
        (None, _) if !listen.is_unspecified() => return Ok(listen),
        (None, Some(host)) => ("--advertise-host", host),
        (None, None) => return Ok(IpAddr::from([127, 0, 0, 1])),
    };
    let mut found =
        tokio::net::lookup_host((host, 0)).await.with_context(|| format!("resolve {flag} {host}"))?;
    found.next().map(|address| address.ip()).with_context(|| format!("{flag} {host} has no address"))
}

/// A rank process as the shell knows it.
struct RankHandle {
    slot: u32,
    pid: Option<u32>,
    /// For the task that owns the process.
    orders: mpsc::Sender<Order>,
    /// Its session, once it is open.
    down: Option<RankSender>,
    /// What it had counted when it last said so.
    counted: Counted,
}

/// What is done to a rank's process.
#[derive(Clone, Copy, Debug)]
enum Order {
    Signal(KillSignal),
    /// Where its threads stand goes into its log, then it is killed.
    KillHung,
}

struct Agent {
    table: AttemptTable,
    command: RankCommand,
    ranks: BTreeMap<RankKey, RankHandle>,
    controllers: Controllers,
    rendezvous: Arc<Rendezvous>,
    reports: ReportSink,
    running: watch::Sender<Vec<AttemptRef>>,
    metrics: Metrics,
    logs: LogBuffer,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
    drain: Drain,
    unregistered: Unregistered,
    health: HealthReport,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        let mut stopping: Option<Instant> = None;
        let (asked, mut leaving) = (self.drain.asked(), false);
        loop {
            let effects = tokio::select! {
                () = stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now());
                    self.table.on_shutdown(Instant::now())
                }
                () = asked.cancelled(), if !leaving => {
                    leaving = true;
                    self.table.on_leaving(LEAVING)
                }
                _ = tick.tick() => {
                    self.metrics.log_lines_dropped(self.logs.dropped_lines());
                    self.table.on_tick(Instant::now())
                }
                event = inbox.recv() => match event {
                    Some(event) if stopping.is_some() && matches!(event, Event::Command(_)) => Vec::new(),
                    Some(event) => self.take(event),
                    None => return Ok(()),
                },
            };
            for effect in effects {
                self.apply(effect);
            }
            let stuck: Vec<u32> = self.table.stuck().collect();
            self.health.update(|health| health.stuck_slots.retain(|held| stuck.contains(&held.slot)));
            let running = self.table.running();
            self.running.send_if_modified(|now| {
                let changed = *now != running;
                *now = running;
                changed
            });
            if leaving && self.table.is_idle() {
                self.drain.finish();
            }
            if let Some(since) = stopping
                && (!self.table.any_alive() || since.elapsed() >= RANKS_GRACE)
            {
                for rank in self.ranks.keys() {
                    self.order(rank, Order::Signal(KillSignal::Kill));
                }
                departure::write(&self.command.scratch, self.unregistered.of(self.table.left()));
                return Ok(());
            }
        }
    }

    fn take(&mut self, event: Event) -> Vec<Effect> {
        let now = Instant::now();
        match event {
            Event::Command(Command::StartAttempt(start)) => {
                if let Some(attempt) = &start.attempt
                    && let Err(status) = self.rendezvous.open(attempt)
                {
                    tracing::debug!(reason = status.message(), "an old attempt was to be started");
                }
                match self.health.now().store_fault {
                    fault if fault.is_empty() => self.table.on_start(*start, now),
                    fault => {
                        let reason = format!("the object store cannot be used from this node: {fault}");
                        self.table.on_refused(*start, reason)
                    }
                }
            }
            Event::Command(Command::StopAttempt(stop)) => self.table.on_stop(&stop, now),
            Event::Command(Command::DrainAttempt(drain)) => self.table.on_drain_attempt(drain),
            Event::Command(Command::RescueAttempt(rescue)) => self.table.on_rescue_attempt(rescue),
            Event::Command(Command::UpdateCurators(update)) => self.table.on_update_curators(update),
            Event::Command(
                Command::AssignCuration(_)
                | Command::ReleaseCuration(_)
                | Command::ReadObject(_)
                | Command::ReadStoredPairs(_)
                | Command::CollectObjects(_)
                | Command::DrawSamples(_),
            ) => {
                tracing::warn!("a command for curators came to a trainer");
                Vec::new()
            }
            Event::RankConnected { rank, pid, down } => {
                let span = rank_span(&rank);
                let _entered = span.enter();
                match (self.table.on_hello(&rank), self.ranks.get_mut(&rank)) {
                    (Some(effect), Some(handle)) => {
                        tracing::debug!(pid, "rank is connected");
                        handle.down = Some(down);
                        vec![effect]
                    }
                    _ => {
                        let _ =
                            down.try_send(Err(Status::failed_precondition("this rank is not wanted here")));
                        Vec::new()
                    }
                }
            }
            Event::RankMessage { rank, message } => self.rank_message(&rank, *message, now),
            Event::RankDisconnected { rank } => {
                if let Some(handle) = self.ranks.get_mut(&rank) {
                    handle.down = None;
                }
                Vec::new()
            }
            Event::RankExited { rank, success, status } => {
                if let Some(handle) = self.ranks.remove(&rank) {
                    self.metrics.rank_gone(handle.slot);
                }
                self.metrics.ranks_running.set(i64::try_from(self.ranks.len()).unwrap_or(i64::MAX));
                rank_span(&rank).in_scope(|| tracing::info!(status, "rank has exited"));
                self.table.on_exit(&rank, success, &status, now)
            }
            Event::CommitDecided { rank, outcome } => {
                let slot = self.ranks.get(&rank).map(|handle| handle.slot);
                self.metrics.checkpoint_decided(slot, outcome.stale, SystemTime::now());
                self.unregistered.decided(&rank.job_id, &rank.stage, outcome.step);
                self.tell(&rank, Down::CheckpointOutcome(outcome));
                Vec::new()
            }
            Event::MarkDecided { rank } => self.table.on_marked(&rank),
        }
    }

    fn rank_message(&mut self, rank: &RankKey, message: Up, now: Instant) -> Vec<Effect> {
        match message {
            Up::Hello(_) => Vec::new(),
            Up::Progress(progress) => {
                // Before its first step a rank has no numbers: those of the attempt before stay.
                let has_numbers = !matches!(progress.phase(), RankPhase::Loading | RankPhase::Meeting);
                if let Some(handle) = self.ranks.get_mut(rank).filter(|_| has_numbers) {
                    self.metrics.progress(handle.slot, &progress, &mut handle.counted);
                }
                self.table.on_progress(rank, progress)
            }
            Up::Checkpoint(RankCheckpoint { checkpoint, write_seconds }) => {
                self.metrics.checkpoint_write_seconds.observe(write_seconds);
                if let Some(checkpoint) = checkpoint {
                    self.unregistered.put(checkpoint.clone());
                    self.commit(rank.clone(), checkpoint);
                }
                Vec::new()
            }
            Up::Damage(damage) => {
                self.metrics.checkpoints_damaged.inc();
                self.table.on_damage(rank);
                self.mark(rank.clone(), damage);
                Vec::new()
            }
            Up::End(end) => {
                if !end.ok {
                    self.metrics.rank_failures.inc();
                }
                // The session ends with this: the rank waits for that.
                if let Some(handle) = self.ranks.get_mut(rank) {
                    handle.down = None;
                }
                self.table.on_end(rank, end, now)
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { rank, slot } => self.spawn(rank, slot),
            Effect::Assign { rank, start, slot } => {
                let assignment = RankAssignment { start: Some(*start), rank: rank.rank, device_index: slot };
                self.tell(&rank, Down::Assignment(assignment));
            }
            Effect::Stop { rank, reason } => {
                if !self.tell(&rank, Down::Stop(RankStop { reason })) {
                    self.order(&rank, Order::Signal(KillSignal::Kill));
                }
            }
            Effect::Drain { rank, reason } => {
                tracing::info!(
                    job = rank.job_id,
                    stage = rank.stage,
                    rank = rank.rank,
                    reason,
                    "rank is to save a checkpoint and leave"
                );
                self.tell(&rank, Down::Drain(RankDrain { reason }));
            }
            Effect::PeerLost { rank, reason, rank_0_lost } => {
                rank_span(&rank).in_scope(|| tracing::info!(reason, "another rank of the gang is gone"));
                // Without a session it sees so by itself, or is killed after a while.
                self.tell(&rank, Down::PeerLost(RankPeerLost { reason, rank_0_lost }));
            }
            Effect::UpdateCurators { rank, update } => {
                self.tell(&rank, Down::UpdateCurators(update));
            }
            Effect::Signal { rank, signal } => self.order(&rank, Order::Signal(signal)),
            Effect::KillHung { rank } => self.order(&rank, Order::KillHung),
            Effect::Stuck { rank, slot } => self.hold_slot(&rank, slot),
            Effect::Report(report) => {
                let phase = report.phase();
                self.metrics.attempt_ended(phase);
                if let Some(attempt) = &report.attempt
                    && phase != crescendo_proto::v1::AttemptPhase::Running
                {
                    tracing::info!(
                        job = attempt.job_id,
                        stage = attempt.stage,
                        generation = attempt.generation,
                        phase = phase.as_str_name(),
                        reason = report.reason,
                        "attempt"
                    );
                }
                self.reports.put(*report);
            }
        }
    }

    /// The rank does not die: the controller learns of its slot before it hears that the attempt is over.
    fn hold_slot(&self, rank: &RankKey, slot: u32) {
        let pid = self.ranks.get(rank).and_then(|handle| handle.pid);
        let stands = pid.and_then(threads::stand).unwrap_or_else(|| "where it stands cannot be read".into());
        let process = pid.map_or_else(|| "process unknown".into(), |pid| format!("process {pid}"));
        let what = format!(
            "rank {} of {}/{}, {process}, was killed and does not die: {stands}",
            rank.rank, rank.job_id, rank.stage
        );
        rank_span(rank).in_scope(|| tracing::error!(slot, "{what}; its slot is held until it does"));
        self.health.update(|health| health.stuck_slots.push(StuckSlot { slot, what }));
    }

    /// Hands a message to a rank; `false` if it has no session or reads nothing.
    fn tell(&mut self, rank: &RankKey, message: Down) -> bool {
        let response = OpenRankSessionResponse { message: Some(message) };
        let down = self.ranks.get(rank).and_then(|handle| handle.down.as_ref());
        down.is_some_and(|down| down.try_send(Ok(response)).is_ok())
    }

    fn order(&self, rank: &RankKey, order: Order) {
        if let Some(handle) = self.ranks.get(rank) {
            // Full: orders for this rank are under way already.
            let _ = handle.orders.try_send(order);
        }
    }

    fn spawn(&mut self, rank: RankKey, slot: u32) {
        let span = rank_span(&rank);
        let (orders, mut ordered) = mpsc::channel(4);
        self.metrics.rank_starts.inc();
        let child = self.command.spawn(&rank);
        let events = self.events.clone();
        let pid = child.as_ref().ok().and_then(tokio::process::Child::id);
        let handle = RankHandle { slot, pid, orders, down: None, counted: Counted::default() };
        self.ranks.insert(rank.clone(), handle);
        self.metrics.ranks_running.set(i64::try_from(self.ranks.len()).unwrap_or(i64::MAX));
        let watching = async move {
            let (success, status) = match child {
                Err(error) => (false, format!("cannot start the process: {error}")),
                Ok(mut child) => {
                    tracing::info!(slot, pid = child.id(), "rank is started");
                    let mut output = JoinSet::new();
                    if let Some(stdout) = child.stdout.take() {
                        output.spawn(lines::log(stdout, tracing::Level::INFO).in_current_span());
                    }
                    if let Some(stderr) = child.stderr.take() {
                        output.spawn(lines::log(stderr, tracing::Level::WARN).in_current_span());
                    }
                    let status = loop {
                        tokio::select! {
                            status = child.wait() => break status,
                            Some(order) = ordered.recv() => match order {
                                Order::Signal(signal) => process::signal(&child, signal),
                                Order::KillHung => {
                                    note_threads(child.id()).await;
                                    process::signal(&child, KillSignal::Kill);
                                }
                            },
                        }
                    };
                    // The last lines come before the exit is told, unless someone else holds the pipes open.
                    let drained = async { while output.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(DRAIN_GRACE, drained).await;
                    match status {
                        Ok(status) => (status.success(), process::describe(status)),
                        Err(error) => (false, format!("cannot wait for the process: {error}")),
                    }
                }
            };
            let _ = events.send(Event::RankExited { rank, success, status }).await;
        };
        self.tasks.spawn(watching.instrument(span));
    }

    fn commit(&self, rank: RankKey, checkpoint: Checkpoint) {
        let (controllers, events, stop) =
            (self.controllers.clone(), self.events.clone(), self.tasks.stop_token());
        let span = rank_span(&rank);
        let call = async move {
            let step = checkpoint.step;
            let request = CommitCheckpointRequest { checkpoint: Some(checkpoint) };
            let decided = controllers
                .call_until_decided("commit checkpoint", CALL_TIMEOUT, &stop, |channel| {
                    let request = request.clone();
                    async move { CheckpointServiceClient::new(channel).commit_checkpoint(request).await }
                })
                .await;
            let outcome = match decided {
                Ok(response) => RankCheckpointOutcome { step, stale: false, expired: response.expired },
                Err(status) if status.code() == Code::Cancelled => return,
                Err(status) => {
                    tracing::warn!(step, %status, "checkpoint is refused");
                    RankCheckpointOutcome { step, stale: true, expired: Vec::new() }
                }
            };
            let _ = events.send(Event::CommitDecided { rank, outcome }).await;
        };
        self.tasks.spawn(call.instrument(span));
    }

    fn mark(&self, rank: RankKey, damage: RankDamage) {
        let (controllers, events, stop) =
            (self.controllers.clone(), self.events.clone(), self.tasks.stop_token());
        let span = rank_span(&rank);
        let call = async move {
            let request = MarkCheckpointDamagedRequest {
                job_id: rank.job_id.clone(),
                stage: rank.stage.clone(),
                generation: rank.generation,
                path: damage.path,
                reason: damage.reason,
            };
            let decided = controllers
                .call_until_decided("mark checkpoint damaged", CALL_TIMEOUT, &stop, |channel| {
                    let request = request.clone();
                    async move { CheckpointServiceClient::new(channel).mark_checkpoint_damaged(request).await }
                })
                .await;
            if let Err(status) = decided {
                tracing::warn!(path = request.path, %status, "the damaged checkpoint is not marked");
            }
            let _ = events.send(Event::MarkDecided { rank }).await;
        };
        self.tasks.spawn(call.instrument(span));
    }
}

/// Writes into a rank's log where its threads stand.
async fn note_threads(pid: Option<u32>) {
    let Some(pid) = pid else { return };
    let reading = tokio::task::spawn_blocking(move || threads::of(pid));
    match tokio::time::timeout(NOTE_WITHIN, reading).await {
        Ok(Ok(lines)) => {
            tracing::error!(pid, threads = lines.len(), "the rank hangs and is killed; its threads:");
            lines.iter().for_each(|line| tracing::error!("{line}"));
        }
        Ok(Err(_)) | Err(_) => {
            tracing::error!(pid, "the rank hangs and is killed; its threads cannot be read")
        }
    }
}

fn rank_span(rank: &RankKey) -> tracing::Span {
    tracing::info_span!(
        "rank",
        job = rank.job_id,
        stage = rank.stage,
        generation = rank.generation,
        rank = rank.rank
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_that_is_given_goes_before_one_that_is_known() {
        let gpus = ["NVIDIA H100 80GB HBM3".to_owned(), "something new".to_owned()];
        assert_eq!(peaks(None, &gpus, 2), [Some(989.4e12), None]);
        assert_eq!(peaks(Some(100.0), &gpus, 2), [Some(1e14), Some(1e14)]);
        assert_eq!(peaks(None, &[], 1), [None]);
        for bad in ["", "0", "-1", "inf", "NaN", "x"] {
            assert!(parse_peak_tflops(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_peak_tflops("0.5"), Ok(0.5));
    }
}
