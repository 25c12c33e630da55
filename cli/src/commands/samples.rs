//! `crescendo samples`.

use std::path::Path;

use crescendo_dataset::shard::{StoredPair, read_stored};
use crescendo_proto::v1::{ListSamplesRequest, Sampling, SamplingState};
use serde_json::Value;

use crate::args::{Common, Output, SamplesArgs};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::samples::fetch::fetch;
use crate::samples::grid;
use crate::show::table::Table;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &SamplesArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let all = list(&controller, common, &args.job, &args.stage).await?;
    let wanted = |sampling: &Sampling| args.step.is_empty() || args.step.contains(&sampling.step);
    let chosen: Vec<Sampling> = all.into_iter().filter(wanted).collect();
    if args.sheet.is_none() && args.out.is_none() {
        match common.output {
            Output::Json => json::print(&chosen.iter().map(json::sampling).collect()),
            Output::Table => show::out(table(&chosen)),
        }
        return Ok(());
    }
    let mut drawn: Vec<(Sampling, Vec<StoredPair>)> = Vec::new();
    for sampling in chosen.into_iter().filter(|sampling| sampling.file.is_some()) {
        let tar = fetch(&controller, common.timeout.unwrap_or(LOOK), &sampling).await?;
        let pictures = read_stored(tar.as_slice()).map_err(|error| {
            Failure::other(format!("samples of step {} cannot be read: {error}", sampling.step))
        })?;
        drawn.push((sampling, pictures));
    }
    if drawn.is_empty() {
        return Err(Failure::other(format!(
            "job {} has no such pictures yet: `crescendo samples {}` says what is drawn",
            args.job, args.job
        )));
    }
    if let Some(folder) = &args.out {
        let count = write_pictures(folder, &drawn)?;
        show::errln(format_args!("{}: {count} pictures of {} steps", folder.display(), drawn.len()));
    }
    if let Some(path) = &args.sheet {
        std::fs::write(path, grid::render(&args.job, &drawn))
            .map_err(Failure::from_error(format!("write {}", path.display())))?;
        show::errln(format_args!("{}: {} steps", path.display(), drawn.len()));
    }
    Ok(())
}

/// What is drawn of a job, for its JSON; nothing where the controller knows nothing of samples.
pub async fn of_job(controller: &Controller, common: &Common, job: &str) -> Result<Vec<Value>, Failure> {
    match request(controller, common, job, "").await {
        Ok(samplings) => Ok(samplings.iter().map(json::sampling).collect()),
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Vec::new()),
        Err(status) => Err(controller.failure(&status)),
    }
}

async fn list(
    controller: &Controller,
    common: &Common,
    job: &str,
    stage: &str,
) -> Result<Vec<Sampling>, Failure> {
    request(controller, common, job, stage).await.map_err(|status| controller.failure(&status))
}

async fn request(
    controller: &Controller,
    common: &Common,
    job: &str,
    stage: &str,
) -> Result<Vec<Sampling>, tonic::Status> {
    let request = ListSamplesRequest { job_id: job.to_owned(), stage: stage.to_owned() };
    let answer = controller.call(common.timeout.unwrap_or(LOOK), |channel| {
        let request = request.clone();
        async move { connect::samples(channel).list_samples(request).await }
    });
    Ok(answer.await?.samplings)
}

fn table(samplings: &[Sampling]) -> Table {
    let mut table = Table::new(&["STAGE", "STEP", "STATE", "PICTURES", "VALIDATION LOSS", "DRAWN"]);
    for sampling in samplings {
        let state = match (sampling.state(), &sampling.progress) {
            (SamplingState::Wanted, Some(progress)) if progress.of > 0 => {
                format!("{} of {} by {}", progress.done, progress.of, words::one_line(&progress.node_id))
            }
            (SamplingState::Wanted, Some(progress)) => {
                format!("begun by {}", words::one_line(&progress.node_id))
            }
            (SamplingState::Wanted, None) if sampling.reason.is_empty() => "waits".to_owned(),
            (SamplingState::Wanted, None) => format!("waits: {}", words::one_line(&sampling.reason)),
            (SamplingState::Drawn, _) => "drawn".to_owned(),
            (SamplingState::GivenUp, _) => format!("not drawn: {}", words::one_line(&sampling.reason)),
            (SamplingState::Unspecified, _) => "unknown".to_owned(),
        };
        let loss = sampling.validation.as_ref().map(|loss| format!("{:.5}", loss.mean));
        table.row([
            sampling.stage.clone(),
            sampling.step.to_string(),
            state,
            sampling.pictures.to_string(),
            loss.unwrap_or_else(|| "-".to_owned()),
            words::time(sampling.drawn_at.as_ref()),
        ]);
    }
    table
}

/// Writes each picture as `STAGE-STEP-NUMBER.png`, and its references beside it.
fn write_pictures(folder: &Path, drawn: &[(Sampling, Vec<StoredPair>)]) -> Result<usize, Failure> {
    std::fs::create_dir_all(folder).map_err(Failure::from_error(format!("make {}", folder.display())))?;
    let mut count = 0;
    for (Sampling { stage, step, .. }, pictures) in drawn {
        for (number, StoredPair { target, references, .. }) in pictures.iter().enumerate() {
            let stem = format!("{stage}-{step:08}-{number:03}");
            let references =
                references.iter().enumerate().map(|(n, png)| (format!("{stem}-reference-{n}.png"), png));
            for (name, png) in std::iter::once((format!("{stem}.png"), target)).chain(references) {
                let path = folder.join(name);
                std::fs::write(&path, png)
                    .map_err(Failure::from_error(format!("write {}", path.display())))?;
            }
            count += 1;
        }
    }
    Ok(count)
}
