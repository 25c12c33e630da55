//! The audit log: one JSON line for every change and every refusal.
//!
//! ```text
//!   layer ──line──▶ queue (bounded) ──▶ writer task ──▶ file, appended, 0600; or stdout
//!              └ full: counted, left out          └ cannot write: counted, left out, opened again
//! ```
//!
//! A cluster that trains is worth more than a complete log of it: when the disk is full or too slow, changes go on, and
//! `crescendo_audit_dropped_total` counts the lines that are missing. Lines of calls without any credential have a budget
//! of their own, so that nobody can flood out the others.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use crescendo_core::quotas::CallRate;
use crescendo_core::secret::redact;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::telemetry::metrics_registry::{Metric, Registrar, counter};
use prometheus::{IntCounter, Registry};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::access::rate::Buckets;

/// Lines that wait to be written at most.
const QUEUE: usize = 8192;
/// Lines that are written at once at most.
const BATCH: usize = 256;
/// How often it is looked whether the file is still where it was; also the wait after a failure.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines of callers that showed no credential that is known.
const STRANGERS: CallRate = CallRate { per_sec: 20, burst: 200 };

/// Where the audit log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTo {
    Stdout,
    File(PathBuf),
}

impl FromStr for AuditTo {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl fmt::Display for AuditTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What a service says of the request that it works on. Shared with the layer around it.
#[derive(Clone, Debug, Default)]
pub struct AuditContext {
    said: Arc<Mutex<Said>>,
}

#[derive(Clone, Debug, Default)]
struct Said {
    on: String,
    changes_nothing: bool,
}

impl AuditContext {
    /// What the request is about, e.g. `job/uno-7f3kq2`. Only ids that have been checked.
    pub fn on(&self, kind: &str, id: impl fmt::Display) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).on = format!("{kind}/{id}");
    }

    /// The call might change something, this request does not.
    pub fn changes_nothing(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).changes_nothing = true;
    }

    pub(super) fn subject(&self) -> (String, bool) {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (said.on.clone(), said.changes_nothing)
    }
}

/// One line. Every text is escaped by JSON, so no name can end a line or begin another.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    pub time: String,
    /// Empty if it is not known.
    pub who: String,
    pub role: &'static str,
    /// Empty: of all tenants, or not known.
    pub tenant: String,
    /// `Service/Method`.
    pub call: String,
    /// What was changed, or was to be: `job/…`, `node/…`; empty if the call did not get so far.
    pub on: String,
    /// Address that it came from.
    pub from: String,
    /// gRPC code, e.g. `ok`, `permission_denied`.
    pub result: &'static str,
    /// Why it was refused.
    pub reason: String,
}

/// Takes lines. Cheap to clone; one without a writer takes none.
#[derive(Clone)]
pub struct AuditLog {
    queue: Option<mpsc::Sender<Line>>,
    counters: Counters,
    strangers: Arc<Buckets>,
}

/// Every metric of the audit log.
pub const CATALOGUE: &[Metric] = &[
    counter(
        "crescendo_audit_dropped_total",
        "",
        &[],
        "Lines that the audit log lacks, because they came too fast or could not be written.",
    ),
    counter("crescendo_audit_lines_total", "", &[], "Lines written to the audit log."),
];

#[derive(Clone)]
struct Counters {
    written: IntCounter,
    dropped: IntCounter,
}

