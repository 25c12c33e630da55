//! One job through all the processes with a bucket for an object store: a base is trained, its weights and the subjects are
//! read from the bucket, a rank is killed so that it resumes from there, and a report is made of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::Job;
use crescendo_testing::S3Server;
use crescendo_tests::{Cluster, ClusterOptions, binary, lora_spec};
use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;
use sha2::{Digest as _, Sha256};

const LIMIT: Duration = Duration::from_secs(240);

#[tokio::test]
async fn a_job_runs_with_a_bucket_and_resumes_from_it() -> Result<()> {
    let Some(server) = S3Server::start_or_skip().await else { return Ok(()) };
    let conflicts = server.with_conflicts().await?;
    let options = ClusterOptions {
        object_store: Some(server.url("clusters/one")),
        // Writers that meet cost nothing but another try.
        environment: conflicts.environment.clone(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await?;
    let subjects = cluster.library().join("subjects");
    for file in std::fs::read_dir(&subjects).context("list the subjects")? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a plain name")?;
        let key = format!("sets/subjects/{name}");
        cluster.object_store().put(&key.as_str().into(), std::fs::read(&path)?.into()).await?;
    }

    let weights = cluster.train_base().await?;
    ensure!(weights.starts_with("store:jobs/"), "{weights}");
    let spec =
        lora_spec(&weights, 1, 12, 3).replace("subjects: subjects", "subjects: \"store:sets/subjects\"");
    let job_id = cluster.submit("lora", &spec).await?;
    cluster.await_step(&job_id, 0, 4, LIMIT).await?;
    cluster.kill_9_rank(0)?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    ensure!(job.stages[0].step == 12 && job.stages[0].pairs_committed == 20, "{job:?}");
    cluster.final_file_sha256(&job_id, "stage-1", "dit_lora.safetensors").await?;

    // Expired checkpoints are gone, as in a folder. What the killed attempt was writing may be left.
    let registered = cluster.checkpoints(&job_id).await?;
    let below = format!("jobs/{job_id}/stage-1/checkpoints");
    let listed = cluster.object_store().list(Some(&below.as_str().into()));
    let listed: Vec<String> = listed.map_ok(|found| found.location.to_string()).try_collect().await?;
    let last_attempt = format!("-g{}/", job.stages[0].generation);
    for key in listed.iter().filter(|key| key.contains(&last_attempt)) {
        ensure!(registered.iter().any(|known| key.starts_with(&known.path)), "{key} is left behind");
    }

    ensure!(conflicts.conflicts() >= 2, "curator and rank ask for conditions: {}", conflicts.conflicts());

    copy_without_keys(&cluster, &job_id).await?;
    let said = report(&server, &cluster, &job).await?;
    ensure!(!said.contains(server.secret()), "the key is in a report");

    let mut kept = Vec::new();
    for file in std::fs::read_dir(cluster.folder().join("store")).context("list the store")? {
        kept.extend(std::fs::read(file?.path())?);
    }
    ensure!(!kept.is_empty(), "the store is empty");
    let secret = server.secret().as_bytes();
    ensure!(!kept.windows(secret.len()).any(|window| window == secret), "the key is in the store");
    let seen = format!("{}\n{:?}\n{job:?}", cluster.whole_logs(), registered);
    ensure!(!seen.contains(server.secret()), "the key is in a log or an answer");
    Ok(())
}

/// Somebody who has no key of the bucket copies the LoRA all the same: a curator reads it.
async fn copy_without_keys(cluster: &Cluster, job_id: &str) -> Result<()> {
    let copy = cluster.folder().join("copy.safetensors");
    let mut command = tokio::process::Command::new(binary("crescendo")?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env_remove("CRESCENDO_OBJECT_STORE").current_dir(cluster.folder());
    command.env("XDG_CONFIG_HOME", cluster.folder()).env("XDG_STATE_HOME", cluster.folder());
    command.args(["cp", job_id, "--controller", &cluster.controller.grpc_address()?]).arg(&copy);
    let output = command.output().await.context("start crescendo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let registered = cluster.final_file_sha256(job_id, "stage-1", "dit_lora.safetensors").await?;
    let bytes = std::fs::read(&copy).context("read the copy")?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(digest == registered, "the copy differs from the registry");
    Ok(())
}

/// Everything that a report on the job says: checkpoint, base and subjects are read from the bucket.
async fn report(server: &S3Server, cluster: &Cluster, job: &Job) -> Result<String> {
    let stage = &job.stages[0];
    let json = serde_json::json!({
        "jobId": job.job_id, "name": job.name, "resolvedSpecYaml": job.resolved_spec_yaml,
        "stages": [{"name": stage.name, "finalCheckpoint": stage.final_checkpoint}],
    });
    let (file, out) = (cluster.folder().join("job.json"), cluster.folder().join("report"));
    std::fs::write(&file, json.to_string()).context("write the job")?;
    let output = tokio::process::Command::new(binary("crescendo-workbench")?)
        .envs(server.environment())
        .args(["report", "--object-store", &server.url("clusters/one"), "--draws", "8", "--draw-steps", "1"])
        .arg("--job")
        .arg(&file)
        .arg("--out")
        .arg(&out)
        .output()
        .await
        .context("start the workbench")?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{said}");
    let page = std::fs::read_to_string(out.join("report.html")).context("read the report")?;
    for says in ["stage-1, one subject", "gradient norm", "that training has seen"] {
        ensure!(page.contains(says), "no {says} in {said}");
    }
    Ok(said + &page)
}
