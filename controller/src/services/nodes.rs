use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_core::ids::NodeId;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::SILENCE_LIMIT;
use crescendo_proto::convert;
use crescendo_proto::v1;
use crescendo_proto::v1::node_service_server::NodeService;
use crescendo_proto::v1::open_session_request::Message as Up;
use tonic::{Request, Response, Status, Streaming};

use crate::access::{Caller, caller_of, trail_of};
use crate::engine::{self, SessionId};
use crate::leadership::EngineHandle;
use crate::logs::LogHub;
use crate::metrics::Metrics;
use crate::services::quiet::KeptAlive;
use crate::services::{checked, stage_ref};
use crate::unit_board::UnitBoard;

/// A session has to begin with its Hello within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Sessions of nodes.
pub struct Nodes {
    engine: EngineHandle,
    logs: LogHub,
    units: UnitBoard,
    metrics: Metrics,
    tasks: Tasks,
}

impl Nodes {
    pub fn new(engine: EngineHandle, logs: LogHub, units: UnitBoard, metrics: Metrics, tasks: Tasks) -> Self {
        Self { engine, logs, units, metrics, tasks }
    }
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type OpenSessionStream = KeptAlive<v1::OpenSessionResponse>;

    async fn open_session(
        &self,
        request: Request<Streaming<v1::OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(Up::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("the first message of a session must be hello"));
        };
        let introduction = Box::new(checked(convert::hello(hello))?);
        let node = introduction.record.id.clone();
        trail.on("node", &node);
        caller.check_acts_as(&node)?;
        let opened = self.engine.ask(|reply| engine::Request::OpenSession { introduction, reply }).await?;
        let session = NodeMessages {
            engine: self.engine.clone(),
            logs: self.logs.clone(),
            units: self.units.clone(),
            metrics: self.metrics.clone(),
            node,
            session: opened.id,
        };
        let stop = self.tasks.stop_token();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = session.run(incoming) => {}
            }
        });
        // A command that is none: nodes pass over what they do not know.
        let filler = |_: Option<&v1::OpenSessionResponse>| v1::OpenSessionResponse::default();
        Ok(Response::new(KeptAlive::new(opened.outgoing, SILENCE_LIMIT, filler)))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let scope = caller_of(&request)?.scope();
        Ok(Response::new(self.engine.look(|reply| engine::LookRequest::ListNodes { scope, reply }).await?))
    }

    async fn forget_node(
        &self,
        request: Request<v1::ForgetNodeRequest>,
    ) -> Result<Response<v1::ForgetNodeResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let node = checked(convert::id("node_id", &request.into_inner().node_id, NodeId::parse))?;
        trail.on("node", &node);
        check_of_no_tenant(&caller, "forgetting")?;
        self.engine.ask(|reply| engine::Request::ForgetNode { node, reply }).await?;
        Ok(Response::new(v1::ForgetNodeResponse {}))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let v1::DrainNodeRequest { node_id, undo } = request.into_inner();
        let node = checked(convert::id("node_id", &node_id, NodeId::parse))?;
        trail.on("node", &node);
        check_of_no_tenant(&caller, "draining")?;
        let scope = caller.scope();
        let node = self.engine.ask(|reply| engine::Request::DrainNode { node, undo, scope, reply }).await?;
        Ok(Response::new(v1::DrainNodeResponse { node: Some(node) }))
    }
}

/// Nodes work for every tenant.
fn check_of_no_tenant(caller: &Caller, doing: &str) -> Result<(), Status> {
    match &caller.tenant {
        Some(tenant) => Err(Status::permission_denied(format!(
            "nodes work for every tenant: {doing} one needs an admin without a tenant, and {} is of tenant {tenant}",
            caller.name
        ))),
        None => Ok(()),
    }
}

/// What a node says in one session.
struct NodeMessages {
    engine: EngineHandle,
    logs: LogHub,
    units: UnitBoard,
    metrics: Metrics,
    node: NodeId,
    session: SessionId,
}

impl NodeMessages {
    /// Hands on what the node says, until it or the engine goes away.
    async fn run(self, mut incoming: Streaming<v1::OpenSessionRequest>) {
        while let Ok(Some(request)) = incoming.message().await {
            let Some(message) = request.message else { continue };
            if self.take(message).await.is_err() {
                return;
            }
        }
        // An engine that is gone has forgotten the session anyway.
        let _ =
            self.engine.tell(engine::Request::CloseSession { node: self.node, session: self.session }).await;
    }

    fn not_understood(&self, refused: &RequestError) {
        tracing::warn!(node = %self.node, %refused, "a report of the node is not understood and ignored; its version may be another");
    }

    async fn take(&self, message: Up) -> Result<(), Status> {
        match message {
            Up::Hello(_) => Ok(()),
            Up::Heartbeat(_) => {
                let (node, session) = (self.node.clone(), self.session);
                self.engine.tell(engine::Request::Heartbeat { node, session }).await
            }
            Up::NodeDrains(_) => {
                let (node, session) = (self.node.clone(), self.session);
                self.engine.tell(engine::Request::NodeDrains { node, session }).await
            }
            Up::NodeHealth(health) => {
                let (node, session) = (self.node.clone(), self.session);
                let health = convert::node_health(health);
                self.engine.tell(engine::Request::NodeHealth { node, session, health }).await
            }
            Up::AttemptReport(report) => match convert::report(self.node.clone(), report) {
                Ok(report) => {
                    self.engine.tell(engine::Request::Report { session: self.session, report }).await
                }
                Err(refused) => {
                    // One report that says nothing loses nothing else.
                    self.not_understood(&refused);
                    Ok(())
                }
            },
            Up::AssignmentRefused(refused) => {
                let stage = refused.stage.unwrap_or_default();
                match stage_ref(&stage.job_id, &stage.stage) {
                    Ok(stage) => {
                        let (node, session, reason) = (self.node.clone(), self.session, refused.reason);
                        self.engine
                            .tell(engine::Request::AssignmentRefused { node, session, stage, reason })
                            .await
                    }
                    Err(_) => {
                        self.not_understood(&RequestError::invalid("assignment_refused.stage", "is missing"));
                        Ok(())
                    }
                }
            }
            Up::UnitReport(report) => {
                match convert::unit_report(&report) {
                    Ok((stage, progress)) => self.units.put(&self.node, self.session, stage, progress),
                    Err(refused) => self.not_understood(&refused),
                }
                Ok(())
            }
            Up::LogBatch(batch) => {
                self.metrics.log_lines.inc_by(batch.lines.len() as u64);
                self.logs.push(self.node.as_str(), batch);
                Ok(())
            }
        }
    }
}
