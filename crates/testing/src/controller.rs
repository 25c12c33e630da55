//! A real controller process on a temp folder, and nodes that are played by the test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::review_service_client::ReviewServiceClient;
use crescendo_proto::v1::sample_service_client::SampleServiceClient;
use crescendo_proto::v1::view_service_client::ViewServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::programs::binary;
use crate::specs::SPEC;
use crate::waiting::{LIMIT, eventually};

/// A controller process on a folder of its own; killed with this.
pub struct Controller {
    folder: tempfile::TempDir,
    process: Child,
    /// Address to listen at: any at first, the same one after a restart.
    listen: String,
    store: Option<String>,
    flags: Vec<String>,
    pub address: String,
    pub metrics_address: String,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Controller {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    pub async fn start_with(flags: &[&str]) -> anyhow::Result<Self> {
        let mut controller = Self::start_process(None, flags).await?;
        controller.await_leading().await?;
        Ok(controller)
    }

    /// Starts a process, which need not lead. `store` is an embedded one of its own if absent.
    pub async fn start_process(store: Option<String>, flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let listen = "127.0.0.1:0".to_owned();
        let process = spawn(&folder, &listen, store.as_deref(), &flags)?;
        let (address, metrics_address) = (String::new(), String::new());
        let mut controller = Self { folder, process, listen, store, flags, address, metrics_address };
        controller.await_ports().await?;
        controller.listen = controller.address.clone();
        Ok(controller)
    }

    /// As a power cut would: nothing is said to anyone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.process = spawn(&self.folder, &self.listen, self.store.as_deref(), &self.flags)?;
        self.await_ports().await?;
        self.await_leading().await
    }

    /// Asks the process to stop, and waits until it has.
    pub async fn stop(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let pid = self.process.id().to_string();
        anyhow::ensure!(Command::new("kill").args(["-TERM", &pid]).status()?.success(), "send the signal");
        eventually("the controller stops", async || Ok(self.process.try_wait()?)).await
    }

    async fn await_ports(&mut self) -> anyhow::Result<()> {
        let port_file = self.folder.path().join("ports.json");
        let ports = eventually("the port file is written", async || {
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.folder.path().join("controller.log"))?;
                bail!("the controller ended with {status}: {log}");
            }
            let Ok(text) = std::fs::read(&port_file) else { return Ok(None) };
            Ok(Some(serde_json::from_slice::<serde_json::Value>(&text)?))
        })
        .await?;
        self.address = ports["grpc"].as_str().context("grpc address")?.to_owned();
        self.metrics_address = ports["metrics"].as_str().context("metrics address")?.to_owned();
        Ok(())
    }

    /// Folder of everything that the process writes: its log, and its store unless it was given one.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub async fn await_leading(&mut self) -> anyhow::Result<()> {
        let mut jobs = self.jobs();
        eventually("the controller leads", async || {
            match jobs.list_jobs(v1::ListJobsRequest::default()).await {
                Ok(_) => Ok(Some(())),
                Err(status) if status.code() == Code::Unavailable => Ok(None),
                Err(status) => Err(status.into()),
            }
        })
        .await
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address")
            .timeout(LIMIT)
            .connect_lazy()
    }

    fn stream_channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("an address").connect_lazy()
    }

    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel())
    }

    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel())
    }

    pub fn checkpoints(&self) -> CheckpointServiceClient<Channel> {
        CheckpointServiceClient::new(self.channel())
    }

    pub fn curation(&self) -> CurationServiceClient<Channel> {
        CurationServiceClient::new(self.channel())
    }

    pub fn objects(&self) -> ObjectServiceClient<Channel> {
        ObjectServiceClient::new(self.channel())
    }

    /// For what takes as long as it likes.
    pub fn stream_objects(&self) -> ObjectServiceClient<Channel> {
        ObjectServiceClient::new(self.stream_channel())
    }

    pub fn samples(&self) -> SampleServiceClient<Channel> {
        SampleServiceClient::new(self.channel())
    }

    pub fn review(&self) -> ReviewServiceClient<Channel> {
        ReviewServiceClient::new(self.channel())
    }

    pub fn views(&self) -> ViewServiceClient<Channel> {
        ViewServiceClient::new(self.stream_channel())
    }

    pub async fn submit(&self, request_id: &str, spec: &str) -> Result<v1::SubmitJobResponse, Status> {
        let request = v1::SubmitJobRequest {
            request_id: request_id.into(),
            spec_yaml: spec.as_bytes().to_vec(),
            validate_only: false,
        };
        Ok(self.jobs().submit_job(request).await?.into_inner())
    }

    pub async fn submit_job(&self, request_id: &str) -> anyhow::Result<v1::Job> {
        self.submit(request_id, SPEC).await?.job.context("a job")
    }

    pub async fn job(&self, id: &str) -> anyhow::Result<v1::Job> {
        let request = v1::GetJobRequest { job_id: id.into() };
        self.jobs().get_job(request).await?.into_inner().job.context("a job")
    }

    pub async fn job_when(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&v1::Job) -> bool,
    ) -> anyhow::Result<v1::Job> {
        eventually(what, async || {
            let job = self.job(id).await?;
            Ok(wanted(&job).then_some(job))
        })
        .await
    }

    pub async fn metrics(&self) -> anyhow::Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.metrics_address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}

