//! `crescendo get`.

use crescendo_proto::v1::{GetJobRequest, Job};

use crate::args::{Common, JobArgs, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::{self, job, json, width};

pub async fn run(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let job = fetch(&controller, common, &args.job).await?;
    match common.output {
        Output::Json => json::print(&json::job(&job)),
        Output::Table => show::out(width::wrapped(&job::details(&job), width::of_stdout(), 2)),
    }
    Ok(())
}

pub async fn fetch(controller: &Controller, common: &Common, job_id: &str) -> Result<Job, Failure> {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).get_job(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    answer.job.ok_or_else(|| Failure::other("the controller answered without a job"))
}
