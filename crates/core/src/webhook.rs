//! A tenant's webhooks, and what they are still to be told. When they are told is decided in [`crate::notices`].

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::ids::{JobId, Tenant, Timestamp};
use crate::job::JobState;
use crate::secret::Secret;

/// Webhooks of one tenant at most.
pub const MAX_WEBHOOKS: usize = 8;

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobEnd {
    Succeeded,
    Failed,
    Cancelled,
}

impl JobEnd {
    pub const ALL: [Self; 3] = [Self::Succeeded, Self::Failed, Self::Cancelled];

    /// None of a state that is not terminal.
    pub fn of(state: &JobState) -> Option<Self> {
        match state {
            JobState::Succeeded => Some(Self::Succeeded),
            JobState::Failed { .. } => Some(Self::Failed),
            JobState::Cancelled { .. } => Some(Self::Cancelled),
            JobState::Queued
            | JobState::Placing { .. }
            | JobState::Running { .. }
            | JobState::Paused(_)
            | JobState::Preempting { .. } => None,
        }
    }
}

/// What tells webhooks apart, whatever their order in the file: a digest of the URL, as URLs may hold keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WebhookId(pub String);

/// Where the ends of a tenant's jobs are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: Secret,
    /// Scheme, host and port of the URL, for people.
    pub shown: String,
    pub events: BTreeSet<JobEnd>,
    /// Name of the secret that deliveries are signed with.
    pub secret: Option<String>,
}

/// The webhooks of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Webhooks {
    pub listed: BTreeMap<Tenant, Vec<Webhook>>,
    /// Those of every tenant that is not listed.
    pub others: Vec<Webhook>,
}

impl Webhooks {
    pub fn of(&self, tenant: &str) -> &[Webhook] {
        let listed = Tenant::parse(tenant).ok().and_then(|tenant| self.listed.get(&tenant));
        listed.unwrap_or(&self.others)
    }

    pub fn find(&self, tenant: &str, id: &WebhookId) -> Option<&Webhook> {
        self.of(tenant).iter().find(|webhook| webhook.id == *id)
    }
}

/// What is still to be told of a job. There is none once nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeRecord {
    pub job: JobId,
    /// The oldest first, at least one.
    pub ends: Vec<EndNotice>,
}

/// One end of a job: the job itself may have been begun again since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndNotice {
    /// Terminal.
    pub state: JobState,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// The webhooks that have not been told, at least one.
    pub waiting: BTreeSet<WebhookId>,
}

/// One end that is to be told to one webhook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryKey {
    pub job: JobId,
    pub finished_at: Timestamp,
    pub webhook: WebhookId,
}
