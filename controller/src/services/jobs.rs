use std::sync::Arc;

use crescendo_core::access::Scope;
use crescendo_core::error::{Overreach, RequestError};
use crescendo_core::ids::{JobId, RequestId};
use crescendo_core::job::Pause;
use crescendo_core::spec;
use crescendo_core::transitions::Submission;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::telemetry::trace;
use crescendo_proto::SILENCE_LIMIT;
use crescendo_proto::deletions::kept_parts;
use crescendo_proto::status;
use crescendo_proto::v1;
use crescendo_proto::v1::job_service_server::JobService;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::access::{AuditContext, caller_of, trail_of};
use crate::collections::Collections;
use crate::deletions::count_files;
use crate::engine::{self, Wish};
use crate::leadership::EngineHandle;
use crate::logs::{LogHub, MAX_LINES};
use crate::relay::Relays;
use crate::services::log_reader::{KeptLog, LINES_WAITING, LogReader};
use crate::services::quiet::KeptAlive;
use crate::services::{checked, checked_id, job_id};

const DEFAULT_TAIL: usize = 1000;
/// Lines of a failed rank that an explanation shows, and complaints of curators.
const FAILED_LINES: usize = 20;
const COMPLAINTS: usize = 5;

/// Submitting, looking, following, stopping.
pub struct Jobs {
    engine: EngineHandle,
    logs: LogHub,
    relays: Relays,
    collections: Collections,
    tasks: Tasks,
}

impl Jobs {
    pub fn new(
        engine: EngineHandle,
        logs: LogHub,
        relays: Relays,
        collections: Collections,
        tasks: Tasks,
    ) -> Self {
        Self { engine, logs, relays, collections, tasks }
    }

    /// Does what a person wants of a job that is there.
    async fn steer(
        &self,
        scope: Scope,
        trail: &AuditContext,
        id: &str,
        wish: Wish,
    ) -> Result<v1::Job, Status> {
        let job = noted(trail, job_id(id)?);
        self.engine.ask(|reply| engine::Request::SteerJob { job, scope, wish, reply }).await
    }

