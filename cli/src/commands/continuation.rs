//! `crescendo continue`: a job that trains on from where another has stopped.

use std::path::Path;

use crescendo_core::spec;
use crescendo_proto::v1::PlanContinuationRequest;

use super::spec_file::SpecFile;
use super::submit;
use crate::args::{Common, ContinueArgs, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::{self, json, problems};

pub async fn run(common: &Common, args: &ContinueArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let yaml = spec_yaml(&controller, common, args).await?;
    let file = SpecFile::of_bytes(common, Path::new("the continued spec"), yaml.into_bytes(), &args.how.set)?;
    if !args.dry_run {
        return submit::submit_and_show(&controller, common, &file, &args.how).await;
    }
    match submit::validate(&controller, common, &file).await? {
        Ok(warnings) => show_spec(common, &file, &file.in_file(warnings)),
        Err(found) => Err(file.refuse(common, found)),
    }
}

/// The spec of the job that goes on.
async fn spec_yaml(controller: &Controller, common: &Common, args: &ContinueArgs) -> Result<String, Failure> {
    let (job_id, name) = (args.job.clone(), args.name.clone().unwrap_or_default());
    let request = PlanContinuationRequest { job_id, steps: args.steps, name };
    let answer = controller.call(common.timeout.unwrap_or(LOOK), |channel| {
        let request = request.clone();
        async move { connect::jobs(channel).plan_continuation(request).await }
    });
    Ok(answer.await.map_err(|status| controller.failure(&status))?.spec_yaml)
}

fn show_spec(common: &Common, file: &SpecFile, warnings: &[spec::Problem]) -> Result<(), Failure> {
    let yaml = String::from_utf8_lossy(&file.yaml()).into_owned();
    match common.output {
        Output::Table => {
            show::out(yaml);
            show::err(problems::warnings(warnings));
        }
        Output::Json => {
            let resolved = spec::parse(yaml.as_bytes())
                .map_err(|_| Failure::other("the controller takes a spec that this version cannot read"))?;
            let resolved =
                serde_json::to_value(&resolved).map_err(Failure::from_error("write the spec as JSON"))?;
            json::print(&serde_json::json!({"warnings": json::problems(warnings), "resolved": resolved}));
        }
    }
    Ok(())
}
