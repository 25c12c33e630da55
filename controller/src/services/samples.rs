use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::samplings::drawn_samples;
use crescendo_proto::v1::read_checkpoint_file_response::Message as Part;
use crescendo_proto::v1::read_samples_response::Message as SamplesPart;
use crescendo_proto::v1::report_samples_request::Message as Said;
use crescendo_proto::v1::sample_service_server::SampleService;
use crescendo_proto::{status, v1};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::adapters::Map;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::access::{caller_of, trail_of};
use crate::engine::{self, SamplesRequest, SamplesWord};
use crate::leadership::EngineHandle;
use crate::relay::Relays;
use crate::services::{checked, job_id, node_id, stage_ref};

/// Hint to callers for whom there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Longest reason of a curator that is kept, bytes.
const MAX_REASON: usize = 4096;

/// Pictures that are drawn with checkpoints.
pub struct Samples {
    engine: EngineHandle,
    relays: Relays,
    tasks: Tasks,
}

impl Samples {
    pub fn new(engine: EngineHandle, relays: Relays, tasks: Tasks) -> Self {
        Self { engine, relays, tasks }
    }
}

type FilePart = Result<v1::ReadCheckpointFileResponse, Status>;
type SamplesAnswer = Result<v1::ReadSamplesResponse, Status>;

fn samples_part(part: FilePart) -> SamplesAnswer {
    let message = part?.message.map(|part| match part {
        Part::File(file) => SamplesPart::File(file),
        Part::Chunk(chunk) => SamplesPart::Chunk(chunk),
    });
    Ok(v1::ReadSamplesResponse { message })
}

fn word(message: Option<Said>) -> Result<SamplesWord, RequestError> {
    match message {
        Some(Said::Progress(v1::SamplingProgress { done, of, .. })) => Ok(SamplesWord::Progress { done, of }),
        Some(Said::Done(done)) => drawn_samples(done).map(SamplesWord::Done),
        Some(Said::Failure(reason)) if reason.len() > MAX_REASON => {
            Err(RequestError::invalid("failure", format!("must have at most {MAX_REASON} bytes")))
        }
        Some(Said::Failure(reason)) => Ok(SamplesWord::Failed(reason)),
        None => Err(RequestError::invalid("message", "must be set")),
    }
}

#[tonic::async_trait]
impl SampleService for Samples {
    async fn list_samples(
        &self,
        request: Request<v1::ListSamplesRequest>,
    ) -> Result<Response<v1::ListSamplesResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::ListSamplesRequest { job_id: job, stage } = request.into_inner();
        let job = job_id(&job)?;
        trail.on("job", &job);
        let wanted = |reply| engine::LookRequest::ListSamples { job, stage, scope, reply };
        let samplings = self.engine.look(wanted).await?;
        Ok(Response::new(v1::ListSamplesResponse { samplings }))
    }

    type ReadSamplesStream = Map<ReceiverStream<FilePart>, fn(FilePart) -> SamplesAnswer>;

    async fn read_samples(
        &self,
        request: Request<v1::ReadSamplesRequest>,
    ) -> Result<Response<Self::ReadSamplesStream>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let scope = caller.scope();
        let v1::ReadSamplesRequest { job_id, stage, step } = request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        trail.on("stage", &stage);
        let busy = || status::exhausted("as many files are being read as may be at a time", RETRY_AFTER);
        let expected = self.relays.expect(caller.tenant).ok_or_else(busy)?;
        let read_id = expected.read_id.clone();
        let read = |reply| SamplesRequest::Read { stage, step, scope, read_id, reply };
        let file = self.engine.ask(|reply| engine::Request::Samples(read(reply))).await?;
        let (to, outgoing) = mpsc::channel(1);
        self.tasks.spawn(expected.forward(file, to, self.engine.ends(&self.tasks)));
        let part: fn(FilePart) -> SamplesAnswer = samples_part;
        Ok(Response::new(ReceiverStream::new(outgoing).map(part)))
    }

    async fn report_samples(
        &self,
        request: Request<v1::ReportSamplesRequest>,
    ) -> Result<Response<v1::ReportSamplesResponse>, Status> {
        let caller = caller_of(&request)?;
        let v1::ReportSamplesRequest { draw_id, node_id: node, message } = request.into_inner();
        let (node, word) = (node_id(&node)?, checked(word(message))?);
        caller.check_acts_as(&node)?;
        let by = caller.node;
        let report = |reply| SamplesRequest::Report { draw_id, node, word, by, reply };
        self.engine.ask(|reply| engine::Request::Samples(report(reply))).await?;
        Ok(Response::new(v1::ReportSamplesResponse {}))
    }
}
