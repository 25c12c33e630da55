//! Which jobs have changed, for whoever has looked at all of them before and keeps what follows from them.

use crate::ids::{IdSet, JobId};

/// What has changed of a [`ClusterState`](crate::state::ClusterState) since it was last asked.
#[derive(Clone, Debug)]
pub struct ChangedJobs {
    /// More than single jobs: all that is known of the state is to be looked at anew. So it is of a new one.
    everything: bool,
    jobs: IdSet<JobId>,
}

impl ChangedJobs {
    /// For those who have never looked.
    pub fn everything() -> Self {
        Self { everything: true, jobs: IdSet::default() }
    }

    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// In no order.
    pub fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.jobs.iter()
    }

    pub(super) fn note(&mut self, job: &JobId) {
        if !self.everything && !self.jobs.contains(job) {
            self.jobs.insert(job.clone());
        }
    }

    pub(super) fn note_everything(&mut self) {
        *self = Self::everything();
    }

    /// What there is to be told, once.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self { everything: false, jobs: IdSet::default() })
    }
}

/// No part of what is durable: two states are equal whoever has asked for their changes.
impl PartialEq for ChangedJobs {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
