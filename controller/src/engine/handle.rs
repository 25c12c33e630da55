//! Requests, one by one: what they write, and what they are answered.

use crescendo_core::decide::{curators_of, reachable_curators};
use crescendo_core::error::Refused;
use crescendo_core::ids::{JobId, Timestamp};
use crescendo_core::pairlog::Lease;
use crescendo_core::records::{Record, UnitState, Write};
use crescendo_core::requests;
use crescendo_core::state::Job;
use crescendo_proto::{convert, v1};

use crate::engine::Engine;
use crate::engine::request::{Answer, Held, Reply, Request};
use crate::views;

/// Jobs on a page unless asked otherwise, and at most.
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 500;
/// Wait that is suggested to a curator that finds no unit, milliseconds.
const LEASE_RETRY_MILLIS: u32 = 500;

impl Engine {
    pub(super) fn handle(&mut self, request: Request, now: Timestamp) {
        match request {
            Request::Submit { submission, reply } => {
                let answer = self.submit(submission, now);
                self.hold(reply, answer);
            }
            Request::GetJob { job, reply } => {
                let answer = self.job(&job).map(|found| self.job_view(found, now, true));
                self.hold(reply, answer);
            }
            Request::JobExists { job, reply } => {
                let answer = self.job(&job).map(|found| !found.record.state.is_terminal());
                self.hold(reply, answer);
            }
            Request::ListJobs { request, reply } => {
                let answer = self.list_jobs(&request, now);
                self.hold(reply, answer);
            }
            Request::CancelJob { job, reason, reply } => {
                let answer = self.cancel(&job, &reason, now);
                self.hold(reply, answer);
            }
            Request::WatchJob { job, from_revision, reply } => {
                let answer = self.watch_job(job, from_revision);
                self.hold(reply, answer);
            }
            Request::ListNodes { reply } => {
                let answer = Ok(views::nodes(&self.state, &self.observed, &self.around.config.limits, now));
                self.hold(reply, answer);
            }
            Request::ListCheckpoints { job, stage, reply } => {
                let answer = self
                    .job(&job)
                    .and_then(|job| views::checkpoints(job, stage.as_deref()).map_err(Into::into));
                self.hold(reply, answer);
            }
            Request::CommitCheckpoint { checkpoint, reply } => {
                let answer = self.commit_checkpoint(checkpoint, now);
                self.hold(reply, answer);
            }
            Request::MarkDamaged { stage, generation, path, reason, reply } => {
                let writes =
                    requests::mark_checkpoint_damaged(&self.state, &stage, generation, &path, &reason);
                let answer = writes.map_err(Into::into).map(|writes| {
                    tracing::warn!(job = %stage.job, stage = %stage.stage, generation = generation.0, path, reason, "checkpoint is damaged");
                    self.write_all(writes);
                });
                self.hold(reply, answer);
            }
            Request::WatchPairLog { stage, from_unit, reply } => {
                let answer = self.watch_pair_log(stage, from_unit);
                self.hold(reply, answer);
            }
            Request::LeaseUnit { .. }
            | Request::RenewUnit { .. }
            | Request::CommitUnit { .. }
            | Request::FailUnit { .. } => {
                self.handle_unit(request, now);
            }
            Request::OpenSession { introduction, reply } => {
                let answer = self.open_session(introduction, now);
                self.hold(reply, answer);
            }
            Request::Heartbeat { node, session } => {
                if self.sessions.is_newest(&node, session) {
                    self.observed.heard(&node, now);
                }
            }
            Request::Report { session, report } => self.take_report(session, report, now),
            Request::CloseSession { node, session } => self.close_session(&node, session),
        }
    }

