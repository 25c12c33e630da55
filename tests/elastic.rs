//! A job that may run on fewer ranks: it begins with what is free, has all its ranks once there are slots, loses a node, and goes on
//! with what is left.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crescendo_proto::v1::Job;
use crescendo_tests::{Cluster, ClusterOptions, lora_spec, trained, trained_by};

const LIMIT: Duration = Duration::from_secs(150);
const STEPS: u64 = 300;

fn generation(job: &Job) -> u64 {
    job.stages[0].generation
}

#[tokio::test]
async fn a_gang_grows_into_free_slots_and_shrinks_with_its_nodes() -> Result<()> {
    let positions = tempfile::tempdir()?;
    let environment = vec![
        ("CRESCENDO_POSITION_LOG".to_owned(), positions.path().display().to_string()),
        ("CRESCENDO_GROW_AFTER_SECONDS".to_owned(), "1".to_owned()),
    ];
    let mut cluster = Cluster::start(ClusterOptions { environment, ..ClusterOptions::default() }).await?;
    let weights = cluster.train_base().await?;
    // No checkpoint comes by itself before the last one; three samples a step are no even number for two ranks.
    let elastic = lora_spec(&weights, 1, STEPS, 10_000)
        .replace("resources: {gpus: 2}", "resources: {gpus: 2, minGpus: 1}")
        .replace("globalBatch: 4", "globalBatch: 3");
    let alone = lora_spec(&weights, 1, 100_000, 10_000).replace("gpus: 2", "gpus: 1");
    let other = cluster.submit("other", &alone).await?;
    cluster.await_step(&other, 0, 1, LIMIT).await?;

    let job_id = cluster.submit("elastic", &elastic).await?;
    let job = cluster.await_step(&job_id, 0, 1, LIMIT).await?;
    ensure!((generation(&job), job.slots_held) == (1, 1), "it did not begin with what is free: {job:?}");
    cluster.cancel(&other).await?;
    let both = |job: &Job| {
        generation(job) == 2 && job.slots_held == 2 && job.stages[0].step > job.stages[0].checkpoint_step
    };
    let job = cluster.await_job(&job_id, LIMIT, "two ranks that step", both).await?;
    let saved = job.stages[0].checkpoint_step;
    ensure!(saved > 0, "it left without a checkpoint: {job:?}");

    cluster.trainers[1].kill_9()?;
    let shrunk = |job: &Job| job.slots_held == 1 && job.stages[0].step > saved + 1;
    let job = cluster.await_job(&job_id, LIMIT, "one rank that steps", shrunk).await?;
    ensure!(generation(&job) > 2, "not placed anew: {job:?}");
    cluster.await_success(&job_id, LIMIT).await?;
    // Every step is there, by whichever gang.
    let mut steps: Vec<u64> = trained(positions.path(), &job_id)?.into_values().flatten().collect();
    steps.sort_unstable();
    steps.dedup();
    ensure!(steps == (0..STEPS).collect::<Vec<_>>(), "steps are missing: {steps:?}");
    Ok(())
}

/// Whether every gang of the job went on with the step after the last one that all ranks of the gang before had begun, or that one.
fn at_most_one_step_again(positions: &Path, job_id: &str) -> Result<()> {
    // The last step that all ranks had begun, and that any had: a rank that dies may have begun one before the others had got all of
    // the one before, and its log may lack its last.
    let mut before: Option<(u64, u64)> = None;
    for (generation, steps) in trained(positions, job_id)? {
        let other = trained_by(positions, job_id, 1)?.remove(&generation).unwrap_or_default();
        let first = steps.iter().chain(&other).copied().min();
        if let (Some((by_all, by_any)), Some(first)) = (before, first) {
            let again = (by_all + 1).saturating_sub(first);
            ensure!(again <= 1, "{again} steps again in generation {generation}");
            ensure!(first <= by_any + 1, "steps {by_any} to {first} are missing in generation {generation}");
        }
        let last = [&steps, &other].map(|steps| steps.iter().max().copied());
        before = last.iter().min().copied().flatten().zip(last.iter().max().copied().flatten());
    }
    Ok(())
}

