//! Working on a stage: lease a unit, make it, write its shard, commit it; again until the log is sealed, or the curator
//! drains.

mod hand_in;
pub mod mirror;
pub mod parent_stage;
pub mod review;
pub mod unit;
mod unit_error;

use crate::counts::{Counted, Counts};
use crate::curate::mirror::{Mirror, MirrorError};
use crate::curate::parent_stage::ParentStage;
use crate::curate::unit::{StageCurator, UnitResult};
use crate::curate::unit_error::UnitError;
use crate::llm::EndpointError;
use crate::llm::network::LlmContext;
use crate::metrics::Metrics;
use crate::paths::PathResolver;
use crate::pipeline::ModelContext;
use crate::sources::recompose::ParentPairs;
use crate::worker::Worker;
use crescendo_core::records::FailureKind;
use crescendo_core::spec::JobSpec;
use crescendo_core::trace::TraceParent;
use crescendo_model::tch::Device;
use crescendo_node::objects;
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::runtime::supervise::Drain;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::unit_reports::UnitReports;
use crescendo_node::telemetry::trace;
use crescendo_proto::convert;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::lease_unit_response::Outcome;
use crescendo_proto::v1::{
    FailUnitRequest, LeaseUnitRequest, RenewUnitRequest, StageRef, UnitLease, UnitReport,
};
use object_store::ObjectStore;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument as _;

/// Limit of one call.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Wait after a refusal that is not about a unit.
const REFUSED_WAIT: Duration = Duration::from_secs(5);
/// Longest wait that the controller may ask for.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Waits for an object store that cannot be used.
const PREPARE_WAIT: Backoff = Backoff { first: Duration::from_secs(2), limit: Duration::from_secs(60) };
/// Waits for an endpoint that is out of order, while the unit is held on to.
const OUTAGE_WAIT: Backoff = Backoff { first: Duration::from_secs(5), limit: Duration::from_secs(120) };
/// Such waits before the unit is given back: about half an hour.
const OUTAGE_TRIES: u32 = 20;
/// Wait after a unit that was given back because of an endpoint: until somebody has changed something, the next will
/// fare no better.
const DENIED_WAIT: Duration = Duration::from_secs(60);
/// Between two words on how far a unit is.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Opened sources and filters, owned by the curation thread.
pub type Curators = HashMap<(String, String), StageCurator>;

/// All that working on one stage needs.
#[derive(Clone)]
pub struct StageWorker {
    pub node_id: String,
    pub stage: StageRef,
    pub stage_index: u32,
    pub job: Arc<JobSpec>,
    pub paths: PathResolver,
    /// The way to language models.
    pub llm: LlmContext,
    pub object_store_url: String,
    pub objects: Arc<dyn ObjectStore>,
    /// What the spec names in an object store that is no folder.
    pub mirror: Option<Arc<Mirror>>,
    /// Whether that is here.
    pub brought: Arc<OnceCell<()>>,
    pub controllers: Controllers,
    /// The device of the curation thread.
    pub device: Device,
    /// How far the unit in the making is, and where that is said.
    pub counts: Counts,
    pub reports: UnitReports,
    /// What the stage takes from an earlier one.
    pub parent: Option<Arc<ParentStage>>,
    pub worker: Worker<Curators>,
    pub metrics: Metrics,
    /// What the job was submitted from.
    pub trace: Option<TraceParent>,
    /// No unit is begun once it is asked for.
    pub drain: Drain,
}

