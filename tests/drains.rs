//! Nodes that are told to leave while a job runs: they hand over, no step is trained twice, and nothing counts as a failure.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::{Job, ListNodesRequest, node_service_client::NodeServiceClient};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 80;

fn spec(weights: &str, resources: &str) -> String {
    // No checkpoint comes by itself before the last one.
    lora_spec(weights, 1, STEPS, 1000).replace("resources: {gpus: 2}", &format!("resources: {{{resources}}}"))
}

/// Steps that rank 0 of each generation of a job has trained, by generation.
fn trained(folder: &Path, job_id: &str) -> Result<BTreeMap<u64, Vec<u64>>> {
    let mut steps = BTreeMap::new();
    for generation in 1..=9 {
        let file = folder.join(format!("{job_id}-stage-1-g{generation}-r0.jsonl"));
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let step = |line: &str| -> Result<u64> {
            let line: serde_json::Value = serde_json::from_str(line)?;
            line["step"].as_u64().context("a line has no step")
        };
        steps.insert(generation, text.lines().map(step).collect::<Result<_>>()?);
    }
    Ok(steps)
}

/// Every step once, the second generation from where the first one left off.
fn no_step_twice(folder: &Path, job: &Job) -> Result<()> {
    let steps = trained(folder, &job.job_id)?;
    ensure!(steps.len() == 2 && job.stages[0].generation == 2, "not handed over once: {steps:?}");
    let all: Vec<u64> = steps.into_values().flatten().collect();
    ensure!(all == (0..STEPS).collect::<Vec<_>>(), "steps are missing or trained twice: {all:?}");
    Ok(())
}

/// The trainer that has rank processes now.
fn busy_trainer(cluster: &Cluster) -> Result<usize> {
    for trainer in 0..cluster.trainers.len() {
        if !cluster.rank_pids(trainer)?.is_empty() {
            return Ok(trainer);
        }
    }
    anyhow::bail!("no trainer has a rank")
}

#[tokio::test]
async fn nodes_that_leave_hand_over_and_nothing_is_lost() -> Result<()> {
    let positions = tempfile::tempdir()?;
    let folder = positions.path();
    let environment = vec![("CRESCENDO_POSITION_LOG".to_owned(), folder.display().to_string())];
    let options = ClusterOptions { curators: 2, trainers: 2, environment, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await?;
    let weights = cluster.train_base().await?;

    let alone = spec(&weights, "gpus: 1");
    let job_id = cluster.submit("undisturbed", &alone).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    let undisturbed = cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;

    // Its only rank goes to the other trainer.
    let job_id = cluster.submit("moved", &alone).await?;
    cluster.await_step(&job_id, 0, 5, LIMIT).await?;
    let trainer = busy_trainer(&cluster)?;
    let status = cluster.trainers[trainer].terminate(LIMIT).await?;
    ensure!(status.success(), "the trainer ended with {status}:\n{}", cluster.trainers[trainer].log_tail());
    let job = cluster.await_success(&job_id, LIMIT).await?;
    no_step_twice(folder, &job)?;
    let moved = cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;
    ensure!(moved == undisturbed, "moving changed the result");
    cluster.trainers[trainer].start_again().await?;

    // One of two ranks leaves; the gang goes on with the other.
    let job_id = cluster.submit("shrunk", &spec(&weights, "gpus: 2, minGpus: 1")).await?;
    cluster.await_step(&job_id, 0, 5, LIMIT).await?;
    let status = cluster.trainers[0].terminate(LIMIT).await?;
    ensure!(status.success(), "the trainer ended with {status}:\n{}", cluster.trainers[0].log_tail());
    let job = cluster.await_success(&job_id, LIMIT).await?;
    no_step_twice(folder, &job)?;
    cluster.trainers[0].start_again().await?;

    // Ranks that read from a curator that leaves go on with the other, where they were.
    for curator in 0..2 {
        let job_id = cluster.submit(&format!("curator-{curator}"), &alone).await?;
        cluster.await_step(&job_id, 0, 3, LIMIT).await?;
        let status = cluster.curators[curator].terminate(LIMIT).await?;
        ensure!(status.success(), "the curator ended with {status}");
        let job = cluster.await_success(&job_id, LIMIT).await?;
        ensure!(job.stages[0].generation == 1, "a curator that left restarted the gang");
        let served = cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;
        ensure!(served == undisturbed, "a curator that left changed the result");
        cluster.curators[curator].start_again().await?;
    }

    let metrics = cluster.metrics().await?;
    ensure!(
        metrics.contains("crescendo_attempts_ended_total 0"),
        "handing over counts as a failure:\n{metrics}"
    );
    let nodes =
        NodeServiceClient::new(cluster.channel()?).list_nodes(ListNodesRequest {}).await?.into_inner();
    ensure!(nodes.nodes.iter().all(|node| !node.draining), "a node that is back still drains: {nodes:?}");
    Ok(())
}
