//! The life of a rank process, from its command line to its exit code.

#![allow(unsafe_code, reason = "a rank leaves without the destructors of libraries that still have threads")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use crescendo_collective::{GlooOptions, ProcessGroup, Rendezvous};
use crescendo_core::marks::MarkList;
use crescendo_device::DeviceError;
use crescendo_node::objects::cache::Cache;
use crescendo_node::runtime::args::{LogArgs, SecurityArgs};
use crescendo_node::runtime::background::Background;
use crescendo_node::telemetry::trace;
use crescendo_node::tls::{Dialer, RELOAD_INTERVAL, Security};
use crescendo_proto::v1::{AttemptRef, RankPhase, RankProgress};
use object_store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::RankError;
use super::data::{self, DataPlan, SampleOrder, Signals};
use super::event_files::EventFiles;
use super::fetch::Fetcher;
use super::hyper_parameters;
use super::link::{self, Downlink, MEETING_TIMEOUT, Uplink};
use super::plan::RankPlan;
use super::position_log::PositionLog;
use super::positions::LogProgress;
use super::pulse;
use super::restore::{self, RestoreError, Sources};
use super::save::{SaveRequest, Saver};
use super::tfevents::Run;
use super::train::{self, DataFeed, Training, of_group};
use crate::kernel_choice::KernelChoice;

/// How long training may take to notice that it is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// A rank that lost a peer waits this long before it says so: the peer's own node knows better why.
const PEER_LOST_GRACE: Duration = Duration::from_secs(2);
/// Limit of the agent's taking the last message.
const END_GRACE: Duration = Duration::from_secs(5);

/// Of the scratch folder: what the ranks of this machine share.
const CACHE_FOLDER: &str = "cache";

