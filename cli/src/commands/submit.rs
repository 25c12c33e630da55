//! `crescendo submit`: the same request id through every try, so that an outage never makes two jobs.

use std::path::Path;
use std::time::Duration;

use crescendo_core::spec::Problem;
use crescendo_proto::v1::{SpecProblems, SubmitJobRequest, SubmitJobResponse};
use prost::Message as _;
use tonic::{Code, Status};

use super::{validate, watch};
use crate::args::{Common, Output, SubmitArgs};
use crate::connect::{self, CHANGE, Controller};
use crate::failure::Failure;
use crate::show::{self, json, problems};

/// Trailer with every problem of a refused spec.
const PROBLEMS: &str = "crescendo-problems-bin";

pub async fn run(common: &Common, args: &SubmitArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request_id = args.request_id.clone().unwrap_or_else(new_request_id);
    let answer = submit(&controller, common, &args.file, request_id).await?;
    let job = answer.job.unwrap_or_default();
    if answer.already_submitted {
        show::errln(format_args!("this request id has been submitted before; this is its job"));
    }
    if !args.watch {
        match common.output {
            Output::Json => json::print(&json::job(&job)),
            Output::Table => show::outln(job.job_id),
        }
        return Ok(());
    }
    if common.output == Output::Table {
        show::outln(&job.job_id);
    }
    let ended = watch::follow_or_interrupt(&controller, common, &job.job_id).await?;
    watch::verdict(&ended)
}

pub fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub async fn submit(
    controller: &Controller,
    common: &Common,
    file: &Path,
    request_id: String,
) -> Result<SubmitJobResponse, Failure> {
    let spec_yaml = validate::read_spec(file)?;
    let within: Duration = common.timeout.unwrap_or(CHANGE);
    let request = SubmitJobRequest { request_id, spec_yaml: spec_yaml.clone(), validate_only: false };
    let answer = controller
        .call(within, |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).submit_job(request).await }
        })
        .await;
    match answer {
        Ok(answer) if answer.job.is_some() => Ok(answer),
        Ok(_) => Err(Failure::other("the controller answered without a job")),
        Err(status) => match problems_of(&status) {
            Some(found) => {
                match common.output {
                    Output::Json => {
                        json::print(&serde_json::json!({"valid": false, "problems": json::problems(&found)}));
                    }
                    Output::Table => show::err(problems::render(file, &spec_yaml, &found)),
                }
                Err(Failure::InvalidSpec)
            }
            None => Err(controller.failure(&status)),
        },
    }
}

/// The problems that came with a refusal, if it was for those.
fn problems_of(status: &Status) -> Option<Vec<Problem>> {
    if status.code() != Code::InvalidArgument {
        return None;
    }
    let bytes = status.metadata().get_bin(PROBLEMS)?.to_bytes().ok()?;
    let found = SpecProblems::decode(bytes).ok()?.problems;
    let found: Vec<Problem> = found
        .into_iter()
        .map(|problem| Problem {
            line: problem.line,
            column: problem.column,
            path: problem.path,
            message: problem.message,
        })
        .collect();
    (!found.is_empty()).then_some(found)
}
