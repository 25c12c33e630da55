//! One unit under its lease: drawn or found on disk, judged through outages, handed in.

use super::{After, Back, REFUSED_WAIT, StageWorker};
use crate::candidates::Rejected;
use crate::curate::drawn::{DrawnUnit, UnitResult};
use crate::curate::drawn_store::{DrawnKey, StageDigest};
use crate::curate::inputs;
use crate::curate::review::RejectedSample;
use crate::curate::under_way::UnitUnderWay;
use crate::curate::unit::StageCurator;
use crate::curate::unit_error::UnitError;
use crate::filters::judge::llm_judge::Answers;
use crate::filters::judge::open_remote;
use crate::llm::EndpointError;
use crate::pipeline::ModelContext;
use crate::sources::SourceError;
use crate::sources::prompts::{PromptBook, PromptSource};
use crate::sources::recompose::ParentPairs;
use crescendo_core::records::FailureKind;
use crescendo_core::spec::DataSource;
use crescendo_node::objects;
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::UnitLease;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// Waits for an endpoint that is out of order, while the unit is held on to.
const OUTAGE_WAIT: Backoff = Backoff { first: Duration::from_secs(5), limit: Duration::from_secs(120) };
/// Such waits before the unit is given back: about half an hour.
const OUTAGE_TRIES: u32 = 20;
/// Such waits for an endpoint that takes no question as it is: a key, an address, an account. Somebody may be at it, and a gateway
/// that restarts says the same; then the job fails.
const DENIED_TRIES: u32 = 2;
/// Wait after a unit that was given back because of an endpoint: until somebody has changed something, the next will
/// fare no better.
const ENDPOINT_WAIT: Duration = Duration::from_secs(60);

/// What ends work on units.
#[derive(Clone, Debug)]
pub(super) struct Stops {
    /// No unit of the stage can be made; a child of the other.
    pub abandon: CancellationToken,
    /// The stage is released, or the process stops.
    pub stop: CancellationToken,
}

/// A unit that is under way.
pub(super) struct Begun {
    lease: UnitLease,
    under_way: UnitUnderWay,
    started: Instant,
}

/// Why work on a unit has no result.
enum Stopped {
    Failed(UnitError),
    /// The curator drains, and the unit's share of the time is over.
    Drains,
}

/// An endpoint's outages while a unit is made. What is waited for is said until the endpoint has answered.
#[derive(Default)]
struct Outages(u32);

