//! What a job comes to, from its spec alone: arithmetic, memory of a rank, and bytes that are kept.
//!
//! Counts of matrix products and of tensors, not measurements: what a step needs beside them (encoders of curators, padding,
//! libraries) is left out, so that every figure is a little low. `docs/benchmarks.md` has what was measured.

use std::fmt;

use crate::network::{Network, StepTokens};
use crate::sizes::gigabytes;
use crate::spec::{AdapterSpec, DataSource, DrawSpec, JobSpec, ModelPreset, ModelSpec, Precision, StageSpec};

/// What an H100 does in bfloat16 at 40 % of its peak of 989 TFLOP/s, operations a second.
const GPU_RATE: f64 = 0.4 * 989e12;
/// What a slot of one or two CPU cores does in float32, operations a second.
const CPU_RATE: f64 = 50e9;
/// No GPU that anybody trains on has less.
const SMALLEST_GPU_BYTES: u64 = 4_000_000_000;
/// Bytes of a stored picture's pixel, as PNG keeps photographs.
const PIXEL_BYTES: f64 = 1.5;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    pub stages: Vec<StageEstimate>,
    /// Operations a second that the hours below go by, for one slot.
    pub rate: f64,
    on_gpus: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StageEstimate {
    pub stage: String,
    /// Samples that are trained on, over all ranks.
    pub samples: u64,
    /// Floating-point operations of training, over all ranks.
    pub train_flops: f64,
    /// Those of drawing as many pictures as pairs are asked for, were all accepted; 0 where none are drawn.
    pub draw_flops: f64,
    /// Device memory of a rank: weights, gradients, moments and the inputs of all blocks.
    pub rank_bytes: u64,
    /// One checkpoint.
    pub checkpoint_bytes: u64,
    /// Pairs, and checkpoints as many as are kept.
    pub stored_bytes: u64,
}

impl Estimate {
    pub fn of(spec: &JobSpec) -> Self {
        let on_gpus = spec.model.preset != ModelPreset::Nano;
        let rate = if on_gpus { GPU_RATE } else { CPU_RATE };
        let stages = spec.stages.iter().map(|stage| StageEstimate::of(spec, stage)).collect();
        Self { stages, rate, on_gpus }
    }

    fn sum(&self, part: impl Fn(&StageEstimate) -> f64) -> f64 {
        self.stages.iter().map(part).sum()
    }

    /// Hours of one slot for all training.
    pub fn train_hours(&self) -> f64 {
        self.sum(|stage| stage.train_flops) / self.rate / 3600.0
    }

    /// Hours of one curator's device for all drawing.
    pub fn draw_hours(&self) -> f64 {
        self.sum(|stage| stage.draw_flops) / self.rate / 3600.0
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stages.iter().fold(0, |sum, stage| sum.saturating_add(stage.stored_bytes))
    }

    /// What a rank of the largest stage needs.
    pub fn rank_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.rank_bytes).max().unwrap_or(0)
    }
}

/// One line.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slot, rate) = match self.on_gpus {
            true => ("GPU", "H100s at 40 % of their bf16 peak"),
            false => ("slot", "50 GFLOP/s a slot"),
        };
        write!(f, "about {} {slot}-hours of training", hours(self.train_hours()))?;
        let draws = self.draw_hours();
        if draws > 0.0 {
            write!(f, " and at least {} of drawing", hours(draws))?;
        }
        let (memory, stored) = (size(self.rank_bytes()), size(self.stored_bytes()));
        write!(f, ", on {rate}; {memory} of memory a rank at least; {stored} stored")
    }
}

fn size(bytes: u64) -> String {
    if bytes < 100_000_000 { format!("{:.1} MB", float(bytes) / 1e6) } else { gigabytes(bytes) }
}

fn hours(hours: f64) -> String {
    match hours {
        hours if hours < 0.01 => "0.01".to_owned(),
        hours if hours < 1.0 => format!("{hours:.2}"),
        hours if hours < 100.0 => format!("{hours:.1}"),
        hours => format!("{hours:.0}"),
    }
}

