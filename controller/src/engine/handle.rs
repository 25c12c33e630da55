//! Requests, one by one: what they write, and what they are answered.

use crescendo_core::access::Scope;
use crescendo_core::decide::{curators_of, is_cooling_down, peers_of, reachable_curators};
use crescendo_core::error::RequestError;
use crescendo_core::ids::{Generation, JobId, NodeId, StageRef, Timestamp};
use crescendo_core::note::Note;
use crescendo_core::pairlog::{Lease, UnitPolicy};
use crescendo_core::precision;
use crescendo_core::records::{FailureKind, Record, UnitRecord, UnitState, Write};
use crescendo_core::state::Job;
use crescendo_core::trace::TraceParent;
use crescendo_core::transitions::{self, QueueLimits, UnitFate, UnitLeaseRef};
use crescendo_node::telemetry::trace;
use crescendo_proto::{convert, v1};

use crate::engine::Engine;
use crate::engine::request::{ActingNode, Answer, DeferredReply, Reply, Request, SessionId, Wish};
use crate::engine::views::visible_job;
use crate::to_proto;

/// Wait that is suggested to a curator that finds no unit, milliseconds.
const LEASE_RETRY_MILLIS: u32 = 500;

impl Engine {
    pub(super) fn handle(&mut self, request: Request, now: Timestamp) {
        match request {
            Request::Submit { submission, reply } => {
                let answer = self.submit(submission, now);
                self.hold(reply, answer);
            }
            Request::Crawls { spec, reply } => {
                self.hold(reply, Ok(precision::crawls(&spec, self.state.nodes())));
            }
            Request::Overreaches { spec, reply } => {
                self.hold(reply, Ok(self.overreaches(&spec)));
            }
            Request::Look(request) => self.handle_look(request, now),
            Request::JobExists { job, scope, reply } => {
                self.hold(reply, self.job(&job, &scope).map(|found| !found.record.state.is_terminal()));
            }
            Request::SteerJob { job, scope, wish, reply } => {
                let answer = self.steer(&job, &scope, wish, now);
                self.hold(reply, answer);
            }
            Request::WatchJob { job, scope, from_revision, reply } => {
                let answer = self.watch_job(job, &scope, from_revision);
                self.hold(reply, answer);
            }
            Request::ForgetNode { node, reply } => self.forget_node(&node, reply),
            Request::DrainNode { node, undo, scope, reply } => {
                let answer = self.drain_node(&node, undo, &scope, now);
                self.hold(reply, answer);
            }
            Request::ListCheckpoints { job, scope, stage, reply } => {
                self.hold(reply, self.list_checkpoints(&job, &scope, stage.as_deref()));
            }
            Request::Objects(request) => self.handle_objects(request, now),
            Request::Samples(request) => self.handle_samples(request, now),
            Request::Deletions(request) => self.handle_deletions(request, now),
            Request::Notices(request) => self.handle_notices(request, now),
            Request::Marks(request) => self.handle_marks(request, now),
            Request::CommitCheckpoint { checkpoint, by, reply } => {
                let answer = self.commit_checkpoint(checkpoint, &by, now);
                self.hold(reply, answer);
            }
            Request::MarkDamaged { stage, generation, path, reason, by, reply } => {
                let answer = self.mark_damaged(&stage, generation, &path, &reason, &by);
                self.hold(reply, answer);
            }
            Request::WatchPairLog { stage, scope, from_unit, reply } => {
                let answer = self.watch_pair_log(stage, &scope, from_unit);
                self.hold(reply, answer);
            }
            Request::LeaseUnit { .. }
            | Request::RenewUnit { .. }
            | Request::CommitUnit { .. }
            | Request::FailUnit { .. } => self.handle_unit(request, now),
            Request::OpenSession { introduction, reply } => {
                let answer = self.open_session(*introduction, now);
                self.hold(reply, answer);
            }
            Request::Heartbeat { node, session } => self.heartbeat(&node, session, now),
            Request::AssignmentRefused { node, session, stage, reason } => {
                self.assignment_refused(&node, session, &stage, &reason, now);
            }
            Request::NodeDrains { node, session } => self.node_drains(&node, session),
            Request::NodeHealth { node, session, health } => self.take_health(&node, session, health),
            Request::HandsOver { reply } => self.hold(reply, Ok(self.is_left())),
            Request::Report { session, report } => self.take_report(session, report, now),
            Request::CloseSession { node, session } => self.close_session(&node, session),
        }
    }

