//! Records on their way to the store: pending writes, the revisions that they rest on, and the transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crescendo_core::accounts;
use crescendo_core::deletion::DeletionRecord;
use crescendo_core::ids::{Generation, JobId, NodeId, StageName, StageRef};
use crescendo_core::notices;
use crescendo_core::records::{Record, RecordKey, Write};
use crescendo_core::state::{ClusterState, Orphan, StateLoader};
use crescendo_core::unreadable::{self, UnreadableRecords};
use crescendo_node::objects::with_causes;
use crescendo_proto::records::{self, BadRecord};
use crescendo_store::{Revision, StoreError, Txn, Versioned};
use imbl::OrdMap;

use crate::config::MAX_TXN_WRITES;
use crate::engine::Engine;

/// Writes after which no further request joins a batch.
pub(super) const BATCH_WRITES: usize = 100;
/// Bytes of one transaction; a store takes 1.4 MB.
const TXN_BYTES: usize = 1_000_000;

/// The store's own records of who leads.
const LEADER_KEYS: &str = "leaders/";

/// Slots of nodes.
type SlotSet = BTreeSet<(NodeId, u32)>;

/// A record that is to be written.
#[derive(Clone, Debug)]
struct Pending {
    key: RecordKey,
    /// None where it is to be deleted.
    value: Option<Vec<u8>>,
    /// Slots that an attempt takes, or gives back.
    slots: SlotSet,
}

/// Where the records stand in the store, and what is not there yet.
#[derive(Default)]
pub(super) struct Records {
    revisions: BTreeMap<RecordKey, Revision>,
    /// Of the records of units, of which there may be very many.
    units: BTreeMap<StageRef, BTreeMap<u64, Revision>>,
    /// Newest revision of any record of a job.
    job_revisions: OrdMap<JobId, Revision>,
    /// By first mention; a later write of a key replaces the earlier one.
    pending: Vec<Pending>,
    /// Where in that a key is.
    pending_at: BTreeMap<RecordKey, usize>,
}

/// The state on its way out of the store, page by page.
pub(super) struct Loading {
    records: Records,
    state: StateLoader,
    unreadable: UnreadableRecords,
    /// Records of kinds that this version does not have.
    of_other_kinds: usize,
}

/// What was in the store.
pub(super) struct Loaded {
    pub records: Records,
    /// With what could not be read.
    pub state: ClusterState,
    pub orphans: Vec<Orphan>,
}

impl Loading {
    pub fn new(segment_units: u64) -> Self {
        Self {
            records: Records::default(),
            state: StateLoader::new(segment_units),
            unreadable: UnreadableRecords::default(),
            of_other_kinds: 0,
        }
    }

    /// Takes a page apart. Values that cannot be read are left alone, and logged: a newer version may have written them.
    pub fn add(&mut self, items: Vec<Versioned>) {
        for item in items.into_iter().filter(|item| !item.key.starts_with(LEADER_KEYS)) {
            match records::decode(&item.value) {
                Ok(record) if record.key().to_string() == item.key => {
                    self.records.note(record.key(), Some(item.mod_revision));
                    self.state.add(record);
                }
                Ok(record) => {
                    tracing::error!(key = item.key, belongs_at = %record.key(), "a stored record is left alone: its key is another's; something else writes below this prefix");
                    self.unreadable.add(item.key, format!("it holds the record of {}", record.key()));
                }
                // A newer version has written it, and says that this one may go on without.
                Err(BadRecord::NewKind) if unreadable::is_of_another_kind(&item.key) => {
                    self.of_other_kinds += 1;
                }
                Err(error) => {
                    tracing::error!(
                        key = item.key,
                        error = &error as &dyn std::error::Error,
                        "cannot read a record; it is left alone, and what it belongs to is halted"
                    );
                    self.unreadable.add(item.key, with_causes(&error));
                }
            }
        }
    }

    pub fn finish(self) -> Loaded {
        let (state, orphans) = self.state.finish();
        if self.of_other_kinds > 0 {
            let records = self.of_other_kinds;
            tracing::info!(records, "records of a newer version that this one can do without are left alone");
        }
        Loaded { records: self.records, state: state.with_unreadable(self.unreadable), orphans }
    }
}