impl Outages {
    /// Where an endpoint is out of order waits for it, with the lease kept: an outage is not the unit's fault, and
    /// quarantining units for it would lose them. Any other error is given back, and so is an outage that lasts.
    async fn wait(&mut self, begun: &Begun, error: UnitError) -> Result<(), UnitError> {
        self.0 += 1;
        let tries = match error.endpoint() {
            Some(EndpointError::Denied { may_pass: true, .. }) => DENIED_TRIES,
            Some(error) if error.is_retryable() => OUTAGE_TRIES,
            Some(_) | None => 0,
        };
        if self.0 > tries {
            return Err(error);
        }
        let wait = OUTAGE_WAIT.delay(self.0, random());
        let (unit, outages) = (begun.lease.unit, self.0);
        tracing::warn!(unit, %error, outages, ?wait, "the unit waits for an endpoint");
        begun.under_way.waits_for(objects::with_causes(&error));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl StageWorker {
    pub(super) fn begin(&self, lease: UnitLease) -> Begun {
        // The last unit's numbers are not this one's.
        self.counts.begin();
        let under_way = self.under_way.begin(lease.unit, self.counts.clone());
        Begun { lease, under_way, started: Instant::now() }
    }

    /// Draws a unit, or finds it drawn. Whatever goes wrong with it is told to the controller, or shows by the lease
    /// running out.
    pub(super) async fn draw(&self, mut begun: Begun, stops: &Stops) -> Result<(Begun, DrawnUnit), After> {
        let drawing = async {
            let mut outages = Outages::default();
            loop {
                match self.find_or_draw(&begun.lease).await {
                    Ok(drawn) => return Ok(drawn),
                    Err(error) => outages.wait(&begun, error).await?,
                }
            }
        };
        match self.while_held(&begun.lease, drawing, stops).await {
            Ok(drawn) => {
                begun.under_way.waits_for(String::new());
                begun.under_way.count_apart(self.counts.get());
                Ok((begun, drawn))
            }
            Err(stopped) => Err(self.end_without(begun, stopped, stops).await),
        }
    }

    /// Keeps what was drawn, has it judged and hands it in.
    pub(super) async fn finish(&self, begun: Begun, drawn: DrawnUnit, stops: &Stops) -> After {
        let kept = self.inputs.get().filter(|_| self.is_costly()).map(|inputs| inputs.unit(begun.lease.unit));
        let finishing = async {
            let drawn = self.keep_drawn(kept.as_ref(), drawn).await?;
            self.judged(&begun, drawn).await
        };
        match self.while_held(&begun.lease, finishing, stops).await {
            Ok(result) => {
                self.metrics.unit_seconds.observe(begun.started.elapsed().as_secs_f64());
                // A lease that is lost meanwhile shows at the commit.
                let renewing = async {
                    self.keep(&begun.lease, &self.process_stops).await;
                    std::future::pending().await
                };
                let done = tokio::select! {
                    // What is done is handed in, even if the stage was released meanwhile.
                    done = self.hand_in(begun.lease.clone(), result, &self.process_stops) => done,
                    never = renewing => never,
                };
                if let (true, Some(key)) = (done, kept) {
                    self.drawn.remove(&key);
                    self.metrics.drawn_bytes.set(self.drawn.size_bytes() as i64);
                }
                After::GoOn
            }
            Err(stopped) => self.end_without(begun, stopped, stops).await,
        }
    }

    /// Works on a unit while its lease lasts.
    async fn while_held<T>(
        &self,
        lease: &UnitLease,
        work: impl Future<Output = Result<T, UnitError>>,
        stops: &Stops,
    ) -> Result<T, Stopped> {
        let lost = || Stopped::Failed(UnitError::Abandoned);
        tokio::select! {
            outcome = work => outcome.map_err(Stopped::Failed),
            () = self.out_of_time() => Err(Stopped::Drains),
            () = self.keep(lease, &stops.abandon) => Err(lost()),
            () = stops.abandon.cancelled() => Err(lost()),
        }
    }

    /// A curator that drains has half of its time to finish a unit: ranks have the rest to move on.
    async fn out_of_time(&self) {
        self.drain.asked().cancelled().await;
        tokio::time::sleep(self.drain.within() / 2).await;
    }

    /// Says what became of a unit without a result.
    async fn end_without(&self, begun: Begun, stopped: Stopped, stops: &Stops) -> After {
        let lease = begun.lease;
        let unit = lease.unit;
        let error = match stopped {
            Stopped::Drains => {
                trace::end(&Span::current(), "released", None);
                self.give_back(lease, Back::Drains, &stops.stop).await;
                return After::GoOn;
            }
            Stopped::Failed(UnitError::Abandoned)
                if stops.stop.is_cancelled() && !self.process_stops.is_cancelled() =>
            {
                trace::end(&Span::current(), "released", None);
                self.give_back(lease, Back::Moved, &stops.stop).await;
                return After::GoOn;
            }
            Stopped::Failed(UnitError::Abandoned) => {
                self.metrics.units.with_label_values(&["lost"]).inc();
                trace::end(&Span::current(), "lost", Some("the lease is lost"));
                tracing::info!(unit, "the unit was given up");
                return After::GoOn;
            }
            Stopped::Failed(error) => error,
        };
        let job_fails = error.endpoint().is_some_and(EndpointError::ends_the_job);
        if job_fails {
            stops.abandon.cancel();
        }
        let reason = objects::with_causes(&error);
        trace::end(&Span::current(), "failed", Some(&reason));
        tracing::error!(unit, error = reason, job_fails, "the unit failed");
        let kind = error.kind();
        let why = if job_fails { Back::JobFails(reason) } else { Back::Failed(kind, reason) };
        self.give_back(lease, why, &stops.stop).await;
        match error.endpoint() {
            // The controller has none for this curator now, unless it does not know it yet.
            None if kind == FailureKind::Source => After::Wait(REFUSED_WAIT),
            None => After::GoOn,
            // The job has failed, unless this lease was over: then the next one says so.
            Some(_) if job_fails => After::Wait(REFUSED_WAIT),
            Some(_) => After::Wait(ENDPOINT_WAIT),
        }
    }

    /// Whether a unit takes so long to draw, or so long to be judged, that it is written down in between.
    fn is_costly(&self) -> bool {
        let stage = self.job.stages.get(self.stage_index as usize);
        let draws = stage.is_some_and(|stage| {
            matches!(stage.data.source, DataSource::Generate(_) | DataSource::Recompose(_))
        });
        draws || self.judge.get().is_some_and(Option::is_some)
    }

    /// A unit that is kept on disk, or else drawn on the curation thread. Dropping this tells the thread to give it up.
    async fn find_or_draw(&self, lease: &UnitLease) -> Result<DrawnUnit, UnitError> {
        self.bring().await?;
        self.open_judge()?;
        let (trained, taken) = match &self.parent {
            Some(parent) => (parent.trained().await?, parent.taken(lease.unit, self.unit_size()).await?),
            None => (None, ParentPairs::default()),
        };
        let inputs = self.inputs.get_or_try_init(|| self.find_inputs()).await?;
        if self.is_costly()
            && let Some(drawn) = self.find_drawn(inputs.unit(lease.unit)).await?
        {
            tracing::info!(unit = lease.unit, candidates = drawn.candidates, "the unit is drawn already");
            self.metrics.candidates.with_label_values(&["kept"]).inc_by(drawn.candidates);
            self.counts.begin();
            self.counts.drawn_in_all(usize::try_from(drawn.candidates).unwrap_or(usize::MAX));
            return Ok(drawn);
        }
        let models = ModelContext {
            device: self.device,
            trained,
            counts: self.counts.clone(),
            encoders: Some(self.encoders.clone()),
            networks: self.networks.clone(),
        };
        let abandoned = AbandonOnDrop(Arc::new(AtomicBool::new(false)));
        let flag = abandoned.0.clone();
        let key = (self.stage.job_id.clone(), self.stage.stage.clone());
        let (job, index, unit) = (self.job.clone(), self.stage_index, lease.unit);
        let (paths, llm, seconds) = (self.paths.clone(), self.llm.clone(), self.metrics.draw_seconds.clone());
        let book = self.write_prompts().await?;
        let made = self.worker.run("curation", move |curators| {
            let curator = match curators.entry(key) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let prompts = PromptSource { book, llm: Some(&llm) };
                    let opened = StageCurator::open_with(&job, index, &paths, prompts, &models);
                    entry.insert(opened.map_err(|error| UnitError::Opening(Box::new(error)))?)
                }
            };
            let timer = seconds.start_timer();
            let drawn = curator.draw(unit, taken, &flag);
            match &drawn {
                Ok(_) => timer.observe_duration(),
                Err(_) => drop(timer.stop_and_discard()),
            }
            drawn
        });
        // The thread is only gone when the process stops; a panic is one unit's failure.
        let drawn = made.await.map_err(|_| UnitError::Panicked)??;
        self.metrics.candidates.with_label_values(&["drawn"]).inc_by(drawn.candidates);
        Ok(drawn)
    }

