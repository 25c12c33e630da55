//! The spec of a job that goes on where one that has ended stopped.

use crate::error::RequestError;
use crate::ids::JobId;
use crate::job::JobState;
use crate::spec::{self, Continuation, JobSpec, MAX_STEPS, OtherCheckpoint};
use crate::state::{ClusterState, Job};

/// The last stage of the job that has a checkpoint, for `steps` more, and the stages after it. `name` is that of the new job, if it
/// is to have another.
pub fn continuation(
    state: &ClusterState,
    id: &JobId,
    steps: u64,
    name: Option<String>,
) -> Result<JobSpec, RequestError> {
    state.unreadable().check_job(id)?;
    let job = state.job(id).ok_or_else(|| RequestError::NotFound { what: format!("job {id}") })?;
    let refused = |what: String| RequestError::TooLate { what: format!("job {id} {what}") };
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(RequestError::invalid("steps", format!("must be 1 to {MAX_STEPS}")));
    }
    if state.deletion(id).is_some() {
        return Err(refused("is being deleted".to_owned()));
    }
    if !job.record.state.is_terminal() {
        let state = &job.record.state;
        return Err(refused(format!(
            "is {state}, and goes on by itself: wait for its end (crescendo watch {id}), or end it (crescendo cancel {id})"
        )));
    }
    let mut stages = job.stages.iter().enumerate().rev();
    let newest = stages.find_map(|(index, stage)| Some((index, stage, stage.newest_checkpoint()?)));
    let (index, stage, newest) =
        newest.ok_or_else(|| refused(format!("has no checkpoint to go on from: {}", instead(job))))?;
    let how = Continuation {
        checkpoint: OtherCheckpoint {
            job: id.clone(),
            stage: stage.id.stage.clone(),
            step: (!newest.is_final).then_some(newest.step),
        },
        is_log_sealed: state.read_log(job, index).is_some_and(|log| log.is_sealed()),
        steps,
        name,
    };
    spec::continued(&job.record.spec, &how).map_err(|what| RequestError::TooLate { what })
}

fn instead(job: &Job) -> String {
    let id = &job.record.id;
    match job.record.state {
        JobState::Failed { .. } => format!("have it tried again (crescendo retry {id})"),
        _ => "submit its spec again".to_owned(),
    }
}
