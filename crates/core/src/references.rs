//! Who needs another job's files. Whatever lets one job use another's is to be asked about here.

use crate::deletion::KeptParts;
use crate::error::Overreach;
use crate::ids::JobId;
use crate::object_keys::{self, JobPart};
use crate::reach::{Reach, SpecPath};
use crate::records::CheckpointRecord;
use crate::spec::{JobSpec, NamedFile, logs_elsewhere, named_files, starts_elsewhere};
use crate::state::{ClusterState, Job};

/// Where the object store lies on the nodes, if it is a folder: specs may name files in there by their absolute path too.
pub type StoreRoot<'a> = Option<&'a str>;

/// An open job that needs files of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub by: JobId,
    /// What names them: a field of its spec, or an attempt.
    pub what: String,
    pub path: String,
}

/// Open jobs that need a file of `job` which would go if all but `keep` went, in order.
pub fn references_to<'a>(
    state: &'a ClusterState,
    job: &'a JobId,
    keep: KeptParts,
    root: StoreRoot<'a>,
) -> impl Iterator<Item = Reference> + 'a {
    let others = state.open_jobs().filter(move |other| other.record.id != *job);
    others.flat_map(move |other| {
        let by = other.record.id.clone();
        let by_spec = named_files(&other.record.spec).into_iter().map(|file| (file.field, file.path));
        let of_attempts = begun_from(other).map(|path| ("its attempt".to_owned(), path));
        // The registry tells where such a checkpoint is, and such pairs, and its records go whatever is kept.
        let starts = starts_elsewhere(&other.record.spec).filter(|(_, named)| named.job == *job);
        let starts = starts.map(|(index, named)| {
            let what = format!("spec.stages[{index}].initFrom");
            Reference { by: by.clone(), what, path: named.to_string() }
        });
        let logs = logs_elsewhere(&other.record.spec).filter(|(_, of)| of.job == *job);
        let logs = logs.map(|(index, of)| {
            let what = format!("spec.stages[{index}].data.from");
            Reference { by: by.clone(), what, path: of.to_string() }
        });
        let found: Vec<Reference> = by_spec
            .filter_map(|(field, path)| Some((field, store_key(path, root)?, path)))
            .chain(of_attempts.map(|(what, path)| (what, path, path)))
            .filter(|(_, key, _)| touches(key, job, keep))
            .map(|(what, _, path)| Reference { by: by.clone(), what, path: path.to_owned() })
            .chain(starts)
            .chain(logs)
            .collect();
        found
    })
}

/// Whether an open job is to start from this checkpoint of another job, by its step: a final one does not expire anyway.
pub(crate) fn is_started_from(state: &ClusterState, checkpoint: &CheckpointRecord) -> bool {
    let of_it = |job: &Job| {
        starts_elsewhere(&job.record.spec).any(|(_, named)| {
            named.job == checkpoint.stage.job
                && named.stage == checkpoint.stage.stage
                && named.step == Some(checkpoint.step)
        })
    };
    state.open_jobs().any(of_it)
}

/// Folders of checkpoints that an open job's attempts go on from.
fn begun_from(job: &Job) -> impl Iterator<Item = &str> {
    let attempts = job.stages.iter().filter_map(|stage| stage.active_attempt());
    let from = attempts.flat_map(|attempt| [&attempt.resume_from, &attempt.init_from]);
    from.filter_map(|checkpoint| checkpoint.as_ref()).map(|checkpoint| checkpoint.path.as_str())
}

/// Fields of a spec that name files of a job which is being deleted, or is gone, and whose files of that part are not kept. What is
/// out of `reach` is none of them: whether it was ever there is not told.
pub fn names_deleted(
    spec: &JobSpec,
    state: &ClusterState,
    reach: &Reach,
    root: StoreRoot<'_>,
) -> Vec<Overreach> {
    if state.deletion_count() == 0 {
        return Vec::new();
    }
    let gone = |NamedFile { field, path, .. }: NamedFile<'_>| {
        reach.check_path(path).ok()?;
        let key = plain(store_key(path, root)?);
        let job = JobId::parse(object_keys::job_of(&key)?).ok()?;
        let deletion = state.deletion(&job).filter(|deletion| touches(&key, &job, deletion.keep))?;
        let is = if state.job(&deletion.job).is_some() { "is being deleted" } else { "was deleted" };
        let message = format!("{path} is of job {job}, which {is}: name files that stay");
        Some(Overreach { field, message })
    };
    named_files(spec).into_iter().filter_map(gone).collect()
}

/// The key of the object store that a path of a spec leads to.
fn store_key<'a>(path: &'a str, root: StoreRoot<'_>) -> Option<&'a str> {
    match SpecPath::of(path) {
        SpecPath::Store(key) => Some(key),
        SpecPath::Absolute(path) => path.strip_prefix(root?.trim_end_matches('/'))?.strip_prefix('/'),
        SpecPath::Library(_) => None,
    }
}

/// Without empty parts and `.`.
fn plain(key: &str) -> String {
    let parts = key.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

/// Whether the key is, holds or lies in a part of the job that is not kept.
fn touches(key: &str, job: &JobId, keep: KeptParts) -> bool {
    let key = plain(key);
    let job = job.as_str();
    if let Some(part) = object_keys::part_of(job, &key) {
        // The folder of a stage holds all parts of it, and `logs` all logs.
        let is_folder_of_parts = key.split('/').count() == 3;
        return match part {
            _ if is_folder_of_parts && key == object_keys::logs(job) => !keep.keeps(JobPart::Logs),
            _ if is_folder_of_parts => true,
            part => !keep.keeps(part),
        };
    }
    // The job's folder, and what holds it.
    let folder = object_keys::job(job);
    key == folder || key.is_empty() || folder.starts_with(&format!("{key}/"))
}
