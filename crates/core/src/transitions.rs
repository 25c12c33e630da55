//! What a caller may ask for. Each function looks at the state and gives what has to be written for the request to hold,
//! and the answer; nothing is changed here. The answer may be given once the writes are durable.

mod checkpoints;
mod continuation;
mod deletions;
mod digests;
mod jobs;
mod marks;
mod nodes;
mod notes;
mod samplings;
mod units;

pub use checkpoints::{
    CheckpointCommitted, checkpoint_file, checkpoint_path, commit_checkpoint, mark_checkpoint_damaged,
};
pub use continuation::continuation;
pub(crate) use deletions::kept_checkpoints;
pub use deletions::{DeleteOrder, delete_job, files_gone, files_removed, keep_checkpoint, lineage_of};
pub use jobs::{
    QueueLimits, Submission, Submitted, cancel_job, pause_job, resume_job, retry_job, submit_job,
};
pub(crate) use jobs::{ended, one_line};
pub use marks::{MarkOrder, mark_pairs};
pub use nodes::{drain_node, forget_node};
pub use notes::note_job;
pub use samplings::{commit_samples, fail_samples};
pub use units::{
    UnitCommit, UnitCommitted, UnitFate, UnitLeaseRef, commit_unit, fail_unit, lease_unit, renew_unit,
    shard_path,
};