impl StageWorker {
    /// Works until the log is sealed, the curator drains or `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let drain = self.drain.asked();
        self.prepare(&stop, &drain).await;
        while !stop.is_cancelled() && !drain.is_cancelled() {
            let wait = match self.lease(&stop).await {
                Ok(Leased::Unit(lease)) if drain.is_cancelled() => {
                    self.give_back(lease, Back::Drains, &stop).await;
                    break;
                }
                Ok(Leased::Unit(lease)) => match self.traced(lease, &stop).await {
                    After::GoOn => continue,
                    After::Wait(wait) => wait,
                },
                Ok(Leased::Wait(wait)) => wait,
                Ok(Leased::Sealed) => {
                    tracing::info!("the pair log is sealed, curation of the stage is done");
                    break;
                }
                Err(_) if stop.is_cancelled() => break,
                Err(status) => {
                    tracing::warn!(%status, "leasing a unit was refused");
                    REFUSED_WAIT
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = drain.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        let key = (self.stage.job_id.clone(), self.stage.stage.clone());
        let _ = self.worker.run("curation", move |curators| drop(curators.remove(&key))).await;
    }

    /// Copies what the spec names in the object store, once.
    async fn bring(&self) -> Result<(), MirrorError> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        self.brought.get_or_try_init(|| mirror.bring(&self.objects)).await.copied()
    }

    /// Waits until the object store can be relied on and what the spec names in it is here. No unit is leased before: it
    /// would fail for a reason that is not its own. What the store does not have is not waited for: the first unit says so.
    async fn prepare(&self, stop: &CancellationToken, drain: &CancellationToken) {
        let mut failures = 0;
        loop {
            let preparing = async {
                objects::verify(&self.object_store_url, &self.objects).await.map_err(|e| e.to_string())?;
                match self.bring().await {
                    Ok(()) | Err(MirrorError::Missing { .. }) => Ok(()),
                    Err(error) => Err(objects::with_causes(&error)),
                }
            };
            let reason = tokio::select! {
                () = stop.cancelled() => return,
                () = drain.cancelled() => return,
                prepared = preparing => match prepared {
                    Ok(()) => return,
                    Err(reason) => reason,
                },
            };
            failures += 1;
            let wait = PREPARE_WAIT.delay(failures, random());
            tracing::error!(reason, failures, ?wait, "curation waits for the object store");
            tokio::select! {
                () = stop.cancelled() => return,
                () = drain.cancelled() => return,
                () = self.say_what_is_waited_for(&reason) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn lease(&self, stop: &CancellationToken) -> Result<Leased, Status> {
        let request = LeaseUnitRequest {
            job_id: self.stage.job_id.clone(),
            stage: self.stage.stage.clone(),
            node_id: self.node_id.clone(),
        };
        let response = self
            .controllers
            .call_until_decided("lease unit", CALL_DEADLINE, stop, |channel| {
                let request = request.clone();
                async move { CurationServiceClient::new(channel).lease_unit(request).await }
            })
            .await?;
        self.share_rates(response.curators);
        let wait = Duration::from_millis(u64::from(response.retry_millis))
            .clamp(Duration::from_millis(50), MAX_WAIT);
        Ok(match (response.outcome(), response.unit) {
            (Outcome::Leased, Some(unit)) => Leased::Unit(unit),
            (Outcome::Sealed, _) => Leased::Sealed,
            (Outcome::Leased | Outcome::Wait | Outcome::Unspecified, _) => Leased::Wait(wait),
        })
    }

    async fn traced(&self, lease: UnitLease, stop: &CancellationToken) -> After {
        let span = tracing::info_span!(
            target: trace::TARGET,
            "unit",
            job = lease.job_id,
            stage = lease.stage,
            unit = lease.unit
        );
        trace::set_parent(&span, self.trace);
        self.work(lease, stop).instrument(span).await
    }

    /// Makes a unit and hands it in. Whatever goes wrong with it is told to the controller, or shows by the lease
    /// running out.
    async fn work(&self, lease: UnitLease, stop: &CancellationToken) -> After {
        let unit = lease.unit;
        let started = tokio::time::Instant::now();
        let held = stop.child_token();
        let waits_for = watch::Sender::new(String::new());
        let making = self.make_through_outages(&lease, &held, &waits_for);
        let outcome = tokio::select! {
            outcome = making => outcome,
            () = self.out_of_time() => {
                held.cancel();
                self.give_back(lease, Back::Drains, stop).await;
                return After::GoOn;
            }
            () = self.keep(&lease, &held) => Err(UnitError::Abandoned),
            () = self.say_how_far(&lease, &waits_for) => Err(UnitError::Abandoned),
            () = stop.cancelled() => Err(UnitError::Abandoned),
        };
        held.cancel();
        match outcome {
            Ok(result) => {
                self.metrics.unit_seconds.observe(started.elapsed().as_secs_f64());
                self.hand_in(lease, result, stop).await;
                After::GoOn
            }
            Err(UnitError::Abandoned) => {
                self.metrics.units.with_label_values(&["lost"]).inc();
                tracing::info!(unit, "the unit was given up");
                After::GoOn
            }
            Err(error) => {
                // Money that is spent stays spent: no other unit, and no other curator, would fare better.
                let job_fails = matches!(error.endpoint(), Some(EndpointError::SpendLimit { .. }));
                let reason = objects::with_causes(&error);
                tracing::error!(unit, error = reason, job_fails, "the unit failed");
                let kind = error.kind();
                let why = if job_fails { Back::JobFails(reason) } else { Back::Failed(kind, reason) };
                self.give_back(lease, why, stop).await;
                match error.endpoint() {
                    // The controller has none for this curator now, unless it does not know it yet.
                    None if kind == FailureKind::Source => After::Wait(REFUSED_WAIT),
                    None => After::GoOn,
                    // The job has failed, unless this lease was over: then the next one says so.
                    Some(_) if job_fails => After::Wait(REFUSED_WAIT),
                    Some(_) => After::Wait(DENIED_WAIT),
                }
            }
        }
    }

    /// A curator that drains has half of its time to finish a unit: ranks have the rest to move on.
    async fn out_of_time(&self) {
        self.drain.asked().cancelled().await;
        tokio::time::sleep(self.drain.within() / 2).await;
    }

    /// Makes a unit, and where an endpoint is out of order waits for it, off the curation thread and with the lease
    /// kept: an outage is not the unit's fault, and quarantining units for it would lose them. What has been
    /// answered is not asked again.
    async fn make_through_outages(
        &self,
        lease: &UnitLease,
        held: &CancellationToken,
        waits_for: &watch::Sender<String>,
    ) -> Result<UnitResult, UnitError> {
        let mut outages = 0;
        loop {
            let error = match self.make(lease, held).await {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            outages += 1;
            if outages > OUTAGE_TRIES || !error.endpoint().is_some_and(EndpointError::is_retryable) {
                return Err(error);
            }
            let wait = OUTAGE_WAIT.delay(outages, random());
            tracing::warn!(unit = lease.unit, %error, outages, ?wait, "the unit waits for an endpoint");
            waits_for.send_replace(objects::with_causes(&error));
            tokio::time::sleep(wait).await;
            waits_for.send_replace(String::new());
        }
    }

    /// Makes a unit on the curation thread. Dropping this tells the thread to give it up.
    async fn make(&self, lease: &UnitLease, held: &CancellationToken) -> Result<UnitResult, UnitError> {
        self.bring().await?;
        let unit_size =
            self.job.stages.get(self.stage_index as usize).map_or(1, |stage| stage.data.unit_size);
        let (trained, taken) = match &self.parent {
            Some(parent) => (parent.trained().await?, parent.taken(lease.unit, unit_size).await?),
            None => (None, ParentPairs::default()),
        };
        let models = ModelContext { device: self.device, trained, counts: self.counts.clone() };
        let abandoned = AbandonOnDrop(Arc::new(AtomicBool::new(false)));
        let flag = abandoned.0.clone();
        let key = (self.stage.job_id.clone(), self.stage.stage.clone());
        let (job, index, unit) = (self.job.clone(), self.stage_index, lease.unit);
        let (paths, llm) = (self.paths.clone(), self.llm.clone());
        let made = self.worker.run("curation", move |curators| {
            let curator = match curators.entry(key) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let opened = StageCurator::open_with(&job, index, &paths, Some(&llm), &models);
                    entry.insert(opened.map_err(|error| UnitError::Opening(Box::new(error)))?)
                }
            };
            curator.unit_from(unit, taken, &flag)
        });
        match made.await {
            Ok(outcome) => outcome,
            // The thread is only gone when the process stops; a panic is one unit's failure.
            Err(_) if held.is_cancelled() => Err(UnitError::Abandoned),
            Err(_) => Err(UnitError::Panicked),
        }
    }

    /// Says how far the unit is, as long as it is made, and what it waits for.
    async fn say_how_far(&self, lease: &UnitLease, waits_for: &watch::Sender<String>) {
        // The last unit's numbers are not this one's.
        self.counts.begin();
        let unit_size =
            self.job.stages.get(self.stage_index as usize).map_or(1, |stage| stage.data.unit_size);
        loop {
            let Counted { drawn, filtered, judged, accepted } = self.counts.get();
            self.reports.put(UnitReport {
                stage: Some(self.stage.clone()),
                unit: lease.unit,
                // A tar that is imported has as many as it has.
                candidates: u64::from(unit_size).max(drawn),
                drawn,
                filtered,
                judged,
                accepted,
                waits_for: waits_for.borrow().clone(),
            });
            tokio::time::sleep(SAY_EVERY).await;
        }
    }

    /// Says that there is no unit yet, and why, for as long as this is awaited.
    async fn say_what_is_waited_for(&self, reason: &str) {
        loop {
            self.reports.put(UnitReport {
                stage: Some(self.stage.clone()),
                waits_for: reason.to_owned(),
                ..UnitReport::default()
            });
            tokio::time::sleep(SAY_EVERY).await;
        }
    }

    /// Keeps to this curator's part of the job's rate limits.
    fn share_rates(&self, curators: u32) {
        self.llm.curators.set(curators);
    }

    /// Renews a lease until it is lost. An outage of the controller is not a loss: the commit will tell.
    async fn keep(&self, lease: &UnitLease, held: &CancellationToken) {
        let ttl = Duration::from_millis(u64::from(lease.ttl_millis)).max(Duration::from_secs(1));
        let request = RenewUnitRequest { lease: Some(lease.clone()), node_id: self.node_id.clone() };
        loop {
            tokio::time::sleep(ttl / 4).await;
            let renewed = self
                .controllers
                .call_until_decided("renew unit", CALL_DEADLINE, held, |channel| {
                    let request = request.clone();
                    async move { CurationServiceClient::new(channel).renew_unit(request).await }
                })
                .await;
            match renewed {
                Ok(response) => self.share_rates(response.curators),
                Err(status)
                    if status.code() == Code::FailedPrecondition || status.code() == Code::NotFound =>
                {
                    tracing::warn!(unit = lease.unit, %status, "the lease is lost");
                    return;
                }
                Err(status) => tracing::warn!(unit = lease.unit, %status, "renewing the lease was refused"),
            }
        }
    }

    async fn give_back(&self, lease: UnitLease, why: Back, stop: &CancellationToken) {
        let unit = lease.unit;
        let (released, job_fails) = (matches!(why, Back::Drains), matches!(why, Back::JobFails(_)));
        let mut kind = FailureKind::Passing;
        let reason = match why {
            Back::Failed(failed, reason) => {
                self.metrics.units.with_label_values(&["failed"]).inc();
                kind = failed;
                reason
            }
            Back::JobFails(reason) => {
                self.metrics.units.with_label_values(&["failed"]).inc();
                reason
            }
            Back::Drains => {
                self.metrics.units.with_label_values(&["released"]).inc();
                tracing::info!(unit, "the curator drains, the unit is released");
                "the curator drains".to_owned()
            }
        };
        let node_id = self.node_id.clone();
        let kind = convert::failure_kind(kind).into();
        let request = FailUnitRequest { lease: Some(lease), node_id, reason, released, job_fails, kind };
        let answer = self
            .controllers
            .call_until_decided("fail unit", CALL_DEADLINE, stop, |channel| {
                let request = request.clone();
                async move { CurationServiceClient::new(channel).fail_unit(request).await }
            })
            .await;
        match answer {
            Ok(response) if response.quarantined => tracing::warn!(unit, "the unit is quarantined"),
            Ok(_) => {}
            Err(_) if stop.is_cancelled() => {}
            Err(status) => tracing::warn!(unit, %status, "giving the unit back was refused"),
        }
    }
}

/// Why a unit is given back.
enum Back {
    Failed(FailureKind, String),
    /// Nor can any other be made.
    JobFails(String),
    /// Nothing is wrong with it.
    Drains,
}

/// What follows a unit.
enum After {
    GoOn,
    Wait(Duration),
}

enum Leased {
    Unit(UnitLease),
    Wait(Duration),
    Sealed,
}

/// Tells the curation thread to give up when nobody waits for the result any more.
struct AbandonOnDrop(Arc<AtomicBool>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
