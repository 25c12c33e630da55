//! Bugs that are put in on purpose: each has to be found by the promise that it breaks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::deletion::KeptParts;
use crescendo_core::ids::{Generation, JobId, StageName, StageRef};
use crescendo_core::job::JobState;
use crescendo_core::records::{CheckpointRecord, JobRecord, Record, StageRecord, Write};
use crescendo_core::state::{ClusterState, Job, Stage};
use crescendo_core::transitions::{DeleteOrder, delete_job};
use crescendo_proto::records;
use crescendo_store::testing::SimulatedServer;

use crate::checker::Checker;
use crate::client::People;
use crate::trainer::RankFaults;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A job's record is removed.
    LostJob,
    /// A rank ends, and nothing was wrong with its node.
    CauselessRestart,
    /// A second job for one request.
    DoubleJob,
    /// A job that has ended runs again.
    Revived,
    /// A checkpoint of a generation that is over is registered.
    StaleCheckpoint,
    /// Two attempts on one slot.
    DoubleSlot,
    /// Explanations are empty.
    Silent,
    /// A job fails that has done nothing wrong.
    Blamed,
    /// A drained gang leaves without a checkpoint.
    ForgottenSteps,
    /// Ranks do not step, and nobody knows.
    Starved,
    /// A record that an open job needs is deleted.
    TornOpen,
    /// A job that runs is deleted.
    DeletedOpen,
    /// A record of a job that is gone stays.
    LeftBehind,
}

/// Every plant, with the promise that it breaks.
pub const PLANTS: [(Plant, u8); 13] = [
    (Plant::LostJob, 1),
    (Plant::CauselessRestart, 1),
    (Plant::DoubleJob, 2),
    (Plant::Revived, 3),
    (Plant::StaleCheckpoint, 4),
    (Plant::DoubleSlot, 8),
    (Plant::Silent, 12),
    (Plant::Blamed, 13),
    (Plant::ForgottenSteps, 14),
    (Plant::Starved, 0),
    (Plant::TornOpen, 1),
    (Plant::DeletedOpen, 1),
    (Plant::LeftBehind, 1),
];

/// Where bugs are put in.
pub struct Soil<'a> {
    pub records: &'a SimulatedServer,
    pub checker: &'a Checker,
    pub people: &'a People,
    pub ranks: Vec<&'a RankFaults>,
}

impl Soil<'_> {
    /// Puts the bug in if there is what it needs.
    pub fn plant(&self, plant: Plant) -> bool {
        let jobs = self.checker.jobs();
        match plant {
            Plant::LostJob => self.on(jobs.first(), |job| {
                self.records.tamper(&format!("jobs/{}", job.record.id), None);
            }),
            Plant::CauselessRestart => {
                self.each_rank(|faults| faults.die.store(true, Ordering::Relaxed));
                true
            }
            Plant::DoubleJob => self.on(jobs.first(), |job| {
                let id = JobId::parse("twin-abcdef").unwrap_or(job.record.id.clone());
                self.write(&Record::Job(JobRecord { id, ..job.record.clone() }));
            }),
            Plant::Revived => self.on(ended(&jobs), |job| {
                let state = JobState::Running { stage: 0 };
                self.write(&Record::Job(JobRecord { state, finished_at: None, ..job.record.clone() }));
            }),
            Plant::StaleCheckpoint => self.on(saved(&jobs), |(stage, newest)| {
                let generation = Generation(stage.generation().0 - 1);
                self.write(&Record::Checkpoint(CheckpointRecord {
                    generation,
                    step: 7777,
                    ..newest.clone()
                }));
            }),
            Plant::DoubleSlot => self.on(pair(&jobs), |(one, other)| {
                let (Some(held), Some(taken)) = (one.active_attempt(), other.active_attempt()) else {
                    return;
                };
                let mut taken = taken.clone();
                taken.ranks.clone_from(&held.ranks);
                self.write(&Record::Attempt(taken));
            }),
            Plant::Silent => {
                self.people.deaf.store(true, Ordering::Relaxed);
                true
            }
            Plant::Blamed => self.on(jobs.iter().find(|job| !job.record.state.is_terminal()), |job| {
                let state = JobState::Failed { reason: "planted".to_owned() };
                let finished_at = Some(job.record.submitted_at.plus(Duration::from_secs(1)));
                self.write(&Record::Job(JobRecord { state, finished_at, ..job.record.clone() }));
            }),
            Plant::ForgottenSteps => {
                self.each_rank(|faults| faults.forget.store(true, Ordering::Relaxed));
                true
            }
            Plant::TornOpen => self.on(open_with_checkpoint(&jobs), |checkpoint| {
                self.records.tamper(&Record::Checkpoint(checkpoint.clone()).key().to_string(), None);
            }),
            Plant::DeletedOpen => self.on(jobs.iter().find(|job| !job.record.state.is_terminal()), |job| {
                let id = &job.record.id;
                let mut ended = job.record.clone();
                (ended.state, ended.finished_at) = (JobState::Succeeded, Some(job.record.submitted_at));
                let mut state = ClusterState::default();
                let _ = state.apply(Write::Put(Record::Job(ended)));
                let order = DeleteOrder {
                    keep: KeptParts::default(),
                    spec_sha256: String::new(),
                    root: None,
                    scope: &Scope::Everything,
                    by_retention: None,
                };
                if let Ok((deletion, _)) = delete_job(&state, id, order, job.record.submitted_at) {
                    self.write(&Record::Deletion(deletion));
                }
            }),
            Plant::LeftBehind => {
                self.on(self.checker.gone().into_iter().next().zip(stage_name()), |(job, stage)| {
                    let stage = StageRef { job, stage };
                    self.write(&Record::Stage(StageRecord { stage, precision: None, ran_on: Vec::new() }));
                })
            }
            Plant::Starved => {
                self.each_rank(|faults| faults.hang.store(true, Ordering::Relaxed));
                true
            }
        }
    }

    fn each_rank(&self, fault: impl Fn(&RankFaults)) {
        self.ranks.iter().for_each(|faults| fault(faults));
    }

    fn on<T>(&self, found: Option<T>, plant: impl FnOnce(T)) -> bool {
        found.map(plant).is_some()
    }

    fn write(&self, record: &Record) {
        self.records.tamper(&record.key().to_string(), Some(records::encode(record).into()));
    }
}

fn stage_name() -> Option<StageName> {
    StageName::parse("stage-1").ok()
}

fn open_with_checkpoint(jobs: &[Job]) -> Option<&CheckpointRecord> {
    let open = jobs.iter().filter(|job| !job.record.state.is_terminal());
    open.flat_map(|job| &job.stages).filter_map(Stage::newest_checkpoint).next()
}

fn ended(jobs: &[Job]) -> Option<&Job> {
    jobs.iter().find(|job| job.record.state.is_terminal())
}

/// A stage with a checkpoint that has been tried more than once.
fn saved(jobs: &[Job]) -> Option<(&Stage, &CheckpointRecord)> {
    let stages = jobs.iter().flat_map(|job| &job.stages).filter(|stage| stage.generation().0 > 1);
    stages.filter_map(|stage| Some((stage, stage.newest_checkpoint()?))).next()
}

/// Two stages of different jobs that train.
fn pair(jobs: &[Job]) -> Option<(&Stage, &Stage)> {
    let mut training =
        jobs.iter().flat_map(|job| &job.stages).filter(|stage| stage.active_attempt().is_some());
    Some((training.next()?, training.next()?))
}
