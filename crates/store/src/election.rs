//! Leadership over the store's own primitives: a record that is created if absent, under a lease.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::StoreError;
use crate::lease::{Fence, Leader, Leadership, Lease};
use crate::store::Store;
use crate::types::{Txn, Versioned};
use crate::watch::WatchEvent;

/// Pause before trying again when the store could not be reached, and the longest wait on a watch before looking again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_secs(5);

fn leader_key(name: &str) -> String {
    format!("leaders/{name}")
}

pub(crate) async fn leader<S: Store + ?Sized>(store: &S, name: &str) -> Result<Option<Leader>, StoreError> {
    let record = store.get(&leader_key(name)).await?;
    Ok(record.map(|record| Leader { identity: identity_of(&record), elected_at: record.mod_revision }))
}

pub(crate) async fn campaign<S: Store + ?Sized>(
    store: &S,
    name: &str,
    identity: &str,
    ttl: Duration,
    wait: Duration,
) -> Result<Leadership, StoreError> {
    let deadline = Instant::now() + wait;
    let mut candidate = Candidate { store, name, identity, key: leader_key(name), ttl, seen_leader: None };
    match timeout_at(deadline, candidate.run()).await {
        Ok(result) => result,
        Err(_elapsed) => Err(StoreError::NotElected { name: name.to_owned(), leader: candidate.seen_leader }),
    }
}

struct Candidate<'a, S: ?Sized> {
    store: &'a S,
    name: &'a str,
    identity: &'a str,
    key: String,
    ttl: Duration,
    seen_leader: Option<String>,
}

impl<S: Store + ?Sized> Candidate<'_, S> {
    /// Tries until it leads. The caller bounds the time; a lease that was granted meanwhile is revoked when dropped.
    async fn run(&mut self) -> Result<Leadership, StoreError> {
        loop {
            let lease = match self.store.grant(self.ttl).await {
                Ok(lease) => lease,
                Err(error) => {
                    pause_or_give_up(error).await?;
                    continue;
                }
            };
            if let Some(record) = self.run_with(&lease).await? {
                let fence = Fence {
                    name: self.name.to_owned(),
                    key: self.key.clone(),
                    revision: record.mod_revision,
                };
                return Ok(Leadership::new(fence, self.identity.to_owned(), lease));
            }
        }
    }

    /// Tries until the leader's record carries `lease`, or the lease is lost (`None`).
    async fn run_with(&mut self, lease: &Lease) -> Result<Option<Versioned>, StoreError> {
        while !lease.is_lost() {
            let txn =
                Txn::new().absent(&self.key).put_leased(&self.key, self.identity.as_bytes().to_vec(), lease);
            match self.store.txn(txn).await {
                // An unknown outcome is settled by reading: the record carries our lease or it does not.
                Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Unknown(_)) => {}
                Err(StoreError::LeaseNotFound { .. }) => return Ok(None),
                Err(error) => {
                    pause_or_give_up(error).await?;
                    continue;
                }
            }
            let record = match self.store.get(&self.key).await {
                Ok(record) => record,
                Err(error) => {
                    pause_or_give_up(error).await?;
                    continue;
                }
            };
            match record {
                Some(record) if record.lease == Some(lease.id()) => return Ok(Some(record)),
                Some(record) => {
                    self.seen_leader = Some(identity_of(&record));
                    self.wait_until_free(&record, lease).await;
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// Returns when the leader's record changed, or after a while, since looking again is cheap.
    async fn wait_until_free(&self, record: &Versioned, lease: &Lease) {
        let look_again_at = Instant::now() + LOOK_AGAIN;
        let mut watch = self.store.watch(&self.key, Some(record.mod_revision));
        loop {
            let event = tokio::select! {
                biased;
                event = timeout_at(look_again_at, watch.next()) => event,
                () = lease.lost() => return,
            };
            match event {
                Ok(Some(WatchEvent::Delete { key, .. })) if key == self.key => return,
                // The history since then is gone, and the leader is the same: asking again at once would learn no more.
                Ok(Some(WatchEvent::Resync { items, .. })) if items.contains(record) => {}
                Ok(Some(WatchEvent::Resync { .. })) | Ok(None) | Err(_) => return,
                // A longer key with the same beginning, or the record that was just read.
                Ok(Some(WatchEvent::Put(_) | WatchEvent::Delete { .. })) => {}
            }
        }
    }
}

async fn pause_or_give_up(error: StoreError) -> Result<(), StoreError> {
    if error.is_retryable() || matches!(error, StoreError::Unknown(_)) {
        tokio::time::sleep(RETRY_PAUSE).await;
        Ok(())
    } else {
        Err(error)
    }
}

fn identity_of(record: &Versioned) -> String {
    String::from_utf8_lossy(&record.value).into_owned()
}
