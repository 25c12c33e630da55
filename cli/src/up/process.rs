//! One process of the cluster: started, restarted when it dies, stopped when told.

#![allow(unsafe_code, reason = "children are started to end with their parent, and signalled")]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// From the start of a process until it must serve.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// From SIGTERM to SIGKILL, besides the time for handing over: the processes themselves give up after 10 seconds.
const GRACE: Duration = Duration::from_secs(12);
/// Before a restart: after the first death, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A process that ran this long has recovered from what killed it before.
const RECOVERED: Duration = Duration::from_secs(60);
/// A log file larger than this is put aside when its process starts.
const MAX_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// Settings from the environment that `up` decides itself.
const DECIDED_HERE: &[&str] = &[
    "CRESCENDO_ADVERTISE_HOST",
    "CRESCENDO_AUTH_TOKENS",
    "CRESCENDO_CONTROLLER",
    "CRESCENDO_DEV",
    "CRESCENDO_DEVICE",
    "CRESCENDO_DIR",
    "CRESCENDO_LIBRARY_ROOT",
    "CRESCENDO_LISTEN",
    "CRESCENDO_METRICS_LISTEN",
    "CRESCENDO_NODE_ID",
    "CRESCENDO_OBJECT_STORE",
    "CRESCENDO_OIDC_AUDIENCE",
    "CRESCENDO_OIDC_ISSUER",
    "CRESCENDO_PORT_FILE",
    "CRESCENDO_SCRATCH",
    "CRESCENDO_SLOTS",
    "CRESCENDO_STORE",
    "CRESCENDO_TLS_CA",
    "CRESCENDO_TLS_CERT",
    "CRESCENDO_TLS_KEY",
];

/// How to start it.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    pub name: String,
    pub program: PathBuf,
    /// Without the listening addresses.
    pub args: Vec<OsString>,
    pub log: PathBuf,
    pub port_file: PathBuf,
    /// How long it may take to hand over, once it is told to stop.
    pub drain: Duration,
}

/// Where it serves, as its port file says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ports {
    pub grpc: String,
    pub metrics: String,
}

impl Ports {
    fn are_free(&self) -> bool {
        [&self.grpc, &self.metrics].into_iter().all(|address| TcpListener::bind(address).is_ok())
    }
}

/// What has become of a process; with its index in the cluster.
#[derive(Debug)]
pub enum Event {
    Started {
        index: usize,
        pid: Option<u32>,
    },
    Serves {
        index: usize,
        ports: Ports,
    },
    /// It never served: no restart helps.
    NeverServed {
        index: usize,
        why: String,
    },
    /// It is started again after this pause.
    Died {
        index: usize,
        status: String,
        pause: Duration,
    },
}

/// What a process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Run,
    Stop,
    Kill,
}

