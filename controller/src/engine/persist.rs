//! Records on their way to the store: pending writes, the revisions that they rest on, and the transactions.

use std::collections::BTreeMap;
use std::time::Instant;

use crescendo_core::ids::JobId;
use crescendo_core::records::{Record, RecordKey, Write};
use crescendo_core::unreadable::UnreadableRecords;
use crescendo_proto::records;
use crescendo_store::{Revision, Snapshot, StoreError, Txn};

use crate::engine::Engine;

/// Writes after which no further request joins a batch.
pub(super) const BATCH_WRITES: usize = 100;
/// Writes of one transaction; a store takes no more.
const TXN_WRITES: usize = 120;
/// Bytes of one transaction; a store takes 1.4 MB.
const TXN_BYTES: usize = 1_000_000;

/// The store's own records of who leads.
const LEADER_KEYS: &str = "leaders/";

/// Where the records stand in the store, and what is not there yet.
#[derive(Default)]
pub(super) struct Records {
    revisions: BTreeMap<RecordKey, Revision>,
    /// Newest revision of any record of a job.
    job_revisions: BTreeMap<JobId, Revision>,
    /// By first mention; a later write of a key replaces the earlier one.
    pending: Vec<(RecordKey, Option<Vec<u8>>)>,
}

impl Records {
    /// Takes a snapshot apart. Values that cannot be read are left alone, and logged: a newer version may have written
    /// them.
    pub fn load(snapshot: Snapshot) -> (Self, Vec<Record>, UnreadableRecords) {
        let mut records = Self::default();
        let mut unreadable = UnreadableRecords::default();
        let mut loaded = Vec::new();
        for item in snapshot.items.into_iter().filter(|item| !item.key.starts_with(LEADER_KEYS)) {
            match records::decode(&item.value) {
                Ok(record) if record.key().to_string() == item.key => {
                    records.note(record.key(), Some(item.mod_revision));
                    loaded.push(record);
                }
                Ok(record) => {
                    tracing::error!(key = item.key, belongs_at = %record.key(), "a stored record is left alone: its key is another's; something else writes below this prefix");
                    unreadable.add(item.key, format!("it holds the record of {}", record.key()));
                }
                Err(error) => {
                    tracing::error!(
                        key = item.key,
                        error = &error as &dyn std::error::Error,
                        "cannot read a record; it is left alone, and what it belongs to is halted"
                    );
                    unreadable.add(item.key, one_line(&error));
                }
            }
        }
        (records, loaded, unreadable)
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn job_revision(&self, job: &JobId) -> u64 {
        self.job_revisions.get(job).map_or(0, |revision| revision.0)
    }

    fn note(&mut self, key: RecordKey, revision: Option<Revision>) {
        match revision {
            Some(revision) => {
                if let Some(job) = key.job() {
                    let newest = self.job_revisions.entry(job.clone()).or_insert(revision);
                    *newest = revision.max(*newest);
                }
                self.revisions.insert(key, revision);
            }
            None => {
                self.revisions.remove(&key);
            }
        }
    }

    fn add(&mut self, key: RecordKey, value: Option<Vec<u8>>) {
        match self.pending.iter_mut().find(|(pending, _)| *pending == key) {
            Some(entry) => entry.1 = value,
            None => self.pending.push((key, value)),
        }
    }
}

/// An error with its causes, in one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Engine {
    /// Takes a change over into memory and puts it on its way to the store.
    pub(super) fn write(&mut self, write: Write) {
        let key = write.key();
        if let Err(refused) = self.state.unreadable().check(&key.to_string()) {
            tracing::error!(%key, %refused, "a record is not written over one that cannot be read");
            return;
        }
        let value = match &write {
            Write::Put(record) => Some(records::encode(record)),
            Write::Delete(_) => None,
        };
        if let Some(job) = key.job() {
            self.changed.insert(job.clone());
        }
        if let Err(orphan) = self.state.apply(write) {
            tracing::error!(%orphan, "a record that belongs to nothing is not written");
            return;
        }
        self.records.add(key, value);
    }

    /// Makes the pending writes durable, each on the condition that its record is as this engine left it.
    pub(super) async fn persist(&mut self) -> Result<(), StoreError> {
        let mut pending = std::mem::take(&mut self.records.pending).into_iter().peekable();
        while pending.peek().is_some() {
            let mut txn = Txn::new();
            let mut keys: Vec<(RecordKey, bool)> = Vec::new();
            let mut bytes = 0;
            while let Some((key, value)) = pending.next_if(|(_, value)| {
                let size = value.as_ref().map_or(0, Vec::len);
                keys.is_empty() || (keys.len() < TXN_WRITES && bytes + size <= TXN_BYTES)
            }) {
                bytes += value.as_ref().map_or(0, Vec::len);
                let path = key.to_string();
                let known = self.records.revisions.get(&key).copied();
                txn = match (known, &value) {
                    // Made and deleted before it was ever written.
                    (None, None) => continue,
                    (None, Some(_)) => txn.absent(path.clone()),
                    (Some(revision), _) => txn.at_revision(path.clone(), revision),
                };
                keys.push((key, value.is_some()));
                txn = match value {
                    Some(value) => txn.put(path, value),
                    None => txn.delete(path),
                };
            }
            if keys.is_empty() {
                continue;
            }
            txn.fence = Some(self.fence.clone());
            let started = Instant::now();
            let result = self.around.store.txn(txn).await;
            let outcome = match &result {
                Ok(_) => "ok",
                Err(StoreError::Conflict { .. }) => "conflict",
                Err(StoreError::NotLeader { .. }) => "not_leader",
                Err(StoreError::Unknown(_)) => "unknown",
                Err(_) => "error",
            };
            self.around.metrics.store_call("txn", outcome, started.elapsed());
            let revision = result?;
            for (key, put) in keys {
                self.records.note(key, put.then_some(revision));
            }
        }
        Ok(())
    }
}
