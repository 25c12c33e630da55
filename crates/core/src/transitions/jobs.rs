//! Submitting, cancelling, pausing, resuming and trying again.

use std::sync::Arc;
use std::time::Duration;

use crate::decide::{Limits, lost_pairs};
use crate::error::RequestError;
use crate::ids::{JobId, RequestId, Tenant, Timestamp};
use crate::job::{JobEvent, JobState, Pause};
use crate::quotas::{self, TenantLimits};
use crate::records::{AttemptRecord, AttemptState, JobRecord, Record, RecordKey, RequestRecord, Write};
use crate::secret::{self, redact};
use crate::spec::JobSpec;
use crate::state::{ClusterState, Job};
use crate::trace::TraceParent;

/// Most characters of a cancel reason that are kept.
const MAX_REASON_CHARS: usize = 300;
/// Ids that are tried for one job before the name is called used up.
const MAX_ID_TRIES: u32 = 64;

/// Bound of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Jobs that are not terminal.
    pub max_open_jobs: usize,
    /// Hint to whoever is refused.
    pub retry_after: Duration,
    /// What the tenant that submits may use.
    pub tenant: TenantLimits,
}

/// A spec that has been found good.
#[derive(Clone, Debug)]
pub struct Submission {
    pub request: RequestId,
    pub spec: Arc<JobSpec>,
    pub spec_json: Arc<[u8]>,
    pub trace: Option<TraceParent>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    pub job: JobId,
    /// The request was seen before; nothing is written.
    pub already: bool,
    pub writes: Vec<Write>,
}

/// Accepts a job. The same request id of a tenant gives the same job, however often it is sent.
pub fn submit_job(
    state: &ClusterState,
    submission: Submission,
    limits: QueueLimits,
    now: Timestamp,
) -> Result<Submitted, RequestError> {
    if secret::find(submission.request.as_str()).is_some() {
        return Err(RequestError::invalid(
            "request_id",
            "looks like a key or a token, and is stored and shown: choose another",
        ));
    }
    let tenant = Tenant::parse(&submission.spec.tenant)
        .map_err(|error| RequestError::bad_id("metadata.tenant", &error))?;
    // It may have made a job: better no job than two.
    let key = RecordKey::Request(Some(tenant.clone()), submission.request.clone());
    state.unreadable().check(&key.to_string())?;
    if let Some(job) = state.request_job(&submission.spec.tenant, &submission.request) {
        state.unreadable().check(&RecordKey::Job(job.clone()).to_string())?;
    }
    let requested = state.requested(&submission.spec.tenant, &submission.request);
    if let Some(job) = requested.filter(|job| state.deletion(&job.record.id).is_none()) {
        if job.record.spec_json != submission.spec_json {
            let what = format!(
                "request id {} has submitted another spec, as job {}",
                submission.request, job.record.id
            );
            return Err(RequestError::Exists { what });
        }
        return Ok(Submitted { job: job.record.id.clone(), already: true, writes: Vec::new() });
    }
    if let Some(gone) = state.request_job(&submission.spec.tenant, &submission.request)
        && state.deletion(gone).is_some()
    {
        let what = format!(
            "request id {} has submitted job {gone}, which was deleted: submit with another one for a new job",
            submission.request
        );
        return Err(RequestError::Exists { what });
    }
    check_room(state, &tenant, limits)?;
    let id = free_id(state, &submission)?;
    let request =
        RequestRecord { tenant: Some(tenant), request: submission.request.clone(), job: id.clone() };
    let job = JobRecord {
        id: id.clone(),
        request: submission.request,
        spec: submission.spec,
        spec_json: submission.spec_json,
        state: JobState::Queued,
        submitted_at: now,
        trace: submission.trace,
        started_at: None,
        finished_at: None,
    };
    Ok(Submitted {
        job: id,
        already: false,
        writes: vec![Write::Put(Record::Job(job)), Write::Put(Record::Request(request))],
    })
}

/// Whether the queue takes one more job of the tenant.
fn check_room(state: &ClusterState, tenant: &Tenant, limits: QueueLimits) -> Result<(), RequestError> {
    if state.open_count() >= limits.max_open_jobs {
        let what = format!("{} jobs are waiting or running, which is the limit", state.open_count());
        return Err(RequestError::Full { what, retry_after: limits.retry_after });
    }
    quotas::check_submit(state, tenant, &limits.tenant, limits.retry_after)
}

fn free_id(state: &ClusterState, submission: &Submission) -> Result<JobId, RequestError> {
    for salt in 0..MAX_ID_TRIES {
        let id = JobId::derive(&submission.spec.name, &submission.spec.tenant, &submission.request, salt)
            .map_err(|error| RequestError::bad_id("metadata.name", &error))?;
        let is_taken = state.job(&id).is_some() || state.deletion(&id).is_some();
        if !is_taken && state.unreadable().of_job(&id).is_none() {
            return Ok(id);
        }
    }
    Err(RequestError::Exists { what: format!("too many jobs are called {}", submission.spec.name) })
}