    /// The stage's prompts, if a language model writes them. Asked here and not on the curation thread, so that an endpoint that is
    /// slow or out of order holds up this stage alone.
    async fn write_prompts(&self) -> Result<Option<Arc<PromptBook>>, UnitError> {
        let spec = self.job.stages.get(self.stage_index as usize);
        let Some(prompts) = spec.and_then(|stage| stage.data.prompts.as_ref()) else { return Ok(None) };
        let writing = || async {
            let book =
                PromptBook::write(prompts, &self.job.endpoints, self.job.seed, &self.paths, &self.llm).await;
            let book = book.map_err(|error| SourceError::Prompts(Box::new(error)))?;
            Ok::<_, SourceError>(book.map(Arc::new))
        };
        let written = self.prompts.get_or_try_init(writing).await;
        written.cloned().map_err(|error| UnitError::Opening(Box::new(error.into())))
    }

    /// Opens the stage's judge behind an endpoint, once, if it has one: a stage whose judge cannot be had is not drawn.
    fn open_judge(&self) -> Result<(), UnitError> {
        if self.judge.get().is_some() {
            return Ok(());
        }
        let spec = self.job.stages.get(self.stage_index as usize);
        let judge = match spec.and_then(|stage| stage.data.filter.judge.as_ref()) {
            None => None,
            Some(filter) => open_remote(filter, &self.job.endpoints, Some(&self.llm))
                .map_err(|error| UnitError::Opening(Box::new(error.into())))?,
        };
        // A second one of another unit's is as good.
        let _ = self.judge.set(judge);
        Ok(())
    }

