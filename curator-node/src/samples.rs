//! Pictures that are drawn with a checkpoint for people to see, and the loss on pairs that training never sees.
//!
//! ```text
//!   DrawSamples ─▶ checkpoint ─▶ ┌ curation thread ───────────────────────┐ ─▶ tar ─▶ object store ─▶ SamplesDone
//!   spec.samples ─ what to draw ▶ │ pipeline of the stage's own network    │
//!   library ─ held-out subjects ▶ └ pictures, losses; in turns with units  ┘ ─▶ SamplingProgress, every few seconds
//! ```

mod events;
mod subjects;

use crate::counts::Counts;
use crate::curate::Curators;
use crate::curate::mirror::{LocalCopies, Purpose};
use crate::curate::parent_stage::{ParentStageError, fetch};
use crate::node::{AssignError, Node};
use crate::paths::{PathError, PathResolver};
use crate::pipeline::{DiffusionPipeline, ModelContext, PipelineError};
use crate::serve::encode::EncoderSource;
use crate::sources::SourceError;
use crate::worker::{Dropped, Worker};
use crescendo_core::object_keys;
use crescendo_core::sampling::VALIDATION_TIMES;
use crescendo_core::spec::{JobSpec, SampledWeights, SamplesSpec, StageSpec};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::{ShardBytes, ShardError, ShardWriter};
use crescendo_model::ModelError;
use crescendo_model::drawing::GenerationRequest;
use crescendo_model::randomness::SampleKey;
use crescendo_node::objects::with_causes;
use crescendo_node::session::call::Controllers;
use crescendo_proto::convert;
use crescendo_proto::v1::report_samples_request::Message as Said;
use crescendo_proto::v1::sample_service_client::SampleServiceClient;
use crescendo_proto::v1::{
    CheckpointFile, DrawSamples, ReportSamplesRequest, SamplesDone, SamplingProgress, StageRef,
    ValidationLoss,
};
use events::Strip;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tracing::Instrument as _;

/// The controller is told so often how far they are.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Limit of one word to the controller.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// Limit of all of it: what has not come to an end by then stands still.
const DEADLINE: Duration = Duration::from_secs(3600);
/// Limit of writing the pictures.
const PUT_DEADLINE: Duration = Duration::from_secs(300);
/// Stages in the keys of noise that no sample of any stage has, nor any other picture.
const DRAWN: u32 = u32::MAX - 1;
const VALIDATED: u32 = u32::MAX - 2;
/// Pictures of one prompt that have noise of their own.
const PICTURES_EACH: u64 = 16;

/// Why nothing is drawn.
#[derive(Debug, thiserror::Error)]
enum SamplesError {
    #[error("the order names no stage of its spec that has samples")]
    Order,
    #[error(transparent)]
    Assign(#[from] AssignError),
    #[error(transparent)]
    Checkpoint(#[from] ParentStageError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("reference {path}: {reason}")]
    Reference { path: String, reason: String },
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("drawing: {0}")]
    Model(#[from] ModelError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Dropped(#[from] Dropped),
    #[error("the pictures cannot be written: {0}")]
    Put(String),
    #[error("the curator leaves")]
    Leaves,
    #[error("it has not come to an end within {DEADLINE:?}")]
    Late,
}

/// How far they are.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU32,
    of: AtomicU32,
}

/// What one order is drawn with.
struct Drawing {
    job: Arc<JobSpec>,
    stage_index: u32,
    stage: StageSpec,
    samples: SamplesSpec,
    paths: PathResolver,
    models: ModelContext,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

/// What was made.
struct Made {
    pictures: Option<ShardBytes>,
    validation: Option<ValidationLoss>,
    /// Of each subject, its pictures side by side.
    strips: Vec<Strip>,
}

/// Something to draw, before it is drawn: its target is what a perfect network might draw, or nothing.
struct Subject {
    prompt: String,
    references: Vec<image::RgbImage>,
    words: Vec<String>,
    provenance: serde_json::Value,
}

impl Node {
    /// Draws what the controller asks for, on a task of its own, and says how far it is.
    pub fn draw_samples(&self, order: DrawSamples) {
        let stage = order.stage.clone().unwrap_or_default();
        let span = tracing::info_span!("samples", job = %stage.job_id, stage = %stage.stage, generation = order.generation);
        let node = self.clone();
        self.tasks.spawn(async move { node.draw_and_tell(order).await }.instrument(span));
    }

