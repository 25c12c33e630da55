//! The durable state, assembled from its records, and what follows from it.

mod changed;
mod facts;

pub use changed::ChangedJobs;
pub use facts::JobFacts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};

use crate::arithmetic::PrecisionChoice;
use crate::deletion::{DeletionPhase, DeletionRecord};
use crate::estimate::device_bytes;
use crate::ids::{Generation, JobId, NodeId, RequestId, StageRef, Tenant, Timestamp};
use crate::marks::MarksRecord;
use crate::note::NotesRecord;
use crate::pairlog::{PairLog, SEGMENT_UNITS};
use crate::records::{
    AttemptRecord, CheckpointRecord, ClusterRecord, JobRecord, KeepRecord, NodeRecord, Record, RecordKey,
    StageRecord, Write,
};
use crate::sampling::SamplingRecord;
use crate::spec::{OtherCheckpoint, StageSpec};
use crate::table::Table;
use crate::unreadable::{UnreadableRecord, UnreadableRecords};
use crate::usage::UsageRecord;
use crate::webhook::NoticeRecord;

/// Everything durable. Changed by [`ClusterState::apply`] alone. A clone shares what neither has changed since, so that
/// taking one costs next to nothing, however much there is.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterState {
    jobs: Table<JobId, Job>,
    /// By tenant.
    requests: OrdMap<(String, RequestId), JobId>,
    /// Those of versions in which all tenants shared them.
    shared_requests: OrdMap<RequestId, JobId>,
    /// Jobs that are being deleted, or are gone.
    deletions: OrdMap<JobId, Arc<DeletionRecord>>,
    /// Of these the ones that are not gone yet.
    deleting: BTreeSet<JobId>,
    /// Pictures that are still to be drawn.
    wanted_samplings: BTreeSet<(StageRef, u64)>,
    nodes: Table<NodeId, NodeRecord>,
    usage: BTreeMap<Tenant, UsageRecord>,
    /// What other systems have not been told yet.
    notices: OrdMap<JobId, Arc<NoticeRecord>>,
    /// What people have noted on jobs.
    notes: OrdMap<JobId, Arc<NotesRecord>>,
    cluster: Option<ClusterRecord>,
    /// Jobs that are not terminal, in the order in which they are served: what a decision has to look at.
    open: OrdSet<ServeOrder>,
    /// What is in the store and not in here.
    unreadable: UnreadableRecords,
    /// Units of a segment.
    segment_units: u64,
    changed: ChangedJobs,
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new(SEGMENT_UNITS)
    }
}

/// Priority (the highest first), then age, then id.
type ServeOrder = (i64, Timestamp, JobId);

fn serve_order(job: &JobRecord) -> ServeOrder {
    (-i64::from(job.spec.priority), job.submitted_at, job.id.clone())
}

/// A job with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub record: JobRecord,
    /// As many as the spec has.
    pub stages: Vec<Stage>,
    facts: JobFacts,
    /// Memory that the GPU of each rank has at least.
    pub device_bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub id: StageRef,
    /// What is settled of it; none before anyone was set to work on it.
    pub record: Option<StageRecord>,
    /// The newest attempt.
    pub attempt: Option<Arc<AttemptRecord>>,
    pub log: PairLog,
    /// By step, then generation.
    pub checkpoints: BTreeMap<(u64, Generation), CheckpointRecord>,
    /// Checkpoints that a person wants kept, by the same.
    pub keeps: BTreeMap<(u64, Generation), KeepRecord>,
    /// Pictures that were drawn with its checkpoints, or are to be, by step.
    pub samplings: BTreeMap<u64, Arc<SamplingRecord>>,
    /// What people have marked in the log; none before the first mark.
    pub marks: Option<Arc<MarksRecord>>,
}

/// A record that belongs to a job or stage that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {key} belongs to nothing")]
pub struct Orphan {
    pub key: String,
    /// That job; none of a record that needs no job.
    pub job: Option<JobId>,
}

