//! Seconds from `kill -9` of a rank to the next optimizer step of the gang. Prints one JSON line.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};

const LIMIT: Duration = Duration::from_secs(120);
const KILLS: usize = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    // Long enough not to end before the last kill.
    let job_id = cluster.submit("recovery", &lora_spec(&weights, 1, 1_000_000, 20)).await?;
    let mut seconds = Vec::new();
    let mut step = 25;
    for kill in 0..KILLS {
        let before = cluster.await_step(&job_id, 0, step, LIMIT).await?;
        let generation = before.stages.first().context("the job has no stage")?.generation;
        cluster.kill_9_rank(kill % 2)?;
        let killed = Instant::now();
        let after = cluster
            .await_job(&job_id, LIMIT, "step of the next attempt", |job| {
                job.stages
                    .first()
                    .is_some_and(|s| s.generation > generation && s.step > 0 && s.samples_per_sec > 0.0)
            })
            .await?;
        seconds.push(killed.elapsed().as_secs_f64());
        step = after.stages.first().context("the job has no stage")?.step + 25;
    }
    println!("{}", serde_json::json!({ "figure": "kill -9 of a rank to the next step", "seconds": seconds }));
    Ok(())
}
