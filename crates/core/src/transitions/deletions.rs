//! Deleting jobs that have ended, and keeping checkpoints.

use crate::access::Scope;
use crate::deletion::{DeletionPhase, DeletionRecord, FinalCheckpoint, KeptParts, Lineage, ObjectTotals};
use crate::error::RequestError;
use crate::ids::{JobId, StageRef, Tenant, Timestamp};
use crate::reach::STORE_PREFIX;
use crate::records::{CheckpointRecord, KeepRecord, Record, RecordKey, Write};
use crate::references::{Reference, StoreRoot, references_to};
use crate::spec::{logs_elsewhere, named_files, starts_elsewhere};
use crate::state::{ClusterState, Job};

/// Jobs that a refusal names at most.
const MAX_NAMED: usize = 3;
/// Places that a lineage names at most, and characters of each.
const MAX_FROM: usize = 8;
const MAX_FROM_CHARS: usize = 300;
/// Stages of a lineage at most, and files of each one's checkpoint.
const MAX_STAGES: usize = 16;
const MAX_FILES: usize = 16;

/// What is to be deleted, and for whom.
#[derive(Clone, Debug)]
pub struct DeleteOrder<'a> {
    pub keep: KeptParts,
    /// Of the job's spec; see [`Lineage`].
    pub spec_sha256: String,
    pub root: StoreRoot<'a>,
    /// What whoever asks sees: jobs of other tenants are not named.
    pub scope: &'a Scope,
    /// In words, if the tenant's retention asks for it and no person does.
    pub by_retention: Option<String>,
}

/// Begins to delete a job that has ended and that nobody needs. One that is being deleted, or is gone, stays so; of one that is gone,
/// what was kept and is not any more goes now.
pub fn delete_job(
    state: &ClusterState,
    id: &JobId,
    order: DeleteOrder<'_>,
    now: Timestamp,
) -> Result<(DeletionRecord, Vec<Write>), RequestError> {
    state.unreadable().check_job(id)?;
    if let Some(known) = state.deletion(id) {
        return delete_again(state, known, &order);
    }
    let job = state.job(id).ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
    if !job.record.state.is_terminal() {
        let what = format!("job {id} is {} and not over: cancel it first, then delete it", job.record.state);
        return Err(RequestError::InUse { what });
    }
    check_keeps(job, order.keep)?;
    check_references(state, id, order.keep, &order)?;
    let record = DeletionRecord {
        job: id.clone(),
        tenant: Tenant::parse(&job.record.spec.tenant)
            .map_err(|error| RequestError::bad_id("metadata.tenant", &error))?,
        phase: DeletionPhase::Files,
        keep: order.keep,
        requested_at: now,
        by_retention: order.by_retention,
        removed: ObjectTotals::default(),
        kept_checkpoint_bytes: 0,
        kept_pair_bytes: 0,
        lineage: lineage(job, order.spec_sha256),
    };
    let write = Write::Put(Record::Deletion(record.clone()));
    Ok((record, vec![write]))
}

fn delete_again(
    state: &ClusterState,
    known: &DeletionRecord,
    order: &DeleteOrder<'_>,
) -> Result<(DeletionRecord, Vec<Write>), RequestError> {
    let keep = known.keep.and(order.keep);
    match known.phase {
        _ if keep == known.keep => Ok((known.clone(), Vec::new())),
        DeletionPhase::Files | DeletionPhase::Records => {
            let what = format!(
                "job {} is being deleted and keeps more than that: delete the rest once it is gone",
                known.job
            );
            Err(RequestError::InUse { what })
        }
        DeletionPhase::Gone { .. } => {
            check_references(state, &known.job, keep, order)?;
            let record = DeletionRecord { phase: DeletionPhase::Files, keep, ..known.clone() };
            let write = Write::Put(Record::Deletion(record.clone()));
            Ok((record, vec![write]))
        }
    }
}

/// A checkpoint that a person has marked goes only once the mark is taken off.
fn check_keeps(job: &Job, keep: KeptParts) -> Result<(), RequestError> {
    if keep.checkpoints {
        return Ok(());
    }
    match kept_checkpoints(job).next() {
        Some((stage, step)) => {
            let id = &job.record.id;
            let what = format!(
                "step {step} of {stage} is marked to be kept: release it first (crescendo checkpoints release {id} {} {step}), or keep the checkpoints",
                stage.stage
            );
            Err(RequestError::InUse { what })
        }
        None => Ok(()),
    }
}

/// Checkpoints of the job that are marked to be kept, and are there: stage and step.
pub(crate) fn kept_checkpoints(job: &Job) -> impl Iterator<Item = (&StageRef, u64)> {
    job.stages.iter().flat_map(|stage| {
        let there = stage.keeps.keys().filter(|key| stage.checkpoints.contains_key(key));
        there.map(|(step, _)| (&stage.id, *step))
    })
}

fn check_references(
    state: &ClusterState,
    id: &JobId,
    keep: KeptParts,
    order: &DeleteOrder<'_>,
) -> Result<(), RequestError> {
    let in_words = |found: Reference| match state.tenant_of(&found.by) {
        Some(tenant) if order.scope.sees(tenant) => {
            format!("{} of job {} ({})", found.what, found.by, found.path)
        }
        _ => "a job of another tenant".to_owned(),
    };
    let needed: Vec<String> =
        references_to(state, id, keep, order.root).take(MAX_NAMED).map(in_words).collect();
    if needed.is_empty() {
        return Ok(());
    }
    let what = format!(
        "files of job {id} are needed by {}: delete it once they have ended, or keep that part of it",
        needed.join(", ")
    );
    Err(RequestError::InUse { what })
}

