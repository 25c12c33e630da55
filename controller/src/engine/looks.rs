//! Those who only look are answered from a snapshot, beside the engine.

use std::sync::Arc;

use crescendo_core::ids::Timestamp;
use crescendo_core::transitions;

use crate::engine::Engine;
use crate::engine::request::{Answer, Later, LookRequest, Reply};
use crate::engine::views::{Snapshot, Views, visible_job};
use crate::to_proto;

impl Engine {
    pub(super) fn views(&self, now: Timestamp) -> Views<'_> {
        Views {
            state: &self.state,
            observed: &self.observed,
            limits: &self.limits,
            waits: &self.waits,
            job_revisions: self.records.job_revisions(),
            troubles: &self.deletions.troubles,
            drawing: &self.samplings.under_way,
            now,
        }
    }

    /// What there is now, once for all who look before something else is asked for.
    pub(super) fn snapshot(&mut self, now: Timestamp) -> Arc<Snapshot> {
        let take = || {
            Arc::new(Snapshot {
                state: self.state.clone(),
                observed: self.observed.clone(),
                limits: self.limits.clone(),
                waits: self.waits.clone(),
                job_revisions: self.records.job_revisions().clone(),
                troubles: self.deletions.troubles.clone(),
                drawing: self.samplings.under_way.clone(),
                now,
            })
        };
        self.snapshot.get_or_insert_with(take).clone()
    }

    pub(super) fn handle_look(&mut self, request: LookRequest, now: Timestamp) {
        match request {
            LookRequest::GetJob { job, scope, reply } => {
                self.hold_later(reply, now, move |views| {
                    Ok(views.job(visible_job(views.state, &job, &scope)?, true))
                });
            }
            LookRequest::ExplainJob { job, scope, reply } => {
                let untold = self.notices.finding(&self.state, &self.limits.quotas.webhooks, &job, now);
                self.hold_later(reply, now, move |views| {
                    Ok(views.explained(visible_job(views.state, &job, &scope)?, &scope, untold))
                });
            }
            LookRequest::ListJobs { request, scope, reply } => {
                self.hold_later(reply, now, move |views| Ok(views.jobs(&request, &scope)?));
            }
            LookRequest::ListNodes { scope, reply } => {
                self.hold_later(reply, now, move |Views { state, observed, limits, now, .. }| {
                    Ok(to_proto::nodes(state, observed, limits, &scope, now))
                });
            }
            LookRequest::ListQueues { scope, reply } => {
                self.hold_later(reply, now, move |Views { state, observed, limits, now, .. }| {
                    Ok(to_proto::queues::queues(state, &limits.quotas, &scope, observed.counted(now)))
                });
            }
            LookRequest::ListSamples { job, stage, scope, reply } => {
                self.hold_later(reply, now, move |views| Ok(views.samplings(&job, &stage, &scope)?));
            }
            LookRequest::Continuation { job, scope, steps, name, reply } => {
                self.hold_later(reply, now, move |Views { state, .. }| {
                    visible_job(state, &job, &scope)?;
                    let spec = transitions::continuation(state, &job, steps, name)?;
                    Ok(crescendo_core::spec::to_yaml(&spec))
                });
            }
            LookRequest::Snapshot { reply } => {
                let snapshot = self.snapshot(now);
                self.hold(reply, Ok(Later::new(move || Ok(snapshot))));
            }
            LookRequest::ListUsage { scope, reply } => {
                self.hold_later(reply, now, move |Views { state, observed, limits, now, .. }| {
                    Ok(to_proto::queues::usage(state, &limits.quotas, &scope, observed.counted(now)))
                });
            }
        }
    }

    /// Lets the caller work out its answer beside the engine, once what it rests on is durable.
    fn hold_later<T: Send + 'static>(
        &mut self,
        reply: Reply<Later<T>>,
        now: Timestamp,
        work: impl FnOnce(Views<'_>) -> Answer<T> + Send + 'static,
    ) {
        let snapshot = self.snapshot(now);
        self.hold(reply, Ok(Later::new(move || work(snapshot.views()))));
    }
}
