//! `crescendo cancel`.

use crescendo_proto::v1::CancelJobRequest;

use crate::args::{CancelArgs, Common, Output};
use crate::connect::{self, CHANGE, Controller};
use crate::failure::Failure;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &CancelArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = CancelJobRequest { job_id: args.job.clone(), reason: args.reason.clone() };
    let within = common.timeout.unwrap_or(CHANGE);
    let answer = controller
        .call(within, |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).cancel_job(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let job = answer.job.unwrap_or_default();
    match common.output {
        Output::Json => json::print(&json::job(&job)),
        Output::Table => show::outln(format_args!("{}: {}", job.job_id, words::job_state(job.state()))),
    }
    Ok(())
}
