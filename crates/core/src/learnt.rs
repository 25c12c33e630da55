//! When this controller learnt of what it counts time from: the start and end of attempts, final checkpoints, and that a job is
//! to give up its slots.
//!
//! Records carry wall time, for people. Another controller's clock may have written it, or this one's before somebody set it:
//! what is decided counts from when it was learnt instead.

use std::collections::BTreeMap;

use crate::ids::{AttemptRef, Generation, JobId, StageRef, Timestamp};
use crate::job::JobState;
use crate::records::{AttemptState, Record};

/// Stages that are remembered; beyond it the one that was learnt of longest ago is forgotten, which at most makes it wait
/// anew.
const MAX_STAGES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LearntStage {
    generation: Generation,
    began: Timestamp,
    ended: Option<Timestamp>,
    finished: Option<Timestamp>,
}

impl LearntStage {
    fn newest(&self) -> Timestamp {
        self.began.max(self.ended.unwrap_or_default()).max(self.finished.unwrap_or_default())
    }
}

/// All of it; what is not in here was so before this controller led.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learnt {
    stages: BTreeMap<StageRef, LearntStage>,
    /// Jobs that are paused or preempted; at most [`MAX_STAGES`].
    held: BTreeMap<JobId, Timestamp>,
    /// Of how many something was forgotten.
    forgotten: u64,
}

impl Learnt {
    /// A record is written, or read again.
    pub(crate) fn take(&mut self, record: &Record, now: Timestamp) {
        match record {
            Record::Attempt(record) => {
                let generation = record.attempt.generation;
                let known = self.entry(&record.attempt.stage_ref(), generation, now);
                if known.generation != generation {
                    *known = LearntStage { generation, began: now, ended: None, finished: None };
                }
                known.ended = match record.state {
                    AttemptState::Active => None,
                    AttemptState::Ended { .. } => known.ended.or(Some(now)),
                };
            }
            Record::Checkpoint(record) if record.is_final => {
                let known = self.entry(&record.stage, record.generation, now);
                known.finished = known.finished.or(Some(now));
            }
            Record::Job(record) => match record.state {
                JobState::Paused(_) | JobState::Preempting { .. } => self.hold(&record.id, now),
                JobState::Queued
                | JobState::Placing { .. }
                | JobState::Running { .. }
                | JobState::Succeeded
                | JobState::Failed { .. }
                | JobState::Cancelled { .. } => {
                    self.held.remove(&record.id);
                }
            },
            Record::Checkpoint(_)
            | Record::Request(_)
            | Record::Stage(_)
            | Record::Segment(_)
            | Record::Unit(_)
            | Record::Node(_)
            | Record::Cluster(_)
            | Record::Deletion(_)
            | Record::Keep(_)
            | Record::Sampling(_)
            | Record::Usage(_)
            | Record::Notice(_)
            | Record::Notes(_)
            | Record::Marks(_) => {}
        }
    }

    fn hold(&mut self, job: &JobId, now: Timestamp) {
        if self.held.len() >= MAX_STAGES && !self.held.contains_key(job) {
            let oldest = self.held.iter().min_by_key(|(_, since)| **since).map(|(job, _)| job.clone());
            oldest.and_then(|oldest| self.held.remove(&oldest));
            self.forgotten = self.forgotten.saturating_add(1);
        }
        self.held.entry(job.clone()).or_insert(now);
    }

    /// The controller stood still until `now`: ranks that have saved meanwhile are heard before they are judged.
    pub(crate) fn stood_still(&mut self, now: Timestamp) {
        self.held.values_mut().for_each(|since| *since = now);
    }

    /// It has become another number once what was known of some stage or job is not known any more.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Since when the job is to give up its slots.
    pub(crate) fn held(&self, job: &JobId) -> Option<Timestamp> {
        self.held.get(job).copied()
    }

    fn entry(&mut self, stage: &StageRef, generation: Generation, now: Timestamp) -> &mut LearntStage {
        if !self.stages.contains_key(stage) && self.stages.len() >= MAX_STAGES {
            let oldest =
                self.stages.iter().min_by_key(|(_, known)| known.newest()).map(|(stage, _)| stage.clone());
            oldest.and_then(|oldest| self.stages.remove(&oldest));
            self.forgotten = self.forgotten.saturating_add(1);
        }
        let new = LearntStage { generation, began: now, ended: None, finished: None };
        self.stages.entry(stage.clone()).or_insert(new)
    }

    fn of(&self, attempt: &AttemptRef) -> Option<&LearntStage> {
        self.stages.get(&attempt.stage_ref()).filter(|known| known.generation == attempt.generation)
    }

    /// When the attempt was placed.
    pub(crate) fn began(&self, attempt: &AttemptRef) -> Option<Timestamp> {
        self.of(attempt).map(|known| known.began)
    }

    /// When it was ended.
    pub(crate) fn ended(&self, attempt: &AttemptRef) -> Option<Timestamp> {
        self.of(attempt)?.ended
    }

    /// When the final checkpoint of its stage came.
    pub(crate) fn finished(&self, attempt: &AttemptRef) -> Option<Timestamp> {
        self.of(attempt)?.finished
    }
}
