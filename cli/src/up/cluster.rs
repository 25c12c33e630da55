//! All processes of the cluster together: started in order, watched, stopped in the opposite order.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::layout::Layout;
use super::process::{self, Event, Instruction, LaunchSpec};
use super::state::{ProcessState, UpState};
use crate::failure::Failure;
use crate::settings::{Origin, Target};
use crate::show;

/// The controller's index; the nodes follow.
const CONTROLLER: usize = 0;
/// Between two remarks about what is waited for.
const REMARK_EVERY: Duration = Duration::from_secs(5);

pub struct Cluster {
    layout: Layout,
    processes: Vec<ProcessState>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    controller: Group,
    curators: Group,
    trainers: Group,
}

/// Processes that are stopped together. Each task gives its process's index when it ends.
struct Group {
    order: watch::Sender<Instruction>,
    indices: Vec<usize>,
    tasks: JoinSet<usize>,
}

impl Group {
    fn new() -> Group {
        Group { order: watch::Sender::new(Instruction::Run), indices: Vec::new(), tasks: JoinSet::new() }
    }

    fn spawn(&mut self, index: usize, plan: LaunchSpec, events: mpsc::Sender<Event>) {
        self.indices.push(index);
        let keeping = process::keep(index, plan, self.order.subscribe(), events);
        self.tasks.spawn(async move {
            keeping.await;
            index
        });
    }
}

impl Cluster {
    pub fn new(layout: Layout) -> Cluster {
        Cluster {
            layout,
            processes: Vec::new(),
            events: mpsc::channel(64),
            controller: Group::new(),
            curators: Group::new(),
            trainers: Group::new(),
        }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Empty until it serves.
    pub fn controller_address(&self) -> &str {
        self.processes.get(CONTROLLER).and_then(|process| process.grpc.as_deref()).unwrap_or_default()
    }

    /// How commands reach it.
    pub fn target(&self) -> Target {
        Target {
            addresses: vec![self.controller_address().to_owned()],
            object_store: Some(self.layout.object_store.clone()),
            library_root: Some(self.layout.library_root.clone()),
            origin: Origin::Up(self.layout.dir.clone()),
            ..Target::default()
        }
    }

    pub async fn start_controller(&mut self) -> Result<(), Failure> {
        let plan = self.layout.controller();
        let (index, events) = self.add(&plan);
        self.controller.spawn(index, plan, events);
        self.wait_until_all_serve().await
    }

    pub async fn start_nodes(&mut self) -> Result<(), Failure> {
        let address = self.controller_address().to_owned();
        for plan in self.layout.curators(&address) {
            let (index, events) = self.add(&plan);
            self.curators.spawn(index, plan, events);
        }
        for plan in self.layout.trainers(&address) {
            let (index, events) = self.add(&plan);
            self.trainers.spawn(index, plan, events);
        }
        self.wait_until_all_serve().await
    }

    fn add(&mut self, plan: &LaunchSpec) -> (usize, mpsc::Sender<Event>) {
        let (name, log) = (plan.name.clone(), plan.log.clone());
        self.processes.push(ProcessState { name, pid: None, grpc: None, metrics: None, log, restarts: 0 });
        (self.processes.len() - 1, self.events.0.clone())
    }

    /// Every process says within its own time limit that it serves, or that it never will.
    async fn wait_until_all_serve(&mut self) -> Result<(), Failure> {
        while self.processes.iter().any(|process| process.grpc.is_none()) {
            self.next().await?;
        }
        Ok(())
    }

    /// Takes note of what happens to the processes. Ends only when one can never run.
    pub async fn supervise(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.next().await {
                return failure;
            }
        }
    }

    async fn next(&mut self) -> Result<(), Failure> {
        // One sender is held here, so there is always a next event to wait for.
        let Some(event) = self.events.1.recv().await else { return Ok(()) };
        self.apply(event)?;
        self.write_state()
    }

    fn apply(&mut self, event: Event) -> Result<(), Failure> {
        let (Event::Started { index, .. }
        | Event::Serves { index, .. }
        | Event::NeverServed { index, .. }
        | Event::Died { index, .. }) = event;
        let Some(process) = self.processes.get_mut(index) else { return Ok(()) };
        match event {
            Event::Started { pid, .. } => process.pid = pid,
            Event::Serves { ports, .. } => {
                process.grpc = Some(ports.grpc);
                process.metrics = Some(ports.metrics);
            }
            Event::Died { status, pause, .. } => {
                process.pid = None;
                process.restarts = process.restarts.saturating_add(1);
                let name = &process.name;
                show::errln(format_args!(
                    "{name} {status}; it is started again in {pause:?} (log: {})",
                    process.log.display()
                ));
            }
            Event::NeverServed { why, .. } => return Err(Failure::other(why)),
        }
        Ok(())
    }

    fn write_state(&self) -> Result<(), Failure> {
        if self.controller_address().is_empty() {
            return Ok(());
        }
        let state = UpState {
            dir: self.layout.dir.clone(),
            pid: std::process::id(),
            controller: self.controller_address().to_owned(),
            object_store: self.layout.object_store.clone(),
            library_root: self.layout.library_root.clone(),
            processes: self.processes.clone(),
        };
        state.write().map_err(Failure::from_error("write up.json"))
    }

    /// Trainers save a checkpoint and leave while the controller still registers what they save; `remark` is told every
    /// few seconds who is waited for.
    pub async fn stop_trainers(&mut self, remark: impl Fn(&[&str], Duration)) {
        let Cluster { trainers, processes, .. } = self;
        wind_down(trainers, processes, remark).await;
    }

    /// Curators, which give back what they work on, and the controller last.
    pub async fn stop_rest(&mut self) {
        let Cluster { curators, controller, processes, .. } = self;
        wind_down(curators, processes, |_, _| ()).await;
        wind_down(controller, processes, |_, _| ()).await;
        UpState::remove(&self.layout.dir);
    }

    /// All at once, without waiting.
    pub fn kill(&mut self) {
        // Dropped tasks drop their processes, which kills them.
        self.trainers.tasks.abort_all();
        self.curators.tasks.abort_all();
        self.controller.tasks.abort_all();
        UpState::remove(&self.layout.dir);
    }
}

/// Tells all of a group to stop, and waits until they have.
async fn wind_down(group: &mut Group, processes: &[ProcessState], remark: impl Fn(&[&str], Duration)) {
    let mut left = std::mem::take(&mut group.indices);
    group.order.send_replace(Instruction::Stop);
    let began = Instant::now();
    let mut ticks = tokio::time::interval_at(began + REMARK_EVERY, REMARK_EVERY);
    loop {
        tokio::select! {
            ended = group.tasks.join_next() => match ended {
                Some(Ok(index)) => left.retain(|other| *other != index),
                // A task that was aborted or has panicked has dropped its process.
                Some(Err(_)) => {}
                None => return,
            },
            _ = ticks.tick() => {
                let names: Vec<&str> =
                    left.iter().filter_map(|index| processes.get(*index)).map(|process| process.name.as_str()).collect();
                remark(&names, began.elapsed());
            }
        }
    }
}
