//! The agent's gRPC server: ranks come here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::agent_service_server::AgentService;
use crescendo_proto::v1::open_rank_session_request::Message as Up;
use crescendo_proto::v1::{
    AttemptRef, AwaitRendezvousRequest, AwaitRendezvousResponse, OpenRankSessionRequest,
    OpenRankSessionResponse, PublishRendezvousRequest, PublishRendezvousResponse,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::event::Event;
use super::rendezvous::Rendezvous;
use crescendo_attempts::RankKey;

/// Limit of a rank's first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages to one rank that wait at most.
const DOWN: usize = 32;

/// See the module.
#[derive(Clone)]
pub struct Service {
    pub events: mpsc::Sender<Event>,
    pub rendezvous: Arc<Rendezvous>,
    pub tasks: Tasks,
}

fn attempt_of(attempt: Option<AttemptRef>) -> Result<AttemptRef, Status> {
    attempt.ok_or_else(|| Status::invalid_argument("attempt: missing"))
}

#[tonic::async_trait]
impl AgentService for Service {
    type OpenRankSessionStream = Pin<Box<dyn Stream<Item = Result<OpenRankSessionResponse, Status>> + Send>>;

    async fn open_rank_session(
        &self,
        request: Request<Streaming<OpenRankSessionRequest>>,
    ) -> Result<Response<Self::OpenRankSessionStream>, Status> {
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, up.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??
            .and_then(|request| request.message);
        let Some(Up::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let attempt = attempt_of(hello.attempt)?;
        let rank = RankKey {
            job_id: attempt.job_id,
            stage: attempt.stage,
            generation: attempt.generation,
            rank: hello.rank,
        };
        let (down, messages) = mpsc::channel(DOWN);
        let stopping = || Status::unavailable("the agent stops");
        let connected = Event::RankConnected { rank: rank.clone(), pid: hello.pid, down };
        self.events.send(connected).await.map_err(|_| stopping())?;
        let (events, stop) = (self.events.clone(), self.tasks.stop_token());
        self.tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stop.cancelled() => break,
                    message = up.message() => message,
                };
                let Ok(Some(request)) = message else { break };
                let Some(message) = request.message else { continue };
                if events
                    .send(Event::RankMessage { rank: rank.clone(), message: Box::new(message) })
                    .await
                    .is_err()
                {
                    break;
                }
            }
            let _ = events.send(Event::RankDisconnected { rank }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn publish_rendezvous(
        &self,
        request: Request<PublishRendezvousRequest>,
    ) -> Result<Response<PublishRendezvousResponse>, Status> {
        let request = request.into_inner();
        self.rendezvous.publish(&attempt_of(request.attempt)?, request.token)?;
        Ok(Response::new(PublishRendezvousResponse {}))
    }

    async fn await_rendezvous(
        &self,
        request: Request<AwaitRendezvousRequest>,
    ) -> Result<Response<AwaitRendezvousResponse>, Status> {
        let request = request.into_inner();
        let limit = Duration::from_millis(u64::from(request.timeout_millis));
        let token = self.rendezvous.wait(&attempt_of(request.attempt)?, limit).await?;
        Ok(Response::new(AwaitRendezvousResponse { token }))
    }
}