    /// What the nodes make of the spec's precision, if it is to be warned of. A warning is not worth a failure: a
    /// controller that does not lead has none.
    async fn crawls(&self, spec: &Arc<spec::JobSpec>) -> Option<String> {
        if !spec.model.precision.flows_in_bf16() {
            return None;
        }
        let spec = spec.clone();
        self.engine.ask(|reply| engine::Request::Crawls { spec, reply }).await.ok().flatten()
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let span = tracing::info_span!(target: trace::TARGET, "submit", job = tracing::field::Empty);
        let submitted_from = trace::parent_in(request.metadata());
        trace::set_parent(&span, submitted_from);
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let v1::SubmitJobRequest { request_id, spec_yaml, validate_only } = request.into_inner();
        if validate_only {
            trail.changes_nothing();
        }
        let parsed = match spec::read(&spec_yaml, caller.tenant.as_ref()) {
            Ok(parsed) => parsed,
            Err(problems) if validate_only => {
                let problems = problems.iter().map(v1::SpecProblem::from).collect();
                return Ok(Response::new(v1::SubmitJobResponse { problems, ..Default::default() }));
            }
            Err(problems) => return Err(status::bad_spec(&problems)),
        };
        let spec::Parsed { spec: parsed, mut warnings, places } = parsed;
        let parsed = Arc::new(parsed);
        if let Some(own) = caller.tenant.as_ref().filter(|own| own.as_str() != parsed.tenant) {
            let what = format!(
                "{} submits for tenant {own}, and the spec is of tenant {}",
                caller.name, parsed.tenant
            );
            return checked(Err(RequestError::Forbidden { what }));
        }
        let resolved_spec_yaml = spec::to_yaml(&parsed);
        if let Some(message) = self.crawls(&parsed).await {
            warnings.push(places.warning("spec.model.precision", message));
            warnings.sort();
        }
        let warnings = warnings.iter().map(v1::SpecProblem::from).collect();
        if validate_only {
            let spec = parsed.clone();
            let overreaches = self.engine.ask(|reply| engine::Request::Overreaches { spec, reply }).await?;
            let problem = |found: Overreach| (&places.problem(&found.field, found.message)).into();
            let problems: Vec<v1::SpecProblem> = overreaches.into_iter().map(problem).collect();
            if !problems.is_empty() {
                return Ok(Response::new(v1::SubmitJobResponse { problems, ..Default::default() }));
            }
            let answer = v1::SubmitJobResponse { resolved_spec_yaml, warnings, ..Default::default() };
            return Ok(Response::new(answer));
        }
        let request = checked_id("request_id", RequestId::parse(&request_id))?;
        trail.on("request", &request);
        let spec_json = serde_json::to_vec(&*parsed).map_err(|error| {
            status::refused(&RequestError::invalid("spec_yaml", format!("cannot be kept: {error}")))
        })?;
        // A caller's trace is kept although none is made here: those who work on the job may make spans of it.
        let trace = trace::parent_for_others(&span).or(submitted_from);
        let submission = Submission { request, spec: parsed, spec_json: spec_json.into(), trace };
        let located = |status: Status| located(status, &places);
        let (mut job, already_submitted) =
            self.engine.ask(|reply| engine::Request::Submit { submission, reply }).await.map_err(located)?;
        span.record("job", &job.job_id);
        trail.on("job", &job.job_id);
        job.resolved_spec_yaml.clone_from(&resolved_spec_yaml);
        let answer = v1::SubmitJobResponse {
            job: Some(job),
            resolved_spec_yaml,
            problems: Vec::new(),
            already_submitted,
            warnings,
        };
        Ok(Response::new(answer))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = noted(&trail, job_id(&request.into_inner().job_id)?);
        let job = self.engine.look(|reply| engine::LookRequest::GetJob { job, scope, reply }).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn get_spec(
        &self,
        request: Request<v1::GetSpecRequest>,
    ) -> Result<Response<v1::GetSpecResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = noted(&trail, job_id(&request.into_inner().job_id)?);
        let job = self.engine.look(|reply| engine::LookRequest::GetJob { job, scope, reply }).await?;
        let spec_yaml = job.resolved_spec_yaml;
        let stated_fields = self.engine.in_turn(|| stated_fields(&spec_yaml)).await;
        Ok(Response::new(v1::GetSpecResponse { spec_yaml, stated_fields }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let scope = caller_of(&request)?.scope();
        let request = request.into_inner();
        let page = self.engine.look(|reply| engine::LookRequest::ListJobs { request, scope, reply }).await?;
        Ok(Response::new(page))
    }

    type WatchJobStream = KeptAlive<v1::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::WatchJobRequest { job_id: job, from_revision } = request.into_inner();
        let job = noted(&trail, job_id(&job)?);
        let watch =
            self.engine.ask(|reply| engine::Request::WatchJob { job, scope, from_revision, reply }).await?;
        // The state again, which no client minds.
        let filler = |last: Option<&v1::WatchJobResponse>| last.cloned().unwrap_or_default();
        Ok(Response::new(KeptAlive::new(watch, SILENCE_LIMIT, filler)))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = noted(&trail, job_id(&request.into_inner().job_id)?);
        let asked = job.clone();
        let mut told =
            self.engine.look(|reply| engine::LookRequest::ExplainJob { job: asked, scope, reply }).await?;
        told.log_lines = match told.cause.as_str() {
            "failed" | "backoff" => self.logs.of_the_failed_rank(&job, FAILED_LINES),
            "pairs" | "curators_busy" => self.logs.complaints(&job, COMPLAINTS),
            _ => Vec::new(),
        };
        Ok(Response::new(told))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::CancelJobRequest { job_id, reason } = request.into_inner();
        let job = self.steer(scope, &trail, &job_id, Wish::Cancel { reason }).await?;
        Ok(Response::new(v1::CancelJobResponse { job: Some(job) }))
    }

    async fn pause_job(
        &self,
        request: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::PauseJobRequest { job_id, reason, keep_curating } = request.into_inner();
        let wish = Wish::Pause(Pause { curates: keep_curating, reason });
        let job = self.steer(scope, &trail, &job_id, wish).await?;
        Ok(Response::new(v1::PauseJobResponse { job: Some(job) }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = self.steer(scope, &trail, &request.into_inner().job_id, Wish::Resume).await?;
        Ok(Response::new(v1::ResumeJobResponse { job: Some(job) }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = self.steer(scope, &trail, &request.into_inner().job_id, Wish::Retry).await?;
        Ok(Response::new(v1::RetryJobResponse { job: Some(job) }))
    }

    async fn note_job(
        &self,
        request: Request<v1::NoteJobRequest>,
    ) -> Result<Response<v1::NoteJobResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let v1::NoteJobRequest { job_id, text } = request.into_inner();
        let job = self.steer(caller.scope(), &trail, &job_id, Wish::Note { by: caller.name, text }).await?;
        Ok(Response::new(v1::NoteJobResponse { job: Some(job) }))
    }

    async fn plan_continuation(
        &self,
        request: Request<v1::PlanContinuationRequest>,
    ) -> Result<Response<v1::PlanContinuationResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::PlanContinuationRequest { job_id: job, steps, name } = request.into_inner();
        let job = noted(&trail, job_id(&job)?);
        let name = (!name.is_empty()).then_some(name);
        let continuation = |reply| engine::LookRequest::Continuation { job, scope, steps, name, reply };
        Ok(Response::new(v1::PlanContinuationResponse { spec_yaml: self.engine.look(continuation).await? }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::DeleteJobRequest { job_id: job, keep, dry_run } = request.into_inner();
        let job = noted(&trail, job_id(&job)?);
        if dry_run {
            trail.changes_nothing();
        }
        let keep = kept_parts(keep);
        let wanted = job.clone();
        let delete = |reply| engine::DeletionRequest::Delete { job: wanted, scope, keep, dry_run, reply };
        let mut answer = self.engine.ask(|reply| engine::Request::Deletions(delete(reply))).await?;
        if dry_run && let Some(parts) = count_files(&self.collections, &self.engine, &job, keep).await {
            (answer.parts, answer.counted) = (parts, true);
        }
        Ok(Response::new(answer))
    }

    async fn get_lineage(
        &self,
        request: Request<v1::GetLineageRequest>,
    ) -> Result<Response<v1::GetLineageResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let job = noted(&trail, job_id(&request.into_inner().job_id)?);
        let lineage = |reply| engine::DeletionRequest::Lineage { job, scope, reply };
        let found = self.engine.ask(|reply| engine::Request::Deletions(lineage(reply))).await?;
        Ok(Response::new(found))
    }

    type ReadLogsStream = KeptAlive<v1::ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let scope = caller.scope();
        let v1::ReadLogsRequest { job_id: job, tail_lines, follow } = request.into_inner();
        let job = noted(&trail, job_id(&job)?);
        let tail = match tail_lines as usize {
            0 => DEFAULT_TAIL,
            lines if lines <= MAX_LINES => lines,
            _ => {
                return checked(Err(RequestError::invalid(
                    "tail_lines",
                    format!("must be at most {MAX_LINES}"),
                )));
            }
        };
        let open = self.job_is_open(&job, &scope).await?;
        let (out, lines) = mpsc::channel(LINES_WAITING);
        let older = KeptLog {
            engine: self.engine.clone(),
            relays: self.relays.clone(),
            tenant: caller.tenant,
            job: job.clone(),
            scope: scope.clone(),
        };
        let reader =
            LogReader { engine: self.engine.clone(), logs: self.logs.clone(), older, job, scope, out };
        let stop = self.tasks.stop_token();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reader.run(tail, open, follow) => {}
            }
        });
        Ok(Response::new(KeptAlive::new(lines, SILENCE_LIMIT, |_| v1::ReadLogsResponse::default())))
    }
}

impl Jobs {
    async fn job_is_open(&self, job: &JobId, scope: &Scope) -> Result<bool, Status> {
        let (job, scope) = (job.clone(), scope.clone());
        self.engine.ask(|reply| engine::Request::JobExists { job, scope, reply }).await
    }
}

/// Problems that the engine has found, with the lines that they stand on.
fn located(status: Status, places: &spec::Places) -> Status {
    let Some(list) = status::spec_problems(&status) else { return status };
    let problem = |found: v1::SpecProblem| places.problem(&found.path, found.message);
    status::bad_spec(&list.problems.into_iter().map(problem).collect::<Vec<_>>())
}

/// The job that a request is about.
fn noted(trail: &AuditContext, job: JobId) -> JobId {
    trail.on("job", &job);
    job
}

/// None of a spec that was kept by another version and is none to this one.
fn stated_fields(resolved_yaml: &str) -> Vec<v1::StatedField> {
    let fields = spec::parse(resolved_yaml.as_bytes()).map(|spec| spec::stated(&spec)).unwrap_or_default();
    let message = |field: spec::StatedField| v1::StatedField {
        path: field.path,
        value: field.value,
        default_value: field.default.unwrap_or_default(),
    };
    fields.into_iter().map(message).collect()
}