/// All files that are to go are gone: `removed` of them since this was said last. Said again, it changes nothing.
pub fn files_gone(state: &ClusterState, id: &JobId, removed: ObjectTotals) -> Vec<Write> {
    let Some(known) = state.deletion(id).filter(|known| known.phase == DeletionPhase::Files) else {
        return Vec::new();
    };
    let (checkpoints, pairs) = match state.job(id) {
        Some(job) => registered_bytes(job),
        None => (known.kept_checkpoint_bytes, known.kept_pair_bytes),
    };
    let record = DeletionRecord {
        phase: DeletionPhase::Records,
        removed: known.removed.plus(removed),
        kept_checkpoint_bytes: if known.keep.checkpoints { checkpoints } else { 0 },
        kept_pair_bytes: if known.keep.pairs { pairs } else { 0 },
        ..known.clone()
    };
    vec![Write::Put(Record::Deletion(record))]
}

/// Some of the files that are to go are gone, and it goes on with the others.
pub fn files_removed(state: &ClusterState, id: &JobId, removed: ObjectTotals) -> Vec<Write> {
    let known = state.deletion(id).filter(|known| known.phase == DeletionPhase::Files);
    let known = known.filter(|_| removed != ObjectTotals::default());
    let record = known.map(|known| DeletionRecord { removed: known.removed.plus(removed), ..known.clone() });
    record.map(|record| Write::Put(Record::Deletion(record))).into_iter().collect()
}

/// What is known of where a job came from, whether it is still there or not.
pub fn lineage_of(
    state: &ClusterState,
    id: &JobId,
    spec_sha256: impl FnOnce(&Job) -> String,
) -> Option<Lineage> {
    match (state.deletion(id), state.job(id)) {
        (Some(known), _) => Some(known.lineage.clone()),
        (None, Some(job)) => Some(lineage(job, spec_sha256(job))),
        (None, None) => None,
    }
}

/// Marks a checkpoint to be kept, or takes the mark off again. Of several of one step it is the newest that is not damaged. Said
/// again, it changes nothing.
pub fn keep_checkpoint(
    state: &ClusterState,
    id: &StageRef,
    step: u64,
    keep: bool,
    now: Timestamp,
) -> Result<(CheckpointRecord, Vec<Write>), RequestError> {
    state.unreadable().check_job(&id.job)?;
    state.job(&id.job).ok_or_else(|| RequestError::NotFound { what: format!("job {}", id.job) })?;
    let stage = state.stage(id).ok_or_else(|| RequestError::NotFound { what: format!("stage {id}") })?;
    if state.deletion(&id.job).is_some() {
        return Err(RequestError::TooLate { what: format!("job {} is being deleted", id.job) });
    }
    let of_step = || stage.checkpoints.values().rev().filter(|known| known.step == step);
    let found = of_step().find(|known| known.damaged.is_none()).or_else(|| of_step().next());
    let found = found
        .ok_or_else(|| RequestError::NotFound { what: format!("a checkpoint of {id} at step {step}") })?;
    let marks = stage.keeps.keys().filter(|(of, _)| *of == step);
    let writes = if !keep {
        let release =
            |(step, generation): &(u64, _)| Write::Delete(RecordKey::Keep(id.clone(), *step, *generation));
        marks.map(release).collect()
    } else if stage.keeps.contains_key(&(step, found.generation)) {
        Vec::new()
    } else {
        let mark = KeepRecord { stage: id.clone(), step, generation: found.generation, at: now };
        vec![Write::Put(Record::Keep(mark))]
    };
    Ok((found.clone(), writes))
}

/// The lineage of a job as it is now.
fn lineage(job: &Job, spec_sha256: String) -> Lineage {
    let record = &job.record;
    let weights = record.spec.model.weights.as_deref();
    let is_stored = |path: &&str| path.starts_with(STORE_PREFIX);
    let named = named_files(&record.spec).into_iter().map(|file| file.path).filter(is_stored);
    let mut from: Vec<String> = Vec::new();
    let starts = starts_elsewhere(&record.spec).map(|(_, named)| named.to_string());
    let weights = weights.map(str::to_owned);
    let logs = logs_elsewhere(&record.spec).map(|(_, of)| of.to_string());
    for path in weights.into_iter().chain(starts).chain(logs).chain(named.map(str::to_owned)) {
        let path: String = path.chars().take(MAX_FROM_CHARS).collect();
        if from.len() < MAX_FROM && !from.contains(&path) {
            from.push(path);
        }
    }
    let finals = job.stages.iter().take(MAX_STAGES).filter_map(|stage| {
        let last = stage.final_checkpoint()?;
        Some(FinalCheckpoint {
            stage: stage.id.stage.clone(),
            step: last.step,
            path: last.path.clone(),
            files: last.files.iter().take(MAX_FILES).cloned().collect(),
        })
    });
    Lineage {
        name: record.spec.name.clone(),
        request: record.request.clone(),
        submitted_at: record.submitted_at,
        finished_at: record.finished_at,
        state: record.state.clone(),
        spec_sha256,
        from,
        finals: finals.collect(),
    }
}

/// Registered bytes of a job's checkpoints and pairs.
fn registered_bytes(job: &Job) -> (u64, u64) {
    let files = job.stages.iter().flat_map(|stage| stage.checkpoints.values()).flat_map(|known| &known.files);
    let checkpoints = files.fold(0u64, |sum, file| sum.saturating_add(file.size_bytes));
    let pairs = job.stages.iter().fold(0u64, |sum, stage| sum.saturating_add(stage.log.stored_bytes()));
    (checkpoints, pairs)
}
