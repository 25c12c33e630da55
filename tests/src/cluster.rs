//! The processes of one test cluster, and the calls that tests make to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crescendo_node::tls::{Dialer, Tls};
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::{
    CancelJobRequest, Checkpoint, GetJobRequest, Job, JobState, ListCheckpointsRequest, StagePhase,
    SubmitJobRequest,
};
use crescendo_store::testing::FaultyProxy;
use crescendo_testing::certificates::{Authority, Wanted};
use object_store::{ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::etcd_members::EtcdMembers;
use crate::ports::free_port;
use crate::process::signal;
use crate::{Process, write_subjects};

/// What the cluster consists of.
pub struct ClusterOptions {
    pub curators: usize,
    pub trainers: usize,
    /// Ranks that fit on each trainer.
    pub slots: u32,
    /// Controllers; more than one share a store that is not the embedded one.
    pub controllers: usize,
    /// `embedded` or `etcd:URL`.
    pub store: Option<String>,
    /// Members of an etcd in place of `store`.
    pub etcd_members: usize,
    /// Whether what controllers say to the store, and nodes to controllers, goes through proxies that can be cut.
    pub proxied: bool,
    /// URL of the object store; a folder of this cluster's own if absent.
    pub object_store: Option<String>,
    /// Variables that every process gets.
    pub environment: Vec<(String, String)>,
    /// Mutual TLS, with certificates of this cluster's own authority; nothing is protected otherwise.
    pub authority: Option<Authority>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            curators: 1,
            trainers: 2,
            slots: 1,
            controllers: 1,
            store: None,
            etcd_members: 0,
            proxied: false,
            object_store: None,
            environment: Vec::new(),
            authority: None,
        }
    }
}

/// A running cluster; every process is killed when it is dropped.
pub struct Cluster {
    pub controller: Process,
    /// Further controllers.
    pub standbys: Vec<Process>,
    pub curators: Vec<Process>,
    pub trainers: Vec<Process>,
    pub etcd: Option<EtcdMembers>,
    /// What each controller says to the store, one proxy a member.
    pub to_store: Vec<Vec<FaultyProxy>>,
    /// What each node (curators, then trainers) says to the controllers, one proxy each.
    pub to_controllers: Vec<Vec<FaultyProxy>>,
    controller_addresses: Vec<String>,
    /// Index of the controller that answered last.
    leading: AtomicUsize,
    dialer: Dialer,
    objects: PathBuf,
    object_store: Arc<dyn ObjectStore>,
    /// Whether the object store is the folder `objects`.
    in_folder: bool,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts all processes and waits until they serve.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a temporary folder")?;
        let root = dir.path();
        write_subjects(&root.join("library/subjects"), 40)?;
        let objects = root.join("objects");
        std::fs::create_dir_all(&objects)?;
        // The port outlives the process, so that nodes find a restarted controller where they left it.
        let controller_addresses = (0..options.controllers.max(1))
            .map(|_| Ok(format!("127.0.0.1:{}", free_port()?)))
            .collect::<Result<Vec<String>>>()?;
        let etcd = match options.etcd_members {
            0 => None,
            members => Some(EtcdMembers::start(root, members).await?),
        };
        let store = options.store.unwrap_or_else(|| format!("embedded:{}", root.join("store").display()));
        let in_folder = options.object_store.is_none();
        let object_store_url =
            options.object_store.unwrap_or_else(|| format!("file://{}", objects.display()));
        let environment = &options.environment;
        let variable =
            |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let object_store = crescendo_node::objects::open_with(&object_store_url, &variable)?;
        let launch =
            Launch { root, environment, authority: options.authority.as_ref(), slots: options.slots };
        std::fs::create_dir_all(launch.certificates())?;
        let mut controllers = Vec::new();
        let mut to_store = Vec::new();
        for (index, address) in controller_addresses.iter().enumerate() {
            let name = if index == 0 { "controller".to_owned() } else { format!("controller-{index}") };
            let mut store = store.clone();
            if let Some(etcd) = &etcd {
                let members = etcd.addresses();
                let proxies = proxies(&members, options.proxied).await?;
                store = format!("etcd:{}", urls(&members, &proxies).join(","));
                to_store.push(proxies);
            }
            controllers.push(launch.controller(&name, address, &store, &object_store_url).await?);
        }
        let controller = controllers.remove(0);