/// Arguments that the agent gives to a rank.
#[derive(Args, Clone, Debug)]
pub struct RankArgs {
    /// Address of the agent, host:port
    #[arg(long)]
    pub agent: String,
    /// Job, stage and generation of the attempt
    #[arg(long)]
    pub job: String,
    #[arg(long)]
    pub stage: String,
    #[arg(long)]
    pub generation: u64,
    /// Number in the gang, from 0
    #[arg(long)]
    pub rank: u32,
    /// Train on a GPU
    #[arg(long)]
    pub cuda: bool,
    /// Threads for the arithmetic of a CPU rank
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// What runs blocks between matrix products
    #[arg(long, value_enum, default_value_t)]
    pub kernels: KernelChoice,
    /// Address of the network interface that the other ranks reach
    #[arg(long)]
    pub bind_ip: IpAddr,
    /// Folder for files that are only needed while training
    #[arg(long)]
    pub scratch: PathBuf,
    /// Room for files that the ranks of this machine share, in that folder, GiB
    #[arg(long)]
    pub cache_gib: u64,
    /// Folder that relative paths of a job spec are below
    #[arg(long)]
    pub library_root: PathBuf,
    /// Folder to note the positions and pairs of every step in, a file a rank: for tests
    #[arg(long, env = "CRESCENDO_POSITION_LOG", hide = true)]
    pub position_log: Option<PathBuf>,
    #[command(flatten)]
    pub security: SecurityArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Runs a rank to its end.
pub fn run(args: RankArgs) -> ExitCode {
    let instance = format!("{}/{}/{}/{}", args.job, args.stage, args.generation, args.rank);
    let traces = match crescendo_node::telemetry::logging::init("crescendo-rank", &instance, &args.log, None)
    {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let span = tracing::info_span!(
        "rank",
        job = args.job,
        stage = args.stage,
        generation = args.generation,
        rank = args.rank
    );
    let outcome = runtime.block_on(async {
        let mut exporting = JoinSet::new();
        let ended = CancellationToken::new();
        exporting.spawn(traces.export(ended.clone()));
        let outcome = rank(args).instrument(span).await;
        ended.cancel();
        // Bounded by the export itself.
        exporting.join_next().await;
        outcome
    });
    // The thread `train` may still compute: running libtorch's destructors under it would crash, so nothing runs.
    // SAFETY: ends the process; nothing is buffered, and files that matter are written by now.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

async fn rank(args: RankArgs) -> Result<(), RankError> {
    let attempt =
        AttemptRef { job_id: args.job.clone(), stage: args.stage.clone(), generation: args.generation };
    let security = Security::load(&args.security).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the TLS files cannot be used");
        // They may be in the middle of a change.
        RankError::retryable(error)
    })?;
    let dialer = security.dialer();
    let opened = link::open(&dialer, &args.agent, attempt, args.rank).await;
    let (uplink, down, assignment) =
        opened.inspect_err(|error| tracing::warn!(reason = %error, "no assignment from the agent"))?;
    let (curators_in, curators) = watch::channel(Vec::new());
    let (marks_in, marks) = watch::channel(MarkList::default());
    let (outcomes_in, outcomes) = mpsc::channel(4);
    let mut session = JoinSet::new();
    let ends = Ends::default();
    let downlink = Downlink {
        curators: curators_in.clone(),
        marks: marks_in.clone(),
        outcomes: outcomes_in,
        drain: ends.drain.clone(),
        peer_lost: ends.peer_lost.clone(),
        rank_0_lost: ends.rank_0_lost.clone(),
    };
    session.spawn(downlink.run(down).in_current_span());
    let mut watching = JoinSet::new();
    if let Security::Tls(tls) = security {
        watching.spawn(tls.watch(None, RELOAD_INTERVAL, ends.stop.clone()).in_current_span());
    }
    let group: Arc<OnceLock<ProcessGroup>> = Arc::default();
    watching.spawn(leave_broken(ends.clone(), Arc::clone(&group)));

    let at_work = uplink.clone();
    let work = async {
        let plan = RankPlan::new(assignment, args.cuda, args.kernels.into())?;
        take_curators(&curators_in, &plan);
        link::take_marks(&marks_in, plan.marks.clone());
        let attempt = tracing::info_span!(
            target: trace::TARGET,
            "attempt",
            job = args.job,
            stage = args.stage,
            generation = trace::number(args.generation),
            rank = trace::number(args.rank),
            outcome = tracing::field::Empty
        );
        trace::set_parent(&attempt, plan.trace);
        let links = Links { dialer, uplink: at_work, curators, marks, outcomes };
        let work = work(&args, plan, links, ends.clone(), Arc::clone(&group));
        let outcome = work.instrument(attempt.clone()).await;
        note_end(&attempt, &outcome);
        outcome
    };
    tokio::pin!(work);
    let mut outcome = tokio::select! {
        outcome = &mut work => outcome,
        reason = session.join_next() => {
            let reason = ended(reason);
            ends.stop.cancel();
            if let Some(group) = group.get() {
                group.abort();
            }
            let _ = tokio::time::timeout(STOP_GRACE, &mut work).await;
            Err(reason)
        }
    };
    if let Err(RankError::PeerLost(_)) = &outcome
        && let Ok(reason) = tokio::time::timeout(PEER_LOST_GRACE, session.join_next()).await
    {
        outcome = Err(ended(reason));
    }
    log_end(&outcome);
    if uplink.end(&outcome).await.is_ok() && !session.is_empty() {
        drop(uplink);
        // The agent closes the session when it has read the end.
        let _ = tokio::time::timeout(END_GRACE, session.join_next()).await;
    }
    outcome
}

/// What TensorBoard shows of the stage beside its steps.
fn shown_run(plan: &RankPlan) -> Run {
    let hyper_parameters = hyper_parameters::of_stage(&plan.resolved_spec_json, &plan.attempt.stage);
    Run { global_batch: plan.stage.train.global_batch, hyper_parameters }
}

/// Takes the curators of the assignment, unless an update came already, which is newer.
fn take_curators(curators: &watch::Sender<Vec<String>>, plan: &RankPlan) {
    curators.send_if_modified(|now| {
        let first = now.is_empty();
        if first {
            now.clone_from(&plan.curator_addresses);
        }
        first
    });
}

/// Once another rank is gone: not every collective notices that by itself.
async fn leave_broken(ends: Ends, group: Arc<OnceLock<ProcessGroup>>) {
    ends.peer_lost.cancelled().await;
    if let Some(group) = group.get() {
        group.abort();
    }
}

/// Notes in an attempt's span how it ended here.
fn note_end(attempt: &tracing::Span, outcome: &Result<(), RankError>) {
    let problem = match outcome {
        Ok(()) | Err(RankError::Stopped(_) | RankError::Drained(_)) => None,
        Err(error) => Some(error.to_string()),
    };
    trace::end(attempt, outcome_name(outcome), problem.as_deref());
}

/// How an attempt ended here.
fn outcome_name(outcome: &Result<(), RankError>) -> &'static str {
    match outcome {
        Ok(()) => "succeeded",
        Err(RankError::Stopped(_)) => "stopped",
        Err(RankError::Drained(_)) => "drained",
        Err(RankError::PeerLost(_)) => "peer_lost",
        Err(RankError::Permanent(_) | RankError::Retryable(_)) => "failed",
    }
}

