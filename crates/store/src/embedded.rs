//! The store in one file, for a single controller: no other process to run, as durable as its disk.
//!
//! ```text
//!   txn ─▶ queue (bounded) ─▶ writer thread ─▶ one synced commit for all that wait ─▶ redb file
//!                                   │
//!                                   └─▶ history (memory, bounded) ─▶ watches
//!   get, list, read_pages ─▶ redb file (a read sees the last commit)
//! ```
//!
//! A disk that is full or read-only refuses writes, with that reason; once it takes them again, the file is opened anew.
//!
//! Leases live in this process's memory. When the file is opened, the records of the previous process's leases are
//! removed at once, since the file's lock says that it is gone. History does not outlive the process either: a watch
//! from before the start gets a [`crate::WatchEvent::Resync`].

mod file;
mod handle;
pub(crate) mod history;
mod leases;
mod shared;
mod watching;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redb::{Database, ReadTransaction, ReadableDatabase};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use self::file::Failure;
use self::handle::Handle;
use self::history::HistoryLimits;
use self::shared::Shared;
use self::writer::{Command, Reply, Writer};
use crate::error::StoreError;
use crate::lease::{Lease, LeaseBackend, LeaseId, Renewal, spawn_keeper};
use crate::pages::SnapshotPages;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::types::{MAX_PAGE_ITEMS, Page, Revision, Txn, Versioned, validate_key, validate_store_prefix};
use crate::watch::Watch;

/// The file within the store's folder.
const FILE_NAME: &str = "store.redb";
/// Transactions that may wait for the writer; more wait for a place, until their deadline.
const MAX_QUEUED_COMMANDS: usize = 4096;
/// Between tries to open the file anew after its disk has failed.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// Below this, a busy machine would lose leases for no reason.
const MIN_LEASE_TTL: Duration = Duration::from_millis(100);

/// How to open an [`EmbeddedStore`].
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The folder of the file; made when missing.
    pub dir: PathBuf,
    /// What every key is kept under, such as [`crate::KEY_PREFIX`].
    pub prefix: String,
    /// Deadline of every call. 5 s by default.
    pub call_timeout: Duration,
    /// Events buffered for one watch before it waits for its reader. 1024 by default.
    pub watch_buffer_events: usize,
    /// Changes kept for watches that start in the past. 65,536 by default.
    pub history_events: usize,
    /// Memory for those changes, in bytes. 64 MiB by default.
    pub history_bytes: usize,
}

impl EmbeddedConfig {
    /// The defaults, for a folder and a prefix.
    pub fn new(dir: impl Into<PathBuf>, prefix: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            prefix: prefix.into(),
            call_timeout: Duration::from_secs(5),
            watch_buffer_events: 1024,
            history_events: 65_536,
            history_bytes: 64 << 20,
        }
    }
}

/// A [`Store`] in one file, locked by one process at a time, that survives `kill -9`.
///
/// Transactions that arrive while another is being synced to disk are committed together, so that many writers cost
/// little more than one. An instance has to be closed with [`Store::close`] before the same process opens the file
/// again.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    tasks: Tasks,
    commands: mpsc::Sender<Command>,
    handle: Arc<Handle>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    call_timeout: Duration,
    watch_buffer_events: usize,
}

impl EmbeddedStore {
    /// Opens the store, creating it when there is none. Fails with [`StoreError::InUse`] when another process has it.
    pub async fn open(config: EmbeddedConfig) -> Result<Self, StoreError> {
        let EmbeddedConfig { dir, prefix, call_timeout, watch_buffer_events, history_events, history_bytes } =
            config;
        validate_store_prefix(&prefix)?;
        let path = dir.join(FILE_NAME);
        let opening_path = path.clone();
        let opening = tokio::task::spawn_blocking(move || {
            create_dir(&dir)?;
            let opened = file::open(&opening_path)?;
            sync_dir(&dir)?;
            Ok(opened)
        });
        let opened = opening
            .await
            .map_err(|error| StoreError::Open { path: path.clone(), source: error.into() })??;
        let limits = HistoryLimits { events: history_events, bytes: history_bytes };
        let shared = Arc::new(Shared::new(prefix, opened.revision, opened.times_opened, limits));
        let handle = Arc::new(Handle::new(path.clone(), opened.db));
        let (commands, receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let writer = Writer::new(handle.clone(), shared.clone(), receiver);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Open { path, source: error.into() })?;

        let tasks = Tasks::new();
        spawn_expiry(&tasks, shared.clone(), commands.clone());
        spawn_opening(&tasks, handle.clone(), commands.clone());
        Ok(Self {
            shared,
            tasks,
            commands,
            handle,
            writer: Mutex::new(Some(thread)),
            call_timeout,
            watch_buffer_events: watch_buffer_events.max(1),
        })
    }

