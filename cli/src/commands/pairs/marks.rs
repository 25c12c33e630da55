//! Marks of pairs: set, taken back, listed.

use crescendo_proto::v1::{ListPairMarksRequest, MarkPairsRequest, PairMarkList};
use serde_json::{Value, json};

use crate::args::{Common, Output, PairsArgs};
use crate::connect::{self, CHANGE, Controller, LOOK};
use crate::failure::Failure;
use crate::show::table::Table;
use crate::show::{self, json as print, words};

/// Changes or lists the marks of the log that a stage of a job is trained on, and shows what is marked then.
pub async fn run(
    controller: &Controller,
    common: &Common,
    args: &PairsArgs,
    (job_id, stage): (&str, &str),
) -> Result<(), Failure> {
    let (job_id, stage) = (job_id.to_owned(), stage.to_owned());
    let undo = !args.unmark.is_empty();
    let indices = if undo { args.unmark.clone() } else { args.mark.clone() };
    let answered = if indices.is_empty() {
        let request = ListPairMarksRequest { job_id, stage };
        let listing = controller.call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::review(channel).list_pair_marks(request).await }
        });
        listing.await.map(|answer| answer.marks)
    } else {
        let request = MarkPairsRequest { job_id, stage, indices, undo, reason: args.reason.clone() };
        let marking = controller.call(common.timeout.unwrap_or(CHANGE), |channel| {
            let request = request.clone();
            async move { connect::review(channel).mark_pairs(request).await }
        });
        marking.await.map(|answer| answer.marks)
    };
    let marks = answered.map_err(|status| controller.failure(&status))?.unwrap_or_default();
    match common.output {
        Output::Json => print::print(&as_json(&marks)),
        Output::Table => {
            show::errln(format_args!(
                "{} marked; version {} of the marks, left out from the next epoch on",
                marks.marks.len(),
                marks.version
            ));
            show::out(table(&marks));
        }
    }
    Ok(())
}

fn table(marks: &PairMarkList) -> Table {
    let mut table = Table::new(&["PAIR", "BY", "AT", "REASON"]);
    for mark in &marks.marks {
        let reason = if mark.reason.is_empty() { "-".into() } else { words::one_line(&mark.reason) };
        table.row([mark.index.to_string(), mark.by.clone(), words::time(mark.at.as_ref()), reason]);
    }
    table
}

fn as_json(marks: &PairMarkList) -> Value {
    let listed = marks.marks.iter().map(|mark| {
        json!({
            "index": mark.index,
            "by": mark.by,
            "at": print::time(mark.at.as_ref()),
            "reason": mark.reason,
        })
    });
    json!({ "version": marks.version, "marks": listed.collect::<Vec<Value>>() })
}
