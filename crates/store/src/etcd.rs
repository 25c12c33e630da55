//! The store over an etcd cluster.
//!
//! The etcd client leaves three things to us: choosing another member when one fails (`channel`), re-establishing
//! watches, with a full read when their history is compacted (`watching`), and re-establishing the streams that leases
//! are renewed on (`lease`). `records` translates.

mod channel;
mod lease;
mod records;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, Error, GetOptions, GetResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use self::channel::{CallError, Endpoints, Repeat, Sorted};
use self::lease::EtcdLease;
use crate::error::StoreError;
use crate::lease::{Lease, LeaseId, spawn_keeper};
use crate::pages::{self, SnapshotPages};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::types::{
    MAX_PAGE_ITEMS, Op, Page, Revision, Snapshot, Txn, Versioned, validate_key, validate_store_prefix,
};
use crate::watch::Watch;

/// Largest answer taken from etcd.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// A page of this many records, each of the largest size, still fits into an answer.
const SURE_PAGE_ITEMS: usize = 8;

/// Makes a connection to a member, to be opened when it is first used. It decides how connections are protected: the URI
/// of the endpoint is `http` in any case.
pub type ConnectEtcd = Arc<dyn Fn(Endpoint) -> Channel + Send + Sync>;

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// Client URLs of the members. They are used one at a time; the next one is tried when one fails.
    pub endpoints: Vec<String>,
    /// What every key is kept under, such as [`crate::KEY_PREFIX`].
    pub prefix: String,
    /// Deadline of every call, attempts together. 5 s by default.
    pub call_timeout: Duration,
    /// Deadline for connecting to a member; below `call_timeout`. 1 s by default.
    pub connect_timeout: Duration,
    /// Events buffered for one watch before it waits for its reader. 1024 by default.
    pub watch_buffer_events: usize,
    /// For members at `https://` URLs. Plain connections by default.
    pub connect: Option<ConnectEtcd>,
}

impl EtcdConfig {
    /// The defaults, for some members and a prefix.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>) -> Self {
        Self {
            endpoints,
            prefix: prefix.into(),
            call_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            watch_buffer_events: 1024,
            connect: None,
        }
    }
}

/// A [`Store`] over etcd. Leases last whole seconds, and at least as long as the cluster's own minimum.
pub struct EtcdStore {
    prefix: Arc<str>,
    endpoints: Arc<Endpoints>,
    tasks: Tasks,
    watch_buffer_events: usize,
}

impl EtcdStore {
    /// Connects, and reads once to see that etcd answers.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        let EtcdConfig { endpoints, prefix, call_timeout, connect_timeout, watch_buffer_events, connect } =
            config;
        validate_store_prefix(&prefix)?;
        let connecting = Endpoints::new(&endpoints, call_timeout, connect_timeout, connect.as_ref());
        let endpoints = Arc::new(connecting.await?);
        let store = Self {
            prefix: prefix.into(),
            endpoints,
            tasks: Tasks::new(),
            watch_buffer_events: watch_buffer_events.max(1),
        };
        store.list("", None, 1).await?;
        Ok(store)
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.tasks.is_stopped() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Drops etcd's history up to and including `revision`, for every client of that etcd.
    #[cfg(any(test, feature = "testing"))]
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let compact = |mut client: Client| async move {
            client.compact(records::to_etcd(revision), None).await.map(|_| ())
        };
        self.endpoints.call(Repeat::Harmless, compact).await.map_err(CallError::into_store_error)
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.check_open()?;
        validate_key(key)?;
        let full_key = format!("{}{key}", self.prefix);
        let answer = self
            .endpoints
            .call(Repeat::Harmless, |client| {
                let full_key = full_key.clone();
                async move {
                    client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES).get(full_key, None).await
                }
            })
            .await
            .map_err(CallError::into_store_error)?;
        answer.kvs().first().map(|kv| records::record(&self.prefix, kv)).transpose()
    }

    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.check_open()?;
        let mut limit = limit.clamp(1, MAX_PAGE_ITEMS);
        loop {
            let range = Range { under: prefix, after: page_after, limit, at: None };
            match range.read(&self.prefix, &self.endpoints).await? {
                RangeAnswer::Page(page) => return Ok(page),
                RangeAnswer::OutOfRange(_) if limit > SURE_PAGE_ITEMS => limit /= 2,
                RangeAnswer::OutOfRange(error) => return Err(StoreError::Refused(error.into())),
            }
        }
    }

    fn read_pages(&self, prefix: &str, limit: usize) -> Box<dyn SnapshotPages> {
        Box::new(EtcdPages {
            stop: self.tasks.child_token(),
            ..EtcdPages::new(&self.prefix, &self.endpoints, prefix, limit)
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.check_open()?;
        txn.validate()?;
        let request = records::build(&self.prefix, &txn);
        let answer = self
            .endpoints
            .call(Repeat::Never, |mut client| {
                let request = request.clone();
                async move { client.txn(request).await }
            })
            .await
            .map_err(|error| match (error, leased(&txn)) {
                (CallError::Sorted(Sorted::NotFound(_)), Some(lease)) => {
                    StoreError::LeaseNotFound { lease: lease.0 }
                }
                (error, _) => error.into_store_error(),
            })?;
        if answer.succeeded() {
            Ok(answer.header().map_or(Revision(0), |header| records::from_etcd(header.revision())))
        } else {
            Err(records::refusal(&txn, &answer.op_responses()))
        }
    }

    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        let (sender, receiver) = mpsc::channel(self.watch_buffer_events);
        if !self.tasks.is_stopped() {
            let feed = watching::Feed {
                endpoints: self.endpoints.clone(),
                prefix: self.prefix.clone(),
                under: prefix.to_owned(),
                sender,
                stop: self.tasks.child_token(),
            };
            self.tasks.spawn(feed.run(after));
        }
        Watch::new(receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.check_open()?;
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        // A lease whose grant got lost ends by itself, so asking twice is harmless.
        let grant = |mut client: Client| async move {
            let asked_at = Instant::now();
            client.lease_grant(seconds, None).await.map(|answer| (asked_at, answer))
        };
        let (asked_at, answer) =
            self.endpoints.call(Repeat::Harmless, grant).await.map_err(CallError::into_store_error)?;
        let granted = Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0).max(1));
        let id = LeaseId(u64::try_from(answer.id()).unwrap_or(0));
        let backend = EtcdLease::new(answer.id(), self.endpoints.clone());
        Ok(spawn_keeper(&self.tasks, id, granted, asked_at, backend))
    }

    async fn close(&self) {
        self.tasks.stop().await;
    }
}

