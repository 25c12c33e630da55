//! Pictures that are drawn with a checkpoint for people to see: wanted when it is registered, drawn by a curator, kept as a tar.

use crate::file::FileRecord;
use crate::ids::{Generation, StageRef, Timestamp};
use crate::object_keys;

/// Tries to draw, after which nobody tries again.
pub const MAX_TRIES: u32 = 5;
/// Samplings of one stage that may wait to be drawn, besides the final one: where curators draw more slowly than ranks train, the
/// oldest is passed over.
pub const MAX_WANTED: usize = 2;

/// Times at which the loss is worked out on pairs that training never sees: the same for ever, so that curves can be compared. From 0,
/// data, to 1, noise.
pub const VALIDATION_TIMES: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// The pictures of one step of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingRecord {
    pub stage: StageRef,
    /// Of the checkpoint; 0 for what the stage begins with.
    pub step: u64,
    /// Of the checkpoint; 0 for what the stage begins with.
    pub generation: Generation,
    pub state: SamplingState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SamplingState {
    /// Its checkpoint is kept for it. With what went wrong last, if anything did.
    Wanted {
        tries: u32,
        failure: String,
    },
    Drawn(DrawnSamples),
    /// It is not drawn any more, and why.
    GivenUp {
        reason: String,
    },
}

/// What a curator has made.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnSamples {
    /// One of [`object_keys::samples`], by the last part of its key; none where nothing but the loss was wanted.
    pub file: Option<FileRecord>,
    pub pictures: u32,
    /// Mean loss on the pairs that the stage is validated on.
    pub validation: Option<ValidationLoss>,
    pub at: Timestamp,
}

/// The loss on pairs of subjects that training never sees.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationLoss {
    /// Over all pairs and times.
    pub mean: f64,
    pub pairs: u32,
    /// Of each of [`VALIDATION_TIMES`], over all pairs.
    pub by_time: Vec<f64>,
}

/// Which one it is: a step of a stage has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SamplingRef {
    pub stage: StageRef,
    pub step: u64,
    pub generation: Generation,
}

impl SamplingRecord {
    pub fn wanted(stage: StageRef, step: u64, generation: Generation) -> Self {
        Self { stage, step, generation, state: SamplingState::Wanted { tries: 0, failure: String::new() } }
    }

    pub fn id(&self) -> SamplingRef {
        SamplingRef { stage: self.stage.clone(), step: self.step, generation: self.generation }
    }

    pub fn is_wanted(&self) -> bool {
        matches!(self.state, SamplingState::Wanted { .. })
    }

    /// Tries that have failed.
    pub fn tries(&self) -> u32 {
        match self.state {
            SamplingState::Wanted { tries, .. } => tries,
            SamplingState::Drawn(_) | SamplingState::GivenUp { .. } => 0,
        }
    }

    /// What a curator has made of it, if any has.
    pub fn drawn(&self) -> Option<&DrawnSamples> {
        match &self.state {
            SamplingState::Drawn(drawn) => Some(drawn),
            SamplingState::Wanted { .. } | SamplingState::GivenUp { .. } => None,
        }
    }

    /// Where its pictures lie, and the file that they are in.
    pub fn pictures(&self) -> Option<(String, &FileRecord)> {
        let file = self.drawn()?.file.as_ref()?;
        let StageRef { job, stage } = &self.stage;
        Some((object_keys::samples_file(job.as_str(), stage.as_str(), &file.name), file))
    }
}
