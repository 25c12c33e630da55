//! What webhooks are to be told: the worker beside the engine asks what is due, delivers it, and says how it went.

use std::collections::BTreeSet;

use crescendo_core::ids::{JobId, Timestamp};
use crescendo_core::notices::{self, AfterFailure, DeliveryKey, EndNotice};

use crate::engine::Engine;
use crate::engine::request::{Delivery, DeliveryOutcome, NoticeRequest};

impl Engine {
    pub(super) fn handle_notices(&mut self, request: NoticeRequest, now: Timestamp) {
        match request {
            NoticeRequest::Due { under_way, reply } => {
                let due = self.due_deliveries(&under_way, now);
                self.hold(reply, Ok(due));
            }
            NoticeRequest::Settled { delivery, outcome, reply } => {
                self.settle_delivery(&delivery, outcome, now);
                self.hold(reply, Ok(()));
            }
        }
    }

    fn due_deliveries(&mut self, under_way: &BTreeSet<DeliveryKey>, now: Timestamp) -> Vec<Delivery> {
        let webhooks = &self.limits.quotas.webhooks;
        let due = self.notices.due(&self.state, webhooks, under_way, now);
        let deliveries = due.deliver.iter().filter_map(|key| self.delivery(key)).collect();
        for key in due.withdrawn {
            tracing::warn!(job = %key.job, "a webhook is in the tenants file no more and has not been told of a job's end");
            self.around.metrics.webhook("given_up");
            self.drop_delivery(&key);
        }
        deliveries
    }

    fn delivery(&self, key: &DeliveryKey) -> Option<Delivery> {
        let job = self.state.job(&key.job)?;
        let webhook = self.limits.quotas.webhooks.find(&job.record.spec.tenant, &key.webhook)?;
        let notice = self.state.notice(&key.job)?;
        let end: &EndNotice = notice.ends.iter().find(|end| end.finished_at == key.finished_at)?;
        Some(Delivery {
            webhook: webhook.clone(),
            spec: job.record.spec.clone(),
            submitted_at: job.record.submitted_at,
            end: end.clone(),
            attempt: self.notices.next_try(key),
            key: key.clone(),
        })
    }

    fn settle_delivery(&mut self, key: &DeliveryKey, outcome: DeliveryOutcome, now: Timestamp) {
        // Of a job that is deleted nothing is known any more, nor is it to be.
        let Some(tenant) = self.state.tenant_of(&key.job).map(str::to_owned) else { return };
        let found = self.limits.quotas.webhooks.find(&tenant, &key.webhook);
        let webhook = found.map_or("one that is in the file no more", |webhook| &webhook.shown).to_owned();
        let job = &key.job;
        match outcome {
            DeliveryOutcome::Delivered => {
                self.around.metrics.webhook("delivered");
                if self.notices.succeeded(&tenant, key) {
                    tracing::info!(%tenant, webhook, "a webhook takes deliveries again");
                }
                self.drop_delivery(key);
            }
            DeliveryOutcome::Gone => {
                self.around.metrics.webhook("given_up");
                tracing::warn!(%tenant, webhook, %job, "a webhook answers 410, so it is not told of the job's end; take it out of the tenants file");
                self.drop_delivery(key);
            }
            DeliveryOutcome::Failed { why, no_secret } => {
                self.around.metrics.webhook(if no_secret { "no_secret" } else { "failed" });
                let since_end = self.observed.wall(now).since(key.finished_at);
                let (next, is_new) = self.notices.failed(&tenant, key, &why, since_end, now);
                if is_new {
                    tracing::warn!(%tenant, webhook, %job, why, "a webhook cannot be told of a job's end; it is tried again for a day");
                }
                if next == AfterFailure::GivenUp {
                    self.around.metrics.webhook("given_up");
                    tracing::warn!(%tenant, webhook, %job, why, "a webhook is not told of a job's end: a day of tries has failed");
                    self.drop_delivery(key);
                }
            }
        }
    }

    /// Deliveries of older ends of a job have made room for those of a newer one.
    pub(super) fn note_dropped(&self, job: Option<&JobId>, dropped: usize) {
        if dropped > 0 {
            let job = job.map(JobId::as_str);
            tracing::warn!(
                job,
                dropped,
                "webhooks are not told of the oldest end of a job: it has ended more often than is kept"
            );
            (0..dropped).for_each(|_| self.around.metrics.webhook("given_up"));
        }
    }

    fn drop_delivery(&mut self, key: &DeliveryKey) {
        self.notices.forget(key);
        if let Some(write) = notices::done(&self.state, key) {
            self.write(write);
        }
    }
}
