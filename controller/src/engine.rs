//! The one task that owns the state while this controller leads.
//!
//! ```text
//!   requests ─▶ batch ─▶ apply in memory ─▶ decide ─▶ apply ─▶ persist (one txn) ─▶ answers, commands, watchers
//!                                                                 └─ conflict, unknown: drop memory, reload
//! ```
//!
//! Requests are taken in batches, so that many writers share one transaction. Nothing leaves the engine before what it
//! rests on is durable: answers and commands are held back until then. If the write fails, they are dropped with an
//! error that the caller may try again after, and the state is read from the store.

mod deciding;
mod deletions;
mod drawing;
mod handle;
mod looks;
mod marks;
mod nodes;
mod notices;
mod paced;
mod persist;
mod reads;
mod request;
mod review;
mod samplings;
mod shown;
mod suspension;
mod views;
mod watchers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::decide::{self, Change, Decider, Folding, Limits, Waits, decide_folding};
use crescendo_core::ids::{JobId, StageRef, Timestamp};
use crescendo_core::invariants::check_invariants;
use crescendo_core::notices::Tries;
use crescendo_core::observed::Observed;
use crescendo_core::quotas::Quotas;
use crescendo_core::records::{ClusterRecord, Record, Write};
use crescendo_core::state::{ClusterState, Orphan};
use crescendo_node::objects::with_causes;
use crescendo_node::telemetry::trace;
use crescendo_store::{Fence, Leadership, Store, StoreError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use review::PairsWanted;
pub use shown::ShownJob;
pub use views::Snapshot;

pub use request::{
    ActingNode, Answer, DeletionRequest, Delivery, DeliveryOutcome, EngineError, JobWatch, Later,
    LookRequest, MarksRequest, NoticeRequest, ObjectRequest, OpenedSession, Reply, Request, SamplesRequest,
    SamplesWord, SessionId, ShardWatch, Wish,
};

use crate::config::Config;
use crate::curves::CurveHub;
use crate::engine::deciding::{Pending, Retold};
use crate::engine::deletions::DeletionWork;
use crate::engine::nodes::Sessions;
use crate::engine::paced::{Pace, Paced};
use crate::engine::persist::{Loaded, Loading, Records};
use crate::engine::reads::Reads;
use crate::engine::samplings::SamplingWork;
use crate::engine::suspension::Suspension;
use crate::engine::watchers::Watchers;
use crate::logs::LogHub;
use crate::metrics::Metrics;
use crate::pending_time::WaitClock;
use crate::steady_clock::SteadyClock;
use crate::unit_board::UnitBoard;

/// Requests that wait for the engine at most.
pub const QUEUE: usize = 1024;
/// Requests in one batch at most.
const MAX_BATCH: usize = 256;
/// Time passes for the decisions at least this often.
const TICK: Duration = Duration::from_millis(250);
/// Decisions on something that has changed.
const PROMPTLY: Pace = Pace { rest: 3, shortest: Duration::ZERO, longest: Duration::from_secs(1) };
/// Those that are only due because time has passed: no limit of time is as short as what they take then.
const IN_TIME: Pace = Pace { rest: 20, shortest: TICK, longest: Duration::from_secs(2) };
/// The metrics of the whole cluster, and looking at every watcher.
const OVERVIEW: Pace = Pace { rest: 30, shortest: Duration::ZERO, longest: Duration::from_secs(2) };
/// Folding goes on after this.
const FOLD_PAUSE: Duration = Duration::from_millis(250);
/// Tries to read the state, and to read a page of it, after which the lead is given up, so that another controller can try.
const LOAD_TRIES: u32 = 5;
/// How far reading the state is, is told this often.
const LOAD_TOLD_EVERY: Duration = Duration::from_secs(1);
/// Wait between tries to read the state again.
const RELOAD_PAUSE: Duration = Duration::from_millis(500);

/// What the engine needs from outside.
#[derive(Clone)]
pub struct EngineDeps {
    pub config: Arc<Config>,
    pub store: Arc<dyn Store>,
    pub metrics: Metrics,
    pub logs: LogHub,
    /// Identity given in Welcome.
    pub controller_id: String,
    /// Wall clock: what people are shown. A function, so that whoever runs an engine decides what time it is.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// What tenants may use, as it is now.
    pub quotas: watch::Receiver<Arc<Quotas>>,
    /// What curators say of their units.
    pub units: UnitBoard,
    /// Where the numbers go that ranks report.
    pub curves: CurveHub,
    /// Decisions are made beside the engine once one has taken as long as this.
    pub decides_beside: Duration,
}

/// Why the engine stopped.
#[derive(Debug)]
pub enum End {
    Stopped,
    /// Somebody else leads, or nobody.
    Deposed,
    /// The state could not be read: another controller may be able to.
    CannotLoad,
}

/// The state and everything that depends on leading.
pub struct Engine {
    around: EngineDeps,
    /// Those of the configuration, with the quotas as they are now.
    limits: Limits,
    fence: Fence,
    state: ClusterState,
    observed: Observed,
    began: Instant,
    clock: SteadyClock,
    /// Has what the last decision has left for the next one.
    decider: Decider,
    retold: Retold,
    waits: Arc<Waits>,
    waiting: WaitClock,
    suspension: Suspension,
    records: Records,
    sessions: Sessions,
    watchers: Watchers,
    reads: Reads,
    deletions: DeletionWork,
    samplings: SamplingWork,
    notices: Tries,
    /// Answers that are given once the batch is durable.
    held: Vec<request::DeferredReply>,
    /// The job at which folding goes on, and when it last went on.
    fold_from: Option<JobId>,
    folded_at: Instant,
    /// Jobs whose records have changed in this batch, and those that have progressed.
    changed: BTreeSet<JobId>,
    progressed: BTreeSet<JobId>,
    /// Stages to whose logs something was added in this batch.
    grown_logs: BTreeSet<StageRef>,
    /// Something that decisions rest on has changed since the last one.
    undecided: bool,
    deciding: Paced,
    /// The decision that is being made beside, and the word that it is made.
    pending: Option<Pending>,
    decided: Arc<Notify>,
    overview: Paced,
    /// Curators that can be given work, once it was asked for in this batch.
    curators: Option<usize>,
    /// What those see who only look, until something else is asked for.
    snapshot: Option<Arc<Snapshot>>,
}

/// Reads the state and leads with it until `stop`, or until the leadership is gone.
pub async fn run(
    around: EngineDeps,
    leadership: &Leadership,
    requests: &mut mpsc::Receiver<Request>,
    ready: impl FnOnce(),
    stop: &CancellationToken,
) -> End {
    let now = (around.clock)();
    let mut engine = Engine {
        limits: around.config.limits.clone(),
        fence: leadership.fence().clone(),
        state: ClusterState::default(),
        observed: Observed::new(now),
        began: Instant::now(),
        clock: SteadyClock::new(now),
        decider: Decider::default(),
        retold: Retold::All,
        waits: Arc::default(),
        waiting: WaitClock::default(),
        suspension: Suspension::default(),
        records: Records::default(),
        sessions: Sessions::default(),
        watchers: Watchers::new(around.config.max_watchers),
        reads: Reads::default(),
        deletions: DeletionWork::new(),
        samplings: SamplingWork::new(),
        notices: Tries::default(),
        held: Vec::new(),
        fold_from: None,
        folded_at: Instant::now(),
        changed: BTreeSet::new(),
        progressed: BTreeSet::new(),
        grown_logs: BTreeSet::new(),
        undecided: true,
        deciding: Paced::new(),
        pending: None,
        decided: Arc::default(),
        overview: Paced::new(),
        curators: None,
        snapshot: None,
        around,
    };
    let end = tokio::select! {
        // In this order: nothing is begun once it is to stop.
        biased;
        () = stop.cancelled() => End::Stopped,
        () = leadership.lost() => End::Deposed,
        end = engine.lead(requests, ready) => end,
    };
    engine.abandon(matches!(end, End::Stopped));
    end
}

impl Engine {
    async fn lead(&mut self, requests: &mut mpsc::Receiver<Request>, ready: impl FnOnce()) -> End {
        if let Err(end) = self.reload().await {
            return end;
        }
        ready();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                // Time passes with every batch, so that requests may go first.
                biased;
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return End::Stopped,
                },
                _ = tick.tick() => None,
                () = self.decided.notified() => None,
                () = sleep_until(self.next_decision()), if self.suspension == Suspension::default() => None,
            };
            let now = self.look_at_clock();
            self.curators = None;
            self.snapshot = None;
            let quotas = self.around.quotas.borrow().clone();
            if !Arc::ptr_eq(&quotas, &self.limits.quotas) {
                self.everything_changed();
                self.limits.quotas = quotas;
            }
            let refusal =
                self.suspension.reason(now).map(|cause| EngineError::StoreRefuses { cause: cause.into() });
            if refusal.is_none() {
                self.fold();
                self.go_on_deleting(now);
                self.retire(now);
                self.go_on_sampling(now);
            }
            let mut taken = 0;
            let mut next = first;
            while let Some(request) = next {
                let request = match &refusal {
                    Some(refusal) => request.unless_it_writes(refusal),
                    None => Some(request),
                };
                if let Some(request) = request {
                    if !matches!(request, Request::Look(_)) {
                        self.snapshot = None;
                    }
                    self.handle(request, now);
                }
                taken += 1;
                let room = taken < MAX_BATCH && self.records.pending() < persist::BATCH_WRITES;
                next = if room { requests.try_recv().ok() } else { None };
            }
            self.look_at_units(now);
            if let Some(end) = self.conclude(now).await {
                return end;
            }
        }
    }

    /// Folds records of stages that are over, a little at a time, so that nobody waits for it. Before anything else of a batch: what
    /// it rests on is durable then.
    fn fold(&mut self) {
        if self.folded_at.elapsed() < FOLD_PAUSE {
            return;
        }
        self.folded_at = Instant::now();
        let Folding { writes, next } = decide_folding(&self.state, &self.limits, self.fold_from.as_ref());
        self.fold_from = next;
        writes.into_iter().for_each(|write| self.write(write));
    }

    /// What time it is. Who stood still has heard nothing of what happened meanwhile: nodes are listened to before they are
    /// judged, and leases have a full term.
    fn look_at_clock(&mut self) -> Timestamp {
        let before = self.now();
        let look = self.clock.look(self.began.elapsed(), (self.around.clock)());
        self.observed.wall_ahead_millis = look.wall_ahead_millis;
        if look.stood_still {
            let (passed, wall_ahead_millis) = (look.now.since(before), look.wall_ahead_millis);
            tracing::warn!(
                ?passed,
                wall_ahead_millis,
                "this controller or its machine stood still, or its clock was set; nodes are listened to before they are judged"
            );
            self.observed.stood_still(look.now);
            self.state.renew_leases(look.now, self.limits.lease_ttl);
            self.everything_changed();
        }
        look.now
    }

    /// The time of the last look.
    fn now(&self) -> Timestamp {
        self.clock.last()
    }

    /// Decides, persists, then lets out what was held back.
    async fn conclude(&mut self, now: Timestamp) -> Option<End> {
        if self.suspension.reason(now).is_some() {
            self.undecided = true;
            self.pending = None;
            self.let_out(Vec::new(), now);
            return None;
        }
        let sends = self.decide_if_due(now);
        match self.persist().await {
            Ok(written) => {
                self.around.metrics.store_refuses.set(0);
                if written && self.suspension != Suspension::default() {
                    tracing::info!("the store takes writes again");
                    self.suspension = Suspension::default();
                }
                self.let_out(sends, now);
                None
            }
            Err(StoreError::NotLeader { .. }) => Some(End::Deposed),
            Err(error) => {
                let cause = with_causes(&error);
                tracing::warn!(error = cause, "dropping the state in memory and reading it again");
                self.around.metrics.reloads.inc();
                let refusal = match error {
                    // What it takes no write for, such as a full disk, does not pass in a moment.
                    StoreError::NotApplied(_) => {
                        self.suspension.refused(cause.clone(), now);
                        self.around.metrics.store_refuses.set(1);
                        EngineError::StoreRefuses { cause }
                    }
                    _ => EngineError::Reloading,
                };
                for held in std::mem::take(&mut self.held) {
                    held.refuse(refusal.clone());
                }
                self.reads.forget();
                self.reload().await.err()
            }
        }
    }

    /// What was held back until all was durable.
    fn let_out(&mut self, sends: Vec<decide::Send>, now: Timestamp) {
        for held in std::mem::take(&mut self.held) {
            held.release();
        }
        self.send_all(sends, now);
        self.send_reads();
        self.publish(now);
    }

    fn tell(&self, change: &Change) {
        match change {
            Change::AttemptPlaced { attempt, ranks, ahead_of } => {
                self.around.metrics.attempts_placed.inc();
                if let Some(first) = ahead_of {
                    self.around.metrics.attempts_backfilled.inc();
                    tracing::info!(job = %attempt.job, %first, "a job goes ahead of one that does not fit yet");
                }
                self.mark(&attempt.job, |trace| {
                    let (job, stage) = (&attempt.job, &attempt.stage);
                    let span = tracing::info_span!(
                        target: trace::TARGET, "place attempt", %job, %stage, generation = trace::number(attempt.generation.0),
                        ranks = trace::number(*ranks)
                    );
                    trace::set_parent(&span, trace);
                });
                tracing::info!(job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, ranks, "attempt is placed");
            }
            Change::AttemptEnded { attempt, reason, handed_over: true } => {
                tracing::info!(job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, reason, "attempt is handed over");
            }
            Change::AttemptEnded { attempt, reason, handed_over: false } => {
                self.around.metrics.attempts_ended.inc();
                tracing::warn!(job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, reason, "attempt has ended");
            }
            Change::PrecisionChosen { stage, choice } => {
                let (precision, why) = (choice.precision, &choice.why);
                tracing::info!(job = %stage.job, stage = %stage.stage, %precision, why, "the precision of a stage is chosen");
            }
            Change::KindChanged { attempt, change } => {
                tracing::warn!(job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, "{change}");
            }
            Change::NodeCordoned { node, reason } => {
                tracing::error!(%node, reason, "node is cordoned: it gets no new work until it is drained and taken back");
            }
            Change::JobPreempted { job, by, slots } => {
                self.around.metrics.jobs_preempted.inc();
                tracing::info!(%job, %by, slots, "job makes room for one that goes first");
            }
            Change::JobMoved { job, from, to, reason } => {
                tracing::info!(%job, from, to, reason, "job has changed state");
            }
        }
    }

    /// Reads everything from the store, or gives up the lead after a few tries that came to nothing. What is observed of nodes
    /// stays: it does not come from the store.
    async fn reload(&mut self) -> Result<(), End> {
        // What was dropped is not held beside what is read, nor what was decided on it.
        self.pending = None;
        self.decider = Decider::default();
        self.state = ClusterState::default();
        self.records = Records::default();
        let started = std::time::Instant::now();
        for beginnings in 1..=LOAD_TRIES {
            match self.load().await {
                Ok(loaded) => {
                    self.around.metrics.store_call("snapshot", "ok", started.elapsed());
                    self.install(loaded);
                    return Ok(());
                }
                Err(error) => {
                    self.around.metrics.store_call("snapshot", "error", started.elapsed());
                    tracing::warn!(error = with_causes(&error), beginnings, "cannot read the state");
                    tokio::time::sleep(RELOAD_PAUSE).await;
                }
            }
        }
        Err(End::CannotLoad)
    }

    /// Reads everything at one revision, page by page: a large state takes its time, as long as each page comes within the
    /// deadline of a call. A page that does not is asked for again, a few times.
    async fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut pages = self.around.store.read_pages("", self.around.config.load_page_records);
        let mut loading = Loading::new(self.limits.segment_units);
        let (mut read, mut failures) = (0usize, 0);
        let (started, mut told) = (Instant::now(), Instant::now());
        loop {
            let page = match pages.next_page().await {
                Ok(page) => page,
                Err(error) if error.is_retryable() && failures + 1 < LOAD_TRIES && read > 0 => {
                    failures += 1;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        records = read,
                        "a page of the state is asked for again"
                    );
                    tokio::time::sleep(RELOAD_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            failures = 0;
            read += page.items.len();
            self.around.metrics.records_read.set(i64::try_from(read).unwrap_or(i64::MAX));
            loading.add(page.items);
            if page.next.is_none() {
                break;
            }
            if told.elapsed() >= LOAD_TOLD_EVERY {
                told = Instant::now();
                tracing::info!(records = read, seconds = started.elapsed().as_secs(), "reads the state");
            }
            // Leases are renewed meanwhile, and calls refused.
            tokio::task::yield_now().await;
        }
        Ok(loading.finish())
    }

    fn install(&mut self, loaded: Loaded) {
        let Loaded { records, mut state, orphans } = loaded;
        self.around.metrics.unreadable(state.unreadable());
        // Those of a job whose own record cannot be read wait for it.
        let halted =
            |orphan: &Orphan| orphan.job.as_ref().is_some_and(|job| state.unreadable().hides_job(job));
        for orphan in orphans.into_iter().filter(|orphan| !halted(orphan)) {
            tracing::error!(%orphan, "a stored record belongs to nothing and is ignored; it can be deleted once it is understood");
        }
        let now = self.now();
        self.undecided = true;
        state.renew_leases(now, self.limits.lease_ttl);
        state.restart_waits(now, self.limits.max_unit_backoff);
        for violation in check_invariants(&state) {
            tracing::error!(
                violation,
                "the stored records contradict each other; report it with the job named here"
            );
        }
        self.records = records;
        self.changed.extend(state.jobs().map(|job| job.record.id.clone()));
        self.state = state;
        if self.state.cluster().is_none() {
            // Whoever leads first names the cluster. Not over a record that cannot be read.
            let id = self.around.controller_id.clone();
            self.write(Write::Put(Record::Cluster(ClusterRecord { id, stores: BTreeMap::new() })));
        }
    }

    /// Nothing more will be answered from here.
    fn abandon(&mut self, stopping: bool) {
        for held in std::mem::take(&mut self.held) {
            held.refuse(EngineError::NotLeading);
        }
        let why = if stopping { "the controller stops" } else { "this controller leads no more" };
        self.sessions.close_all(why);
        self.watchers.close_all(why);
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