/// The processes of single ranks die and their nodes do not, each rank of the gang once: whoever is left saves the step before.
async fn ranks_die(trainers: usize, slots: u32) -> Result<()> {
    let positions = tempfile::tempdir()?;
    let environment = vec![("CRESCENDO_POSITION_LOG".to_owned(), positions.path().display().to_string())];
    let options = ClusterOptions { environment, trainers, slots, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let weights = cluster.train_base().await?;
    // No checkpoint comes by itself before the last one.
    let spec = lora_spec(&weights, 1, 120, 10_000).replace("globalBatch: 4", "globalBatch: 2");
    let (undisturbed, died) = (cluster.submit("undisturbed", &spec).await?, "died");
    cluster.await_success(&undisturbed, LIMIT).await?;

    let job_id = cluster.submit(died, &spec).await?;
    for kill in 0..2 {
        let generation = kill as u64 + 1;
        let steps = |job: &Job| {
            job.stages[0].generation == generation && job.stages[0].step > job.stages[0].checkpoint_step + 5
        };
        cluster.await_job(&job_id, LIMIT, "two ranks that step", steps).await?;
        cluster.kill_9_rank_at(kill % trainers, kill % slots as usize)?;
        cluster.await_generation(&job_id, 0, generation + 1, LIMIT).await?;
    }
    let job = cluster.await_success(&job_id, LIMIT).await?;
    ensure!(generation(&job) == 3, "it was placed {} times", generation(&job));

    at_most_one_step_again(positions.path(), &job_id)?;
    let mut lora = Vec::new();
    for job in [&undisturbed, &job_id] {
        lora.push(cluster.final_file_sha256(job, "stage-1", "dit_lora.safetensors").await?);
    }
    ensure!(lora[0] == lora[1], "what was saved so is not what was trained");
    Ok(())
}

#[tokio::test]
async fn a_rank_that_dies_on_its_node_costs_one_step_at_most() -> Result<()> {
    ranks_die(2, 1).await
}

#[tokio::test]
async fn a_rank_that_dies_beside_the_others_costs_one_step_at_most() -> Result<()> {
    ranks_die(1, 2).await
}

/// Nothing comes from a machine any more, and its connections stay open: the ranks elsewhere are told, save the step before, and go
/// on without it.
async fn a_machine_vanishes(lost: usize) -> Result<()> {
    let positions = tempfile::tempdir()?;
    let environment = vec![
        ("CRESCENDO_POSITION_LOG".to_owned(), positions.path().display().to_string()),
        ("CRESCENDO_GROW_AFTER_SECONDS".to_owned(), "1".to_owned()),
    ];
    let cluster = Cluster::start(ClusterOptions { environment, ..ClusterOptions::default() }).await?;
    let weights = cluster.train_base().await?;
    // No checkpoint comes by itself before the last one.
    let spec = lora_spec(&weights, 1, STEPS, 10_000)
        .replace("resources: {gpus: 2}", "resources: {gpus: 2, minGpus: 1}");
    let job_id = cluster.submit("elastic", &spec).await?;
    // It may have begun with one rank, as long as a slot was held by what came before.
    let both = |job: &Job| job.slots_held == 2 && job.stages[0].step > job.stages[0].checkpoint_step + 10;
    let before = generation(&cluster.await_job(&job_id, LIMIT, "two ranks that step", both).await?);

    cluster.machine_stands_still(lost, true)?;
    let began = Instant::now();
    let goes_on = |job: &Job| {
        let stage = &job.stages[0];
        stage.generation > before && job.slots_held == 1 && stage.step > stage.checkpoint_step
    };
    cluster.await_job(&job_id, LIMIT, "one rank that steps", goes_on).await?;
    println!("from a machine that vanishes to the next step: {:.1?}", began.elapsed());
    // It comes back with ranks that nobody waits for.
    cluster.machine_stands_still(lost, false)?;
    cluster.await_success(&job_id, LIMIT).await?;
    at_most_one_step_again(positions.path(), &job_id)
}

#[tokio::test]
async fn a_machine_that_vanishes_without_a_word_costs_one_step_at_most() -> Result<()> {
    a_machine_vanishes(1).await
}

#[tokio::test]
async fn so_does_that_of_rank_0() -> Result<()> {
    a_machine_vanishes(0).await
}