fn spawn(
    folder: &tempfile::TempDir,
    listen: &str,
    store: Option<&str>,
    flags: &[String],
) -> anyhow::Result<Child> {
    let dev = if flags.iter().any(|flag| flag == "--tls-cert") { None } else { Some("--dev") };
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let _ = std::fs::remove_file(at("ports.json"));
    let embedded = format!("embedded:{}", at("store").display());
    let log = std::fs::File::options().create(true).append(true).open(at("controller.log"))?;
    Command::new(binary("crescendo-controller")?)
        .args(["--listen", listen, "--metrics-listen", "127.0.0.1:0"])
        .args(["--store", store.unwrap_or(&embedded)])
        .args(["--object-store", &format!("file://{}", at("objects").display())])
        .args(["--port-file", &at("ports.json").display().to_string()])
        .args(dev)
        .args(flags)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .context("start the controller")
}

/// A node that does nothing by itself.
pub struct FakeNode {
    pub id: String,
    /// What the controller has said first.
    pub welcome: v1::Welcome,
    up: mpsc::Sender<v1::OpenSessionRequest>,
    down: Streaming<v1::OpenSessionResponse>,
}

pub fn hello(id: &str, kind: v1::NodeKind, slots: u32, incarnation: &str) -> v1::Hello {
    v1::Hello {
        node_id: id.into(),
        incarnation: incarnation.into(),
        kind: kind.into(),
        slots,
        device: "cpu".into(),
        address: format!("127.0.0.1:{}", 40_000 + id.len()),
        version: "0.1.0".into(),
        ..Default::default()
    }
}

impl FakeNode {
    pub async fn open(controller: &Controller, hello: v1::Hello) -> anyhow::Result<Self> {
        Self::open_over(controller.stream_channel(), hello).await
    }

    /// Over a connection of its own. A process of the same name that has just gone is waited for.
    pub async fn open_over(channel: Channel, hello: v1::Hello) -> anyhow::Result<Self> {
        eventually("the session is open", async || {
            match Self::try_open_over(channel.clone(), hello.clone()).await {
                Ok(node) => Ok(Some(node)),
                Err(error) => match error.downcast_ref::<Status>() {
                    Some(status) if status.code() == Code::AlreadyExists => Ok(None),
                    _ => Err(error),
                },
            }
        })
        .await
    }

    /// Once: as a real node does before it tries again.
    pub async fn try_open(controller: &Controller, hello: v1::Hello) -> anyhow::Result<Self> {
        Self::try_open_over(controller.stream_channel(), hello).await
    }

