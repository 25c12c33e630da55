//! Pictures of checkpoints: wanted with their checkpoint, handed in once, given up after a few tries.

use crate::error::RequestError;
use crate::ids::{Generation, StageRef, Timestamp};
use crate::object_keys::{self, JobObject};
use crate::records::{CheckpointRecord, Record, Write};
use crate::sampling::{DrawnSamples, MAX_TRIES, MAX_WANTED, SamplingRecord, SamplingRef, SamplingState};
use crate::state::{ClusterState, Job, Stage};
use crate::transitions::digests::check_sha256;
use crate::transitions::jobs::one_line;

/// What is to be drawn now that `checkpoint` is there, and what is passed over for it.
pub(super) fn samplings_with(job: &Job, stage: &Stage, checkpoint: &CheckpointRecord) -> Vec<Write> {
    let spec = &job.record.spec;
    let index = job.stage_index(stage.id.stage.as_str());
    let Some((samples, stage_spec)) =
        spec.samples.as_ref().zip(index.and_then(|index| job.stage_spec(index)))
    else {
        return Vec::new();
    };
    if !samples.are_due(checkpoint.step, checkpoint.is_final) || !samples.has_any_of(stage_spec) {
        return Vec::new();
    }
    let mut wanted = Vec::new();
    // What the curve of the first stage begins with; later stages begin with the end of the one before.
    if stage.samplings.is_empty() && stage_spec.starts_from().is_none() && spec.model.weights.is_some() {
        wanted.push(SamplingRecord::wanted(stage.id.clone(), 0, Generation(0)));
    }
    if stage.samplings.get(&checkpoint.step).is_none_or(|known| known.drawn().is_none()) {
        wanted.push(SamplingRecord::wanted(stage.id.clone(), checkpoint.step, checkpoint.generation));
    }
    let waiting = stage.samplings.values().filter(|known| known.is_wanted() && known.step > 0);
    let waiting: Vec<_> = waiting.filter(|known| known.step != checkpoint.step).collect();
    let too_many = (waiting.len() + 1).saturating_sub(MAX_WANTED);
    let passed_over = waiting.into_iter().take(too_many).map(|known| SamplingRecord {
        state: SamplingState::GivenUp {
            reason: format!("a newer checkpoint came first, that of step {}", checkpoint.step),
        },
        ..SamplingRecord::clone(known)
    });
    let records: Vec<SamplingRecord> = passed_over.chain(wanted).collect();
    records.into_iter().map(|record| Write::Put(Record::Sampling(record))).collect()
}

fn find<'a>(state: &'a ClusterState, id: &SamplingRef) -> Result<&'a SamplingRecord, RequestError> {
    state.unreadable().check_job(&id.stage.job)?;
    let found = state.sampling(&id.stage, id.step).filter(|found| found.generation == id.generation);
    let what = || format!("sampling of step {} of {}, generation {}", id.step, id.stage, id.generation.0);
    let found = found.ok_or_else(|| RequestError::NotFound { what: what() })?;
    match state.deletion(&id.stage.job) {
        Some(_) => Err(RequestError::TooLate { what: format!("job {} is being deleted", id.stage.job) }),
        None => Ok(found),
    }
}

/// Takes in what a curator has drawn. Once: what is drawn already stays. What was passed over meanwhile is taken in too.
pub fn commit_samples(
    state: &ClusterState,
    id: &SamplingRef,
    drawn: DrawnSamples,
    now: Timestamp,
) -> Result<Vec<Write>, RequestError> {
    let known = find(state, id)?;
    if known.drawn().is_some() {
        return Ok(Vec::new());
    }
    if let Some(file) = &drawn.file {
        let StageRef { job, stage } = &known.stage;
        let key = object_keys::samples_file(job.as_str(), stage.as_str(), &file.name);
        let expected = JobObject::Samples {
            stage: stage.as_str(),
            name: &file.name,
            step: known.step,
            generation: known.generation.0,
        };
        if object_keys::job_object(job.as_str(), &key) != expected {
            let message = format!("must be of step {} and generation {}", known.step, known.generation.0);
            return Err(RequestError::invalid("drawn.file.name", message));
        }
        check_sha256("drawn.file.sha256", &file.sha256)?;
    }
    let losses = drawn.validation.iter().flat_map(|loss| loss.by_time.iter().chain([&loss.mean]));
    if losses.into_iter().any(|loss| !loss.is_finite()) {
        return Err(RequestError::invalid("drawn.validation", "is not finite"));
    }
    let state = SamplingState::Drawn(DrawnSamples { at: now, ..drawn });
    Ok(vec![Write::Put(Record::Sampling(SamplingRecord { state, ..known.clone() }))])
}

/// Takes note of a try that has failed.
pub fn fail_samples(
    state: &ClusterState,
    id: &SamplingRef,
    reason: &str,
) -> Result<Vec<Write>, RequestError> {
    let known = find(state, id)?;
    let SamplingState::Wanted { tries, .. } = known.state else { return Ok(Vec::new()) };
    let (tries, failure) = (tries.saturating_add(1), one_line(reason));
    let state = if tries < MAX_TRIES {
        SamplingState::Wanted { tries, failure }
    } else {
        SamplingState::GivenUp { reason: format!("after {tries} tries: {failure}") }
    };
    Ok(vec![Write::Put(Record::Sampling(SamplingRecord { state, ..known.clone() }))])
}