/// Ends a job for good. A job that has ended stays as it is.
pub fn cancel_job(
    state: &ClusterState,
    id: &JobId,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<Write>, RequestError> {
    let reason = one_line(reason);
    let reason = if reason.is_empty() { "cancelled".to_owned() } else { reason };
    end_job(state, id, JobEvent::Cancel { reason: reason.clone() }, &reason, now)
}

/// Has a job give its slots back once its ranks have saved, until it is resumed. One that is paused takes over the new reason.
pub fn pause_job(state: &ClusterState, id: &JobId, pause: Pause) -> Result<Vec<Write>, RequestError> {
    let pause = Pause { reason: one_line(&pause.reason), ..pause };
    let job = open_job(state, id)?;
    let next = job.record.state.step(JobEvent::Pause(pause));
    let next = next.map_err(|refused| RequestError::TooLate { what: format!("job {id}: {refused}") })?;
    Ok(moved(job, next))
}

/// Puts a paused job back into the queue, at its old place. One that is not paused goes on as it does.
pub fn resume_job(state: &ClusterState, id: &JobId) -> Result<Vec<Write>, RequestError> {
    let job = open_job(state, id)?;
    Ok(job.record.state.step(JobEvent::Resume).map_or_else(|_| Vec::new(), |next| moved(job, next)))
}

/// Has a failed job tried again, from its newest checkpoint and with the pairs that it has. It goes to its old place in the
/// queue, and its failures are counted anew. One that is open goes on as it does.
pub fn retry_job(
    state: &ClusterState,
    id: &JobId,
    queue: QueueLimits,
    limits: &Limits,
) -> Result<Vec<Write>, RequestError> {
    state.unreadable().check_job(id)?;
    let job = state.job(id).ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
    let record = &job.record;
    if !record.state.is_terminal() {
        return Ok(Vec::new());
    }
    let refused = |what: String| RequestError::TooLate { what: format!("job {id} {what}") };
    if state.deletion(id).is_some() {
        return Err(refused("is being deleted".to_owned()));
    }
    let next = record.state.step(JobEvent::Retry);
    let next = next
        .map_err(|_| refused(format!("is {}; only one that has failed can be tried again", record.state)))?;
    if let Some(reason) = job.current_stage().and_then(|index| lost_pairs(state, limits, job, index)) {
        return Err(refused(format!("would fail again, since its pairs are settled: {reason}")));
    }
    let tenant = Tenant::parse(&record.spec.tenant)
        .map_err(|error| RequestError::bad_id("metadata.tenant", &error))?;
    check_room(state, &tenant, queue)?;
    let attempts = job.stages.iter().filter_map(|stage| stage.attempt.as_deref());
    // What it may do wrong, and how long it may run, is counted anew.
    let counted = attempts.filter(|attempt| attempt.failures_in_a_row > 0 || attempt.ran_millis > 0);
    let anew =
        counted.map(|attempt| AttemptRecord { failures_in_a_row: 0, ran_millis: 0, ..attempt.clone() });
    let mut writes: Vec<Write> = anew.map(|attempt| Write::Put(Record::Attempt(attempt))).collect();
    writes.push(Write::Put(Record::Job(JobRecord { state: next, finished_at: None, ..record.clone() })));
    Ok(writes)
}

fn open_job<'a>(state: &'a ClusterState, id: &JobId) -> Result<&'a Job, RequestError> {
    state.unreadable().check_job(id)?;
    let job = state.job(id).ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
    if job.record.state.is_terminal() {
        return Err(RequestError::TooLate { what: format!("job {id} is {}", job.record.state) });
    }
    Ok(job)
}

/// What is to be written for a job to be in this state, if it is not.
fn moved(job: &Job, state: JobState) -> Vec<Write> {
    if state == job.record.state {
        return Vec::new();
    }
    vec![Write::Put(Record::Job(JobRecord { state, ..job.record.clone() }))]
}

/// Ends a job and what runs of it by an event that makes it terminal. A job that has ended stays as it is.
pub(crate) fn end_job(
    state: &ClusterState,
    id: &JobId,
    event: JobEvent,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<Write>, RequestError> {
    let job = state.job(id).ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
    let Ok(next) = job.record.state.step(event) else {
        return Ok(Vec::new());
    };
    let mut writes: Vec<Write> = job
        .stages
        .iter()
        .filter_map(|stage| stage.active_attempt())
        .map(|attempt| Write::Put(Record::Attempt(ended(attempt, reason.to_owned(), now))))
        .collect();
    let record = JobRecord { state: next, finished_at: Some(now), ..job.record.clone() };
    writes.push(Write::Put(Record::Job(record)));
    Ok(writes)
}

pub(crate) fn ended(attempt: &AttemptRecord, reason: String, now: Timestamp) -> AttemptRecord {
    let ran_millis = u64::try_from(attempt.ran(now).as_millis()).unwrap_or(u64::MAX);
    AttemptRecord { state: AttemptState::Ended { reason, at: now }, ran_millis, ..attempt.clone() }
}

/// Text from outside as one bounded line.
/// Secrets that someone has put into it are not kept.
pub(crate) fn one_line(text: &str) -> String {
    let text = redact(text);
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect();
    line.trim().to_owned()
}