    /// What decides the stage's units beside its spec.
    async fn find_inputs(&self) -> Result<StageDigest, UnitError> {
        let mut inputs: Vec<String> = Vec::new();
        if let Some(checkpoint) = self.parent.as_ref().and_then(|parent| parent.checkpoint.as_ref()) {
            inputs.extend(checkpoint.files.iter().map(|file| format!("{} {}", file.name, file.sha256)));
        }
        let (job, index, paths, device) =
            (self.job.clone(), self.stage_index, self.paths.clone(), self.device);
        let reading = tokio::task::spawn_blocking(move || inputs::of_stage(&job, index, &paths, device));
        inputs.extend(reading.await.map_err(|_| UnitError::Panicked)?);
        Ok(StageDigest::of(&self.stage.job_id, &self.job, self.stage_index, &inputs))
    }

    async fn find_drawn(&self, key: DrawnKey) -> Result<Option<DrawnUnit>, UnitError> {
        let store = self.drawn.clone();
        let found = tokio::task::spawn_blocking(move || store.find(&key)).await;
        self.metrics.drawn_bytes.set(self.drawn.size_bytes() as i64);
        found.map_err(|_| UnitError::Panicked)
    }

    /// Writes a unit down, where that is worth it. A disk that takes nothing costs no unit.
    async fn keep_drawn(&self, key: Option<&DrawnKey>, drawn: DrawnUnit) -> Result<DrawnUnit, UnitError> {
        let Some(key) = key.cloned() else { return Ok(drawn) };
        let (store, unit) = (self.drawn.clone(), key.unit());
        let keeping = tokio::task::spawn_blocking(move || {
            let kept = if store.has(&key) { Ok(()) } else { store.keep(&key, &drawn) };
            (kept, drawn)
        });
        let (kept, drawn) = keeping.await.map_err(|_| UnitError::Panicked)?;
        if let Err(error) = kept {
            tracing::warn!(unit, %error, "the drawn unit is not kept on disk: a restart will draw it again");
        }
        self.metrics.drawn_bytes.set(self.drawn.size_bytes() as i64);
        Ok(drawn)
    }

    /// Has a unit judged, if an endpoint judges the stage, and makes its shard.
    async fn judged(&self, begun: &Begun, mut drawn: DrawnUnit) -> Result<UnitResult, UnitError> {
        let counts = begun.under_way.counts();
        if let Some(judge) = self.judge.get().and_then(Option::as_ref) {
            let pairs = Arc::new(std::mem::take(&mut drawn.passed));
            let mut answers = Answers::default();
            let mut outages = Outages::default();
            while let Err(error) = judge.ask_about(&pairs, &mut answers, &counts).await {
                if let Err(error) = outages.wait(begun, error.into()).await {
                    self.show_unread(begun, judge.without_scores(&pairs, &answers, UNREAD_SHOWN), &error)
                        .await;
                    return Err(error);
                }
            }
            begun.under_way.waits_for(String::new());
            drawn.judge(judge.judged(Arc::unwrap_or_clone(pairs), answers)?);
        }
        let finishing = tokio::task::spawn_blocking(move || drawn.finish(&counts));
        Ok(finishing.await.map_err(|_| UnitError::Panicked)??)
    }
}

/// Pairs without scores that are shown of a unit which ends its job.
const UNREAD_SHOWN: usize = 2;

impl StageWorker {
    /// Keeps a few of the pairs that the judge gave no scores, with its words, where the unit will not be committed and they would be
    /// lost with it.
    async fn show_unread(&self, begun: &Begun, pairs: Vec<Rejected>, error: &UnitError) {
        if !error.endpoint().is_some_and(EndpointError::ends_the_job) {
            return;
        }
        let mut sample = RejectedSample::default();
        pairs.into_iter().for_each(|rejected| sample.offer(rejected));
        let finishing = tokio::task::spawn_blocking(move || sample.finish());
        match finishing.await {
            Ok(Ok(Some(sample))) => self.put_sample(&begun.lease, sample.bytes).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the sample of rejected candidates cannot be written"),
            Err(error) => tracing::warn!(%error, "the sample of rejected candidates is lost"),
        }
    }
}

/// Tells the curation thread to give up when nobody waits for the result any more.
struct AbandonOnDrop(Arc<AtomicBool>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
