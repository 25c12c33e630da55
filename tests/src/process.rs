//! One supervised process of a test cluster.

#![allow(unsafe_code, reason = "processes are signalled")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a process may take until it serves.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// A variable among those of a cluster's processes: the folder that their programs are taken from, in place of this
/// build's.
pub const PROGRAMS_IN: &str = "CRESCENDO_TEST_PROGRAMS_IN";

/// A process that writes a port file once it serves. Killed when dropped.
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    port_file: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `program args --port-file ...` and waits until it serves. Output goes to `dir/name.log`, appended.
    pub async fn start(
        dir: &Path,
        name: &str,
        program: &str,
        args: Vec<String>,
        environment: &[(String, String)],
    ) -> Result<Self> {
        let mut process = Self {
            name: name.to_owned(),
            program: match environment.iter().find(|(known, _)| known == PROGRAMS_IN) {
                Some((_, folder)) => Path::new(folder).join(program),
                None => crescendo_testing::binary(program)?,
            },
            args,
            environment: environment.to_vec(),
            log: dir.join(format!("{name}.log")),
            port_file: dir.join(format!("{name}.ports.json")),
            child: None,
        };
        process.start_again().await?;
        Ok(process)
    }

    /// Starts the process again, with the arguments it had. It must have ended.
    pub async fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.await_ready().await
    }

    /// Has the process started from another folder's program of the same name from now on: another version of it.
    pub fn use_version_in(&mut self, folder: &Path) -> Result<()> {
        let name = self.program.file_name().context("the program has no name")?;
        let program = folder.join(name);
        ensure!(program.is_file(), "{} is not there", program.display());
        self.program = program;
        Ok(())
    }

    /// Starts the process again without waiting until it serves.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let _ = std::fs::remove_file(&self.port_file);
        let log = File::options().create(true).append(true).open(&self.log).context("open the log")?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.environment.iter().cloned())
            .arg("--port-file")
            .arg(&self.port_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the port file is there.
    pub async fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while !self.port_file.exists() {
            if let Some(status) = self.child.as_mut().context("not started")?.try_wait()? {
                self.child = None;
                bail!("{} ended with {status} before it served:\n{}", self.name, self.log_tail());
            }
            ensure!(Instant::now() < deadline, "{} does not serve:\n{}", self.name, self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Address of its gRPC server, host:port.
    pub fn grpc_address(&self) -> Result<String> {
        self.port("grpc")
    }

    /// Address of its metrics server, host:port.
    pub fn metrics_address(&self) -> Result<String> {
        self.port("metrics")
    }

    fn port(&self, key: &str) -> Result<String> {
        let text = std::fs::read_to_string(&self.port_file).context("read the port file")?;
        let ports: serde_json::Value = serde_json::from_str(&text).context("parse the port file")?;
        ports[key].as_str().map(str::to_owned).with_context(|| format!("the port file has no {key}"))
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill_9(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill().context("kill")?;
        child.wait().context("wait")?;
        Ok(())
    }

    /// SIGTERM, and waits until the process has ended by itself.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        signal(child.id(), libc::SIGTERM)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGSTOP, or SIGCONT: the process stands still, or goes on.
    pub fn stand_still(&self, still: bool) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        signal(pid, if still { libc::SIGSTOP } else { libc::SIGCONT })
    }

    /// All of its log.
    pub fn whole_log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Last lines of its log, for failure messages.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Sends a signal to a process of this test, or to a child of one.
pub(crate) fn signal(pid: u32, number: libc::c_int) -> Result<()> {
    // SAFETY: kill has no memory effects.
    let outcome = unsafe { libc::kill(pid.cast_signed(), number) };
    ensure!(outcome == 0, "signal {number} to process {pid} failed");
    Ok(())
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
