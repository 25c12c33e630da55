//! A controller that plays a part: it answers from a script and keeps what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use crescendo_node::tls::{ClientCertificates, ConnectionMetrics, Incoming, Tls};
use crescendo_proto::v1::access_service_server::{AccessService, AccessServiceServer};
use crescendo_proto::v1::checkpoint_service_server::{CheckpointService, CheckpointServiceServer};
use crescendo_proto::v1::curation_service_server::{CurationService, CurationServiceServer};
use crescendo_proto::v1::job_service_server::{JobService, JobServiceServer};
use crescendo_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use crescendo_proto::v1::object_service_server::{ObjectService, ObjectServiceServer};
use crescendo_proto::v1::read_checkpoint_file_response::Message as FilePart;
use crescendo_proto::v1::review_service_server::{ReviewService, ReviewServiceServer};
use crescendo_proto::v1::*;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// What one stream sends, and whether it then stays open.
#[derive(Clone, Debug)]
pub struct Scene<T> {
    pub sends: Vec<T>,
    pub then: Then,
}

#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// The stream is closed properly.
    Close,
    /// It ends with an error.
    Break,
    /// It stays open, silent.
    Stay,
}

#[derive(Debug, Default)]
pub struct Part {
    /// Every job there is, newest first.
    pub jobs: Vec<Job>,
    pub nodes: Vec<Node>,
    pub checkpoints: Vec<Checkpoint>,
    /// The only stage's pair log, in the parts in which it is told.
    /// Marks of the pair log.
    pub marks: PairMarkList,
    pub pair_log: Vec<WatchPairLogResponse>,
    /// Submits that are kept but answered as if the controller were gone.
    pub swallow_submits: u32,
    pub refuse_submit: Option<Status>,
    /// Every new request id makes a job of this name and a number, until so many are there; then submits are refused.
    pub makes: Option<(&'static str, usize)>,
    /// Problems of a spec that has this text, when it is only to be checked.
    pub problems: Option<(&'static str, SpecProblem)>,
    /// What every submit is warned of.
    pub warnings: Vec<SpecProblem>,
    pub watch: VecDeque<Scene<Job>>,
    pub logs: VecDeque<Scene<LogLine>>,
    /// What comes of each file that is read, in pieces.
    pub files: VecDeque<Scene<String>>,
    /// What comes of planning a job that goes on.
    pub continuation: Option<Result<String, Status>>,
    pub continuations: Vec<PlanContinuationRequest>,
    pub reads: Vec<ReadCheckpointFileRequest>,
    pub deletes: Vec<DeleteJobRequest>,
    pub deletion: DeleteJobResponse,
    pub lineage: Option<Lineage>,
    pub keeps: Vec<KeepCheckpointRequest>,
    pub submits: Vec<SubmitJobRequest>,
    pub lists: Vec<ListJobsRequest>,
    pub watches: Vec<WatchJobRequest>,
    pub log_reads: Vec<ReadLogsRequest>,
    pub cancels: Vec<CancelJobRequest>,
    pub pauses: Vec<PauseJobRequest>,
    /// Said in the first answer to a pause.
    pub slots_held: u32,
    pub explanation: ExplainJobResponse,
    /// Answer to whoever asks who it is.
    pub who: WhoAmIResponse,
    /// The only token that is let in, if there is a login.
    pub token: Option<String>,
    /// What came in `authorization` with each question who the caller is.
    pub seen_tokens: Vec<Option<String>>,
}

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Part>>);

impl Fake {
    pub fn part(&self) -> MutexGuard<'_, Part> {
        self.0.lock().expect("no test panics while it holds the part")
    }

    /// Serves on a free port, over TLS, to whoever comes with a certificate or without.
    pub async fn serve_tls(&self, tls: Tls) -> Server {
        self.serve_on("127.0.0.1:0".parse().expect("an address"), Some(tls)).await
    }

    /// Serves on a free port.
    pub async fn serve(&self) -> Server {
        self.serve_at("127.0.0.1:0".parse().expect("an address")).await
    }

    /// Serves on this port once it is free.
    pub async fn serve_at(&self, address: SocketAddr) -> Server {
        self.serve_on(address, None).await
    }

