//! The task behind one watch: it pulls from the history, so that a slow reader costs nobody else anything.

use std::sync::Arc;
use std::time::Duration;

use redb::Database;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::file::{self, Failure};
use super::handle::Handle;
use super::history::Since;
use super::shared::Shared;
use crate::error::StoreError;
use crate::types::{Revision, Snapshot};
use crate::watch::WatchEvent;

/// Pause after a failed read of the file.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Feed {
    pub handle: Arc<Handle>,
    pub shared: Arc<Shared>,
    /// The watched prefix, without the store's.
    pub under: String,
    pub sender: mpsc::Sender<WatchEvent>,
    pub stop: CancellationToken,
}

impl Feed {
    /// Runs until the reader is gone or the store closes.
    pub async fn run(self, after: Option<Revision>) {
        let stop = self.stop.clone();
        let sender = self.sender.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = sender.closed() => {}
            // Ends when the reader is gone or the store is closed.
            _ = self.feed(after) => {}
        }
    }

    async fn feed(&self, after: Option<Revision>) -> Option<()> {
        let full_prefix = format!("{}{}", self.shared.prefix, self.under);
        let mut published = self.shared.published();
        let mut cursor = match after {
            // A revision that this file has not reached belongs to another one.
            Some(revision) if revision <= self.committed_revision().await? => revision,
            _ => self.resync().await?,
        };
        loop {
            // A commit is readable a moment before it is published.
            published.wait_for(|latest| *latest >= cursor).await.ok()?;
            match self.shared.since(cursor, &full_prefix) {
                Since::Gone => cursor = self.resync().await?,
                Since::Changes { events, reached } => {
                    for event in events {
                        self.sender.send(self.without_prefix(event)).await.ok()?;
                    }
                    if reached == cursor {
                        published.wait_for(|latest| *latest > cursor).await.ok()?;
                    }
                    cursor = reached;
                }
            }
        }
    }

    async fn resync(&self) -> Option<Revision> {
        let under = self.under.clone();
        let Snapshot { items, revision } =
            self.read(move |db, shared| file::snapshot(db, &shared.prefix, &under)).await?;
        self.sender.send(WatchEvent::Resync { items, revision }).await.ok()?;
        Some(revision)
    }

    async fn committed_revision(&self) -> Option<Revision> {
        self.read(|db, _| file::committed_revision(db)).await
    }

    /// Reads, again and again until it succeeds; `None` when the store is closed.
    async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&Database, &Shared) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Option<T> {
        let read = Arc::new(read);
        loop {
            let (read, shared, handle) = (read.clone(), self.shared.clone(), self.handle.clone());
            let result = tokio::task::spawn_blocking(move || {
                let db = handle.database()?;
                read(&db, &shared).map_err(|failure| {
                    handle.note(&failure);
                    failure.not_applied()
                })
            });
            let error: StoreError = match result.await {
                Ok(Ok(value)) => return Some(value),
                Ok(Err(StoreError::Closed)) => return None,
                Ok(Err(error)) => error,
                Err(join_error) => StoreError::NotApplied(join_error.into()),
            };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a watch cannot read the embedded store"
            );
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn without_prefix(&self, event: WatchEvent) -> WatchEvent {
        let strip = |key: String| key.strip_prefix(&self.shared.prefix).map(str::to_owned).unwrap_or(key);
        match event {
            WatchEvent::Put(mut record) => {
                record.key = strip(record.key);
                WatchEvent::Put(record)
            }
            WatchEvent::Delete { key, revision } => WatchEvent::Delete { key: strip(key), revision },
            resync @ WatchEvent::Resync { .. } => resync,
        }
    }
}
