//! `crescendo explain`.

use crescendo_proto::v1::{ExplainJobRequest, ExplainJobResponse};

use crate::args::{Common, JobArgs, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::{self, explained, json, width};

pub async fn run(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = ExplainJobRequest { job_id: args.job.clone() };
    let told: ExplainJobResponse = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).explain_job(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    match common.output {
        Output::Json => json::print(&explained::as_json(&told)),
        Output::Table => show::out(width::wrapped(&explained::text(&told), width::of_stdout(), 2)),
    }
    Ok(())
}