impl AuditLog {
    /// Opens the file, which has to work now, and starts the writer. It ends with the stop token of `tasks`, once what
    /// waits is written.
    pub fn start(to: Option<&AuditTo>, registry: &Registry, tasks: &Tasks) -> anyhow::Result<Self> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let dropped = registrar.counter("crescendo_audit_dropped_total")?;
        let written = registrar.counter("crescendo_audit_lines_total")?;
        registrar.finish()?;
        let counters = Counters { written, dropped };
        let queue = match to {
            Some(to) => {
                let out = match to {
                    AuditTo::Stdout => {
                        let own =
                            std::io::stdout().as_fd().try_clone_to_owned().context("open standard output")?;
                        Out::Stdout(File::from_std(own.into()))
                    }
                    AuditTo::File(path) => {
                        let file = open_now(path).with_context(|| format!("open {}", path.display()))?;
                        let torn = ends_within_a_line(path).unwrap_or(true);
                        Out::File { path: path.clone(), file: Some(File::from_std(file)), torn }
                    }
                };
                let (queue, lines) = mpsc::channel(QUEUE);
                let writer = Writer { out, counters: counters.clone(), failing: false };
                tasks.spawn(writer.run(lines, tasks.stop_token()));
                Some(queue)
            }
            None => None,
        };
        Ok(Self { queue, counters, strangers: Arc::default() })
    }

    /// Hands a line to the writer, or counts it as missing. Never waits.
    pub fn write(&self, line: Line) {
        let Some(queue) = &self.queue else { return };
        let stranger = line.who.is_empty();
        if stranger && self.strangers.take("", "", STRANGERS, Instant::now()).is_err() {
            self.counters.dropped.inc();
            return;
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        // A caller may have put a key where a name belongs.
        let shown = |text: &str| redact(text).into_owned();
        let line = Line { time, on: shown(&line.on), reason: shown(&line.reason), ..line };
        if queue.try_send(line).is_err() {
            self.counters.dropped.inc();
        }
    }
}

enum Out {
    Stdout(File),
    File {
        path: PathBuf,
        /// `None` after a failure, until it is opened again.
        file: Option<File>,
        /// The last write may have ended within a line.
        torn: bool,
    },
}

struct Writer {
    out: Out,
    counters: Counters,
    failing: bool,
}

impl Writer {
    async fn run(mut self, mut lines: mpsc::Receiver<Line>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut looked = Instant::now();
        loop {
            let open = tokio::select! {
                () = stop.cancelled() => false,
                taken = lines.recv_many(&mut batch, BATCH) => taken > 0,
            };
            if !open {
                lines.close();
                while lines.recv_many(&mut batch, BATCH).await > 0 {
                    self.write(&mut batch).await;
                }
                return;
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.out.follow_path().await;
            }
            self.write(&mut batch).await;
        }
    }

    async fn write(&mut self, batch: &mut Vec<Line>) {
        let count = batch.len() as u64;
        let mut text = Vec::new();
        for line in batch.drain(..) {
            // A struct of texts is always JSON.
            if serde_json::to_writer(&mut text, &line).is_ok() {
                text.push(b'\n');
            }
        }
        match self.out.write(&text).await {
            Ok(()) => {
                self.counters.written.inc_by(count);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the audit log is written again");
                }
            }
            Err(error) => {
                self.counters.dropped.inc_by(count);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot write the audit log; calls go on without"
                    );
                }
            }
        }
    }
}

impl Out {
    async fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => {
                stdout.write_all(text).await?;
                stdout.flush().await
            }
            Self::File { path, file, torn } => {
                let mut opened = match file.take() {
                    Some(opened) => opened,
                    None => File::from_std(open_now(path)?),
                };
                let begin: &[u8] = if *torn { b"\n" } else { b"" };
                // Whatever of it gets there, the next line begins a new one.
                *torn = true;
                opened.write_all(&[begin, text].concat()).await?;
                opened.flush().await?;
                *torn = false;
                *file = Some(opened);
                Ok(())
            }
        }
    }

    /// A file that was moved away or deleted is left to whoever did that; a new one is begun.
    async fn follow_path(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        let Self::File { path, file, .. } = self else { return };
        let Some(opened) = file.as_ref() else { return };
        let there = tokio::fs::metadata(&*path).await.map(|there| (there.dev(), there.ino())).ok();
        let ours = opened.metadata().await.map(|ours| (ours.dev(), ours.ino())).ok();
        if there != ours {
            *file = None;
        }
    }
}

