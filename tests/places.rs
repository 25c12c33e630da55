//! Jobs that give up their slots and get them back: by a person's pause, for a job of a higher class, and after a failure. No step
//! is trained twice, nothing of it counts as a failure, and the result is that of a job that was left alone.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::{
    ExplainJobRequest, Job, JobState, ListQueuesRequest, PauseJobRequest, QueueSlots, ResumeJobRequest,
    RetryJobRequest, job_service_client::JobServiceClient, queue_service_client::QueueServiceClient,
};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec, no_step_twice};
use tonic::Response;

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 80;
const TENANTS: &str = "
operator: default
classes: {normal: {from: 0}, urgent: {from: 10}}
queues: {a: {guaranteed: {cpu: 1}}, b: {guaranteed: {cpu: 1}}}
";

/// No checkpoint comes by itself before the last one.
fn spec(weights: &str, resources: &str) -> String {
    lora_spec(weights, 1, STEPS, 1000).replace("resources: {gpus: 2}", &format!("resources: {{{resources}}}"))
}

async fn pause(cluster: &Cluster, job_id: &str) -> Result<Job> {
    let request = PauseJobRequest { job_id: job_id.to_owned(), reason: "lunch".into(), keep_curating: false };
    let call = cluster.ask(async |channel| {
        JobServiceClient::new(channel).pause_job(request.clone()).await.map(Response::into_inner)
    });
    call.await?.job.context("the answer has no job")
}

async fn resume(cluster: &Cluster, job_id: &str) -> Result<Job> {
    let request = ResumeJobRequest { job_id: job_id.to_owned() };
    let call = cluster.ask(async |channel| {
        JobServiceClient::new(channel).resume_job(request.clone()).await.map(Response::into_inner)
    });
    call.await?.job.context("the answer has no job")
}

async fn retry(cluster: &Cluster, job_id: &str) -> Result<Job> {
    let request = RetryJobRequest { job_id: job_id.to_owned() };
    let call = cluster.ask(async |channel| {
        JobServiceClient::new(channel).retry_job(request.clone()).await.map(Response::into_inner)
    });
    call.await?.job.context("the answer has no job")
}

async fn result(cluster: &Cluster, job_id: &str) -> Result<String> {
    cluster.final_file_sha256(job_id, "stage-1", "dit_lora.safetensors").await
}

/// Every step once, the second generation from where the first one left off.
fn handed_over(folder: &Path, job: &Job) -> Result<()> {
    ensure!(job.stages[0].generation == 2, "not handed over once: {job:?}");
    no_step_twice(folder, &job.job_id, STEPS)
}

#[tokio::test]
async fn slots_are_given_up_and_got_back_without_a_lost_step() -> Result<()> {
    let positions = tempfile::tempdir()?;
    let folder = positions.path();
    let tenants = folder.join("tenants.yaml");
    std::fs::write(&tenants, TENANTS)?;
    let environment = vec![
        ("CRESCENDO_POSITION_LOG".to_owned(), folder.display().to_string()),
        ("CRESCENDO_TENANTS".to_owned(), tenants.display().to_string()),
    ];
    let cluster = Cluster::start(ClusterOptions { environment, ..ClusterOptions::default() }).await?;
    let weights = cluster.train_base().await?;
    let both = spec(&weights, "gpus: 2");
    let job_id = cluster.submit("undisturbed", &both).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    let undisturbed = result(&cluster, &job_id).await?;

    paused_and_resumed(&cluster, folder, &both, &undisturbed).await?;
    preempted(&cluster, folder, &weights, &undisturbed).await?;
    let metrics = cluster.metrics().await?;
    ensure!(metrics.contains("crescendo_jobs_preempted_total 1"), "not one preemption:\n{metrics}");
    ensure!(
        metrics.contains("crescendo_attempts_ended_total 0"),
        "a place given up is a failure:\n{metrics}"
    );
    lent_and_given_back(&cluster, folder, &weights, &undisturbed).await?;
    failed_and_tried_again(&cluster, &weights, &undisturbed).await?;
    started_from_another_job(&cluster, &weights, &job_id, &undisturbed).await
}

async fn paused_and_resumed(cluster: &Cluster, folder: &Path, spec: &str, undisturbed: &str) -> Result<()> {
    let job_id = cluster.submit("paused", spec).await?;
    cluster.await_step(&job_id, 0, 5, LIMIT).await?;
    let told = pause(cluster, &job_id).await?;
    ensure!(told.state() == JobState::Paused && told.slots_held == 2, "not paused at once: {told:?}");
    let left = cluster.await_job(&job_id, LIMIT, "ranks that leave", |job| job.slots_held == 0).await?;
    ensure!(left.reason == "is paused: lunch", "{}", left.reason);
    let saved = left.stages[0].checkpoint_step;
    ensure!((5..STEPS).contains(&saved), "it left without a checkpoint of the step it was at: {left:?}");
    for trainer in 0..2 {
        // The first node's word ends the attempt; a rank elsewhere may be about to exit.
        let began = Instant::now();
        while !cluster.rank_pids(trainer)?.is_empty() {
            ensure!(began.elapsed() < LIMIT, "trainer {trainer} has ranks of a paused job");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Twice is once.
    ensure!(pause(cluster, &job_id).await?.state() == JobState::Paused, "paused no more");
    ensure!(resume(cluster, &job_id).await?.state() != JobState::Paused, "not resumed");
    resume(cluster, &job_id).await?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    handed_over(folder, &job)?;
    ensure!(result(cluster, &job_id).await? == undisturbed, "a pause changed the result");
    let refused = pause(cluster, &job_id).await;
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("succeeded")), "an ended job paused");
    Ok(())
}

