//! `crescendo continue`: a job that trains on from where another has stopped.

use std::path::Path;

use crescendo_core::ids::{JobId, StageName};
use crescendo_core::spec::{self, Continuation, OtherCheckpoint};
use crescendo_proto::v1::{Checkpoint, Job, JobState};

use super::spec_file::SpecFile;
use super::{checkpoints, get, submit};
use crate::args::{Common, ContinueArgs, Output};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::show::{self, json, problems, words};

pub async fn run(common: &Common, args: &ContinueArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let job = get::fetch(&controller, common, &args.job).await?;
    check_ended(&job)?;
    let known = checkpoints::fetch(&controller, common, &job.job_id, "").await?;
    let newest = newest(&job, &known).ok_or_else(|| without_checkpoint(&job))?;
    let yaml = spec_yaml(&job, newest, args)?;
    let file = SpecFile::of_bytes(common, Path::new("the continued spec"), yaml, &args.how.set)?;
    if !args.dry_run {
        return submit::submit_and_show(&controller, common, &file, &args.how).await;
    }
    match submit::validate(&controller, common, &file).await? {
        Ok(warnings) => show_spec(common, &file, &file.in_file(warnings)),
        Err(found) => Err(file.refuse(common, found)),
    }
}

fn check_ended(job: &Job) -> Result<(), Failure> {
    let id = &job.job_id;
    let state = words::job_state(job.state());
    match job.state() {
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => Ok(()),
        JobState::Queued
        | JobState::Placing
        | JobState::Running
        | JobState::Paused
        | JobState::Preempting
        | JobState::Unspecified => Err(Failure::other(format!(
            "job {id} is {state}, and goes on by itself: wait for its end (crescendo watch {id}), or end it (crescendo cancel {id})"
        ))),
    }
}

/// The newest checkpoint of the last stage that has one which is not damaged.
fn newest<'a>(job: &Job, known: &'a [Checkpoint]) -> Option<&'a Checkpoint> {
    let whole = |stage: &str| {
        let of_stage = known.iter().filter(move |one| one.stage == stage && one.damaged.is_empty());
        of_stage.max_by_key(|one| (one.step, one.generation))
    };
    job.stages.iter().rev().find_map(|stage| whole(&stage.name))
}

fn without_checkpoint(job: &Job) -> Failure {
    let id = &job.job_id;
    let instead = match job.state() {
        JobState::Failed => format!("have it tried again (crescendo retry {id})"),
        _ => "submit its spec again".to_owned(),
    };
    Failure::other(format!("job {id} has no checkpoint to go on from: {instead}"))
}

/// The spec of the job that goes on.
fn spec_yaml(job: &Job, newest: &Checkpoint, args: &ContinueArgs) -> Result<Vec<u8>, Failure> {
    let theirs = spec::parse(job.resolved_spec_yaml.as_bytes()).map_err(|found| {
        let first = found.first().map(ToString::to_string).unwrap_or_default();
        Failure::other(format!("the spec of job {} cannot be read: {first}", job.job_id))
    })?;
    let bad_id = |error| Failure::other(format!("the controller sent a bad id: {error}"));
    let is_sealed = |name: &str| job.stages.iter().any(|stage| stage.name == name && stage.pairs_sealed);
    let how = Continuation {
        checkpoint: OtherCheckpoint {
            job: JobId::parse(&job.job_id).map_err(bad_id)?,
            stage: StageName::parse(&newest.stage).map_err(bad_id)?,
            step: (!newest.r#final).then_some(newest.step),
        },
        is_log_sealed: is_sealed(&newest.stage),
        steps: args.steps,
        name: args.name.clone(),
    };
    let next = spec::continued(&theirs, &how).map_err(Failure::Other)?;
    Ok(spec::to_yaml(&next).into_bytes())
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