/// Assembles a snapshot record by record, as they come from the store.
#[derive(Debug, Default)]
pub struct StateLoader {
    state: ClusterState,
    /// Those whose job has not come yet.
    early: Vec<Record>,
    orphans: Vec<Orphan>,
}

impl StateLoader {
    /// For a state as [`ClusterState::new`] makes it.
    pub fn new(segment_units: u64) -> Self {
        Self { state: ClusterState::new(segment_units), ..Self::default() }
    }

    /// Takes the next record. Those of units are to come after their jobs, as they do in the order of the store's keys: whatever
    /// comes before its job is kept aside until the end.
    pub fn add(&mut self, record: Record) {
        match record.key() {
            RecordKey::Job(_) => self.put(record),
            key if key.job().is_some_and(|job| self.state.job(job).is_none()) => self.early.push(record),
            _ => self.put(record),
        }
    }

    fn put(&mut self, record: Record) {
        if let Err(orphan) = self.state.apply(Write::Put(record)) {
            self.orphans.push(orphan);
        }
    }

    /// The state, and the records that belong to nothing.
    pub fn finish(mut self) -> (ClusterState, Vec<Orphan>) {
        let mut early = std::mem::take(&mut self.early);
        early.sort_by_cached_key(Record::key);
        early.into_iter().for_each(|record| self.put(record));
        (self.state, self.orphans)
    }
}

impl ClusterState {
    /// Nothing. Of a stage that is over, `segment_units` units become one record.
    pub fn new(segment_units: u64) -> Self {
        Self {
            jobs: Table::default(),
            requests: OrdMap::new(),
            shared_requests: OrdMap::new(),
            deletions: OrdMap::new(),
            deleting: BTreeSet::new(),
            wanted_samplings: BTreeSet::new(),
            nodes: Table::default(),
            usage: BTreeMap::new(),
            notices: OrdMap::new(),
            notes: OrdMap::new(),
            open: OrdSet::new(),
            cluster: None,
            unreadable: UnreadableRecords::default(),
            segment_units,
            changed: ChangedJobs::everything(),
        }
    }

    /// Assembles a snapshot, in whatever order its records come. Orphans are left out and returned.
    pub fn load(mut records: Vec<Record>) -> (Self, Vec<Orphan>) {
        records.sort_by_cached_key(Record::key);
        let mut loader = StateLoader::default();
        records.into_iter().for_each(|record| loader.add(record));
        loader.finish()
    }

    /// The same state, beside records that cannot be read.
    pub fn with_unreadable(self, unreadable: UnreadableRecords) -> Self {
        Self { unreadable, changed: ChangedJobs::everything(), ..self }
    }

    /// What has changed since this was last asked. Who asks is told of it alone.
    pub fn take_changed(&mut self) -> ChangedJobs {
        self.changed.take()
    }

    pub fn unreadable(&self) -> &UnreadableRecords {
        &self.unreadable
    }

    /// Why nothing is done for an open job: a record of it cannot be read.
    pub fn halted(&self, job: &JobId) -> Option<UnreadableRecord> {
        self.unreadable
            .of_job(job)
            .filter(|_| self.job(job).is_some_and(|job| !job.record.state.is_terminal()))
    }

    /// Takes over one change.
    pub fn apply(&mut self, write: Write) -> Result<(), Orphan> {
        match write {
            Write::Put(record) => self.put(record),
            Write::Delete(key) => {
                self.delete(&key);
                Ok(())
            }
        }
    }

