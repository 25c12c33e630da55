//! A controller and a curator in the test's own process, for real agents and ranks to talk to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crescendo_core::spec::*;
use crescendo_proto::v1::checkpoint_service_server::{CheckpointService, CheckpointServiceServer};
use crescendo_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::pair_service_server::{PairService, PairServiceServer};
use crescendo_proto::v1::stream_pairs_request::Message as Ask;
use crescendo_proto::v1::stream_pairs_response::Message as Answer;
use crescendo_proto::v1::*;
use crescendo_trainer_node::rank::batch::to_wire;
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(240);
pub const STAGE: &str = "stage-1";
pub const SEED: u64 = 11;

type Sessions = BTreeMap<String, mpsc::Sender<Result<OpenSessionResponse, Status>>>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Default)]
pub struct State {
    pub sessions: Sessions,
    pub hellos: Vec<Hello>,
    pub reports: Vec<AttemptReport>,
    pub logs: Vec<LogLine>,
    pub checkpoints: Vec<Checkpoint>,
    pub damaged: Vec<(String, String)>,
    /// Commits of generations below this are refused.
    pub newest_generation: u64,
    /// Commits find no controller, and are counted.
    pub outage: bool,
    pub commits_in_outage: u32,
    /// Pair whose latents are no numbers.
    pub poisoned: Option<u64>,
}

/// See the module.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    log: watch::Sender<LogStatus>,
    /// Streams of pairs end when it changes.
    breaks: watch::Sender<u64>,
    /// Ends with the last clone.
    tasks: Arc<Mutex<JoinSet<()>>>,
    pub address: String,
}