/// Appends; only its owner reads and writes it.
fn open_now(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A process that was killed may have left half a line.
fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn line(who: &str) -> Line {
        Line { who: who.to_owned(), call: "JobService/CancelJob".to_owned(), result: "ok", ..Line::default() }
    }

    struct Log {
        folder: tempfile::TempDir,
        log: AuditLog,
        tasks: Tasks,
    }

    fn start_in(folder: tempfile::TempDir, to: &AuditTo) -> anyhow::Result<Log> {
        let (tasks, _supervisor) = Tasks::new();
        let log = AuditLog::start(Some(to), &Registry::new(), &tasks)?;
        Ok(Log { folder, log, tasks })
    }

    fn start() -> anyhow::Result<Log> {
        let folder = tempfile::tempdir()?;
        let to = AuditTo::File(folder.path().join("audit.jsonl"));
        start_in(folder, &to)
    }

    impl Log {
        async fn await_written(&self, least: u64) {
            while self.log.counters.written.get() < least {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }

        fn read(&self, name: &str) -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
        }
    }

    #[tokio::test]
    async fn a_name_cannot_forge_a_line() -> anyhow::Result<()> {
        let log = start()?;
        log.log.write(line("eve\"}\n{\"who\": \"alice\u{2028}\r\u{1b}[2J"));
        log.await_written(1).await;
        let lines = log.read("audit.jsonl");
        assert_eq!(lines.len(), 1);
        assert!(lines[0]["who"].as_str().is_some_and(|who| who.starts_with("eve\"}\n{")));
        assert!(humantime::parse_rfc3339(lines[0]["time"].as_str().unwrap_or_default()).is_ok());
        let raw = std::fs::read(log.folder.path().join("audit.jsonl"))?;
        assert!(!raw.contains(&0x1b) && !raw.contains(&b'\r'), "control characters are escaped");
        let mode = std::fs::metadata(log.folder.path().join("audit.jsonl"))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_is_moved_away_is_followed_by_a_new_one() -> anyhow::Result<()> {
        let log = start()?;
        log.log.write(line("first"));
        log.await_written(1).await;
        let at = |name: &str| log.folder.path().join(name);
        std::fs::rename(at("audit.jsonl"), at("audit.1"))?;
        let mut sent = 1;
        while !at("audit.jsonl").exists() {
            sent += 1;
            log.log.write(line("later"));
            log.await_written(sent).await;
        }
        let old = log.read("audit.1").len() as u64;
        assert_eq!(
            old + log.read("audit.jsonl").len() as u64,
            sent,
            "none is lost and none is written twice"
        );
        Ok(())
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_and_nobody_waits() -> anyhow::Result<()> {
        let log = start_in(tempfile::tempdir()?, &AuditTo::File("/dev/full".into()))?;
        for _ in 0..QUEUE * 2 {
            log.log.write(line("alice"));
        }
        while log.log.counters.dropped.get() < QUEUE as u64 * 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(log.log.counters.written.get(), 0);
        Ok(())
    }

    #[tokio::test]
    async fn strangers_have_a_budget_of_their_own() -> anyhow::Result<()> {
        let log = start()?;
        for _ in 0..1000 {
            log.log.write(line(""));
        }
        log.log.write(line("alice"));
        log.await_written(200).await;
        assert!(log.log.counters.dropped.get() >= 700);
        while !log.read("audit.jsonl").iter().any(|line| line["who"] == "alice") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_waits_is_written_before_the_end() -> anyhow::Result<()> {
        let log = start()?;
        log.tasks.stop_token().cancel();
        for n in 0..100 {
            log.log.write(line(&format!("n{n}")));
        }
        log.await_written(100).await;
        assert_eq!(log.read("audit.jsonl").len(), 100);
        Ok(())
    }

    #[tokio::test]
    async fn half_a_line_of_a_killed_process_stays_by_itself() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"who\": \"al")?;
        let log = start_in(folder, &AuditTo::File(path.clone()))?;
        log.log.write(line("bob"));
        log.await_written(1).await;
        let text = std::fs::read_to_string(&path)?;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(serde_json::from_str::<serde_json::Value>(lines[1]).is_ok(), "{text}");
        Ok(())
    }

    #[test]
    fn a_file_that_cannot_be_opened_stops_the_start() {
        let (tasks, _supervisor) = Tasks::new();
        let to = AuditTo::File("/nowhere/audit.jsonl".into());
        let error = AuditLog::start(Some(&to), &Registry::new(), &tasks).err().expect("refused");
        assert!(error.to_string().contains("/nowhere/audit.jsonl"), "{error}");
    }
}
