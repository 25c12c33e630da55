//! `crescendo checkpoints`.

use crescendo_proto::v1::{Checkpoint, KeepCheckpointRequest, ListCheckpointsRequest};

use crate::args::{CheckpointArgs, CheckpointsAction, CheckpointsArgs, Common, Output};
use crate::connect::{self, CHANGE, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &CheckpointsArgs) -> Result<(), Failure> {
    match &args.action {
        Some(CheckpointsAction::Keep(which)) => return mark(common, which, false).await,
        Some(CheckpointsAction::Release(which)) => return mark(common, which, true).await,
        None => {}
    }
    let controller = Controller::find(common).await?;
    let job = args.job.as_deref().unwrap_or_default();
    let checkpoints = fetch(&controller, common, job, &args.stage).await?;
    match common.output {
        Output::Json => json::print(&checkpoints.iter().map(json::checkpoint).collect()),
        Output::Table => show::out(table(&checkpoints)),
    }
    Ok(())
}

/// Marks a checkpoint to be kept, or releases it.
async fn mark(common: &Common, which: &CheckpointArgs, release: bool) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let CheckpointArgs { job, stage, step } = which;
    let request = KeepCheckpointRequest { job_id: job.clone(), stage: stage.clone(), step: *step, release };
    let answer = controller
        .call(common.timeout.unwrap_or(CHANGE), |channel| {
            let request = request.clone();
            async move { connect::checkpoints(channel).keep_checkpoint(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let checkpoint = answer.checkpoint.unwrap_or_default();
    match common.output {
        Output::Json => json::print(&json::checkpoint(&checkpoint)),
        Output::Table => {
            let is = if checkpoint.kept { "is kept" } else { "may expire" };
            show::outln(format_args!("{} {is}", checkpoint.path));
        }
    }
    Ok(())
}

/// Those of a job, oldest first; of one stage if it is named, of all if `stage` is empty.
pub async fn fetch(
    controller: &Controller,
    common: &Common,
    job_id: &str,
    stage: &str,
) -> Result<Vec<Checkpoint>, Failure> {
    let request = ListCheckpointsRequest { job_id: job_id.to_owned(), stage: stage.to_owned() };
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::checkpoints(channel).list_checkpoints(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    Ok(answer.checkpoints)
}

fn table(checkpoints: &[Checkpoint]) -> Table {
    let mut table = Table::new(&["STAGE", "STEP", "SIZE", "COMMITTED", "STATE", "PATH"]);
    for checkpoint in checkpoints {
        let size: u64 = checkpoint.files.iter().map(|file| file.size_bytes).sum();
        let kept = if checkpoint.kept { ", kept" } else { "" };
        let state = if !checkpoint.damaged.is_empty() {
            format!("damaged: {}", checkpoint.damaged)
        } else if checkpoint.r#final {
            "final".into()
        } else {
            "ok".into()
        };
        table.row([
            checkpoint.stage.clone(),
            checkpoint.step.to_string(),
            words::bytes(size),
            words::time(checkpoint.committed_at.as_ref()),
            format!("{state}{kept}"),
            checkpoint.path.clone(),
        ]);
    }
    table
}