    /// Reads off the async threads: a page may have to come from the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database, &str) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        read_within(self.call_timeout, self.handle.clone(), move |db| read(db, &shared.prefix)).await
    }

    /// Drops the history for watches up to and including `revision`, as if much had happened since.
    #[cfg(any(test, feature = "testing"))]
    pub fn compact(&self, revision: Revision) {
        self.shared.forget(revision);
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        validate_key(key)?;
        let key = key.to_owned();
        self.read(move |db, prefix| file::get(db, prefix, &key)).await
    }

    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let under = prefix.to_owned();
        let after = page_after.map(str::to_owned);
        let limit = limit.clamp(1, MAX_PAGE_ITEMS);
        self.read(move |db, prefix| file::list(db, prefix, &under, after.as_deref(), limit)).await
    }

    fn read_pages(&self, prefix: &str, limit: usize) -> Box<dyn SnapshotPages> {
        Box::new(EmbeddedPages {
            handle: self.handle.clone(),
            shared: self.shared.clone(),
            call_timeout: self.call_timeout,
            under: prefix.to_owned(),
            limit: limit.max(1),
            after: None,
            reading: None,
            revision: Revision(0),
            is_over: false,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.validate()?;
        ask(&self.commands, Instant::now() + self.call_timeout, |reply| Command::Txn { txn, reply }).await
    }

    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        let (sender, receiver) = mpsc::channel(self.watch_buffer_events);
        if !self.tasks.is_stopped() {
            let feed = watching::Feed {
                handle: self.handle.clone(),
                shared: self.shared.clone(),
                under: prefix.to_owned(),
                sender,
                stop: self.tasks.child_token(),
            };
            self.tasks.spawn(feed.run(after));
        }
        Watch::new(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        if self.tasks.is_stopped() {
            return Err(StoreError::Closed);
        }
        let ttl = ttl.max(MIN_LEASE_TTL);
        let now = Instant::now();
        let id = self.shared.leases.grant(ttl, now)?;
        let backend = EmbeddedLease {
            id,
            shared: self.shared.clone(),
            commands: self.commands.clone(),
            call_timeout: self.call_timeout,
        };
        Ok(spawn_keeper(&self.tasks, id, ttl, now, backend))
    }

    async fn close(&self) {
        self.tasks.stop().await;
        self.handle.close();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Fails only when the writer has ended already.
            drop(self.commands.send(Command::Stop).await);
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the embedded store's writer ended in a panic");
            }
        }
    }
}

/// Reads on a thread that may wait for a disk.
async fn read_within<T: Send + 'static>(
    limit: Duration,
    handle: Arc<Handle>,
    read: impl FnOnce(&Database) -> Result<T, Failure> + Send + 'static,
) -> Result<T, StoreError> {
    let reading = tokio::task::spawn_blocking(move || {
        let db = handle.database()?;
        read(&db).map_err(|failure| {
            handle.note(&failure);
            failure.not_applied()
        })
    });
    match timeout_at(Instant::now() + limit, reading).await {
        Ok(Ok(result)) => result,
        Ok(Err(join_error)) => Err(StoreError::NotApplied(join_error.into())),
        Err(elapsed) => Err(StoreError::NotApplied(elapsed.into())),
    }
}