    async fn serve_on(&self, address: SocketAddr, tls: Option<Tls>) -> Server {
        let mut listener = bind_now(address);
        crescendo_testing::until("the port is free", || {
            listener.is_ok() || {
                listener = bind_now(address);
                listener.is_ok()
            }
        })
        .await
        .expect("in time");
        let listener = listener.expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let listener = listener.into_std().expect("it is a plain listener too");
        let services = tonic::transport::Server::builder()
            .add_service(AccessServiceServer::new(self.clone()))
            .add_service(JobServiceServer::new(self.clone()))
            .add_service(NodeServiceServer::new(self.clone()))
            .add_service(CheckpointServiceServer::new(self.clone()))
            .add_service(CurationServiceServer::new(self.clone()))
            .add_service(ObjectServiceServer::new(self.clone()))
            .add_service(ReviewServiceServer::new(self.clone()));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it is not blocking");
            let metrics = ConnectionMetrics::register(&prometheus::Registry::new()).expect("a new registry");
            let tls = tls.map(|tls| (tls, ClientCertificates::Asked));
            let incoming = Incoming::new(listener, tls, 64, metrics);
            services.serve_with_incoming(incoming).await.expect("the server runs");
        });
        Server { address, runtime: Some(runtime) }
    }

    fn find(&self, job_id: &str) -> Result<Job, Status> {
        let found = self.part().jobs.iter().find(|job| job.job_id == job_id).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no job {job_id}")))
    }
}

/// Runs in a runtime of its own, so that all its connections break when it goes, as when a process is killed.
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bind_now(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(64)
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn play<T: Send + 'static>(scene: Option<Scene<T>>) -> Answers<T> {
    let Scene { sends, then } = scene.unwrap_or(Scene { sends: Vec::new(), then: Then::Stay });
    let sends = tokio_stream::iter(sends.into_iter().map(Ok));
    match then {
        Then::Close => Box::pin(sends),
        Then::Break => Box::pin(sends.chain(tokio_stream::once(Err(Status::unavailable("leaving"))))),
        Then::Stay => Box::pin(sends.chain(tokio_stream::pending())),
    }
}

