//! `crescendo pairs`.

mod marks;

use crescendo_proto::v1::{Job, StageStatus};
use serde_json::{Value, json};

use crate::args::{Common, Output, PairsArgs};
use crate::commands::get;
use crate::connect::{Controller, LOOK};
use crate::failure::Failure;
use crate::objects;
use crate::pairs::gather::{self, Found};
use crate::pairs::sheet::{self, Sheet};
use crate::show::table::Table;
use crate::show::{self, json as print};

/// Accepted pairs, and rejected candidates, that are listed or drawn without `--limit`.
const LISTED: usize = 20;
const DRAWN: usize = 96;

pub async fn run(common: &Common, args: &PairsArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let job = get::fetch(&controller, common, &args.job).await?;
    let stage = stage_of(&job, &args.stage)?;
    if args.marks || !args.mark.is_empty() || !args.unmark.is_empty() {
        return marks::run(&controller, common, args, (&job.job_id, &stage.name)).await;
    }
    if !args.reason.is_empty() {
        return Err(Failure::Usage("--reason is for --mark and --unmark".to_owned()));
    }
    let url = objects::url(&controller, args.object_store.as_deref()).await?;
    let objects = objects::open_existing(&url)?;
    let most = args.limit.unwrap_or(if args.sheet.is_some() { DRAWN } else { LISTED });
    let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
    if !args.rejected {
        let within = common.timeout.unwrap_or(LOOK);
        let (shards, committed) = gather::shards(&controller, &job.job_id, stage, within).await?;
        accepted = gather::accepted(objects.as_ref(), &shards, committed, most).await?;
    }
    if !args.accepted {
        rejected = gather::rejected(objects.as_ref(), &job.job_id, &stage.name, most).await?;
    }
    if let Some(path) = &args.sheet {
        let page =
            sheet::render(&Sheet { job_id: &job.job_id, stage, accepted: &accepted, rejected: &rejected });
        std::fs::write(path, page).map_err(Failure::from_error(format!("write {}", path.display())))?;
        show::errln(format_args!(
            "{}: {} accepted and {} rejected of stage {}",
            path.display(),
            accepted.len(),
            rejected.len(),
            stage.name
        ));
        return Ok(());
    }
    let found: Vec<&Found> = accepted.iter().chain(&rejected).collect();
    match common.output {
        Output::Json => print::print(&found.iter().map(|found| as_json(found)).collect()),
        Output::Table => show::out(table(&found)),
    }
    Ok(())
}

/// The named stage, or else the last one that has pairs, or rejected any.
fn stage_of<'a>(job: &'a Job, name: &str) -> Result<&'a StageStatus, Failure> {
    if !name.is_empty() {
        let found = job.stages.iter().find(|stage| stage.name == name);
        return found.ok_or_else(|| Failure::Usage(format!("job {} has no stage {name}", job.job_id)));
    }
    let begun = |stage: &&StageStatus| stage.pairs_committed > 0 || !stage.pairs_rejected.is_empty();
    let found = job.stages.iter().rev().find(begun).or(job.stages.first());
    found.ok_or_else(|| Failure::other(format!("job {} has no stages", job.job_id)))
}

fn table(found: &[&Found]) -> Table {
    let mut table = Table::new(&["PAIR", "UNIT", "VERDICT", "SCORES", "PROMPT"]);
    for Found { unit, index, stored } in found {
        let facts = &stored.facts;
        let scores: Vec<String> =
            facts.scores.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        table.row([
            index.map_or_else(|| "-".into(), |index| index.to_string()),
            unit.to_string(),
            if index.is_some() { "accepted".into() } else { facts.rejected().to_owned() },
            if scores.is_empty() { "-".into() } else { scores.join(", ") },
            facts.prompt.clone(),
        ]);
    }
    table
}

fn as_json(found: &Found) -> Value {
    let Found { unit, index, stored } = found;
    let facts = &stored.facts;
    json!({
        "index": index,
        "unit": unit,
        "accepted": index.is_some(),
        "rejected": if index.is_some() { Value::Null } else { facts.rejected().into() },
        "prompt": facts.prompt,
        "referenceWords": facts.reference_words,
        "references": stored.references.len(),
        "scores": facts.scores,
        "provenance": facts.provenance,
    })
}
