//! `crescendo submit`: the same request id through every try, so that an outage never makes two jobs.

use std::time::Duration;

use crescendo_core::estimate::Estimate;
use crescendo_core::spec::{self, Problem};
use crescendo_core::trace::TraceParent;
use crescendo_proto::v1::{SpecProblem, SpecProblems, SubmitJobRequest, SubmitJobResponse};
use prost::Message as _;
use tonic::{Code, Status};

use super::spec_file::SpecFile;
use super::watch;
use crate::args::{Common, Output, SubmitArgs, SubmitHow};
use crate::connect::{self, CHANGE, Controller};
use crate::failure::Failure;
use crate::show::{self, json, problems, width};

/// Environment variable of a pipeline that has a trace of its own.
const TRACE_PARENT: &str = "TRACEPARENT";

/// Trailer with every problem of a refused spec.
const PROBLEMS: &str = "crescendo-problems-bin";

pub async fn run(common: &Common, args: &SubmitArgs) -> Result<(), Failure> {
    let file = SpecFile::read(common, &args.file, &args.how.set)?;
    let controller = Controller::find(common).await?;
    submit_and_show(&controller, common, &file, &args.how).await
}

/// Submits, and shows the job or follows it.
pub async fn submit_and_show(
    controller: &Controller,
    common: &Common,
    file: &SpecFile,
    how: &SubmitHow,
) -> Result<(), Failure> {
    let request_id = how.request_id.clone().unwrap_or_else(new_request_id);
    let answer = submit(controller, common, file, request_id).await?;
    let job = answer.job.unwrap_or_default();
    if answer.already_submitted {
        show::errln(format_args!("this request id has been submitted before; this is its job"));
    }
    let warnings = file.in_file(as_problems(answer.warnings));
    if how.watch || common.output == Output::Table {
        if let Ok(read) = spec::read(&file.yaml(), None) {
            let estimate = format!("it comes to {}", Estimate::of(&read.spec));
            show::errln(width::wrapped(&estimate, width::of_stderr(), 4));
        }
        show::err(problems::warnings(&warnings));
    }
    if !how.watch {
        match common.output {
            Output::Json => {
                let mut shown = json::job(&job);
                shown["warnings"] = json::problems(&warnings);
                json::print(&shown);
            }
            Output::Table => show::outln(job.job_id),
        }
        return Ok(());
    }
    if common.output == Output::Table {
        show::outln(&job.job_id);
    }
    let ended = watch::follow_or_interrupt(controller, common, &job.job_id).await?;
    watch::last_words(controller, common, &ended).await
}

/// The trace that the job will belong to: that of whoever runs this command, or a new one.
fn trace_parent(ours: Option<&str>, random: u128) -> Option<String> {
    let ours: Option<TraceParent> = ours.and_then(|text| text.parse().ok());
    let new = || {
        // A random number is not zero in either half.
        let span = std::num::NonZeroU64::new(u64::try_from(random >> 64).ok()?)?;
        Some(TraceParent { trace: std::num::NonZeroU128::new(random)?, span })
    };
    ours.or_else(new).map(|trace| trace.to_string())
}

pub fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub async fn submit(
    controller: &Controller,
    common: &Common,
    file: &SpecFile,
    request_id: String,
) -> Result<SubmitJobResponse, Failure> {
    let request = SubmitJobRequest { request_id, spec_yaml: file.yaml(), validate_only: false };
    match send(controller, common, &request).await {
        Ok(answer) if answer.job.is_some() => Ok(answer),
        Ok(_) => Err(Failure::other("the controller answered without a job")),
        Err(status) => match problems_of(&status) {
            Some(found) => Err(file.refuse(common, found)),
            None => Err(controller.failure(&status)),
        },
    }
}

/// What the controller makes of a spec: everything that is wrong with it, or what it warns of. Nothing is submitted.
pub async fn validate(
    controller: &Controller,
    common: &Common,
    file: &SpecFile,
) -> Result<Result<Vec<Problem>, Vec<Problem>>, Failure> {
    let request = SubmitJobRequest { request_id: String::new(), spec_yaml: file.yaml(), validate_only: true };
    let answer = send(controller, common, &request).await.map_err(|status| controller.failure(&status))?;
    let (problems, warnings) = (as_problems(answer.problems), as_problems(answer.warnings));
    Ok(if problems.is_empty() { Ok(warnings) } else { Err(problems) })
}

async fn send(
    controller: &Controller,
    common: &Common,
    request: &SubmitJobRequest,
) -> Result<SubmitJobResponse, Status> {
    let within: Duration = common.timeout.unwrap_or(CHANGE);
    let trace = trace_parent(std::env::var(TRACE_PARENT).ok().as_deref(), uuid::Uuid::new_v4().as_u128());
    controller
        .call(within, |channel| {
            let mut request = tonic::Request::new(request.clone());
            if let Some(trace) = trace.as_deref().and_then(|trace| trace.parse().ok()) {
                request.metadata_mut().insert("traceparent", trace);
            }
            async move { connect::jobs(channel).submit_job(request).await }
        })
        .await
}

/// The problems that came with a refusal, if it was for those.
fn problems_of(status: &Status) -> Option<Vec<Problem>> {
    if status.code() != Code::InvalidArgument {
        return None;
    }
    let bytes = status.metadata().get_bin(PROBLEMS)?.to_bytes().ok()?;
    let found = as_problems(SpecProblems::decode(bytes).ok()?.problems);
    (!found.is_empty()).then_some(found)
}

pub fn as_problems(sent: Vec<SpecProblem>) -> Vec<Problem> {
    let one = |SpecProblem { line, column, path, message }| Problem { line, column, path, message };
    sent.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipelines_trace_goes_on() {
        let ours = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        assert_eq!(trace_parent(Some(ours), 1).as_deref(), Some(ours));
        let new = "00-00000000000000050000000000000007-0000000000000005-01";
        for other in [None, Some(""), Some("rubbish")] {
            assert_eq!(trace_parent(other, (5 << 64) | 7).as_deref(), Some(new));
        }
    }
}
