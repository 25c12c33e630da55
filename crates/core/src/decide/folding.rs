//! Which units' records become one.
//!
//! The records of a stage's units are needed one by one while they are made and trained on. Once that is over they are folded: a
//! [`SegmentRecord`](crate::segment::SegmentRecord) holds what a thousand of them have said, and they are deleted. What is written
//! rests on nothing but what is durable already: a segment goes first, alone, and the deletions of what it holds are decided
//! when it is there. Whoever takes over at any point in between finds units that a segment holds, or does not hold yet, and
//! goes on.

use crate::decide::Limits;
use crate::ids::JobId;
use crate::records::{Record, RecordKey, Write};
use crate::state::{ClusterState, Job, Stage};

/// Jobs that one decision looks at.
const MAX_LOOKS: usize = 1000;

/// What is to be written, and where the next decision goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folding {
    pub writes: Vec<Write>,
    /// The job to begin with; none for the first.
    pub next: Option<JobId>,
}

/// The next step: one segment, or the deletion of records that one holds. It looks at jobs from `from` on, and at some of them
/// only, so that it takes the same time however many there are.
pub fn decide_folding(state: &ClusterState, limits: &Limits, from: Option<&JobId>) -> Folding {
    let mut jobs = state.jobs_from(from);
    for job in jobs.by_ref().take(MAX_LOOKS) {
        let id = &job.record.id;
        // A part of it is not known, or all of it is on its way out: it is left as it is.
        if state.unreadable().of_job(id).is_some() || state.deletion(id).is_some() {
            continue;
        }
        let over = job.stages.iter().filter(|stage| is_over(job, stage));
        if let Some(writes) = over.map(|stage| fold(stage, limits)).find(|writes| !writes.is_empty()) {
            return Folding { writes, next: Some(id.clone()) };
        }
    }
    Folding { writes: Vec::new(), next: jobs.next().map(|job| job.record.id.clone()) }
}

/// Whether nobody will work on the stage's log any more, nor read it to train or to make pairs.
fn is_over(job: &Job, stage: &Stage) -> bool {
    let name = stage.id.stage.as_str();
    let is_read = || {
        let later = job.record.spec.stages.iter().zip(&job.stages);
        later
            .filter(|(_, later)| !later.is_done())
            .any(|(spec, _)| spec.data.source.reads_log_of() == Some(name))
    };
    job.record.state.is_terminal() || stage.is_done() && stage.log.is_sealed() && !is_read()
}

fn fold(stage: &Stage, limits: &Limits) -> Vec<Write> {
    let delete = |unit| Write::Delete(RecordKey::Unit(stage.id.clone(), unit));
    let deletes: Vec<Write> = stage.log.superfluous().take(limits.fold_deletes).map(delete).collect();
    if !deletes.is_empty() {
        return deletes;
    }
    stage.log.next_segment().map(|segment| Write::Put(Record::Segment(segment))).into_iter().collect()
}
