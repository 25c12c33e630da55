//! A job that may run on fewer ranks: it loses a node and goes on with those that are left, from the very step, and has all its
//! ranks again once there are slots.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crescendo_proto::v1::Job;
use crescendo_tests::{Cluster, ClusterOptions, lora_spec, trained};

const LIMIT: Duration = Duration::from_secs(120);
const STEPS: u64 = 1200;

fn generation(job: &Job) -> u64 {
    job.stages[0].generation
}

#[tokio::test]
async fn a_gang_shrinks_with_its_nodes_and_grows_again() -> Result<()> {
    let positions = tempfile::tempdir()?;
    let environment = vec![
        ("CRESCENDO_POSITION_LOG".to_owned(), positions.path().display().to_string()),
        ("CRESCENDO_GROW_AFTER_SECONDS".to_owned(), "1".to_owned()),
    ];
    let mut cluster = Cluster::start(ClusterOptions { environment, ..ClusterOptions::default() }).await?;
    let weights = cluster.train_base().await?;
    // No checkpoint comes by itself before the last one; three samples a step are no even number for two ranks.
    let spec = lora_spec(&weights, 1, STEPS, 10_000)
        .replace("resources: {gpus: 2}", "resources: {gpus: 2, minGpus: 1}")
        .replace("globalBatch: 4", "globalBatch: 3");
    let job_id = cluster.submit("elastic", &spec).await?;

    // Rank 0 is left, then the other one.
    for (round, lost) in [1, 0].into_iter().enumerate() {
        let both = |job: &Job| job.slots_held == 2 && job.stages[0].step > 0;
        let job = cluster.await_job(&job_id, LIMIT, "two ranks that step", both).await?;
        let (before, now) = (job.stages[0].step, generation(&job));
        cluster.trainers[lost].kill_9()?;
        let killed = Instant::now();
        let alone = |job: &Job| generation(job) > now && job.slots_held == 1 && job.stages[0].step > before;
        let job = cluster.await_job(&job_id, LIMIT, "one rank that steps", alone).await?;
        let away = killed.elapsed();
        ensure!(away < Duration::from_secs(15), "stepped again after {away:?}");
        ensure!(generation(&job) == now + 1, "round {round} took more than one attempt: {job:?}");
        ensure!(job.stages[0].checkpoint_step >= before, "what was trained is lost: {job:?}");
        cluster.trainers[lost].start_again().await?;
    }
    let job = cluster.await_success(&job_id, LIMIT).await?;
    ensure!(generation(&job) == 5, "not shrunk and grown twice: {job:?}");
    let steps: Vec<u64> = trained(positions.path(), &job_id)?.into_values().flatten().collect();
    // What rank 0 had done when it was killed and the other had not is trained again: one step at most.
    let distinct: Vec<u64> = (0..STEPS).collect();
    let mut once = steps.clone();
    once.dedup();
    ensure!(once == distinct && steps.len() <= distinct.len() + 1, "steps are missing or trained twice");
    Ok(())
}