#[tonic::async_trait]
impl JobService for Fake {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let request = request.into_inner();
        let mut part = self.part();
        let seen = match part.makes {
            Some(_) => part.jobs.iter().any(|job| job.request_id == request.request_id),
            None => part.submits.iter().any(|submit| submit.request_id == request.request_id),
        };
        part.submits.push(request);
        if part.swallow_submits > 0 {
            part.swallow_submits -= 1;
            return Err(Status::unavailable("the leader is gone"));
        }
        if let Some(status) = part.refuse_submit.clone() {
            return Err(status);
        }
        let warnings = part.warnings.clone();
        let sent = part.submits.last().cloned().unwrap_or_default();
        if sent.validate_only {
            let yaml = String::from_utf8_lossy(&sent.spec_yaml).into_owned();
            let problem = part.problems.clone().filter(|(text, _)| yaml.contains(text));
            let problems = problem.map(|(_, problem)| problem).into_iter().collect();
            return Ok(Response::new(SubmitJobResponse {
                problems,
                warnings,
                ..SubmitJobResponse::default()
            }));
        }
        if let Some((name, most)) = part.makes
            && !seen
        {
            if part.jobs.len() == most {
                return Err(Status::failed_precondition("the tenant's queue is full"));
            }
            let made = format!("{name}-{}", part.jobs.len() + 1);
            part.jobs.push(Job { request_id: sent.request_id.clone(), ..job(&made, JobState::Queued, 1, 0) });
        }
        let own = part.jobs.iter().find(|job| job.request_id == sent.request_id);
        let job = own.or(part.jobs.first()).cloned();
        Ok(Response::new(SubmitJobResponse {
            job,
            already_submitted: seen,
            warnings,
            ..SubmitJobResponse::default()
        }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let job = self.find(&request.into_inner().job_id)?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn get_spec(&self, request: Request<GetSpecRequest>) -> Result<Response<GetSpecResponse>, Status> {
        let job = self.find(&request.into_inner().job_id)?;
        let field = |path: &str, value: &str, default: &str| StatedField {
            path: path.into(),
            value: value.into(),
            default_value: default.into(),
        };
        let stated_fields =
            vec![field("spec.resources.gpus", "2", "1"), field("spec.model.preset", "nano", "")];
        Ok(Response::new(GetSpecResponse { spec_yaml: job.resolved_spec_yaml, stated_fields }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let mut part = self.part();
        let from: usize = request.page_token.parse().unwrap_or(0);
        // Pages of two at most, whatever is asked for.
        let size = (request.page_size as usize).min(2);
        part.lists.push(request);
        let states = part.lists.last().map(|list| list.states.clone()).unwrap_or_default();
        let labels = part.lists.last().map(|list| list.labels.clone()).unwrap_or_default();
        let fits = |job: &&Job| {
            let labelled = |(name, value): (&String, &String)| {
                job.labels.get(name).is_some_and(|own| value.is_empty() || own == value)
            };
            (states.is_empty() || states.contains(&job.state)) && labels.iter().all(labelled)
        };
        let found: Vec<Job> = part.jobs.iter().filter(fits).cloned().collect();
        let jobs: Vec<Job> = found.iter().skip(from).take(size).cloned().collect();
        let next = from + jobs.len();
        let next_page_token = if next < found.len() { next.to_string() } else { String::new() };
        Ok(Response::new(ListJobsResponse { jobs, next_page_token }))
    }

    type WatchJobStream = Answers<WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        self.find(&request.job_id)?;
        let mut part = self.part();
        part.watches.push(request);
        let scene = part.watch.pop_front().map(|scene| Scene {
            sends: scene.sends.into_iter().map(|job| WatchJobResponse { job: Some(job) }).collect(),
            then: scene.then,
        });
        Ok(Response::new(play(scene)))
    }

    async fn explain_job(
        &self,
        request: Request<ExplainJobRequest>,
    ) -> Result<Response<ExplainJobResponse>, Status> {
        let job = self.find(&request.into_inner().job_id)?;
        let told = self.part().explanation.clone();
        Ok(Response::new(ExplainJobResponse { job_id: job.job_id, state: job.state, ..told }))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let request = request.into_inner();
        let job = Job { state: JobState::Cancelled as i32, ..self.find(&request.job_id)? };
        self.part().cancels.push(request);
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn pause_job(
        &self,
        request: Request<PauseJobRequest>,
    ) -> Result<Response<PauseJobResponse>, Status> {
        let request = request.into_inner();
        let held = std::mem::take(&mut self.part().slots_held);
        let job = Job { state: JobState::Paused as i32, slots_held: held, ..self.find(&request.job_id)? };
        self.part().pauses.push(request);
        Ok(Response::new(PauseJobResponse { job: Some(job) }))
    }

    async fn resume_job(
        &self,
        request: Request<ResumeJobRequest>,
    ) -> Result<Response<ResumeJobResponse>, Status> {
        let job = Job { state: JobState::Queued as i32, ..self.find(&request.into_inner().job_id)? };
        Ok(Response::new(ResumeJobResponse { job: Some(job) }))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        let job = Job { state: JobState::Queued as i32, ..self.find(&request.into_inner().job_id)? };
        Ok(Response::new(RetryJobResponse { job: Some(job) }))
    }

    async fn note_job(&self, request: Request<NoteJobRequest>) -> Result<Response<NoteJobResponse>, Status> {
        let NoteJobRequest { job_id, text } = request.into_inner();
        let at = Some(prost_types::Timestamp { seconds: 1_770_000_000, nanos: 0 });
        let mut job = self.find(&job_id)?;
        job.notes.push(JobNote { at, by: "ada".into(), text });
        Ok(Response::new(NoteJobResponse { job: Some(job) }))
    }

    async fn plan_continuation(
        &self,
        request: Request<PlanContinuationRequest>,
    ) -> Result<Response<PlanContinuationResponse>, Status> {
        let mut part = self.part();
        part.continuations.push(request.into_inner());
        let planned = part.continuation.clone();
        let spec_yaml = planned.unwrap_or_else(|| Err(Status::not_found("no such job")))?;
        Ok(Response::new(PlanContinuationResponse { spec_yaml }))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let request = request.into_inner();
        self.find(&request.job_id)?;
        let mut answer = self.part().deletion.clone();
        if request.dry_run {
            answer.deletion = None;
        }
        self.part().deletes.push(request);
        Ok(Response::new(answer))
    }

    async fn get_lineage(
        &self,
        request: Request<GetLineageRequest>,
    ) -> Result<Response<GetLineageResponse>, Status> {
        let job_id = request.into_inner().job_id;
        let lineage = self.part().lineage.clone().filter(|lineage| lineage.job_id == job_id);
        let lineage = lineage.ok_or_else(|| Status::not_found(format!("there is no job {job_id}")))?;
        let deletion = self.part().deletion.deletion.clone();
        Ok(Response::new(GetLineageResponse { lineage: Some(lineage), deletion }))
    }

    type ReadLogsStream = Answers<ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let mut part = self.part();
        part.log_reads.push(request.into_inner());
        let scene = part.logs.pop_front().map(|scene| Scene {
            sends: scene.sends.into_iter().map(|line| ReadLogsResponse { line: Some(line) }).collect(),
            then: scene.then,
        });
        Ok(Response::new(play(scene)))
    }
}

#[tonic::async_trait]
impl AccessService for Fake {
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let sent = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let mut part = self.part();
        part.seen_tokens.push(sent.map(str::to_owned));
        let wanted = part.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && wanted.as_deref() != sent {
            return Err(Status::unauthenticated("the token is not known"));
        }
        // Its clock goes right unless the part says otherwise.
        let at = part.who.at.or_else(|| Some(std::time::SystemTime::now().into()));
        Ok(Response::new(WhoAmIResponse { at, ..part.who.clone() }))
    }

    async fn get_login(&self, _: Request<GetLoginRequest>) -> Result<Response<GetLoginResponse>, Status> {
        Err(Status::unimplemented("no login is played here"))
    }

    async fn exchange_code(
        &self,
        _: Request<ExchangeCodeRequest>,
    ) -> Result<Response<ExchangeCodeResponse>, Status> {
        Err(Status::unimplemented("no login is played here"))
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    type OpenSessionStream = Answers<OpenSessionResponse>;

    async fn open_session(
        &self,
        _: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    async fn forget_node(
        &self,
        request: Request<ForgetNodeRequest>,
    ) -> Result<Response<ForgetNodeResponse>, Status> {
        let ForgetNodeRequest { node_id } = request.into_inner();
        let mut part = self.part();
        let known = part.nodes.len();
        part.nodes.retain(|node| node.node_id != node_id);
        if part.nodes.len() == known {
            return Err(Status::not_found(format!("node {node_id} does not exist")));
        }
        Ok(Response::new(ForgetNodeResponse {}))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let DrainNodeRequest { node_id, undo } = request.into_inner();
        let mut part = self.part();
        let node = part.nodes.iter_mut().find(|node| node.node_id == node_id);
        let node = node.ok_or_else(|| Status::not_found(format!("node {node_id} does not exist")))?;
        node.draining = !undo;
        Ok(Response::new(DrainNodeResponse { node: Some(node.clone()) }))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Ok(Response::new(ListNodesResponse { nodes: self.part().nodes.clone() }))
    }
}

#[tonic::async_trait]
impl CheckpointService for Fake {
    async fn commit_checkpoint(
        &self,
        _: Request<CommitCheckpointRequest>,
    ) -> Result<Response<CommitCheckpointResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let ListCheckpointsRequest { job_id, stage } = request.into_inner();
        let mut checkpoints = self.part().checkpoints.clone();
        checkpoints.retain(|checkpoint| stage.is_empty() || checkpoint.stage == stage);
        checkpoints.retain(|checkpoint| checkpoint.job_id.is_empty() || checkpoint.job_id == job_id);
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn keep_checkpoint(
        &self,
        request: Request<KeepCheckpointRequest>,
    ) -> Result<Response<KeepCheckpointResponse>, Status> {
        let request = request.into_inner();
        let of_step = |known: &&Checkpoint| known.stage == request.stage && known.step == request.step;
        let found = self.part().checkpoints.iter().find(of_step).cloned();
        let found = found.ok_or_else(|| Status::not_found("no such checkpoint"))?;
        self.part().keeps.push(request.clone());
        let checkpoint = Some(Checkpoint { kept: !request.release, ..found });
        Ok(Response::new(KeepCheckpointResponse { checkpoint }))
    }

    async fn mark_checkpoint_damaged(
        &self,
        _: Request<MarkCheckpointDamagedRequest>,
    ) -> Result<Response<MarkCheckpointDamagedResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }
}

#[tonic::async_trait]
impl ObjectService for Fake {
    type ReadCheckpointFileStream = Answers<ReadCheckpointFileResponse>;

    async fn read_checkpoint_file(
        &self,
        request: Request<ReadCheckpointFileRequest>,
    ) -> Result<Response<Self::ReadCheckpointFileStream>, Status> {
        let mut part = self.part();
        part.reads.push(request.into_inner());
        let Some(Scene { sends, then }) = part.files.pop_front() else {
            return Err(Status::unavailable("no curator is connected that could read it"));
        };
        let announced = FilePart::File(CheckpointFile::default());
        let pieces = sends.into_iter().map(|piece| FilePart::Chunk(piece.into()));
        let sends = std::iter::once(announced).chain(pieces);
        let sends = sends.map(|part| ReadCheckpointFileResponse { message: Some(part) }).collect();
        Ok(Response::new(play(Some(Scene { sends, then }))))
    }

    async fn send_object(
        &self,
        _: Request<Streaming<SendObjectRequest>>,
    ) -> Result<Response<SendObjectResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    type CollectLeftoversStream = Answers<CollectLeftoversResponse>;

    async fn collect_leftovers(
        &self,
        _: Request<CollectLeftoversRequest>,
    ) -> Result<Response<Self::CollectLeftoversStream>, Status> {
        Err(Status::unavailable("no curator is connected"))
    }

    async fn judge_objects(
        &self,
        _: Request<JudgeObjectsRequest>,
    ) -> Result<Response<JudgeObjectsResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }
}

#[tonic::async_trait]
impl CurationService for Fake {
    async fn lease_unit(&self, _: Request<LeaseUnitRequest>) -> Result<Response<LeaseUnitResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    async fn renew_unit(&self, _: Request<RenewUnitRequest>) -> Result<Response<RenewUnitResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    async fn commit_unit(
        &self,
        _: Request<CommitUnitRequest>,
    ) -> Result<Response<CommitUnitResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    async fn fail_unit(&self, _: Request<FailUnitRequest>) -> Result<Response<FailUnitResponse>, Status> {
        Err(Status::unimplemented("no node is played here"))
    }

    type WatchPairLogStream = Answers<WatchPairLogResponse>;

    async fn watch_pair_log(
        &self,
        _: Request<WatchPairLogRequest>,
    ) -> Result<Response<Self::WatchPairLogStream>, Status> {
        let sends = self.part().pair_log.clone();
        Ok(Response::new(play(Some(Scene { sends, then: Then::Stay }))))
    }
}

#[tonic::async_trait]
impl ReviewService for Fake {
    async fn read_pairs(&self, _: Request<ReadPairsRequest>) -> Result<Response<ReadPairsResponse>, Status> {
        Err(Status::unimplemented("the command line reads the object store"))
    }

    async fn mark_pairs(
        &self,
        request: Request<MarkPairsRequest>,
    ) -> Result<Response<MarkPairsResponse>, Status> {
        let MarkPairsRequest { indices, undo, reason, .. } = request.into_inner();
        let mut part = self.part();
        for index in indices {
            part.marks.marks.retain(|mark| mark.index != index);
            part.marks.version += 1;
            let mark = PairMark { index, by: "ada".into(), at: None, reason: reason.clone() };
            part.marks.marks.extend((!undo).then_some(mark));
        }
        Ok(Response::new(MarkPairsResponse { marks: Some(part.marks.clone()) }))
    }

    async fn list_pair_marks(
        &self,
        _: Request<ListPairMarksRequest>,
    ) -> Result<Response<ListPairMarksResponse>, Status> {
        Ok(Response::new(ListPairMarksResponse { marks: Some(self.part().marks.clone()) }))
    }
}

/// A job with one stage at `step` of 10.
pub fn job(job_id: &str, state: JobState, revision: u64, step: u64) -> Job {
    let phase = match state {
        JobState::Succeeded => StagePhase::Done,
        JobState::Queued => StagePhase::Pending,
        _ => StagePhase::Training,
    };
    let stage = StageStatus {
        name: "stage-1".into(),
        phase: phase as i32,
        generation: 1,
        step,
        steps_total: 10,
        loss: 0.5,
        samples_per_sec: 20.0,
        pairs_committed: 64,
        pairs_target: 128,
        pairs_rejected: [("similarity_low".to_owned(), 3)].into(),
        ..StageStatus::default()
    };
    Job {
        job_id: job_id.into(),
        name: "uno".into(),
        state: state as i32,
        revision,
        stages: vec![stage],
        ..Job::default()
    }
}

pub fn node(node_id: &str, kind: NodeKind) -> Node {
    Node {
        node_id: node_id.into(),
        kind: kind as i32,
        reach: NodeReach::Connected as i32,
        address: "127.0.0.1:7".into(),
        ..Node::default()
    }
}