    fn handle_unit(&mut self, request: Request, now: Timestamp) {
        let limits = &self.around.config.limits;
        let policy = limits.unit_policy(reachable_curators(&self.state, &self.observed, limits, now));
        let ttl_millis = u32::try_from(policy.lease_ttl.as_millis()).unwrap_or(u32::MAX);
        let curators = |engine: &Self, job: &JobId| {
            let count = curators_of(&engine.state, &engine.observed, &engine.around.config.limits, job, now);
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        match request {
            Request::LeaseUnit { stage, node, reply } => {
                self.observed.heard(&node, now);
                let leased = requests::lease_unit(&self.state, &stage, &node, &policy, now);
                let answer = leased.map_err(Into::into).map(|(lease, writes)| {
                    self.write_all(writes);
                    lease_message(lease, ttl_millis, curators(self, &stage.job))
                });
                self.hold(reply, answer);
            }
            Request::RenewUnit { lease, node, reply } => {
                self.observed.heard(&node, now);
                let renewed = requests::renew_unit(&self.state, &lease, &node, &policy, now);
                let answer = renewed.map_err(Into::into).map(|record| {
                    // In memory alone: a controller that restarts grants every lease a full term.
                    if let Err(orphan) = self.state.apply(Write::Put(Record::Unit(record))) {
                        tracing::error!(%orphan, "left a renewal out");
                    }
                    v1::RenewUnitResponse { ttl_millis, curators: curators(self, &lease.stage.job) }
                });
                self.hold(reply, answer);
            }
            Request::CommitUnit { commit, reply } => {
                let answer =
                    requests::commit_unit(&self.state, commit).map_err(Into::into).map(|committed| {
                        self.write_all(committed.writes);
                        v1::CommitUnitResponse { done_already: committed.done_already }
                    });
                self.hold(reply, answer);
            }
            Request::FailUnit { lease, node, reason, job_fails: true, reply } => {
                let answer =
                    requests::fail_stage(&self.state, &lease, &reason, now).map_err(Into::into).map(|writes| {
                        let stage = &lease.stage;
                        tracing::error!(job = %stage.job, stage = %stage.stage, %node, reason, "the stage's pairs cannot be made, the job fails");
                        self.write_all(writes);
                        v1::FailUnitResponse { set_aside: false }
                    });
                self.hold(reply, answer);
            }
            Request::FailUnit { lease, node, reason, job_fails: false, reply } => {
                let failed = requests::fail_unit(&self.state, &lease, &policy, now);
                let answer = failed.map_err(Into::into).map(|(set_aside, writes)| {
                    let (stage, unit) = (&lease.stage, lease.unit);
                    tracing::warn!(job = %stage.job, stage = %stage.stage, %node, unit, set_aside, reason, "unit has failed");
                    self.write_all(writes);
                    v1::FailUnitResponse { set_aside }
                });
                self.hold(reply, answer);
            }
            Request::Submit { .. }
            | Request::GetJob { .. }
            | Request::ListJobs { .. }
            | Request::CancelJob { .. }
            | Request::WatchJob { .. }
            | Request::JobExists { .. }
            | Request::ListNodes { .. }
            | Request::ListCheckpoints { .. }
            | Request::CommitCheckpoint { .. }
            | Request::MarkDamaged { .. }
            | Request::WatchPairLog { .. }
            | Request::OpenSession { .. }
            | Request::Heartbeat { .. }
            | Request::Report { .. }
            | Request::CloseSession { .. } => {}
        }
    }

    /// Keeps the answer until the batch is durable.
    fn hold<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Answer<T>) {
        self.held.push(Held::new(reply, answer));
    }

    pub(super) fn write_all(&mut self, writes: Vec<Write>) {
        for write in writes {
            self.write(write);
        }
    }

    pub(super) fn job(&self, id: &JobId) -> Answer<&Job> {
        Ok(self.state.job(id).ok_or_else(|| Refused::NotFound { what: format!("job {id}") })?)
    }

    /// The job as a message; `full` adds the spec.
    pub(super) fn job_view(&self, job: &Job, now: Timestamp, full: bool) -> v1::Job {
        let id = &job.record.id;
        let mut message = views::job(job, &self.observed, self.waits.get(id), now);
        message.revision = self.records.job_revision(id);
        if full {
            message.resolved_spec_yaml = crescendo_core::spec::to_yaml(&job.record.spec);
        }
        message
    }

