//! Deleting jobs that have ended: asked for by people or by retention, their files removed by curators, their records a few at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::{decide_deleting, decide_retention, next_files};
use crescendo_core::deletion::{DeletionRecord, KeptParts, ObjectTotals};
use crescendo_core::error::{Overreach, RequestError};
use crescendo_core::ids::{JobId, StageRef, Timestamp};
use crescendo_core::object_keys::JobPart;
use crescendo_core::records::{RecordKey, Write};
use crescendo_core::references::{StoreRoot, names_deleted};
use crescendo_core::spec::JobSpec;
use crescendo_core::state::Job;
use crescendo_core::transitions::{self, DeleteOrder};
use crescendo_proto::{convert, deletions, v1};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::request::{Answer, DeletionRequest};
use crate::engine::views::Trouble;

/// Records of jobs that are being deleted go on after this.
const STEP_PAUSE: Duration = Duration::from_millis(250);
/// Jobs that have been kept for long enough are looked for this often.
const RETIRE_EVERY: Duration = Duration::from_secs(10);
/// Waits between tries to remove a job's files.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What is not durable of the deletions.
pub(super) struct DeletionWork {
    /// Why the files of a job could not be removed when it was tried last.
    pub troubles: BTreeMap<JobId, Trouble>,
    stepped_at: Instant,
    retired_at: Instant,
}

impl DeletionWork {
    pub fn new() -> Self {
        Self { troubles: BTreeMap::new(), stepped_at: Instant::now(), retired_at: Instant::now() }
    }
}