/// Everything below a prefix as one read transaction of the file sees it. While there is one, the file keeps what it
/// shows, and stays open; if the disk fails it ends, so that the file can be opened anew.
struct EmbeddedPages {
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    call_timeout: Duration,
    under: String,
    limit: usize,
    /// Last key of the page before.
    after: Option<String>,
    /// Begun by the first page.
    reading: Option<Arc<ReadTransaction>>,
    /// Of the first page, and so of all.
    revision: Revision,
    /// The disk has failed since.
    is_over: bool,
}

#[async_trait]
impl SnapshotPages for EmbeddedPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        if self.is_over {
            return Err(StoreError::Compacted { revision: self.revision.0 });
        }
        let (shared, under, after) = (self.shared.clone(), self.under.clone(), self.after.clone());
        let (limit, begun) = (self.limit, self.reading.clone());
        let read = read_within(self.call_timeout, self.handle.clone(), move |db| {
            let reading = match begun {
                Some(reading) => reading,
                None => Arc::new(db.begin_read()?),
            };
            let page = file::page(&reading, &shared.prefix, &under, after.as_deref(), limit)?;
            Ok((reading, page))
        });
        let (reading, page) = match read.await {
            Ok(read) => read,
            Err(error) if self.reading.is_some() && self.handle.database().is_err() => {
                self.reading = None;
                self.is_over = true;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        self.reading = Some(reading);
        self.revision = page.revision;
        self.after = page.next.clone().or(self.after.take());
        Ok(page)
    }
}

/// Sends a command to the writer and waits for the answer.
async fn ask(
    commands: &mpsc::Sender<Command>,
    deadline: Instant,
    command: impl FnOnce(Reply) -> Command,
) -> Result<Revision, StoreError> {
    let (reply, answer) = oneshot::channel();
    match timeout_at(deadline, commands.reserve()).await {
        Ok(Ok(place)) => place.send(command(reply)),
        Ok(Err(_closed)) => return Err(StoreError::Closed),
        Err(elapsed) => return Err(StoreError::NotApplied(elapsed.into())),
    }
    match timeout_at(deadline, answer).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(gone)) => Err(StoreError::Unknown(gone.into())),
        Err(elapsed) => Err(StoreError::Unknown(elapsed.into())),
    }
}

struct EmbeddedLease {
    id: LeaseId,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    call_timeout: Duration,
}

#[async_trait]
impl LeaseBackend for EmbeddedLease {
    async fn renew(&mut self) -> Result<Renewal, StoreError> {
        Ok(self.shared.leases.renew(self.id, Instant::now()))
    }

    async fn revoke(&mut self) -> Result<(), StoreError> {
        let lease = self.id;
        ask(&self.commands, Instant::now() + self.call_timeout, |reply| Command::Revoke { lease, reply })
            .await
            .map(|_revision| ())
    }
}

/// Has the writer remove what was put under a lease whose time is up.
fn spawn_expiry(tasks: &Tasks, shared: Arc<Shared>, commands: mpsc::Sender<Command>) {
    let stop = tasks.child_token();
    tasks.spawn(async move {
        loop {
            let expire = async {
                shared.leases.next_expiry().await;
                commands.send(Command::ExpireLeases).await
            };
            tokio::select! {
                () = stop.cancelled() => return,
                sent = expire => if sent.is_err() { return },
            }
            // The writer takes expired leases out of the table; until then they would be found again at once.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

/// Has the writer open the file anew after its disk has failed, also if nobody writes.
fn spawn_opening(tasks: &Tasks, handle: Arc<Handle>, commands: mpsc::Sender<Command>) {
    let stop = tasks.child_token();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(OPEN_PAUSE) => {}
            }
            if handle.wants_opening() && commands.send(Command::OpenAnew).await.is_err() {
                return;
            }
        }
    });
}

fn create_dir(dir: &std::path::Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| StoreError::Open { path: dir.to_owned(), source: error.into() })
}

/// A new file survives power loss only once its folder is synced too.
fn sync_dir(dir: &std::path::Path) -> Result<(), StoreError> {
    std::fs::File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| StoreError::Open { path: dir.to_owned(), source: error.into() })
}