    fn put(&mut self, record: Record) -> Result<(), Orphan> {
        let key = record.key();
        let orphan = || Orphan { key: key.to_string(), job: key.job().cloned() };
        match record {
            Record::Job(record) => self.put_job(record),
            Record::Request(record) => {
                // One without a tenant is of a job whose own record says the same, with its tenant.
                match record.tenant {
                    Some(tenant) => self.requests.insert((tenant.into(), record.request), record.job),
                    None => self.shared_requests.insert(record.request, record.job),
                };
            }
            Record::Stage(record) => {
                let id = record.stage.clone();
                self.change_stage(&id, |stage| stage.record = Some(record)).ok_or_else(orphan)?;
            }
            Record::Attempt(record) => {
                let id = record.attempt.stage_ref();
                self.change_stage(&id, |stage| stage.attempt = Some(Arc::new(record))).ok_or_else(orphan)?;
            }
            Record::Segment(record) => {
                let id = record.stage.clone();
                self.change_stage(&id, |stage| stage.log.put_segment(record)).ok_or_else(orphan)?;
            }
            Record::Unit(record) => {
                let id = record.stage.clone();
                self.change_stage(&id, |stage| stage.log.put(record)).ok_or_else(orphan)?;
            }
            Record::Checkpoint(record) => {
                let (id, key) = (record.stage.clone(), (record.step, record.generation));
                let put = |stage: &mut Stage| stage.checkpoints.insert(key, record);
                self.change_stage(&id, put).ok_or_else(orphan)?;
            }
            Record::Node(record) => {
                self.changed.note_everything();
                self.nodes.insert(record.id.clone(), record);
            }
            Record::Cluster(record) => self.cluster = Some(record),
            Record::Deletion(record) => self.put_deletion(record),
            Record::Usage(record) => {
                self.usage.insert(record.tenant.clone(), record);
            }
            Record::Notice(record) => {
                if !self.jobs.contains(&record.job) {
                    return Err(orphan());
                }
                self.notices.insert(record.job.clone(), Arc::new(record));
            }
            Record::Notes(record) => {
                if !self.jobs.contains(&record.job) {
                    return Err(orphan());
                }
                self.notes.insert(record.job.clone(), Arc::new(record));
            }
            Record::Marks(record) => {
                let id = record.stage.clone();
                self.change_stage(&id, |stage| stage.marks = Some(Arc::new(record))).ok_or_else(orphan)?;
            }
            Record::Keep(record) => {
                let (id, key) = (record.stage.clone(), (record.step, record.generation));
                let put = |stage: &mut Stage| stage.keeps.insert(key, record);
                self.change_stage(&id, put).ok_or_else(orphan)?;
            }
            Record::Sampling(record) => {
                let (id, step, is_wanted) = (record.stage.clone(), record.step, record.is_wanted());
                let put = |stage: &mut Stage| stage.samplings.insert(step, Arc::new(record));
                self.change_stage(&id, put).ok_or_else(orphan)?;
                if is_wanted {
                    self.wanted_samplings.insert((id, step));
                } else {
                    self.wanted_samplings.remove(&(id, step));
                }
            }
        }
        Ok(())
    }

    fn put_deletion(&mut self, record: DeletionRecord) {
        let request = (record.tenant.to_string(), record.lineage.request.clone());
        self.requests.insert(request, record.job.clone());
        match record.phase {
            DeletionPhase::Files | DeletionPhase::Records => self.deleting.insert(record.job.clone()),
            DeletionPhase::Gone { .. } => self.deleting.remove(&record.job),
        };
        self.deletions.insert(record.job.clone(), Arc::new(record));
    }

    fn put_job(&mut self, record: JobRecord) {
        self.changed.note(&record.id);
        // Known from the job too: the request's own record is written with it, but a snapshot may be torn by hand.
        self.requests.insert((record.spec.tenant.clone(), record.request.clone()), record.id.clone());
        self.leave_order(&record.id);
        if !record.state.is_terminal() {
            self.open.insert(serve_order(&record));
        }
        match self.jobs.get_mut(&record.id) {
            Some(job) => {
                job.record = record;
                job.facts = JobFacts::of(job);
            }
            None => {
                let job = Job::new(record, self.segment_units);
                self.jobs.insert(job.record.id.clone(), job);
            }
        }
    }