impl Cluster {
    /// Serves with `committed` pairs in a log that is not sealed.
    pub async fn start(committed: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = Self {
            state: Arc::default(),
            changed: watch::channel(0).0,
            log: watch::channel(LogStatus { committed, sealed: false }).0,
            breaks: watch::channel(0).0,
            tasks: Arc::default(),
            address: listener.local_addr().unwrap().to_string(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(cluster.clone()))
            .add_service(CheckpointServiceServer::new(cluster.clone()))
            .add_service(PairServiceServer::new(cluster.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        cluster.spawn(async move { server.await.unwrap() });
        cluster
    }

    pub fn set_log(&self, committed: u64, sealed: bool) {
        self.log.send_replace(LogStatus { committed, sealed });
    }

    pub fn break_streams(&self) {
        self.breaks.send_modify(|count| *count += 1);
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until `look` finds something.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                let found = look(&self.state());
                if let Some(found) = found {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(LIMIT, waiting).await {
            Ok(found) => found,
            Err(_) => panic!(
                "no {what} within {LIMIT:?}; reports: {:#?}",
                self.state().reports.iter().rev().take(4).collect::<Vec<_>>()
            ),
        }
    }

    pub async fn report(&self, job_id: &str, generation: u64, phase: AttemptPhase) -> AttemptReport {
        self.until(&format!("report {phase:?} of generation {generation} of {job_id}"), |state| {
            let of = |report: &&AttemptReport| {
                report.phase() == phase
                    && report
                        .attempt
                        .as_ref()
                        .is_some_and(|a| a.job_id == job_id && a.generation == generation)
            };
            state.reports.iter().find(of).cloned()
        })
        .await
    }

    pub async fn checkpoint(&self, job_id: &str, step: u64) -> Checkpoint {
        self.until(&format!("checkpoint {step} of {job_id}"), |state| {
            state.checkpoints.iter().find(|c| c.job_id == job_id && c.step == step).cloned()
        })
        .await
    }

    pub fn send(&self, node_id: &str, message: Down) {
        let sender = self.state().sessions.get(node_id).cloned().expect("the node has a session");
        sender
            .try_send(Ok(OpenSessionResponse { message: Some(message) }))
            .expect("the node reads its commands");
    }

    pub async fn connected(&self, node_id: &str) -> Hello {
        self.until(&format!("hello of {node_id}"), |state| {
            state.hellos.iter().find(|hello| hello.node_id == node_id).cloned()
        })
        .await
    }
}

#[tonic::async_trait]
impl NodeService for Cluster {
    type OpenSessionStream = Answers<OpenSessionResponse>;

    async fn open_session(
        &self,
        request: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let mut up = request.into_inner();
        let Some(Up::Hello(hello)) = up.message().await?.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (down, messages) = mpsc::channel(16);
        let welcome = Down::Welcome(Welcome {
            controller_id: "fake".into(),
            heartbeat_millis: 200,
            ..Welcome::default()
        });
        down.send(Ok(OpenSessionResponse { message: Some(welcome) })).await.unwrap();
        self.note(|state| {
            state.sessions.insert(hello.node_id.clone(), down);
            state.hellos.push(hello);
        });
        let cluster = self.clone();
        self.spawn(async move {
            while let Ok(Some(request)) = up.message().await {
                match request.message {
                    Some(Up::AttemptReport(report)) => cluster.note(|state| state.reports.push(report)),
                    Some(Up::LogBatch(batch)) => cluster.note(|state| state.logs.extend(batch.lines)),
                    _ => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
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

#[tonic::async_trait]
impl CheckpointService for Cluster {
    async fn keep_checkpoint(
        &self,
        _: Request<KeepCheckpointRequest>,
    ) -> Result<Response<KeepCheckpointResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<CommitCheckpointRequest>,
    ) -> Result<Response<CommitCheckpointResponse>, Status> {
        let checkpoint = request.into_inner().checkpoint.unwrap();
        if self.state().outage {
            self.note(|state| state.commits_in_outage += 1);
            return Err(Status::unavailable("no leader"));
        }
        if checkpoint.generation < self.state().newest_generation {
            return Err(Status::failed_precondition("an old generation"));
        }
        self.note(|state| state.checkpoints.push(checkpoint.clone()));
        // Keeps only the newest.
        let expired = self
            .state()
            .checkpoints
            .iter()
            .filter(|old| old.job_id == checkpoint.job_id && old.step + 2 < checkpoint.step)
            .cloned()
            .collect();
        Ok(Response::new(CommitCheckpointResponse { checkpoint: Some(checkpoint), expired }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn mark_checkpoint_damaged(
        &self,
        request: Request<MarkCheckpointDamagedRequest>,
    ) -> Result<Response<MarkCheckpointDamagedResponse>, Status> {
        let request = request.into_inner();
        self.note(|state| state.damaged.push((request.path, request.reason)));
        Ok(Response::new(MarkCheckpointDamagedResponse {}))
    }
}

#[tonic::async_trait]
impl PairService for Cluster {
    type StreamPairsStream = Answers<StreamPairsResponse>;

    async fn stream_pairs(
        &self,
        request: Request<Streaming<StreamPairsRequest>>,
    ) -> Result<Response<Self::StreamPairsStream>, Status> {
        let mut up = request.into_inner();
        let Some(Ask::Open(open)) = up.message().await?.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("no open"));
        };
        let (mut log, mut breaks) = (self.log.subscribe(), self.breaks.subscribe());
        let poisoned = self.state().poisoned;
        let (down, messages) = mpsc::channel(4);
        self.spawn(async move {
            let say = |message| StreamPairsResponse { message: Some(message) };
            let status = *log.borrow_and_update();
            let opened = PairsOpened { empty_text: Some(text(u64::MAX)), status: Some(status) };
            let mut credits = u64::from(open.credits);
            let mut wanted = std::collections::VecDeque::new();
            let mut sent = down.send(Ok(say(Answer::Opened(opened)))).await;
            while sent.is_ok() {
                sent = tokio::select! {
                    request = up.message() => {
                        match request {
                            Ok(Some(StreamPairsRequest { message: Some(Ask::Fetch(fetch)) })) => {
                                wanted.extend(fetch.first_index..fetch.first_index + u64::from(fetch.count));
                            }
                            Ok(Some(StreamPairsRequest { message: Some(Ask::Grant(grant)) })) => {
                                credits += u64::from(grant.pairs);
                            }
                            _ => break,
                        }
                        Ok(())
                    }
                    _ = breaks.changed() => break,
                    _ = log.changed() => {
                        let status = *log.borrow_and_update();
                        down.send(Ok(say(Answer::Status(status)))).await
                    }
                };
                while sent.is_ok()
                    && credits > 0
                    && wanted.front().is_some_and(|index| *index < log.borrow().committed)
                {
                    credits -= 1;
                    let index = wanted.pop_front().unwrap();
                    let mut pair = pair(index);
                    if poisoned == Some(index) {
                        pair.target = Some(to_wire(&[f32::NAN; 12 * 64], &[12, 8, 8]));
                    }
                    sent = down.send(Ok(say(Answer::Pair(pair)))).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// Numbers that differ from pair to pair, about 1 in size.
fn numbers(index: u64, salt: u64, count: usize) -> Vec<f32> {
    let phase = index.wrapping_mul(31).wrapping_add(salt) % 1000;
    (0..count as u64).map(|n| ((phase * 17 + n * (7 + phase % 5)) as f32 * 0.37).sin()).collect()
}

fn text(index: u64) -> EncodedText {
    EncodedText {
        tokens: Some(to_wire(&numbers(index, 1, 4 * 64), &[4, 64])),
        pooled: Some(to_wire(&numbers(index, 2, 64), &[64])),
    }
}

fn pair(index: u64) -> EncodedPair {
    EncodedPair {
        index,
        target: Some(to_wire(&numbers(index, 3, 12 * 64), &[12, 8, 8])),
        references: vec![to_wire(&numbers(index, 4, 12 * 64), &[12, 8, 8])],
        text: Some(text(index)),
        prompt: format!("pair {index}"),
    }
}

/// A job of one stage on the nano preset.
pub fn spec(steps: u64, ranks: u32) -> JobSpec {
    JobSpec {
        name: "test".into(),
        tenant: "default".into(),
        labels: BTreeMap::new(),
        model: ModelSpec {
            preset: ModelPreset::Nano,
            sizes: None,
            weights: Some("base.safetensors".into()),
            encoders: None,
            precision: Precision::F32,
        },
        resources: Resources {
            gpus: ranks,
            min_gpus: ranks,
            device: DeviceChoice::Auto,
            device_memory_gb: None,
            node_labels: BTreeMap::new(),
            topology: None,
        },
        queue: None,
        time_limit_minutes: None,
        priority: 0,
        seed: SEED,
        reproducible: Reproducible::Lenient,
        endpoints: Vec::new(),
        stages: vec![StageSpec {
            name: STAGE.into(),
            references: 1,
            positions: Positions::Diagonal,
            position_scale: 1.0,
            init_from: None,
            data: DataSpec {
                source: DataSource::Compose(ComposeSpec {
                    subjects: "subjects".into(),
                    photos: None,
                    layout: ComposeLayout::Single,
                    panel: 16,
                    name_share: 1.0,
                    hold_out: Vec::new(),
                    hold_out_one_in: 0,
                }),
                pairs: 16,
                min_pairs: 4,
                unit_size: 4,
                prompts: None,
                filter: FilterSpec { similarity: None, judge: None },
            },
            train: TrainSpec {
                adapter: AdapterSpec::Lora { rank: 4 },
                steps,
                global_batch: 4,
                micro_batch: 1,
                learning_rate: 1e-2,
                warmup_steps: 2,
                learning_rate_decay: Decay::None,
                betas: (0.9, 0.999),
                eps: 1e-8,
                weight_decay: 0.01,
                max_grad_norm: 1.0,
                max_skipped_steps: 10,
                text_dropout: 0.3,
                guidance: 1.0,
                timesteps: TimestepSampling::Uniform,
                ema_decay: Some(0.9),
                resolution: 16,
                on_starvation: OnStarvation::Wait,
            },
        }],
        checkpoints: CheckpointPolicy { every: 2, keep_last: 2 },
        samples: None,
    }
}

/// A real agent process; killed when dropped.
pub struct Agent {
    pub node_id: String,
    pub child: Child,
    /// Says where the agent serves, once it does.
    pub ports: PathBuf,
}

impl Agent {
    pub fn start(folder: &Path, cluster: &Cluster, node_id: &str, slots: u32) -> Self {
        let ports = folder.join(format!("{node_id}.ports"));
        let child = Command::new(env!("CARGO_BIN_EXE_crescendo-trainer-node"))
            .args(["agent", "--node-id", node_id, "--controller", &cluster.address])
            .args(["--slots", &slots.to_string(), "--device", "cpu", "--log-filter", "info", "--dev"])
            .arg("--port-file")
            .arg(&ports)
            .arg("--scratch")
            .arg(folder.join(format!("{node_id}.scratch")))
            .arg("--library-root")
            .arg(folder)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { node_id: node_id.into(), child, ports }
    }

    /// Process ids of its living ranks.
    pub fn ranks(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with base weights, an object store and room for the agents.
pub fn home() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = crescendo_model::FluxConfig::nano();
    let mut base = crescendo_model::Flux::init(&config, 3, tch::Kind::Float, tch::Device::Cpu).unwrap();
    // Fresh modulation and output are zero, and so would be all gradients.
    let tensors = base
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let key =
                crescendo_model::randomness::SampleKey { job_seed: 5, stage: 0, position: name.len() as u64 };
            let noise = key.noise(&tensor.size()).unwrap() * 0.02;
            let shifted = tch::no_grad(|| &tensor + noise);
            (name, shifted)
        })
        .collect();
    crescendo_model::weights::save(&folder.path().join("base.safetensors"), &tensors, &BTreeMap::new())
        .unwrap();
    folder
}

pub fn attempt(job_id: &str, generation: u64) -> AttemptRef {
    AttemptRef { job_id: job_id.into(), stage: STAGE.into(), generation }
}

/// Starts one rank on each agent.
pub fn start(
    folder: &Path,
    cluster: &Cluster,
    agents: &[&Agent],
    job_id: &str,
    generation: u64,
    spec: &JobSpec,
    resume_from: Option<Checkpoint>,
) {
    start_from(
        folder,
        cluster,
        agents,
        (job_id, generation),
        spec,
        Begins { resume_from, ..Begins::default() },
    );
}

/// What an attempt begins with.
#[derive(Default)]
pub struct Begins {
    pub resume_from: Option<Checkpoint>,
    pub init_from: Option<Checkpoint>,
    /// What each agent is told of the log's marks; nothing beyond the last.
    pub marks: Vec<PairMarks>,
}

/// The same, from a checkpoint of another job too.
pub fn start_from(
    folder: &Path,
    cluster: &Cluster,
    agents: &[&Agent],
    (job_id, generation): (&str, u64),
    spec: &JobSpec,
    Begins { resume_from, init_from, marks }: Begins,
) {
    let rank_0 = cluster
        .state()
        .hellos
        .iter()
        .rev()
        .find(|hello| hello.node_id == agents[0].node_id)
        .map(|hello| hello.address.clone())
        .unwrap();
    let ranks = agents
        .iter()
        .zip(0..)
        .map(|(agent, rank)| RankPlacement { rank, node_id: agent.node_id.clone(), device_index: 0 })
        .collect();
    let start = StartAttempt {
        attempt: Some(attempt(job_id, generation)),
        stage_index: 0,
        ranks,
        rendezvous_address: rank_0,
        resolved_spec_json: serde_json::to_vec(spec).unwrap(),
        resume_from,
        init_from,
        // The first one is not there.
        curator_addresses: vec!["127.0.0.1:1".into(), cluster.address.clone()],
        object_store_url: format!("file://{}", folder.join("objects").display()),
        reach: None,
        trace_parent: String::new(),
        pair_marks: None,
    };
    for (number, agent) in agents.iter().enumerate() {
        let start = StartAttempt { pair_marks: marks.get(number).cloned(), ..start.clone() };
        cluster.send(&agent.node_id, Down::StartAttempt(start));
    }
}

pub fn stop(cluster: &Cluster, agents: &[&Agent], job_id: &str, generation: u64) {
    for agent in agents {
        let stop = StopAttempt {
            attempt: Some(attempt(job_id, generation)),
            reason: "a rank was lost".into(),
            hung_ranks: Vec::new(),
        };
        cluster.send(&agent.node_id, Down::StopAttempt(stop));
    }
}

pub fn object(folder: &Path, checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    std::fs::read(folder.join("objects").join(&checkpoint.path).join(name)).unwrap()
}

/// What an agent tells Prometheus.
pub async fn metrics(agent: &Agent) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(&agent.ports).unwrap()).unwrap();
    let mut stream = tokio::net::TcpStream::connect(ports["metrics"].as_str().unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits for something that only polling sees.
pub async fn poll(what: &str, mut look: impl FnMut() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < LIMIT, "no {what} within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
