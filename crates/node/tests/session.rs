//! A node's session against controllers that come and go.

use std::pin::Pin;
use std::time::Duration;

use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::session::call::Controllers;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::{Command, NodeSession};
use crescendo_node::telemetry::log_shipping::LogBuffer;
use crescendo_node::tls::Dialer;
use crescendo_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(30);

type Answers = Pin<Box<dyn Stream<Item = Result<OpenSessionResponse, Status>> + Send>>;
/// The session's answers, to send commands or to end it, and what the node says.
type Opened = (mpsc::Sender<Result<OpenSessionResponse, Status>>, Streaming<OpenSessionRequest>);

/// Hands each session to the test.
struct Leader {
    sessions: mpsc::Sender<Opened>,
}

#[tonic::async_trait]
impl NodeService for Leader {
    type OpenSessionStream = Answers;

    async fn open_session(
        &self,
        request: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (answers, stream) = mpsc::channel(8);
        let welcome =
            Down::Welcome(Welcome { controller_id: "c".into(), heartbeat_millis: 100, ..Welcome::default() });
        answers.send(Ok(OpenSessionResponse { message: Some(welcome) })).await.unwrap();
        self.sessions.send((answers, request.into_inner())).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn forget_node(
        &self,
        _: Request<ForgetNodeRequest>,
    ) -> Result<Response<ForgetNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

/// Refuses: it does not lead.
struct Standby;

#[tonic::async_trait]
impl NodeService for Standby {
    type OpenSessionStream = Answers;

    async fn open_session(
        &self,
        _: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Err(Status::unavailable("not the leader"))
    }

    async fn forget_node(
        &self,
        _: Request<ForgetNodeRequest>,
    ) -> Result<Response<ForgetNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

async fn serve<S: NodeService>(tasks: &Tasks, service: S) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = tasks.stop_token();
    tasks.spawn(async move {
        let server = tonic::transport::Server::builder().add_service(NodeServiceServer::new(service));
        let _ = server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled()).await;
    });
    address
}

async fn next(said: &mut Streaming<OpenSessionRequest>) -> Up {
    let message = tokio::time::timeout(LIMIT, said.message()).await.expect("the node says something in time");
    message.unwrap().unwrap().message.unwrap()
}

/// The next message that is not a heartbeat.
async fn news(said: &mut Streaming<OpenSessionRequest>) -> Up {
    loop {
        match next(said).await {
            Up::Heartbeat(_) => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn a_session_survives_its_controllers() {
    let (tasks, _supervisor) = Tasks::new();
    let (sessions, mut opened) = mpsc::channel(4);
    let standby = serve(&tasks, Standby).await;
    let leader = serve(&tasks, Leader { sessions }).await;
    let controllers = Controllers::new(&[standby, leader], &Dialer::plain()).unwrap();
    let (reports, logs) = (ReportSink::default(), LogBuffer::new("n", 16));
    let hello = || Hello { node_id: "n".into(), ..Hello::default() };
    let (session, mut commands) = NodeSession::new(controllers, reports.clone(), logs.clone(), hello);
    tasks.spawn_critical("session", session.run(tasks.stop_token()));

    // The standby refuses, the leader is found.
    let (answers, mut said) = tokio::time::timeout(LIMIT, opened.recv()).await.unwrap().unwrap();
    assert!(matches!(next(&mut said).await, Up::Hello(hello) if hello.node_id == "n"));
    assert!(matches!(next(&mut said).await, Up::Heartbeat(heartbeat) if heartbeat.sequence == 1));

    let attempt = Some(AttemptRef { job_id: "j".into(), stage: "s".into(), generation: 1 });
    let failed =
        AttemptReport { attempt: attempt.clone(), phase: AttemptPhase::Failed.into(), ..Default::default() };
    reports.put(failed.clone());
    assert!(matches!(news(&mut said).await, Up::AttemptReport(report) if report == failed));
    logs.push(LogLine { message: "hello".into(), ..LogLine::default() });
    assert!(matches!(news(&mut said).await, Up::LogBatch(batch) if batch.lines.len() == 1));

    let stop = StopAttempt { attempt, reason: "because".into(), hung_ranks: Vec::new() };
    answers.send(Ok(OpenSessionResponse { message: Some(Down::StopAttempt(stop.clone())) })).await.unwrap();
    let command = tokio::time::timeout(LIMIT, commands.recv()).await.unwrap();
    assert_eq!(command, Some(Command::StopAttempt(stop)));

    // The session ends; the next one begins with everything that the controller may have forgotten.
    drop((answers, said));
    let (_answers, mut said) = tokio::time::timeout(LIMIT, opened.recv()).await.unwrap().unwrap();
    assert!(matches!(next(&mut said).await, Up::Hello(_)));
    assert!(matches!(news(&mut said).await, Up::AttemptReport(report) if report == failed));
    tasks.stop_token().cancel();
}

#[tokio::test]
async fn a_node_that_leaves_says_so_and_loses_no_last_word() {
    let (tasks, _supervisor) = Tasks::new();
    let (sessions, mut opened) = mpsc::channel(4);
    let leader = serve(&tasks, Leader { sessions }).await;
    let controllers = Controllers::new(&[leader], &Dialer::plain()).unwrap();
    let reports = ReportSink::default();
    let (session, _commands) =
        NodeSession::new(controllers, reports.clone(), LogBuffer::new("n", 16), Hello::default);
    let (leaving, stop) = (Drain::new(LIMIT), CancellationToken::new());
    let running = session.draining(leaving.clone()).run(stop.clone());
    let mut node = tokio::task::JoinSet::new();
    node.spawn(running);
    let (answers, mut said) = tokio::time::timeout(LIMIT, opened.recv()).await.unwrap().unwrap();
    assert!(matches!(next(&mut said).await, Up::Hello(hello) if !hello.draining));
    leaving.asked().cancel();
    assert!(matches!(news(&mut said).await, Up::NodeDrains(_)));
    let report = |phase: AttemptPhase, step: u64| AttemptReport {
        attempt: Some(AttemptRef { job_id: "j".into(), stage: "s".into(), generation: 1 }),
        phase: phase.into(),
        step,
        ..Default::default()
    };
    reports.put(report(AttemptPhase::Running, 1));
    assert!(matches!(news(&mut said).await, Up::AttemptReport(report) if report.step == 1));
    // Too soon for a mere change of progress, were it not the last.
    reports.put(report(AttemptPhase::Running, 2));
    stop.cancel();
    assert!(matches!(news(&mut said).await, Up::AttemptReport(report) if report.step == 2));
    assert!(said.message().await.unwrap().is_none(), "the node has more to say");
    // It waits for the controller's end, which shows that all has come.
    drop((answers, said));
    tokio::time::timeout(LIMIT, node.join_next()).await.unwrap().unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_session_stops_when_told_to() {
    let controllers = Controllers::new(&["127.0.0.1:1"], &Dialer::plain()).unwrap();
    let (session, _commands) =
        NodeSession::new(controllers, ReportSink::default(), LogBuffer::new("n", 1), Hello::default);
    let stop = CancellationToken::new();
    stop.cancel();
    tokio::time::timeout(LIMIT, session.run(stop)).await.unwrap().unwrap();
}
