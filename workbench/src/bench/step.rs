//! `bench step`: times the training step on random data. As JSON one line, in the form of `bench/step.py`, which times the
//! same step in plain PyTorch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use crescendo_collective::ReduceOp;
use crescendo_core::precision::CLEARLY_FASTER;
use crescendo_model::flux::{LoadOptions, Offload, StepTokens, Storage, step_flops};
use crescendo_model::fused::{Kernels, profile};
use crescendo_model::lora::BlockSelection;
use crescendo_model::randomness::{SampleKey, TimeDistribution};
use crescendo_model::speed;
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::training::{
    AdamW, AdamWConfig, BlockPass, Clip, MicroBatch, Recompute, TrainOptions, TrainStep, Update,
};
use crescendo_model::{Flux, FluxConfig, LoraAdapter, Preset};
use serde::Serialize;

use super::{Precision, median, parse_preset, peak};

use crate::parity::Output;

/// Share of the free memory that activations may have: the allocator rounds up, and kernels need room to work.
const SHARE_FOR_ACTIVATIONS: f64 = 0.85;

/// Flags of `bench step`.
#[derive(Debug, Args)]
#[command(
    after_help = "The floor is the least arithmetic of a step, nothing computed twice; the share of it is held against the \
                        device's peak from its data sheet where that is known, otherwise against one large matrix product.\n\n\
                        Examples:\n  crescendo bench step\n  \
                        crescendo bench step --preset flux-dev --device cuda --synthetic --references 2 --resolution 512"
)]
pub struct StepArgs {
    /// Sizes of the network: flux-dev, flux-schnell, nano
    #[arg(long, default_value = "nano", value_parser = parse_preset)]
    preset: Preset,
    /// cpu, cuda, or cuda:INDEX
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// Weights that mean nothing, made on the device
    #[arg(long, conflicts_with = "weights")]
    synthetic: bool,
    /// Weights of the base from a file
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Adapter rank; 0 trains every parameter [default: 64 for nano, otherwise 512]
    #[arg(long)]
    rank: Option<i64>,
    /// Samples a step [default: 16 for nano, otherwise 1]
    #[arg(long)]
    batch: Option<i64>,
    /// Reference pictures a sample
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=8))]
    references: u8,
    /// Side of target and references, pixels [default: 32 for nano, otherwise 512]
    #[arg(long, value_name = "PIXELS")]
    resolution: Option<i64>,
    /// Text tokens [default: 24 for nano, otherwise 512]
    #[arg(long)]
    text: Option<i64>,
    /// Arithmetic of base and adapter [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// How the frozen base is stored
    #[arg(long, value_enum, default_value_t = Store::Compute)]
    storage: Store,
    /// Where the base's blocks lie
    #[arg(long, value_enum, default_value_t = Place::Device)]
    blocks: Place,
    /// How blocks are run where an adapter trains
    #[arg(long, value_enum, default_value_t = Pass::Fused)]
    pass: Pass,
    /// What is computed again in the backward pass; auto: as little as the memory allows [default: none on the CPU, auto
    /// on a GPU]
    #[arg(long, value_enum)]
    recompute: Option<Again>,
    /// Memory that the step may take in all, GB, with --recompute auto [default: what is free]
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// CPU threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Steps before the clock starts
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Steps that are timed
    #[arg(long, default_value_t = 5)]
    steps: u64,
    /// What the device could do, 10¹² operations a second
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Store {
    Compute,
    /// All weights in 8 bits, widened for each product
    Float8,
    /// Those of attention and MLP, scaled, and multiplied so where the device can: `precision: fp8`
    ScaledFloat8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Place {
    Device,
    Host,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pass {
    /// By hand, with fused kernels
    Fused,
    /// By hand, with libtorch's operations
    Eager,
    /// By autograd
    Autograd,
}

impl Pass {
    fn kernels(self) -> Kernels {
        match self {
            Self::Fused => Kernels::Fused,
            Self::Eager | Self::Autograd => Kernels::Eager,
        }
    }

    fn block_pass(self) -> BlockPass {
        match self {
            Self::Fused => BlockPass::Explicit(Kernels::Fused),
            Self::Eager => BlockPass::Explicit(Kernels::Eager),
            Self::Autograd => BlockPass::Autograd,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Again {
    None,
    All,
    Auto,
}

/// The flags with every default filled in.
struct Setting {
    config: FluxConfig,
    kind: Kind,
    rank: i64,
    batch: i64,
    text: i64,
    /// Tokens along each side of a picture.
    side: i64,
    references: usize,
}

impl Setting {
    fn resolve(args: &StepArgs) -> Result<Self> {
        let nano = args.preset == Preset::Nano;
        // Pixels a token: nano has 4, the published networks 8 a latent pixel and 2 of those a token.
        let (resolution, pixels) = if nano { (32, 4) } else { (512, 16) };
        let resolution = args.resolution.unwrap_or(resolution);
        ensure!(
            (pixels..=8192).contains(&resolution) && resolution % pixels == 0,
            "--resolution: {resolution} is not a multiple of {pixels} within {pixels}..=8192"
        );
        let kind = Precision::kind(args.precision, args.device);
        let setting = Self {
            config: args.preset.config(),
            kind,
            rank: args.rank.unwrap_or(if nano { 64 } else { 512 }),
            batch: args.batch.unwrap_or(if nano { 16 } else { 1 }),
            text: args.text.unwrap_or(if nano { 24 } else { 512 }),
            side: resolution / pixels,
            references: args.references.into(),
        };
        ensure!(args.steps > 0, "--steps must be positive");
        ensure!((1..=4096).contains(&setting.batch), "--batch is not within 1..=4096");
        ensure!((1..=8192).contains(&setting.text), "--text is not within 1..=8192");
        ensure!(setting.rank >= 0, "--rank is negative");
        ensure!(
            nano || args.synthetic || args.weights.is_some(),
            "{} needs --synthetic or --weights FILE",
            args.preset.name()
        );
        Ok(setting)
    }

    fn tokens(&self) -> StepTokens {
        let panel = (self.side * self.side).unsigned_abs();
        StepTokens {
            batch: self.batch.unsigned_abs(),
            text: self.text.unsigned_abs(),
            target: panel,
            references: panel * self.references as u64,
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Outcome {
    implementation: String,
    preset: &'static str,
    device: String,
    batch: i64,
    rank: i64,
    references: usize,
    /// Tokens of one sample: text, target, references.
    tokens: u64,
    threads: i32,
    /// How many times as fast as f32 bf16 is here, where that was asked for and is not native.
    #[serde(skip_serializing_if = "Option::is_none")]
    bf16_factor: Option<f64>,
    seconds: Vec<f64>,
    median_seconds: f64,
    memory_bytes: u64,
    parts: Parts,
    /// Least arithmetic of the step, operations.
    floor_flops: u64,
    peak_tflops: f64,
    /// Where the peak is from: `given`, `data sheet` or `measured`.
    peak_from: &'static str,
    floor_seconds: f64,
    /// Floor over median.
    share_of_floor: f64,
}

/// Where a step's time goes: medians of further steps that wait for the device after each part.
#[derive(Debug, Serialize)]
struct Parts {
    /// The way of samples and noise to the device.
    batch_seconds: f64,
    forward_seconds: f64,
    backward_seconds: f64,
    /// Clipping, AdamW.
    optimizer_seconds: f64,
    /// All-reduce of every bucket in a group of one rank, which a gang of more does beside the backward pass; none where there is
    /// no such group.
    collective_seconds: Option<f64>,
    /// Of the blocks, each part waited for; what none of them has is called `rest`. Empty if autograd runs them.
    by_part: BTreeMap<&'static str, f64>,
}

/// Limit of one reduction.
const COLLECTIVE_LIMIT: Duration = Duration::from_secs(30);
/// Steps that are taken apart.
const PROFILED: u64 = 3;

/// Takes further steps apart.
fn parts(
    args: &StepArgs,
    setting: &Setting,
    train_step: &mut TrainStep,
    optimizer: &mut AdamW,
) -> Result<Parts> {
    train_step.time_passes();
    train_step.take_pass_times();
    let mut times: [Vec<f64>; 4] = Default::default();
    for step in 0..PROFILED {
        let batch = random_batch(setting, args.warmup + args.steps + step)?;
        let began = Instant::now();
        let batch = batch.to_device(args.device)?;
        crescendo_device::choice::wait(args.device);
        let prepared = began.elapsed();
        train_step.gradients(&[batch], None)?;
        let passes = train_step.take_pass_times();
        let began = Instant::now();
        drop(update(train_step, optimizer)?);
        crescendo_device::choice::wait(args.device);
        let all = [prepared, passes.forward, passes.backward, began.elapsed()];
        for (times, time) in times.iter_mut().zip(all) {
            times.push(time.as_secs_f64());
        }
    }
    let collective_seconds = match collective(args.device, train_step) {
        Ok(seconds) => Some(seconds),
        Err(error) => {
            eprintln!("bench: no collective was timed: {error:#}");
            None
        }
    };
    let by_part = by_part(args, setting, train_step)?;
    let [batch, forward, backward, optimizer] = times.map(|times| median(&times).unwrap_or_default());
    Ok(Parts {
        batch_seconds: batch,
        forward_seconds: forward,
        backward_seconds: backward,
        optimizer_seconds: optimizer,
        collective_seconds,
        by_part,
    })
}

/// Median time of the reduction of all gradients.
fn collective(device: Device, train_step: &TrainStep) -> Result<f64> {
    let group = super::group::connect(device)?;
    let mut seconds = Vec::new();
    for _ in 0..PROFILED {
        crescendo_device::choice::wait(device);
        let began = Instant::now();
        for bucket in train_step.params().buckets().iter().rev() {
            group.all_reduce(bucket.grads(), ReduceOp::Sum, COLLECTIVE_LIMIT)?;
        }
        crescendo_device::choice::wait(device);
        seconds.push(began.elapsed().as_secs_f64());
    }
    group.leave(COLLECTIVE_LIMIT)?;
    median(&seconds).context("nothing was timed")
}

/// Seconds of one step's forward and backward pass by part of the blocks.
fn by_part(
    args: &StepArgs,
    setting: &Setting,
    train_step: &mut TrainStep,
) -> Result<BTreeMap<&'static str, f64>> {
    let batch = random_batch(setting, 0)?.to_device(args.device)?;
    crescendo_device::choice::wait(args.device);
    profile::start();
    let began = Instant::now();
    let outcome = train_step.gradients(&[batch], None);
    crescendo_device::choice::wait(args.device);
    let all = began.elapsed();
    let times = profile::take();
    outcome?;
    let known: Duration = times.values().sum();
    let rest = (!times.is_empty()).then(|| ("rest", all.saturating_sub(known)));
    Ok(times.into_iter().chain(rest).map(|(name, time)| (name, time.as_secs_f64())).collect())
}

/// What follows the backward pass; the gradients' norm.
fn update(train_step: &mut TrainStep, optimizer: &mut AdamW) -> Result<Tensor> {
    let norm = train_step.params().grad_norm()?;
    let clip = Some(Clip { norm: &norm, max_norm: 1.0 });
    optimizer.step(train_step.params_mut(), Update { clip, ..Update::at(1e-4) })?;
    Ok(norm)
}

/// Runs `bench step`.
pub fn run(args: &StepArgs) -> Result<()> {
    let setting = Setting::resolve(args)?;
    crescendo_model::tch::set_num_threads(args.threads);
    let device_name = crescendo_device::open(args.device)?;
    let mut train_step = train_step(args, &setting)?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), train_step.params())?;
    optimizer.set_kernels(args.pass.kernels());
    train_step.set_recompute(recompute(args)?);

    let mut seconds = Vec::new();
    for step in 0..args.warmup + args.steps {
        let batch = random_batch(&setting, step)?;
        crescendo_device::choice::wait(args.device);
        let started = Instant::now();
        let outcomes = train_step.gradients(&[batch], None)?;
        let norm = update(&mut train_step, &mut optimizer)?;
        let loss = f64::try_from(&outcomes.first().context("no loss")?.loss)?;
        ensure!(loss.is_finite() && f64::try_from(&norm)?.is_finite(), "the loss is not finite");
        crescendo_device::choice::wait(args.device);
        if step >= args.warmup {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let memory_bytes = peak::memory_bytes(args.device)?;
    let parts = parts(args, &setting, &mut train_step, &mut optimizer)?;
    drop((train_step, optimizer));

    let (peak_tflops, peak_from) = match (args.peak_tflops, peak::from_table(&device_name, setting.kind)) {
        (Some(given), _) => (given, "given"),
        (None, Some(known)) => (known, "data sheet"),
        (None, None) => (peak::measured(args.device, setting.kind)?, "measured"),
    };
    let rank = u64::try_from(setting.rank).ok().filter(|rank| *rank > 0);
    let floor_flops = step_flops(&setting.config, &setting.tokens(), rank);
    let floor_seconds = floor_flops as f64 / (peak_tflops * 1e12);
    let median_seconds = median(&seconds).context("no step was timed")?;
    let tokens = setting.tokens();
    let bf16_factor = match (setting.kind, args.device) {
        (Kind::BFloat16, Device::Cpu) => {
            let threads = u32::try_from(args.threads).unwrap_or(1);
            speed::of_cpu(threads)?.bf16_factor().filter(|factor| *factor < CLEARLY_FASTER)
        }
        _ => None,
    };
    let precision = if setting.kind == Kind::Float { "f32" } else { "bf16" };
    print(
        args.output,
        &Outcome {
            implementation: format!("crescendo-{precision}"),
            preset: args.preset.name(),
            device: device_name,
            batch: setting.batch,
            rank: setting.rank,
            references: setting.references,
            tokens: tokens.text + tokens.target + tokens.references,
            threads: args.threads,
            bf16_factor,
            seconds,
            median_seconds,
            memory_bytes,
            parts,
            floor_flops,
            peak_tflops,
            peak_from,
            floor_seconds,
            share_of_floor: floor_seconds / median_seconds,
        },
    )
}

fn train_step(args: &StepArgs, setting: &Setting) -> Result<TrainStep> {
    let Setting { config, kind, rank, .. } = setting;
    let full = *rank == 0;
    let storage = match args.storage {
        Store::Compute => Storage::Compute,
        Store::Float8 => Storage::Float8,
        Store::ScaledFloat8 => Storage::ScaledFloat8,
    };
    let blocks = match args.blocks {
        Place::Device => Offload::Device,
        Place::Host => Offload::Host,
    };
    // What trains is float32 whatever the activations are.
    let compute = if full { Kind::Float } else { *kind };
    let load = LoadOptions { compute, device: args.device, storage, blocks };
    let mut flux = match &args.weights {
        Some(path) => Flux::load_with(config, path, &load)?,
        None if args.synthetic => Flux::synthetic(config, 0, &load)?,
        None if args.device == Device::Cpu => Flux::init(config, 0, compute, Device::Cpu)?,
        None => bail!("on a GPU, --synthetic or --weights FILE is needed"),
    };
    flux.set_compute_kind(*kind);
    let block_pass = args.pass.block_pass();
    let options = TrainOptions { adapter_compute: Some(*kind), block_pass, ..TrainOptions::default() };
    if full {
        return Ok(TrainStep::for_all_weights(flux, options)?);
    }
    let all = BlockSelection::all(config);
    let layout = LoraAdapter::layout(config, *rank, &all)?;
    let values = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, args.device))?.f_mul_scalar(0.01);
    let tensors =
        layout.into_iter().map(|(name, shape)| Ok((name, values(&shape)?))).collect::<Result<_>>()?;
    let adapter = LoraAdapter::from_tensors(config, tensors, "noise", Kind::Float, args.device)?;
    Ok(TrainStep::for_adapter(flux, adapter, options)?)
}

/// What is computed again, now that everything that stays on the device is there.
fn recompute(args: &StepArgs) -> Result<Recompute> {
    let auto = if args.device.is_cuda() { Again::Auto } else { Again::None };
    match args.recompute.unwrap_or(auto) {
        Again::None => Ok(Recompute::None),
        Again::All => Ok(Recompute::All),
        Again::Auto => {
            let used = peak::memory_bytes(args.device)?;
            let free = match (args.memory, args.device.is_cuda()) {
                (Some(gigabytes), _) => ((gigabytes * 1e9) as u64).saturating_sub(used),
                (None, true) => crescendo_device::cuda::memory()?.free_bytes,
                (None, false) => bail!("--recompute auto needs --memory on the CPU"),
            };
            Ok(Recompute::Budget { bytes: (free as f64 * SHARE_FOR_ACTIVATIONS) as u64 })
        }
    }
}

fn random_batch(setting: &Setting, step: u64) -> Result<MicroBatch> {
    let Setting { config, batch, side, text, references, .. } = setting;
    let latent = [*batch, config.latent_channels(), 2 * side, 2 * side];
    let normal = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
    let times: Vec<f32> = (0..batch.unsigned_abs())
        .map(|n| {
            let key = SampleKey { job_seed: 0, stage: 0, position: step * batch.unsigned_abs() + n };
            key.time(&TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 })
        })
        .collect();
    Ok(MicroBatch {
        latents: normal(&latent)?,
        refs: (0..*references).map(|_| normal(&latent)).collect::<Result<_, _>>()?,
        txt: normal(&[*batch, *text, config.context_in_dim])?,
        vec: normal(&[*batch, config.vec_in_dim])?,
        noise: normal(&[*batch, side * side, config.in_channels])?,
        times: Tensor::f_from_slice(&times)?,
        weight: 1.0,
    })
}

/// Samples of the nano network with one reference, as [`run`] times them if told nothing else.
pub fn random_nano_batch(batch: i64) -> Result<MicroBatch> {
    let config = Preset::Nano.config();
    random_batch(&Setting { config, kind: Kind::Float, rank: 64, batch, text: 24, side: 8, references: 1 }, 0)
}

fn print(output: Output, outcome: &Outcome) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string(outcome)?);
        return Ok(());
    }
    let Outcome { preset, device, batch, rank, references, tokens, .. } = outcome;
    println!("{preset} on {device}: batch {batch}, {references} reference(s), {tokens} tokens, rank {rank}");
    if let Some(factor) = outcome.bf16_factor {
        println!(
            "bf16 is not native on this CPU: a product takes {:.1} times as long as in f32",
            1.0 / factor
        );
    }
    println!("step    {:.3} s (median of {})", outcome.median_seconds, outcome.seconds.len());
    let Parts { batch_seconds, forward_seconds, backward_seconds, optimizer_seconds, .. } = outcome.parts;
    println!(
        "parts   batch {batch_seconds:.3} s, forward {forward_seconds:.3} s, backward {backward_seconds:.3} s, \
         optimizer {optimizer_seconds:.3} s"
    );
    if let Some(seconds) = outcome.parts.collective_seconds {
        println!("reduce  {seconds:.3} s, in a group of one rank");
    }
    if !outcome.parts.by_part.is_empty() {
        let mut parts: Vec<_> = outcome.parts.by_part.iter().collect();
        parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let parts: Vec<String> = parts.iter().map(|(name, time)| format!("{name} {time:.3} s")).collect();
        println!("passes  {} (each waited for)", parts.join(", "));
    }
    println!("memory  {:.1} GB", outcome.memory_bytes as f64 / 1e9);
    println!(
        "floor   {:.3} s: {:.2} × 10¹² operations at {:.1} × 10¹² a second ({})",
        outcome.floor_seconds,
        outcome.floor_flops as f64 / 1e12,
        outcome.peak_tflops,
        outcome.peak_from
    );
    println!("share   {:.0} % of the floor's speed", 100.0 * outcome.share_of_floor);
    Ok(())
}