    async fn draw_and_tell(self, order: DrawSamples) {
        let (progress, stop) = (Arc::<Progress>::default(), Arc::<AtomicBool>::default());
        // Whatever ends this, the thread that draws stops after the picture that it is at.
        let _stops = StopsOnDrop(stop.clone());
        let reporter = Reporter {
            controllers: self.controllers.clone(),
            draw_id: order.draw_id.clone(),
            node_id: self.node_id.clone(),
        };
        let (leaves, ends) = (self.drain.asked(), self.tasks.stop_token());
        let step = order.step;
        let made = tokio::select! {
            made = self.make_samples(order, progress.clone(), stop) => made,
            () = reporter.tell(&progress) => {
                tracing::info!(step, "nobody waits for these samples any more");
                return;
            }
            () = leaves.cancelled() => Err(SamplesError::Leaves),
            () = ends.cancelled() => return,
            () = tokio::time::sleep(DEADLINE) => Err(SamplesError::Late),
        };
        let word = match made {
            Ok(done) => {
                tracing::info!(step, pictures = done.pictures, "samples are drawn");
                Said::Done(done)
            }
            Err(error) => {
                let reason = with_causes(&error);
                tracing::warn!(step, reason, "samples cannot be drawn");
                Said::Failure(reason)
            }
        };
        if let Err(status) = reporter.say(word.clone()).await {
            tracing::warn!(step, %status, "the controller does not take the samples");
            if matches!(word, Said::Done(_)) {
                // What it refuses is not drawn.
                let _ = reporter.say(Said::Failure(status.message().to_owned())).await;
            }
        }
    }

