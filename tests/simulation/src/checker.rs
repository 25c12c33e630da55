//! The promises of the design's section 9 that speak of the control plane, by their number. Every commit of the store is
//! looked at, and what nodes and people see beside it.
//!
//! | promise | looked at |
//! |---|---|
//! | 1 | an accepted job stays, and of an open one every record and file that it needs; an attempt ends only for a reason that lies with its job, its nodes or a person |
//! | 1 | what a person deletes has ended; its records go after its files, and at the end there is none of either |
//! | 2 | one request id, one job |
//! | 3 | a job that has ended stays as it ended |
//! | 4 | generations and leases only grow; a checkpoint is of the newest generation; a unit that is done stays as it is, by itself and in its segment |
//! | 8 | no slot is held twice, in the records and on the nodes; gangs are whole |
//! | 11 | nobody calls the store without pause |
//! | 12 | a job that waits says why; calls are answered within their limit |
//! | 13 | no job fails before its time limit: none here is to blame for anything |
//! | 14 | who was drained goes on from the step at which it left; every attempt from its newest checkpoint |
//! | 0 | liveness: once faults have stopped, every job ends |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_core::deletion::{DeletionPhase, DeletionRecord};
use crescendo_core::ids::{AttemptRef, JobId, NodeId, StageRef, Timestamp};
use crescendo_core::invariants::check_invariants;
use crescendo_core::job::JobState;
use crescendo_core::leftovers::{CollectRules, ListedObject, leftovers};
use crescendo_core::object_keys;
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, JobRecord, Record, RecordKey, UnitRecord, Write,
};
use crescendo_core::segment::{SegmentRecord, UnitSums};
use crescendo_core::state::{ClusterState, Job};
use crescendo_proto::records;
use crescendo_store::Revision;
use crescendo_store::testing::Change;

use crate::trace::Trace;

/// A node that is out of sight for so much of [`SIGHT`] may be taken for lost.
const OUT_OF_SIGHT: Duration = Duration::from_secs(45);
const SIGHT: Duration = Duration::from_secs(120);
/// A fault of a node may end an attempt that began this much later.
const AFTERMATH: Duration = Duration::from_secs(10);

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in the design; 0 for liveness.
    pub promise: u8,
    pub at: Duration,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "promise {} at {:.3} s: {}", self.promise, self.at.as_secs_f64(), self.what)
    }
}

/// What lies in the object store.
pub struct StoredObject {
    pub key: String,
    /// It was written when its job was being deleted already.
    pub is_late: bool,
}

#[derive(Default)]
struct Facts {
    state: ClusterState,
    keys: BTreeMap<String, RecordKey>,
    /// Units that are done, as their records say, and the segments that hold them, both by stage and number.
    done: BTreeMap<(StageRef, u64), UnitRecord>,
    segments: BTreeMap<(StageRef, u64), SegmentRecord>,
    /// Jobs by request id, as people were told.
    accepted: BTreeMap<String, String>,
    requests: BTreeMap<String, JobId>,
    began: BTreeMap<AttemptRef, Duration>,
    /// Step at which a drained gang left, by job and stage.
    drained: BTreeMap<(String, String), u64>,
    /// Job whose rank holds a slot of a node.
    slots: BTreeMap<(String, u32), String>,
    /// When something was wrong with a node itself; `None` while it is.
    node_faults: BTreeMap<String, Vec<(Duration, Option<Duration>)>>,
    cuts: BTreeMap<String, Vec<(Duration, Duration)>>,
    /// When there was another process of a node's name.
    twins: BTreeMap<String, Vec<(Duration, Duration)>>,
    violations: Vec<Violation>,
    commits: u64,
    last_end: Duration,
}

/// Clones are the same checker.
#[derive(Clone)]
pub struct Checker {
    facts: Arc<Mutex<Facts>>,
    trace: Trace,
}

