//! When this controller learnt of what it counts time from: the start and end of attempts, and final checkpoints.
//!
//! Records carry wall time, for people. Another controller's clock may have written it, or this one's before somebody set it:
//! what is decided counts from when it was learnt instead.

use std::collections::BTreeMap;

use crate::ids::{AttemptRef, Generation, StageRef, Timestamp};
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
            Record::Checkpoint(_)
            | Record::Job(_)
            | Record::Request(_)
            | Record::Stage(_)
            | Record::Segment(_)
            | Record::Unit(_)
            | Record::Node(_)
            | Record::Cluster(_)
            | Record::Deletion(_)
            | Record::Keep(_) => {}
        }
    }

    fn entry(&mut self, stage: &StageRef, generation: Generation, now: Timestamp) -> &mut LearntStage {
        if !self.stages.contains_key(stage) && self.stages.len() >= MAX_STAGES {
            let oldest =
                self.stages.iter().min_by_key(|(_, known)| known.newest()).map(|(stage, _)| stage.clone());
            oldest.and_then(|oldest| self.stages.remove(&oldest));
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
