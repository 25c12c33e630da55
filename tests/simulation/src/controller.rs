//! A controller process: the real campaign, engine and services, without a listener.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use crescendo_controller::collections::Collections;
use crescendo_controller::config::Config;
use crescendo_controller::deletions::delete_files;
use crescendo_controller::engine::EngineDeps;
use crescendo_controller::leadership::{self, EngineHandle, Role};
use crescendo_controller::logs::LogHub;
use crescendo_controller::metrics::Metrics;
use crescendo_controller::relay::Relays;
use crescendo_controller::services::{Checkpoints, Curation, Jobs, Nodes, Objects};
use crescendo_controller::unit_board::UnitBoard;
use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::decide::Limits;
use crescendo_core::ids::Timestamp;
use crescendo_core::queues::{Queue, Queues};
use crescendo_core::quotas::Quotas;
use crescendo_node::runtime::random;
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use crescendo_proto::v1::curation_service_server::CurationServiceServer;
use crescendo_proto::v1::job_service_server::JobServiceServer;
use crescendo_proto::v1::node_service_server::NodeServiceServer;
use crescendo_proto::v1::object_service_server::ObjectServiceServer;
use crescendo_store::testing::{Fate, SimulatedServer, SimulatedStore, StoreCall, StoreLink};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::checker::Checker;
use crate::network::{Network, Way};
use crate::process::Process;
use crate::rng::SharedRng;
use crate::schedule::PEOPLE;

/// Limit of one call of the store, as shipped.
const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Most time that a controller stays for nodes that are stopped with it, as shipped.
const STAY_FOR_NODES: Duration = Duration::from_secs(15);
/// When the simulated day begins, Unix milliseconds.
const EPOCH_MILLIS: u64 = 1_800_000_000_000;

/// What is wrong with the way to the store, for one controller or all; zero where nothing is.
#[derive(Debug, Default)]
pub struct StoreFaults {
    /// Cuts that hold now.
    pub cuts: AtomicU64,
    /// Calls whose answer never comes, of a thousand.
    pub lost_answers_permille: AtomicU64,
    /// Milliseconds that a sync takes more.
    pub slow_millis: AtomicU64,
    /// Times that the disk is full; reads and renewals go on.
    pub full: AtomicU64,
}

/// Few, so that the state is read in many pages.
const LOAD_PAGE_RECORDS: usize = 40;
/// Few, so that stages of a handful of units are folded, and faults come in between.
const SEGMENT_UNITS: u64 = 3;
const FOLD_DELETES: usize = 2;
/// Writes of one transaction; the last is what ships.
const TXN_WRITES: [usize; 4] = [1, 2, 5, 120];
/// What ships, but for what would be too much for so small a cluster to show anything.
fn config(txn_writes: usize) -> Config {
    let config = Config::new("file:///simulated");
    let limits = Limits { segment_units: SEGMENT_UNITS, fold_deletes: FOLD_DELETES, ..config.limits };
    Config { txn_writes, load_page_records: LOAD_PAGE_RECORDS, limits, ..config }
}

/// Calls of one controller within one simulated second that are more than it can have use for.
const MANY_CALLS: u64 = 2000;

struct StoreWay {
    process: Arc<Process>,
    checker: Checker,
    index: usize,
    began: tokio::time::Instant,
    /// The second, and the calls within it.
    calls: Mutex<(u64, u64)>,
    own: Arc<StoreFaults>,
    of_all: Arc<StoreFaults>,
    rng: SharedRng,
}

impl StoreWay {
    fn sum(&self, of: impl Fn(&StoreFaults) -> &AtomicU64) -> u64 {
        of(&self.own).load(Ordering::Relaxed) + of(&self.of_all).load(Ordering::Relaxed)
    }

    /// Counts a call; one that asks without pause is found out.
    fn count(&self) {
        let second = self.began.elapsed().as_secs();
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls = if calls.0 == second { (second, calls.1 + 1) } else { (second, 1) };
        if calls.1 == MANY_CALLS {
            self.checker.broken(11, format!("controller {} calls the store without pause", self.index));
        }
    }

