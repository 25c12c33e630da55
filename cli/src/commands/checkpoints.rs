//! `crescendo checkpoints`.

use crescendo_proto::v1::{Checkpoint, ListCheckpointsRequest};

use crate::args::{CheckpointsArgs, Common, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &CheckpointsArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let checkpoints = fetch(&controller, common, &args.job, &args.stage).await?;
    match common.output {
        Output::Json => json::print(&checkpoints.iter().map(json::checkpoint).collect()),
        Output::Table => show::out(table(&checkpoints)),
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
            state,
            checkpoint.path.clone(),
        ]);
    }
    table
}