    fn submit(&mut self, submission: requests::Submission, now: Timestamp) -> Answer<(v1::Job, bool)> {
        let submitted = requests::submit_job(&self.state, submission, self.around.config.queue, now)?;
        let (id, already) = (submitted.job, submitted.already);
        if !already {
            tracing::info!(job = %id, "job is submitted");
        }
        self.write_all(submitted.writes);
        let job = self.job(&id)?;
        Ok((self.job_view(job, now, false), already))
    }

    fn cancel(&mut self, id: &JobId, reason: &str, now: Timestamp) -> Answer<v1::Job> {
        let writes = requests::cancel_job(&self.state, id, reason, now)?;
        if !writes.is_empty() {
            tracing::info!(job = %id, reason, "job is cancelled");
        }
        self.write_all(writes);
        Ok(self.job_view(self.job(id)?, now, true))
    }

    fn commit_checkpoint(
        &mut self,
        checkpoint: crescendo_core::records::CheckpointRecord,
        now: Timestamp,
    ) -> Answer<v1::CommitCheckpointResponse> {
        let committed = requests::commit_checkpoint(&self.state, checkpoint, now)?;
        if !committed.writes.is_empty() {
            let saved = &committed.checkpoint;
            tracing::info!(
                job = %saved.stage.job, stage = %saved.stage.stage, generation = saved.generation.0,
                step = saved.step, is_final = saved.is_final, "checkpoint is committed"
            );
        }
        self.write_all(committed.writes);
        Ok(v1::CommitCheckpointResponse {
            checkpoint: Some(convert::checkpoint_message(&committed.checkpoint)),
            expired: committed.expired.iter().map(convert::checkpoint_message).collect(),
        })
    }

    fn list_jobs(&self, request: &v1::ListJobsRequest, now: Timestamp) -> Answer<v1::ListJobsResponse> {
        let size = match request.page_size as usize {
            0 => DEFAULT_PAGE,
            size if size <= MAX_PAGE => size,
            _ => return Err(Refused::invalid("page_size", format!("must be at most {MAX_PAGE}")).into()),
        };
        let after = views::PageToken::parse(&request.page_token)?;
        let wanted = |job: &&Job| {
            let record = &job.record;
            (request.states.is_empty() || request.states.contains(&convert::job_state(&record.state).into()))
                && record.spec.name.starts_with(&request.name_prefix)
                && (request.tenant.is_empty() || record.spec.tenant == request.tenant)
        };
        let mut found: Vec<(views::PageToken, &Job)> = self
            .state
            .jobs()
            .filter(wanted)
            .map(|job| (views::PageToken::of(job), job))
            .filter(|(at, _)| after.as_ref().is_none_or(|after| at > after))
            .collect();
        found.sort_by(|(left, _), (right, _)| left.cmp(right));
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some((at, _)) if more => at.to_string(),
            Some(_) | None => String::new(),
        };
        let jobs = found.into_iter().map(|(_, job)| self.job_view(job, now, false)).collect();
        Ok(v1::ListJobsResponse { jobs, next_page_token })
    }
}

fn lease_message(lease: Lease, ttl_millis: u32, curators: u32) -> v1::LeaseUnitResponse {
    use v1::lease_unit_response::Outcome;
    let (outcome, unit) = match lease {
        Lease::Granted(record) => {
            debug_assert!(matches!(record.state, UnitState::Leased { .. }), "a grant is a lease");
            let unit = v1::UnitLease {
                job_id: record.stage.job.to_string(),
                stage: record.stage.stage.to_string(),
                unit: record.unit,
                lease_generation: record.lease_generation,
                ttl_millis,
            };
            (Outcome::Leased, Some(unit))
        }
        Lease::GivenUp(_) | Lease::Wait => (Outcome::Wait, None),
        Lease::Sealed => (Outcome::Sealed, None),
    };
    v1::LeaseUnitResponse { outcome: outcome.into(), unit, retry_millis: LEASE_RETRY_MILLIS, curators }
}
