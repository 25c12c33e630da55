//! A controller in this process that knows just enough of curation: sessions, leases, commits and the log.

use anyhow::Context;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::curation_service_server::{CurationService, CurationServiceServer};
use crescendo_proto::v1::lease_unit_response::Outcome;
use crescendo_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What the controller has seen and decided.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Committed shards by unit, with what was rejected.
    pub units: BTreeMap<u64, (Shard, BTreeMap<String, u64>)>,
    pub next_unit: u64,
    pub lease_generation: u64,
    /// Reasons of failed units.
    pub failed: Vec<String>,
    /// And what kind each failure was.
    pub failure_kinds: Vec<UnitFailureKind>,
    /// Why the job has ended, if a curator has ended it.
    pub job_failed: Option<String>,
    /// Units below this may be leased.
    pub open_units: u64,
    /// Pairs that the log is cut at.
    pub target: u64,
    pub hello: Option<Hello>,
    pub logged: Vec<LogLine>,
    /// What was said of units under way.
    pub reports: Vec<UnitReport>,
}

impl Log {
    /// Shards of the done prefix with their first indices, and what can be read.
    fn readable(&self) -> (Vec<Shard>, u64, bool) {
        let (mut shards, mut pairs) = (Vec::new(), 0);
        for (expected, (unit, (shard, _))) in self.units.iter().enumerate() {
            if *unit != expected as u64 || pairs >= self.target {
                break;
            }
            shards.push(Shard { first_index: pairs, ..shard.clone() });
            pairs += shard.pairs;
        }
        (shards, pairs.min(self.target), pairs >= self.target)
    }
}

#[derive(Clone)]
pub struct FakeController {
    pub log: Arc<watch::Sender<Log>>,
    assignment: AssignCuration,
    tasks: Tasks,
}

