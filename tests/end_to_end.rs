//! One job through all the processes: from YAML to a LoRA, on the embedded store and on a real etcd.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_node::tls::Dialer;
use crescendo_proto::v1::ListJobsRequest;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_store::testing::{EtcdProcess, EtcdTls};
use crescendo_testing::certificates::{Authority, Wanted};
use crescendo_tests::{Cluster, ClusterOptions, http_get, lora_spec};

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

/// The value on the line that begins so; 0 if there is none.
fn metric(metrics: &str, line: &str) -> f64 {
    let value = metrics.lines().find_map(|found| found.strip_prefix(line));
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Every connection over mutual TLS: people and nodes to the controller, the controller to etcd, ranks to their agents and
/// to the curator.
#[tokio::test]
async fn a_job_runs_through_both_stages_over_mutual_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let etcds = Authority::new("etcd");
    let files = etcds.write(folder.path(), &Wanted { uris: &[], ..Wanted::node("etcd") });
    let (identity, client_ca) = (files.identity.context("files")?, files.ca.context("a root")?);
    let tls = EtcdTls { cert: identity.cert, key: identity.key, client_ca: client_ca.clone() };
    let Some(etcd) = EtcdProcess::start_or_skip_with(Some(tls)).await else { return Ok(()) };
    let client = etcds.write(folder.path(), &Wanted { hosts: &[], uris: &[], ..Wanted::node("client") });
    let client = client.identity.context("files")?;
    let store = Some(format!("etcd:{}", etcd.tls_endpoint("localhost").context("it serves TLS")?));
    let variable = |name: &str, path: &std::path::Path| (name.to_owned(), path.display().to_string());
    let environment = vec![
        variable("CRESCENDO_STORE_CA", &client_ca),
        variable("CRESCENDO_STORE_CERT", &client.cert),
        variable("CRESCENDO_STORE_KEY", &client.key),
    ];
    let authority = Some(Authority::new("cluster"));
    let cluster =
        Cluster::start(ClusterOptions { store, environment, authority, ..ClusterOptions::default() }).await?;
    two_stages(&cluster).await?;

    for process in [&cluster.controller, &cluster.curators[0], &cluster.trainers[0]] {
        let channel = Dialer::plain().channel(&process.grpc_address()?)?;
        let answer = JobServiceClient::new(channel).list_jobs(ListJobsRequest::default()).await;
        ensure!(answer.is_err(), "a connection without TLS was served");
        // The client may know before it is counted.
        let counted = async {
            loop {
                let metrics = http_get(&process.metrics_address()?, "/metrics").await?;
                if metric(&metrics, "crescendo_connections_refused_total{reason=\"not_tls\"} ") > 0.0 {
                    return anyhow::Ok(metrics);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let metrics = tokio::time::timeout(LIMIT, counted).await.context("the refusal is counted")??;
        for file in ["ca", "certificate"] {
            let line = format!("crescendo_tls_certificate_expiry_timestamp_seconds{{file=\"{file}\"}} ");
            ensure!(metric(&metrics, &line) > 1.7e9, "{line} has no time in {metrics}");
        }
    }
    Ok(())
}
