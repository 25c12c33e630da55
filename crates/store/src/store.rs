//! The [`Store`] trait.

use std::time::Duration;

use async_trait::async_trait;

use crate::election;
use crate::error::StoreError;
use crate::lease::{Leader, Leadership, Lease};
use crate::pages::{self, SnapshotPages};
use crate::types::{Page, Revision, Snapshot, Txn, Versioned};
use crate::watch::Watch;

/// Records under `/`-separated keys, with transactions, watches, leases and leadership.
///
/// Used as `Arc<dyn Store>`. Keys are given and returned without the prefix that the store was opened with.
///
/// # What is durable
///
/// | what | durable | why |
/// |---|---|---|
/// | a record whose transaction returned `Ok` | yes, through `kill -9` and power loss | it was synced to disk (etcd: on a majority) before the answer |
/// | a record whose transaction failed with [`StoreError::Unknown`] | perhaps | the answer was lost, not the write: read before deciding again |
/// | a record whose transaction failed otherwise | not written | refused as a whole |
/// | the revision | yes, only grows, also across restarts | compare-and-set leans on it |
/// | a record put with a lease | until the lease ends | it says that its writer is alive, so it must not outlive it by more than the lease's time |
/// | history for watches | for a while (bounded) | a watch from before it gets a [`crate::WatchEvent::Resync`] instead |
///
/// # Time
///
/// Every call has the deadline that the store was configured with ([`Store::snapshot`] ten minutes, [`Store::read_pages`] for each page); a call that runs into it fails with
/// [`StoreError::NotApplied`] or [`StoreError::Unknown`]. Failures that surely changed nothing, such as a refused
/// connection, are tried again within the deadline.
///
/// # Cancellation
///
/// Dropping the future of [`Store::txn`] leaves its outcome unknown. All other calls may be dropped at any point.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one record, as of now: everything that any client was told is written is seen.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Reads the records whose keys start with `prefix` and follow `page_after`, in key order, at most `limit` of them
    /// (at most [`crate::MAX_PAGE_ITEMS`]; fewer when they are large). One page shows one revision.
    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError>;

    /// Reads every record whose key starts with `prefix`, all at one revision, in pages of at most `limit` records (fewer when
    /// they are large). Nothing is read before the first page is asked for.
    fn read_pages(&self, prefix: &str, limit: usize) -> Box<dyn SnapshotPages>;

    /// Reads every record whose key starts with `prefix`, all at one revision, into memory at once.
    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        pages::collect(|limit| self.read_pages(prefix, limit)).await
    }

    /// Applies all of a transaction's writes at one revision, which it returns, or none of them.
    ///
    /// Without any change (nothing to write, or only deletes of absent keys) the present revision is returned.
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// Follows the records whose keys start with `prefix`: all changes with a revision above `after`, in order.
    ///
    /// With `after: None`, or when the history since `after` is gone, it begins with
    /// [`crate::WatchEvent::Resync`]. It goes on by itself after a lost connection. See [`Watch`].
    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch;

    /// Grants a lease of at least `ttl` (rounded up to what the backend can do), and keeps it alive until it is
    /// dropped or revoked.
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Closes the store: ends its watches, revokes its leases, releases its file. Calls made later fail.
    async fn close(&self);

    /// Waits until `identity` leads `name`, at most `wait`; then [`StoreError::NotElected`].
    ///
    /// `ttl` is how long the leadership outlives a leader that vanishes.
    async fn campaign(
        &self,
        name: &str,
        identity: &str,
        ttl: Duration,
        wait: Duration,
    ) -> Result<Leadership, StoreError> {
        election::campaign(self, name, identity, ttl, wait).await
    }

    /// Reads who leads `name`.
    async fn leader(&self, name: &str) -> Result<Option<Leader>, StoreError> {
        election::leader(self, name).await
    }
}
