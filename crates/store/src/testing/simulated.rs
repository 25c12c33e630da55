//! A store in memory, without threads or files, for simulations: one server, and clients whose way to it is bad in
//! whatever manner a [`StoreLink`] says. It passes the contract suite.
//!
//! ```text
//!   client ── StoreLink: delay, loss, refusal ──▶ server: records, leases, history ──▶ observer
//! ```
//!
//! All that happens follows from the order of the calls and from tokio's clock, so under paused time on one thread it is
//! the same in every run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::embedded::history::{History, HistoryLimits, Since};
use crate::error::StoreError;
use crate::lease::{Lease, LeaseBackend, LeaseId, Renewal, spawn_keeper};
use crate::pages::SnapshotPages;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::types::{Expect, MAX_PAGE_ITEMS, MAX_TXN_BYTES, Op, Page, Revision, Txn, Versioned, validate_key};
use crate::watch::{Watch, WatchEvent};

/// Changes that wait for the reader of a watch at most.
const WATCH_EVENTS: usize = 64;
const HISTORY: HistoryLimits = HistoryLimits { events: 1000, bytes: 16 << 20 };
const MIN_TTL: Duration = Duration::from_secs(1);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreCall {
    Read,
    Write,
    Renew,
}

/// What becomes of a call on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes `there`, is carried out, and its answer takes `back`.
    Carried { there: Duration, back: Duration },
    /// It never arrives, and nobody says so.
    Lost,
    /// It is carried out after `there`; the answer never arrives.
    AnswerLost { there: Duration },
    /// The server refuses it, and says why.
    Refused { why: String },
}

/// The way of one client to the server.
pub trait StoreLink: Send + Sync + 'static {
    fn fate(&self, call: StoreCall) -> Fate;

    /// Whether changes reach the client's watches now.
    fn delivers(&self) -> bool {
        true
    }
}

/// A way on which nothing happens.
#[derive(Debug)]
pub struct Calm;

impl StoreLink for Calm {
    fn fate(&self, _: StoreCall) -> Fate {
        Fate::Carried { there: Duration::ZERO, back: Duration::ZERO }
    }
}

/// One change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    /// `None`: it was removed.
    pub value: Option<Bytes>,
}

type Observer = Box<dyn FnMut(Revision, &[Change]) + Send>;

struct State {
    records: BTreeMap<String, Versioned>,
    revision: Revision,
    history: History,
    /// When each lease ends, and how long it lives.
    leases: BTreeMap<LeaseId, (Instant, Duration)>,
    last_lease: u64,
    observer: Option<Observer>,
}

/// The records, and who is told of them. Clones are the same.
#[derive(Clone)]
pub struct SimulatedServer {
    state: Arc<Mutex<State>>,
    /// Told of every change. Not a `watch`, which wakes its receivers in an order that is drawn at random.
    published: Arc<Notify>,
}

impl Default for SimulatedServer {
    fn default() -> Self {
        let state = State {
            records: BTreeMap::new(),
            revision: Revision(0),
            history: History::new(Revision(0), HISTORY),
            leases: BTreeMap::new(),
            last_lease: 0,
            observer: None,
        };
        Self { state: Arc::new(Mutex::new(state)), published: Arc::default() }
    }
}

