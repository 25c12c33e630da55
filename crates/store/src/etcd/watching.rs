//! The task behind one watch: connect, follow, and start again where it stopped.
//!
//! ```text
//!   after = None ──▶ resync (read everything) ──▶ follow ──connection lost──▶ follow again from where it was
//!                        ▲                           │
//!                        └──── history compacted, ───┘
//!                              or etcd was restored from an older state
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::channel::Endpoints;
use super::{MAX_ANSWER_BYTES, records, snapshot};
use crate::error::StoreError;
use crate::types::Revision;
use crate::watch::WatchEvent;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Feed {
    pub endpoints: Arc<Endpoints>,
    /// The store's prefix.
    pub prefix: Arc<str>,
    /// The watched prefix, without the store's.
    pub under: String,
    pub sender: mpsc::Sender<WatchEvent>,
    pub stop: CancellationToken,
}

/// How far a watch has got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    /// Everything before this revision was delivered.
    revision: Revision,
    /// Keys whose change at `revision` was delivered too: etcd may cut a revision in two when it is large.
    delivered: BTreeSet<String>,
}

/// Why following ended.
enum End {
    /// The reader is gone.
    NoReader,
    /// The connection is; go on from the position.
    Disconnected(StoreError),
    /// The history is; read everything.
    HistoryGone,
}

impl Position {
    fn after(revision: Revision) -> Self {
        Self { revision: Revision(revision.0 + 1), delivered: BTreeSet::new() }
    }

    /// Notes a change; says whether it is new.
    fn note(&mut self, key: &str, revision: Revision) -> bool {
        if revision < self.revision {
            return false;
        }
        if revision > self.revision {
            self.revision = revision;
            self.delivered.clear();
        }
        self.delivered.insert(key.to_owned())
    }
}

impl Feed {
    /// Runs until the reader is gone or the store closes.
    pub async fn run(self, after: Option<Revision>) {
        let stop = self.stop.clone();
        let sender = self.sender.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = sender.closed() => {}
            () = self.feed(after) => {}
        }
    }

    async fn feed(&self, after: Option<Revision>) {
        let mut position = after.map(Position::after);
        let mut pause = FIRST_PAUSE;
        loop {
            let end = match &mut position {
                None => match self.resync().await {
                    Ok(revision) => {
                        position = Some(Position::after(revision));
                        pause = FIRST_PAUSE;
                        continue;
                    }
                    Err(end) => end,
                },
                Some(position) => {
                    let before = position.clone();
                    let end = self.follow(position).await;
                    if *position != before {
                        pause = FIRST_PAUSE;
                    }
                    end
                }
            };
            match end {
                End::NoReader => return,
                End::HistoryGone => {
                    tracing::info!(prefix = %self.under, "the history of a watch is gone, reading everything");
                    position = None;
                }
                End::Disconnected(error) => {
                    tracing::debug!(
                        prefix = %self.under,
                        error = &error as &dyn std::error::Error,
                        "a watch lost its connection"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn resync(&self) -> Result<Revision, End> {
        let snapshot =
            snapshot(&self.prefix, &self.endpoints, &self.under).await.map_err(End::Disconnected)?;
        let revision = snapshot.revision;
        let event = WatchEvent::Resync { items: snapshot.items, revision };
        self.sender.send(event).await.map_err(|_| End::NoReader)?;
        Ok(revision)
    }

    async fn follow(&self, position: &mut Position) -> End {
        let (ticket, client) = self.endpoints.current();
        let full_under = format!("{}{}", self.prefix, self.under);
        let options = WatchOptions::new()
            .with_range(records::end_of_prefix(&full_under))
            .with_start_revision(records::to_etcd(position.revision))
            .with_progress_notify()
            .with_fragment();
        let mut watch_client = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let opening = timeout(self.endpoints.call_timeout(), watch_client.watch(full_under, Some(options)));
        let mut stream = match opening.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.endpoints.give_up_on(ticket);
                return End::Disconnected(StoreError::NotApplied(error.into()));
            }
            Err(elapsed) => {
                self.endpoints.give_up_on(ticket);
                return End::Disconnected(StoreError::NotApplied(elapsed.into()));
            }
        };
        loop {
            // No deadline: silence is normal here, and a dead connection is found by its pings.
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => {
                    return End::Disconnected(StoreError::NotApplied("etcd ended the stream".into()));
                }
                Err(error) => {
                    self.endpoints.give_up_on(ticket);
                    return End::Disconnected(StoreError::NotApplied(error.into()));
                }
            };
            if let Err(end) = self.take(&response, position).await {
                return end;
            }
        }
    }

    async fn take(&self, response: &WatchResponse, position: &mut Position) -> Result<(), End> {
        let now = response.header().map(|header| records::from_etcd(header.revision()));
        if response.canceled() {
            return Err(if response.compact_revision() > 0 {
                End::HistoryGone
            } else {
                End::Disconnected(StoreError::NotApplied(response.cancel_reason().to_owned().into()))
            });
        }
        if response.created() {
            // This etcd has not got as far as the one that was watched before.
            return if now.is_some_and(|now| now.0 + 1 < position.revision.0) {
                Err(End::HistoryGone)
            } else {
                Ok(())
            };
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = records::from_etcd(kv.mod_revision());
            let key = records::short_key(&self.prefix, kv).map_err(End::Disconnected)?;
            if !position.note(&key, revision) {
                continue;
            }
            let event = match event.event_type() {
                EventType::Put => {
                    WatchEvent::Put(records::record(&self.prefix, kv).map_err(End::Disconnected)?)
                }
                EventType::Delete => WatchEvent::Delete { key, revision },
            };
            self.sender.send(event).await.map_err(|_| End::NoReader)?;
        }
        // A response without events says that there were none up to its revision.
        if let Some(now) = now
            && response.events().is_empty()
            && now.0 + 1 > position.revision.0
        {
            *position = Position::after(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_was_cut_in_two_is_delivered_once() {
        let mut position = Position::after(Revision(4));
        assert!(position.note("a", Revision(5)));
        assert!(position.note("b", Revision(5)));
        // After a reconnection, revision 5 comes again, whole.
        assert!(!position.note("a", Revision(5)));
        assert!(!position.note("b", Revision(5)));
        assert!(position.note("c", Revision(5)));
        assert!(position.note("a", Revision(6)));
        assert!(!position.note("c", Revision(5)));
    }
}
