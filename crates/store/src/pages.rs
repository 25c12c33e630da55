//! Everything below a prefix, read page by page at one revision.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use crate::error::StoreError;
use crate::types::{MAX_PAGE_ITEMS, Page, Snapshot};

/// Limit of reading everything at once, however often that has to begin anew.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);
/// Times that reading everything begins anew because its revision is gone.
const MAX_BEGINNINGS: u32 = 10;

/// The records below a prefix as they are at one revision, which the first page settles; in key order.
#[async_trait]
pub trait SnapshotPages: Send {
    /// The next page; it is the last one if its [`Page::next`] is `None`. A call has the deadline of a call, however much there
    /// is to read in all.
    ///
    /// [`StoreError::Compacted`]: the revision is gone from the store, and what is left of it cannot be read any more. After any
    /// other error the same page may be asked for again.
    async fn next_page(&mut self) -> Result<Page, StoreError>;
}

/// Reads all pages that `begin` gives, and begins anew where their revision goes meanwhile.
pub(crate) async fn collect(begin: impl Fn(usize) -> Box<dyn SnapshotPages>) -> Result<Snapshot, StoreError> {
    let read = async {
        let mut beginnings = 1;
        loop {
            match collect_once(begin(MAX_PAGE_ITEMS)).await {
                Err(StoreError::Compacted { .. }) if beginnings < MAX_BEGINNINGS => beginnings += 1,
                outcome => return outcome,
            }
        }
    };
    timeout(SNAPSHOT_LIMIT, read).await.unwrap_or_else(|elapsed| Err(StoreError::NotApplied(elapsed.into())))
}

async fn collect_once(mut pages: Box<dyn SnapshotPages>) -> Result<Snapshot, StoreError> {
    let mut items = Vec::new();
    loop {
        let page = pages.next_page().await?;
        items.extend(page.items);
        if page.next.is_none() {
            return Ok(Snapshot { items, revision: page.revision });
        }
    }
}