    /// The job is not served, or not where it was.
    fn leave_order(&mut self, id: &JobId) {
        if let Some(order) = self.job(id).map(|job| serve_order(&job.record)) {
            self.open.remove(&order);
        }
    }

    fn delete(&mut self, key: &RecordKey) {
        match key {
            RecordKey::Job(id) => {
                self.changed.note(id);
                self.leave_order(id);
                self.jobs.remove(id);
                self.wanted_samplings.retain(|(stage, _)| stage.job != *id);
                self.notices.remove(id);
                self.notes.remove(id);
            }
            RecordKey::Request(Some(tenant), id) => {
                let key = (tenant.to_string(), id.clone());
                // What stays of a job that is deleted says the same.
                if !self.requests.get(&key).is_some_and(|job| self.deletions.contains_key(job)) {
                    self.requests.remove(&key);
                }
            }
            RecordKey::Request(None, id) => {
                self.shared_requests.remove(id);
            }
            // What is settled stays so; a segment goes with its job only.
            RecordKey::Stage(_) | RecordKey::Segment(..) => {}
            RecordKey::Attempt(stage) => {
                self.change_stage(stage, |stage| stage.attempt = None);
            }
            // A unit of a log goes with its job only, positions never change: another record says the same of it.
            RecordKey::Unit(stage, unit) => {
                self.change_stage(stage, |stage| stage.log.forget_record(*unit));
            }
            RecordKey::Checkpoint(stage, step, generation) => {
                self.change_stage(stage, |stage| stage.checkpoints.remove(&(*step, *generation)));
            }
            RecordKey::Node(id) => {
                self.changed.note_everything();
                self.nodes.remove(id);
            }
            // A cluster stays what it is.
            RecordKey::Cluster => {}
            RecordKey::Usage(tenant) => {
                self.usage.remove(tenant);
            }
            RecordKey::Notice(id) => {
                self.notices.remove(id);
            }
            RecordKey::Notes(id) => {
                self.notes.remove(id);
            }
            RecordKey::Deletion(id) => {
                if let Some(record) = self.deletions.remove(id) {
                    self.requests.remove(&(record.tenant.to_string(), record.lineage.request.clone()));
                }
                self.deleting.remove(id);
            }
            RecordKey::Marks(stage) => {
                self.change_stage(stage, |stage| stage.marks = None);
            }
            RecordKey::Keep(stage, step, generation) => {
                self.change_stage(stage, |stage| stage.keeps.remove(&(*step, *generation)));
            }
            RecordKey::Sampling(stage, step) => {
                self.wanted_samplings.remove(&(stage.clone(), *step));
                self.change_stage(stage, |stage| stage.samplings.remove(step));
            }
        }
    }

    /// What `change` gives, if the stage is there; the facts of its job follow.
    fn change_stage<T>(&mut self, id: &StageRef, change: impl FnOnce(&mut Stage) -> T) -> Option<T> {
        // Asked for first: what is not there is not made one's own.
        let at = self.jobs.get(&id.job)?.stages.iter().position(|stage| stage.id.stage == id.stage)?;
        self.changed.note(&id.job);
        let job = self.jobs.get_mut(&id.job)?;
        let changed = job.stages.get_mut(at).map(change);
        job.facts = JobFacts::of(job);
        changed
    }

    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// The same, to be kept.
    pub(crate) fn job_shared(&self, id: &JobId) -> Option<&Arc<Job>> {
        self.jobs.get_shared(id)
    }

    /// Every job, by id.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs by id, from `first` on; all of them if there is none.
    pub fn jobs_from(&self, first: Option<&JobId>) -> impl Iterator<Item = &Job> {
        self.jobs.values_from(first)
    }

    pub fn stage(&self, id: &StageRef) -> Option<&Stage> {
        self.jobs.get(&id.job)?.stages.iter().find(|stage| stage.id.stage == id.stage)
    }