impl StageEstimate {
    fn of(job: &JobSpec, stage: &StageSpec) -> Self {
        let network = Network::of(&job.model);
        let tokens = tokens_of(&job.model, stage, stage.references);
        let rank = adapter_rank(stage);
        let samples = stage.train.steps.saturating_mul(stage.train.global_batch.into());
        let moving_averages = u64::from(stage.train.ema_decay.is_some());
        let trained = trained_by(&network, rank);
        // In float32: the weights, their average, and two moments.
        let checkpoint_bytes = trained.saturating_mul(4 * (3 + moving_averages));
        let kept = u64::from(job.checkpoints.keep_last).saturating_add(1);
        Self {
            stage: stage.name.clone(),
            samples,
            train_flops: float(samples) * float(network.step_flops(&tokens, rank)),
            draw_flops: draw_flops(job, stage, &network),
            rank_bytes: rank_bytes(job, stage, &network),
            checkpoint_bytes,
            stored_bytes: checkpoint_bytes.saturating_mul(kept).saturating_add(pair_bytes(stage)),
        }
    }
}

/// Memory that the GPU of each rank has at least: as the spec says, or what its largest stage is estimated to need. 0 if any
/// GPU will do.
pub fn device_bytes(spec: &JobSpec) -> u64 {
    if let Some(gb) = spec.resources.device_memory_gb {
        return u64::from(gb).saturating_mul(1_000_000_000);
    }
    let network = Network::of(&spec.model);
    let most = spec.stages.iter().map(|stage| rank_bytes(spec, stage, &network)).max();
    most.filter(|bytes| *bytes >= SMALLEST_GPU_BYTES).unwrap_or(0)
}

fn adapter_rank(stage: &StageSpec) -> Option<u64> {
    match stage.train.adapter {
        AdapterSpec::Lora { rank } => Some(rank.into()),
        AdapterSpec::None => None,
    }
}

/// Weights that train: of an adapter of this rank, or all of the network.
fn trained_by(network: &Network, rank: Option<u64>) -> u64 {
    rank.map_or_else(|| network.parameters(), |rank| network.adapter_parameters(rank))
}

/// Tokens of one sample.
fn tokens_of(model: &ModelSpec, stage: &StageSpec, references: u32) -> StepTokens {
    let (text, pixels) = match model.preset {
        ModelPreset::Nano => (24, 4),
        ModelPreset::FluxDev | ModelPreset::FluxSchnell => (512, 16),
    };
    let target = u64::from(stage.data.source.resolution().unwrap_or(stage.train.resolution) / pixels).pow(2);
    StepTokens { batch: 1, text, target, references: target * u64::from(references) }
}

fn draw_flops(job: &JobSpec, stage: &StageSpec, network: &Network) -> f64 {
    let panel = tokens_of(&job.model, stage, 0);
    let (tokens, draw) = match &stage.data.source {
        DataSource::Generate(source) => (StepTokens { target: 2 * panel.target, ..panel }, &source.draw),
        DataSource::Recompose(source) => (StepTokens { references: panel.target, ..panel }, &source.draw),
        DataSource::Compose(_) | DataSource::Import(_) | DataSource::Crop(_) | DataSource::Log(_) => {
            return 0.0;
        }
    };
    let DrawSpec { steps, true_cfg, .. } = *draw;
    let passes = f64::from(steps) * if true_cfg > 1.0 { 2.0 } else { 1.0 };
    float(stage.data.pairs) * passes * float(network.forward_flops(&tokens))
}

fn rank_bytes(job: &JobSpec, stage: &StageSpec, network: &Network) -> u64 {
    let rank = adapter_rank(stage);
    let trained = trained_by(network, rank);
    let nano = job.model.preset == ModelPreset::Nano;
    let flows = match job.model.precision {
        Precision::F32 => 4,
        Precision::Auto if nano => 4,
        Precision::Auto | Precision::Bf16 | Precision::Fp8 => 2,
    };
    let weight = if job.model.precision == Precision::Fp8 { 1 } else { flows };
    let base = if rank.is_some() { network.parameters().saturating_mul(weight) } else { 0 };
    // In float32: weights, gradients, two moments, and the average; in what the base computes in, a copy.
    let shadow = if flows == 4 { 0 } else { flows };
    let average = if stage.train.ema_decay.is_some() { 4 } else { 0 };
    let state = trained.saturating_mul(16 + average + shadow);
    let tokens = tokens_of(&job.model, stage, stage.references).all();
    let inputs = (network.double + network.single)
        .saturating_mul(tokens)
        .saturating_mul(u64::from(stage.train.micro_batch))
        .saturating_mul(network.hidden * flows);
    base.saturating_add(state).saturating_add(inputs)
}