fn ended(joined: Option<Result<RankError, tokio::task::JoinError>>) -> RankError {
    match joined {
        Some(Ok(reason)) => reason,
        Some(Err(error)) => RankError::Retryable(format!("the session's task failed: {error}")),
        None => RankError::Retryable("the session has ended".into()),
    }
}

/// How training may be ended from outside.
#[derive(Clone, Default)]
struct Ends {
    /// At once.
    stop: CancellationToken,
    /// At the next step boundary, with everything saved.
    drain: CancellationToken,
    /// In the step that is under way, with the one before saved: another rank of the gang is gone, by the agent's word.
    peer_lost: CancellationToken,
    /// That one is rank 0.
    rank_0_lost: CancellationToken,
}

impl Ends {
    /// Before the ranks have met there is nothing to save, and nobody to agree with.
    fn before_meeting(&self) -> Result<(), RankError> {
        if self.stop.is_cancelled() {
            return Err(RankError::Stopped("told to stop".into()));
        }
        if self.drain.is_cancelled() {
            return Err(RankError::Drained("before the ranks had met".into()));
        }
        Ok(())
    }

    async fn cancelled(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.drain.cancelled() => {}
        }
    }
}

/// What ties a rank to the others.
struct Links {
    dialer: Dialer,
    uplink: Uplink,
    curators: watch::Receiver<Vec<String>>,
    marks: watch::Receiver<MarkList>,
    outcomes: mpsc::Receiver<crescendo_proto::v1::RankCheckpointOutcome>,
}

/// Gathers the files, then trains with the data client and the saver beside.
async fn work(
    args: &RankArgs,
    plan: RankPlan,
    links: Links,
    ends: Ends,
    group: Arc<OnceLock<ProcessGroup>>,
) -> Result<(), RankError> {
    let Links { dialer, uplink, curators, marks, outcomes } = links;
    let stop = ends.stop.clone();
    let (progress, reported) = watch::channel(at_its_start(&plan));
    let mut beside = JoinSet::new();
    // Ends after the work: what it says last is worth sending.
    let progress_stop = CancellationToken::new();
    let mut forwarding = JoinSet::new();
    forwarding.spawn(uplink.clone().forward_progress(reported, progress_stop.clone()).in_current_span());

    let store = open_store(&plan).await?;
    let gathered = tokio::select! {
        gathered = gather(args, &plan, &store) => gathered,
        () = ends.cancelled() => return ends.before_meeting(),
    };
    let sources = report_damage(gathered, &uplink).await?;

    let data_plan = DataPlan {
        job_id: plan.attempt.job_id.clone(),
        stage: plan.attempt.stage.clone(),
        stage_index: plan.stage_index,
        generation: plan.attempt.generation,
        job_seed: plan.spec.seed,
        gang: plan.gang,
        steps: plan.first_step()..plan.stage.train.steps,
        on_starvation: plan.stage.train.on_starvation,
        dialer: dialer.clone(),
    };
    let (deliver, deliveries) = mpsc::channel(data_plan.credits() as usize);
    let (order, followed) = watch::channel(report_damage(restore::order(&plan, &sources), &uplink).await?);
    let (log, log_known) = watch::channel(LogProgress::default());
    let (waiting_for, data_waits_for) = watch::channel(String::new());
    let (starved, data_starved) = watch::channel(None);
    let signals = Signals { order: followed, log, waiting_for, starved };
    beside.spawn(data::run(data_plan, curators, deliver, signals, stop.clone()).in_current_span());
    let (saves, requests) = mpsc::channel(1);
    let saver = Saver {
        job_id: plan.attempt.job_id.clone(),
        rank: plan.gang.rank,
        events: EventFiles::of(&plan.object_store_url, &store),
        store,
        resolved_spec_json: plan.resolved_spec_json.clone(),
        run: Arc::new(shown_run(&plan)),
        uplink: uplink.clone(),
        copying: Handle::current(),
        outcomes,
    };
    let _background = spawn_saver(&mut beside, saver, requests)?;

    let thread = TrainThread {
        position_log: position_log(args, &plan)?,
        args: args.clone(),
        dialer,
        plan,
        sources,
        group,
        deliveries,
        data_waits_for,
        data_starved,
        order,
        marks,
        log: log_known,
        progress,
        saves,
        ends,
        runtime: Handle::current(),
    };
    let trained = on_a_thread(thread).await?;
    let outcome = report_damage(trained, &uplink).await;
    stop.cancel();
    progress_stop.cancel();
    while forwarding.join_next().await.is_some() {}
    outcome
}