impl Checker {
    pub fn new(trace: Trace) -> Self {
        Self { facts: Arc::default(), trace }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// When a job last ended.
    pub fn last_end(&self) -> Duration {
        self.lock().last_end
    }

    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    pub fn broken(&self, promise: u8, what: impl Into<String>) {
        let (at, what) = (self.trace.elapsed(), what.into());
        self.trace.note(format_args!("VIOLATION of promise {promise}: {what}"));
        self.lock().violations.push(Violation { promise, at, what });
    }

    /// Something is wrong with a node itself from now on, for as long as that.
    pub fn node_fault(&self, node: &str, lasts: Duration) {
        let now = self.trace.elapsed();
        let fault = (now, Some(now + lasts));
        self.lock().node_faults.entry(node.to_owned()).or_default().push(fault);
    }

    /// A node may be out of sight from now on, for as long as that.
    pub fn cut(&self, node: &str, lasts: Duration) {
        let now = self.trace.elapsed();
        self.lock().cuts.entry(node.to_owned()).or_default().push((now, now + lasts));
    }

    /// There is another process of the node's name from now on, for as long as that.
    pub fn twin(&self, node: &str, lasts: Duration) {
        let now = self.trace.elapsed();
        self.lock().twins.entry(node.to_owned()).or_default().push((now, now + lasts));
    }

    /// Whether the process of this incarnation is the one that goes by the node's name.
    pub fn is_known_as(&self, node: &str, incarnation: &str) -> bool {
        let node = NodeId::parse(node).ok();
        node.is_some_and(|node| {
            self.lock().state.node(&node).is_some_and(|known| known.incarnation.as_str() == incarnation)
        })
    }

    pub fn slot_taken(&self, node: &str, slot: u32, job: &str) {
        let other = self.lock().slots.insert((node.to_owned(), slot), job.to_owned());
        if let Some(other) = other {
            self.broken(8, format!("slot {slot} of {node} is given to {job} while {other} has it"));
        }
    }

    pub fn slot_left(&self, node: &str, slot: u32) {
        self.lock().slots.remove(&(node.to_owned(), slot));
    }

    /// All ranks of a node are gone.
    pub fn node_died(&self, node: &str) {
        self.lock().slots.retain(|(of, _), _| of != node);
    }

    /// A gang has saved this step and leaves.
    pub fn drained(&self, job: &str, stage: &str, step: u64) {
        self.lock().drained.insert((job.to_owned(), stage.to_owned()), step);
    }

    /// A person was told that a request is this job.
    pub fn accepted(&self, request: &str, job: &str) {
        let before = self.lock().accepted.insert(request.to_owned(), job.to_owned());
        if let Some(before) = before.filter(|before| before != job) {
            self.broken(2, format!("request {request} is job {before} and job {job}"));
        }
    }

    /// A person was told why a job is where it is.
    pub fn explained(&self, job: &str, cause: &str, summary: &str) {
        if cause.is_empty() || summary.is_empty() {
            self.broken(12, format!("job {job} does not say what it waits for: {cause:?}, {summary:?}"));
        }
    }

    /// A call was answered, or not, after this long.
    pub fn answered(&self, call: &str, after: Duration, limit: Duration) {
        if after > limit {
            self.broken(12, format!("{call} took {:.1} s", after.as_secs_f64()));
        }
    }

    /// Accepted jobs that have not ended.
    pub fn open_jobs(&self) -> Vec<String> {
        let facts = self.lock();
        let is_open = |id: &&String| {
            let job = JobId::parse(id).ok().and_then(|id| facts.state.job(&id).cloned());
            let is_deleted = JobId::parse(id).is_ok_and(|id| facts.state.deletion(&id).is_some());
            job.is_none_or(|job| !job.record.state.is_terminal()) && !is_deleted
        };
        facts.accepted.values().filter(is_open).cloned().collect()
    }

    /// Jobs that are being deleted and not gone.
    pub fn deleting(&self) -> Vec<String> {
        self.lock().state.deleting().map(|deletion| deletion.job.to_string()).collect()
    }

    /// Jobs that are gone.
    pub fn gone(&self) -> Vec<JobId> {
        let facts = self.lock();
        let is_gone = |deletion: &&DeletionRecord| matches!(deletion.phase, DeletionPhase::Gone { .. });
        facts.state.deletions().filter(is_gone).map(|deletion| deletion.job.clone()).collect()
    }

    /// Whether a job is being deleted, or is gone.
    pub fn is_deleted(&self, job: &str) -> bool {
        let job = JobId::parse(job).ok();
        job.is_some_and(|job| self.lock().state.deletion(&job).is_some())
    }

    /// Whether a job is there and has not ended.
    pub fn is_open(&self, job: &str) -> bool {
        let job = JobId::parse(job).ok();
        job.is_some_and(|job| self.lock().state.job(&job).is_some_and(|job| !job.record.state.is_terminal()))
    }

    /// What the first controller has called the cluster.
    pub fn cluster_id(&self) -> Option<String> {
        self.lock().state.cluster().map(|cluster| cluster.id.clone())
    }

    /// A curator has removed an object.
    pub fn removed(&self, key: &str) {
        let job = object_keys::job_of(key).and_then(|job| JobId::parse(job).ok());
        let wrong = {
            let facts = self.lock();
            let deletion = job.as_ref().and_then(|job| facts.state.deletion(job));
            match (deletion, job.as_ref().and_then(|job| object_keys::part_of(job.as_str(), key))) {
                (Some(deletion), Some(part)) if !deletion.keep.keeps(part) => None,
                (Some(_), _) => Some(format!("{key} is removed and was to be kept")),
                (None, _) => Some(format!("{key} is removed and its job is not being deleted")),
            }
        };
        if let Some(wrong) = wrong {
            self.broken(1, wrong);
        }
    }

    /// At the end: nothing is left of deleted jobs but what was kept. How many there are; `objects_of` gives what lies in the object
    /// store of a job.
    pub fn check_deleted(&self, objects_of: impl Fn(&JobId) -> Vec<StoredObject>) -> usize {
        let gone: Vec<DeletionRecord> = {
            let facts = self.lock();
            let is_gone = |deletion: &&DeletionRecord| matches!(deletion.phase, DeletionPhase::Gone { .. });
            facts.state.deletions().filter(is_gone).cloned().collect()
        };
        for DeletionRecord { job, keep, lineage, .. } in &gone {
            let left: Vec<String> = {
                let facts = self.lock();
                let is_left = |key: &&RecordKey| match key {
                    RecordKey::Deletion(_) => false,
                    RecordKey::Request(_, request) => *request == lineage.request,
                    key => key.job() == Some(job),
                };
                facts.keys.values().filter(is_left).map(ToString::to_string).collect()
            };
            for key in left {
                self.broken(1, format!("{key} is left of a deleted job"));
            }
            let is_kept =
                |key: &str| object_keys::part_of(job.as_str(), key).is_some_and(|part| keep.keeps(part));
            for StoredObject { key, is_late } in objects_of(job) {
                // What comes late is a leftover, which the next collection takes.
                let is_left = is_late && self.is_leftover(&key);
                if !is_kept(&key) && !is_left {
                    self.broken(1, format!("{key} is left of a deleted job"));
                }
            }
        }
        gone.len()
    }

    /// Whether a collection would take the object some day.
    fn is_leftover(&self, key: &str) -> bool {
        let object = ListedObject { key: key.to_owned(), size_bytes: 1, modified: Timestamp(0) };
        let rules = CollectRules { grace: Duration::ZERO, owns_root: false };
        !leftovers(&self.lock().state, &[object], rules, Timestamp(u64::MAX)).is_empty()
    }

    /// How many jobs ended in each state.
    pub fn outcomes(&self) -> BTreeMap<&'static str, usize> {
        let facts = self.lock();
        facts.state.jobs().fold(BTreeMap::new(), |mut counts, job| {
            *counts.entry(job.record.state.name()).or_default() += 1;
            counts
        })
    }

