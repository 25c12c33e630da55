//! The log of a job outlives the job, its nodes and the controller that heard it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::{LogLine, ReadLogsRequest};
use crescendo_testing::eventually;
use crescendo_tests::{Cluster, ClusterOptions, base_spec};
use tonic::Status;

const LIMIT: Duration = Duration::from_secs(120);

/// Everything that can be had of a job's log.
async fn log(cluster: &Cluster, job_id: &str) -> Result<Result<Vec<LogLine>, Status>> {
    let request = ReadLogsRequest { job_id: job_id.into(), tail_lines: 10_000, follow: false };
    let mut client = JobServiceClient::new(cluster.channel()?);
    let mut answers = match client.read_logs(request).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut lines = Vec::new();
    loop {
        let next = tokio::time::timeout(LIMIT, answers.message()).await.context("nothing comes")?;
        match next {
            Ok(Some(response)) => lines.extend(response.line),
            Ok(None) => return Ok(Ok(lines)),
            Err(status) => return Ok(Err(status)),
        }
    }
}

fn what(line: &LogLine) -> (String, i32, String) {
    (line.node_id.clone(), line.rank, line.message.clone())
}

/// All that lies in the object store of a job's log.
fn kept(cluster: &Cluster, job_id: &str) -> String {
    let folder = cluster.objects().join("jobs").join(job_id).join("logs");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // What is still being written has another name, and goes with its writer.
    let chunks = files.filter(|file| !file.file_name().to_string_lossy().contains('#'));
    chunks.filter_map(|chunk| std::fs::read_to_string(chunk.path()).ok()).collect()
}

#[tokio::test]
async fn a_log_is_read_when_the_job_its_node_and_the_controller_are_gone() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let job_id = cluster.submit("base", &base_spec(20)).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    let heard = eventually("the rank's lines have come", async || {
        let lines = log(&cluster, &job_id).await??;
        Ok(lines.iter().any(|line| line.rank >= 0).then_some(lines))
    })
    .await?;
    ensure!(heard.iter().any(|line| line.rank < 0), "agents and curators say something too");
    // Every couple of seconds a process writes down what is new.
    eventually("every line is kept", async || {
        let text = kept(&cluster, &job_id);
        let is_kept =
            |line: &LogLine| serde_json::to_string(&line.message).is_ok_and(|said| text.contains(&said));
        Ok(heard.iter().all(is_kept).then_some(()))
    })
    .await?;

    for trainer in &mut cluster.trainers {
        trainer.kill_9()?;
    }
    cluster.controller.kill_9()?;
    cluster.controller.start_again().await?;
    let read = eventually("a curator reads it for the new controller", async || {
        Ok(log(&cluster, &job_id).await?.ok().filter(|lines| !lines.is_empty()))
    })
    .await?;
    let read: Vec<_> = read.iter().map(what).collect();
    for line in &heard {
        ensure!(read.contains(&what(line)), "{line:?} is lost");
    }

    // Without any curator it is said, not passed off as an empty log.
    cluster.curators[0].kill_9()?;
    let refused =
        eventually("nobody reads it any more", async || Ok(log(&cluster, &job_id).await?.err())).await?;
    ensure!(refused.message().contains("curator"), "{refused:?}");
    Ok(())
}