/// The lease that a transaction's puts name. They rarely name two; the error then names the first.
fn leased(txn: &Txn) -> Option<LeaseId> {
    txn.ops.iter().find_map(|op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    })
}

/// A read of consecutive records.
struct Range<'a> {
    under: &'a str,
    after: Option<&'a str>,
    limit: usize,
    /// The revision to show; now if absent.
    at: Option<Revision>,
}

enum RangeAnswer {
    Page(Page),
    /// The answer would be too large, or the revision is compacted.
    OutOfRange(Error),
}

impl Range<'_> {
    async fn read(&self, prefix: &str, endpoints: &Endpoints) -> Result<RangeAnswer, StoreError> {
        let under = format!("{prefix}{}", self.under);
        // The key that follows a key directly is that key and a zero byte.
        let after = self.after.map(|key| format!("{prefix}{key}\0")).filter(|key| *key > under);
        let start = after.unwrap_or_else(|| under.clone());
        let options = GetOptions::new()
            .with_range(records::end_of_prefix(&under))
            .with_limit(i64::try_from(self.limit).unwrap_or(i64::MAX))
            .with_revision(self.at.map_or(0, records::to_etcd));
        let answer = endpoints
            .call(Repeat::Harmless, |client| {
                let (start, options) = (start.clone(), options.clone());
                let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                async move { kv.get(start, Some(options)).await }
            })
            .await;
        match answer {
            Ok(answer) => page(prefix, &answer).map(RangeAnswer::Page),
            Err(CallError::Sorted(Sorted::OutOfRange(error))) => Ok(RangeAnswer::OutOfRange(error)),
            Err(error) => Err(error.into_store_error()),
        }
    }
}

fn page(prefix: &str, answer: &GetResponse) -> Result<Page, StoreError> {
    let items: Vec<Versioned> =
        answer.kvs().iter().map(|kv| records::record(prefix, kv)).collect::<Result<_, _>>()?;
    let next = if answer.more() { items.last().map(|item| item.key.clone()) } else { None };
    let revision = answer.header().map_or(Revision(0), |header| records::from_etcd(header.revision()));
    Ok(Page { items, next, revision })
}

/// Everything below a prefix at the revision of its first page.
struct EtcdPages {
    prefix: Arc<str>,
    endpoints: Arc<Endpoints>,
    under: String,
    /// Last key of the page before.
    after: Option<String>,
    /// Set by the first page.
    at: Option<Revision>,
    /// Records of a page at most, and what the last answers had room for.
    most: usize,
    limit: usize,
    stop: CancellationToken,
}

impl EtcdPages {
    fn new(prefix: &Arc<str>, endpoints: &Arc<Endpoints>, under: &str, limit: usize) -> Self {
        let most = limit.max(1);
        Self {
            prefix: prefix.clone(),
            endpoints: endpoints.clone(),
            under: under.to_owned(),
            after: None,
            at: None,
            most,
            limit: most,
            stop: CancellationToken::new(),
        }
    }
}

#[async_trait]
impl SnapshotPages for EtcdPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        loop {
            if self.stop.is_cancelled() {
                return Err(StoreError::Closed);
            }
            let (after, limit, at) = (self.after.as_deref(), self.limit, self.at);
            let range = Range { under: &self.under, after, limit, at };
            match range.read(&self.prefix, &self.endpoints).await? {
                RangeAnswer::Page(page) => {
                    // Later pages carry later header revisions: the first one is what all of them show.
                    let revision = *self.at.get_or_insert(page.revision);
                    self.after = page.next.clone().or(self.after.take());
                    self.limit = self.limit.saturating_mul(2).min(self.most);
                    return Ok(Page { revision, ..page });
                }
                // Smaller pages help when the answer was too large, and do no harm when the revision was compacted.
                RangeAnswer::OutOfRange(_) if self.limit > SURE_PAGE_ITEMS => {
                    self.limit = (self.limit / 2).max(SURE_PAGE_ITEMS);
                }
                RangeAnswer::OutOfRange(error) => {
                    return Err(match self.at {
                        Some(revision) => StoreError::Compacted { revision: revision.0 },
                        None => StoreError::Refused(error.into()),
                    });
                }
            }
        }
    }
}

/// Reads everything below `under` at one revision.
async fn snapshot(
    prefix: &Arc<str>,
    endpoints: &Arc<Endpoints>,
    under: &str,
) -> Result<Snapshot, StoreError> {
    pages::collect(|limit| Box::new(EtcdPages::new(prefix, endpoints, under, limit))).await
}