    /// Curators that may work on the job.
    fn curator_count(&self, job: &JobId, now: Timestamp) -> u32 {
        let count = curators_of(&self.state, &self.observed, &self.limits, job, now);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn extend_lease(&mut self, renewed: UnitRecord) {
        if let Err(orphan) = self.state.apply(Write::Put(Record::Unit(renewed))) {
            tracing::error!(%orphan, "a renewed unit has no stage any more; its lease is not extended");
        }
    }

    /// By the curators that there are; they are counted once a batch.
    fn unit_policy(&mut self, now: Timestamp) -> UnitPolicy {
        let open = || reachable_curators(&self.state, &self.observed, &self.limits, now);
        self.limits.unit_policy(*self.curators.get_or_insert_with(open))
    }

    fn handle_unit(&mut self, request: Request, now: Timestamp) {
        let policy = self.unit_policy(now);
        let ttl_millis = u32::try_from(policy.lease_ttl.as_millis()).unwrap_or(u32::MAX);
        let curators = |engine: &Self, job: &JobId| engine.curator_count(job, now);
        match request {
            Request::LeaseUnit { stage, node, reply } => {
                let leased = self.lease_unit(&stage, &node, &policy, now);
                let answer = leased.map(|lease| lease_message(lease, ttl_millis, curators(self, &stage.job)));
                self.hold(reply, answer);
            }
            Request::RenewUnit { lease, node, by, reply } => {
                self.observed.heard(&node, now);
                let renewed = self
                    .check_holds(&lease, &by)
                    .and_then(|()| transitions::renew_unit(&self.state, &lease, &node, &policy, now));
                let answer = renewed.map_err(Into::into).map(|record| {
                    self.extend_lease(record);
                    v1::RenewUnitResponse { ttl_millis, curators: curators(self, &lease.stage.job) }
                });
                self.hold(reply, answer);
            }
            Request::CommitUnit { commit, node, by, reply } => {
                let stage = commit.lease.stage.clone();
                let committed = self
                    .check_holds(&commit.lease, &by)
                    .and_then(|()| transitions::commit_unit(&self.state, commit));
                let answer = committed.map_err(Into::into).map(|committed| {
                    self.observed.cooldowns.lift(&stage, &node);
                    self.observed.under_way.ended(&stage, &node);
                    self.write_all(committed.writes);
                    self.count_pairs(&stage, now);
                    v1::CommitUnitResponse { done_already: committed.done_already }
                });
                self.hold(reply, answer);
            }
            Request::FailUnit { lease, node, reason, fate, by, reply } => {
                let policy = self.policy_for(&policy, &lease.stage, &node, now);
                let at = self.time_of(fate, now);
                let failed = self.check_holds(&lease, &by).and_then(|()| {
                    transitions::fail_unit(&self.state, &lease, &node, &policy, fate, &reason, at)
                });
                let answer = failed.map_err(Into::into).map(|(quarantined, writes)| {
                    self.unit_failed(&lease, &node, fate, &reason, quarantined, now);
                    self.write_all(writes);
                    v1::FailUnitResponse { quarantined }
                });
                self.hold(reply, answer);
            }
            Request::Submit { .. }
            | Request::Crawls { .. }
            | Request::Overreaches { .. }
            | Request::Look(_)
            | Request::SteerJob { .. }
            | Request::WatchJob { .. }
            | Request::JobExists { .. }
            | Request::ListCheckpoints { .. }
            | Request::Objects(_)
            | Request::Samples(_)
            | Request::Deletions(_)
            | Request::Notices(_)
            | Request::Marks(_)
            | Request::CommitCheckpoint { .. }
            | Request::MarkDamaged { .. }
            | Request::WatchPairLog { .. }
            | Request::OpenSession { .. }
            | Request::Heartbeat { .. }
            | Request::DrainNode { .. }
            | Request::ForgetNode { .. }
            | Request::AssignmentRefused { .. }
            | Request::HandsOver { .. }
            | Request::NodeDrains { .. }
            | Request::NodeHealth { .. }
            | Request::Report { .. }
            | Request::CloseSession { .. } => {}
        }
    }

    /// The end of a job is shown; when a unit is tried again is decided.
    fn time_of(&self, fate: UnitFate, now: Timestamp) -> Timestamp {
        if fate == UnitFate::JobFails { self.observed.wall(now) } else { now }
    }

    /// A moment of a job, as a span of its trace if it has one.
    pub(super) fn mark(&self, job: &JobId, span: impl FnOnce(Option<TraceParent>)) {
        if let Some(job) = self.state.job(job)
            && job.record.trace.is_some()
        {
            span(job.record.trace);
        }
    }

    /// Keeps the answer until the batch is durable.
    pub(super) fn hold<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Answer<T>) {
        self.held.push(DeferredReply::new(reply, answer));
    }

