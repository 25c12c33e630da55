//! `crescendo get`.

use crescendo_proto::v1::{GetJobRequest, GetSpecRequest, Job, StatedField};
use serde_json::Value;

use crate::args::{Common, GetArgs, Output};
use crate::commands::samples;
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, job, json, width};

pub async fn run(common: &Common, args: &GetArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let job_id = &args.job.job;
    if args.stated {
        let fields = stated(&controller, common, job_id).await?;
        match common.output {
            Output::Json => json::print(&json::stated(&fields)),
            Output::Table => show::out(table(&fields)),
        }
        return Ok(());
    }
    let job = fetch(&controller, common, job_id).await?;
    match common.output {
        Output::Json => json::print(&whole(&controller, common, &job).await?),
        Output::Table => show::out(width::wrapped(&job::details(&job), width::of_stdout(), 2)),
    }
    Ok(())
}

/// The job's JSON with all that is drawn of it.
pub async fn whole(controller: &Controller, common: &Common, job: &Job) -> Result<Value, Failure> {
    let mut shown = json::job(job);
    shown["samplings"] = samples::of_job(controller, common, &job.job_id).await?.into();
    Ok(shown)
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

async fn stated(controller: &Controller, common: &Common, job_id: &str) -> Result<Vec<StatedField>, Failure> {
    let request = GetSpecRequest { job_id: job_id.to_owned() };
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).get_spec(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    Ok(answer.stated_fields)
}

/// A line a field.
fn table(fields: &[StatedField]) -> String {
    let mut table = Table::new(&["FIELD", "IS", "DEFAULT"]);
    for StatedField { path, value, default_value } in fields {
        let field = path.strip_prefix("spec.").unwrap_or(path);
        table.row([field.to_owned(), value.clone(), default_value.clone()]);
    }
    table.to_string()
}