impl SimulatedServer {
    /// Called with every change, under the server's lock: it must not call the server.
    pub fn observe(&self, observer: impl FnMut(Revision, &[Change]) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// Every record, as it is now.
    pub fn records(&self) -> Vec<Versioned> {
        self.lock().records.values().cloned().collect()
    }

    /// Changes a record behind everybody's back, to see whether it is noticed.
    pub fn tamper(&self, key: &str, value: Option<Bytes>) {
        let op = match value {
            Some(value) => Op::Put { key: key.to_owned(), value, lease: None },
            None => Op::Delete { key: key.to_owned() },
        };
        self.lock().write(vec![op]);
        self.published.notify_waiters();
    }

    /// Ends every lease at once, as when the leader of an etcd is another and has not heard of them.
    pub fn end_leases(&self) {
        {
            let mut state = self.lock();
            let leases: Vec<LeaseId> = state.leases.keys().copied().collect();
            leases.into_iter().for_each(|lease| state.end_lease(lease));
        }
        self.published.notify_waiters();
    }

    /// Drops the history up to and including `revision`.
    pub fn compact(&self, revision: Revision) {
        self.lock().history.forget(revision);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every method leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let latest = self.lock().txn(txn)?;
        self.published.notify_waiters();
        Ok(latest)
    }

    fn revoke(&self, lease: LeaseId) {
        self.lock().end_lease(lease);
        self.published.notify_waiters();
    }

    fn grant(&self, tasks: &Tasks, ttl: Duration) -> LeaseId {
        let lease = {
            let mut state = self.lock();
            state.last_lease += 1;
            let lease = LeaseId(state.last_lease);
            state.leases.insert(lease, (Instant::now() + ttl, ttl));
            lease
        };
        let (state, published) = (Arc::downgrade(&self.state), self.published.clone());
        tasks.spawn(expire(state, published, lease));
        lease
    }
}

/// Ends a lease when its time is up.
async fn expire(state: Weak<Mutex<State>>, published: Arc<Notify>, lease: LeaseId) {
    loop {
        let ends_at = {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((ends_at, _)) = state.leases.get(&lease).copied() else { return };
            if ends_at <= Instant::now() {
                state.end_lease(lease);
                published.notify_waiters();
                return;
            }
            ends_at
        };
        tokio::time::sleep_until(ends_at).await;
    }
}

impl State {
    fn txn(&mut self, txn: Txn) -> Result<Revision, StoreError> {
        if let Some(fence) = &txn.fence
            && self.records.get(&fence.key).map(|record| record.mod_revision) != Some(fence.revision)
        {
            return Err(StoreError::NotLeader { name: fence.name.clone() });
        }
        for precondition in &txn.preconditions {
            let found = self.records.get(&precondition.key);
            let holds = match precondition.expect {
                Expect::Absent => found.is_none(),
                Expect::Exists => found.is_some(),
                Expect::ModRevision(revision) => found.is_some_and(|found| found.mod_revision == revision),
            };
            if !holds {
                return Err(StoreError::Conflict { key: precondition.key.clone() });
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && self.leases.get(lease).is_none_or(|(ends_at, _)| *ends_at <= Instant::now())
            {
                return Err(StoreError::LeaseNotFound { lease: lease.0 });
            }
        }
        Ok(self.write(txn.ops))
    }

    /// Writes all at one revision; the present one if nothing changes.
    fn write(&mut self, ops: Vec<Op>) -> Revision {
        let revision = Revision(self.revision.0 + 1);
        let (mut events, mut changes) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let record =
                        Versioned { key: key.clone(), value: value.clone(), mod_revision: revision, lease };
                    self.records.insert(key.clone(), record.clone());
                    events.push(WatchEvent::Put(record));
                    changes.push(Change { key, value: Some(value) });
                }
                Op::Delete { key } => {
                    if self.records.remove(&key).is_some() {
                        events.push(WatchEvent::Delete { key: key.clone(), revision });
                        changes.push(Change { key, value: None });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.history.publish(events, revision);
            if let Some(observer) = &mut self.observer {
                observer(revision, &changes);
            }
        }
        self.revision
    }

    fn end_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let keys = self.records.values().filter(|record| record.lease == Some(lease));
        let ops = keys.map(|record| Op::Delete { key: record.key.clone() }).collect();
        self.write(ops);
    }

