//! Working on a stage: lease a unit, draw it, have it judged, write its shard, commit it; again until the log is sealed, or
//! the curator drains.
//!
//! ```text
//!   lease ─▶ draw, compare (curation thread) ─▶ lease ─▶ draw … ─▶ lease ─▶ draw …
//!                                │                │
//!                                ▼                ▼
//!                     drawn_store ─▶ judge ─▶ shard ─▶ commit         at most UNITS_DRAWN of them, beside the drawing
//! ```
//!
//! The device draws one unit while an endpoint judges the one before: it waits for nobody, unless the endpoint is slower than
//! it over several units. Each unit has a lease of its own, which is renewed as long as it is under way. What was drawn
//! is kept on disk until its unit is committed, so that neither an outage nor a restart draws it again.

pub mod drawn;
pub mod drawn_store;
mod hand_in;
mod inputs;
mod making;
pub mod mirror;
pub mod parent_stage;
pub mod review;
mod under_way;
pub mod unit;
mod unit_error;

use crate::counts::{Counted, Counts};
use crate::curate::drawn_store::{DrawnStore, StageDigest};
use crate::curate::making::Stops;
use crate::curate::mirror::{Mirror, MirrorError};
use crate::curate::parent_stage::ParentStage;
use crate::curate::under_way::{HowFar, UnderWay};
use crate::curate::unit::StageCurator;
use crate::filters::judge::llm_judge::LlmJudge;
use crate::llm::network::LlmContext;
use crate::metrics::Metrics;
use crate::paths::PathResolver;
use crate::pipeline::{DrawingNetworks, SharedEncoders};
use crate::sources::prompts::PromptBook;
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
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::Instant;
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
/// Units that have been drawn and are not committed yet, a stage. The device is not idle before all of them wait for an
/// endpoint; each is held in memory.
const UNITS_DRAWN: usize = 3;
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
    /// The device of the curation thread, the encoders that it shares with serving, and the transformer that all stages share.
    pub device: Device,
    pub encoders: Arc<dyn SharedEncoders>,
    pub networks: DrawingNetworks,
    /// How far the unit on the curation thread is; and all that are under way, and where that is said.
    pub counts: Counts,
    pub under_way: UnderWay,
    pub reports: UnitReports,
    /// What was drawn and is not committed.
    pub drawn: DrawnStore,
    /// What decides the stage's units, once it is known.
    pub inputs: Arc<OnceCell<StageDigest>>,
    /// The stage's judge behind an endpoint, once it is opened.
    pub judge: Arc<OnceCell<Option<LlmJudge>>>,
    /// What a language model wrote of what is to be drawn, once it has; nothing where none writes.
    pub prompts: Arc<OnceCell<Option<Arc<PromptBook>>>>,
    /// What the stage takes from an earlier one.
    pub parent: Option<Arc<ParentStage>>,
    pub worker: Worker<Curators>,
    pub metrics: Metrics,
    /// What the job was submitted from.
    pub trace: Option<TraceParent>,
    /// No unit is begun once it is asked for.
    pub drain: Drain,
    /// Cancelled when the process stops, which is not the end of the stage.
    pub process_stops: CancellationToken,
}

