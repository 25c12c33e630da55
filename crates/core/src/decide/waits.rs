//! Why jobs wait, of all that do.

use std::ops::Index;
use std::sync::Arc;

use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;

use crate::decide::PendingReason;
use crate::ids::{IdHashes, JobId};

/// The waiting jobs, each with its reason. A clone shares what neither has changed since: from one decision to the next most wait
/// for the same.
#[derive(Clone, Debug)]
pub struct Waits {
    by_job: GenericHashMap<JobId, Arc<PendingReason>, IdHashes, DefaultSharedPtr>,
}

impl Waits {
    pub fn get(&self, job: &JobId) -> Option<&PendingReason> {
        self.by_job.get(job).map(Arc::as_ref)
    }

    pub fn insert(&mut self, job: JobId, wait: PendingReason) {
        self.share(job, Arc::new(wait));
    }

    pub(super) fn share(&mut self, job: JobId, wait: Arc<PendingReason>) {
        self.by_job.insert(job, wait);
    }

    pub fn remove(&mut self, job: &JobId) {
        self.by_job.remove(job);
    }

    pub fn len(&self) -> usize {
        self.by_job.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_job.is_empty()
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &PendingReason)> {
        self.by_job.iter().map(|(job, wait)| (job, wait.as_ref()))
    }

    /// Whether the job waits for the very same as by the other.
    pub fn says_the_same(&self, other: &Self, job: &JobId) -> bool {
        match (self.by_job.get(job), other.by_job.get(job)) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self { by_job: GenericHashMap::with_hasher(IdHashes::default()) }
    }
}

impl PartialEq for Waits {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.by_job.keys().all(|job| self.says_the_same(other, job))
    }
}

/// The reason of a job that waits.
impl Index<&JobId> for Waits {
    type Output = PendingReason;

    fn index(&self, job: &JobId) -> &PendingReason {
        &self.by_job[job]
    }
}

impl FromIterator<(JobId, PendingReason)> for Waits {
    fn from_iter<I: IntoIterator<Item = (JobId, PendingReason)>>(waits: I) -> Self {
        let mut all = Self::default();
        waits.into_iter().for_each(|(job, wait)| all.insert(job, wait));
        all
    }
}