impl Records {
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn job_revision(&self, job: &JobId) -> u64 {
        self.job_revisions.get(job).map_or(0, |revision| revision.0)
    }

    pub fn job_revisions(&self) -> &OrdMap<JobId, Revision> {
        &self.job_revisions
    }

    fn note(&mut self, key: RecordKey, revision: Option<Revision>) {
        match revision {
            Some(revision) => {
                if let Some(job) = key.job() {
                    let newest = self.job_revisions.entry(job.clone()).or_insert(revision);
                    *newest = revision.max(*newest);
                }
                match key {
                    RecordKey::Unit(stage, unit) => match self.units.get_mut(&stage) {
                        Some(units) => {
                            units.insert(unit, revision);
                        }
                        None => {
                            self.units.insert(stage, BTreeMap::from([(unit, revision)]));
                        }
                    },
                    key => {
                        self.revisions.insert(key, revision);
                    }
                }
            }
            None => self.forget(&key),
        }
    }

    fn forget(&mut self, key: &RecordKey) {
        let RecordKey::Unit(stage, unit) = key else {
            self.revisions.remove(key);
            return;
        };
        if let Some(units) = self.units.get_mut(stage) {
            units.remove(unit);
            if units.is_empty() {
                self.units.remove(stage);
            }
        }
    }

    /// The revision at which a record was last written; none if there is no such record.
    fn revision(&self, key: &RecordKey) -> Option<Revision> {
        match key {
            RecordKey::Unit(stage, unit) => self.units.get(stage)?.get(unit).copied(),
            key => self.revisions.get(key).copied(),
        }
    }

    /// The records that a job which is being deleted has in the store, in the order in which they go. Its own is none of them, nor
    /// that of the deletion.
    pub fn of_job<'a>(
        &'a self,
        deletion: &'a DeletionRecord,
        state: &'a ClusterState,
    ) -> impl Iterator<Item = RecordKey> + 'a {
        let job = &deletion.job;
        // The least name that there is.
        let first = StageName::parse("-").ok().map(|stage| StageRef { job: job.clone(), stage });
        let of_kind = |from: Option<RecordKey>| {
            let kind = from.as_ref().map(std::mem::discriminant);
            let keys = from.into_iter().flat_map(|from| self.revisions.range(from..)).map(|(key, _)| key);
            keys.take_while(move |key| Some(std::mem::discriminant(*key)) == kind && key.job() == Some(job))
                .cloned()
        };
        let least = Generation(0);
        let units = first.clone().into_iter().flat_map(|first| self.units.range(first..));
        let units = units.take_while(move |(stage, _)| stage.job == *job);
        let units =
            units.flat_map(|(stage, units)| units.keys().map(|unit| RecordKey::Unit(stage.clone(), *unit)));
        let request = &deletion.lineage.request;
        let shared = RecordKey::Request(None, request.clone());
        let shared = Some(shared).filter(|_| state.shared_request_job(request) == Some(job));
        let requests = [Some(RecordKey::Request(Some(deletion.tenant.clone()), request.clone())), shared];
        let told = [RecordKey::Notice(job.clone()), RecordKey::Notes(job.clone())].into_iter();
        let told = told.filter(|key| self.revisions.contains_key(key));
        of_kind(first.clone().map(|first| RecordKey::Sampling(first, 0)))
            .chain(of_kind(first.clone().map(|first| RecordKey::Keep(first, 0, least))))
            .chain(of_kind(first.clone().map(|first| RecordKey::Checkpoint(first, 0, least))))
            .chain(units)
            .chain(of_kind(first.clone().map(|first| RecordKey::Segment(first, 0))))
            .chain(of_kind(first.clone().map(RecordKey::Attempt)))
            .chain(of_kind(first.clone().map(RecordKey::Marks)))
            .chain(of_kind(first.map(RecordKey::Stage)))
            .chain(told)
            .chain(requests.into_iter().flatten().filter(|key| self.revisions.contains_key(key)))
    }

    fn add(&mut self, write: Pending) {
        let known = self.pending_at.get(&write.key).copied();
        match known.and_then(|at| self.pending.get_mut(at)) {
            Some(entry) => {
                entry.value = write.value;
                // An attempt that ends is replaced by the next of its stage: the slots of both have changed hands.
                entry.slots.extend(write.slots);
            }
            None => {
                self.pending_at.insert(write.key.clone(), self.pending.len());
                self.pending.push(write);
            }
        }
    }

    fn take_pending(&mut self) -> Vec<Pending> {
        self.pending_at.clear();
        std::mem::take(&mut self.pending)
    }
}