    pub(super) fn write_all(&mut self, writes: Vec<Write>) {
        for write in writes {
            self.write(write);
        }
    }

    /// An attempt is spoken for by the nodes that run it. One that is not the newest is refused as such elsewhere.
    fn check_runs_on(
        &self,
        stage: &StageRef,
        generation: Generation,
        by: &ActingNode,
    ) -> Result<(), RequestError> {
        let attempt = self.state.stage(stage).and_then(|stage| stage.attempt.as_ref());
        match (by, attempt.filter(|attempt| attempt.attempt.generation == generation)) {
            (Some(node), Some(attempt)) if !attempt.runs_on(node) => Err(RequestError::Forbidden {
                what: format!("{} does not run on node {node}", attempt.attempt),
            }),
            _ => Ok(()),
        }
    }

    /// A lease is spoken for by the node that holds it. One that is over is refused as such elsewhere.
    fn check_holds(&self, lease: &UnitLeaseRef, by: &ActingNode) -> Result<(), RequestError> {
        let unit = self.state.stage(&lease.stage).and_then(|stage| stage.log.open_unit(lease.unit));
        let holder =
            unit.filter(|unit| unit.lease_generation == lease.lease_generation).and_then(|unit| match &unit
                .state
            {
                UnitState::Leased { node, .. } => Some(node),
                UnitState::Free { .. } | UnitState::Done(_) => None,
            });
        match (by, holder) {
            (Some(node), Some(holder)) if holder != node => Err(RequestError::Forbidden {
                what: format!("unit {} is not leased to node {node}", lease.unit),
            }),
            _ => Ok(()),
        }
    }

    /// The job, if `scope` sees it.
    pub(super) fn job(&self, id: &JobId, scope: &Scope) -> Answer<&Job> {
        Ok(visible_job(&self.state, id, scope)?)
    }

    /// Takes note of how many pairs of the stage can be read, for estimates.
    fn count_pairs(&mut self, stage: &StageRef, now: Timestamp) {
        if let Some(found) = self.state.stage(stage) {
            self.observed.pairs_counted(stage, found.log.committed(), now);
        }
    }

    /// The policy, with the curators that may make the stage's units besides this one.
    fn policy_for(&self, policy: &UnitPolicy, stage: &StageRef, node: &NodeId, now: Timestamp) -> UnitPolicy {
        let peers = peers_of(&self.state, &self.observed, &self.limits, stage, node, now);
        UnitPolicy { peers, ..policy.clone() }
    }

    /// What a curator gets to make; one in cooldown waits.
    fn lease_unit(
        &mut self,
        stage: &StageRef,
        node: &NodeId,
        policy: &UnitPolicy,
        now: Timestamp,
    ) -> Answer<Lease> {
        self.observed.heard(node, now);
        let policy = &self.policy_for(policy, stage, node, now);
        let leased = transitions::lease_unit(&self.state, stage, node, policy, now);
        let waits = is_cooling_down(&self.state, &self.observed, &self.limits, stage, node, now)
            || self.state.job(&stage.job).is_some_and(|job| {
                !self.limits.quotas.may_curate(&self.state, &job.record.spec.tenant, node, now)
            });
        self.count_pairs(stage, now);
        let (lease, writes) = match leased? {
            (Lease::Granted(_) | Lease::GivenUp(_), _) if waits => (Lease::Wait, Vec::new()),
            leased => leased,
        };
        self.write_all(writes);
        Ok(lease)
    }

    /// Says that a unit was given back, and remembers a curator that cannot open the stage's source.
    fn unit_failed(
        &mut self,
        lease: &UnitLeaseRef,
        node: &NodeId,
        fate: UnitFate,
        reason: &str,
        quarantined: bool,
        now: Timestamp,
    ) {
        self.observed.under_way.ended(&lease.stage, node);
        let UnitLeaseRef { stage: StageRef { job, stage }, unit, .. } = lease;
        match fate {
            UnitFate::Failed(FailureKind::Passing) => {
                tracing::warn!(%job, %stage, %node, unit, quarantined, reason, "unit has failed");
                self.observed.failed_at(&lease.stage, node, FailureKind::Passing, reason, now);
                if is_cooling_down(&self.state, &self.observed, &self.limits, &lease.stage, node, now) {
                    tracing::warn!(%job, %stage, %node, reason, "the curator fails at unit after unit: it is benched, others make the stage's units");
                }
            }
            UnitFate::Failed(FailureKind::Source) => {
                tracing::warn!(%job, %stage, %node, unit, reason, "the curator cannot open the stage's source; it gets no unit of the stage for a while");
                self.observed.cannot_open(&lease.stage, node, reason, now);
            }
            UnitFate::Released => {
                tracing::info!(%job, %stage, %node, unit, reason, "unit is released");
            }
            UnitFate::JobFails => {
                tracing::error!(%job, %stage, %node, unit, reason, "the stage's pairs cannot be made, the job fails");
            }
        }
    }