    /// The newest records, for planted faults.
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().state.jobs().cloned().collect()
    }

    /// Looks at one commit.
    pub fn commit(&self, revision: Revision, changes: &[Change]) {
        let now = self.trace.elapsed();
        let mut broken = Vec::new();
        let mut names = Vec::new();
        {
            let mut facts = self.lock();
            facts.commits += 1;
            let mut over = Vec::new();
            for change in changes.iter().filter(|change| !change.key.starts_with("leaders/")) {
                facts.change(now, change, &mut over, &mut broken);
            }
            for attempt in &over {
                facts.check_end(now, attempt, &mut broken);
            }
            for wrong in check_invariants(&facts.state) {
                broken.push((promise_of(&wrong), wrong));
            }
        }
        for change in changes {
            names.push(if change.value.is_some() { change.key.clone() } else { format!("-{}", change.key) });
        }
        self.trace.note(format_args!("commit {revision} {}", names.join(" ")));
        for (promise, what) in broken {
            self.broken(promise, what);
        }
    }
}

/// The promise that an invariant of the records stands for.
fn promise_of(wrong: &str) -> u8 {
    if wrong.contains("is held by") || wrong.contains(" ranks") || wrong.contains("active attempts") {
        8
    } else if wrong.contains("generation") {
        4
    } else if wrong.contains("end time") || wrong.contains("with an active attempt") {
        3
    } else {
        1
    }
}

type Broken = Vec<(u8, String)>;

