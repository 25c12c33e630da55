//! The node's one stream to the controller.
//!
//! ```text
//!             ┌─────────────── NodeSession::run ───────────────┐
//!  ReportSink ┤ connect → Hello → every report again →         ├─▶ OpenSession
//!  LogBuffer  ┤   heartbeats, reports, log batches   ─────▶    │
//!  Command ◀──┤   commands (bounded channel)         ◀─────    │
//!             └── lost: wait (100 ms to 5 s), next address ────┘
//! ```
//!
//! The node goes on with its work whether or not there is a session. At its stop it sends what is left and waits shortly
//! for the controller's last word, so that nothing it has said is lost.

use std::time::Duration;

use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::{
    AssignCuration, CollectObjects, DrainAttempt, DrawSamples, Heartbeat, Hello, LogBatch, NodeDrains,
    NodeHealth, OpenSessionRequest, OpenSessionResponse, ReadObject, ReadStoredPairs, ReleaseCuration,
    RescueAttempt, StartAttempt, StopAttempt, UpdateCurators, Welcome,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::runtime::supervise::Drain;
use crate::session::call::Controllers;
use crate::session::health::HealthReport;
use crate::session::reports::{PROGRESS_INTERVAL, ReportSink};
use crate::session::store_watch::NamedRoot;
use crate::session::unit_reports::UnitReports;
use crate::telemetry::log_shipping::LogBuffer;

/// Limit of the controller's answer to Hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of handing one message to the transport; a controller that takes nothing for this long is as good as gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// Limit of the orderly end of a session.
const PART_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that wait for the node at most.
const COMMANDS: usize = 64;
/// Messages that wait for the transport at most.
const OUTGOING: usize = 16;
/// A node that is about to leave waits this long for a controller that it could hand over to.
const ALONE: Duration = Duration::from_secs(15);
/// Most lines of one LogBatch.
pub const MAX_BATCH_LINES: usize = 512;
/// A session that lived this long starts the waits from the shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// What the controller wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    StartAttempt(Box<StartAttempt>),
    StopAttempt(StopAttempt),
    DrainAttempt(DrainAttempt),
    RescueAttempt(RescueAttempt),
    DrawSamples(Box<DrawSamples>),
    UpdateCurators(UpdateCurators),
    AssignCuration(Box<AssignCuration>),
    ReleaseCuration(ReleaseCuration),
    ReadObject(ReadObject),
    ReadStoredPairs(ReadStoredPairs),
    CollectObjects(CollectObjects),
}

/// A session that has begun, with what it was told of the node's health.
type Opened =
    (Welcome, mpsc::Sender<OpenSessionRequest>, Streaming<OpenSessionResponse>, watch::Receiver<NodeHealth>);

/// See the module.
pub struct NodeSession<H> {
    controllers: Controllers,
    reports: ReportSink,
    logs: LogBuffer,
    commands: mpsc::Sender<Command>,
    hello: H,
    /// Asked for when the node is about to leave.
    drain: Drain,
    units: UnitReports,
    health: HealthReport,
    root: NamedRoot,
}