impl Engine {
    /// Takes a change over into memory and puts it on its way to the store.
    pub(super) fn write(&mut self, write: Write) {
        let half_life = self.limits.quotas.half_life();
        let settled =
            accounts::settle(&self.state, std::slice::from_ref(&write), half_life, self.clock.last());
        settled.into_iter().for_each(|write| self.put(write));
        if let Some(notice) = notices::settle(&self.state, &write, &self.limits.quotas.webhooks) {
            self.note_dropped(notice.write.key().job(), notice.dropped);
            self.put(notice.write);
        }
        self.put(write);
    }

    fn put(&mut self, write: Write) {
        let key = write.key();
        if let Err(refused) = self.state.unreadable().check(&key.to_string()) {
            tracing::error!(%key, %refused, "a record is not written over one that cannot be read");
            return;
        }
        let value = match &write {
            Write::Put(record) => {
                self.observed.learn(record, self.clock.last());
                Some(records::encode(record))
            }
            Write::Delete(_) => None,
        };
        let slots = match &write {
            // With those of the attempt before, which it ends.
            Write::Put(Record::Attempt(attempt)) => {
                let before = self.state.stage(&attempt.attempt.stage_ref());
                let before = before.and_then(|stage| stage.attempt.as_ref());
                let ranks = before.into_iter().flat_map(|before| &before.ranks).chain(&attempt.ranks);
                ranks.map(|rank| (rank.node.clone(), rank.device_index)).collect()
            }
            Write::Put(_) | Write::Delete(_) => SlotSet::new(),
        };
        if let Some(job) = key.job() {
            self.changed.insert(job.clone());
        }
        if let RecordKey::Unit(stage, _) | RecordKey::Segment(stage, _) = &key {
            self.grown_logs.insert(stage.clone());
        }
        self.record_changed(&key);
        if let Err(orphan) = self.state.apply(write) {
            tracing::error!(%orphan, "a record that belongs to nothing is not written");
            return;
        }
        self.records.add(Pending { key, value, slots });
    }

    /// Makes the pending writes durable, each on the condition that its record is as this engine left it. What is more than one
    /// transaction takes is split between [`groups`]: nothing is answered or sent before all of it is durable, and whoever
    /// takes over in between finds a state that the records allow, and decides the rest again.
    ///
    /// Returns whether there was anything to write.
    pub(super) async fn persist(&mut self) -> Result<bool, StoreError> {
        let mut groups = groups(self.records.take_pending()).into_iter().peekable();
        let any = groups.peek().is_some();
        while groups.peek().is_some() {
            let mut batch: Vec<Pending> = Vec::new();
            let mut bytes = 0;
            while let Some(group) = groups.next_if(|group| {
                let fits = batch.len() + group.len() <= self.around.config.txn_writes
                    && bytes + size_bytes(group) <= TXN_BYTES;
                batch.is_empty() || fits
            }) {
                bytes += size_bytes(&group);
                batch.extend(group);
            }
            self.write_txn(batch).await?;
        }
        Ok(any)
    }

