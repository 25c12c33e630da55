//! What the writer thread, the watches and the callers of one embedded store share.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::history::{History, HistoryLimits, Since};
use super::leases::LeaseTable;
use crate::types::Revision;
use crate::watch::WatchEvent;

#[derive(Debug)]
pub(super) struct Shared {
    /// The store's prefix: every stored key begins with it.
    pub prefix: String,
    pub leases: LeaseTable,
    // A std mutex: held for a copy of a few changes, never across an await.
    history: Mutex<History>,
    published: watch::Sender<Revision>,
}

impl Shared {
    pub fn new(prefix: String, now: Revision, times_opened: u64, limits: HistoryLimits) -> Self {
        Self {
            prefix,
            leases: LeaseTable::new(times_opened),
            history: Mutex::new(History::new(now, limits)),
            published: watch::Sender::new(now),
        }
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes committed changes visible to watches.
    pub fn publish(&self, changes: Vec<WatchEvent>, latest: Revision) {
        self.history().publish(changes, latest);
        self.published.send_replace(latest);
    }

    /// Drops the history up to and including `revision`.
    #[cfg(any(test, feature = "testing"))]
    pub fn forget(&self, revision: Revision) {
        self.history().forget(revision);
    }

    pub fn since(&self, after: Revision, full_prefix: &str) -> Since {
        self.history().since(after, full_prefix)
    }

    /// Follows the last published revision.
    pub fn published(&self) -> watch::Receiver<Revision> {
        self.published.subscribe()
    }
}