    /// The job that `request` of `tenant` made.
    pub fn requested(&self, tenant: &str, request: &RequestId) -> Option<&Job> {
        self.job(self.request_job(tenant, request)?)
    }

    /// Its id, whether or not the job is here.
    pub fn request_job(&self, tenant: &str, request: &RequestId) -> Option<&JobId> {
        self.requests.get(&(tenant.to_owned(), request.clone()))
    }

    /// Whether some request of `tenant` made this job, by what the requests say.
    pub fn is_of_tenant(&self, job: &JobId, tenant: &str) -> bool {
        self.requests.iter().any(|((of, _), made)| made == job && of == tenant)
    }

    /// The job that a request made which has no tenant.
    pub fn shared_request_job(&self, request: &RequestId) -> Option<&JobId> {
        self.shared_requests.get(request)
    }

    /// How far the deletion of a job is; none of a job that is to stay.
    pub fn deletion(&self, job: &JobId) -> Option<&DeletionRecord> {
        self.deletions.get(job).map(Arc::as_ref)
    }

    /// Jobs that are being deleted, and what stays of those that are gone, by id.
    pub fn deletions(&self) -> impl Iterator<Item = &DeletionRecord> {
        self.deletions.values().map(Arc::as_ref)
    }

    pub fn deletion_count(&self) -> usize {
        self.deletions.len()
    }

    /// Jobs that are being deleted and are not gone yet, by id.
    pub fn deleting(&self) -> impl Iterator<Item = &DeletionRecord> {
        self.deleting.iter().filter_map(|job| self.deletion(job))
    }

    /// Pictures that are still to be drawn, by stage and step.
    pub fn wanted_samplings(&self) -> impl Iterator<Item = &SamplingRecord> {
        self.wanted_samplings.iter().filter_map(|(stage, step)| self.sampling(stage, *step))
    }

    pub fn sampling(&self, stage: &StageRef, step: u64) -> Option<&SamplingRecord> {
        self.stage(stage)?.samplings.get(&step).map(Arc::as_ref)
    }

    /// Whose job it is or was, as long as that is known.
    pub fn tenant_of(&self, job: &JobId) -> Option<&str> {
        let present = self.jobs.get(job).map(|job| job.record.spec.tenant.as_str());
        present.or_else(|| Some(self.deletions.get(job)?.tenant.as_str()))
    }

    pub fn node(&self, id: &NodeId) -> Option<&NodeRecord> {
        self.nodes.get(id)
    }

    /// What the ended attempts of a tenant used.
    pub fn usage(&self, tenant: &Tenant) -> Option<&UsageRecord> {
        self.usage.get(tenant)
    }

    /// The same of every tenant, by name.
    pub fn usages(&self) -> impl Iterator<Item = &UsageRecord> {
        self.usage.values()
    }

    /// What is still to be told of the job's end.
    pub fn notice(&self, job: &JobId) -> Option<&NoticeRecord> {
        self.notices.get(job).map(Arc::as_ref)
    }

    /// The same of all jobs, by id.
    pub fn notices(&self) -> impl Iterator<Item = &NoticeRecord> {
        self.notices.values().map(Arc::as_ref)
    }

    /// What people have noted on the job; none if nothing.
    pub fn notes(&self, job: &JobId) -> Option<&NotesRecord> {
        self.notes.get(job).map(Arc::as_ref)
    }