impl<H> NodeSession<H>
where
    H: Fn() -> Hello + Send + 'static,
{
    /// `hello` is asked at every connection for what the node is and does at that moment.
    pub fn new(
        controllers: Controllers,
        reports: ReportSink,
        logs: LogBuffer,
        hello: H,
    ) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        // One that nobody asks for.
        let drain = Drain::new(Duration::ZERO);
        let (units, health, root) = (UnitReports::default(), HealthReport::default(), NamedRoot::default());
        (Self { controllers, reports, logs, commands, hello, drain, units, health, root }, receiver)
    }

    /// What is wrong with the node is taken from here.
    #[must_use]
    pub fn health(self, health: HealthReport) -> Self {
        Self { health, ..self }
    }

    /// The object store's root, as the controller names it, is put here.
    #[must_use]
    pub fn root(self, root: NamedRoot) -> Self {
        Self { root, ..self }
    }

    /// How far units are is taken from here.
    #[must_use]
    pub fn units(self, units: UnitReports) -> Self {
        Self { units, ..self }
    }

    /// The controller is told once this is asked for: the node is about to leave. If no controller answers for 15 s, there is
    /// nobody to hand over to, and the node may stop.
    #[must_use]
    pub fn draining(self, drain: Drain) -> Self {
        Self { drain, ..self }
    }

    /// Keeps a session open until `stop`. Ends early only when the receiver of the commands is dropped.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut failures = 0u32;
        let asked = self.drain.asked();
        // Since when it is about to leave and nobody has answered.
        let mut alone_since: Option<Instant> = None;
        while !stop.is_cancelled() && !self.commands.is_closed() {
            let (began, tried) = (Instant::now(), self.controllers.choice());
            let (status, opened) = self.serve_once(&stop).await;
            if stop.is_cancelled() {
                break;
            }
            failures = if began.elapsed() >= STABLE_AFTER { 1 } else { failures.saturating_add(1) };
            if opened || !asked.is_cancelled() {
                alone_since = None;
            } else if alone_since.get_or_insert(began).elapsed() >= ALONE {
                tracing::warn!(%status, "no controller answers that this node could hand over to; it stops");
                self.drain.finish();
            }
            let controller = self.controllers.address();
            let wait = self.controllers.failed(tried, &status, failures);
            if failures <= 3 || failures.is_power_of_two() {
                tracing::warn!(controller, %status, failures, ?wait, "no session with the controller");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// One session, from Hello to its end; says why it ended, and whether there was one.
    async fn serve_once(&self, stop: &CancellationToken) -> (Status, bool) {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return (Status::cancelled("the node stops"), false),
            opened = self.open() => opened,
        };
        match opened {
            Ok((welcome, up, down, told)) => (self.exchange(&welcome, up, down, told, stop).await, true),
            Err(status) => (status, false),
        }
    }

    async fn open(&self) -> Result<Opened, Status> {
        let (up, outgoing) = mpsc::channel(OUTGOING);
        let hello = (self.hello)();
        let mut told = self.health.subscribe();
        let health = Some(told.borrow_and_update().clone());
        let draining = self.drain.asked().is_cancelled();
        send(&up, Up::Hello(Hello { draining, health, ..hello })).await?;
        let mut client = NodeServiceClient::new(self.controllers.channel());
        let opening = async {
            let mut down = client.open_session(ReceiverStream::new(outgoing)).await?.into_inner();
            match down.message().await?.and_then(|response| response.message) {
                Some(Down::Welcome(welcome)) => Ok((welcome, down)),
                _ => Err(Status::internal("the first answer of the session is not a welcome")),
            }
        };
        let (welcome, down) = tokio::time::timeout(WELCOME_TIMEOUT, opening)
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no welcome within {WELCOME_TIMEOUT:?}")))??;
        tracing::info!(
            controller = self.controllers.address(),
            controller_id = welcome.controller_id,
            "session with the controller is open"
        );
        Ok((welcome, up, down, told))
    }

    /// `health` is what was told of it.
    async fn exchange(
        &self,
        welcome: &Welcome,
        up: mpsc::Sender<OpenSessionRequest>,
        mut down: Streaming<OpenSessionResponse>,
        mut health: watch::Receiver<NodeHealth>,
        stop: &CancellationToken,
    ) -> Status {
        self.reports.table().session_opened();
        self.logs.set_kept_at(&welcome.object_store_url);
        self.root.name(&welcome.object_store_url, &welcome.cluster_id, &welcome.store_id);
        let every = Duration::from_millis(u64::from(welcome.heartbeat_millis).clamp(100, 60_000));
        let mut heartbeat = tokio::time::interval(every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flush = tokio::time::interval(PROGRESS_INTERVAL / 2);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        // A command that waits for room: nothing more is read until it is taken.
        let mut waiting: Option<Command> = None;
        let (asked, mut told_draining) = (self.drain.asked(), false);
        loop {
            let sent = tokio::select! {
                // In this order, so that what comes in holds up neither the end nor the heartbeats.
                biased;
                () = stop.cancelled() => {
                    let _ = tokio::time::timeout(PART_TIMEOUT, self.part(up, down, &mut health)).await;
                    return Status::cancelled("the node stops");
                }
                () = asked.cancelled(), if !told_draining => {
                    told_draining = true;
                    send(&up, Up::NodeDrains(NodeDrains {})).await
                }
                _ = heartbeat.tick() => {
                    sequence += 1;
                    send(&up, Up::Heartbeat(Heartbeat { sequence })).await
                }
                _ = flush.tick() => self.flush(&up, &mut health).await,
                message = down.message(), if waiting.is_none() => match message {
                    Ok(Some(response)) => {
                        waiting = command(response);
                        Ok(())
                    }
                    Ok(None) => Err(Status::unavailable("the controller closed the session")),
                    Err(status) => Err(status),
                },
                permit = self.commands.reserve(), if waiting.is_some() => match permit {
                    Ok(permit) => {
                        if let Some(command) = waiting.take() {
                            permit.send(command);
                        }
                        Ok(())
                    }
                    Err(_) => Err(Status::cancelled("the node takes no more commands")),
                },
                () = self.reports.changed() => self.flush(&up, &mut health).await,
                () = self.logs.filled() => self.flush(&up, &mut health).await,
            };
            if let Err(status) = sent {
                return status;
            }
        }
    }

    /// The orderly end: sends what is left, says that nothing more comes, and waits until the controller has taken it all,
    /// which it shows by ending its side.
    async fn part(
        &self,
        up: mpsc::Sender<OpenSessionRequest>,
        mut down: Streaming<OpenSessionResponse>,
        health: &mut watch::Receiver<NodeHealth>,
    ) {
        self.reports.table().hurry();
        if self.flush(&up, health).await.is_err() {
            return;
        }
        drop(up);
        while let Ok(Some(_)) = down.message().await {}
    }

    /// Sends what is due: how the node is, so that a slot that is held is known before its attempt is over; then reports, then at
    /// most one batch of log lines, so that heartbeats keep their pace.
    async fn flush(
        &self,
        up: &mpsc::Sender<OpenSessionRequest>,
        health: &mut watch::Receiver<NodeHealth>,
    ) -> Result<(), Status> {
        if health.has_changed().unwrap_or(false) {
            let now = health.borrow_and_update().clone();
            send(up, Up::NodeHealth(now)).await?;
        }
        loop {
            let due = self.reports.table().take_due(Instant::now().into_std());
            let Some(report) = due else { break };
            send(up, Up::AttemptReport(report)).await?;
        }
        for refused in self.units.take_refused() {
            send(up, Up::AssignmentRefused(refused)).await?;
        }
        for report in self.units.take() {
            send(up, Up::UnitReport(report)).await?;
        }
        let lines = self.logs.take(MAX_BATCH_LINES);
        if lines.is_empty() { Ok(()) } else { send(up, Up::LogBatch(LogBatch { lines })).await }
    }
}

async fn send(up: &mpsc::Sender<OpenSessionRequest>, message: Up) -> Result<(), Status> {
    let request = OpenSessionRequest { message: Some(message) };
    match tokio::time::timeout(SEND_TIMEOUT, up.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::unavailable("the session's transport is closed")),
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the controller takes no message for {SEND_TIMEOUT:?}")))
        }
    }
}

