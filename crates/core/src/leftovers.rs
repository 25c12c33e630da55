//! Leftovers: objects below `jobs/` that no record names. Attempts that died leave checkpoint folders, leases that were lost leave
//! shards, writers that died leave the half of a file.
//!
//! An object stays if
//! - it is younger than the grace time, or
//! - a record names it, or may still come to name it: its attempt or the lease of its unit is under way, or its job has a record that
//!   cannot be read, or
//! - this version does not know what it is: a newer one may have written it.
//!
//! What belongs to a job as a whole (its logs, curves, samples) stays as long as the job has a record. Of a job that was deleted,
//! what was not kept is a leftover: some node wrote it too late. Other jobs without a record are only judged in a root that is known
//! to be this cluster's own.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::deletion::{DeletionPhase, KeptParts};
use crate::ids::{Generation, JobId, StageName, StageRef, Timestamp};
use crate::object_keys::{self, JobObject};
use crate::state::{ClusterState, Job};

/// Objects of one page that is judged at a time, at most.
pub const MAX_PAGE: usize = 1000;

/// An object as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Relative to the store's root.
    pub key: String,
    pub size_bytes: u64,
    /// When it was last written, by the store's clock.
    pub modified: Timestamp,
}

/// What is to be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whole jobs without a record are spared: they may be the newest, after a restore of older records, or another cluster's.
    OfAllJobs,
    /// A person has named it, so it may also be one without a record.
    OfOneJob,
    /// No leftovers: all files of a job that is being deleted, but those that are kept. If it is not being deleted, they are only
    /// counted.
    Deletion { job: JobId, keep: KeptParts, dry_run: bool },
}

/// By what objects are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectRules {
    /// An object that was written within this time stays.
    pub grace: Duration,
    /// The store's root is known to be this cluster's own, so that a job without a record there has been one of its own.
    pub owns_root: bool,
}

/// Indices of the leftovers in `listed`, ascending. `wall` is the time by the controller's wall clock.
pub fn leftovers(
    state: &ClusterState,
    listed: &[ListedObject],
    rules: CollectRules,
    wall: Timestamp,
) -> Vec<usize> {
    let jobs: BTreeSet<&str> = listed.iter().filter_map(|object| object_keys::job_of(&object.key)).collect();
    let named: BTreeSet<&str> = jobs
        .iter()
        .filter_map(|job| state.job(&JobId::parse(job).ok()?))
        .flat_map(checkpoint_folders)
        .collect();
    let is_leftover = |object: &ListedObject| {
        wall.since(object.modified) >= rules.grace && is_left(state, &named, &object.key, rules)
    };
    let found = listed.iter().enumerate().filter(|(_, object)| is_leftover(object));
    found.map(|(index, _)| index).collect()
}

/// Indices of the objects in `listed` that go with the job, or would go: all of it but what is kept, however young. None of a job
/// that is not being deleted, unless it is only asked what would go.
pub fn deleted_objects(
    state: &ClusterState,
    listed: &[ListedObject],
    job: &JobId,
    keep: KeptParts,
    dry_run: bool,
) -> Vec<usize> {
    let is_deleted = state
        .deletion(job)
        .is_some_and(|deletion| deletion.phase == DeletionPhase::Files && deletion.keep == keep);
    if !is_deleted && !dry_run {
        return Vec::new();
    }
    let found = listed.iter().enumerate().filter(|(_, object)| goes(job, &object.key, keep));
    found.map(|(index, _)| index).collect()
}

/// Whether what lies at the key goes with the job: a part of it that is not kept, or the half of a file.
fn goes(job: &JobId, key: &str, keep: KeptParts) -> bool {
    let is_torn = object_keys::job_object(job.as_str(), key) == JobObject::Torn;
    object_keys::part_of(job.as_str(), key).is_some_and(|part| is_torn || !keep.keeps(part))
}

/// Folders of checkpoints that a record of the job names: the registry's, and those that attempts go on from.
fn checkpoint_folders(job: &Job) -> impl Iterator<Item = &str> {
    job.stages.iter().flat_map(|stage| {
        let begun_from = stage.attempt.iter().flat_map(|attempt| [&attempt.resume_from, &attempt.init_from]);
        let begun_from = begun_from.filter_map(|checkpoint| checkpoint.as_ref());
        stage.checkpoints.values().chain(begun_from).map(|checkpoint| checkpoint.path.as_str())
    })
}

fn is_left(state: &ClusterState, named: &BTreeSet<&str>, key: &str, rules: CollectRules) -> bool {
    let Some(id) = object_keys::job_of(key).and_then(|job| JobId::parse(job).ok()) else { return false };
    if state.unreadable().of_job(&id).is_some() {
        return false;
    }
    if let Some(deletion) = state.deletion(&id) {
        // Until it is gone, its deletion sees to all of it.
        return matches!(deletion.phase, DeletionPhase::Gone { .. }) && goes(&id, key, deletion.keep);
    }
    let Some(job) = state.job(&id) else { return rules.owns_root };
    let stage_of = |name: &str| {
        let stage = StageName::parse(name).ok()?;
        state.stage(&StageRef { job: id.clone(), stage })
    };
    let has_ended = job.record.state.is_terminal();
    match object_keys::job_object(id.as_str(), key) {
        JobObject::Other => false,
        // Its writer has written nothing for the grace time.
        JobObject::Torn => true,
        JobObject::Shard { stage, unit, .. } => {
            let Some(stage) = stage_of(stage) else { return true };
            // What was read of the log does not hang together: nothing of it is judged.
            if stage.log.segments_apart() > 0 {
                return false;
            }
            match stage.log.done_shard(unit) {
                Some(shard) => shard.path != key,
                // A lease of it may still hand it in, unless nothing is taken any more.
                None => has_ended || stage.log.is_sealed(),
            }
        }
        JobObject::Samples { stage, name, step, .. } => {
            let Some(stage) = stage_of(stage) else { return true };
            // While they are wanted a curator may be about to hand them in.
            stage.samplings.get(&step).is_none_or(|sampling| {
                let is_named = sampling.pictures().is_some_and(|(_, file)| file.name == name);
                !is_named && !sampling.is_wanted()
            })
        }
        JobObject::CheckpointFile { stage, folder, generation, .. } => {
            if named.contains(folder) {
                return false;
            }
            let Some(stage) = stage_of(stage) else { return true };
            let newest = stage.generation();
            let under_way = match Generation(generation) {
                of if of == newest => stage.active_attempt().is_some(),
                // Whoever started it knows more than this controller.
                of => of > newest,
            };
            has_ended || !under_way
        }
    }
}