    async fn try_open_over(channel: Channel, hello: v1::Hello) -> anyhow::Result<Self> {
        let id = hello.node_id.clone();
        let (up, outgoing) = mpsc::channel(64);
        up.send(v1::OpenSessionRequest { message: Some(Up::Hello(hello)) }).await?;
        let mut client = NodeServiceClient::new(channel);
        let down = client.open_session(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut node = Self { id, welcome: v1::Welcome::default(), up, down };
        match node.next().await? {
            Down::Welcome(welcome) => Ok(Self { welcome, ..node }),
            other => bail!("expected a welcome, got {other:?}"),
        }
    }

    pub async fn trainer(controller: &Controller, id: &str, slots: u32) -> anyhow::Result<Self> {
        Self::open(controller, hello(id, v1::NodeKind::Trainer, slots, "first")).await
    }

    pub async fn curator(controller: &Controller, id: &str) -> anyhow::Result<Self> {
        Self::open(controller, hello(id, v1::NodeKind::Curator, 0, "first")).await
    }

    pub async fn next(&mut self) -> anyhow::Result<Down> {
        let response =
            tokio::time::timeout(LIMIT, self.down.message()).await.context("no command came")??;
        response.and_then(|response| response.message).context("the session ended")
    }

    /// Commands that came within `wait`.
    pub async fn quiet_for(&mut self, wait: Duration) -> anyhow::Result<Option<Down>> {
        match tokio::time::timeout(wait, self.down.message()).await {
            Ok(message) => Ok(message?.and_then(|response| response.message)),
            Err(_) => Ok(None),
        }
    }

    pub async fn start_command(&mut self) -> anyhow::Result<v1::StartAttempt> {
        loop {
            if let Down::StartAttempt(start) = self.next().await? {
                return Ok(start);
            }
        }
    }

    pub async fn stop_command(&mut self) -> anyhow::Result<v1::StopAttempt> {
        loop {
            if let Down::StopAttempt(stop) = self.next().await? {
                return Ok(stop);
            }
        }
    }

    pub async fn assignment(&mut self) -> anyhow::Result<v1::AssignCuration> {
        loop {
            if let Down::AssignCuration(assign) = self.next().await? {
                return Ok(assign);
            }
        }
    }

    pub async fn report(
        &self,
        attempt: &v1::AttemptRef,
        phase: v1::AttemptPhase,
        step: u64,
    ) -> anyhow::Result<()> {
        let report = v1::AttemptReport {
            attempt: Some(attempt.clone()),
            phase: phase.into(),
            step,
            loss: 0.5,
            failed_rank: -1,
            reason: if phase == v1::AttemptPhase::Failed {
                "rank 0 ended: signal 9".into()
            } else {
                String::new()
            },
            ..Default::default()
        };
        self.send(Up::AttemptReport(report)).await
    }

    pub async fn send(&self, message: Up) -> anyhow::Result<()> {
        self.up.send(v1::OpenSessionRequest { message: Some(message) }).await.context("send")
    }
}

pub async fn lease(controller: &Controller, job: &str, node: &str) -> anyhow::Result<v1::LeaseUnitResponse> {
    let request = v1::LeaseUnitRequest { job_id: job.into(), stage: "stage-1".into(), node_id: node.into() };
    Ok(controller.curation().lease_unit(request).await?.into_inner())
}

pub async fn leased(controller: &Controller, job: &str, node: &str) -> anyhow::Result<v1::UnitLease> {
    lease(controller, job, node).await?.unit.context("a unit")
}

pub fn unit_result(lease: &v1::UnitLease, node: &str, pairs: u64) -> v1::CommitUnitRequest {
    let v1::UnitLease { job_id, stage, unit, lease_generation, .. } = lease;
    v1::CommitUnitRequest {
        lease: Some(lease.clone()),
        node_id: node.into(),
        shard: Some(v1::Shard {
            unit: *unit,
            path: format!("jobs/{job_id}/{stage}/pairs/unit-{unit:06}-l{lease_generation}.tar"),
            pairs,
            size_bytes: 1000,
            sha256: "a".repeat(64),
            first_index: 0,
        }),
        rejected: [("similarity_low".to_owned(), 1)].into(),
        exhausted: false,
        scores: [("judge".to_owned(), v1::ScoreCounts { counts: vec![1; 16] })].into(),
    }
}

pub async fn commit(
    controller: &Controller,
    lease: &v1::UnitLease,
    node: &str,
    pairs: u64,
) -> Result<v1::CommitUnitResponse, Status> {
    Ok(controller.curation().commit_unit(unit_result(lease, node, pairs)).await?.into_inner())
}

/// Makes all pairs of the only stage.
pub async fn curate(controller: &Controller, job: &str, node: &str) -> anyhow::Result<()> {
    for _ in 0..2 {
        let unit = leased(controller, job, node).await?;
        commit(controller, &unit, node, 4).await?;
    }
    Ok(())
}

pub fn checkpoint(attempt: &v1::AttemptRef, step: u64, last: bool) -> v1::Checkpoint {
    let v1::AttemptRef { job_id, stage, generation } = attempt;
    v1::Checkpoint {
        job_id: job_id.clone(),
        stage: stage.clone(),
        generation: *generation,
        step,
        path: format!("jobs/{job_id}/{stage}/checkpoints/step-{step:08}-g{generation}"),
        files: vec![v1::CheckpointFile {
            name: "dit_lora.safetensors".into(),
            size_bytes: 10,
            sha256: "b".repeat(64),
        }],
        r#final: last,
        next_position: step * 2,
        ..Default::default()
    }
}

pub async fn commit_checkpoint(
    controller: &Controller,
    checkpoint: v1::Checkpoint,
) -> Result<v1::CommitCheckpointResponse, Status> {
    let request = v1::CommitCheckpointRequest { checkpoint: Some(checkpoint) };
    Ok(controller.checkpoints().commit_checkpoint(request).await?.into_inner())
}
