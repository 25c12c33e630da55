//! A client that does everything right, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use crescendo_proto::v1;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_testing::specs::SPEC;
use crescendo_testing::until;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Limit of one call. The machine may be busy with other things.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

pub struct BackgroundClient {
    jobs: JobServiceClient<Channel>,
    rounds: Arc<AtomicUsize>,
    stop: CancellationToken,
    working: JoinSet<anyhow::Result<usize>>,
}

impl BackgroundClient {
    /// Begins once the controller leads.
    pub async fn start(address: &str) -> anyhow::Result<Self> {
        let channel =
            Endpoint::from_shared(format!("http://{address}"))?.timeout(CALL_DEADLINE).connect().await?;
        let jobs = JobServiceClient::new(channel);
        let begun = Instant::now();
        while let Err(status) = jobs.clone().list_jobs(v1::ListJobsRequest::default()).await {
            ensure!(status.code() == Code::Unavailable && begun.elapsed() < LIMIT, "{status}");
            tokio::time::sleep(PAUSE).await;
        }
        let (rounds, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let mut working = JoinSet::new();
        working.spawn(work(jobs.clone(), rounds.clone(), stop.clone()));
        let neighbour = Self { jobs, rounds, stop, working };
        neighbour.goes_on().await?;
        Ok(neighbour)
    }

    /// Waits until it has been served a few more times.
    pub async fn goes_on(&self) -> anyhow::Result<()> {
        let wanted = self.rounds.load(Ordering::Relaxed) + 5;
        self.eventually("it is served", || self.rounds.load(Ordering::Relaxed) >= wanted).await
    }

    pub async fn eventually(&self, what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
        until(what, holds).await
    }

    pub async fn submit_bytes(&self, spec_yaml: Vec<u8>) -> Result<(), Status> {
        let request = v1::SubmitJobRequest { request_id: "large".into(), spec_yaml, validate_only: false };
        self.jobs.clone().submit_job(request).await.map(|_| ())
    }

    /// Ends it; the number of its jobs, or what it was refused.
    pub async fn stop(mut self) -> anyhow::Result<usize> {
        self.stop.cancel();
        self.working.join_next().await.context("it worked")?.context("join")?
    }
}

/// Submits, reads and lists, and takes no refusal.
async fn work(
    mut jobs: JobServiceClient<Channel>,
    rounds: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> anyhow::Result<usize> {
    let mut submitted = 0;
    while !stop.is_cancelled() {
        let request = v1::SubmitJobRequest {
            request_id: format!("neighbour-{submitted}"),
            spec_yaml: SPEC.as_bytes().to_vec(),
            validate_only: false,
        };
        let job = jobs.submit_job(request).await.context("submit")?.into_inner().job.context("a job")?;
        submitted += 1;
        let request = v1::GetJobRequest { job_id: job.job_id.clone() };
        let read = jobs.get_job(request).await.context("get")?.into_inner().job.context("the job")?;
        ensure!(read.request_id == job.request_id, "another job: {read:?}");
        let listed = jobs.list_jobs(v1::ListJobsRequest { page_size: 10, ..Default::default() }).await;
        ensure!(!listed.context("list")?.into_inner().jobs.is_empty(), "no job is listed");
        rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(submitted)
}
