use std::time::Duration;

use crescendo_core::ids::JobId;
use crescendo_core::leftovers::{ListedObject, MAX_PAGE, Wanted};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::collect_leftovers_response::Message as Collected;
use crescendo_proto::v1::object_service_server::ObjectService;
use crescendo_proto::v1::send_object_request::Message as Sent;
use crescendo_proto::{status, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::access::{caller_of, trail_of};
use crate::collections::{self, Collecting, Collections, Told, listed_object};
use crate::engine;
use crate::leadership::EngineHandle;
use crate::relay::{MAX_CHUNK_BYTES, Relays};
use crate::services::job_id;

/// Hint to callers for whom there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A curator says within this what it sends.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of the wait for a curator's next message, and for who has asked to take one.
const NEXT_TIMEOUT: Duration = Duration::from_secs(60);

/// Files of checkpoints, read by curators and handed on here; and leftovers, which curators find and remove.
pub struct Objects {
    engine: EngineHandle,
    relays: Relays,
    collections: Collections,
    tasks: Tasks,
}

impl Objects {
    pub fn new(engine: EngineHandle, relays: Relays, collections: Collections, tasks: Tasks) -> Self {
        Self { engine, relays, collections, tasks }
    }
}

/// What goes to whoever has asked for a collection.
type CollectAnswers = mpsc::Sender<Result<v1::CollectLeftoversResponse, Status>>;

/// Hands on what is told of a collection, to its end or until the one who has asked has gone.
async fn forward_collection(
    mut collecting: Collecting,
    to: CollectAnswers,
    ends: impl Future<Output = Status>,
) {
    let telling = async {
        loop {
            let message = match collecting.next().await {
                Ok(Told::Page(page)) => Collected::Page(v1::LeftoverPage {
                    leftovers: page.into_iter().map(listed_message).collect(),
                }),
                Ok(Told::Summary(summary)) => {
                    collections::tell(&summary);
                    Collected::Summary(summary)
                }
                Ok(Told::Failed(reason)) => return Some(Status::unavailable(reason)),
                Err(status) => return Some(status),
            };
            let is_last = matches!(message, Collected::Summary(_));
            let sent = to.send(Ok(v1::CollectLeftoversResponse { message: Some(message) }));
            match tokio::time::timeout(NEXT_TIMEOUT, sent).await {
                Ok(Ok(())) if !is_last => {}
                Ok(_) => return None,
                // Others wait for their turn meanwhile.
                Err(_) => return Some(Status::deadline_exceeded("what was found is not taken")),
            }
        }
    };
    let failed = tokio::select! {
        failed = telling => failed,
        () = to.closed() => None,
        status = ends => Some(status),
    };
    if let Some(status) = failed {
        // One who takes nothing learns it by the end of the stream.
        let _ = tokio::time::timeout(RETRY_AFTER, to.send(Err(status))).await;
    }
}

fn listed_message(object: ListedObject) -> v1::ListedObject {
    let ListedObject { key, size_bytes, modified } = object;
    v1::ListedObject { key, size_bytes, modified_unix_millis: modified.0 }
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
            .ask(|reply| {
                engine::Request::Objects(engine::ObjectRequest::ReadFile {
                    job,
                    scope,
                    path,
                    name,
                    read_id,
                    reply,
                })
            })
            .await?;
        let (to, outgoing) = mpsc::channel(1);
        self.tasks.spawn(expected.forward(file, to, self.engine.ends(&self.tasks)));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    type CollectLeftoversStream = ReceiverStream<Result<v1::CollectLeftoversResponse, Status>>;

    async fn collect_leftovers(
        &self,
        request: Request<v1::CollectLeftoversRequest>,
    ) -> Result<Response<Self::CollectLeftoversStream>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let v1::CollectLeftoversRequest { job_id: job, dry_run } = request.into_inner();
        let job = if job.is_empty() { None } else { Some(job_id(&job)?) };
        if let Some(job) = &job {
            trail.on("job", job);
        }
        if let Some(tenant) = &caller.tenant {
            return Err(Status::permission_denied(format!(
                "leftovers may be any tenant's: collecting them needs an admin without a tenant, and {} is of tenant {tenant}",
                caller.name
            )));
        }
        let collecting = self
            .collections
            .begin(if job.is_some() { Wanted::OfOneJob } else { Wanted::OfAllJobs })
            .ok_or_else(|| status::exhausted("leftovers are being collected already", RETRY_AFTER))?;
        let collect_id = collecting.id.clone();
        self.engine
            .ask(|reply| {
                engine::Request::Objects(engine::ObjectRequest::CollectLeftovers {
                    collect_id,
                    job,
                    dry_run,
                    reply,
                })
            })
            .await?;
        let (to, outgoing) = mpsc::channel(1);
        self.tasks.spawn(forward_collection(collecting, to, self.engine.ends(&self.tasks)));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn judge_objects(
        &self,
        request: Request<v1::JudgeObjectsRequest>,
    ) -> Result<Response<v1::JudgeObjectsResponse>, Status> {
        let said = request.into_inner();
        if said.listed.len() > MAX_PAGE {
            let reason = format!("listed: {} are more than {MAX_PAGE}", said.listed.len());
            return Err(Status::invalid_argument(reason));
        }
        let wanted = self.collections.wanted(&said.collect_id);
        let wanted = wanted.ok_or_else(|| Status::not_found("this collection is over"))?;
        let listed: Vec<ListedObject> = said.listed.iter().map(listed_object).collect();
        let mark = said.mark.clone().unwrap_or_default();
        let found = if listed.is_empty() {
            Vec::new()
        } else {
            self.engine
                .ask(|reply| {
                    engine::Request::Objects(engine::ObjectRequest::JudgeObjects {
                        listed,
                        mark,
                        wanted,
                        reply,
                    })
                })
                .await?
        };
        self.collections.judged(said, &found).await?;
        let leftovers = found.into_iter().filter_map(|index| u32::try_from(index).ok()).collect();
        Ok(Response::new(v1::JudgeObjectsResponse { leftovers }))
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
