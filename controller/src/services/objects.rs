use std::time::Duration;

use crescendo_core::ids::JobId;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::object_service_server::ObjectService;
use crescendo_proto::v1::send_object_request::Message as Sent;
use crescendo_proto::{status, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::access::{caller_of, trail_of};
use crate::engine;
use crate::leadership::EngineHandle;
use crate::relay::{MAX_CHUNK_BYTES, Relays};
use crate::services::job_id;

/// Hint to callers for whom there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A curator says within this what it sends.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of the wait for a curator's next message.
const NEXT_TIMEOUT: Duration = Duration::from_secs(60);

/// Files of checkpoints, read by curators and handed on here.
pub struct Objects {
    engine: EngineHandle,
    relays: Relays,
    tasks: Tasks,
}

impl Objects {
    pub fn new(engine: EngineHandle, relays: Relays, tasks: Tasks) -> Self {
        Self { engine, relays, tasks }
    }
}

#[tonic::async_trait]
impl ObjectService for Objects {
    type ReadCheckpointFileStream = ReceiverStream<Result<v1::ReadCheckpointFileResponse, Status>>;

    async fn read_checkpoint_file(
        &self,
        request: Request<v1::ReadCheckpointFileRequest>,
    ) -> Result<Response<Self::ReadCheckpointFileStream>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let scope = caller.scope();
        let v1::ReadCheckpointFileRequest { job_id: job, path, name } = request.into_inner();
        let job: JobId = job_id(&job)?;
        trail.on("job", &job);
        let expected = self.relays.expect(caller.tenant).ok_or_else(|| {
            status::exhausted("as many files are being read as may be at a time", RETRY_AFTER)
        })?;
        let read_id = expected.read_id.clone();
        let file = self
            .engine
            .ask(|reply| engine::Request::ReadFile { job, scope, path, name, read_id, reply })
            .await?;
        let (to, outgoing) = mpsc::channel(1);
        let (stop, engine) = (self.tasks.stop_token(), self.engine.clone());
        let ends = async move {
            tokio::select! {
                () = stop.cancelled() => Status::unavailable("the controller stops"),
                () = engine.deposed() => Status::unavailable("this controller leads no more"),
            }
        };
        self.tasks.spawn(expected.forward(file, to, ends));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn send_object(
        &self,
        request: Request<Streaming<v1::SendObjectRequest>>,
    ) -> Result<Response<v1::SendObjectResponse>, Status> {
        let mut incoming = request.into_inner();
        let Some(Sent::ReadId(read_id)) = next(&mut incoming, FIRST_TIMEOUT).await? else {
            return Err(Status::invalid_argument("the first message must be read_id"));
        };
        let reader = self.relays.begin(&read_id).ok_or_else(|| Status::not_found("nobody waits for it"))?;
        let gone = || Status::cancelled("nobody reads it any more");
        loop {
            let message = tokio::select! {
                () = reader.closed() => return Err(gone()),
                message = next(&mut incoming, NEXT_TIMEOUT) => message?,
            };
            let Some(message) = message else { return Ok(Response::new(v1::SendObjectResponse {})) };
            let piece = match message {
                Sent::Chunk(chunk) if chunk.len() <= MAX_CHUNK_BYTES => Ok(chunk),
                Sent::Chunk(chunk) => {
                    let reason = format!("chunk: {} bytes are more than {MAX_CHUNK_BYTES}", chunk.len());
                    return Err(Status::invalid_argument(reason));
                }
                Sent::Failure(v1::SendFailure { reason, passing: true }) => Err(Status::unavailable(reason)),
                Sent::Failure(v1::SendFailure { reason, passing: false }) => {
                    Err(Status::failed_precondition(reason))
                }
                Sent::ReadId(_) => return Err(Status::invalid_argument("read_id: comes only once")),
            };
            // Waits as long as the reader does, who has a deadline of its own.
            reader.send(piece).await.map_err(|_| gone())?;
        }
    }
}

async fn next(
    incoming: &mut Streaming<v1::SendObjectRequest>,
    within: Duration,
) -> Result<Option<Sent>, Status> {
    let message = tokio::time::timeout(within, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the next message did not come in time"))??;
    Ok(message.and_then(|request| request.message))
}
