//! `PairService`: encoded pairs for ranks, in the order asked for and never more than there are credits.
//!
//! ```text
//!  rank ── OpenPairs, FetchPairs, GrantCredits ──▶ PairStream ── index ─▶ LogState ─▶ ShardCache ─▶ encoding thread
//!       ◀─ PairsOpened, EncodedPair …, LogStatus ──┘ (a bounded channel)
//! ```

pub mod collect;
pub mod encode;
pub mod encoder_set;
pub mod encoding_cache;
mod failure;
pub mod pair_log;
mod review;
pub mod send;
pub mod shard_cache;

use crate::metrics::Metrics;
use crate::serve::encode::{EncoderSource, Form, size_bytes};
use crate::serve::encoder_set::{EncoderSet, EncodersElsewhere};
use crate::serve::pair_log::LogState;
use crate::serve::shard_cache::{LoadError, ShardCache};
use crate::worker::Worker;
use crescendo_dataset::pair::Pair;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::SILENCE_LIMIT;
use crescendo_proto::v1::pair_service_server::PairService;
use crescendo_proto::v1::stream_pairs_request::Message as Up;
use crescendo_proto::v1::stream_pairs_response::Message as Down;
use crescendo_proto::v1::{
    EncodedPair, FetchPairs, LogStatus, OpenPairs, PairsOpened, Shard, StageRef, StreamPairsRequest,
    StreamPairsResponse,
};
use object_store::ObjectStore;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

/// Limit of the wait for a stream's first message.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Limit of the wait for a stage to be assigned: after a start of this process ranks may come before the controller.
const ASSIGNED_DEADLINE: Duration = Duration::from_secs(10);
/// Limit of the wait for a rank to take a message that it gave a credit for.
const TAKE_DEADLINE: Duration = Duration::from_secs(120);
/// Pairs encoded at once.
const BATCH: u64 = 8;
/// Credits that a rank may have at most; more are not counted.
const MAX_CREDITS: u64 = 1 << 20;
/// Ranges that may be asked for and not be sent yet.
const MAX_RANGES: usize = 4096;
/// Ranks that may have a stream open.
const MAX_STREAMS: i64 = 512;
/// Messages on their way to one rank.
const OUTGOING: usize = 8;

/// A stage whose log is served here.
#[derive(Clone)]
pub struct ServedStage {
    pub encoders: EncoderSource,
    pub log: watch::Receiver<LogState>,
    pub objects: Arc<dyn ObjectStore>,
    /// Cancelled when the stage is released, or the process stops.
    pub stop: CancellationToken,
}

/// Stages by (job id, stage).
pub type ServedStages = BTreeMap<(String, String), ServedStage>;

/// The service. Clones share everything.
#[derive(Clone)]
pub struct PairServer {
    stages: Arc<watch::Sender<ServedStages>>,
    cache: Arc<ShardCache>,
    worker: Worker<EncoderSet>,
    metrics: Metrics,
    tasks: Tasks,
}

impl PairServer {
    pub fn new(cache: ShardCache, worker: Worker<EncoderSet>, metrics: Metrics, tasks: Tasks) -> PairServer {
        PairServer { stages: Arc::default(), cache: Arc::new(cache), worker, metrics, tasks }
    }

    /// The encoders of a model as drawing uses them: the set that serves.
    pub fn encoders(&self, source: EncoderSource) -> EncodersElsewhere {
        EncodersElsewhere::new(self.worker.clone(), source)
    }

    /// The stages that are served now.
    pub fn stages(&self) -> Vec<StageRef> {
        let stages = self.stages.borrow();
        stages
            .keys()
            .map(|(job_id, stage)| StageRef { job_id: job_id.clone(), stage: stage.clone() })
            .collect()
    }

    /// Begins to serve a stage.
    pub fn add(&self, stage: &StageRef, served: ServedStage) {
        let key = (stage.job_id.clone(), stage.stage.clone());
        self.stages.send_modify(|stages| {
            stages.insert(key, served);
        });
        self.metrics.stages.set(self.stages.borrow().len() as i64);
    }

    /// Stops serving a stage; streams on it end.
    pub fn remove(&self, stage: &StageRef) {
        let key = (stage.job_id.clone(), stage.stage.clone());
        self.stages.send_modify(|stages| {
            if let Some(served) = stages.remove(&key) {
                served.stop.cancel();
            }
        });
        self.metrics.stages.set(self.stages.borrow().len() as i64);
    }

    /// Waits for a stage to be assigned to this curator.
    async fn stage(&self, open: &OpenPairs) -> Result<ServedStage, Status> {
        let key = (open.job_id.clone(), open.stage.clone());
        let mut stages = self.stages.subscribe();
        let assigned = async {
            match stages.wait_for(|stages| stages.contains_key(&key)).await {
                Ok(stages) => stages.get(&key).cloned(),
                Err(_) => None,
            }
        };
        let absent =
            || Status::unavailable(format!("stage {} of job {} is not served here", open.stage, open.job_id));
        tokio::time::timeout(ASSIGNED_DEADLINE, assigned).await.map_err(|_| absent())?.ok_or_else(absent)
    }
}