    async fn make_samples(
        &self,
        order: DrawSamples,
        progress: Arc<Progress>,
        stop: Arc<AtomicBool>,
    ) -> Result<SamplesDone, SamplesError> {
        let job: Arc<JobSpec> =
            Arc::new(serde_json::from_slice(&order.resolved_spec_json).map_err(AssignError::from)?);
        let stage = job.stages.get(order.stage_index as usize).cloned().ok_or(SamplesError::Order)?;
        let samples = job.samples.clone().ok_or(SamplesError::Order)?;
        let objects = self.objects(&order.object_store_url)?;
        let reach = convert::reach(order.reach.clone()).map_err(AssignError::from)?;
        let copies = LocalCopies {
            url: order.object_store_url.clone(),
            scratch: self.scratch.clone(),
            cache: self.cache.clone(),
        };
        let (paths, mirror) = self.paths(&job, order.stage_index, Purpose::Sampling, &reach, &copies)?;
        if let Some(mirror) = &mirror {
            mirror.bring(objects.as_ref()).await.map_err(AssignError::from)?;
        }
        let trained = match &order.checkpoint {
            Some(checkpoint) => {
                let is_average = samples.weights == SampledWeights::Ema;
                Some(fetch(objects.as_ref(), &copies, checkpoint, is_average).await?)
            }
            None => None,
        };
        let encoders = EncoderSource::of(&job.model, &paths, self.device).map_err(AssignError::from)?;
        let drawing = Drawing {
            models: ModelContext {
                device: self.device,
                trained,
                counts: Counts::default(),
                encoders: Some(Arc::new(self.server.encoders(encoders))),
                networks: self.networks.clone(),
            },
            job,
            stage_index: order.stage_index,
            stage,
            samples,
            paths,
            progress,
            stop,
        };
        let made = draw(&self.curation, drawing).await?;
        drop(mirror);
        let pictures = made.pictures.as_ref().map_or(0, |shard| shard.pairs);
        let file = match made.pictures {
            Some(shard) => Some(put(objects.as_ref(), &order, shard).await?),
            None => None,
        };
        // For people: nothing depends on it.
        if let Err(error) =
            events::write(objects.as_ref(), &order, made.strips, made.validation.as_ref()).await
        {
            tracing::warn!(
                step = order.step,
                error = with_causes(&error),
                "TensorBoard is not told of the samples"
            );
        }
        let pictures = u32::try_from(pictures).unwrap_or(u32::MAX);
        Ok(SamplesDone { file, pictures, validation: made.validation })
    }
}

/// Sets the flag when it goes.
struct StopsOnDrop(Arc<AtomicBool>);

impl Drop for StopsOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Speaks of one order to the controller.
struct Reporter {
    controllers: Controllers,
    draw_id: String,
    node_id: String,
}

impl Reporter {
    /// Says now and then how far they are; ends when nobody waits for them any more.
    async fn tell(&self, progress: &Progress) {
        loop {
            let said = SamplingProgress {
                node_id: self.node_id.clone(),
                done: progress.done.load(Ordering::Relaxed),
                of: progress.of.load(Ordering::Relaxed),
            };
            if let Err(status) = self.say(Said::Progress(said)).await
                && status.code() == tonic::Code::NotFound
            {
                return;
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    }

    async fn say(&self, word: Said) -> Result<(), tonic::Status> {
        let stop = tokio_util::sync::CancellationToken::new();
        let request = ReportSamplesRequest {
            draw_id: self.draw_id.clone(),
            node_id: self.node_id.clone(),
            message: Some(word),
        };
        let calling =
            self.controllers.call_until_decided("report samples", CALL_DEADLINE, &stop, |channel| {
                let request = request.clone();
                async move { SampleServiceClient::new(channel).report_samples(request).await }
            });
        calling.await.map(drop)
    }
}

async fn draw(curation: &Worker<Curators>, drawing: Drawing) -> Result<Made, SamplesError> {
    curation.run("curation", move |_| drawing.make()).await?
}

async fn put(
    objects: &dyn ObjectStore,
    order: &DrawSamples,
    shard: ShardBytes,
) -> Result<CheckpointFile, SamplesError> {
    let StageRef { job_id, stage } = order.stage.clone().ok_or(SamplesError::Order)?;
    let key = object_keys::samples(&job_id, &stage, order.step, order.generation, &order.draw_id);
    let file = CheckpointFile {
        name: key.rsplit('/').next().unwrap_or_default().to_owned(),
        size_bytes: shard.bytes.len() as u64,
        sha256: shard.sha256,
    };
    let location =
        object_store::path::Path::parse(&key).map_err(|error| SamplesError::Put(error.to_string()))?;
    let putting = objects.put(&location, PutPayload::from(shard.bytes));
    match tokio::time::timeout(PUT_DEADLINE, putting).await {
        Ok(Ok(_)) => Ok(file),
        Ok(Err(error)) => Err(SamplesError::Put(with_causes(&error))),
        Err(_) => Err(SamplesError::Put(format!("no answer within {PUT_DEADLINE:?}"))),
    }
}

impl Drawing {
    /// On the curation thread.
    fn make(&self) -> Result<Made, SamplesError> {
        let size = self.samples.resolution.unwrap_or(self.stage.train.resolution);
        let (subjects, pairs) = self.subjects(size)?;
        let each = self.samples.pictures;
        let pictures = subjects.len() as u32 * each;
        self.progress.of.store(pictures + pairs.len() as u32, Ordering::Relaxed);
        let pipeline = DiffusionPipeline::open(
            &self.job,
            self.stage_index,
            &self.samples.draw,
            (&self.stage).into(),
            &self.paths,
            &self.models,
        )?;
        let mut strips = Vec::new();
        let pictures = self.draw(&pipeline, size, &subjects, &mut strips)?;
        let validation = self.validate(&pipeline, &pairs)?;
        Ok(Made { pictures, validation, strips })
    }

    fn draw(
        &self,
        pipeline: &DiffusionPipeline,
        size: u32,
        subjects: &[Subject],
        strips: &mut Vec<Strip>,
    ) -> Result<Option<ShardBytes>, SamplesError> {
        if subjects.is_empty() {
            return Ok(None);
        }
        let each = u64::from(self.samples.pictures);
        let mut shard = ShardWriter::default();
        // Requests of one batch have references of the same sizes.
        for alike in subjects.chunk_by(|left, right| shape(left) == shape(right)) {
            let first =
                subjects.iter().position(|one| std::ptr::eq(one, &alike[0])).unwrap_or_default() as u64;
            let numbered = alike.iter().zip(first..).flat_map(|(subject, number)| {
                (0..each).map(move |which| (subject, number * PICTURES_EACH + which))
            });
            let numbered: Vec<(&Subject, u64)> = numbered.collect();
            for few in numbered.chunks(self.samples.draw.batch.max(1) as usize) {
                let requests: Vec<GenerationRequest<'_>> = few
                    .iter()
                    .map(|(subject, position)| GenerationRequest {
                        prompt: &subject.prompt,
                        references: &subject.references,
                        noise: SampleKey { job_seed: self.samples.seed, stage: DRAWN, position: *position },
                    })
                    .collect();
                let drawn = pipeline.draw((size, size), &requests, &self.stop)?;
                if drawn.len() < few.len() {
                    return Err(SamplesError::Leaves);
                }
                self.progress.done.fetch_add(drawn.len() as u32, Ordering::Relaxed);
                for (target, (subject, position)) in drawn.into_iter().zip(few) {
                    if position % PICTURES_EACH == 0 {
                        strips.push(Strip::of(&subject.prompt, &subject.references));
                    }
                    if let Some(strip) = strips.last_mut() {
                        strip.add(&target);
                    }
                    shard.push(&subject.drawn(target, *position))?;
                }
            }
        }
        Ok(Some(shard.finish()?))
    }

    fn validate(
        &self,
        pipeline: &DiffusionPipeline,
        pairs: &[Pair],
    ) -> Result<Option<ValidationLoss>, SamplesError> {
        if pairs.is_empty() {
            return Ok(None);
        }
        let mut sums = [0.0; VALIDATION_TIMES.len()];
        for (pair, position) in pairs.iter().zip(0..) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(SamplesError::Leaves);
            }
            let noise = SampleKey { job_seed: self.samples.seed, stage: VALIDATED, position };
            let losses = pipeline.losses(pair, &VALIDATION_TIMES, noise, self.stage.train.guidance)?;
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
            self.progress.done.fetch_add(1, Ordering::Relaxed);
        }
        let losses: Vec<f64> = sums.iter().map(|sum| sum / pairs.len() as f64).collect();
        Ok(Some(ValidationLoss {
            mean: losses.iter().sum::<f64>() / losses.len() as f64,
            pairs: pairs.len() as u32,
            times: VALIDATION_TIMES.to_vec(),
            losses,
        }))
    }
}

fn shape(subject: &Subject) -> Vec<(u32, u32)> {
    subject.references.iter().map(image::RgbImage::dimensions).collect()
}

impl Subject {
    fn drawn(&self, target: image::RgbImage, position: u64) -> Pair {
        let mut provenance = self.provenance.clone();
        if let serde_json::Value::Object(fields) = &mut provenance {
            fields.insert("picture".to_owned(), (position % PICTURES_EACH).into());
        }
        Pair {
            target,
            references: self.references.clone(),
            prompt: self.prompt.clone(),
            reference_words: self.words.clone(),
            scores: Default::default(),
            provenance,
        }
    }
}