async fn preempted(cluster: &Cluster, folder: &Path, weights: &str, undisturbed: &str) -> Result<()> {
    let low = cluster.submit("low", &spec(weights, "gpus: 2")).await?;
    cluster.await_step(&low, 0, 5, LIMIT).await?;
    let urgent = spec(weights, "gpus: 1").replace("  resources", "  priority: 10\n  resources");
    let high = cluster.submit("high", &urgent).await?;
    cluster.await_step(&high, 0, 1, LIMIT).await?;
    let waiting = cluster.job(&low).await?;
    ensure!(waiting.slots_held == 0, "both hold slots: {waiting:?}");
    let request = ExplainJobRequest { job_id: low.clone() };
    let told = JobServiceClient::new(cluster.channel()?).explain_job(request).await?.into_inner();
    ensure!(told.cause == "slots", "the job waits for something else: {told:?}");
    cluster.await_success(&high, LIMIT).await?;
    let job = cluster.await_success(&low, LIMIT).await?;
    handed_over(folder, &job)?;
    ensure!(result(cluster, &low).await? == undisturbed, "losing its place changed the result");
    Ok(())
}

async fn lent_and_given_back(
    cluster: &Cluster,
    folder: &Path,
    weights: &str,
    undisturbed: &str,
) -> Result<()> {
    let in_queue = |queue: &str, gpus: u32| {
        let spec = spec(weights, &format!("gpus: {gpus}"));
        spec.replace("  resources", &format!("  queue: {queue}\n  resources"))
    };
    let borrower = cluster.submit("borrower", &in_queue("a", 2)).await?;
    cluster.await_step(&borrower, 0, 5, LIMIT).await?;
    let slots_of = async |name: &str| -> Result<QueueSlots> {
        let request = ListQueuesRequest {};
        let told = QueueServiceClient::new(cluster.channel()?).list_queues(request).await?.into_inner();
        let queue = told.queues.into_iter().find(|queue| queue.name == name).context("no such queue")?;
        queue.slots.into_iter().find(|slots| slots.device == "cpu").context("no slots")
    };
    let lent = slots_of("a").await?;
    ensure!((lent.guaranteed, lent.used, lent.borrowed) == (1, 2, 2), "{lent:?}");
    let owner = cluster.submit("owner", &in_queue("b", 1)).await?;
    cluster.await_step(&owner, 0, 1, LIMIT).await?;
    ensure!(cluster.job(&borrower).await?.slots_held == 0, "both hold slots");
    let own = slots_of("b").await?;
    ensure!((own.used, own.borrowed) == (1, 0), "{own:?}");
    cluster.await_success(&owner, LIMIT).await?;
    let job = cluster.await_success(&borrower, LIMIT).await?;
    handed_over(folder, &job)?;
    ensure!(result(cluster, &borrower).await? == undisturbed, "giving back what was lent changed the result");
    Ok(())
}

async fn failed_and_tried_again(cluster: &Cluster, weights: &str, undisturbed: &str) -> Result<()> {
    let away = format!("{weights}.away");
    std::fs::rename(weights, &away)?;
    let job_id = cluster.submit("failed", &spec(weights, "gpus: 2")).await?;
    let failed = cluster.await_job(&job_id, LIMIT, "failure", |job| job.state() == JobState::Failed).await?;
    ensure!(failed.reason.contains("model.safetensors"), "{}", failed.reason);
    std::fs::rename(&away, weights)?;
    let told = retry(cluster, &job_id).await?;
    ensure!(told.state() != JobState::Failed && told.finished_at.is_none(), "not tried again: {told:?}");
    cluster.await_success(&job_id, LIMIT).await?;
    ensure!(result(cluster, &job_id).await? == undisturbed, "a retry changed the result");
    let refused = retry(cluster, &job_id).await;
    let only = "only one that has failed can be tried again";
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains(only)), "a success tried again");
    Ok(())
}

/// One stage I serves another job, which waits for nothing and begins where that has ended.
async fn started_from_another_job(
    cluster: &Cluster,
    weights: &str,
    first: &str,
    undisturbed: &str,
) -> Result<()> {
    let named = format!("{first}/stage-1");
    let more =
        spec(weights, "gpus: 2").replace("references: 1", &format!("references: 1\n      initFrom: {named}"));
    let job_id = cluster.submit("forked", &more).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    ensure!(
        result(cluster, &job_id).await? != undisturbed,
        "it has begun from the base, as the first one did"
    );
    let nobody = more.replace(&named, "nobody-000000/stage-1");
    let refused = cluster.submit("from-nobody", &nobody).await;
    let said = "spec.stages[0].initFrom: there is no job nobody-000000";
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains(said)), "started from nobody");
    Ok(())
}
