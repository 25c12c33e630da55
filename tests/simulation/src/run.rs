//! One seed from its beginning to its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use crescendo_controller::access::Caller;
use crescendo_core::access::Role;
use crescendo_core::ids::NodeId;
use crescendo_node::runtime::random;
use crescendo_node::runtime::supervise::Drain;
use crescendo_node::session::call::Controllers;
use crescendo_proto::v1;
use crescendo_store::Revision;
use crescendo_store::testing::SimulatedServer;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::checker::{Checker, Violation};
use crate::client::People;
use crate::controller::{Controller, StoreFaults};
use crate::curator::{self, CuratorFaults, CuratorParts};
use crate::gang::Gangs;
use crate::lies::Lies;
use crate::network::{Network, Way};
use crate::objects::Objects;
use crate::plants::{Plant, Soil};
use crate::process::Process;
use crate::rng::SharedRng;
use crate::schedule::{
    CONTROLLERS, CURATORS, Event, Fault, LASTS, NODES, PATIENCE, PEOPLE, QUIET_AFTER, TRAINERS, What, Work,
};
use crate::trace::Trace;
use crate::trainer::{self, RankFaults, TrainerParts};

/// Bugs are put in once the cluster is at work.
const PLANTED_AFTER: Duration = Duration::from_secs(30);
/// What a node has to hand over in, as shipped.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);
/// Slots of each trainer.
const SLOTS: u32 = 2;

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub events: Vec<Event>,
    pub plant: Option<Plant>,
    /// All lines of the trace are kept, not only the last ones.
    pub keep_trace: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub trace_hash: u64,
    pub trace_lines: u64,
    pub lines: Vec<String>,
    pub simulated: Duration,
    pub commits: u64,
    pub faults: u64,
    /// Jobs that are still there, by their state.
    pub ended: std::collections::BTreeMap<&'static str, usize>,
    /// Jobs that are gone.
    pub deleted: usize,
    /// When the last job ended.
    pub last_end: Duration,
}

/// Runs one schedule. Must not be called within a runtime.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    random::seed_thread(Some(options.seed));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("build the runtime")?;
    let outcome = runtime.block_on(async {
        let mut world = World::new(options)?;
        world.live(options).await
    });
    drop(runtime);
    random::seed_thread(None);
    outcome
}

enum NodeFaults {
    Trainer(Arc<RankFaults>),
    Curator(Arc<CuratorFaults>),
}

/// A node's process, and how it is asked to stop.
#[derive(Clone)]
struct NodeProcess {
    process: Arc<Process>,
    drain: Drain,
    stop: CancellationToken,
}

impl NodeProcess {
    fn new() -> Self {
        let (drain, stop) = (Drain::new(DRAIN_WITHIN), CancellationToken::new());
        Self { process: Arc::default(), drain, stop }
    }

    /// As SIGTERM.
    fn terminate(&self) {
        let Self { process, drain, stop } = self.clone();
        drain.asked().cancel();
        process.spawn(async move {
            drain.over().await;
            stop.cancel();
        });
    }
}

struct Node {
    id: String,
    peer: usize,
    faults: NodeFaults,
    process: Option<NodeProcess>,
    /// What its agent keeps of its last stop.
    departure: Arc<Mutex<Vec<v1::LeftAttempt>>>,
    lives: u64,
}

/// What ends by itself.
type Undo = Box<dyn FnOnce(&mut World) -> anyhow::Result<()> + Send>;

struct World {
    trace: Trace,
    rng: SharedRng,
    network: Network,
    records: SimulatedServer,
    checker: Checker,
    objects: Objects,
    store_faults: Arc<StoreFaults>,
    controllers: Vec<Controller>,
    nodes: Vec<Node>,
    gangs: Gangs,
    people: People,
    persons: Process,
    /// What is due, in order of time and then of being asked for.
    due: std::collections::BTreeMap<(Instant, u64), Undo>,
    asked: u64,
    faults: u64,
    /// Times that everything was stopped.
    stops: u64,
}