/// All files that the rank begins with, through the cache of its node.
async fn gather(
    args: &RankArgs,
    plan: &RankPlan,
    store: &Arc<dyn ObjectStore>,
) -> Result<Sources, RestoreError> {
    let cache = Cache::new(args.scratch.join(CACHE_FOLDER), args.cache_gib.saturating_mul(1 << 30));
    let fetcher = Fetcher { store, url: &plan.object_store_url, cache: &cache, scratch: &args.scratch };
    restore::gather(plan, &fetcher, &args.library_root).await
}

/// Hashing and writing take seconds of a core, which training has the better use for.
fn spawn_saver(
    beside: &mut JoinSet<()>,
    saver: Saver,
    requests: mpsc::Receiver<SaveRequest>,
) -> Result<Background, RankError> {
    let background = Background::start("save").map_err(RankError::retryable)?;
    if let Some(handle) = background.handle() {
        beside.spawn_on(saver.run(requests).in_current_span(), handle);
    }
    Ok(background)
}

fn at_its_start(plan: &RankPlan) -> RankProgress {
    RankProgress {
        step: plan.first_step(),
        waiting_for: "its start".into(),
        phase: RankPhase::Loading.into(),
        ..RankProgress::default()
    }
}

fn position_log(args: &RankArgs, plan: &RankPlan) -> Result<Option<PositionLog>, RankError> {
    let log = args.position_log.as_deref().map(|folder| PositionLog::create(folder, plan));
    log.transpose().map_err(RankError::retryable)
}

/// Opens the object store; the rank that writes checkpoints makes sure that it can.
async fn open_store(plan: &RankPlan) -> Result<Arc<dyn ObjectStore>, RankError> {
    let store = crescendo_node::objects::open(&plan.object_store_url).map_err(RankError::permanent)?;
    if plan.gang.rank == 0 {
        let verified = crescendo_node::objects::verify(&plan.object_store_url, &store).await;
        verified.map_err(|error| match error.is_retryable() {
            true => RankError::retryable(error),
            false => RankError::permanent(error),
        })?;
    }
    Ok(store)
}

/// Trains on a thread of its own, which the runtime does not wait on.
async fn on_a_thread(thread: TrainThread) -> Result<Result<(), RestoreError>, RankError> {
    let (done, trained) = oneshot::channel();
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name("train".into())
        .spawn(move || span.in_scope(|| drop(done.send(thread.run()))))
        .map_err(RankError::retryable)?;
    let panicked = || Err(RestoreError::Rank(RankError::Retryable("training panicked".into())));
    Ok(trained.await.unwrap_or_else(|_| panicked()))
}

fn log_end(outcome: &Result<(), RankError>) {
    match outcome {
        Ok(()) => tracing::info!("every step is done"),
        Err(RankError::Stopped(reason)) => tracing::info!(reason, "stopped"),
        Err(RankError::Drained(reason)) => tracing::info!(reason, "checkpoint saved, the gang has left"),
        Err(error) => tracing::warn!(reason = %error, "training ends early"),
    }
}

/// Tells the agent of a damaged checkpoint, so that the next try uses the one before.
async fn report_damage<T>(outcome: Result<T, RestoreError>, uplink: &Uplink) -> Result<T, RankError> {
    match outcome {
        Ok(value) => Ok(value),
        Err(RestoreError::Rank(error)) => Err(error),
        Err(RestoreError::Damaged { path, reason }) => {
            tracing::error!(path, reason, "checkpoint is damaged");
            uplink.damage(path.clone(), reason.clone()).await?;
            Err(RankError::Retryable(format!("checkpoint {path} is damaged: {reason}")))
        }
    }
}

/// What the thread `train` takes with it.
struct TrainThread {
    args: RankArgs,
    dialer: Dialer,
    plan: RankPlan,
    sources: Sources,
    group: Arc<OnceLock<ProcessGroup>>,
    deliveries: mpsc::Receiver<Result<data::Delivery, RankError>>,
    data_waits_for: watch::Receiver<String>,
    data_starved: watch::Receiver<Option<u64>>,
    order: watch::Sender<SampleOrder>,
    marks: watch::Receiver<MarkList>,
    log: watch::Receiver<LogProgress>,
    position_log: Option<PositionLog>,
    progress: watch::Sender<RankProgress>,
    saves: mpsc::Sender<SaveRequest>,
    ends: Ends,
    runtime: Handle,
}

