//! A process that is attacked.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server process with its log in a file. Killed when dropped.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    log: PathBuf,
    /// host:port of its gRPC server.
    pub address: String,
    pub folder: tempfile::TempDir,
}

impl Victim {
    /// Starts `program args --port-file ...` and waits until it serves. `{folder}` in arguments is a folder of its own.
    pub async fn start(program: &str, args: &[&str]) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let log = at("log");
        let output = File::create(&log)?;
        let place = folder.path().display().to_string();
        let mut child = Command::new(program)
            .args(args.iter().map(|arg| arg.replace("{folder}", &place)))
            // No certificates: what is sent is what arrives.
            .env("CRESCENDO_DEV", "true")
            .arg("--port-file")
            .arg(at("ports.json"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let deadline = Instant::now() + START_TIMEOUT;
        let ports = loop {
            if let Ok(text) = std::fs::read(at("ports.json"))
                && let Ok(ports) = serde_json::from_slice::<serde_json::Value>(&text)
            {
                break ports;
            }
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let _ = child.kill();
                return Err(std::io::Error::other(format!("it does not serve ({ended:?}): {said}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let address = ports["grpc"].as_str().unwrap_or_default().to_owned();
        Ok(Self { child, log, address, folder })
    }

    pub fn is_up(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Most memory that it has had at any time.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok());
        kib.map_or(u64::MAX, |kib| kib * 1024)
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(usize::MAX, Iterator::count)
    }

    /// Lines of its log that a panic leaves.
    pub fn panics(&self) -> Vec<String> {
        let log = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        log.lines().filter(|line| line.contains("panicked")).map(str::to_owned).collect()
    }

    /// Bytes that it has logged.
    pub fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |facts| facts.len())
    }

    /// Ends it at once, so that its files can be looked at.
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}
