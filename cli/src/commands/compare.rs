//! `crescendo compare`.

use std::collections::{BTreeMap, BTreeSet};

use crescendo_dataset::checkpoint::HISTORY_FILE;
use crescendo_proto::v1::{Job, ListJobsRequest, StageStatus};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{checkpoints, get, jobs};
use crate::args::{Common, CompareArgs, Output};
use crate::artifact::choice::{self, JobStage};
use crate::artifact::fetch::fetch;
use crate::comparison::history::{self, Ending};
use crate::comparison::leaves::Leaves;
use crate::comparison::{compare, table};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::show::{self, json, words};
use crate::spec_edit::assignment::MOST_JOBS;

/// Questions and files that are under way at once.
const AT_ONCE: usize = 4;

pub async fn run(common: &Common, args: &CompareArgs) -> Result<(), Failure> {
    let mut known = BTreeSet::new();
    if let Some(twice) = args.jobs.iter().find(|job| !known.insert(job.as_str())) {
        return Err(Failure::Usage(format!("job {twice} is named twice")));
    }
    let controller = Controller::find(common).await?;
    let ids = match &args.group {
        Some(group) => of_group(&controller, common, group).await?,
        None => args.jobs.clone(),
    };
    // Lists leave the resolved specs out.
    let found: Vec<Job> = futures::stream::iter(&ids)
        .map(|id| get::fetch(&controller, common, id))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let specs: Vec<Leaves> = found.iter().map(leaves).collect::<Result<_, _>>()?;
    let (endings, unread) = endings(&controller, common, args, &found).await;
    let comparison = compare(&found, &specs, &endings);
    match common.output {
        Output::Json => json::print(&table::as_json(&comparison, &unread)),
        Output::Table => {
            show::out(if args.group.is_some() {
                table::rows(&comparison)
            } else {
                table::columns(&comparison)
            });
            unread.iter().for_each(show::errln);
        }
    }
    Ok(())
}

/// The ids of the jobs with this label, the oldest first.
async fn of_group(controller: &Controller, common: &Common, group: &str) -> Result<Vec<String>, Failure> {
    let wanted = ListJobsRequest {
        tenant: controller.tenant(),
        labels: [("group".to_owned(), group.to_owned())].into(),
        ..ListJobsRequest::default()
    };
    let (mut found, more) = jobs::list(controller, common, &wanted, MOST_JOBS).await?;
    if found.is_empty() {
        return Err(Failure::other(format!(
            "there is no job with the label group={group}; `crescendo jobs` shows which there are"
        )));
    }
    if more {
        show::errln(format_args!("group {group} has more jobs; these are the newest {MOST_JOBS}"));
    }
    found.reverse();
    Ok(found.into_iter().map(|job| job.job_id).collect())
}

fn leaves(job: &Job) -> Result<Leaves, Failure> {
    Leaves::of(&job.resolved_spec_yaml)
        .map_err(Failure::from_error(format!("read the resolved spec of job {}", job.job_id)))
}

/// The last steps of every stage that has saved some, and a line about each that cannot be read.
async fn endings(
    controller: &Controller,
    common: &Common,
    args: &CompareArgs,
    jobs: &[Job],
) -> (BTreeMap<(String, String), Ending>, Vec<String>) {
    let stages = jobs.iter().flat_map(|job| job.stages.iter().map(move |stage| (job, stage)));
    let saved = stages.filter(|(_, stage)| stage.checkpoint_step > 0);
    let reading = futures::stream::iter(saved).map(|(job, stage)| async move {
        let read = ending(controller, common, args, job, stage).await;
        ((job.job_id.clone(), stage.name.clone()), read)
    });
    let (mut endings, mut unread) = (BTreeMap::new(), Vec::new());
    let mut reading = reading.buffered(AT_ONCE);
    while let Some((of, read)) = reading.next().await {
        match read {
            Ok(ending) => drop(endings.insert(of, ending)),
            Err(why) => unread
                .push(words::one_line(&format!("{} {}: its last steps are not known: {why}", of.0, of.1))),
        }
    }
    (endings, unread)
}

async fn ending(
    controller: &Controller,
    common: &Common,
    args: &CompareArgs,
    job: &Job,
    stage: &StageStatus,
) -> Result<Ending, Failure> {
    let registered = checkpoints::fetch(controller, common, &job.job_id, &stage.name).await?;
    let of = JobStage { job: job.job_id.clone(), stage: Some(stage.name.clone()) };
    let checkpoint = choice::choose(&of, &registered, None)?;
    let file = checkpoint
        .files
        .iter()
        .find(|file| file.name == HISTORY_FILE)
        .ok_or_else(|| Failure::other(format!("checkpoint {} has no {HISTORY_FILE}", checkpoint.path)))?;
    if file.size_bytes > history::MOST_BYTES {
        let size = words::bytes(file.size_bytes);
        return Err(Failure::other(format!("{HISTORY_FILE} has {size}, more than is read for this")));
    }
    let folder = tempfile::tempdir().map_err(Failure::from_error("make a folder for it"))?;
    let copy = folder.path().join(HISTORY_FILE);
    fetch(controller, common, args.object_store.as_deref(), checkpoint, file, &copy).await?;
    let bytes = std::fs::read(&copy).map_err(Failure::from_error(format!("read {}", copy.display())))?;
    history::ending(&bytes).map_err(Failure::other)
}