    /// One transaction.
    async fn write_txn(&mut self, batch: Vec<Pending>) -> Result<(), StoreError> {
        let mut txn = Txn::new();
        let mut keys: Vec<(RecordKey, bool)> = Vec::new();
        for Pending { key, value, slots: _ } in batch {
            let path = key.to_string();
            let known = self.records.revision(&key);
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
            return Ok(());
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
        Ok(())
    }
}

fn size_bytes(group: &[Pending]) -> usize {
    group.iter().map(|write| write.value.as_ref().map_or(0, Vec::len)).sum()
}

/// What has to be written together. A job with its attempts, checkpoints, its deletion and what is settled of its stages is one group,
/// so that no gang ends for a cancellation that was never carried out, and no job has ended while its gang has not. Jobs
/// of which one takes slots that the other gives back are one group, so that no slot is held twice. Units and nodes stand
/// alone, and go before the jobs that rest on them; a request goes after its job, which says the same, and what was used
/// after the attempts that used it: counted once at most.
fn groups(pending: Vec<Pending>) -> Vec<Vec<Pending>> {
    let (mut alone, mut last) = (Vec::new(), Vec::new());
    let mut order: Vec<JobId> = Vec::new();
    let mut jobs: BTreeMap<JobId, Vec<Pending>> = BTreeMap::new();
    for write in pending {
        match &write.key {
            RecordKey::Segment(..) | RecordKey::Unit(..) | RecordKey::Node(_) | RecordKey::Cluster => {
                alone.push(vec![write]);
            }
            RecordKey::Request(..) | RecordKey::Usage(_) => last.push(vec![write]),
            RecordKey::Job(job)
            | RecordKey::Stage(StageRef { job, .. })
            | RecordKey::Attempt(StageRef { job, .. })
            | RecordKey::Checkpoint(StageRef { job, .. }, ..)
            | RecordKey::Keep(StageRef { job, .. }, ..)
            | RecordKey::Sampling(StageRef { job, .. }, ..)
            | RecordKey::Marks(StageRef { job, .. })
            | RecordKey::Notice(job)
            | RecordKey::Notes(job)
            | RecordKey::Deletion(job) => {
                let job = job.clone();
                if !jobs.contains_key(&job) {
                    order.push(job.clone());
                }
                jobs.entry(job).or_default().push(write);
            }
        }
    }
    let mut joined: Vec<Vec<Pending>> = Vec::new();
    // Which of those has changed a slot.
    let mut changed_by: BTreeMap<(NodeId, u32), usize> = BTreeMap::new();
    for own in order.iter().filter_map(|job| jobs.remove(job)) {
        let slots = |writes: &[Pending]| -> Vec<(NodeId, u32)> {
            writes.iter().flat_map(|write| write.slots.iter().cloned()).collect()
        };
        // Those that share slots with it, and through it with each other.
        let shares: BTreeSet<usize> =
            slots(&own).iter().filter_map(|slot| changed_by.get(slot).copied()).collect();
        let earlier = shares.into_iter().filter_map(|at| joined.get_mut(at).map(std::mem::take)).flatten();
        let writes: Vec<Pending> = earlier.collect::<Vec<_>>().into_iter().chain(own).collect();
        changed_by.extend(slots(&writes).into_iter().map(|slot| (slot, joined.len())));
        joined.push(writes);
    }
    let jobs = joined.into_iter().flat_map(|group| {
        // More than a store takes at once is not to be had together.
        group.chunks(MAX_TXN_WRITES).map(<[Pending]>::to_vec).collect::<Vec<_>>()
    });
    alone.into_iter().chain(jobs).chain(last).collect()
}

#[cfg(test)]
mod tests {
    use crescendo_core::ids::RequestId;

    use super::*;

    fn job(name: &str) -> JobId {
        JobId::parse(name).expect("valid")
    }

    fn stage(name: &str) -> StageRef {
        StageRef { job: job(name), stage: StageName::parse("s").expect("valid") }
    }

    fn write(key: &RecordKey, slots: &[u32]) -> Pending {
        let node = NodeId::parse("n").expect("valid");
        let slots = slots.iter().map(|slot| (node.clone(), *slot)).collect();
        Pending { key: key.clone(), value: None, slots }
    }

    fn keys_of(group: &[Pending]) -> Vec<String> {
        group.iter().map(|write| write.key.to_string()).collect()
    }