impl Facts {
    fn change(&mut self, now: Duration, change: &Change, over: &mut Vec<AttemptRecord>, broken: &mut Broken) {
        let Some(value) = &change.value else {
            if let Some(key) = self.keys.remove(&change.key) {
                self.check_removal(&key, broken);
                let _ = self.state.apply(Write::Delete(key));
            }
            return;
        };
        let record = match records::decode(value) {
            Ok(record) => record,
            Err(error) => {
                broken.push((13, format!("{} is written and cannot be read: {error}", change.key)));
                return;
            }
        };
        match &record {
            Record::Job(job) => {
                if job.state.is_terminal() {
                    self.last_end = now;
                }
                self.check_job(job, broken);
            }
            Record::Attempt(attempt) => self.check_attempt(now, attempt, over, broken),
            Record::Segment(segment) => self.check_segment(segment, broken),
            Record::Unit(unit) => self.check_unit(unit, broken),
            Record::Checkpoint(checkpoint) => self.check_checkpoint(checkpoint, broken),
            Record::Deletion(deletion) => self.check_deletion(deletion, broken),
            Record::Request(_)
            | Record::Stage(_)
            | Record::Node(_)
            | Record::Cluster(_)
            | Record::Keep(_)
            | Record::Sampling(_)
            | Record::Usage(_)
            | Record::Notice(_)
            | Record::Notes(_)
            | Record::Marks(_) => {}
        }
        self.keys.insert(change.key.clone(), record.key());
        if let Err(orphan) = self.state.apply(Write::Put(record)) {
            broken.push((1, orphan.to_string()));
        }
    }

    fn check_job(&mut self, job: &JobRecord, broken: &mut Broken) {
        let request = format!("{}/{}", job.spec.tenant, job.request);
        if let Some(other) =
            self.requests.insert(request.clone(), job.id.clone()).filter(|other| *other != job.id)
        {
            broken.push((2, format!("request {request} has made {other} and {}", job.id)));
        }
        if let Some(before) = self.state.job(&job.id)
            && before.record.state.is_terminal()
            && before.record.state != job.state
        {
            broken.push((3, format!("{} was {} and is {}", job.id, before.record.state, job.state)));
        }
        if let JobState::Failed { reason } = &job.state
            && !self.is_at_its_time_limit(job)
        {
            broken.push((13, format!("{} failed: {reason}", job.id)));
        }
    }

    /// Whether the gangs of an ended job, which have all left, have held slots for as long as its spec allows.
    fn is_at_its_time_limit(&self, ended: &JobRecord) -> bool {
        let left = |job: &Job| job.time_left(ended.finished_at.unwrap_or(ended.submitted_at));
        self.state.job(&ended.id).and_then(left) == Some(Duration::ZERO)
    }

    fn check_attempt(
        &mut self,
        now: Duration,
        record: &AttemptRecord,
        over: &mut Vec<AttemptRecord>,
        broken: &mut Broken,
    ) {
        let attempt = &record.attempt;
        let stage = self.state.stage(&attempt.stage_ref());
        let before = stage.and_then(|stage| stage.attempt.as_ref());
        let newest = stage.and_then(|stage| stage.newest_checkpoint()).map(|newest| newest.step);
        match before {
            Some(before) if before.attempt.generation > attempt.generation => {
                broken.push((4, format!("{attempt} is written over {}", before.attempt)));
            }
            Some(before) if before.attempt == *attempt && before.ranks != record.ranks => {
                broken.push((4, format!("{attempt} has other ranks than it had")));
            }
            Some(before) if before.attempt == *attempt && !before.is_active() && record.is_active() => {
                broken.push((4, format!("{attempt} was over and is not")));
            }
            Some(before) if before.attempt == *attempt && before.is_active() && !record.is_active() => {
                over.push(record.clone());
            }
            Some(_) | None => {}
        }
        if self.began.contains_key(attempt) {
            return;
        }
        self.began.insert(attempt.clone(), now);
        let from = record.resume_from.as_ref().map(|from| from.step);
        if from != newest {
            broken.push((
                14,
                format!("{attempt} goes on from {from:?}, and the newest checkpoint is {newest:?}"),
            ));
        }
        let key = (attempt.job.to_string(), attempt.stage.to_string());
        if let Some(left_at) = self.drained.remove(&key).filter(|left_at| from.unwrap_or(0) < *left_at) {
            broken.push((14, format!("{attempt} goes on from {from:?} and was drained at step {left_at}")));
        }
    }

