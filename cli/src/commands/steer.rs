//! `crescendo cancel`, `pause`, `resume`, `retry` and `note`: what a person wants of a job that is there.

use std::time::Duration;

use crescendo_proto::v1::{
    CancelJobRequest, Job, JobState, NoteJobRequest, PauseJobRequest, ResumeJobRequest, RetryJobRequest,
};
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::args::{CancelArgs, Common, JobArgs, NoteArgs, Output, PauseArgs};
use crate::commands::get;
use crate::connect::{self, CHANGE, Controller};
use crate::failure::Failure;
use crate::show::{self, json, words};
use crate::wire::Wire;

/// How long `--wait` waits without `--timeout`: a little longer than the controller lets ranks save.
const LEAVE: Duration = Duration::from_secs(330);
/// Between two looks at whether the ranks have left.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub async fn cancel(common: &Common, args: &CancelArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = CancelJobRequest { job_id: args.job.clone(), reason: args.reason.clone() };
    let answer = steer(&controller, common, |channel| {
        let request = request.clone();
        async move { Ok(connect::jobs(channel).cancel_job(request).await?.map(|answer| answer.job)) }
    });
    show_job(common, &answer.await?);
    Ok(())
}

pub async fn pause(common: &Common, args: &PauseArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = PauseJobRequest {
        job_id: args.job.clone(),
        reason: args.reason.clone(),
        keep_curating: args.keep_curating,
    };
    let answer = steer(&controller, common, |channel| {
        let request = request.clone();
        async move { Ok(connect::jobs(channel).pause_job(request).await?.map(|answer| answer.job)) }
    });
    let mut job = answer.await?;
    let give_up = Instant::now() + common.timeout.unwrap_or(LEAVE);
    while args.wait && job.slots_held > 0 && job.state() == JobState::Paused {
        if Instant::now() >= give_up {
            let held = job.slots_held;
            return Err(Failure::other(format!("{} is paused and still holds {held} slots", job.job_id)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        job = get::fetch(&controller, common, &args.job).await?;
    }
    show_job(common, &job);
    Ok(())
}

pub async fn resume(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = ResumeJobRequest { job_id: args.job.clone() };
    let answer = steer(&controller, common, |channel| {
        let request = request.clone();
        async move { Ok(connect::jobs(channel).resume_job(request).await?.map(|answer| answer.job)) }
    });
    show_job(common, &answer.await?);
    Ok(())
}

pub async fn retry(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = RetryJobRequest { job_id: args.job.clone() };
    let answer = steer(&controller, common, |channel| {
        let request = request.clone();
        async move { Ok(connect::jobs(channel).retry_job(request).await?.map(|answer| answer.job)) }
    });
    show_job(common, &answer.await?);
    Ok(())
}

pub async fn note(common: &Common, args: &NoteArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = NoteJobRequest { job_id: args.job.clone(), text: args.text.clone() };
    let answer = steer(&controller, common, |channel| {
        let request = request.clone();
        async move { Ok(connect::jobs(channel).note_job(request).await?.map(|answer| answer.job)) }
    });
    let job = answer.await?;
    match common.output {
        Output::Json => json::print(&json::job(&job)),
        Output::Table => {
            show::outln(format_args!("{}: {}", job.job_id, words::counted(job.notes.len(), "note")))
        }
    }
    Ok(())
}

/// Makes one of the calls, and gives the job as it is then.
async fn steer<F: Future<Output = Result<Response<Option<Job>>, Status>>>(
    controller: &Controller,
    common: &Common,
    call: impl FnMut(Wire) -> F,
) -> Result<Job, Failure> {
    let within = common.timeout.unwrap_or(CHANGE);
    let answer = controller.call(within, call).await.map_err(|status| controller.failure(&status))?;
    answer.ok_or_else(|| Failure::other("the controller answered without a job"))
}

fn show_job(common: &Common, job: &Job) {
    match common.output {
        Output::Json => json::print(&json::job(job)),
        Output::Table => {
            let (id, state) = (&job.job_id, words::job_state(job.state()));
            if job.slots_held > 0 && job.state() == JobState::Paused {
                let held = job.slots_held;
                show::outln(format_args!("{id}: {state}; {held} ranks save and leave"));
            } else {
                show::outln(format_args!("{id}: {state}"));
            }
        }
    }
}