    fn is_cut(&self) -> bool {
        self.process.dead.is_cancelled()
            || self.process.gate.is_closed()
            || self.sum(|faults| &faults.cuts) > 0
    }
}

impl StoreLink for StoreWay {
    fn fate(&self, call: StoreCall) -> Fate {
        self.count();
        if self.is_cut() {
            return Fate::Lost;
        }
        if call == StoreCall::Write && self.sum(|faults| &faults.full) > 0 {
            return Fate::Refused { why: "no space left on device".to_owned() };
        }
        let slow = Duration::from_millis(self.sum(|faults| &faults.slow_millis));
        let there = slow + Duration::from_millis(self.rng.draw(|rng| rng.between(1, 4)));
        let permille = self.sum(|faults| &faults.lost_answers_permille);
        if permille > 0 && self.rng.draw(|rng| rng.chance(permille)) {
            // Half of them never arrived.
            return if self.rng.draw(|rng| rng.chance(500)) {
                Fate::AnswerLost { there }
            } else {
                Fate::Lost
            };
        }
        Fate::Carried { there, back: Duration::from_millis(1) }
    }

    fn delivers(&self) -> bool {
        !self.is_cut()
    }
}

struct Running {
    process: Arc<Process>,
    stop: CancellationToken,
    drain: Drain,
}

/// One controller over all its lives.
pub struct Controller {
    index: usize,
    network: Network,
    records: SimulatedServer,
    checker: Checker,
    rng: SharedRng,
    /// Milliseconds that its wall clock is ahead.
    pub skew_millis: Arc<AtomicI64>,
    pub faults: Arc<StoreFaults>,
    of_all: Arc<StoreFaults>,
    began: tokio::time::Instant,
    running: Option<Running>,
    /// Times that it stands still: one that is started meanwhile does not run either.
    paused: AtomicU32,
}

impl Controller {
    pub fn new(
        index: usize,
        network: &Network,
        records: &SimulatedServer,
        checker: &Checker,
        rng: &SharedRng,
        of_all: &Arc<StoreFaults>,
    ) -> Self {
        Self {
            index,
            network: network.clone(),
            records: records.clone(),
            checker: checker.clone(),
            rng: rng.clone(),
            skew_millis: Arc::default(),
            faults: Arc::default(),
            of_all: of_all.clone(),
            began: tokio::time::Instant::now(),
            running: None,
            paused: AtomicU32::new(0),
        }
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let process = Arc::new(Process::default());
        (0..self.paused.load(Ordering::Relaxed)).for_each(|_| process.gate.close());
        let way = StoreWay {
            process: process.clone(),
            checker: self.checker.clone(),
            index: self.index,
            began: self.began,
            calls: Mutex::default(),
            own: self.faults.clone(),
            of_all: self.of_all.clone(),
            rng: self.rng.clone(),
        };
        let store = Arc::new(SimulatedStore::new(&self.records, Arc::new(way), STORE_CALL_TIMEOUT));
        let metrics = Metrics::register(&prometheus::Registry::new()).context("register metrics")?;
        let (logs, units) = (LogHub::default(), UnitBoard::default());
        let (tasks, _supervisor) = Tasks::new();
        let (role, role_seen) = watch::channel(Role::Standby { leader: None, trouble: None });
        let handle = EngineHandle::new(role_seen);
        let controller_id = random::id();
        // Most batches are split into several transactions, and faults come in between.
        let txn_writes = self.rng.draw(|rng| TXN_WRITES[rng.index(TXN_WRITES.len())]);
        let (_, quotas) = watch::channel(Arc::new(shared_by_queues()));
        let around = EngineDeps {
            config: Arc::new(config(txn_writes)),
            store,
            metrics: metrics.clone(),
            logs: logs.clone(),
            controller_id: controller_id.clone(),
            clock: self.clock(),
            quotas,
            units: units.clone(),
            curves: Default::default(),
            // Some make every decision beside their engine, others none: simulated work takes no time.
            decides_beside: if self.index.is_multiple_of(2) { Duration::ZERO } else { Duration::MAX },
        };
        let identity = leadership::identity(&format!("controller-{}:7400", self.index), &controller_id);
        let (stop, drain) = (tasks.stop_token(), Drain::new(STAY_FOR_NODES));
        process.spawn(leadership::stay_for_nodes(handle.clone(), drain.clone()));
        process.spawn(leadership::run(around, identity, role, stop.clone()));
        let collections = Collections::new(metrics.clone());
        let jobs =
            Jobs::new(handle.clone(), logs.clone(), Relays::default(), collections.clone(), tasks.clone());
        process.spawn(delete_files(collections.clone(), handle.clone(), stop.clone()));
        let objects = Objects::new(handle.clone(), Relays::default(), collections, tasks.clone());
        let nodes = Nodes::new(handle.clone(), logs, units, metrics, tasks);
        let routes = Routes::new(JobServiceServer::new(jobs))
            .add_service(NodeServiceServer::new(nodes))
            .add_service(CheckpointServiceServer::new(Checkpoints::new(handle.clone())))
            .add_service(ObjectServiceServer::new(objects))
            .add_service(CurationServiceServer::new(Curation::new(handle)));
        self.network.listen(self.index, routes, process.clone());
        self.running = Some(Running { process, stop, drain });
        Ok(())
    }