    fn under(&self, prefix: &str) -> impl Iterator<Item = &Versioned> {
        let prefix = prefix.to_owned();
        self.records
            .range(prefix.clone()..)
            .map(|(_, record)| record)
            .take_while(move |record| record.key.starts_with(&prefix))
    }
}

/// A client of a [`SimulatedServer`].
pub struct SimulatedStore {
    server: SimulatedServer,
    link: Arc<dyn StoreLink>,
    tasks: Tasks,
    /// Leases outlive their client.
    server_tasks: Arc<Tasks>,
    call_timeout: Duration,
}

impl SimulatedStore {
    pub fn new(server: &SimulatedServer, link: Arc<dyn StoreLink>, call_timeout: Duration) -> Self {
        Self {
            server: server.clone(),
            link,
            tasks: Tasks::new(),
            server_tasks: Arc::new(Tasks::new()),
            call_timeout,
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.tasks.is_stopped() { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, StoreError> {
        self.check_open()?;
        read_over(&self.server, self.link.as_ref(), self.call_timeout, |state| Ok(read(state))).await
    }

    /// Carries a call out on the server's side, whether or not its caller waits for the answer.
    async fn call<T: Send + 'static>(
        &self,
        call: StoreCall,
        work: impl FnOnce(&SimulatedServer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        carry(&self.server, &self.server_tasks, self.link.as_ref(), self.call_timeout, call, work).await
    }
}

async fn read_over<T>(
    server: &SimulatedServer,
    link: &dyn StoreLink,
    call_timeout: Duration,
    read: impl FnOnce(&State) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let reading = async {
        match link.fate(StoreCall::Read) {
            Fate::Carried { there, back } => {
                pass(there).await;
                let found = read(&server.lock());
                pass(back).await;
                found
            }
            Fate::Lost | Fate::AnswerLost { .. } => std::future::pending().await,
            Fate::Refused { why } => Err(StoreError::NotApplied(why.into())),
        }
    };
    timeout(call_timeout, reading).await.unwrap_or_else(|elapsed| Err(StoreError::NotApplied(elapsed.into())))
}

/// Everything below a prefix at the revision of its first page, as long as the server keeps that.
struct SimulatedPages {
    server: SimulatedServer,
    link: Arc<dyn StoreLink>,
    call_timeout: Duration,
    stop: CancellationToken,
    under: String,
    limit: usize,
    /// What is left of the records at that revision.
    seen: Option<(Revision, VecDeque<Versioned>)>,
}

#[async_trait]
impl SnapshotPages for SimulatedPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        if self.stop.is_cancelled() {
            return Err(StoreError::Closed);
        }
        let (under, seen) = (&self.under, &mut self.seen);
        let look = |state: &State| {
            let (at, _) = seen.get_or_insert_with(|| (state.revision, state.under(under).cloned().collect()));
            if state.history.is_gone(*at) {
                return Err(StoreError::Compacted { revision: at.0 });
            }
            Ok(())
        };
        read_over(&self.server, self.link.as_ref(), self.call_timeout, look).await?;
        let Some((revision, left)) = &mut self.seen else {
            return Err(StoreError::Corrupt("nothing was read".to_owned()));
        };
        let items: Vec<Versioned> = left.drain(..self.limit.min(left.len())).collect();
        let next = items.last().filter(|_| !left.is_empty()).map(|last| last.key.clone());
        Ok(Page { items, next, revision: *revision })
    }
}

async fn carry<T: Send + 'static>(
    server: &SimulatedServer,
    tasks: &Tasks,
    link: &dyn StoreLink,
    call_timeout: Duration,
    call: StoreCall,
    work: impl FnOnce(&SimulatedServer) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (there, back) = match link.fate(call) {
        Fate::Carried { there, back } => (there, Some(back)),
        Fate::AnswerLost { there } => (there, None),
        Fate::Lost => {
            sleep(call_timeout).await;
            return Err(StoreError::Unknown("no answer came".into()));
        }
        Fate::Refused { why } => return Err(StoreError::NotApplied(why.into())),
    };
    let (reply, answer) = oneshot::channel();
    let server = server.clone();
    let on_its_way = async move {
        pass(there).await;
        let outcome = work(&server);
        if let Some(back) = back {
            pass(back).await;
            // Who does not wait any more does not hear of it.
            let _ = reply.send(outcome);
        } else {
            reply_never(reply).await;
        }
    };
    tasks.spawn(on_its_way);
    match timeout(call_timeout, answer).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(gone)) => Err(StoreError::Unknown(gone.into())),
        Err(elapsed) => Err(StoreError::Unknown(elapsed.into())),
    }
}

/// Holds the answer's place until nobody waits for it.
async fn reply_never<T>(mut reply: oneshot::Sender<T>) {
    reply.closed().await;
}

/// Waits, if there is anything to wait for.
async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

