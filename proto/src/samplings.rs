//! Pictures of checkpoints, as records and on the wire.

use crescendo_core::RequestError;
use crescendo_core::file::FileRecord;
use crescendo_core::ids::{Generation, Timestamp};
use crescendo_core::sampling::{
    DrawnSamples, SamplingRecord, SamplingState, VALIDATION_TIMES, ValidationLoss,
};

use crate::convert::timestamp;
use crate::record_parts::{BadRecord, file_in, file_out, stage_in};
use crate::store_v1 as stored;
use crate::v1;

pub(crate) fn sampling_out(record: &SamplingRecord) -> stored::Sampling {
    let SamplingRecord { stage, step, generation, state } = record;
    let blank = stored::Sampling {
        job_id: stage.job.to_string(),
        stage: stage.stage.to_string(),
        step: *step,
        generation: generation.0,
        ..Default::default()
    };
    match state {
        SamplingState::Wanted { tries, failure } => {
            stored::Sampling { tries: *tries, failure: failure.clone(), ..blank }
        }
        SamplingState::GivenUp { reason } => stored::Sampling { given_up: reason.clone(), ..blank },
        SamplingState::Drawn(DrawnSamples { file, pictures, validation, at }) => {
            let validation = validation.as_ref().map(|loss| stored::sampling::Validation {
                mean: loss.mean,
                pairs: loss.pairs,
                by_time: loss.by_time.clone(),
            });
            let (file, pictures, at_millis) = (file.as_ref().map(file_out), *pictures, at.0);
            let drawn = stored::sampling::Drawn { file, pictures, validation, at_millis };
            stored::Sampling { drawn: Some(drawn), ..blank }
        }
    }
}

pub(crate) fn sampling_in(message: stored::Sampling) -> Result<SamplingRecord, BadRecord> {
    let stored::Sampling { job_id, stage, step, generation, drawn, given_up, tries, failure } = message;
    let state = match drawn {
        Some(stored::sampling::Drawn { file, pictures, validation, at_millis }) => {
            let validation = validation.map(|stored::sampling::Validation { mean, pairs, by_time }| {
                ValidationLoss { mean, pairs, by_time }
            });
            let (file, at) = (file.map(file_in), Timestamp(at_millis));
            SamplingState::Drawn(DrawnSamples { file, pictures, validation, at })
        }
        None if given_up.is_empty() => SamplingState::Wanted { tries, failure },
        None => SamplingState::GivenUp { reason: given_up },
    };
    let stage = stage_in(&job_id, &stage)?;
    Ok(SamplingRecord { stage, step, generation: Generation(generation), state })
}

/// As it is told. `progress`: of the curator that draws it now.
pub fn sampling_message(record: &SamplingRecord, progress: Option<v1::SamplingProgress>) -> v1::Sampling {
    let SamplingRecord { stage, step, generation, state } = record;
    let (state, reason) = match state {
        SamplingState::Wanted { failure, .. } => (v1::SamplingState::Wanted, failure.clone()),
        SamplingState::Drawn(_) => (v1::SamplingState::Drawn, String::new()),
        SamplingState::GivenUp { reason } => (v1::SamplingState::GivenUp, reason.clone()),
    };
    let drawn = record.drawn();
    v1::Sampling {
        job_id: stage.job.to_string(),
        stage: stage.stage.to_string(),
        step: *step,
        generation: generation.0,
        state: state.into(),
        reason,
        drawn_at: drawn.map(|drawn| timestamp(drawn.at)),
        file: drawn.and_then(|drawn| drawn.file.as_ref()).map(file_message),
        pictures: drawn.map_or(0, |drawn| drawn.pictures),
        validation: drawn.and_then(|drawn| drawn.validation.as_ref()).map(validation_message),
        progress,
    }
}

pub fn file_message(file: &FileRecord) -> v1::CheckpointFile {
    let FileRecord { name, size_bytes, sha256 } = file.clone();
    v1::CheckpointFile { name, size_bytes, sha256 }
}

pub fn validation_message(loss: &ValidationLoss) -> v1::ValidationLoss {
    v1::ValidationLoss {
        mean: loss.mean,
        pairs: loss.pairs,
        times: VALIDATION_TIMES.to_vec(),
        losses: loss.by_time.clone(),
    }
}

/// What a curator says that it has made.
pub fn drawn_samples(message: v1::SamplesDone) -> Result<DrawnSamples, RequestError> {
    let v1::SamplesDone { file, pictures, validation } = message;
    let file =
        file.map(|v1::CheckpointFile { name, size_bytes, sha256 }| FileRecord { name, size_bytes, sha256 });
    let validation = match validation {
        Some(loss) if loss.times != VALIDATION_TIMES || loss.losses.len() != VALIDATION_TIMES.len() => {
            return Err(RequestError::invalid(
                "done.validation.times",
                format!("must be {VALIDATION_TIMES:?}, with a loss each"),
            ));
        }
        loss => loss.map(|loss| ValidationLoss { mean: loss.mean, pairs: loss.pairs, by_time: loss.losses }),
    };
    Ok(DrawnSamples { file, pictures, validation, at: Timestamp(0) })
}