fn caller(node: Option<&str>) -> Caller {
    match node.and_then(|node| NodeId::parse(node).ok()) {
        Some(node) => {
            Caller { name: node.to_string(), role: Role::Node, node: Some(node), ..Caller::dev(None) }
        }
        None => Caller::dev(None),
    }
}

impl World {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let trace = Trace::new(options.keep_trace);
        let rng = SharedRng::new(options.seed ^ 0x5eed);
        let network = Network::new(rng.clone(), trace.clone());
        let (records, checker) = (SimulatedServer::default(), Checker::new(trace.clone()));
        let watching = checker.clone();
        records.observe(move |revision, changes| watching.commit(revision, changes));
        let store_faults = Arc::<StoreFaults>::default();
        let controllers = (0..CONTROLLERS)
            .map(|index| Controller::new(index, &network, &records, &checker, &rng, &store_faults))
            .collect();
        let nodes = (0..NODES)
            .map(|peer| {
                let (id, faults) = if peer < TRAINERS {
                    (format!("trainer-{peer}"), NodeFaults::Trainer(Arc::default()))
                } else {
                    (format!("curator-{}", peer - TRAINERS), NodeFaults::Curator(Arc::default()))
                };
                Node { id, peer, faults, process: None, departure: Arc::default(), lives: 0 }
            })
            .collect();
        let ways = network.links(PEOPLE, CONTROLLERS, &caller(None));
        let people = People::new(Controllers::over(ways)?, checker.clone(), trace.clone());
        Ok(Self {
            trace,
            rng,
            network,
            records,
            objects: Objects::new(checker.clone()),
            checker,
            store_faults,
            controllers,
            nodes,
            gangs: Gangs::default(),
            people,
            persons: Process::default(),
            due: std::collections::BTreeMap::new(),
            asked: 0,
            faults: 0,
            stops: 0,
        })
    }

    async fn live(&mut self, options: &Options) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        for controller in &mut self.controllers {
            controller.start()?;
        }
        for node in 0..NODES {
            self.start_node(node)?;
        }
        let mut plant = options.plant;
        for event in &options.events {
            self.until(began + event.at).await?;
            if let Some(wanted) = plant.filter(|_| event.at > PLANTED_AFTER) {
                plant = (!self.soil().plant(wanted)).then_some(wanted);
            }
            self.trace.note(format_args!("{:?}", event.what));
            match &event.what {
                What::Work(work) => self.work(work),
                What::Fault(fault) => self.begin(fault)?,
            }
        }
        while let Some(wanted) = plant.filter(|_| began.elapsed() < QUIET_AFTER) {
            plant = (!self.soil().plant(wanted)).then_some(wanted);
            self.until(Instant::now() + Duration::from_secs(1)).await?;
        }
        self.until(began + QUIET_AFTER).await?;
        self.until_quiet().await?;
        let quiet_at = Instant::now();
        self.until(began + LASTS).await?;
        let has_work = |checker: &Checker| !(checker.open_jobs().is_empty() && checker.deleting().is_empty());
        while has_work(&self.checker) && quiet_at.elapsed() < PATIENCE {
            sleep(Duration::from_secs(5)).await;
        }
        for job in self.checker.open_jobs() {
            self.checker.broken(0, format!("job {job} has not ended {PATIENCE:?} after the last fault"));
        }
        for job in self.checker.deleting() {
            self.checker.broken(0, format!("job {job} is not deleted {PATIENCE:?} after the last fault"));
        }
        self.persons.kill();
        let deleted = self.checker.check_deleted(|job| self.objects.of_job(job.as_str()));
        Ok(Outcome {
            deleted,
            violations: self.checker.violations(),
            trace_hash: self.trace.hash(),
            trace_lines: self.trace.count(),
            lines: self.trace.lines(),
            simulated: began.elapsed(),
            commits: self.checker.commits(),
            faults: self.faults,
            ended: self.checker.outcomes(),
            last_end: self.checker.last_end(),
        })
    }

    fn soil(&self) -> Soil<'_> {
        let ranks = self.nodes.iter().filter_map(|node| match &node.faults {
            NodeFaults::Trainer(faults) => Some(&**faults),
            NodeFaults::Curator(_) => None,
        });
        Soil { records: &self.records, checker: &self.checker, people: &self.people, ranks: ranks.collect() }
    }

    /// Lets time pass, and does what is due meanwhile.
    async fn until(&mut self, then: Instant) -> anyhow::Result<()> {
        while let Some(entry) = self.due.first_entry() {
            let (at, _) = *entry.key();
            if at > then {
                break;
            }
            let undo = entry.remove();
            sleep_until(at).await;
            undo(self)?;
        }
        sleep_until(then).await;
        Ok(())
    }

    /// Ends every fault that still holds.
    async fn until_quiet(&mut self) -> anyhow::Result<()> {
        while let Some((at, _)) = self.due.keys().last().copied() {
            self.until(at).await?;
        }
        self.network.heal();
        for controller in &mut self.controllers {
            controller.start()?;
        }
        self.trace.note(format_args!("quiet"));
        Ok(())
    }

    fn later(
        &mut self,
        after: Duration,
        undo: impl FnOnce(&mut Self) -> anyhow::Result<()> + Send + 'static,
    ) {
        self.asked += 1;
        self.due.insert((Instant::now() + after, self.asked), Box::new(undo));
    }

    fn work(&mut self, work: &Work) {
        let people = self.people.clone();
        match work {
            Work::Submit { job, spec } => self.persons.spawn(people.submit(*job, spec.clone())),
            Work::Delete { job, keep_pairs } => self.persons.spawn(people.delete(*job, *keep_pairs)),
            Work::Pause { job, keep_curating, lasts } => {
                self.persons.spawn(people.pause(*job, *keep_curating, *lasts));
            }
            Work::Cancel { job } => self.persons.spawn(people.cancel(*job)),
            Work::Drain { node, undo } => {
                self.persons.spawn(people.drain(self.nodes[*node].id.clone(), *undo));
            }
            Work::Watch { job } => self.persons.spawn(people.watch(*job)),
        }
    }

    fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let Node { id, peer, process, lives, .. } = &mut self.nodes[node];
        if process.is_some() {
            return Ok(());
        }
        *lives += 1;
        let (machine, hello) = (id.clone(), hello(id, *peer, *lives));
        let started = self.start_process(node, machine, hello)?;
        self.nodes[node].process = Some(started);
        Ok(())
    }

    /// A process of the node's name on this machine.
    fn start_process(&self, node: usize, machine: String, hello: v1::Hello) -> anyhow::Result<NodeProcess> {
        let Node { id, peer, faults, departure, .. } = &self.nodes[node];
        // Another machine has another disk.
        let departure = if machine == *id { departure.clone() } else { Arc::default() };
        let controllers = Controllers::over(self.network.links(*peer, CONTROLLERS, &caller(Some(id))))?;
        let started = NodeProcess::new();
        let (drain, stop) = (started.drain.clone(), started.stop.clone());
        match faults {
            NodeFaults::Trainer(faults) => {
                let parts = TrainerParts {
                    id: id.clone(),
                    machine,
                    slots: SLOTS,
                    controllers,
                    gangs: self.gangs.clone(),
                    faults: faults.clone(),
                    checker: self.checker.clone(),
                    objects: self.objects.clone(),
                    rng: self.rng.clone(),
                    trace: self.trace.clone(),
                    drain,
                    stop,
                    departure,
                };
                trainer::start(parts, &started.process, hello);
            }
            NodeFaults::Curator(faults) => {
                let parts = CuratorParts {
                    id: id.clone(),
                    controllers,
                    faults: faults.clone(),
                    rng: self.rng.clone(),
                    objects: self.objects.clone(),
                    checker: self.checker.clone(),
                    drain,
                    stop,
                };
                curator::start(parts, &started.process, hello);
            }
        }
        Ok(started)
    }

    /// Another machine calls itself by the node's name. That is no reason to end anything, unless the node itself is out of
    /// sight: then the other may be the node, started again.
    fn twin(&mut self, node: usize, lasts: Duration) -> anyhow::Result<()> {
        let Node { id, peer, .. } = &self.nodes[node];
        let (id, number) = (id.clone(), self.faults);
        let machine = format!("{id}-twin-{number}");
        let hello = v1::Hello {
            incarnation: machine.clone(),
            address: format!("10.0.{}.{peer}:7400", 1 + number),
            ..hello(&id, *peer, 0)
        };
        self.checker.twin(&id, lasts);
        let process = self.start_process(node, machine.clone(), hello)?;
        self.later(lasts, move |world| {
            // If it has taken the place of the node, the node dies with it.
            if world.checker.is_known_as(&id, &machine) {
                world.checker.node_fault(&id, Duration::ZERO);
            }
            process.process.kill();
            world.checker.node_died(&machine);
            Ok(())
        });
        Ok(())
    }

    fn begin(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.faults += 1;
        match *fault {
            Fault::KillController { controller, down } => {
                self.controllers[controller].kill();
                self.later(down, move |world| world.controllers[controller].start());
            }
            Fault::PauseController { controller, lasts } => {
                self.controllers[controller].pause();
                self.later(lasts, move |world| {
                    world.controllers[controller].resume();
                    Ok(())
                });
            }
            Fault::StepClock { controller, millis } => {
                self.controllers[controller].skew_millis.fetch_add(millis, Ordering::Relaxed);
            }
            Fault::KillNode { node, down } => self.kill_node(node, down),
            Fault::PauseNode { node, lasts } => self.pause_node(node, lasts),
            Fault::FailFast { node, lasts } => {
                self.node_fault(node, lasts);
                let flag = |node: &Node| match &node.faults {
                    NodeFaults::Trainer(faults) => {
                        FaultFlag::Trainer(faults.clone(), |faults| &faults.fail_fast)
                    }
                    NodeFaults::Curator(faults) => FaultFlag::Curator(faults.clone(), |faults| &faults.fail),
                };
                self.raise(flag(&self.nodes[node]), lasts);
            }
            Fault::Hang { node, lasts } => {
                self.node_fault(node, lasts);
                let flag = |node: &Node| match &node.faults {
                    NodeFaults::Trainer(faults) => FaultFlag::Trainer(faults.clone(), |faults| &faults.hang),
                    NodeFaults::Curator(faults) => FaultFlag::Curator(faults.clone(), |faults| &faults.hang),
                };
                self.raise(flag(&self.nodes[node]), lasts);
            }
            Fault::Lie { node } => self.lie(node),
            Fault::Twin { node, lasts } => self.twin(node, lasts)?,
            Fault::StopAll { controllers_first, down } => self.stop_all(controllers_first, down),
            Fault::Cut { peer, controller, up, down, lasts } => {
                if let Some(node) = self.nodes.get(peer) {
                    self.checker.cut(&node.id, lasts);
                }
                self.cut_line((peer, controller), up, down, lasts);
            }
            Fault::Delay { peer, by, lasts } => {
                self.on_lines(peer, lasts, move |network, ends, begins| {
                    network.delay(ends, if begins { by } else { Duration::ZERO });
                });
            }
            Fault::LoseAnswers { peer, permille, lasts } => {
                self.on_lines(peer, lasts, move |network, ends, begins| {
                    network.lose_answers(ends, if begins { permille } else { 0 });
                });
            }
            Fault::Isolate { peer, up, down, lasts } => {
                if let Some(node) = self.nodes.get(peer) {
                    self.checker.cut(&node.id, lasts);
                }
                (0..CONTROLLERS).for_each(|controller| self.cut_line((peer, controller), up, down, lasts));
            }
            Fault::PauseControllers { lasts } => {
                self.controllers.iter().for_each(Controller::pause);
                self.later(lasts, |world| {
                    world.controllers.iter().for_each(Controller::resume);
                    Ok(())
                });
            }
            Fault::CutStore { .. }
            | Fault::LoseStoreAnswers { .. }
            | Fault::SlowDisk { .. }
            | Fault::FullDisk { .. }
            | Fault::EndLeases
            | Fault::Compact => self.begin_at_store(fault),
        }
        Ok(())
    }

    fn begin_at_store(&mut self, fault: &Fault) {
        match *fault {
            Fault::CutStore { controller, lasts } => {
                let faults = self.controllers[controller].faults.clone();
                self.on_store(faults, |faults| &faults.cuts, 1, lasts);
            }
            Fault::LoseStoreAnswers { permille, lasts } => {
                let faults = self.store_faults.clone();
                self.on_store(faults, |faults| &faults.lost_answers_permille, permille, lasts);
            }
            Fault::SlowDisk { millis, lasts } => {
                self.on_store(self.store_faults.clone(), |faults| &faults.slow_millis, millis, lasts);
            }
            Fault::FullDisk { lasts } => {
                self.on_store(self.store_faults.clone(), |faults| &faults.full, 1, lasts);
            }
            Fault::EndLeases => self.records.end_leases(),
            Fault::Compact => self.records.compact(Revision(u64::MAX)),
            Fault::KillController { .. }
            | Fault::PauseController { .. }
            | Fault::StepClock { .. }
            | Fault::KillNode { .. }
            | Fault::PauseNode { .. }
            | Fault::FailFast { .. }
            | Fault::Hang { .. }
            | Fault::Lie { .. }
            | Fault::Cut { .. }
            | Fault::Delay { .. }
            | Fault::LoseAnswers { .. }
            | Fault::Isolate { .. }
            | Fault::PauseControllers { .. }
            | Fault::Twin { .. }
            | Fault::StopAll { .. } => {}
        }
    }

    fn node_fault(&self, node: usize, lasts: Duration) {
        self.checker.node_fault(&self.nodes[node].id, lasts);
    }

    fn kill_node(&mut self, node: usize, down: Duration) {
        self.node_fault(node, down);
        if let Some(NodeProcess { process, .. }) = self.nodes[node].process.take() {
            process.kill();
            self.checker.node_died(&self.nodes[node].id);
        }
        self.later(down, move |world| world.start_node(node));
    }

    /// A person stops everything, the controllers this long before the nodes, and starts it again.
    fn stop_all(&mut self, controllers_first: Duration, down: Duration) {
        self.controllers.iter().for_each(Controller::terminate);
        // Where a controller is started again before its nodes, they are out of its sight.
        self.nodes.iter().for_each(|node| self.checker.cut(&node.id, controllers_first + down));
        self.later(controllers_first, |world| {
            world.nodes.iter().filter_map(|node| node.process.as_ref()).for_each(NodeProcess::terminate);
            Ok(())
        });
        self.stops += 1;
        let stop = self.stops;
        self.later(controllers_first + down, move |world| {
            // Of stops that overlap the last one ends.
            if world.stops != stop {
                return Ok(());
            }
            for controller in &mut world.controllers {
                controller.start_again()?;
            }
            for node in 0..NODES {
                world.start_again(node)?;
            }
            Ok(())
        });
    }

    /// Starts a node that was asked to stop.
    fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        let Node { id, process, .. } = &mut self.nodes[node];
        let Some(NodeProcess { process: left, stop, .. }) =
            process.take_if(|process| process.drain.asked().is_cancelled())
        else {
            return Ok(());
        };
        // One that has not left by itself is killed.
        if !stop.is_cancelled() || left.gate.is_closed() {
            self.checker.node_fault(id, Duration::ZERO);
        }
        left.kill();
        self.checker.node_died(id);
        self.start_node(node)
    }

    fn pause_node(&mut self, node: usize, lasts: Duration) {
        let Some(NodeProcess { process, .. }) = self.nodes[node].process.clone() else { return };
        self.checker.cut(&self.nodes[node].id, lasts);
        process.gate.close();
        self.later(lasts, move |_| {
            process.gate.open();
            Ok(())
        });
    }

    fn cut_line(&mut self, ends: (usize, usize), up: bool, down: bool, lasts: Duration) {
        let ways = [(up, Way::Up), (down, Way::Down)];
        let ways: Vec<Way> = ways.into_iter().filter(|(cut, _)| *cut).map(|(_, way)| way).collect();
        for way in &ways {
            self.network.cut(ends, *way, true);
        }
        self.later(lasts, move |world| {
            for way in ways {
                world.network.cut(ends, way, false);
            }
            Ok(())
        });
    }

    fn on_lines(
        &mut self,
        peer: usize,
        lasts: Duration,
        change: impl Fn(&Network, (usize, usize), bool) + Send + 'static,
    ) {
        (0..CONTROLLERS).for_each(|controller| change(&self.network, (peer, controller), true));
        self.later(lasts, move |world| {
            (0..CONTROLLERS).for_each(|controller| change(&world.network, (peer, controller), false));
            Ok(())
        });
    }

    fn on_store(
        &mut self,
        faults: Arc<StoreFaults>,
        which: fn(&StoreFaults) -> &AtomicU64,
        by: u64,
        lasts: Duration,
    ) {
        which(&faults).fetch_add(by, Ordering::Relaxed);
        self.later(lasts, move |_| {
            which(&faults).fetch_sub(by, Ordering::Relaxed);
            Ok(())
        });
    }

    fn raise(&mut self, flag: FaultFlag, lasts: Duration) {
        flag.set(true);
        self.later(lasts, move |_| {
            flag.set(false);
            Ok(())
        });
    }

    /// The node says, in a session beside its own, that what is over of its attempts has failed, and hands in a checkpoint
    /// and a unit that it has lost.
    fn lie(&mut self, node: usize) {
        let Node { id, peer, lives, .. } = &self.nodes[node];
        let Some(NodeProcess { process, .. }) = self.nodes[node].process.clone() else { return };
        let hello = hello(id, *peer, *lives);
        let channel = |controller| self.network.channel((*peer, controller), caller(Some(id)));
        for controller in 0..CONTROLLERS {
            let lies = Lies { channel: channel(controller), hello: hello.clone(), jobs: self.checker.jobs() };
            process.spawn(lies.tell());
        }
    }
}

/// One of a node's faults, as a flag.
enum FaultFlag {
    Trainer(Arc<RankFaults>, fn(&RankFaults) -> &AtomicBool),
    Curator(Arc<CuratorFaults>, fn(&CuratorFaults) -> &AtomicBool),
}

impl FaultFlag {
    fn set(&self, value: bool) {
        match self {
            Self::Trainer(faults, which) => which(faults).store(value, Ordering::Relaxed),
            Self::Curator(faults, which) => which(faults).store(value, Ordering::Relaxed),
        }
    }
}

fn hello(id: &str, peer: usize, life: u64) -> v1::Hello {
    let is_trainer = peer < NODES - CURATORS;
    let kind = if is_trainer { v1::NodeKind::Trainer } else { v1::NodeKind::Curator };
    v1::Hello {
        node_id: id.to_owned(),
        incarnation: format!("{id}-{life}"),
        kind: kind.into(),
        slots: if is_trainer { SLOTS } else { 0 },
        device: "cpu".into(),
        address: format!("10.0.0.{peer}:7400"),
        version: "0.1.0".into(),
        ..Default::default()
    }
}