    #[test]
    fn a_job_is_written_with_its_attempts_and_after_what_it_rests_on() {
        let keys = [
            RecordKey::Request(None, RequestId::parse("r").expect("valid")),
            RecordKey::Attempt(stage("a")),
            RecordKey::Notice(job("a")),
            RecordKey::Notes(job("a")),
            RecordKey::Unit(stage("a"), 1),
            RecordKey::Job(job("b")),
            RecordKey::Job(job("a")),
            RecordKey::Node(NodeId::parse("n").expect("valid")),
            RecordKey::Checkpoint(stage("a"), 5, Generation(1)),
        ];
        let groups = groups(keys.iter().map(|key| write(key, &[])).collect());
        let expected: [&[&str]; 5] = [
            &["units/a/s/000000000001"],
            &["nodes/n"],
            &["attempts/a/s", "notices/a", "notes/a", "jobs/a", "checkpoints/a/s/000000000005-g00000001"],
            &["jobs/b"],
            &["requests/r"],
        ];
        assert_eq!(groups.iter().map(|group| keys_of(group)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn all_records_of_a_deleted_job_are_found_and_none_of_another() {
        use crescendo_core::deletion::{DeletionPhase, KeptParts, Lineage, ObjectTotals};
        use crescendo_core::ids::{Tenant, Timestamp};
        use crescendo_core::job::JobState;
        use crescendo_core::records::RequestRecord;
        let request = |name: &str| RequestId::parse(name).expect("valid");
        let tenant = Tenant::parse("t").expect("valid");
        let of = |name: &str| {
            let other_stage = StageRef { stage: StageName::parse("-").expect("valid"), ..stage(name) };
            let own = |stage: &StageRef| {
                [
                    RecordKey::Stage(stage.clone()),
                    RecordKey::Attempt(stage.clone()),
                    RecordKey::Segment(stage.clone(), 0),
                    RecordKey::Segment(stage.clone(), 7),
                    RecordKey::Unit(stage.clone(), 9),
                    RecordKey::Checkpoint(stage.clone(), 5, Generation(1)),
                    RecordKey::Keep(stage.clone(), 5, Generation(1)),
                    RecordKey::Sampling(stage.clone(), 5),
                    RecordKey::Marks(stage.clone()),
                ]
            };
            let mut keys = [own(&other_stage), own(&stage(name))].concat();
            keys.push(RecordKey::Request(Some(tenant.clone()), request(name)));
            keys.push(RecordKey::Notice(job(name)));
            keys.push(RecordKey::Notes(job(name)));
            keys
        };
        let mut records = Records::default();
        for name in ["a", "aa", "b", "b-", "c"] {
            let own = [RecordKey::Job(job(name)), RecordKey::Deletion(job(name))];
            let shared = RecordKey::Request(None, request(name));
            of(name)
                .into_iter()
                .chain(own)
                .chain([shared])
                .for_each(|key| records.note(key, Some(Revision(1))));
        }
        records.note(RecordKey::Cluster, Some(Revision(1)));
        let deletion = DeletionRecord {
            job: job("b"),
            tenant: tenant.clone(),
            phase: DeletionPhase::Records,
            keep: KeptParts::default(),
            requested_at: Timestamp(0),
            by_retention: None,
            removed: ObjectTotals::default(),
            kept_checkpoint_bytes: 0,
            kept_pair_bytes: 0,
            lineage: Lineage {
                name: "b".into(),
                request: request("b"),
                submitted_at: Timestamp(0),
                finished_at: None,
                state: JobState::Succeeded,
                spec_sha256: String::new(),
                from: Vec::new(),
                finals: Vec::new(),
            },
        };
        let mut state = ClusterState::default();
        let found = |state: &ClusterState| records.of_job(&deletion, state).collect::<BTreeSet<RecordKey>>();
        assert_eq!(found(&state), of("b").into_iter().collect());
        // A request of all tenants goes with the job that it made, and with no other.
        for (made, is_own) in [("c", false), ("b", true)] {
            let shared = RequestRecord { tenant: None, request: request("b"), job: job(made) };
            state.apply(Write::Put(Record::Request(shared))).expect("it needs no job");
            assert_eq!(found(&state).contains(&RecordKey::Request(None, request("b"))), is_own);
        }
    }

    #[test]
    fn a_slot_changes_hands_in_one_transaction() {
        let attempt = |name: &str| RecordKey::Attempt(stage(name));
        // `a` and `b` change places; `d` goes where `c` was, and `e` to a node of its own.
        let pending = vec![
            write(&attempt("a"), &[0, 1]),
            write(&attempt("c"), &[2]),
            write(&attempt("e"), &[9]),
            write(&attempt("b"), &[1, 0]),
            write(&attempt("d"), &[3, 2]),
            write(&RecordKey::Job(job("a")), &[]),
        ];
        let expected: [&[&str]; 3] = [
            &["attempts/e/s"],
            &["attempts/a/s", "jobs/a", "attempts/b/s"],
            &["attempts/c/s", "attempts/d/s"],
        ];
        assert_eq!(groups(pending).iter().map(|group| keys_of(group)).collect::<Vec<_>>(), expected);
    }
}
