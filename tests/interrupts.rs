//! Ctrl-C of `crescendo up`, and starting it again: nothing that was trained is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::Checkpoint;
use crescendo_tests::{Up, base_spec, lora_spec, no_step_twice, trained, write_subjects};

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 80;

/// The weights that `job_id`, a base, has trained.
async fn base(up: &Up) -> Result<String> {
    let job_id = up.submit(&base_spec(2))?;
    up.await_success(&job_id, LIMIT).await?;
    let last = up.checkpoints(&job_id).await?.pop().context("the base has no checkpoint")?;
    Ok(format!("store:{}/model.safetensors", last.path))
}

fn lora(checkpoint: &Checkpoint) -> Result<&str> {
    let file = checkpoint.files.iter().find(|file| file.name == "dit_lora.safetensors");
    Ok(&file.context("the checkpoint has no LoRA")?.sha256)
}

#[tokio::test]
async fn a_cluster_that_is_interrupted_goes_on_from_the_very_step() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    write_subjects(&folder.join("subjects"), 40)?;
    let positions = folder.join("positions");
    std::fs::create_dir(&positions)?;
    let environment = [("CRESCENDO_POSITION_LOG", positions.as_path())];
    let up = Up::start(folder, &[], &environment).await?;
    let weights = base(&up).await?;
    // No checkpoint comes by itself before the last one.
    let spec = lora_spec(&weights, 1, STEPS, 1000);
    let undisturbed = up.submit(&spec)?;
    up.await_success(&undisturbed, LIMIT).await?;
    let undisturbed = up.checkpoints(&undisturbed).await?;
    let undisturbed = lora(undisturbed.last().context("no checkpoint")?)?;

    let job_id = up.submit(&spec)?;
    up.await_job(&job_id, LIMIT, |job| job.stages[0].step >= 5).await?;
    let controller = up.controller()?;
    let (status, said) = up.interrupt(LIMIT).await?;
    ensure!(status.code() == Some(0), "it ended with {status}:\n{said}");
    for words in [
        &format!("saving a checkpoint of job {job_id}, stage-1, at step "),
        &format!("job {job_id}: saved at step "),
        "stopped; `crescendo up` goes on from there",
    ] {
        ensure!(said.contains(words), "it does not say {words:?}:\n{said}");
    }
    let first: Vec<u64> = trained(&positions, &job_id)?.remove(&1).context("nothing was trained")?;
    let saved = first.last().context("no step was trained")? + 1;
    ensure!(saved < STEPS && said.contains(&format!("saved at step {saved}\n")), "not of {saved}:\n{said}");

    let up = Up::start(folder, &[], &environment).await?;
    up.await_words(&format!("job {job_id} goes on, from step {saved} of stage-1"), LIMIT).await?;
    ensure!(up.controller()? == controller, "who watches from another terminal does not find it again");
    let job = up.await_success(&job_id, LIMIT).await?;
    ensure!(job.stages[0].generation == 2, "not handed over once: {job:#?}");
    let log = std::fs::read_to_string(folder.join(".crescendo/logs/controller.log"))?;
    ensure!(log.contains("attempt is handed over"), "that counts as a failure:\n{log}");
    no_step_twice(&positions, &job_id, STEPS)?;
    let checkpoints = up.checkpoints(&job_id).await?;
    let resumed = lora(checkpoints.last().context("no checkpoint")?)?;
    ensure!(resumed == undisturbed, "the interruption changed the result");

    // Nothing trains: there is nothing to save.
    let (status, said) = up.interrupt(LIMIT).await?;
    ensure!(status.code() == Some(0) && !said.contains("saving a checkpoint"), "{status}:\n{said}");
    Ok(())
}
