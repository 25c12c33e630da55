//! `kill -9` of every kind of process while a job runs: the job goes on by itself and ends with the very bytes of an
//! undisturbed run.

use std::time::Duration;

use anyhow::{Result, ensure};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};

const LIMIT: Duration = Duration::from_secs(180);
// Long enough that no kill comes too late: progress is reported twice a second.
const STEPS: u64 = 80;
const LORA: &str = "dit_lora.safetensors";

/// Hash of the LoRA that the job `request_id` ends with when `disturb` meddles with the cluster meanwhile, and the
/// generation that finished it.
async fn run<F>(cluster: &mut Cluster, request_id: &str, weights: &str, disturb: F) -> Result<(String, u64)>
where
    F: AsyncFnOnce(&mut Cluster, &str) -> Result<()>,
{
    let job_id = cluster.submit(request_id, &lora_spec(weights, 1, STEPS, 8)).await?;
    disturb(cluster, &job_id).await?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    Ok((cluster.final_file_sha256(&job_id, "stage-1", LORA).await?, job.stages[0].generation))
}

#[tokio::test]
async fn every_kind_of_kill_ends_with_the_bytes_of_an_undisturbed_run() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    let (undisturbed, generation) = run(&mut cluster, "undisturbed", &weights, async |_, _| Ok(())).await?;
    ensure!(generation == 1, "an undisturbed run was restarted");

    let (rank_killed, generation) = run(&mut cluster, "rank", &weights, async |cluster, job| {
        cluster.await_step(job, 0, 5, LIMIT).await?;
        cluster.kill_9_rank(1)
    })
    .await?;
    ensure!(rank_killed == undisturbed, "a killed rank changed the result");
    ensure!(generation > 1, "the kill came too late to matter");

    let (agent_killed, generation) = run(&mut cluster, "agent", &weights, async |cluster, job| {
        cluster.await_step(job, 0, 5, LIMIT).await?;
        cluster.trainers[0].kill_9()?;
        cluster.trainers[0].start_again().await
    })
    .await?;
    ensure!(agent_killed == undisturbed, "a killed agent changed the result");
    ensure!(generation > 1, "the kill came too late to matter");

    let (curator_killed, _) = run(&mut cluster, "curator", &weights, async |cluster, job| {
        cluster.await_step(job, 0, 1, LIMIT).await?;
        cluster.curators[0].kill_9()?;
        cluster.curators[0].start_again().await
    })
    .await?;
    ensure!(curator_killed == undisturbed, "a killed curator changed the result");

    let (controller_killed, generation) = run(&mut cluster, "controller", &weights, async |cluster, job| {
        cluster.await_step(job, 0, 3, LIMIT).await?;
        cluster.controller.kill_9()?;
        cluster.controller.start_again().await
    })
    .await?;
    ensure!(controller_killed == undisturbed, "a killed controller changed the result");
    ensure!(generation == 1, "a controller that failed restarted a healthy attempt");
    Ok(())
}

/// A rank that stands still is found, its threads are logged, and its gang goes on within half a minute. An agent that
/// stands still costs nothing.
#[tokio::test]
async fn a_rank_that_stands_still_is_started_again_and_a_paused_agent_is_not() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    let (undisturbed, _) = run(&mut cluster, "undisturbed", &weights, async |_, _| Ok(())).await?;

    let mut stood_still = Duration::ZERO;
    let (hung, generation) = run(&mut cluster, "hung", &weights, async |cluster, job| {
        cluster.await_step(job, 0, 10, LIMIT).await?;
        cluster.stop_rank(1)?;
        let stopped = std::time::Instant::now();
        cluster.await_generation(job, 0, 2, LIMIT).await?;
        stood_still = stopped.elapsed();
        Ok(())
    })
    .await?;
    ensure!(hung == undisturbed, "a rank that hung changed the result");
    ensure!(generation == 2, "generation {generation}");
    ensure!(stood_still < Duration::from_secs(30), "started again after {stood_still:?}");
    let logs = cluster.whole_logs();
    ensure!(logs.contains("the rank hangs and is killed"), "the rank's threads are not logged");
    ensure!(logs.contains("T (stopped)"), "its threads are not said to be stopped");

    // Long enough not to be done meanwhile.
    let job_id = cluster.submit("paused", &lora_spec(&weights, 1, 20 * STEPS, 100)).await?;
    cluster.await_step(&job_id, 0, 3, LIMIT).await?;
    cluster.trainers[1].stand_still(true)?;
    tokio::time::sleep(Duration::from_secs(25)).await;
    cluster.trainers[1].stand_still(false)?;
    let job = cluster.await_step(&job_id, 0, 100, LIMIT).await?;
    ensure!(job.stages[0].generation == 1, "an agent that stood still cost its gang a restart");
    Ok(())
}

/// The controller dies again and again, at moments that a seed chooses, from submission to the end.
#[tokio::test]
async fn a_controller_killed_at_random_moments_changes_no_jobs_fate() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    let (undisturbed, _) = run(&mut cluster, "undisturbed", &weights, async |_, _| Ok(())).await?;
    let mut moments = Moments(0x5eed);
    let (hash, generation) = run(&mut cluster, "random", &weights, async |cluster, _| {
        for _ in 0..8 {
            tokio::time::sleep(moments.next()).await;
            cluster.controller.kill_9()?;
            cluster.controller.start_again().await?;
        }
        Ok(())
    })
    .await?;
    ensure!(hash == undisturbed, "the result changed");
    ensure!(generation == 1, "a controller that failed restarted a healthy attempt");
    Ok(())
}

/// Moments between 0 and 400 ms from a linear congruential generator (constants of Knuth's MMIX).
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((self.0 >> 33) % 400)
    }
}