impl TrainThread {
    fn run(self) -> Result<(), RestoreError> {
        let rank_error = RestoreError::Rank;
        crescendo_device::open(self.plan.device).map_err(|error| {
            rank_error(match error {
                DeviceError::NoDriver => RankError::permanent(error),
                // Another node, or this one after a moment, may do better.
                _ => RankError::retryable(error),
            })
        })?;
        tch::set_num_threads(i32::try_from(self.args.threads.max(1)).unwrap_or(1));
        let restored = restore::build(&self.plan, &self.sources)?;
        tracing::info!(
            step = restored.step,
            parameters = restored.train_step.params().parameter_count(),
            "weights are loaded"
        );
        // The files are read; the copies can go.
        drop(self.sources);
        pulse::enter(&self.progress, RankPhase::Meeting);
        let met = meet(&self.args, &self.dialer, &self.plan, &self.runtime, &self.ends);
        // Rank 0 serves the others' store from what it met them over, which shows that it lives.
        let Met { group, over: _over, rank_0_at } = met.map_err(rank_error)?;
        // Only this thread sets it, once.
        let _ = self.group.set(group.clone());
        if self.ends.stop.is_cancelled() {
            group.abort();
            return Err(rank_error(RankError::Stopped("told to stop".into())));
        }
        tracing::info!(ranks = group.world(), "all ranks have met");
        let feed = DataFeed { deliveries: self.deliveries, starved: self.data_starved };
        let training = Training {
            plan: self.plan,
            group,
            restored,
            data_waits_for: self.data_waits_for,
            order: self.order,
            marks: self.marks,
            log: self.log,
            position_log: self.position_log,
            progress: self.progress,
            saves: self.saves,
            stop: self.ends.stop,
            drain: self.ends.drain,
            peer_lost: self.ends.peer_lost,
            rank_0_lost: self.ends.rank_0_lost,
            rank_0_at,
            runtime: self.runtime,
        };
        train::run(training, feed).map_err(rank_error)
    }
}

/// The gang, once all its ranks are there.
struct Met {
    group: ProcessGroup,
    /// What it met over; the same on processors.
    over: ProcessGroup,
    /// Where the process of rank 0 listens as long as that is kept; none for itself.
    rank_0_at: Option<SocketAddr>,
}

fn meet(
    args: &RankArgs,
    dialer: &Dialer,
    plan: &RankPlan,
    runtime: &Handle,
    ends: &Ends,
) -> Result<Met, RankError> {
    ends.before_meeting()?;
    let (rank, world) = (plan.gang.rank as usize, plan.gang.ranks as usize);
    if world == 1 && !args.cuda {
        let group = ProcessGroup::solo(plan.device);
        return Ok(Met { over: group.clone(), group, rank_0_at: None });
    }
    let or_stop = async |call: &mut (dyn Future<Output = Result<Rendezvous, RankError>> + Unpin)| {
        tokio::select! {
            () = ends.cancelled() => {
                ends.before_meeting()?;
                Err(RankError::Stopped("told to stop".into()))
            }
            outcome = call => outcome,
        }
    };
    let call = async {
        if rank == 0 {
            let rendezvous = Rendezvous::host(args.bind_ip).map_err(of_group)?;
            let address = rendezvous.address().to_string();
            let agent = &plan.rendezvous_address;
            link::publish_rendezvous(dialer, agent, &plan.attempt, address.into_bytes()).await?;
            return Ok(rendezvous);
        }
        let token = link::await_rendezvous(dialer, &plan.rendezvous_address, &plan.attempt).await?;
        let address = std::str::from_utf8(&token).ok().and_then(|text| text.parse().ok());
        let address =
            address.ok_or_else(|| RankError::Retryable("rank 0's address cannot be read".into()))?;
        Ok(Rendezvous::join(address))
    };
    let rendezvous = runtime.block_on(or_stop(&mut std::pin::pin!(call)))?;
    let rank_0_at = (rank > 0).then(|| rendezvous.address());
    let options = GlooOptions {
        timeout: MEETING_TIMEOUT,
        generation: plan.attempt.generation,
        interface: Some(args.bind_ip),
    };
    let over = ProcessGroup::gloo(rank, world, rendezvous, &options).map_err(of_group)?;
    let group = match plan.device {
        tch::Device::Cuda(index) => over.with_nccl(index, MEETING_TIMEOUT).map_err(of_group)?,
        _ => over.clone(),
    };
    Ok(Met { group, over, rank_0_at })
}
