//! The registry of checkpoints.

use std::sync::Arc;

use crate::error::RequestError;
use crate::ids::{AttemptRef, Generation, StageRef, Timestamp};
use crate::job::JobEvent;
use crate::object_keys::{self, JobObject};
use crate::records::{CheckpointRecord, FileRecord, JobRecord, Record, RecordKey, Write};
use crate::references::is_started_from;
use crate::sampling::SamplingRecord;
use crate::state::{ClusterState, Job, Stage};
use crate::transitions::digests::check_sha256;
use crate::transitions::jobs::{ended, one_line};
use crate::transitions::samplings::samplings_with;

/// Files that one checkpoint may have.
const MAX_FILES: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointCommitted {
    /// As registered.
    pub checkpoint: CheckpointRecord,
    /// No longer kept; their files may be deleted.
    pub expired: Vec<CheckpointRecord>,
    pub writes: Vec<Write>,
}

/// Folder of a checkpoint in the object store.
pub fn checkpoint_path(stage: &StageRef, step: u64, generation: Generation) -> String {
    object_keys::checkpoint(stage.job.as_str(), stage.stage.as_str(), step, generation.0)
}

/// A file of a registered checkpoint of the job, whose folder is `path`.
pub fn checkpoint_file<'a>(job: &'a Job, path: &str, name: &str) -> Result<&'a FileRecord, RequestError> {
    let id = &job.record.id;
    let mut registered = job.stages.iter().flat_map(|stage| stage.checkpoints.values());
    let checkpoint = registered
        .find(|checkpoint| checkpoint.path == path)
        .ok_or_else(|| RequestError::NotFound { what: format!("checkpoint {path} of job {id}") })?;
    let file = checkpoint.files.iter().find(|file| file.name == name);
    file.ok_or_else(|| RequestError::NotFound { what: format!("file {name} of checkpoint {path}") })
}

fn find<'a>(state: &'a ClusterState, id: &StageRef) -> Result<(&'a Job, &'a Stage), RequestError> {
    let job = state.job(&id.job).ok_or_else(|| RequestError::NotFound { what: format!("job {}", id.job) })?;
    let stage = state.stage(id).ok_or_else(|| RequestError::NotFound { what: format!("stage {id}") })?;
    Ok((job, stage))
}

/// Registers a checkpoint whose files are all written. The final one ends its stage, and the job if it was the last, in
/// the same write.
pub fn commit_checkpoint(
    state: &ClusterState,
    checkpoint: CheckpointRecord,
    now: Timestamp,
) -> Result<CheckpointCommitted, RequestError> {
    state.unreadable().check_job(&checkpoint.stage.job)?;
    let (job, stage) = find(state, &checkpoint.stage)?;
    if let Some(known) = stage.checkpoints.get(&(checkpoint.step, checkpoint.generation)) {
        if known.files != checkpoint.files {
            return Err(RequestError::invalid(
                "checkpoint.files",
                "another content is registered for this step and generation",
            ));
        }
        return Ok(CheckpointCommitted {
            checkpoint: known.clone(),
            expired: Vec::new(),
            writes: Vec::new(),
        });
    }
    if job.record.state.is_terminal() {
        return Err(RequestError::TooLate { what: format!("job {} is {}", job.record.id, job.record.state) });
    }
    check_newest(stage, checkpoint.generation)?;
    if stage.is_done() {
        return Err(RequestError::TooLate { what: format!("stage {} is done", stage.id) });
    }
    check(job, &checkpoint)?;

    let checkpoint = CheckpointRecord { committed_at: now, damaged: None, ..checkpoint };
    let mut writes = vec![Write::Put(Record::Checkpoint(checkpoint.clone()))];
    writes.extend(samplings_with(job, stage, &checkpoint));
    let mut expired = expired_by(job, stage, &checkpoint);
    expired.retain(|old| !is_started_from(state, old));
    writes.extend(
        expired
            .iter()
            .map(|old| Write::Delete(RecordKey::Checkpoint(old.stage.clone(), old.step, old.generation))),
    );
    if checkpoint.is_final {
        if let Some(attempt) = stage.active_attempt() {
            let reason = "the final checkpoint is committed".to_owned();
            writes.push(Write::Put(Record::Attempt(ended(attempt, reason, now))));
        }
        let others_done = job.stages.iter().all(|other| other.id == stage.id || other.is_done());
        if others_done && let Ok(next) = job.record.state.step(JobEvent::Succeed) {
            let record = JobRecord { state: next, finished_at: Some(now), ..job.record.clone() };
            writes.push(Write::Put(Record::Job(record)));
        }
    }
    Ok(CheckpointCommitted { checkpoint, expired, writes })
}

