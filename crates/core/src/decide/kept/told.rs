//! What jobs are told, and of which that is news.

use std::sync::Arc;

use crate::decide::{PendingReason, Waits};
use crate::ids::JobId;

/// Why jobs wait, as they were told last.
#[derive(Default)]
pub(super) struct Told {
    waits: Waits,
    /// Those that were told something else, or that they wait no more; perhaps more than once.
    news: Vec<JobId>,
}

impl Told {
    pub fn all(&self) -> &Waits {
        &self.waits
    }

    /// The job waits for this, or for nothing.
    pub fn tell(&mut self, job: &JobId, wait: Option<Arc<PendingReason>>) {
        self.news.push(job.clone());
        match wait {
            Some(wait) => self.waits.share(job.clone(), wait),
            None => self.waits.remove(job),
        }
    }

    /// Those to whom something was told since this was last asked.
    pub fn take_told(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.news)
    }
}