#[async_trait]
impl Store for SimulatedStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        validate_key(key)?;
        self.read(|state| state.records.get(key).cloned()).await
    }

    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE_ITEMS);
        self.read(|state| {
            let (mut items, mut bytes, mut next) = (Vec::new(), 0, None);
            for record in
                state.under(prefix).filter(|record| page_after.is_none_or(|after| *record.key > *after))
            {
                let size = record.key.len() + record.value.len();
                if items.len() == limit || (!items.is_empty() && bytes + size > MAX_TXN_BYTES) {
                    next = items.last().map(|last: &Versioned| last.key.clone());
                    break;
                }
                bytes += size;
                items.push(record.clone());
            }
            Page { items, next, revision: state.revision }
        })
        .await
    }

    fn read_pages(&self, prefix: &str, limit: usize) -> Box<dyn SnapshotPages> {
        Box::new(SimulatedPages {
            server: self.server.clone(),
            link: self.link.clone(),
            call_timeout: self.call_timeout,
            stop: self.tasks.child_token(),
            under: prefix.to_owned(),
            limit: limit.max(1),
            seen: None,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.validate()?;
        self.check_open()?;
        self.call(StoreCall::Write, |server| server.txn(txn)).await
    }

    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        let (sender, receiver) = mpsc::channel(WATCH_EVENTS);
        let feed =
            Feed { server: self.server.clone(), link: self.link.clone(), prefix: prefix.to_owned(), sender };
        let stop = self.tasks.child_token();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = feed.run(after) => {}
            }
        });
        Watch::new(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.check_open()?;
        let (ttl, asked_at) = (ttl.max(MIN_TTL), Instant::now());
        let server_tasks = self.server_tasks.clone();
        let id = self.call(StoreCall::Write, move |server| Ok(server.grant(&server_tasks, ttl))).await?;
        let backend = SimulatedLease {
            id,
            server: self.server.clone(),
            server_tasks: self.server_tasks.clone(),
            link: self.link.clone(),
            call_timeout: self.call_timeout,
        };
        Ok(spawn_keeper(&self.tasks, id, ttl, asked_at, backend))
    }

    async fn close(&self) {
        self.tasks.stop().await;
    }
}

struct SimulatedLease {
    id: LeaseId,
    server: SimulatedServer,
    server_tasks: Arc<Tasks>,
    link: Arc<dyn StoreLink>,
    call_timeout: Duration,
}

#[async_trait]
impl LeaseBackend for SimulatedLease {
    async fn renew(&mut self) -> Result<Renewal, StoreError> {
        let id = self.id;
        let renew = move |server: &SimulatedServer| {
            let mut state = server.lock();
            let now = Instant::now();
            Ok(match state.leases.get_mut(&id).filter(|(ends_at, _)| *ends_at > now) {
                Some((ends_at, ttl)) => {
                    *ends_at = now + *ttl;
                    Renewal::Renewed
                }
                None => Renewal::Gone,
            })
        };
        carry(
            &self.server,
            &self.server_tasks,
            self.link.as_ref(),
            self.call_timeout,
            StoreCall::Renew,
            renew,
        )
        .await
    }

    async fn revoke(&mut self) -> Result<(), StoreError> {
        let id = self.id;
        let revoke = move |server: &SimulatedServer| {
            server.revoke(id);
            Ok(())
        };
        carry(
            &self.server,
            &self.server_tasks,
            self.link.as_ref(),
            self.call_timeout,
            StoreCall::Write,
            revoke,
        )
        .await
    }
}

/// Feeds one watch.
struct Feed {
    server: SimulatedServer,
    link: Arc<dyn StoreLink>,
    prefix: String,
    sender: mpsc::Sender<WatchEvent>,
}

/// A watch whose way is cut looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Feed {
    async fn run(&self, after: Option<Revision>) -> Option<()> {
        let mut cursor = match after {
            Some(revision) if revision <= self.server.lock().revision => revision,
            _ => self.resync().await?,
        };
        loop {
            while !self.link.delivers() {
                sleep(LOOK_AGAIN).await;
            }
            let newer = self.server.published.notified();
            tokio::pin!(newer);
            // From here on nothing is missed.
            newer.as_mut().enable();
            let since = self.server.lock().history.since(cursor, &self.prefix);
            match since {
                Since::Gone => cursor = self.resync().await?,
                Since::Changes { events, reached } => {
                    for event in events {
                        self.sender.send(event).await.ok()?;
                    }
                    if reached == cursor {
                        tokio::select! {
                            biased;
                            () = self.sender.closed() => return None,
                            () = newer => {}
                        }
                    }
                    cursor = reached;
                }
            }
        }
    }

    async fn resync(&self) -> Option<Revision> {
        let (items, revision) = {
            let state = self.server.lock();
            (state.under(&self.prefix).cloned().collect(), state.revision)
        };
        self.sender.send(WatchEvent::Resync { items, revision }).await.ok()?;
        Some(revision)
    }
}