fn check_newest(stage: &Stage, generation: Generation) -> Result<(), RequestError> {
    if generation == stage.generation() && generation > Generation(0) {
        return Ok(());
    }
    let StageRef { job, stage } = stage.id.clone();
    Err(RequestError::StaleAttempt { attempt: AttemptRef { job, stage, generation } })
}

fn check(job: &Job, checkpoint: &CheckpointRecord) -> Result<(), RequestError> {
    let index = job.stage_index(checkpoint.stage.stage.as_str());
    let spec = index.and_then(|index| job.stage_spec(index));
    let steps = spec.map_or(0, |spec| spec.train.steps);
    if checkpoint.step == 0 || checkpoint.step > steps {
        return Err(RequestError::invalid("checkpoint.step", format!("must be 1 to {steps}")));
    }
    if checkpoint.is_final && checkpoint.step != steps {
        return Err(RequestError::invalid("checkpoint.final", format!("is only step {steps}")));
    }
    if !is_its_path(checkpoint) {
        let path = checkpoint_path(&checkpoint.stage, checkpoint.step, checkpoint.generation);
        let message = format!("must be {path}, or that and -rRANK");
        return Err(RequestError::invalid("checkpoint.path", message));
    }
    if checkpoint.files.is_empty() || checkpoint.files.len() > MAX_FILES {
        return Err(RequestError::invalid("checkpoint.files", format!("must be 1 to {MAX_FILES}")));
    }
    for file in &checkpoint.files {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name = file.name.as_str();
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(RequestError::invalid(
                "checkpoint.files.name",
                "must be 1 to 128 characters of [A-Za-z0-9._-]",
            ));
        }
        check_sha256("checkpoint.files.sha256", &file.sha256)?;
    }
    Ok(())
}

/// Whether the checkpoint lies where a rank of its gang writes it.
fn is_its_path(checkpoint: &CheckpointRecord) -> bool {
    let CheckpointRecord { stage: StageRef { job, stage }, step, generation, path, .. } = checkpoint;
    let file = object_keys::checkpoint_file(path, "manifest.json");
    let expected = JobObject::CheckpointFile {
        stage: stage.as_str(),
        folder: path,
        step: *step,
        generation: generation.0,
    };
    object_keys::job_object(job.as_str(), &file) == expected
}

/// Checkpoints of the stage that are no longer kept once `new` is there: all but the newest `keepLast` undamaged ones
/// besides the final one, those that are marked to be kept and those that are still to be drawn with, and damaged ones older
/// than those.
fn expired_by(job: &Job, stage: &Stage, new: &CheckpointRecord) -> Vec<CheckpointRecord> {
    let keep = job.record.spec.checkpoints.keep_last.max(1) as usize;
    let new_counts = usize::from(!new.is_final);
    let mut kept = new_counts;
    let mut expired = Vec::new();
    let is_marked = |old: &CheckpointRecord| {
        let is_drawn_with =
            |sampling: &Arc<SamplingRecord>| sampling.is_wanted() && sampling.generation == old.generation;
        stage.keeps.contains_key(&(old.step, old.generation))
            || stage.samplings.get(&old.step).is_some_and(is_drawn_with)
    };
    for old in stage.checkpoints.values().rev().filter(|old| !old.is_final && !is_marked(old)) {
        if kept >= keep {
            expired.push(old.clone());
        } else if old.damaged.is_none() {
            kept += 1;
        }
    }
    expired
}

/// Marks a checkpoint, so that nothing goes on from it. `found_by` is the stage whose attempt `generation` found it; the
/// checkpoint may be of an earlier stage, which is then not done any more.
pub fn mark_checkpoint_damaged(
    state: &ClusterState,
    found_by: &StageRef,
    generation: Generation,
    path: &str,
    reason: &str,
) -> Result<Vec<Write>, RequestError> {
    state.unreadable().check_job(&found_by.job)?;
    let (job, stage) = find(state, found_by)?;
    let known =
        job.stages.iter().flat_map(|stage| stage.checkpoints.values()).find(|known| known.path == path);
    let known =
        known.ok_or_else(|| RequestError::NotFound { what: format!("checkpoint {}", one_line(path)) })?;
    if known.damaged.is_some() {
        return Ok(Vec::new());
    }
    if job.record.state.is_terminal() {
        return Err(RequestError::TooLate { what: format!("job {} is {}", job.record.id, job.record.state) });
    }
    check_newest(stage, generation)?;
    let reason = one_line(reason);
    let reason = if reason.is_empty() { "damaged".to_owned() } else { reason };
    Ok(vec![Write::Put(Record::Checkpoint(CheckpointRecord { damaged: Some(reason), ..known.clone() }))])
}
