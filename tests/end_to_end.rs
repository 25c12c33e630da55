//! One job through all the processes: from YAML to a LoRA, on the embedded store and on a real etcd.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_store::testing::EtcdProcess;
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};

const LIMIT: Duration = Duration::from_secs(180);

async fn two_stages(cluster: &Cluster) -> Result<()> {
    let weights = cluster.train_base().await?;
    let spec = lora_spec(&weights, 2, 6, 3);
    let job_id = cluster.submit("lora", &spec).await?;
    let again = cluster.submit("lora", &spec).await?;
    ensure!(again == job_id, "the same request id made a second job: {job_id} and {again}");

    let job = cluster.await_success(&job_id, LIMIT).await?;
    for stage in &job.stages {
        ensure!(stage.step == 6, "{} ended at step {}", stage.name, stage.step);
        ensure!(stage.generation == 1 && stage.restarts == 0, "{} was restarted: {stage:?}", stage.name);
        ensure!(
            stage.pairs_committed == 20 && stage.pairs_sealed,
            "{} has another pair log: {stage:?}",
            stage.name
        );
    }
    let first = cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;
    let second = cluster.final_file_sha256(&job_id, "stage-2", "dit_lora.safetensors").await?;
    ensure!(first != second, "stage II changed nothing");

    let metrics = http_get(&cluster.controller.metrics_address()?, "/metrics").await?;
    ensure!(metrics.contains("crescendo_"), "the controller exposes no metrics:\n{metrics}");
    Ok(())
}

async fn http_get(address: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connect")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await??;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    Ok(text)
}

#[tokio::test]
async fn a_job_runs_through_both_stages_on_the_embedded_store() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    two_stages(&cluster).await
}

#[tokio::test]
async fn a_job_runs_through_both_stages_on_etcd() -> Result<()> {
    let Some(etcd) = EtcdProcess::start_or_skip().await else { return Ok(()) };
    let store = Some(format!("etcd:{}", etcd.endpoint()));
    let cluster = Cluster::start(ClusterOptions { store, ..ClusterOptions::default() }).await?;
    two_stages(&cluster).await
}
