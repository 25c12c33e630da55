//! Which records of jobs that are being deleted go next, whose files are to be removed, and which jobs have been kept for long
//! enough.

use std::collections::BTreeMap;

use crate::decide::Limits;
use crate::deletion::{DeletionPhase, DeletionRecord, KeptParts, MAX_LINEAGES};
use crate::ids::{JobId, NodeId, Timestamp};
use crate::observed::Observed;
use crate::records::{Record, RecordKey, Write};
use crate::references::{StoreRoot, references_to};
use crate::state::{ClusterState, Job};
use crate::transitions::kept_checkpoints;

/// Jobs that are being deleted at a time because of their tenants' retention.
const RETIRED_AT_A_TIME: usize = 4;

/// The next writes of one deletion whose files are gone. `records_of` gives the records that a job has in the store; no more than
/// `limits.fold_deletes` of them go at a time, and the job's own last.
pub fn decide_deleting<I>(
    state: &ClusterState,
    limits: &Limits,
    records_of: impl Fn(&DeletionRecord) -> I,
    now: Timestamp,
) -> Vec<Write>
where
    I: Iterator<Item = RecordKey>,
{
    let is_read = |deletion: &&DeletionRecord| state.unreadable().of_job(&deletion.job).is_none();
    let ready = state.deleting().filter(is_read);
    let ready = ready.into_iter().find(|deletion| deletion.phase == DeletionPhase::Records);
    let Some(deletion) = ready else { return forget_oldest(state) };
    // The last two are written together.
    let last = |key: &RecordKey| matches!(key, RecordKey::Job(_) | RecordKey::Deletion(_));
    let records = records_of(deletion).filter(|key| !last(key));
    let deletes: Vec<Write> = records.take(limits.fold_deletes.max(1)).map(Write::Delete).collect();
    if !deletes.is_empty() {
        return deletes;
    }
    let gone = DeletionRecord { phase: DeletionPhase::Gone { at: now }, ..deletion.clone() };
    let mut writes = vec![Write::Put(Record::Deletion(gone))];
    if state.job(&deletion.job).is_some() {
        writes.push(Write::Delete(RecordKey::Job(deletion.job.clone())));
    }
    writes
}

/// Of more deleted jobs than are remembered, the one that has been gone longest and of which nothing is kept.
fn forget_oldest(state: &ClusterState) -> Vec<Write> {
    if state.deletion_count() <= MAX_LINEAGES {
        return Vec::new();
    }
    let gone = state.deletions().filter_map(|deletion| match deletion.phase {
        DeletionPhase::Gone { at } if deletion.keep.is_none() => Some((at, &deletion.job)),
        DeletionPhase::Gone { .. } | DeletionPhase::Files | DeletionPhase::Records => None,
    });
    gone.min().map(|(_, job)| Write::Delete(RecordKey::Deletion(job.clone()))).into_iter().collect()
}

/// A node that still works on a job which has ended: what it writes would come after its files were removed.
pub fn still_works_on<'a>(seen: &'a Observed, job: &JobId) -> Option<&'a NodeId> {
    let works = seen.nodes.iter().find(|(_, view)| {
        view.connected
            && (view.running.iter().any(|attempt| attempt.job == *job)
                || view.curating.iter().any(|stage| stage.job == *job))
    });
    works.map(|(node, _)| node)
}

/// The deletion whose files are to be removed next: the one that was asked for first of those that `may` be tried now and that no
/// node works on any more.
pub fn next_files<'a>(
    state: &'a ClusterState,
    seen: &Observed,
    may: impl Fn(&JobId) -> bool,
) -> Option<&'a DeletionRecord> {
    let ready = state.deleting().filter(|deletion| {
        deletion.phase == DeletionPhase::Files
            && may(&deletion.job)
            && state.unreadable().of_job(&deletion.job).is_none()
            && still_works_on(seen, &deletion.job).is_none()
    });
    ready.min_by_key(|deletion| (deletion.requested_at, &deletion.job))
}

/// A job that has been kept for long enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    pub job: JobId,
    /// By which rule of its tenant, in words.
    pub why: String,
}

/// Jobs that are to be deleted now by their tenants' retention, a few at a time, those first that have been over for longest. None
/// with a marked checkpoint, none that an open job needs, none with a record that cannot be read. `now` and the jobs' ends are wall
/// time.
pub fn decide_retention(
    state: &ClusterState,
    limits: &Limits,
    root: StoreRoot<'_>,
    now: Timestamp,
) -> Vec<Retired> {
    let under_way = state.deleting().filter(|deletion| deletion.by_retention.is_some()).count();
    let room = RETIRED_AT_A_TIME.saturating_sub(under_way);
    if room == 0 || !limits.quotas.retires() {
        return Vec::new();
    }
    let mut by_tenant: BTreeMap<&str, Vec<(Timestamp, &Job)>> = BTreeMap::new();
    for job in state.jobs().filter(|job| state.deletion(&job.record.id).is_none()) {
        if let Some(finished_at) = job.record.finished_at.filter(|_| job.record.state.is_terminal()) {
            by_tenant.entry(&job.record.spec.tenant).or_default().push((finished_at, job));
        }
    }
    let mut due: Vec<(Timestamp, Retired)> = Vec::new();
    for (tenant, mut ended) in by_tenant {
        let rules = limits.quotas.of(tenant);
        // The newest first.
        ended.sort_by(|left, right| (right.0, &right.1.record.id).cmp(&(left.0, &left.1.record.id)));
        for (place, (finished_at, job)) in ended.into_iter().enumerate() {
            let too_old = rules.keep_ended_for.filter(|limit| now.since(finished_at) > *limit);
            let too_many = rules.keep_ended_jobs.filter(|limit| place >= *limit as usize);
            let why = match (too_old, too_many) {
                (Some(limit), _) => format!("it ended more than {} h ago", limit.as_secs() / 3600),
                (None, Some(limit)) => format!("tenant {tenant} keeps its last {limit} ended jobs"),
                (None, None) => continue,
            };
            due.push((finished_at, Retired { job: job.record.id.clone(), why }));
        }
    }
    due.sort_by(|left, right| (left.0, &left.1.job).cmp(&(right.0, &right.1.job)));
    let may_go = |retired: &Retired| {
        let id = &retired.job;
        let is_kept = state.job(id).is_some_and(|job| kept_checkpoints(job).next().is_some());
        !is_kept
            && state.unreadable().of_job(id).is_none()
            && references_to(state, id, KeptParts::default(), root).next().is_none()
    };
    due.into_iter().map(|(_, retired)| retired).filter(may_go).take(room).collect()
}
