//! `crescendo objects`.

use std::time::Duration;

use crescendo_proto::v1::collect_leftovers_response::Message;
use crescendo_proto::v1::{CollectLeftoversRequest, CollectSummary, ListedObject};
use serde_json::json;

use crate::args::{CollectArgs, Common, ObjectsCommand, Output};
use crate::connect::{self, Controller};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json, words};

/// Limit of a collection unless --timeout says otherwise.
const WHOLE: Duration = Duration::from_secs(6 * 3600);

pub async fn run(common: &Common, command: &ObjectsCommand) -> Result<(), Failure> {
    match command {
        ObjectsCommand::Collect(args) => collect(common, args).await,
    }
}

async fn collect(common: &Common, args: &CollectArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let within = common.timeout.unwrap_or(WHOLE);
    let collecting = receive(&controller, args);
    let late = |_| {
        Failure::other(format!(
            "the collection did not end within {within:?}; what is left is left for the next time"
        ))
    };
    let (leftovers, summary) = tokio::time::timeout(within, collecting).await.map_err(late)??;
    match common.output {
        Output::Json => json::print(&as_json(&leftovers, &summary, args.dry_run)),
        Output::Table => {
            if !leftovers.is_empty() {
                show::out(table(&leftovers));
            }
            show::outln(format_args!("{}", in_words(&summary, args.dry_run)));
        }
    }
    if summary.failed_objects > 0 {
        return Err(Failure::other(format!(
            "{} could not be removed and are tried again the next time; the first: {}",
            summary.failed_objects, summary.failure
        )));
    }
    Ok(())
}

/// All that is told, in the order of the keys.
async fn receive(
    controller: &Controller,
    args: &CollectArgs,
) -> Result<(Vec<ListedObject>, CollectSummary), Failure> {
    let request =
        CollectLeftoversRequest { job_id: args.job.clone().unwrap_or_default(), dry_run: args.dry_run };
    let mut told = controller
        .call(connect::CHANGE, |channel| {
            let request = request.clone();
            async move { connect::objects(channel).collect_leftovers(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let mut leftovers = Vec::new();
    loop {
        let message = told.message().await.map_err(|status| controller.failure(&status))?;
        match message.map(|response| response.message) {
            Some(Some(Message::Page(page))) => leftovers.extend(page.leftovers),
            Some(Some(Message::Summary(summary))) => {
                leftovers.sort_by(|left, right| left.key.cmp(&right.key));
                return Ok((leftovers, summary));
            }
            // From a newer controller.
            Some(None) => {}
            None => return Err(Failure::other("the collection has ended without a summary")),
        }
    }
}

fn in_words(summary: &CollectSummary, dry_run: bool) -> String {
    let CollectSummary {
        listed_objects,
        leftover_objects,
        leftover_bytes,
        removed_objects,
        removed_bytes,
        ..
    } = summary;
    match (*leftover_objects, dry_run) {
        (0, _) => format!("no leftovers among {listed_objects} objects"),
        (left, true) => {
            format!("{left} of {listed_objects} objects would be removed, {}", words::bytes(*leftover_bytes))
        }
        (_, false) => {
            format!(
                "{removed_objects} of {listed_objects} objects are removed, {}",
                words::bytes(*removed_bytes)
            )
        }
    }
}

fn table(leftovers: &[ListedObject]) -> Table {
    let mut table = Table::new(&["LEFTOVER", "SIZE", "WRITTEN"]);
    for object in leftovers {
        table.row([object.key.clone(), words::bytes(object.size_bytes), written(object)]);
    }
    table
}

fn written(object: &ListedObject) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(object.modified_unix_millis);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn as_json(leftovers: &[ListedObject], summary: &CollectSummary, dry_run: bool) -> serde_json::Value {
    let leftover = |object: &ListedObject| json!({"key": object.key, "sizeBytes": object.size_bytes, "modifiedAt": written(object)});
    json!({
        "dryRun": dry_run,
        "leftovers": leftovers.iter().map(leftover).collect::<Vec<_>>(),
        "listedObjects": summary.listed_objects,
        "leftoverBytes": summary.leftover_bytes,
        "removedObjects": summary.removed_objects,
        "removedBytes": summary.removed_bytes,
        "failedObjects": summary.failed_objects,
        "failure": summary.failure,
    })
}