impl FakeController {
    /// Serves on `address` (port 0 for a free one) until the tasks are stopped; `assignment` goes to every node that
    /// says hello.
    pub async fn serve(
        address: &str,
        log: Arc<watch::Sender<Log>>,
        assignment: AssignCuration,
        tasks: Tasks,
    ) -> SocketAddr {
        let listener = TcpListener::bind(address).await.expect("bind");
        let bound = listener.local_addr().expect("an address");
        let controller = FakeController { log, assignment, tasks: tasks.clone() };
        let serving = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(controller.clone()))
            .add_service(CurationServiceServer::new(controller))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                tasks.stop_token().cancelled_owned(),
            );
        tasks.spawn(async move { serving.await.expect("the controller serves") });
        bound
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl NodeService for FakeController {
    type OpenSessionStream = Answers<OpenSessionResponse>;

    async fn open_session(
        &self,
        request: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let mut inbound = request.into_inner();
        let (answers, responses) = mpsc::channel(8);
        let Some(OpenSessionRequest { message: Some(Up::Hello(hello)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        self.log.send_modify(|log| log.hello = Some(hello));
        let welcome = Welcome { controller_id: "fake".into(), heartbeat_millis: 1000, ..Welcome::default() };
        let commands = [Down::Welcome(welcome), Down::AssignCuration(self.assignment.clone())];
        let (log, stop) = (self.log.clone(), self.tasks.stop_token());
        self.tasks.spawn(async move {
            for command in commands {
                let _ = answers.send(Ok(OpenSessionResponse { message: Some(command) })).await;
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    message = inbound.message() => match message {
                        Ok(Some(OpenSessionRequest { message: Some(Up::LogBatch(batch)) })) => {
                            log.send_modify(|log| log.logged.extend(batch.lines));
                        }
                        Ok(Some(OpenSessionRequest { message: Some(Up::UnitReport(report)) })) => {
                            log.send_modify(|log| log.reports.push(report));
                        }
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => break,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
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
impl CurationService for FakeController {
    async fn lease_unit(
        &self,
        request: Request<LeaseUnitRequest>,
    ) -> Result<Response<LeaseUnitResponse>, Status> {
        let request = request.into_inner();
        let mut response = LeaseUnitResponse { retry_millis: 50, ..LeaseUnitResponse::default() };
        self.log.send_modify(|log| {
            response.curators = 1;
            if log.readable().2 || log.job_failed.is_some() {
                response.set_outcome(Outcome::Sealed);
            } else if log.next_unit < log.open_units {
                log.lease_generation += 1;
                response.unit = Some(UnitLease {
                    job_id: request.job_id,
                    stage: request.stage,
                    unit: log.next_unit,
                    lease_generation: log.lease_generation,
                    ttl_millis: 20_000,
                });
                log.next_unit += 1;
                response.set_outcome(Outcome::Leased);
            } else {
                response.set_outcome(Outcome::Wait);
            }
        });
        Ok(Response::new(response))
    }

    async fn renew_unit(&self, _: Request<RenewUnitRequest>) -> Result<Response<RenewUnitResponse>, Status> {
        Ok(Response::new(RenewUnitResponse { ttl_millis: 20_000, curators: 1 }))
    }

    async fn commit_unit(
        &self,
        request: Request<CommitUnitRequest>,
    ) -> Result<Response<CommitUnitResponse>, Status> {
        let request = request.into_inner();
        let unit = request.lease.ok_or_else(|| Status::invalid_argument("no lease"))?.unit;
        let mut done_already = false;
        self.log.send_modify(|log| {
            done_already = log.units.contains_key(&unit);
            log.units.entry(unit).or_insert((request.shard.unwrap_or_default(), request.rejected));
        });
        Ok(Response::new(CommitUnitResponse { done_already }))
    }

    async fn fail_unit(
        &self,
        request: Request<FailUnitRequest>,
    ) -> Result<Response<FailUnitResponse>, Status> {
        let request = request.into_inner();
        let kind = request.kind();
        let FailUnitRequest { reason, job_fails, .. } = request;
        self.log.send_modify(|log| {
            log.failure_kinds.push(kind);
            log.job_failed = job_fails.then(|| reason.clone());
            log.failed.push(reason);
        });
        Ok(Response::new(FailUnitResponse { quarantined: false }))
    }

    type WatchPairLogStream = Answers<WatchPairLogResponse>;

    async fn watch_pair_log(
        &self,
        request: Request<WatchPairLogRequest>,
    ) -> Result<Response<Self::WatchPairLogStream>, Status> {
        let from_unit = request.into_inner().from_unit;
        let (answers, responses) = mpsc::channel(8);
        let (mut changes, stop) = (self.log.subscribe(), self.tasks.stop_token());
        self.tasks.spawn(async move {
            let (mut next, mut told) = (from_unit, None);
            loop {
                let (shards, committed, sealed) = changes.borrow_and_update().readable();
                let shards: Vec<Shard> = shards.into_iter().filter(|s| s.unit >= next).collect();
                next = shards.last().map_or(next, |s| s.unit + 1);
                if told != Some((committed, sealed)) {
                    told = Some((committed, sealed));
                    if answers.send(Ok(WatchPairLogResponse { shards, committed, sealed })).await.is_err()
                        || sealed
                    {
                        return;
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

/// Waits for the log to be as `wanted` says.
pub async fn wait_for(log: &watch::Sender<Log>, what: &str, wanted: impl FnMut(&Log) -> bool) -> Log {
    let mut changes = log.subscribe();
    let found = tokio::time::timeout(Duration::from_secs(60), changes.wait_for(wanted)).await;
    found.unwrap_or_else(|_| panic!("waited in vain until {what}")).expect("the log lives").clone()
}

/// A resolved spec with one composed stage, as JSON, and its library below `root`.
pub fn prepare(root: &Path, unit_size: u32, references: u32, panel: u32) -> Vec<u8> {
    let folder = root.join("subjects");
    std::fs::create_dir_all(&folder).expect("make the library's folder");
    let mut index = Vec::new();
    for n in 0..20u32 {
        let picture = image::RgbaImage::from_fn(48, 48, |x, y| {
            let inside = if n % 2 == 0 {
                x.abs_diff(24) + y.abs_diff(24) < 22
            } else {
                x.abs_diff(24) < 20 && y.abs_diff(24) < 9
            };
            image::Rgba([(n * 12) as u8, 200 - (n * 9) as u8, (n * 50) as u8, if inside { 255 } else { 0 }])
        });
        picture.save(folder.join(format!("{n}.png"))).expect("write a subject");
        index.push(serde_json::json!({ "id": format!("thing-{n}"), "file": format!("{n}.png"), "words": format!("a thing {n}") }));
    }
    std::fs::write(folder.join("index.json"), serde_json::to_vec(&index).expect("encode"))
        .expect("write the index");
    let spec = format!(
        "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: test}}
spec:
  model: {{preset: nano, precision: f32, weights: base.safetensors}}
  resources: {{gpus: 1}}
  seed: 5
  stages:
    - name: stage-1
      references: {references}
      data: {{source: compose, subjects: subjects, panel: {panel}, holdOutOneIn: 4, pairs: 1000, unitSize: {unit_size}}}
      train: {{steps: 2, globalBatch: 2}}
"
    );
    let job = crescendo_core::spec::parse(spec.as_bytes()).expect("the spec is right");
    serde_json::to_vec(&job).expect("encode the spec")
}

/// The stage of [`prepare`]'s spec, to be worked on with objects below `objects`.
pub fn assignment(resolved_spec_json: Vec<u8>, objects: &Path) -> AssignCuration {
    AssignCuration {
        stage: Some(StageRef { job_id: "test-1".into(), stage: "stage-1".into() }),
        stage_index: 0,
        resolved_spec_json,
        object_store_url: format!("file://{}", objects.display()),
        source_checkpoint: None,
        reach: None,
        trace_parent: String::new(),
    }
}

/// Processor time that a process has used, in seconds: user and system, in ticks of 10 ms.
#[allow(dead_code, reason = "of the bench alone")]
pub fn cpu_seconds_of(process: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Fields after the name, which may have spaces and ends with the last parenthesis; utime is the 14th of all.
    let fields: Vec<&str> = stat.rsplit_once(')').context("read stat")?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).context("read stat");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// A real curator process, killed when dropped.
pub struct Curator {
    process: Child,
    port_file: PathBuf,
}

impl Drop for Curator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Curator {
    pub fn start(binary: &Path, folder: &Path, controller: SocketAddr) -> anyhow::Result<Curator> {
        let port_file = folder.join("curator.json");
        let process = Command::new(binary)
            .arg("--dev")
            .args(["--node-id", "curator-0", "--controller", &controller.to_string(), "--library-root"])
            .arg(folder)
            .arg("--port-file")
            .arg(&port_file)
            .arg("--scratch")
            .arg(folder.join("scratch"))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Curator { process, port_file })
    }

    /// Addresses of the gRPC and the metrics server, once it serves.
    pub async fn addresses(&self) -> anyhow::Result<(String, String)> {
        let written = async {
            loop {
                if let Ok(text) = std::fs::read(&self.port_file) {
                    return serde_json::from_slice::<serde_json::Value>(&text);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ports = tokio::time::timeout(Duration::from_secs(30), written)
            .await
            .context("wait for the port file")??;
        let address = |name: &str| {
            ports[name].as_str().map(str::to_owned).with_context(|| format!("{name} is missing"))
        };
        Ok((address("grpc")?, address("metrics")?))
    }

    /// Memory that it has now, MiB.
    #[allow(dead_code, reason = "of the bench alone")]
    pub fn resident_mib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("read VmRSS")?;
        Ok(kib / 1024)
    }

    /// Processor time that it has used, in seconds.
    #[allow(dead_code, reason = "of the bench alone")]
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds_of(&self.process.id().to_string())
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(mut self) -> anyhow::Result<std::process::ExitStatus> {
        let asked = Command::new("kill").arg("-TERM").arg(self.process.id().to_string()).status()?;
        anyhow::ensure!(asked.success(), "kill failed");
        let ended = async {
            loop {
                if let Some(status) = self.process.try_wait()? {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.context("wait for the end")?
    }
}
