//! Rank processes: started, watched, signalled. A rank never outlives its agent.

#![allow(unsafe_code, reason = "children are started to end with their parent, and signalled")]

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use crescendo_node::runtime::args::SecurityArgs;
use crescendo_node::telemetry::trace::TraceArgs;
use tokio::process::{Child, Command};

use crate::kernel_choice::KernelChoice;
use crescendo_attempts::{KillSignal, RankKey};

/// How this agent starts its ranks.
#[derive(Clone, Debug)]
pub struct RankCommand {
    /// This very program.
    pub program: PathBuf,
    /// host:port of this agent's gRPC server.
    pub agent: String,
    pub cuda: bool,
    pub threads: u32,
    pub kernels: KernelChoice,
    pub bind_ip: IpAddr,
    /// Variables beside those of this process.
    pub environment: Vec<(&'static str, String)>,
    pub scratch: PathBuf,
    /// See the agent's own arguments.
    pub cache_gib: u64,
    pub library_root: PathBuf,
    pub log_filter: String,
    pub trace: TraceArgs,
    /// A rank is one process with its agent to everybody else: it has the same certificate.
    pub security: SecurityArgs,
}

impl RankCommand {
    /// Starts a rank with its output piped here.
    ///
    /// The kernel kills it when the *thread* that started it ends, so this must be called on a thread that lives as
    /// long as the agent: its main thread.
    pub fn spawn(&self, rank: &RankKey) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .arg("rank")
            .args(["--agent", &self.agent, "--job", &rank.job_id, "--stage", &rank.stage])
            .args(["--generation", &rank.generation.to_string(), "--rank", &rank.rank.to_string()])
            .args(["--threads", &self.threads.to_string(), "--bind-ip", &self.bind_ip.to_string()])
            .args(["--kernels", self.kernels.name()])
            .arg("--scratch")
            .arg(&self.scratch)
            .args(["--cache-gib", &self.cache_gib.to_string()])
            .arg("--library-root")
            .arg(&self.library_root)
            .args(["--log-format", "json", "--log-filter", &self.log_filter])
            .args(["--trace-sample", &self.trace.trace_sample.to_string()])
            .args(self.trace.otlp_endpoint.iter().flat_map(|endpoint| ["--otlp-endpoint", endpoint.as_str()]))
            .args(self.security.to_args())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if self.cuda {
            command.arg("--cuda");
        } else {
            // Libraries that read these would take every core for each rank.
            command.env("OMP_NUM_THREADS", self.threads.to_string());
            command.env("MKL_NUM_THREADS", self.threads.to_string());
        }
        let parent = std::process::id();
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The agent may have died before the line above.
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        command.spawn()
    }
}

/// Sends a signal to a child that has not been waited for, so its process id is still its own.
pub fn signal(child: &Child, signal: KillSignal) {
    let number = match signal {
        KillSignal::Term => libc::SIGTERM,
        KillSignal::Kill => libc::SIGKILL,
    };
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: a plain system call; `id` is none once the child has been reaped.
        unsafe { libc::kill(pid, number) };
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown exit status".into(),
    }
}