    fn check_unit(&mut self, unit: &UnitRecord, broken: &mut Broken) {
        let name = format!("unit {} of {}", unit.unit, unit.stage);
        let log = self.state.stage(&unit.stage).map(|stage| &stage.log);
        let lease = log.and_then(|log| log.open_unit(unit.unit)).map_or(0, |unit| unit.lease_generation);
        if lease > unit.lease_generation {
            broken.push((4, format!("{name} goes back to lease {}", unit.lease_generation)));
        }
        let key = (unit.stage.clone(), unit.unit);
        if self.done.get(&key).is_some_and(|done| done != unit) {
            broken.push((4, format!("{name} was done and is another now")));
        }
        if unit.is_done() {
            self.done.insert(key, unit.clone());
        }
    }

    /// A segment says of its units what their own records have said.
    fn check_segment(&mut self, segment: &SegmentRecord, broken: &mut Broken) {
        let name = format!("segment {} of {}", segment.first_unit, segment.stage);
        let key = |unit| (segment.stage.clone(), unit);
        let Some(job) = self.state.job(&segment.stage.job) else { return };
        if !job.record.state.is_terminal()
            && !self.state.stage(&segment.stage).is_some_and(|stage| stage.is_done())
        {
            broken.push((4, format!("{name} is written while its stage is worked on")));
        }
        let mut sums = UnitSums::default();
        for unit in segment.first_unit..segment.end() {
            let done = self.done.get(&key(unit)).and_then(|record| Some((record, record.result()?)));
            let Some((record, result)) = done else {
                broken.push((4, format!("{name} holds unit {unit}, which is not done")));
                continue;
            };
            if segment.shard(unit).as_ref() != Some(&result.shard) {
                broken.push((4, format!("{name} says something else of the shard of unit {unit}")));
            }
            sums.count(record, result);
        }
        if sums != segment.sums {
            broken.push((4, format!("{name} has other sums than its units")));
        }
        self.segments.insert(key(segment.first_unit), segment.clone());
    }

    /// Records go for a reason: their job is being deleted and its files are gone, or another record says the same.
    fn check_removal(&self, key: &RecordKey, broken: &mut Broken) {
        let phase = key.job().and_then(|job| self.state.deletion(job)).map(|deletion| deletion.phase);
        let of_deleted = phase == Some(DeletionPhase::Records);
        match key {
            RecordKey::Job(job) if !matches!(phase, Some(DeletionPhase::Gone { .. })) => {
                broken.push((1, format!("job {job} is lost")));
            }
            RecordKey::Segment(stage, first) if !of_deleted => {
                broken.push((1, format!("segment {first} of {stage} is lost")));
            }
            RecordKey::Unit(stage, unit) if !of_deleted => self.check_unit_removal(stage, *unit, broken),
            RecordKey::Attempt(_) | RecordKey::Stage(_) if !of_deleted => {
                broken.push((1, format!("{key} is lost")));
            }
            RecordKey::Checkpoint(stage, step, generation) if !of_deleted => {
                let stage = self.state.stage(stage);
                let newest = stage.and_then(|stage| stage.newest_checkpoint());
                if newest.is_some_and(|newest| (newest.step, newest.generation) == (*step, *generation)) {
                    broken.push((1, format!("{key} is lost, and is the newest of its stage")));
                }
            }
            RecordKey::Request(_, request) => {
                let mut deletions = self.state.deletions();
                if !deletions.any(|deletion| deletion.lineage.request == *request) {
                    broken.push((2, format!("{key} is lost")));
                }
            }
            RecordKey::Deletion(_) | RecordKey::Usage(_) => broken.push((1, format!("{key} is lost"))),
            RecordKey::Job(_)
            | RecordKey::Segment(..)
            | RecordKey::Unit(..)
            | RecordKey::Attempt(_)
            | RecordKey::Stage(_)
            | RecordKey::Checkpoint(..)
            | RecordKey::Keep(..)
            | RecordKey::Sampling(..)
            | RecordKey::Notice(_)
            | RecordKey::Notes(_)
            | RecordKey::Marks(_)
            | RecordKey::Node(_)
            | RecordKey::Cluster => {}
        }
    }

