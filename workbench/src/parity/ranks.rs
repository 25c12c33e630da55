//! Rank processes for data-parallel fixtures: copies of this program that meet on loopback.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
/// The hidden subcommand that a rank process runs.
pub const SUBCOMMAND: &str = "parity-rank";

/// Longest that all rank processes together may take.
const RANKS_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the first rank's address.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between looks at the processes.
const POLL: Duration = Duration::from_millis(20);

/// The running rank processes; those still alive end when this is dropped.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `world` rank processes on a fixture and returns their result files, by rank.
pub fn run(sidecar: &Path, world: usize, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let program = workbench_program()?;
    let outs: Vec<PathBuf> = (0..world).map(|rank| folder.join(format!("rank{rank}.safetensors"))).collect();
    let mut ranks = Ranks(Vec::with_capacity(world));
    let mut address: Option<SocketAddr> = None;
    for (rank, out) in outs.iter().enumerate() {
        let mut command = Command::new(&program);
        command.arg(SUBCOMMAND).arg("--sidecar").arg(sidecar).arg("--out").arg(out);
        command.args(["--rank", &rank.to_string(), "--world", &world.to_string()]);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        match address {
            Some(address) => command.args(["--rendezvous", &address.to_string()]).stdout(Stdio::null()),
            None => command.stdout(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let stdout = child.stdout.take();
        ranks.0.push(child);
        if let Some(stdout) = stdout {
            address = Some(first_line(stdout)?);
        }
    }
    let deadline = Instant::now() + RANKS_TIMEOUT;
    loop {
        let mut running = false;
        for (rank, child) in ranks.0.iter_mut().enumerate() {
            match child.try_wait().context("wait for a rank")? {
                Some(status) if !status.success() => bail!("rank {rank} ended with {status}"),
                Some(_) => {}
                None => running = true,
            }
        }
        if !running {
            return Ok(outs);
        }
        if Instant::now() >= deadline {
            bail!("ranks did not end within {} s", RANKS_TIMEOUT.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// The address that rank 0 prints.
fn first_line(stdout: std::process::ChildStdout) -> anyhow::Result<SocketAddr> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // Ends with the line or with the process, whichever comes first; the pipe closes with the process.
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).map(|_| line);
        let _ = sender.send(read);
    });
    let line = receiver.recv_timeout(ADDRESS_TIMEOUT).context("rank 0 gave no address")??;
    reader.join().ok();
    line.trim().parse().with_context(|| format!("read rank 0's address from {line:?}"))
}

/// This program, or the one beside a test binary.
fn workbench_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    if own.file_stem().is_some_and(|stem| stem == "crescendo-workbench") {
        return Ok(own);
    }
    let name = format!("crescendo-workbench{}", std::env::consts::EXE_SUFFIX);
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not beside {}", own.display()))
}
