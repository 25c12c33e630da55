//! What callers are shown of jobs: from what the engine has, or beside it, from a snapshot of that.

use std::collections::BTreeMap;
use std::sync::Arc;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Limits, Waits, still_works_on};
use crescendo_core::deletion::{DeletionPhase, DeletionRecord};
use crescendo_core::error::RequestError;
use crescendo_core::explain::{View, explain};
use crescendo_core::ids::{JobId, Timestamp};
use crescendo_core::observed::Observed;
use crescendo_core::state::{ClusterState, Job};
use crescendo_proto::{convert, deletions, explained, v1};
use crescendo_store::Revision;
use imbl::OrdMap;

use crate::engine::drawing::Drawing;
use crate::to_proto;

/// Jobs on a page unless asked otherwise, and at most.
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 500;

/// Why the files of a job that is being deleted could not be removed.
#[derive(Clone)]
pub(super) struct Trouble {
    pub why: String,
    pub failures: u32,
    /// It is tried again then.
    pub until: Timestamp,
}

/// Everything that answers are made of, at one moment.
#[derive(Clone, Copy)]
pub(super) struct Views<'a> {
    pub state: &'a ClusterState,
    pub observed: &'a Observed,
    pub limits: &'a Limits,
    pub waits: &'a Waits,
    pub job_revisions: &'a OrdMap<JobId, Revision>,
    pub troubles: &'a BTreeMap<JobId, Trouble>,
    pub drawing: &'a BTreeMap<String, Drawing>,
    pub now: Timestamp,
}

/// The same, kept while the engine goes on. It shares what has not changed since.
pub struct Snapshot {
    pub(super) state: ClusterState,
    pub(super) observed: Observed,
    pub(super) limits: Limits,
    pub(super) waits: Arc<Waits>,
    pub(super) job_revisions: OrdMap<JobId, Revision>,
    pub(super) troubles: BTreeMap<JobId, Trouble>,
    pub(super) drawing: BTreeMap<String, Drawing>,
    pub(super) now: Timestamp,
}

impl Snapshot {
    pub(super) fn views(&self) -> Views<'_> {
        Views {
            state: &self.state,
            observed: &self.observed,
            limits: &self.limits,
            waits: &self.waits,
            job_revisions: &self.job_revisions,
            troubles: &self.troubles,
            drawing: &self.drawing,
            now: self.now,
        }
    }
}

/// The job, if `scope` sees it; to others it does not exist.
pub(super) fn visible_job<'a>(
    state: &'a ClusterState,
    id: &JobId,
    scope: &Scope,
) -> Result<&'a Job, RequestError> {
    let unreadable = state.unreadable();
    // Whose it is, is known from its request alone.
    if unreadable.hides_job(id)
        && match scope {
            Scope::Everything => true,
            Scope::Only(tenant) => state.is_of_tenant(id, tenant.as_str()),
        }
    {
        unreadable.check_job(id)?;
    }
    let job = state.job(id).filter(|job| scope.sees(&job.record.spec.tenant));
    if job.is_none() && state.tenant_of(id).is_some_and(|tenant| scope.sees(tenant)) {
        let what = format!("job {id} (it was deleted; crescendo lineage {id} says what stays of it)");
        return Err(RequestError::NotFound { what });
    }
    job.ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })
}

/// Whether a list that asks for these states, this tenant and these labels has the job. What is empty asks for nothing.
pub(super) fn is_wanted(
    job: &Job,
    states: &[i32],
    tenant: &str,
    labels: &BTreeMap<String, String>,
    scope: &Scope,
) -> bool {
    let record = &job.record;
    let labelled = |(label, value): (&String, &String)| {
        record.spec.labels.get(label).is_some_and(|has| value.is_empty() || has == value)
    };
    (states.is_empty() || states.contains(&convert::job_state(&record.state).into()))
        && (tenant.is_empty() || record.spec.tenant == tenant)
        && labels.iter().all(labelled)
        && scope.sees(&record.spec.tenant)
}