    /// What is one for all; none before the first controller has led.
    pub fn cluster(&self) -> Option<&ClusterRecord> {
        self.cluster.as_ref()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// Every node by id, to be kept.
    pub(crate) fn nodes_shared(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.nodes.values_shared()
    }

    /// Whether an attempt that has not ended has ranks on the node.
    pub fn trains_on(&self, node: &NodeId) -> bool {
        let attempts = self.open_jobs().flat_map(|job| &job.stages).filter_map(Stage::active_attempt);
        attempts.into_iter().any(|attempt| attempt.runs_on(node))
    }

    /// Jobs that are not terminal, in the order in which they are served: priority, then age.
    pub fn open_jobs(&self) -> impl Iterator<Item = &Job> {
        self.open.iter().filter_map(|(_, _, id)| self.job(id))
    }

    /// The same, to be kept.
    pub(crate) fn open_shared(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.open.iter().filter_map(|(_, _, id)| self.job_shared(id))
    }

    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Checkpoint that stage `index` of a job starts from: of the stage that the spec names, else of the one before.
    /// `Ok(None)` if it starts from the base; `Err` with what is missing if that checkpoint is not there (yet).
    pub fn init_checkpoint<'a>(
        &'a self,
        job: &'a Job,
        index: usize,
    ) -> Result<Option<&'a CheckpointRecord>, String> {
        let from = job.stage_spec(index).and_then(StageSpec::starts_from);
        match from.and_then(OtherCheckpoint::parse) {
            None => job.final_checkpoint_of(from),
            Some(other) => match self.other_checkpoint(&job.record.spec.tenant, &other) {
                Some(checkpoint) => Ok(Some(checkpoint)),
                None => Err(other.to_string()),
            },
        }
    }

    /// A checkpoint that a job of the tenant may start from, if it is there and not damaged.
    pub fn other_checkpoint(&self, tenant: &str, named: &OtherCheckpoint) -> Option<&CheckpointRecord> {
        let job = self.job(&named.job).filter(|job| job.record.spec.tenant == tenant)?;
        let stage = job.stages.iter().find(|stage| stage.id.stage == named.stage)?;
        match named.step {
            None => stage.final_checkpoint(),
            Some(step) => {
                let of_step = stage.checkpoints.range((step, Generation(0))..=(step, Generation(u64::MAX)));
                of_step.map(|(_, checkpoint)| checkpoint).rfind(|checkpoint| checkpoint.damaged.is_none())
            }
        }
    }

    /// Starts the term of every lease anew: renewals of a former leader, or of while this one stood still, are not known.
    pub fn renew_leases(&mut self, now: Timestamp, lease_ttl: Duration) {
        self.each_log(|log| log.renew_leases(now, lease_ttl));
    }

    /// Counts the waits of units from `now`, when they are learnt of; none is longer than `longest`.
    pub fn restart_waits(&mut self, now: Timestamp, longest: Duration) {
        self.each_log(|log| log.restart_waits(now, longest));
    }

    fn each_log(&mut self, change: impl Fn(&mut PairLog)) {
        self.changed.note_everything();
        let jobs: Vec<JobId> = self.jobs.ids().cloned().collect();
        for id in jobs {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.stages.iter_mut().for_each(|stage| change(&mut stage.log));
        }
    }
}

impl Job {
    fn new(record: JobRecord, segment_units: u64) -> Self {
        let stages = record
            .spec
            .stages
            .iter()
            .filter_map(|spec| {
                // The parser allows no other names; a stage that has one can hold nothing.
                let stage = crate::ids::StageName::parse(&spec.name).ok()?;
                let id = StageRef { job: record.id.clone(), stage };
                let log = match spec.data.source.log() {
                    None => PairLog::new(&id, spec.data.pairs, segment_units),
                    Some(_) => PairLog::of_none(&id, segment_units),
                };
                Some(Stage {
                    id,
                    record: None,
                    attempt: None,
                    log,
                    checkpoints: BTreeMap::new(),
                    keeps: BTreeMap::new(),
                    samplings: BTreeMap::new(),
                    marks: None,
                })
            })
            .collect();
        let device_bytes = device_bytes(&record.spec);
        let mut job = Self { record, stages, facts: JobFacts::default(), device_bytes };
        job.facts = JobFacts::of(&job);
        job
    }

    pub fn facts(&self) -> &JobFacts {
        &self.facts
    }

