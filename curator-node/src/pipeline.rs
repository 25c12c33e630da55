//! Where curation draws: the job's own model with what it needs around it, on the curation thread.

use crate::counts::Counts;
use crate::paths::{PathError, PathResolver};
use crescendo_core::spec::{DrawSpec, JobSpec, ModelPreset, ModelSpec};
use crescendo_dataset::pair::Pair;
use crescendo_model::codec::{EncodedText, LatentCodec, TextEncoder};
use crescendo_model::drawing::{FreeGuidance, GenerationRequest, PipelineConfig};
use crescendo_model::encoder_files::EncoderFiles;
use crescendo_model::flux::LoadOptions;
use crescendo_model::of_spec::base_options;
use crescendo_model::pictures;
use crescendo_model::randomness::SampleKey;
use crescendo_model::tch::{self, Device, Tensor};
use crescendo_model::training::MicroBatch;
use crescendo_model::unope::Offsets;
use crescendo_model::validation::{self, AskedAs};
use crescendo_model::{Flux, FluxConfig, LoraAdapter, ModelError, Preset};
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Added to a stage's number in the keys of drawing's noise: no training sample of any stage has the same.
const DRAWING: u32 = 1 << 31;
/// References of a redrawn picture that have noise of their own, per candidate.
const DRAWN_PER_CANDIDATE: u64 = 16;

/// Why the networks of a job cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("the job has no weights to draw with: set spec.model.weights")]
    NoWeights,
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("drawing: {0}")]
    Model(#[from] ModelError),
}

/// What an earlier stage has trained, as a file of this machine that was verified.
#[derive(Clone, Debug)]
pub enum Trained {
    Adapter(Arc<TrainedFile>),
    /// All weights of the network.
    Network(Arc<TrainedFile>),
}

/// A file, and what has to be held so that it stays.
#[derive(Debug)]
pub struct TrainedFile {
    path: PathBuf,
    _held: Box<dyn std::fmt::Debug + Send + Sync>,
}