fn pair_bytes(stage: &StageSpec) -> u64 {
    // One that takes another's pairs stores none.
    let Some(resolution) = stage.data.source.resolution() else { return 0 };
    let pictures = u64::from(stage.references).saturating_add(1).saturating_mul(stage.data.pairs);
    let pixels = u64::from(resolution).pow(2);
    let bytes = float(pictures) * float(pixels) * PIXEL_BYTES;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an estimate, and never negative
    let bytes = bytes as u64;
    bytes
}

#[allow(clippy::cast_precision_loss)] // an estimate
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    fn estimate(model: &str, stage: &str) -> Estimate {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: j}}\nspec:\n  model: {model}\n  stages: [{stage}]\n"
        );
        Estimate::of(&spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}")))
    }

    /// The published recipe: 5,000 steps of 16 samples, rank 512, 512².
    #[test]
    fn the_published_recipe_comes_to_what_the_design_says() {
        let flux = estimate(
            "{preset: flux-dev, weights: flux1-dev.safetensors}",
            "{data: {source: generate, subjects: library, pairs: 230000}, train: {steps: 5000}}",
        );
        let stage = &flux.stages[0];
        assert_eq!(stage.samples, 80_000);
        // The floor of a step at the peak of an H100.
        let floor = stage.train_flops / float(stage.samples) / 989e12;
        assert!((0.08..0.13).contains(&floor), "{floor}");
        // 24 GB of base, 0.9 billion weights of LoRA with 18 bytes each, and what the blocks begin with.
        let memory = float(stage.rank_bytes) / 1e9;
        assert!((36.0..46.0).contains(&memory), "{memory}");
        let spec = |more: &str| {
            let yaml = format!(
                "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: j}}\nspec:\n  model: {{preset: flux-dev, weights: w{more}}}\n  stages: [{{data: {{source: compose, subjects: s, pairs: 100}}}}]\n"
            );
            spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
        };
        assert_eq!(device_bytes(&spec("")), Estimate::of(&spec("")).rank_bytes(), "what people are shown");
        assert!(device_bytes(&spec(", precision: fp8")) < device_bytes(&spec("")));
        let said = "}\n  resources: {deviceMemoryGb: 24";
        assert_eq!(device_bytes(&spec(said)), 24_000_000_000);
        let checkpoint = float(stage.checkpoint_bytes) / 1e9;
        assert!((10.0..13.0).contains(&checkpoint), "{checkpoint}");
        assert!((flux.draw_hours() / flux.train_hours()) > 10.0, "{flux}");
        assert!(flux.to_string().starts_with("about "), "{flux}");
    }

    #[test]
    fn what_is_small_is_said_and_what_is_huge_does_not_overflow() {
        let stage = "{data: {source: compose, subjects: s, pairs: 100}, train: {steps: 10, globalBatch: 2}}";
        let nano = estimate("{preset: nano, weights: base.safetensors}", stage);
        assert_eq!(
            nano.to_string(),
            "about 0.01 slot-hours of training, on 50 GFLOP/s a slot; 43.3 MB of memory a rank at least; 49.9 MB stored"
        );
        let huge = "{preset: nano, weights: base.safetensors, sizes: {hiddenSize: 65536, numHeads: 1024, axes: {frame: 2, row: 4, column: 58}, depth: 1024, depthSingleBlocks: 1024}}";
        let stage = "{references: 8, data: {source: compose, subjects: s, panel: 2048, pairs: 1000000000, unitSize: 65536}, train: {steps: 10000000, globalBatch: 65536, microBatch: 65536}}";
        let huge = estimate(huge, stage);
        assert!(huge.train_hours() > 1e12, "{huge}");
        assert_eq!(huge.rank_bytes(), u64::MAX);
    }
}