/// Keeps the process running until it is told to stop.
pub async fn keep(
    index: usize,
    plan: LaunchSpec,
    mut order: watch::Receiver<Instruction>,
    events: mpsc::Sender<Event>,
) {
    // Once it serves it keeps its addresses over restarts: the others only know those.
    let mut ports: Option<Ports> = None;
    // Those of the run before, so that whoever watches from another terminal finds the cluster again.
    let mut before = read_ports(&plan.port_file).filter(Ports::are_free);
    let mut pause = PAUSE.0;
    loop {
        let began = Instant::now();
        let mut child = match start(&plan, ports.as_ref().or(before.as_ref())) {
            Ok(child) => child,
            Err(error) => {
                let why = format!("start {}: {error}", plan.program.display());
                tell(&events, Event::NeverServed { index, why }).await;
                return;
            }
        };
        tell(&events, Event::Started { index, pid: child.id() }).await;
        let ended = tokio::select! {
            ended = serve(&mut child, &plan, index, &mut ports, &events) => ended,
            () = told(&mut order, |order| order != Instruction::Run) => {
                stop(&mut child, plan.drain, &mut order).await;
                return;
            }
        };
        let status = match ended {
            Ok(status) => describe(status),
            Err(why) => {
                stop(&mut child, Duration::ZERO, &mut order).await;
                why
            }
        };
        if ports.is_none() && before.take().is_some() {
            // They may have been taken just now.
            continue;
        }
        if ports.is_none() {
            let why = format!("{} {status} before it served{}", plan.name, tail(&plan.log));
            tell(&events, Event::NeverServed { index, why }).await;
            return;
        }
        if began.elapsed() > RECOVERED {
            pause = PAUSE.0;
        }
        tell(&events, Event::Died { index, status, pause }).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told(&mut order, |order| order != Instruction::Run) => return,
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Waits for such an order. A cluster that is gone gives none, but stops.
async fn told(order: &mut watch::Receiver<Instruction>, such: impl Fn(Instruction) -> bool) {
    let _ = order.wait_for(|order| such(*order)).await;
}

async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    // The receiver goes last; without it there is no one to tell.
    let _ = events.send(event).await;
}

/// Waits for the port file, then for the end of the process.
async fn serve(
    child: &mut Child,
    plan: &LaunchSpec,
    index: usize,
    ports: &mut Option<Ports>,
    events: &mpsc::Sender<Event>,
) -> Result<ExitStatus, String> {
    let waited =
        |status: io::Result<ExitStatus>| status.map_err(|error| format!("cannot be waited for: {error}"));
    let began = Instant::now();
    let found = loop {
        if let Some(found) = read_ports(&plan.port_file) {
            break found;
        }
        if began.elapsed() > SERVES_WITHIN {
            return Err(format!("did not serve within {} s", SERVES_WITHIN.as_secs()));
        }
        tokio::select! {
            status = child.wait() => return waited(status),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    };
    *ports = Some(found.clone());
    tell(events, Event::Serves { index, ports: found }).await;
    waited(child.wait().await)
}

fn read_ports(path: &Path) -> Option<Ports> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn start(plan: &LaunchSpec, ports: Option<&Ports>) -> io::Result<Child> {
    match std::fs::remove_file(&plan.port_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let log = open_log(&plan.log)?;
    let mut command = Command::new(&plan.program);
    let free = || "127.0.0.1:0".to_owned();
    command
        .args(&plan.args)
        .arg("--listen")
        .arg(ports.map_or_else(free, |ports| ports.grpc.clone()))
        .arg("--metrics-listen")
        .arg(ports.map_or_else(free, |ports| ports.metrics.clone()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C on the terminal is for `up` alone, which stops the others in order.
        .process_group(0)
        .kill_on_drop(true);
    for name in DECIDED_HERE {
        command.env_remove(name);
    }
    let parent = std::process::id();
    // SAFETY: between fork and exec only these two system calls are made, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // Should `up` be killed, the process gets a SIGINT, which ends it at once: there would be no controller to hand
            // over to.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have been killed before the line above.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            Ok(())
        });
    }
    command.spawn()
}

fn open_log(path: &Path) -> io::Result<File> {
    if path.metadata().is_ok_and(|found| found.len() > MAX_LOG_BYTES) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// SIGTERM, then SIGKILL after the grace or when told.
async fn stop(child: &mut Child, drain: Duration, order: &mut watch::Receiver<Instruction>) {
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: plain system call; the process has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    let killed = tokio::select! {
        _ = child.wait() => false,
        () = tokio::time::sleep(drain + GRACE) => true,
        () = told(order, |order| order == Instruction::Kill) => true,
    };
    if killed {
        // Fails only if it has ended by itself.
        let _ = child.kill().await;
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The last lines of a log, to show why a process would not start.
fn tail(path: &Path) -> String {
    const LINES: usize = 15;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8 * 1024)))?;
        let mut bytes = Vec::new();
        file.take(8 * 1024).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    let shown = last.iter().fold(String::new(), |text, line| format!("{text}\n  {line}"));
    format!("; the end of {}:{shown}", path.display())
}