    /// Deletions begin with jobs that have ended, and end when no record is left.
    fn check_deletion(&self, deletion: &DeletionRecord, broken: &mut Broken) {
        let id = &deletion.job;
        let before = self.state.deletion(id).map(|before| before.phase);
        let has_ended = self.state.job(id).is_some_and(|job| job.record.state.is_terminal());
        let wrong = match (before, deletion.phase) {
            (None, DeletionPhase::Files) if has_ended => None,
            (None, _) => Some("its job has not ended".to_owned()),
            (Some(DeletionPhase::Files), DeletionPhase::Files | DeletionPhase::Records) => None,
            (Some(DeletionPhase::Gone { .. }), DeletionPhase::Files) => None,
            (Some(DeletionPhase::Records), DeletionPhase::Gone { .. }) => {
                let is_other = |key: &&RecordKey| !matches!(key, RecordKey::Job(_) | RecordKey::Deletion(_));
                let mut left = self.keys.values().filter(is_other).filter(|key| key.job() == Some(id));
                left.next().map(|key| format!("{key} is left"))
            }
            (Some(before), after) => Some(format!("it was {before:?} and is {after:?}")),
        };
        broken.extend(wrong.map(|wrong| (1, format!("the deletion of {id}: {wrong}"))));
    }

    /// The record of a unit goes only when a segment holds it.
    fn check_unit_removal(&self, stage: &StageRef, unit: u64, broken: &mut Broken) {
        let before = self.segments.range(..=(stage.clone(), unit)).next_back();
        if !before.is_some_and(|((of, _), segment)| of == stage && unit < segment.end()) {
            broken.push((4, format!("unit {unit} of {stage} is deleted, and no segment holds it")));
        }
    }

    fn check_checkpoint(&self, checkpoint: &CheckpointRecord, broken: &mut Broken) {
        let Some(stage) = self.state.stage(&checkpoint.stage) else { return };
        let known = stage
            .checkpoints
            .values()
            .any(|known| known.generation == checkpoint.generation && known.step == checkpoint.step);
        if !known && checkpoint.generation != stage.generation() {
            broken.push((
                4,
                format!(
                    "a checkpoint of {} generation {} is taken while {} is the newest",
                    checkpoint.stage,
                    checkpoint.generation,
                    stage.generation()
                ),
            ));
        }
    }

    /// Whether there was a reason for an attempt to end that is not the controller's.
    fn check_end(&self, now: Duration, record: &AttemptRecord, broken: &mut Broken) {
        let AttemptState::Ended { reason, .. } = &record.state else { return };
        let stage: StageRef = record.attempt.stage_ref();
        let Some(job) = self.state.job(&stage.job) else { return };
        let halted = matches!(job.record.state, JobState::Paused(_) | JobState::Preempting { .. });
        let is_done = self.state.stage(&stage).is_some_and(|stage| stage.is_done());
        if job.record.state.is_terminal()
            || halted
            || is_done
            || reason.contains("drain")
            || reason.contains("the job makes room")
            || reason.contains("the job is paused")
            || reason.contains("was stopped")
        {
            return;
        }
        let nodes: BTreeSet<&str> = record.ranks.iter().map(|rank| rank.node.as_str()).collect();
        let began = self.began.get(&record.attempt).copied().unwrap_or_default();
        let had_fault = |node: &&str| {
            let faults = self.node_faults.get(*node).into_iter().flatten();
            faults.clone().any(|(from, to)| *from <= now && to.is_none_or(|to| to + AFTERMATH >= began))
        };
        let out_of_sight = |node: &&str| {
            let cuts = self.cuts.get(*node).into_iter().flatten();
            let within = |(from, to): &(Duration, Duration)| {
                let from = (*from).max(now.saturating_sub(SIGHT));
                (*to).min(now).saturating_sub(from)
            };
            cuts.map(within).sum::<Duration>() >= OUT_OF_SIGHT
        };
        // Out of sight for a little, with another process of its name there: it may have been started again.
        let displaced = |node: &&str| {
            let of = |times: &BTreeMap<String, Vec<(Duration, Duration)>>| {
                times.get(*node).cloned().unwrap_or_default()
            };
            let (twins, cuts) = (of(&self.twins), of(&self.cuts));
            let overlap = |twin: &(Duration, Duration)| {
                cuts.iter().any(|cut| cut.0 <= twin.1 && twin.0 <= cut.1 + AFTERMATH)
            };
            twins.iter().any(|twin| twin.0 <= now && twin.1 + AFTERMATH >= began && overlap(twin))
        };
        let excused = |node: &&str| had_fault(node) || out_of_sight(node) || displaced(node);
        if !nodes.iter().any(excused) {
            broken.push((1, format!("{} has ended without a fault of its nodes: {reason}", record.attempt)));
        }
    }
}
