//! People: they submit, follow, ask, pause, cancel, delete, drain, and try again until they are answered.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crescendo_node::session::call::{ControllerChannel, Controllers};
use crescendo_proto::v1;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};

use crate::checker::Checker;
use crate::trace::Trace;

/// What a person waits for one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The way there, the engine's own limit of 15 s, and the keepalive of 30 s if the way is cut, or the controller stands still, just
/// before that limit.
const ANSWERED_WITHIN: Duration = Duration::from_secs(46);
const ASK_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct People {
    controllers: Controllers,
    checker: Checker,
    trace: Trace,
    /// Ids of accepted jobs, by number.
    jobs: Arc<Mutex<BTreeMap<usize, String>>>,
    /// Planted: what they are told is empty.
    pub deaf: Arc<std::sync::atomic::AtomicBool>,
}

fn is_over(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

impl People {
    pub fn new(controllers: Controllers, checker: Checker, trace: Trace) -> Self {
        Self { controllers, checker, trace, jobs: Arc::default(), deaf: Arc::default() }
    }

    async fn call<T, F, Fut>(&self, what: &'static str, call: F) -> Result<T, Status>
    where
        F: FnMut(ControllerChannel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.controllers.call_until_decided(what, PATIENCE, &CancellationToken::new(), call).await
    }

    fn job_id(&self, job: usize) -> Option<String> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).get(&job).cloned()
    }

    /// Waits until the job is accepted.
    async fn accepted(&self, job: usize) -> String {
        loop {
            if let Some(id) = self.job_id(job) {
                return id;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    pub async fn submit(self, job: usize, spec: String) {
        let request = v1::SubmitJobRequest {
            request_id: format!("request-{job}"),
            spec_yaml: spec.into_bytes(),
            validate_only: false,
        };
        // Twice, as people do who are not sure.
        for _ in 0..2 {
            let answer = self
                .call("submit", |channel| {
                    let request = request.clone();
                    async move { JobServiceClient::new(channel).submit_job(request).await }
                })
                .await;
            match answer {
                Ok(v1::SubmitJobResponse { job: Some(made), .. }) => {
                    self.checker.accepted(&request.request_id, &made.job_id);
                    self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job, made.job_id);
                }
                Ok(_) => self.checker.broken(2, "a submit was answered without a job"),
                // Somebody has deleted it since.
                Err(status) if status.code() == Code::AlreadyExists && self.was_deleted(job) => {}
                Err(status) => self.checker.broken(2, format!("request-{job} was refused: {status}")),
            }
            sleep(Duration::from_secs(5)).await;
        }
    }

    pub async fn cancel(self, job: usize) {
        let job_id = self.accepted(job).await;
        let request = v1::CancelJobRequest { job_id, reason: "not needed".into() };
        let answer = self
            .call("cancel", |channel| {
                let request = request.clone();
                async move { JobServiceClient::new(channel).cancel_job(request).await }
            })
            .await;
        // Somebody may have deleted it, once it had ended.
        if let Err(status) = answer
            && !self.checker.is_deleted(&request.job_id)
        {
            self.checker.broken(1, format!("{} cannot be cancelled: {status}", request.job_id));
        }
    }

    /// Pauses a job for a while; one that has ended is left as it is.
    pub async fn pause(self, job: usize, keep_curating: bool, lasts: Duration) {
        let job_id = self.accepted(job).await;
        let request = v1::PauseJobRequest { job_id: job_id.clone(), reason: "lunch".into(), keep_curating };
        loop {
            let answer = self
                .call("pause", |channel| {
                    let request = request.clone();
                    async move { JobServiceClient::new(channel).pause_job(request).await }
                })
                .await;
            if self.is_settled("paused", &job_id, answer) {
                break;
            }
            sleep(ASK_EVERY).await;
        }
        sleep(lasts).await;
        loop {
            let answer = self
                .call("resume", |channel| {
                    let request = v1::ResumeJobRequest { job_id: job_id.clone() };
                    async move { JobServiceClient::new(channel).resume_job(request).await }
                })
                .await;
            if self.is_settled("resumed", &job_id, answer) {
                return;
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Whether there is nothing more to ask for: it was done, or the job is over or gone.
    fn is_settled<T>(&self, what: &str, job_id: &str, answer: Result<T, Status>) -> bool {
        match answer {
            Ok(_) => true,
            Err(status) if crescendo_proto::status::is_passing(status.code()) => false,
            Err(status) => {
                if self.checker.is_open(job_id) {
                    self.checker.broken(1, format!("{job_id} cannot be {what}: {status}"));
                }
                true
            }
        }
    }

    fn was_deleted(&self, job: usize) -> bool {
        self.job_id(job).is_some_and(|id| self.checker.is_deleted(&id))
    }

    /// Has a job deleted as soon as it has ended; asked for earlier it is refused.
    pub async fn delete(self, job: usize, keep_pairs: bool) {
        let job_id = self.accepted(job).await;
        let keep = Some(v1::KeptParts { pairs: keep_pairs, ..Default::default() });
        let request = v1::DeleteJobRequest { job_id, keep, dry_run: false };
        loop {
            let was_open = self.checker.is_open(&request.job_id);
            let answer = self
                .call("delete", |channel| {
                    let request = request.clone();
                    async move { JobServiceClient::new(channel).delete_job(request).await }
                })
                .await;
            match answer {
                Ok(_) => break,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    if !was_open && !self.checker.is_deleted(&request.job_id) {
                        self.checker.broken(1, format!("{} cannot be deleted: {status}", request.job_id));
                    }
                }
                // Nobody has answered.
                Err(status) if crescendo_proto::status::is_passing(status.code()) => {}
                Err(status) => {
                    self.checker.broken(1, format!("{} cannot be deleted: {status}", request.job_id));
                    return;
                }
            }
            sleep(ASK_EVERY).await;
        }
        if !self.checker.is_deleted(&request.job_id) {
            self.checker.broken(1, format!("{} is said to be deleted, and is not", request.job_id));
        }
    }

    pub async fn drain(self, node_id: String, undo: bool) {
        let request = v1::DrainNodeRequest { node_id, undo };
        // Refused for a node that has never come.
        let answer = self
            .call("drain", |channel| {
                let request = request.clone();
                async move { NodeServiceClient::new(channel).drain_node(request).await }
            })
            .await;
        self.trace.note(format_args!("drain {} undo {undo}: {}", request.node_id, answer.is_ok()));
    }

    /// Follows a job to its end, over whatever happens to the streams, and asks why it is where it is.
    pub async fn watch(self, job: usize) {
        let job_id = self.accepted(job).await;
        let (mut revision, mut ended): (u64, Option<v1::JobState>) = (0, None);
        while ended.is_none() {
            let request = v1::WatchJobRequest { job_id: job_id.clone(), from_revision: revision };
            let mut client = JobServiceClient::new(self.controllers.channel());
            let opened = timeout(PATIENCE, client.watch_job(request)).await;
            if let Ok(Ok(stream)) = opened {
                let mut stream = stream.into_inner();
                while let Ok(Ok(Some(message))) = timeout(ASK_EVERY, stream.message()).await {
                    let Some(job) = message.job else { continue };
                    if job.revision < revision {
                        let seen = format!("{job_id} went back from revision {revision} to {}", job.revision);
                        self.checker.broken(3, seen);
                    }
                    revision = job.revision;
                    if is_over(&job) {
                        ended = Some(job.state());
                    }
                }
            } else {
                self.controllers.failed(
                    self.controllers.choice(),
                    &Status::unavailable("it did not answer"),
                    1,
                );
            }
            if self.checker.is_deleted(&job_id) {
                return;
            }
            self.explain(&job_id).await;
            sleep(Duration::from_secs(1)).await;
        }
        self.still(&job_id, ended).await;
    }

    async fn explain(&self, job_id: &str) {
        let asked = Instant::now();
        let request = v1::ExplainJobRequest { job_id: job_id.to_owned() };
        let mut client = JobServiceClient::new(self.controllers.channel());
        let answer = timeout(ANSWERED_WITHIN * 2, client.explain_job(request)).await;
        self.checker.answered("explain", asked.elapsed(), ANSWERED_WITHIN);
        if let Ok(Ok(told)) = answer {
            let mut told = told.into_inner();
            if self.deaf.load(std::sync::atomic::Ordering::Relaxed) {
                told.summary.clear();
            }
            self.checker.explained(job_id, &told.cause, &told.summary);
        }
    }

    /// Once a job is over, nobody ever hears anything else.
    async fn still(&self, job_id: &str, ended: Option<v1::JobState>) {
        for _ in 0..3 {
            sleep(Duration::from_secs(30)).await;
            let request = v1::GetJobRequest { job_id: job_id.to_owned() };
            let answer = self
                .call("get", |channel| {
                    let request = request.clone();
                    async move { JobServiceClient::new(channel).get_job(request).await }
                })
                .await;
            let now = answer.ok().and_then(|answer| answer.job).map(|job| job.state());
            if now != ended && !self.checker.is_deleted(job_id) {
                self.checker.broken(3, format!("{job_id} ended as {ended:?} and is told as {now:?}"));
            }
        }
    }
}
