//! Nodes that are told to leave while a job runs: they hand over, no step is trained twice, and nothing counts as a failure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use crescendo_proto::v1::{Job, ListNodesRequest, node_service_client::NodeServiceClient};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec, no_step_twice};

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 80;

fn spec(weights: &str, resources: &str) -> String {
    // No checkpoint comes by itself before the last one.
    lora_spec(weights, 1, STEPS, 1000).replace("resources: {gpus: 2}", &format!("resources: {{{resources}}}"))
}

/// Every step once, the second generation from where the first one left off.
fn handed_over(folder: &Path, job: &Job) -> Result<()> {
    ensure!(job.stages[0].generation == 2, "not handed over once: {job:?}");
    no_step_twice(folder, &job.job_id, STEPS)
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
    handed_over(folder, &job)?;
    let moved = cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;
    ensure!(moved == undisturbed, "moving changed the result");
    cluster.trainers[trainer].start_again().await?;

    // One of two ranks leaves; the gang goes on with the other.
    let job_id = cluster.submit("shrunk", &spec(&weights, "gpus: 2, minGpus: 1")).await?;
    cluster.await_step(&job_id, 0, 5, LIMIT).await?;
    let status = cluster.trainers[0].terminate(LIMIT).await?;
    ensure!(status.success(), "the trainer ended with {status}:\n{}", cluster.trainers[0].log_tail());
    let job = cluster.await_success(&job_id, LIMIT).await?;
    handed_over(folder, &job)?;
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