impl StageWorker {
    /// Works until the log is sealed, the curator drains or `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let drain = self.drain.asked();
        self.prepare(&stop, &drain).await;
        let sealed = tokio::select! {
            sealed = self.make_units(&stop, &drain) => sealed,
            () = self.say_how_far() => false,
        };
        let key = (self.stage.job_id.clone(), self.stage.stage.clone());
        let networks = self.networks.clone();
        let ending = self.worker.run("curation", move |curators| {
            curators.remove(&key);
            if curators.is_empty() {
                networks.clear();
            }
        });
        // The thread is only gone when the process stops.
        let _ = ending.await;
        // Nobody will ask for the stage's units again.
        let released = stop.is_cancelled() && !self.process_stops.is_cancelled();
        if let (true, Some(inputs)) = (sealed || released, self.inputs.get()) {
            self.drawn.remove_stage(inputs);
            self.metrics.drawn_bytes.set(self.drawn.size_bytes() as i64);
        }
    }

    /// Makes unit after unit; true if the log is sealed. Those that are under way at the end are handed in or given back.
    async fn make_units(&self, stop: &CancellationToken, drain: &CancellationToken) -> bool {
        // Cancelled when no unit of the stage can be made.
        let mut abandon = stop.child_token();
        let mut finishing: JoinSet<After> = JoinSet::new();
        let mut pause_until = Instant::now();
        let mut sealed = false;
        while !stop.is_cancelled() && !drain.is_cancelled() && !sealed {
            while let Some(ended) = finishing.try_join_next() {
                pause_until = pause_until.max(of_ended(ended));
            }
            if abandon.is_cancelled() && finishing.is_empty() {
                abandon = stop.child_token();
            }
            if finishing.len() >= UNITS_DRAWN || abandon.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = drain.cancelled() => {}
                    Some(ended) = finishing.join_next() => pause_until = pause_until.max(of_ended(ended)),
                }
                continue;
            }
            if pause_until > Instant::now() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = drain.cancelled() => {}
                    () = tokio::time::sleep_until(pause_until) => {}
                }
                continue;
            }
            // Not given up when the stage is released: what was leased meanwhile is given back.
            let after = match self.lease(&self.process_stops).await {
                Ok(Leased::Unit(lease)) if drain.is_cancelled() => {
                    self.give_back(lease, Back::Drains, stop).await;
                    break;
                }
                Ok(Leased::Unit(lease)) if stop.is_cancelled() => {
                    self.give_back(lease, Back::Moved, stop).await;
                    break;
                }
                Ok(Leased::Unit(lease)) => self.make(lease, &abandon, stop, &mut finishing).await,
                Ok(Leased::Wait(wait)) => After::Wait(wait),
                Ok(Leased::Sealed) => {
                    tracing::info!("the pair log is sealed, curation of the stage is done");
                    sealed = true;
                    After::GoOn
                }
                Err(_) if stop.is_cancelled() => break,
                Err(status) => {
                    tracing::warn!(%status, "leasing a unit was refused");
                    After::Wait(REFUSED_WAIT)
                }
            };
            pause_until = pause_until.max(after.until());
        }
        // Each of them ends: it is committed or given back, in its share of the time to drain, or abandoned at a stop.
        while finishing.join_next().await.is_some() {}
        sealed
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

    /// Draws a unit; what is left to do with it goes on in `finishing`, beside the drawing of the next.
    async fn make(
        &self,
        lease: UnitLease,
        abandon: &CancellationToken,
        stop: &CancellationToken,
        finishing: &mut JoinSet<After>,
    ) -> After {
        let span = tracing::info_span!(
            target: trace::TARGET,
            "unit",
            job = lease.job_id,
            stage = lease.stage,
            unit = trace::number(lease.unit),
            outcome = tracing::field::Empty
        );
        trace::set_parent(&span, self.trace);
        let stops = Stops { abandon: abandon.clone(), stop: stop.clone() };
        let begun = self.begin(lease);
        match self.draw(begun, &stops).instrument(span.clone()).await {
            Ok((begun, drawn)) => {
                let worker = self.clone();
                finishing.spawn(async move { worker.finish(begun, drawn, &stops).await }.instrument(span));
                After::GoOn
            }
            Err(after) => after,
        }
    }

    fn unit_size(&self) -> u32 {
        self.job.stages.get(self.stage_index as usize).map_or(1, |stage| stage.data.unit_size)
    }

    /// Says how far the oldest unit under way is, and what it waits for, for as long as this is awaited.
    async fn say_how_far(&self) {
        loop {
            if let Some(HowFar { unit, counted, waits_for }) = self.under_way.oldest() {
                let Counted { drawn, filtered, judged, accepted } = counted;
                self.reports.put(UnitReport {
                    stage: Some(self.stage.clone()),
                    unit,
                    // A tar that is imported has as many as it has.
                    candidates: u64::from(self.unit_size()).max(drawn),
                    drawn,
                    filtered,
                    judged,
                    accepted,
                    waits_for,
                });
            }
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
    async fn keep(&self, lease: &UnitLease, stop: &CancellationToken) {
        let ttl = Duration::from_millis(u64::from(lease.ttl_millis)).max(Duration::from_secs(1));
        let request = RenewUnitRequest { lease: Some(lease.clone()), node_id: self.node_id.clone() };
        loop {
            tokio::time::sleep(ttl / 4).await;
            let renewed = self
                .controllers
                .call_until_decided("renew unit", CALL_DEADLINE, stop, |channel| {
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
        let released = matches!(why, Back::Drains | Back::Moved);
        let job_fails = matches!(why, Back::JobFails(_));
        // Whose stage is released still says so: else nobody gets the unit until its lease runs out.
        let stop = if matches!(why, Back::Moved) { &self.process_stops } else { stop };
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
            Back::Moved => {
                self.metrics.units.with_label_values(&["released"]).inc();
                tracing::info!(unit, "the stage is released, and the unit with it");
                "the curator makes units of another stage".to_owned()
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
    /// Nor with it here: the stage was released.
    Moved,
}

/// What follows a unit.
enum After {
    GoOn,
    Wait(Duration),
}

impl After {
    /// When the next unit may be leased.
    fn until(&self) -> Instant {
        match self {
            After::GoOn => Instant::now(),
            After::Wait(wait) => Instant::now() + *wait,
        }
    }
}

/// When the next unit may be leased after one that was finished. One that panicked is not handed in: its lease runs out.
fn of_ended(ended: Result<After, tokio::task::JoinError>) -> Instant {
    match ended {
        Ok(after) => after.until(),
        Err(error) => {
            tracing::error!(%error, "a unit was lost on its way to the log");
            After::Wait(REFUSED_WAIT).until()
        }
    }
}

enum Leased {
    Unit(UnitLease),
    Wait(Duration),
    Sealed,
}