    fn clock(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let (began, skew) = (self.began, self.skew_millis.clone());
        Arc::new(move || {
            let millis = EPOCH_MILLIS + u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            Timestamp(millis.saturating_add_signed(skew.load(Ordering::Relaxed)))
        })
    }

    /// As SIGKILL, or a power cut.
    pub fn kill(&mut self) {
        if let Some(Running { process, stop, .. }) = self.running.take() {
            self.network.hang_up(self.index);
            process.kill();
            stop.cancel();
        }
    }

    /// As SIGTERM: it stays for nodes that leave with it, and is gone some seconds later.
    pub fn terminate(&self) {
        if let Some(Running { process, stop, drain }) = &self.running {
            let (stop, drain) = (stop.clone(), drain.clone());
            drain.asked().cancel();
            process.spawn(async move {
                drain.over().await;
                stop.cancel();
            });
        }
    }

    /// Starts it again after [`Controller::terminate`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.running.as_ref().is_some_and(|running| running.drain.asked().is_cancelled()) {
            self.kill();
            self.start()?;
        }
        Ok(())
    }

    /// As SIGSTOP.
    pub fn pause(&self) {
        self.paused.fetch_add(1, Ordering::Relaxed);
        if let Some(running) = &self.running {
            running.process.gate.close();
        }
        self.answers(false);
    }

    pub fn resume(&self) {
        self.paused.fetch_sub(1, Ordering::Relaxed);
        if let Some(running) = &self.running {
            running.process.gate.open();
        }
        self.answers(true);
    }

    /// One that stands still answers no keepalive either.
    fn answers(&self, answers: bool) {
        (0..=PEOPLE).for_each(|peer| self.network.cut((peer, self.index), Way::Down, !answers));
    }
}

/// Two queues, of which each is sure of the slots of the largest job that a schedule draws.
fn shared_by_queues() -> Quotas {
    let queue = |name: &str| {
        let guaranteed = BTreeMap::from([("cpu".to_owned(), 3)]);
        (name.to_owned(), Queue { guaranteed, ..Queue::default() })
    };
    let queues = Queues { by_name: BTreeMap::from(["a", "b"].map(queue)), ..Queues::default() };
    let fair_share = Some(Duration::from_secs(120));
    Quotas { classes: classes(), queues, fair_share, ..Quotas::default() }
}

/// Each priority that a schedule draws is a class of its own, and the highest loses its slots to nobody.
fn classes() -> PriorityClasses {
    let class =
        |name: &str, preemptible| PriorityClass { name: name.to_owned(), preempts: true, preemptible };
    PriorityClasses::new(BTreeMap::from([
        (0, class("normal", true)),
        (10, class("high", true)),
        (20, class("fixed", false)),
    ]))
}