        let mut to_controllers = Vec::new();
        let (mut curators, mut trainers) = (Vec::new(), Vec::new());
        for index in 0..options.curators + options.trainers {
            let proxies = proxies(&controller_addresses, options.proxied).await?;
            let urls = urls(&controller_addresses, &proxies).join(",").replace("http://", "");
            to_controllers.push(proxies);
            match index.checked_sub(options.curators) {
                None => curators.push(launch.curator(&format!("curator-{index}"), &urls).await?),
                Some(trainer) => trainers.push(launch.trainer(&format!("trainer-{trainer}"), &urls).await?),
            }
        }
        let dialer = launch.dialer().await?;
        Ok(Self {
            controller,
            standbys: controllers,
            curators,
            trainers,
            etcd,
            to_store,
            to_controllers,
            controller_addresses,
            leading: AtomicUsize::new(0),
            dialer,
            objects,
            object_store,
            in_folder,
            dir,
        })
    }

    /// The object store.
    pub fn object_store(&self) -> &dyn ObjectStore {
        &*self.object_store
    }

    /// Folder of the object store, where it is one.
    pub fn objects(&self) -> &Path {
        &self.objects
    }

    /// A lazy connection to the controller; calls fail while it is down.
    pub fn channel(&self) -> Result<Channel> {
        self.channel_at(&self.controller_addresses[self.leading.load(Ordering::Relaxed)])
    }

    /// The answer of the controller that leads: asks them in turn, beginning with the one that answered last, until one
    /// does not say that it cannot.
    pub async fn ask<T>(&self, call: impl AsyncFn(Channel) -> Result<T, Status>) -> Result<T> {
        let (count, first) = (self.controller_addresses.len(), self.leading.load(Ordering::Relaxed));
        let mut refused = None;
        for index in (first..first + count).map(|index| index % count) {
            match call(self.channel_at(&self.controller_addresses[index])?).await {
                Err(status)
                    if matches!(
                        status.code(),
                        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                    ) =>
                {
                    refused = Some(status);
                }
                outcome => {
                    self.leading.store(index, Ordering::Relaxed);
                    return Ok(outcome?);
                }
            }
        }
        Err(refused.context("no controller")?.into())
    }

    /// Index of the controller that answered last: 0 is `controller`, the others are `standbys`.
    pub fn leading(&self) -> usize {
        self.leading.load(Ordering::Relaxed)
    }

    /// A controller by its index.
    pub fn controller_at(&mut self, index: usize) -> &mut Process {
        match index.checked_sub(1) {
            None => &mut self.controller,
            Some(standby) => &mut self.standbys[standby],
        }
    }

    /// The same, with something in between that listens at `address`.
    pub fn channel_at(&self, address: &str) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        Ok(self.dialer.connect(endpoint.timeout(Duration::from_secs(10))))
    }

    /// Submits a spec and returns the job's id.
    pub async fn submit(&self, request_id: &str, spec_yaml: &str) -> Result<String> {
        let request = SubmitJobRequest {
            request_id: request_id.to_owned(),
            spec_yaml: spec_yaml.as_bytes().to_vec(),
            validate_only: false,
        };
        let submitting = self.ask(async |channel| {
            JobServiceClient::new(channel).submit_job(request.clone()).await.map(tonic::Response::into_inner)
        });
        Ok(submitting.await.context("submit the job")?.job.context("the answer has no job")?.job_id)
    }

    /// Submits a spec as soon as a controller leads that takes it.
    pub async fn submit_once_led(
        &self,
        request_id: &str,
        spec_yaml: &str,
        limit: Duration,
    ) -> Result<String> {
        let asked = Instant::now();
        loop {
            match self.submit(request_id, spec_yaml).await {
                Ok(job_id) => return Ok(job_id),
                Err(error) if asked.elapsed() > limit => {
                    return Err(error.context(format!("nobody leads within {limit:?}\n{}", self.logs())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Cancels a job.
    pub async fn cancel(&self, job_id: &str) -> Result<()> {
        let request = CancelJobRequest { job_id: job_id.to_owned(), ..Default::default() };
        let cancelling =
            self.ask(async |channel| JobServiceClient::new(channel).cancel_job(request.clone()).await);
        cancelling.await.map(drop)
    }

    /// The job as the controller sees it now.
    pub async fn job(&self, job_id: &str) -> Result<Job> {
        let request = GetJobRequest { job_id: job_id.to_owned() };
        let asking = self.ask(async |channel| {
            JobServiceClient::new(channel).get_job(request.clone()).await.map(tonic::Response::into_inner)
        });
        asking.await?.job.context("the answer has no job")
    }

    /// Waits until `done` holds for the job; errors of calls are waited out, a job that ended otherwise is an error.
    pub async fn await_job(
        &self,
        job_id: &str,
        limit: Duration,
        what: &str,
        done: impl Fn(&Job) -> bool,
    ) -> Result<Job> {
        let deadline = Instant::now() + limit;
        let mut last = None;
        loop {
            if let Ok(job) = self.job(job_id).await {
                if done(&job) {
                    return Ok(job);
                }
                if matches!(job.state(), JobState::Failed | JobState::Cancelled | JobState::Succeeded) {
                    bail!(
                        "the job ended as {:?} ({}) while waiting for: {what}\n{}",
                        job.state(),
                        job.reason,
                        self.logs()
                    );
                }
                last = Some(job);
            }
            ensure!(
                Instant::now() < deadline,
                "no {what} within {limit:?}; last seen: {last:#?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the job has succeeded.
    pub async fn await_success(&self, job_id: &str, limit: Duration) -> Result<Job> {
        self.await_job(job_id, limit, "success", |job| job.state() == JobState::Succeeded).await
    }

    /// Waits until the stage at `index` has done at least `step` optimizer steps.
    pub async fn await_step(&self, job_id: &str, index: usize, step: u64, limit: Duration) -> Result<Job> {
        self.await_job(job_id, limit, "training step", |job| {
            job.stages.get(index).is_some_and(|s| s.step >= step || s.phase() == StagePhase::Done)
        })
        .await
    }

    /// Waits until the stage has been started so many times.
    pub async fn await_generation(
        &self,
        job_id: &str,
        index: usize,
        generation: u64,
        limit: Duration,
    ) -> Result<Job> {
        self.await_job(job_id, limit, "generation", |job| {
            job.stages.get(index).is_some_and(|stage| stage.generation >= generation)
        })
        .await
    }

    /// Registered checkpoints of the job, oldest first.
    pub async fn checkpoints(&self, job_id: &str) -> Result<Vec<Checkpoint>> {
        let request = ListCheckpointsRequest { job_id: job_id.to_owned(), stage: String::new() };
        let response = CheckpointServiceClient::new(self.channel()?).list_checkpoints(request).await?;
        Ok(response.into_inner().checkpoints)
    }

    /// SHA-256 of a file of the stage's final checkpoint, from the file itself, held against the registry.
    pub async fn final_file_sha256(&self, job_id: &str, stage: &str, name: &str) -> Result<String> {
        let checkpoints = self.checkpoints(job_id).await?;
        let last = checkpoints
            .iter()
            .find(|c| c.stage == stage && c.r#final)
            .with_context(|| format!("{stage} has no final checkpoint"))?;
        let key = format!("{}/{name}", last.path);
        let bytes = self.object_store.get(&key.as_str().into()).await?.bytes().await;
        let bytes = bytes.with_context(|| format!("read {key}"))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let registered = last.files.iter().find(|f| f.name == name).context("the file is not registered")?;
        ensure!(registered.sha256 == digest, "{name} differs from the registry");
        Ok(digest)
    }

    /// Trains a base of a few steps and returns its weights as a spec names them.
    pub async fn train_base(&self) -> Result<String> {
        let job_id = self.submit("base", &crate::base_spec(2)).await?;
        self.await_success(&job_id, Duration::from_secs(120)).await?;
        let checkpoints = self.checkpoints(&job_id).await?;
        let last = checkpoints.last().context("the base has no checkpoint")?;
        if !self.in_folder {
            return Ok(format!("store:{}/model.safetensors", last.path));
        }
        Ok(self.objects.join(&last.path).join("model.safetensors").display().to_string())
    }

    /// What `crescendo ARGS` prints, and whether it succeeds.
    pub async fn crescendo(&self, args: &[&str]) -> Result<(bool, String, String)> {
        let mut command = tokio::process::Command::new(crescendo_testing::binary("crescendo")?);
        command.args(args).args(["--controller", &self.controller.grpc_address()?, "--timeout", "60s"]);
        command.env("XDG_CONFIG_HOME", self.folder()).env("XDG_STATE_HOME", self.folder());
        let ended = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
        let output = ended.context("it does not end")??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.success(), text(output.stdout), text(output.stderr)))
    }

    /// What the controller counts.
    pub async fn metrics(&self) -> Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.controller.metrics_address()?).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await??;
        Ok(text)
    }

    /// Process ids of the rank processes of a trainer.
    pub fn rank_pids(&self, trainer: usize) -> Result<Vec<u32>> {
        let pid = self.trainers[trainer].pid().context("the trainer does not run")?;
        let mut ranks = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("list the agent's threads")? {
            let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            ranks.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        Ok(ranks)
    }

    /// `kill -9` of one rank process of a trainer. Fails if it has none.
    pub fn kill_9_rank(&self, trainer: usize) -> Result<()> {
        self.kill_9_rank_at(trainer, 0)
    }

    /// The same of the one that was started so many after the first.
    pub fn kill_9_rank_at(&self, trainer: usize, nth: usize) -> Result<()> {
        let mut pids = self.rank_pids(trainer)?;
        pids.sort_unstable();
        signal(*pids.get(nth).context("the trainer has no such rank")?, libc::SIGKILL)
    }

    /// SIGSTOP to one rank process of a trainer. Fails if it has none.
    pub fn stop_rank(&self, trainer: usize) -> Result<()> {
        let pid = *self.rank_pids(trainer)?.first().context("the trainer has no rank")?;
        signal(pid, libc::SIGSTOP)
    }

    /// A trainer's whole machine stands still, or goes on: its connections stay open, and nothing comes from it.
    pub fn machine_stands_still(&self, trainer: usize, still: bool) -> Result<()> {
        let ranks = self.rank_pids(trainer)?;
        self.trainers[trainer].stand_still(still)?;
        ranks.into_iter().try_for_each(|pid| signal(pid, if still { libc::SIGSTOP } else { libc::SIGCONT }))
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.controller).chain(&self.standbys).chain(&self.curators).chain(&self.trainers)
    }

    /// All that has been logged.
    pub fn whole_logs(&self) -> String {
        self.processes().map(|process| process.whole_log()).collect()
    }

    /// Folder of everything that the cluster keeps on this machine.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Folder that relative paths of a spec are below.
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("library")
    }

    /// Ends of all logs, for failure messages.
    pub fn logs(&self) -> String {
        self.processes().map(|process| process.log_tail()).collect::<Vec<_>>().join("\n----\n")
    }
}

/// How the processes of one cluster are started.
struct Launch<'a> {
    root: &'a Path,
    environment: &'a [(String, String)],
    authority: Option<&'a Authority>,
    /// Of each trainer.
    slots: u32,
}

impl Launch<'_> {
    fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    /// What every process that serves is told.
    fn serving(&self, name: &str, listen: &str, uris: &[&str]) -> Vec<String> {
        let mut args = ["--listen", listen, "--metrics-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        args.extend(match self.authority {
            Some(authority) => {
                authority.write_args(&self.certificates(), &Wanted { uris, ..Wanted::node(name) })
            }
            None => vec!["--dev".to_owned()],
        });
        args
    }

    fn node(&self, id: &str, controllers: &str) -> Vec<String> {
        let own = format!("urn:crescendo:node:{id}");
        let mut args = self.serving(id, "127.0.0.1:0", &["urn:crescendo:role:node", &own]);
        args.extend(["--node-id", id, "--controller", controllers, "--library-root"].map(str::to_owned));
        args.push(self.root.join("library").display().to_string());
        args
    }

    async fn process(&self, name: &str, program: &str, args: Vec<String>) -> Result<Process> {
        Process::start(self.root, name, program, args, self.environment).await
    }

    async fn controller(&self, name: &str, address: &str, store: &str, objects: &str) -> Result<Process> {
        let mut args = self.serving(name, address, &[]);
        args.extend(["--store", store, "--object-store", objects].map(str::to_owned));
        self.process(name, "crescendo-controller", args).await
    }

    async fn curator(&self, name: &str, controllers: &str) -> Result<Process> {
        self.process(name, "crescendo-curator-node", self.node(name, controllers)).await
    }

    async fn trainer(&self, name: &str, controllers: &str) -> Result<Process> {
        let mut args = vec!["agent".to_owned()];
        args.extend(self.node(name, controllers));
        args.extend(["--slots", &self.slots.to_string(), "--device", "cpu", "--scratch"].map(str::to_owned));
        args.push(self.root.join(name).display().to_string());
        self.process(name, "crescendo-trainer-node", args).await
    }

    /// How a test calls the cluster.
    async fn dialer(&self) -> Result<Dialer> {
        let Some(authority) = self.authority else { return Ok(Dialer::plain()) };
        let uris = ["urn:crescendo:role:admin"];
        let wanted = Wanted { uris: &uris, ..Wanted::node("tester") };
        Ok(Dialer::tls(Tls::load(authority.write(&self.certificates(), &wanted)).await?))
    }
}

/// One proxy in front of each address, if there are to be any.
async fn proxies(targets: &[String], proxied: bool) -> Result<Vec<FaultyProxy>> {
    let mut proxies = Vec::new();
    for target in targets.iter().filter(|_| proxied) {
        proxies.push(FaultyProxy::start(target.clone()).await.context("start a proxy")?);
    }
    Ok(proxies)
}

/// URLs of the proxies, or where there are none of what would be behind them.
fn urls(targets: &[String], proxies: &[FaultyProxy]) -> Vec<String> {
    match proxies {
        [] => targets.iter().map(|target| format!("http://{target}")).collect(),
        proxies => proxies.iter().map(FaultyProxy::endpoint).collect(),
    }
}