    fn list_checkpoints(
        &self,
        job: &JobId,
        scope: &Scope,
        stage: Option<&str>,
    ) -> Answer<Vec<v1::Checkpoint>> {
        Ok(to_proto::checkpoints(self.job(job, scope)?, stage)?)
    }

    fn heartbeat(&mut self, node: &NodeId, session: SessionId, now: Timestamp) {
        if self.sessions.is_newest(node, session) {
            self.observed.heard(node, now);
        }
    }

    fn mark_damaged(
        &mut self,
        stage: &StageRef,
        generation: Generation,
        path: &str,
        reason: &str,
        by: &ActingNode,
    ) -> Answer<()> {
        self.check_runs_on(stage, generation, by)?;
        let writes = transitions::mark_checkpoint_damaged(&self.state, stage, generation, path, reason)?;
        tracing::warn!(job = %stage.job, stage = %stage.stage, generation = generation.0, path, reason, "checkpoint is damaged");
        self.write_all(writes);
        Ok(())
    }

    fn submit(&mut self, submission: transitions::Submission, now: Timestamp) -> Answer<(v1::Job, bool)> {
        let tenant = submission.spec.tenant.as_str();
        // What was taken once stays taken.
        if self.state.requested(tenant, &submission.request).is_none() {
            self.limits.quotas.check_may_submit(tenant)?;
            let overreaches = self.overreaches(&submission.spec);
            if !overreaches.is_empty() {
                return Err(RequestError::Overreach { overreaches }.into());
            }
        }
        let limits = QueueLimits { tenant: self.limits.quotas.of(tenant), ..self.around.config.queue };
        let submitted = transitions::submit_job(&self.state, submission, limits, self.observed.wall(now))?;
        let (id, already) = (submitted.job, submitted.already);
        if !already {
            tracing::info!(job = %id, "job is submitted");
        }
        self.write_all(submitted.writes);
        let job = self.job(&id, &Scope::Everything)?;
        Ok((self.views(now).job(job, false), already))
    }

    fn steer(&mut self, id: &JobId, scope: &Scope, wish: Wish, now: Timestamp) -> Answer<v1::Job> {
        let tenant = self.job(id, scope)?.record.spec.tenant.clone();
        let state = &self.state;
        let (writes, reason, done) = match wish {
            Wish::Cancel { reason } => {
                let writes = transitions::cancel_job(state, id, &reason, self.observed.wall(now))?;
                (writes, reason, "job is cancelled")
            }
            Wish::Pause(pause) => {
                let reason = pause.reason.clone();
                (transitions::pause_job(state, id, pause)?, reason, "job is paused")
            }
            Wish::Resume => (transitions::resume_job(state, id)?, String::new(), "job is resumed"),
            Wish::Retry => {
                self.limits.quotas.check_may_submit(&tenant)?;
                let queue =
                    QueueLimits { tenant: self.limits.quotas.of(&tenant), ..self.around.config.queue };
                let writes = transitions::retry_job(state, id, queue, &self.limits)?;
                (writes, String::new(), "job is tried again")
            }
            Wish::Note { by, text } => {
                let note = Note { at: self.observed.wall(now), by, text };
                (transitions::note_job(state, id, note)?, String::new(), "job has a new note")
            }
        };
        if !writes.is_empty() {
            tracing::info!(job = %id, reason, "{done}");
        }
        self.write_all(writes);
        Ok(self.views(now).job(self.job(id, scope)?, true))
    }

    pub(super) fn commit_checkpoint(
        &mut self,
        checkpoint: crescendo_core::records::CheckpointRecord,
        by: &ActingNode,
        now: Timestamp,
    ) -> Answer<v1::CommitCheckpointResponse> {
        self.check_runs_on(&checkpoint.stage, checkpoint.generation, by)?;
        let committed = transitions::commit_checkpoint(&self.state, checkpoint, self.observed.wall(now))?;
        if !committed.writes.is_empty() {
            let saved = &committed.checkpoint;
            self.mark(&saved.stage.job, |trace| {
                let span = tracing::info_span!(
                    target: trace::TARGET, "commit checkpoint", job = %saved.stage.job, stage = %saved.stage.stage,
                    generation = trace::number(saved.generation.0), step = trace::number(saved.step), is_final = saved.is_final
                );
                trace::set_parent(&span, trace);
            });
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