impl TrainedFile {
    pub fn new(path: impl Into<PathBuf>, held: impl std::fmt::Debug + Send + Sync + 'static) -> TrainedFile {
        TrainedFile { path: path.into(), _held: Box::new(held) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What stands around the transformer while pictures are drawn.
pub struct EncodersOfDrawing {
    pub codec: Box<dyn LatentCodec>,
    pub text: Box<dyn TextEncoder>,
}

/// Encoders that a pipeline shares with others.
pub trait SharedEncoders: std::fmt::Debug + Send + Sync {
    /// Gets them ready; they take and give tensors on any device. What is wrong with them is the error.
    fn open(&self) -> Result<EncodersOfDrawing, ModelError>;
}

/// What a curator has to work with besides the files that a spec names.
#[derive(Clone, Debug)]
pub struct ModelContext {
    pub device: Device,
    /// Of the earlier stage that draws; absent where none does.
    pub trained: Option<Trained>,
    /// Where it is counted how far a unit is.
    pub counts: Counts,
    /// The encoders that serve; without them a pipeline loads its own.
    pub encoders: Option<Arc<dyn SharedEncoders>>,
    /// The transformer that all stages share.
    pub networks: DrawingNetworks,
}

impl Default for ModelContext {
    fn default() -> ModelContext {
        ModelContext {
            device: Device::Cpu,
            trained: None,
            counts: Counts::default(),
            encoders: None,
            networks: DrawingNetworks::default(),
        }
    }
}

/// The transformer that draws, with what an earlier stage trained for it: one for all stages. The one used last stays loaded;
/// it goes before another is loaded, so that a device needs room for one.
#[derive(Clone, Debug, Default)]
pub struct DrawingNetworks(Arc<Mutex<Slot>>);

#[derive(Default)]
struct Slot {
    flux: Option<(NetworkSource, Flux)>,
    /// Of that network.
    adapter: Option<(PathBuf, LoraAdapter)>,
    /// Networks and adapters that were loaded so far.
    loads: [u64; 2],
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let network = self.flux.as_ref().map(|(source, _)| source);
        let adapter = self.adapter.as_ref().map(|(path, _)| path);
        f.debug_struct("Slot").field("network", &network).field("adapter", &adapter).finish_non_exhaustive()
    }
}

/// Which network draws. The file of one that was trained lives as long as this.
#[derive(Clone, Debug)]
struct NetworkSource {
    config: FluxConfig,
    weights: PathBuf,
    options: LoadOptions,
    trained: Option<Trained>,
}

impl NetworkSource {
    fn is_network_of(&self, other: &NetworkSource) -> bool {
        let NetworkSource { config, weights, options, trained: _ } = self;
        (config, weights, options) == (&other.config, &other.weights, &other.options)
    }

    fn adapter(&self) -> Option<&Path> {
        match &self.trained {
            Some(Trained::Adapter(file)) => Some(file.path()),
            Some(Trained::Network(_)) | None => None,
        }
    }
}

impl Slot {
    /// Loads what is not here. Of two stages that draw with one base, each in turn only loads its adapter.
    fn load(&mut self, source: &NetworkSource) -> Result<(&Flux, Option<&LoraAdapter>), ModelError> {
        let is_here = self.flux.as_ref().is_some_and(|(of, _)| of.is_network_of(source));
        if !is_here {
            (self.flux, self.adapter) = (None, None);
        }
        if !is_here || self.adapter.as_ref().map(|(of, _)| of.as_path()) != source.adapter() {
            self.adapter = None;
        }
        let NetworkSource { config, weights, options, .. } = source;
        let flux = match &mut self.flux {
            Some((_, flux)) => flux,
            empty => {
                let flux = Flux::load_with(config, weights, options)?;
                self.loads[0] += 1;
                &mut empty.insert((source.clone(), flux)).1
            }
        };
        if let (None, Some(path)) = (&self.adapter, source.adapter()) {
            let adapter = LoraAdapter::load(config, path, options.compute, options.device)?;
            self.loads[1] += 1;
            self.adapter = Some((path.to_owned(), adapter));
        }
        Ok((flux, self.adapter.as_ref().map(|(_, adapter)| adapter)))
    }
}

impl DrawingNetworks {
    /// Gives the memory back: no stage is left that draws.
    pub fn clear(&self) {
        let mut slot = self.lock();
        (slot.flux, slot.adapter) = (None, None);
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What draws a stage's pictures.
pub struct DiffusionPipeline {
    preset: Preset,
    networks: DrawingNetworks,
    source: NetworkSource,
    codec: Box<dyn LatentCodec>,
    text: Box<dyn TextEncoder>,
    /// The empty prompt, if pictures are guided away from it.
    empty: Option<EncodedText>,
    positions: Offsets,
    draw: DrawSpec,
    seed: u64,
    stage_index: u32,
    counts: Counts,
}

impl std::fmt::Debug for DiffusionPipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DiffusionPipeline { preset, draw, stage_index, .. } = self;
        f.debug_struct("DiffusionPipeline")
            .field("preset", preset)
            .field("draw", draw)
            .field("stage_index", stage_index)
            .finish_non_exhaustive()
    }
}

impl DiffusionPipeline {
    /// Loads the job's base, with what an earlier stage made of it if `models` has that. `positions` are those that it was
    /// trained with.
    pub fn open(
        job: &JobSpec,
        stage_index: u32,
        draw: &DrawSpec,
        positions: Offsets,
        paths: &PathResolver,
        models: &ModelContext,
    ) -> Result<DiffusionPipeline, PipelineError> {
        let preset = Preset::from(job.model.preset);
        let options = base_options(job.model.precision, models.device);
        let weights = match (&models.trained, &job.model.weights) {
            (Some(Trained::Network(file)), _) => file.path().to_owned(),
            (_, Some(path)) => paths.resolve(path)?,
            (_, None) => return Err(PipelineError::NoWeights),
        };
        // Text encoders first: what is wrong with a tokenizer shows before 24 GB are read.
        let EncodersOfDrawing { codec, text } = match &models.encoders {
            Some(shared) => shared.open()?,
            None => {
                let files = encoder_files(&job.model, paths)?;
                EncodersOfDrawing {
                    text: files.text(options.compute, models.device)?,
                    codec: files.codec(models.device)?,
                }
            }
        };
        let source = NetworkSource {
            config: FluxConfig::from(&job.model),
            weights,
            options,
            trained: models.trained.clone(),
        };
        models.networks.lock().load(&source)?;
        let empty = if draw.true_cfg > 1.0 { Some(tch::no_grad(|| text.encode(&[""]))?) } else { None };
        Ok(DiffusionPipeline {
            preset,
            empty,
            networks: models.networks.clone(),
            source,
            codec,
            text,
            positions,
            draw: draw.clone(),
            seed: job.seed,
            stage_index,
            counts: models.counts.clone(),
        })
    }

    /// The key of a drawn picture's noise: `which` counts the pictures of one candidate.
    pub fn noise(&self, candidate: u64, which: u64) -> SampleKey {
        SampleKey {
            job_seed: self.seed,
            stage: self.stage_index | DRAWING,
            position: candidate.wrapping_mul(DRAWN_PER_CANDIDATE).wrapping_add(which),
        }
    }

    /// A side of about this many pixels that the model can draw, at least one token.
    pub fn fitting(&self, pixels: f64) -> u32 {
        // One token.
        let multiple = u32::try_from(2 * self.codec.downscale()).unwrap_or(u32::MAX).max(1);
        ((pixels / f64::from(multiple)).round() as u32).max(1) * multiple
    }

    /// Draws pictures of `size` (width, height), in order; none of them if `stop` is set in between.
    pub fn draw(
        &self,
        size: (u32, u32),
        requests: &[GenerationRequest<'_>],
        stop: &AtomicBool,
    ) -> Result<Vec<RgbImage>, ModelError> {
        let batch = self.draw.batch.max(1) as usize;
        let mut drawn = Vec::with_capacity(requests.len());
        for few in requests.chunks(batch) {
            if stop.load(Ordering::Relaxed) {
                return Ok(Vec::new());
            }
            let mut slot = self.networks.lock();
            let (flux, adapter) = slot.load(&self.source)?;
            drawn.extend(self.config(flux).draw_requests(self.text.as_ref(), adapter, size, batch, few)?);
            drop(slot);
            self.counts.drawn(few.len());
        }
        Ok(drawn)
    }

    /// The loss on a pair at each of `times` (0 data, 1 noise), with one noise for all of them; `guidance` is that of training.
    pub fn losses(
        &self,
        pair: &Pair,
        times: &[f64],
        noise: SampleKey,
        guidance: f64,
    ) -> Result<Vec<f64>, ModelError> {
        let encode = |picture: &RgbImage| -> Result<Tensor, ModelError> {
            tch::no_grad(|| self.codec.encode(&pictures::to_model_input(&[picture])?))
        };
        let rows = i64::try_from(times.len()).unwrap_or_default();
        let repeated = |tensor: Tensor| -> Result<Tensor, ModelError> {
            let mut size = tensor.size();
            if let Some(first) = size.first_mut() {
                *first = rows;
            }
            Ok(tensor.f_expand(size.as_slice(), false)?)
        };
        let latents = encode(&pair.target)?;
        let (_, channels, height, width) = latents.size4()?;
        let noise = noise.noise(&[1, height / 2 * (width / 2), channels * 4])?;
        let text = tch::no_grad(|| self.text.encode(&[pair.prompt.as_str()]))?;
        let times: Vec<f32> = times.iter().map(|time| *time as f32).collect();
        let refs = pair.references.iter().map(|reference| repeated(encode(reference)?));
        let batch = MicroBatch {
            latents: repeated(latents)?,
            refs: refs.collect::<Result<_, _>>()?,
            txt: repeated(text.txt)?,
            vec: repeated(text.vec)?,
            noise: repeated(noise)?,
            times: Tensor::f_from_slice(&times)?,
            weight: 1.0,
        };
        let mut slot = self.networks.lock();
        let (flux, adapter) = slot.load(&self.source)?;
        let time_kind = self.preset.time_kind(flux.compute_kind());
        let how = AskedAs { positions: self.positions, guidance, time_kind };
        validation::losses(flux, adapter, &batch, how)
    }

    /// How pictures are drawn, for their provenance.
    pub fn provenance(&self) -> serde_json::Value {
        serde_json::json!({ "steps": self.draw.steps, "guidance": self.draw.guidance, "true_cfg": self.draw.true_cfg })
    }

    fn config<'a>(&'a self, flux: &'a Flux) -> PipelineConfig<'a> {
        PipelineConfig {
            positions: self.positions,
            guidance: self.draw.guidance,
            free_guidance: self.empty.as_ref().map(|empty| FreeGuidance { scale: self.draw.true_cfg, empty }),
            ..PipelineConfig::for_preset(self.preset, flux, self.codec.as_ref(), i64::from(self.draw.steps))
        }
    }
}

/// The encoders of a job's model on this machine: in the folder that the spec names, or beside its weights.
pub fn encoder_files(model: &ModelSpec, paths: &PathResolver) -> Result<EncoderFiles, PathError> {
    if model.preset == ModelPreset::Nano {
        return Ok(EncoderFiles::Nano);
    }
    let folder = match (&model.encoders, &model.weights) {
        (Some(folder), _) => paths.resolve(folder)?,
        (None, Some(weights)) => {
            let weights = paths.resolve(weights)?;
            if weights.is_dir() { weights } else { weights.parent().unwrap_or(Path::new("")).to_owned() }
        }
        (None, None) => PathBuf::new(),
    };
    Ok(EncoderFiles::in_folder(model.preset.into(), &folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::tests::{drawing_job, paths};
    use crescendo_model::BlockSelection;

    fn adapter(seed: u64) -> Trained {
        let config = FluxConfig::nano();
        let mut adapter =
            LoraAdapter::init(&config, 4, &BlockSelection::all(&config), seed, tch::Kind::Float, Device::Cpu)
                .expect("an adapter");
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("weights.safetensors");
        crescendo_model::weights::save(&path, &adapter.tensors(), &Default::default()).expect("save");
        Trained::Adapter(Arc::new(TrainedFile::new(path, folder)))
    }

    #[test]
    fn stages_take_turns_with_one_network_and_draw_the_same_as_alone() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = drawing_job(folder.path());
        let other = JobSpec {
            model: ModelSpec { weights: Some("other.safetensors".into()), ..job.model.clone() },
            ..job.clone()
        };
        std::fs::copy(folder.path().join("base.safetensors"), folder.path().join("other.safetensors"))
            .expect("copy");
        let draw = DrawSpec { steps: 1, guidance: 4.0, true_cfg: 1.0, batch: 2 };
        let open = |job: &JobSpec, models: &ModelContext| {
            DiffusionPipeline::open(job, 0, &draw, Offsets::PUBLISHED, &paths(folder.path()), models)
                .expect("open")
        };
        let picture = |pipeline: &DiffusionPipeline| {
            let request = GenerationRequest { prompt: "a cup", references: &[], noise: pipeline.noise(1, 0) };
            pipeline.draw((16, 16), &[request], &AtomicBool::new(false)).expect("draw").remove(0)
        };
        let shared = ModelContext::default();
        let loads = || shared.networks.lock().loads;
        let with = |seed| ModelContext { trained: Some(adapter(seed)), ..shared.clone() };
        let (base, first, second) = (open(&job, &shared), open(&job, &with(1)), open(&job, &with(2)));
        assert_eq!(loads(), [1, 2]);
        let alone = picture(&open(&job, &ModelContext::default()));
        assert_eq!(picture(&base), alone);
        picture(&first);
        picture(&first);
        picture(&second);
        assert_eq!(loads(), [1, 4], "of one base, only adapters are loaded in turns");
        let elsewhere = open(&other, &shared);
        assert_eq!(loads(), [2, 4]);
        assert_eq!((picture(&elsewhere), picture(&base)), (alone.clone(), alone));
        assert_eq!(loads(), [3, 4]);
        shared.networks.clear();
        picture(&first);
        assert_eq!(loads(), [4, 5]);
    }
}