#[tonic::async_trait]
impl PairService for PairServer {
    type StreamPairsStream = ReceiverStream<Result<StreamPairsResponse, Status>>;

    async fn stream_pairs(
        &self,
        request: Request<Streaming<StreamPairsRequest>>,
    ) -> Result<Response<Self::StreamPairsStream>, Status> {
        if self.metrics.streams.get() >= MAX_STREAMS {
            return Err(Status::resource_exhausted(format!("{MAX_STREAMS} streams are open already")));
        }
        let counted = OpenStream::count(&self.metrics);
        let inbound = request.into_inner();
        let (outgoing, responses) = mpsc::channel(OUTGOING);
        let server = self.clone();
        let stop = self.tasks.stop_token();
        self.tasks.spawn(async move {
            let _counted = counted;
            let ended = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the curator stops")),
                () = outgoing.closed() => return,
                ended = server.serve(inbound, &outgoing) => ended,
            };
            if let Err(status) = ended {
                // Whoever has gone away does not need to know why.
                let _ = tokio::time::timeout(TAKE_DEADLINE, outgoing.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

/// Counts a stream for as long as it lives.
struct OpenStream(Metrics);

impl OpenStream {
    fn count(metrics: &Metrics) -> OpenStream {
        metrics.streams.inc();
        OpenStream(metrics.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

type Outgoing = mpsc::Sender<Result<StreamPairsResponse, Status>>;

impl PairServer {
    async fn serve(
        &self,
        mut inbound: Streaming<StreamPairsRequest>,
        outgoing: &Outgoing,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(OPEN_DEADLINE, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no OpenPairs came in time"))??;
        let Some(StreamPairsRequest { message: Some(Up::Open(open)) }) = first else {
            return Err(Status::invalid_argument("the first message of the stream must be open"));
        };
        let span = tracing::info_span!(
            "pairs", job = %open.job_id, stage = %open.stage, generation = open.generation, rank = open.rank
        );
        let serving = async {
            let stage = self.stage(&open).await?;
            let source = stage.encoders.clone();
            let empty_text = self
                .worker
                .run("encoding", move |set| set.of(&source)?.empty_text())
                .await
                .map_err(|e| Status::internal(e.to_string()))?
                .map_err(|e| Status::failed_precondition(e.to_string()))?;
            tracing::info!("a rank opened its pair stream");
            let stop = stage.stop.clone();
            let mut stream = PairStream {
                server: self,
                log: stage.log.clone(),
                stage,
                outgoing,
                wanted: VecDeque::new(),
                credits: u64::from(open.credits).min(MAX_CREDITS),
                form: Form::of(open.takes_bytes),
            };
            let status = stream.status();
            stream
                .send(Down::Opened(PairsOpened { empty_text: Some(empty_text), status: Some(status) }))
                .await?;
            let ended = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the stage was released")),
                ended = stream.run(&mut inbound) => ended,
            };
            match &ended {
                Ok(()) => tracing::info!("a rank closed its pair stream"),
                // The rank's process has ended, or the stage has: both are ordinary.
                Err(status)
                    if matches!(status.code(), Code::Cancelled | Code::Unavailable | Code::Unknown) =>
                {
                    tracing::info!(%status, "a pair stream ended");
                }
                Err(status) => tracing::warn!(%status, "a pair stream failed"),
            }
            ended
        };
        serving.instrument(span).await
    }
}

/// One rank's stream.
struct PairStream<'a> {
    server: &'a PairServer,
    stage: ServedStage,
    log: watch::Receiver<LogState>,
    outgoing: &'a Outgoing,
    /// Ranges (next, end) that are asked for, in order; none is empty.
    wanted: VecDeque<(u64, u64)>,
    credits: u64,
    form: Form,
}

impl PairStream<'_> {
    async fn run(&mut self, inbound: &mut Streaming<StreamPairsRequest>) -> Result<(), Status> {
        let mut listening = true;
        loop {
            let batch = self.ready()?;
            if !batch.is_empty() {
                self.send_pairs(&batch).await?;
            } else if !listening && (self.wanted.is_empty() || self.credits == 0) {
                return Ok(());
            }
            // With pairs to send, only what is there already is taken in.
            let more = !batch.is_empty();
            tokio::select! {
                biased;
                message = inbound.message(), if listening => match message? {
                    Some(request) => self.take_in(request)?,
                    None => listening = false,
                },
                changed = self.log.changed() => {
                    changed.map_err(|_| Status::unavailable("the stage was released"))?;
                    let status = self.status();
                    self.send(Down::Status(status)).await?;
                }
                () = std::future::ready(()), if more => {}
                () = tokio::time::sleep(SILENCE_LIMIT) => {
                    let status = self.status();
                    self.send(Down::Status(status)).await?;
                }
            }
        }
    }

    fn take_in(&mut self, request: StreamPairsRequest) -> Result<(), Status> {
        match request.message {
            Some(Up::Fetch(FetchPairs { first_index, count })) => {
                let end = first_index
                    .checked_add(u64::from(count))
                    .ok_or_else(|| Status::invalid_argument("fetch: the range ends beyond any index"))?;
                if self.wanted.len() >= MAX_RANGES {
                    return Err(Status::resource_exhausted(format!(
                        "fetch: {MAX_RANGES} ranges wait already"
                    )));
                }
                if count > 0 {
                    self.wanted.push_back((first_index, end));
                }
                Ok(())
            }
            Some(Up::Grant(grant)) => {
                self.credits = self.credits.saturating_add(u64::from(grant.pairs)).min(MAX_CREDITS);
                Ok(())
            }
            Some(Up::Open(_)) => Err(Status::invalid_argument("open: the stream is open already")),
            None => Err(Status::invalid_argument("the message is empty")),
        }
    }

    /// Indices that can be sent now: asked for, committed and covered by credits.
    fn ready(&self) -> Result<Vec<u64>, Status> {
        let Some((next, end)) = self.wanted.front().copied() else { return Ok(Vec::new()) };
        let log = self.log.borrow();
        if next >= log.committed && log.sealed {
            let committed = log.committed;
            return Err(Status::out_of_range(format!(
                "index {next} will never exist: the log has {committed} pairs"
            )));
        }
        let count = self.credits.min(BATCH).min(end - next).min(log.committed.saturating_sub(next));
        Ok((next..next + count).collect())
    }

    async fn send_pairs(&mut self, indices: &[u64]) -> Result<(), Status> {
        for pair in self.encoded_aloud(indices).await? {
            let (index, bytes) = (pair.index, size_bytes(&pair));
            self.send(Down::Pair(pair)).await?;
            self.server.metrics.pairs_served.inc();
            self.server.metrics.bytes_served.inc_by(bytes);
            self.credits -= 1;
            if let Some(front) = self.wanted.front_mut() {
                front.0 = index + 1;
                if front.0 == front.1 {
                    self.wanted.pop_front();
                }
            }
        }
        Ok(())
    }

    /// The pairs; a rank that has to wait for them is told where the log stands meanwhile.
    async fn encoded_aloud(&self, indices: &[u64]) -> Result<Vec<EncodedPair>, Status> {
        let mut encoding = std::pin::pin!(self.encoded(indices));
        loop {
            tokio::select! {
                encoded = &mut encoding => return encoded,
                () = tokio::time::sleep(SILENCE_LIMIT) => {
                    let LogState { committed, sealed, .. } = *self.log.borrow();
                    self.send(Down::Status(LogStatus { committed, sealed })).await?;
                }
            }
        }
    }

    async fn encoded(&self, indices: &[u64]) -> Result<Vec<EncodedPair>, Status> {
        let loading = indices.iter().map(|index| {
            let found = self.log.borrow().find(*index);
            async move {
                let (shard, place) = found.ok_or_else(|| {
                    let reason = format!("index {index} is committed but in no shard");
                    LoadError::Damaged { path: "of the log".to_owned(), reason }
                })?;
                let pair = self.server.cache.pair(self.stage.objects.as_ref(), &shard, place).await?;
                Ok::<_, LoadError>((*index, pair, place, shard))
            }
        });
        let mut sources: Vec<(u64, Arc<Pair>, usize, Arc<Shard>)> = Vec::with_capacity(indices.len());
        for loaded in futures::future::join_all(loading).await {
            match loaded {
                Ok(source) => sources.push(source),
                // The good ones before it go first; the error comes with the next batch.
                Err(_) if !sources.is_empty() => break,
                Err(error @ LoadError::Damaged { .. }) => return Err(Status::data_loss(error.to_string())),
                Err(error @ LoadError::Unreadable { .. }) => {
                    return Err(Status::unavailable(error.to_string()));
                }
            }
        }
        let form = self.form;
        let (source, timer) = (self.stage.encoders.clone(), self.server.metrics.encode_seconds.start_timer());
        let encoding = self.server.worker.run("encoding", move |set| {
            let encoders = set.of(&source).map_err(|e| Status::failed_precondition(e.to_string()))?;
            let mut encoded = Vec::with_capacity(sources.len());
            for (index, pair, place, shard) in &sources {
                let broken = |reason: String| {
                    let path = &shard.path;
                    Status::data_loss(format!("shard {path}: pair {place} (index {index}): {reason}"))
                };
                encoded.push(encoders.encode(*index, pair, form).map_err(|e| broken(e.to_string()))?);
            }
            Ok(encoded)
        });
        let encoded = encoding.await.map_err(|e| Status::internal(e.to_string()))?;
        timer.observe_duration();
        encoded
    }

    /// Marks the log's state as told.
    fn status(&mut self) -> LogStatus {
        let log = self.log.borrow_and_update();
        LogStatus { committed: log.committed, sealed: log.sealed }
    }

    async fn send(&self, message: Down) -> Result<(), Status> {
        let response = StreamPairsResponse { message: Some(message) };
        match tokio::time::timeout(TAKE_DEADLINE, self.outgoing.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the rank has gone")),
            Err(_) => Err(Status::deadline_exceeded(format!("the rank took nothing for {TAKE_DEADLINE:?}"))),
        }
    }
}