fn command(response: OpenSessionResponse) -> Option<Command> {
    match response.message {
        Some(Down::StartAttempt(start)) => Some(Command::StartAttempt(Box::new(start))),
        Some(Down::StopAttempt(stop)) => Some(Command::StopAttempt(stop)),
        Some(Down::DrainAttempt(drain)) => Some(Command::DrainAttempt(drain)),
        Some(Down::RescueAttempt(rescue)) => Some(Command::RescueAttempt(rescue)),
        Some(Down::DrawSamples(order)) => Some(Command::DrawSamples(Box::new(order))),
        Some(Down::UpdateCurators(update)) => Some(Command::UpdateCurators(update)),
        Some(Down::AssignCuration(assign)) => Some(Command::AssignCuration(Box::new(assign))),
        Some(Down::ReleaseCuration(release)) => Some(Command::ReleaseCuration(release)),
        Some(Down::ReadObject(read)) => Some(Command::ReadObject(read)),
        Some(Down::ReadStoredPairs(read)) => Some(Command::ReadStoredPairs(read)),
        Some(Down::CollectObjects(collect)) => Some(Command::CollectObjects(collect)),
        // A second welcome says nothing new; an unknown message is from a newer controller.
        Some(Down::Welcome(_)) | None => None,
    }
}
