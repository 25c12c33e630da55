//! What every decision asks of every open job, worked out when the job changes: so that a decision need not walk through the spec,
//! logs and checkpoints of the many of which nothing is to be decided.

use crate::job::{JobState, Pause};
use crate::state::{Job, Stage};

/// Follows from the job's own records alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobFacts {
    /// First stage that is not done; none if all are.
    pub current: Option<usize>,
    /// First stage that lacks pairs and can be made.
    pub makes: Option<usize>,
    /// Some stage has an active attempt.
    pub is_placed: bool,
    /// Pairs that training of the current stage starts with, as long as its own log has fewer and may grow.
    pub lacks: Option<u64>,
    /// Its current stage starts from nothing of another job and has a log of its own, which nothing has gone wrong with; and its
    /// time is not limited.
    pub is_plain: bool,
}

impl JobFacts {
    pub(super) fn of(job: &Job) -> Self {
        let current = job.stages.iter().position(|stage| !stage.is_done());
        let spec = current.and_then(|index| job.stage_spec(index));
        let stage = current.and_then(|index| job.stages.get(index));
        let own = spec.zip(stage).filter(|(spec, _)| spec.data.source.log().is_none());
        let lacks = own.and_then(|(spec, stage)| {
            let needed = spec.data.pairs_to_start();
            (!stage.log.is_sealed() && stage.log.committed() < needed).then_some(needed)
        });
        let is_plain = own.is_some_and(|(spec, stage)| spec.init_from.is_none() && is_sound(stage))
            && job.record.spec.time_limit_minutes.is_none();
        Self {
            current,
            makes: current.and_then(|current| makes(job, current)),
            is_placed: job.stages.iter().any(|stage| stage.active_attempt().is_some()),
            lacks,
            is_plain,
        }
    }
}

/// Nothing speaks against the stage's log: no unit was given up or gave no pair, and it has not ended empty.
fn is_sound(stage: &Stage) -> bool {
    let log = &stage.log;
    log.given_up() == 0 && log.empty_in_a_row() == 0 && !(log.is_sealed() && log.committed() == 0)
}

/// The first stage of the job that lacks pairs and can be made: the current one, or the next one while the current one
/// trains. A stage whose source draws with an earlier stage's model waits for that stage's final checkpoint.
fn makes(job: &Job, current: usize) -> Option<usize> {
    match job.record.state {
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Preempting { .. }
        | JobState::Paused(Pause { curates: true, .. }) => {}
        JobState::Paused(Pause { curates: false, .. })
        | JobState::Succeeded
        | JobState::Failed { .. }
        | JobState::Cancelled { .. } => return None,
    }
    // One that takes an earlier stage's pairs waits for those to be made.
    let making = (current..=current.saturating_add(1)).filter_map(|index| job.making_stage(index));
    making
        .filter_map(|stage| Some((job.stage_index(stage.id.stage.as_str())?, stage)))
        .find(|(index, stage)| !stage.log.is_sealed() && job.source_checkpoint(*index).is_ok())
        .map(|(index, _)| index)
}