/// As a lineage has it.
fn spec_sha256(job: &Job) -> String {
    let digest = Sha256::digest(&job.record.spec_json);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Engine {
    pub(super) fn handle_deletions(&mut self, request: DeletionRequest, now: Timestamp) {
        match request {
            DeletionRequest::Delete { job, scope, keep, dry_run, reply } => {
                let answer = self.delete_job(&job, &scope, keep, dry_run, now);
                self.hold(reply, answer);
            }
            DeletionRequest::Lineage { job, scope, reply } => {
                let answer = self.lineage(&job, &scope, now);
                self.hold(reply, answer);
            }
            DeletionRequest::Keep { stage, step, release, scope, reply } => {
                let answer = self.keep_checkpoint(&stage, step, release, &scope, now);
                self.hold(reply, answer);
            }
            DeletionRequest::NextFiles { reply } => {
                let troubles = &self.deletions.troubles;
                let may = |job: &JobId| troubles.get(job).is_none_or(|trouble| now >= trouble.until);
                let next = next_files(&self.state, &self.observed, may);
                let next = next.map(|deletion| (deletion.job.clone(), deletion.keep));
                self.hold(reply, Ok(next));
            }
            DeletionRequest::FilesGone { job, removed, reply } => {
                self.deletions.troubles.remove(&job);
                let writes = transitions::files_gone(&self.state, &job, removed);
                if !writes.is_empty() {
                    tracing::info!(%job, objects = removed.objects, bytes = removed.bytes, "the files of a job are deleted");
                }
                self.write_all(writes);
                self.hold(reply, Ok(()));
            }
            DeletionRequest::FilesStay { job, removed, why } => self.files_stay(job, removed, why, now),
        }
    }

    fn files_stay(&mut self, job: JobId, removed: ObjectTotals, why: String, now: Timestamp) {
        let writes = transitions::files_removed(&self.state, &job, removed);
        self.write_all(writes);
        let failures = self.deletions.troubles.get(&job).map_or(0, |trouble| trouble.failures);
        let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
        let until = now.plus(FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY));
        tracing::warn!(%job, why, "the files of a job that is being deleted cannot be removed; it is tried again");
        self.progressed.insert(job.clone());
        self.deletions.troubles.insert(job, Trouble { why, failures: failures.saturating_add(1), until });
    }

    /// Where specs may name files of the object store by their path.
    fn store_root(&self) -> StoreRoot<'_> {
        self.around.config.object_store_url.strip_prefix("file://")
    }

    /// What in a spec its tenant may not have, and files of jobs that are deleted.
    pub(super) fn overreaches(&self, spec: &JobSpec) -> Vec<Overreach> {
        let mut found = self.limits.quotas.overreaches(spec, &self.state);
        let reach = self.limits.quotas.reach.of(&spec.tenant, spec, &self.state);
        found.extend(names_deleted(spec, &self.state, &reach, self.store_root()));
        found
    }

    /// Whether `scope` sees the job, or what stays of it.
    fn check_sees(&self, job: &JobId, scope: &Scope) -> Answer<()> {
        match self.state.tenant_of(job) {
            Some(tenant) if scope.sees(tenant) && self.state.deletion(job).is_some() => Ok(()),
            _ => self.job(job, scope).map(drop),
        }
    }

    fn delete_job(
        &mut self,
        id: &JobId,
        scope: &Scope,
        keep: KeptParts,
        dry_run: bool,
        now: Timestamp,
    ) -> Answer<v1::DeleteJobResponse> {
        self.check_sees(id, scope)?;
        let (deletion, writes) = self.begin_deletion(id, scope, keep, None, now)?;
        if dry_run {
            let parts =
                self.state.job(id).map(|job| registered_parts(job, deletion.keep)).unwrap_or_default();
            return Ok(v1::DeleteJobResponse { parts, ..Default::default() });
        }
        if !writes.is_empty() {
            tracing::info!(job = %id, ?keep, "job is to be deleted");
        }
        self.write_all(writes);
        let waiting_for = self.views(now).deletion_waits(&deletion);
        let deletion = deletions::deletion_message(&deletion, waiting_for);
        Ok(v1::DeleteJobResponse { deletion: Some(deletion), ..Default::default() })
    }

    fn begin_deletion(
        &self,
        id: &JobId,
        scope: &Scope,
        keep: KeptParts,
        by_retention: Option<String>,
        now: Timestamp,
    ) -> Result<(DeletionRecord, Vec<Write>), RequestError> {
        let spec_sha256 = self.state.job(id).map(spec_sha256).unwrap_or_default();
        let order = DeleteOrder { keep, spec_sha256, root: self.store_root(), scope, by_retention };
        transitions::delete_job(&self.state, id, order, self.observed.wall(now))
    }

    fn lineage(&self, id: &JobId, scope: &Scope, now: Timestamp) -> Answer<v1::GetLineageResponse> {
        self.check_sees(id, scope)?;
        let lineage = transitions::lineage_of(&self.state, id, spec_sha256);
        let lineage = lineage.ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
        let tenant = self.state.tenant_of(id).unwrap_or_default();
        Ok(v1::GetLineageResponse {
            lineage: Some(deletions::lineage_message(id, tenant, &lineage)),
            deletion: self.views(now).deletion(id),
        })
    }

    fn keep_checkpoint(
        &mut self,
        stage: &StageRef,
        step: u64,
        release: bool,
        scope: &Scope,
        now: Timestamp,
    ) -> Answer<v1::Checkpoint> {
        self.job(&stage.job, scope)?;
        let wall = self.observed.wall(now);
        let (checkpoint, writes) = transitions::keep_checkpoint(&self.state, stage, step, !release, wall)?;
        if !writes.is_empty() {
            tracing::info!(%stage, step, release, "checkpoint is marked to be kept, or released");
        }
        self.write_all(writes);
        Ok(v1::Checkpoint { kept: !release, ..convert::checkpoint_message(&checkpoint) })
    }

    /// Deletes records of jobs whose files are gone, a few at a time. Before anything else of a batch: what it rests on is durable
    /// then.
    pub(super) fn go_on_deleting(&mut self, now: Timestamp) {
        if self.deletions.stepped_at.elapsed() < STEP_PAUSE {
            return;
        }
        self.deletions.stepped_at = Instant::now();
        let most = self.limits.fold_deletes.saturating_add(1);
        let records_of = |deletion: &DeletionRecord| {
            let keys: Vec<RecordKey> = self.records.of_job(deletion, &self.state).take(most).collect();
            keys.into_iter()
        };
        let writes = decide_deleting(&self.state, &self.limits, records_of, self.observed.wall(now));
        for write in &writes {
            if let Write::Delete(RecordKey::Job(job)) = write {
                self.around.metrics.jobs_deleted.inc();
                tracing::info!(%job, "job is deleted");
            }
        }
        self.write_all(writes);
    }

    /// Begins to delete jobs that have been kept for long enough.
    pub(super) fn retire(&mut self, now: Timestamp) {
        if self.deletions.retired_at.elapsed() < RETIRE_EVERY {
            return;
        }
        self.deletions.retired_at = Instant::now();
        // Of two clocks that differ, the one by which fewer jobs are old.
        let wall = self.observed.wall(now).min(now);
        for retired in decide_retention(&self.state, &self.limits, self.store_root(), wall) {
            let (job, why) = (retired.job, retired.why);
            match self.begin_deletion(&job, &Scope::Everything, KeptParts::default(), Some(why.clone()), now)
            {
                Ok((_, writes)) => {
                    tracing::info!(%job, why, "job is to be deleted by its tenant's retention");
                    self.write_all(writes);
                }
                Err(refused) => {
                    tracing::warn!(%job, %refused, "a job stays longer than its tenant's retention")
                }
            }
        }
    }
}

/// What a job has in the object store as far as it is registered.
fn registered_parts(job: &Job, keep: KeptParts) -> Vec<v1::DeletionPart> {
    let files = job.stages.iter().flat_map(|stage| stage.checkpoints.values()).flat_map(|known| &known.files);
    let checkpoints = files.fold(ObjectTotals::default(), |sum, file| {
        sum.plus(ObjectTotals { objects: 1, bytes: file.size_bytes })
    });
    let pairs = job.stages.iter().fold(ObjectTotals::default(), |sum, stage| {
        sum.plus(ObjectTotals { objects: stage.log.prefix_units(), bytes: stage.log.stored_bytes() })
    });
    let part = |part: JobPart, total: ObjectTotals| v1::DeletionPart {
        part: part.name().to_owned(),
        objects: total.objects,
        bytes: total.bytes,
        kept: keep.keeps(part),
    };
    vec![part(JobPart::Checkpoints, checkpoints), part(JobPart::Pairs, pairs)]
}
