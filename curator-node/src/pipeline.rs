//! Where curation draws: the job's own model with what it needs around it, on the curation thread.

use crate::counts::Counts;
use crate::paths::{PathError, PathResolver};
use crescendo_core::spec::{DrawSpec, JobSpec, ModelPreset, ModelSpec, Positions};
use crescendo_model::codec::{EncodedText, LatentCodec, TextEncoder};
use crescendo_model::drawing::{FreeGuidance, GenerationRequest, PipelineConfig};
use crescendo_model::encoder_files::EncoderFiles;
use crescendo_model::of_spec::compute_kind;
use crescendo_model::randomness::SampleKey;
use crescendo_model::tch::{self, Device};
use crescendo_model::unope::PositionMode;
use crescendo_model::{Flux, FluxConfig, LoraAdapter, ModelError, Preset};
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    Adapter(Arc<TemporaryFile>),
    /// All weights of the network.
    Network(Arc<TemporaryFile>),
}

/// A file that is removed with this.
#[derive(Debug)]
pub struct TemporaryFile {
    pub path: PathBuf,
    pub(crate) _folder: tempfile::TempDir,
}

impl TemporaryFile {
    /// A copy of a file.
    pub fn copy_of(path: &Path) -> std::io::Result<TemporaryFile> {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("weights.safetensors");
        std::fs::copy(path, &copy)?;
        Ok(TemporaryFile { path: copy, _folder: folder })
    }
}

/// What a curator has to work with besides the files that a spec names.
#[derive(Clone, Debug)]
pub struct ModelContext {
    pub device: Device,
    /// Of the earlier stage that draws; absent where none does.
    pub trained: Option<Trained>,
    /// Where it is counted how far a unit is.
    pub counts: Counts,
}

impl Default for ModelContext {
    fn default() -> ModelContext {
        ModelContext { device: Device::Cpu, trained: None, counts: Counts::default() }
    }
}

/// The networks of a job, loaded.
pub struct DiffusionPipeline {
    preset: Preset,
    flux: Flux,
    adapter: Option<LoraAdapter>,
    codec: Box<dyn LatentCodec>,
    text: Box<dyn TextEncoder>,
    /// The empty prompt, if pictures are guided away from it.
    empty: Option<EncodedText>,
    positions: PositionMode,
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
        positions: Positions,
        paths: &PathResolver,
        models: &ModelContext,
    ) -> Result<DiffusionPipeline, PipelineError> {
        let preset = Preset::from(job.model.preset);
        let kind = compute_kind(job.model.precision, models.device);
        let weights = match (&models.trained, &job.model.weights) {
            (Some(Trained::Network(file)), _) => file.path.clone(),
            (_, Some(path)) => paths.resolve(path)?,
            (_, None) => return Err(PipelineError::NoWeights),
        };
        let files = encoder_files(&job.model, paths)?;
        let config = FluxConfig::from(&job.model);
        // Text encoders first: what is wrong with a tokenizer shows before 24 GB are read.
        let text = files.text(kind, models.device)?;
        let codec = files.codec(models.device)?;
        let flux = Flux::load(&config, &weights, kind, models.device)?;
        let adapter = match &models.trained {
            Some(Trained::Adapter(file)) => {
                Some(LoraAdapter::load(&config, &file.path, kind, models.device)?)
            }
            Some(Trained::Network(_)) | None => None,
        };
        let empty = if draw.true_cfg > 1.0 { Some(tch::no_grad(|| text.encode(&[""]))?) } else { None };
        Ok(DiffusionPipeline {
            preset,
            empty,
            flux,
            adapter,
            codec,
            text,
            positions: positions.into(),
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
        let multiple = self.config().multiple().max(1);
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
            drawn.extend(self.config().draw_requests(
                self.text.as_ref(),
                self.adapter.as_ref(),
                size,
                batch,
                few,
            )?);
            self.counts.drawn(few.len());
        }
        Ok(drawn)
    }

    /// How pictures are drawn, for their provenance.
    pub fn provenance(&self) -> serde_json::Value {
        serde_json::json!({ "steps": self.draw.steps, "guidance": self.draw.guidance, "true_cfg": self.draw.true_cfg })
    }

    fn config(&self) -> PipelineConfig<'_> {
        PipelineConfig {
            positions: self.positions,
            guidance: self.draw.guidance,
            free_guidance: self.empty.as_ref().map(|empty| FreeGuidance { scale: self.draw.true_cfg, empty }),
            ..PipelineConfig::for_preset(
                self.preset,
                &self.flux,
                self.codec.as_ref(),
                i64::from(self.draw.steps),
            )
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
