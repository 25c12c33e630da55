//! An object store that is full: training goes no further than it can afford to lose, says what it waits for, and goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::{Job, StageStatus};
use crescendo_testing::{SmallDisk, eventually};
use crescendo_tests::{Cluster, ClusterOptions, base_spec};

const LIMIT: Duration = Duration::from_secs(120);
const EVERY: u64 = 10;

fn stage(job: &Job) -> Result<StageStatus> {
    job.stages.first().cloned().context("a stage")
}

#[tokio::test]
async fn a_full_object_store_holds_training_up_and_costs_no_step() -> Result<()> {
    let Some(disk) = SmallDisk::mount(256) else { return Ok(()) };
    let object_store = Some(format!("file://{}", disk.path().join("objects").display()));
    let cluster = Cluster::start(ClusterOptions { object_store, ..Default::default() }).await?;
    let spec = base_spec(80).replace("every: 100", &format!("every: {EVERY}"));
    let job_id = cluster.submit("full", &spec).await?;
    cluster.await_step(&job_id, 0, EVERY, LIMIT).await?;
    eventually("the first checkpoint is there", async || {
        Ok((!cluster.checkpoints(&job_id).await?.is_empty()).then_some(()))
    })
    .await?;
    disk.fill();

    let held = eventually("the job says what it waits for", async || {
        let stage = stage(&cluster.job(&job_id).await?)?;
        Ok(stage.waiting_for.contains("No space left on device").then_some(stage))
    })
    .await?;
    ensure!(held.waiting_for.contains("a checkpoint to be saved"), "{held:?}");
    let saved = cluster.checkpoints(&job_id).await?.iter().map(|saved| saved.step).max().context("saved")?;
    ensure!(held.step <= saved + 2 * EVERY, "it went on for too long: {held:?}, saved {saved}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(stage(&cluster.job(&job_id).await?)?.step == held.step, "it goes on without a checkpoint");

    disk.free();
    cluster.await_success(&job_id, LIMIT).await?;
    let checkpoints = cluster.checkpoints(&job_id).await?;
    ensure!(checkpoints.iter().all(|saved| saved.generation == 1), "it was started again: {checkpoints:?}");

    // The last checkpoint is waited for as well.
    let job_id = cluster.submit("last", &base_spec(30)).await?;
    cluster.await_step(&job_id, 0, 2, LIMIT).await?;
    disk.fill();
    eventually("the job says what it waits for", async || {
        let stage = stage(&cluster.job(&job_id).await?)?;
        Ok(stage.waiting_for.contains("No space left on device").then_some(()))
    })
    .await?;
    disk.free();
    cluster.await_success(&job_id, LIMIT).await?;
    ensure!(cluster.checkpoints(&job_id).await?.iter().all(|saved| saved.generation == 1));
    Ok(())
}
