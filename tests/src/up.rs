//! `crescendo up` as a person runs it: one process, whose children are the cluster.

#![allow(unsafe_code, reason = "processes are signalled")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crescendo_node::tls::Dialer;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::{Checkpoint, GetJobRequest, Job, JobState, ListCheckpointsRequest};
use serde_json::Value;

use crescendo_testing::binary;

/// How long the cluster may take until it serves.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A running `crescendo up`. Killed when dropped, and its cluster with it.
pub struct Up {
    folder: PathBuf,
    child: Child,
    log: PathBuf,
}

impl Up {
    /// Starts it in `folder`, which is its current folder and library root, and waits until the cluster serves.
    pub async fn start(folder: &Path, args: &[&str], environment: &[(&str, &Path)]) -> Result<Self> {
        let log = folder.join("up.log");
        let file = std::fs::File::create(&log).context("make the log")?;
        let mut command = crescendo(folder)?;
        command.args(["up", "--device", "cpu"]).args(args).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("start crescendo up")?;
        let mut up = Self { folder: folder.to_owned(), child, log };
        let deadline = Instant::now() + READY_DEADLINE;
        while !up.said().contains("controller at ") {
            if let Some(status) = up.child.try_wait()? {
                bail!("crescendo up ended with {status}:\n{}", up.said());
            }
            ensure!(Instant::now() < deadline, "crescendo up does not serve:\n{}", up.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(up)
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has said this.
    pub async fn await_words(&self, words: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.said().contains(words) {
            ensure!(Instant::now() < deadline, "it does not say {words:?}:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ctrl-C, and waits until it has ended.
    pub async fn interrupt(mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        // SAFETY: kill has no memory effects; the pid is a child of this process that is not waited for yet.
        ensure!(unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) } == 0, "send SIGINT");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, self.said()));
            }
            ensure!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `crescendo` with these arguments, in the same folder.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = crescendo(&self.folder)?;
        command.args(args);
        Ok(command)
    }

    /// What the command prints on standard output; it must succeed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let done = self.command(args)?.stdin(Stdio::null()).output()?;
        ensure!(
            done.status.success(),
            "crescendo {} ended with {}:\n{}",
            args.join(" "),
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8(done.stdout)?)
    }

    /// host:port of its controller.
    pub fn controller(&self) -> Result<String> {
        let path = self.folder.join(".crescendo/up.json");
        let state: Value = serde_json::from_slice(&std::fs::read(path).context("read up.json")?)?;
        state["controller"].as_str().map(str::to_owned).context("up.json names no controller")
    }

    /// The job as the controller sees it now.
    pub async fn job(&self, job_id: &str) -> Result<Job> {
        let channel = Dialer::plain().channel(&self.controller()?)?;
        let request = GetJobRequest { job_id: job_id.to_owned() };
        let answer = JobServiceClient::new(channel).get_job(request).await?.into_inner();
        answer.job.context("the answer has no job")
    }

    /// Registered checkpoints of the job, oldest first.
    pub async fn checkpoints(&self, job_id: &str) -> Result<Vec<Checkpoint>> {
        let channel = Dialer::plain().channel(&self.controller()?)?;
        let request = ListCheckpointsRequest { job_id: job_id.to_owned(), stage: String::new() };
        let answer = CheckpointServiceClient::new(channel).list_checkpoints(request).await?;
        Ok(answer.into_inner().checkpoints)
    }

    /// Waits until `done` holds for the job.
    pub async fn await_job(&self, job_id: &str, limit: Duration, done: impl Fn(&Job) -> bool) -> Result<Job> {
        let deadline = Instant::now() + limit;
        loop {
            let job = self.job(job_id).await?;
            if done(&job) {
                return Ok(job);
            }
            let over = matches!(job.state(), JobState::Failed | JobState::Cancelled | JobState::Succeeded);
            ensure!(
                !over && Instant::now() < deadline,
                "waited in vain for the job: {job:#?}\n{}",
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Submits a spec and returns the job's id.
    pub fn submit(&self, spec_yaml: &str) -> Result<String> {
        std::fs::write(self.folder.join("job.yaml"), spec_yaml)?;
        Ok(self.run(&["submit", "job.yaml"])?.trim().to_owned())
    }

    /// Waits until the job has succeeded.
    pub async fn await_success(&self, job_id: &str, limit: Duration) -> Result<Job> {
        self.await_job(job_id, limit, |job| job.state() == JobState::Succeeded).await
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `crescendo` in a folder, with nothing of the caller's environment that it reads.
fn crescendo(folder: &Path) -> Result<Command> {
    let mut command = Command::new(binary("crescendo")?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CRESCENDO_") {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).env("XDG_STATE_HOME", folder).env("XDG_CONFIG_HOME", folder);
    Ok(command)
}
