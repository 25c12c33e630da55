//! All processes of the cluster together: started in order, watched, stopped in the opposite order.

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::layout::Layout;
use super::process::{self, Event, Order, Plan};
use super::state::{ProcessState, UpState};
use crate::failure::Failure;
use crate::show;

/// The controller's index; the nodes follow.
const CONTROLLER: usize = 0;

pub struct Cluster {
    layout: Layout,
    processes: Vec<ProcessState>,
    controller: watch::Sender<Order>,
    nodes: watch::Sender<Order>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    controller_task: JoinSet<()>,
    node_tasks: JoinSet<()>,
}

impl Cluster {
    pub fn new(layout: Layout) -> Cluster {
        Cluster {
            layout,
            processes: Vec::new(),
            controller: watch::Sender::new(Order::Run),
            nodes: watch::Sender::new(Order::Run),
            events: mpsc::channel(64),
            controller_task: JoinSet::new(),
            node_tasks: JoinSet::new(),
        }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Empty until it serves.
    pub fn controller_address(&self) -> &str {
        self.processes.get(CONTROLLER).and_then(|process| process.grpc.as_deref()).unwrap_or_default()
    }

    pub async fn start_controller(&mut self) -> Result<(), Failure> {
        let plan = self.layout.controller();
        let (index, events) = self.add(&plan);
        self.controller_task.spawn(process::keep(index, plan, self.controller.subscribe(), events));
        self.wait_until_all_serve().await
    }

    pub async fn start_nodes(&mut self) -> Result<(), Failure> {
        for plan in self.layout.nodes(self.controller_address()) {
            let (index, events) = self.add(&plan);
            self.node_tasks.spawn(process::keep(index, plan, self.nodes.subscribe(), events));
        }
        self.wait_until_all_serve().await
    }

    fn add(&mut self, plan: &Plan) -> (usize, mpsc::Sender<Event>) {
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
            processes: self.processes.clone(),
        };
        state.write().map_err(Failure::from_error("write up.json"))
    }

    /// Nodes first, so that they can still say goodbye to the controller.
    pub async fn stop(&mut self) {
        self.nodes.send_replace(Order::Stop);
        while self.node_tasks.join_next().await.is_some() {}
        self.controller.send_replace(Order::Stop);
        while self.controller_task.join_next().await.is_some() {}
        UpState::remove(&self.layout.dir);
    }

    /// All at once, without waiting.
    pub fn kill(&mut self) {
        // Dropped tasks drop their processes, which kills them.
        self.node_tasks.abort_all();
        self.controller_task.abort_all();
        UpState::remove(&self.layout.dir);
    }
}
