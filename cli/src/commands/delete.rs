//! `crescendo delete`.

use crescendo_proto::v1::{DeleteJobRequest, DeleteJobResponse, DeletionPart, DeletionPhase, KeptParts};
use serde_json::json;

use crate::args::{Common, DeleteArgs, Output};
use crate::connect::{self, CHANGE, Controller, DELETE_COUNT};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &DeleteArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let DeleteArgs { job, keep_checkpoints, keep_pairs, keep_logs, dry_run } = args;
    let request = DeleteJobRequest {
        job_id: job.clone(),
        keep: Some(KeptParts { checkpoints: *keep_checkpoints, pairs: *keep_pairs, logs: *keep_logs }),
        dry_run: *dry_run,
    };
    let within = common.timeout.unwrap_or(if *dry_run { DELETE_COUNT } else { CHANGE });
    let answer = controller
        .call(within, |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).delete_job(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    match common.output {
        Output::Json => json::print(&as_json(&answer, *dry_run)),
        Output::Table if *dry_run => {
            show::out(table(&answer.parts));
            if !answer.counted {
                show::errln(format_args!(
                    "nobody could count what lies in the object store: this is what is registered"
                ));
            }
        }
        Output::Table => show::outln(format_args!("{job}: {}", in_words(&answer))),
    }
    Ok(())
}

fn in_words(answer: &DeleteJobResponse) -> String {
    let deletion = answer.deletion.clone().unwrap_or_default();
    match deletion.phase() {
        DeletionPhase::Gone => "was deleted".to_owned(),
        DeletionPhase::Files | DeletionPhase::Records | DeletionPhase::Unspecified
            if deletion.waiting_for.is_empty() =>
        {
            "is being deleted".to_owned()
        }
        DeletionPhase::Files | DeletionPhase::Records | DeletionPhase::Unspecified => {
            format!("is being deleted; it waits: {}", deletion.waiting_for)
        }
    }
}

fn table(parts: &[DeletionPart]) -> Table {
    let mut table = Table::new(&["PART", "OBJECTS", "SIZE", "WOULD"]);
    for DeletionPart { part, objects, bytes, kept } in parts {
        let would = if *kept { "stay" } else { "go" };
        table.row([part.clone(), objects.to_string(), words::bytes(*bytes), would.to_owned()]);
    }
    table
}

fn as_json(answer: &DeleteJobResponse, dry_run: bool) -> serde_json::Value {
    let part = |part: &DeletionPart| json!({"part": part.part, "objects": part.objects, "bytes": part.bytes, "kept": part.kept});
    json!({
        "dryRun": dry_run,
        "parts": answer.parts.iter().map(part).collect::<Vec<_>>(),
        "counted": answer.counted,
        "deletion": answer.deletion.as_ref().map(json::deletion),
    })
}