impl Views<'_> {
    /// The job as a message; `full` adds the spec and the notes.
    pub fn job(&self, job: &Job, full: bool) -> v1::Job {
        let id = &job.record.id;
        let mut message =
            to_proto::job(self.state, job, self.observed, self.limits, self.waits.get(id), self.now);
        message.revision = self.job_revisions.get(id).map_or(0, |revision| revision.0);
        message.deletion = self.deletion(id);
        if message.deletion.is_some() {
            message.reason = "is being deleted".to_owned();
        }
        if full {
            message.resolved_spec_yaml = crescendo_core::spec::to_yaml(&job.record.spec);
            message.notes = to_proto::notes(self.state, id);
        }
        message
    }

    /// Why the job is as it is. `untold`: what webhooks have not been told of it.
    pub fn explained(&self, job: &Job, scope: &Scope, untold: Option<String>) -> v1::ExplainJobResponse {
        let Views { state, observed: seen, waits, limits, now, .. } = *self;
        let mut explanation = explain(&View { state, seen, waits, limits, now, scope }, job);
        let deletion = state.deletion(&job.record.id);
        let waits = deletion.map(|deletion| self.deletion_waits(deletion)).filter(|waits| !waits.is_empty());
        explanation.findings.extend(waits.map(|waits| format!("waits: {waits}")));
        explanation.findings.extend(untold);
        v1::ExplainJobResponse {
            job_id: job.record.id.to_string(),
            state: convert::job_state(&job.record.state).into(),
            ..explained::explanation(&explanation)
        }
    }

    /// How far the deletion of a job is; none of one that stays.
    pub fn deletion(&self, id: &JobId) -> Option<v1::JobDeletion> {
        let deletion = self.state.deletion(id)?;
        Some(deletions::deletion_message(deletion, self.deletion_waits(deletion)))
    }

    /// What a deletion waits for, one line; empty if for nothing.
    pub fn deletion_waits(&self, deletion: &DeletionRecord) -> String {
        let id = &deletion.job;
        if deletion.phase == DeletionPhase::Files
            && let Some(node) = still_works_on(self.observed, id)
        {
            return format!("node {node} has not stopped working on it");
        }
        if let (Some(record), false) =
            (self.state.unreadable().of_job(id), matches!(deletion.phase, DeletionPhase::Gone { .. }))
        {
            return record.to_string();
        }
        let trouble = self.troubles.get(id).filter(|_| deletion.phase == DeletionPhase::Files);
        trouble.map(|trouble| trouble.why.clone()).unwrap_or_default()
    }

    pub fn jobs(
        &self,
        request: &v1::ListJobsRequest,
        scope: &Scope,
    ) -> Result<v1::ListJobsResponse, RequestError> {
        let size = match request.page_size as usize {
            0 => DEFAULT_PAGE,
            size if size <= MAX_PAGE => size,
            _ => return Err(RequestError::invalid("page_size", format!("must be at most {MAX_PAGE}"))),
        };
        let after = to_proto::PageToken::parse(&request.page_token)?;
        let wanted = |job: &&Job| {
            let record = &job.record;
            record.spec.name.starts_with(&request.name_prefix)
                && is_wanted(job, &request.states, &request.tenant, &request.labels, scope)
        };
        let mut found: Vec<(to_proto::PageToken, &Job)> = self
            .state
            .jobs()
            .filter(wanted)
            .map(|job| (to_proto::PageToken::of(job), job))
            .filter(|(at, _)| after.as_ref().is_none_or(|after| at > after))
            .collect();
        // The page's own, before they are sorted: of many jobs most are on none of the first pages.
        let more = found.len() > size;
        if more {
            found.select_nth_unstable_by(size, |(left, _), (right, _)| left.cmp(right));
            found.truncate(size);
        }
        found.sort_by(|(left, _), (right, _)| left.cmp(right));
        let next_page_token = match found.last() {
            Some((at, _)) if more => at.to_string(),
            Some(_) | None => String::new(),
        };
        let jobs = found.into_iter().map(|(_, job)| self.job(job, false)).collect();
        Ok(v1::ListJobsResponse { jobs, next_page_token })
    }
}