    /// Sorts first what is served first.
    pub fn order(&self) -> (i64, Timestamp, &JobId) {
        (-i64::from(self.record.spec.priority), self.record.submitted_at, &self.record.id)
    }

    /// How long its gangs may still hold slots, if that is limited. `now` is the time that records carry.
    pub fn time_left(&self, now: Timestamp) -> Option<Duration> {
        let minutes = self.record.spec.time_limit_minutes?;
        Some(Duration::from_secs(u64::from(minutes) * 60).saturating_sub(self.ran(now)))
    }

    /// How long its gangs have held slots.
    pub fn ran(&self, now: Timestamp) -> Duration {
        let attempts = self.stages.iter().filter_map(|stage| stage.attempt.as_ref());
        attempts.fold(Duration::ZERO, |sum, attempt| sum.saturating_add(attempt.ran(now)))
    }

    /// First stage that is not done; `None` if all are.
    pub fn current_stage(&self) -> Option<usize> {
        self.facts.current
    }

    pub fn stage_spec(&self, index: usize) -> Option<&StageSpec> {
        self.record.spec.stages.get(index)
    }

    pub fn stage_index(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.id.stage.as_str() == name)
    }

    /// Final checkpoint that the source of stage `index` draws with, or whose stage's pairs it takes: `Ok(None)` if it
    /// needs none, `Err` with the stage's name if that checkpoint is not there (yet).
    pub fn source_checkpoint(&self, index: usize) -> Result<Option<&CheckpointRecord>, String> {
        let source = self.stage_spec(index).map(|spec| &spec.data.source);
        self.final_checkpoint_of(source.and_then(|source| source.drawn_by().or(source.reads_log_of())))
    }

    fn final_checkpoint_of(&self, stage: Option<&str>) -> Result<Option<&CheckpointRecord>, String> {
        let Some(from) = stage else { return Ok(None) };
        let stage = self
            .stages
            .iter()
            .find(|stage| stage.id.stage.as_str() == from)
            .ok_or_else(|| from.to_owned())?;
        stage.final_checkpoint().map(Some).ok_or_else(|| from.to_owned())
    }
}

impl Stage {
    /// What `precision: auto` has come to for it.
    pub fn precision_choice(&self) -> Option<&PrecisionChoice> {
        self.record.as_ref()?.precision.as_ref()
    }

    /// Someone has worked on it.
    pub fn is_begun(&self) -> bool {
        self.log.is_begun() || self.attempt.is_some()
    }

    /// Bytes of its shards and checkpoints in the object store, as registered.
    pub fn stored_bytes(&self) -> u64 {
        let files = self.checkpoints.values().flat_map(|checkpoint| &checkpoint.files);
        files.fold(self.log.stored_bytes(), |sum, file| sum.saturating_add(file.size_bytes))
    }

    pub fn is_done(&self) -> bool {
        self.final_checkpoint().is_some()
    }

    /// The undamaged final checkpoint.
    pub fn final_checkpoint(&self) -> Option<&CheckpointRecord> {
        self.checkpoints.values().rev().find(|checkpoint| checkpoint.is_final && checkpoint.damaged.is_none())
    }

    /// The checkpoint to go on from.
    pub fn newest_checkpoint(&self) -> Option<&CheckpointRecord> {
        self.checkpoints.values().rev().find(|checkpoint| checkpoint.damaged.is_none())
    }

    /// Generation of the newest attempt; 0 before the first.
    pub fn generation(&self) -> Generation {
        self.attempt.as_ref().map_or(Generation(0), |attempt| attempt.attempt.generation)
    }

    pub fn active_attempt(&self) -> Option<&AttemptRecord> {
        self.active_shared().map(Arc::as_ref)
    }

    /// The same, to be kept.
    pub(crate) fn active_shared(&self) -> Option<&Arc<AttemptRecord>> {
        self.attempt.as_ref().filter(|attempt| attempt.is_active())
    }
}
