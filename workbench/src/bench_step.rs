//! `bench-step`: times the training step on random data. One JSON line, in the form of `bench/nano_step.py`, which times
//! the same step in plain PyTorch.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use crescendo_model::lora::BlockSelection;
use crescendo_model::randomness::{SampleKey, TimeDistribution};
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::training::{AdamW, AdamWConfig, Learner, MicroBatch, TrainOptions};
use crescendo_model::{Flux, FluxConfig, LoraAdapter};

/// Flags of `bench-step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// Adapter rank; 0 trains every parameter
    #[arg(long, default_value_t = 64)]
    rank: i64,
    /// Samples a step
    #[arg(long, default_value_t = 16)]
    batch: i64,
    /// Reference pictures a sample
    #[arg(long, default_value_t = 1)]
    references: usize,
    /// Tokens along each side of a panel
    #[arg(long, default_value_t = 8)]
    side: i64,
    /// Text tokens
    #[arg(long, default_value_t = 24)]
    text: i64,
    /// Arithmetic of the base
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// CPU threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Steps before the clock starts
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Steps that are timed
    #[arg(long, default_value_t = 5)]
    steps: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// Runs `bench-step`.
pub fn run(args: &BenchStepArgs) -> Result<()> {
    ensure!(args.batch > 0 && args.side > 0 && args.text > 0 && args.steps > 0, "sizes must be positive");
    crescendo_model::tch::set_num_threads(args.threads);
    let config = FluxConfig::nano();
    let kind = match args.precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let options = TrainOptions::default();
    let mut learner = if args.rank > 0 {
        let flux = Flux::init(&config, 0, kind, Device::Cpu)?;
        let blocks = BlockSelection::all(&config);
        let adapter = LoraAdapter::init(&config, args.rank, &blocks, 0, Kind::Float, Device::Cpu)?;
        Learner::for_adapter(flux, adapter, options)?
    } else {
        let mut flux = Flux::init(&config, 0, Kind::Float, Device::Cpu)?;
        flux.set_compute_kind(kind);
        Learner::for_all_weights(flux, options)?
    };
    let mut optimizer = AdamW::new(AdamWConfig::default(), learner.trainables())?;

    let mut seconds = Vec::new();
    for step in 0..args.warmup + args.steps {
        let batch = random_batch(args, &config, step)?;
        let started = Instant::now();
        let outcomes = learner.gradients(&[batch], None)?;
        let norm = learner.trainables_mut().clip(Some(1.0))?;
        optimizer.step(learner.trainables_mut(), 1e-4)?;
        let loss = f64::try_from(&outcomes.first().context("no loss")?.loss)?;
        ensure!(loss.is_finite() && f64::try_from(&norm)?.is_finite(), "the loss is not finite");
        if step >= args.warmup {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let precision = format!("{:?}", args.precision).to_lowercase();
    let line = serde_json::json!({
        "implementation": format!("crescendo-{precision}"), "batch": args.batch, "rank": args.rank,
        "references": args.references, "threads": args.threads, "seconds": seconds,
    });
    println!("{line}");
    Ok(())
}

fn random_batch(args: &BenchStepArgs, config: &FluxConfig, step: u64) -> Result<MicroBatch> {
    let latent = [args.batch, config.latent_channels(), 2 * args.side, 2 * args.side];
    let normal = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
    let times: Vec<f32> = (0..args.batch.unsigned_abs())
        .map(|n| {
            let key = SampleKey { job_seed: 0, stage: 0, position: step * args.batch.unsigned_abs() + n };
            key.time(&TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 })
        })
        .collect();
    Ok(MicroBatch {
        latents: normal(&latent)?,
        refs: (0..args.references).map(|_| normal(&latent)).collect::<Result<_, _>>()?,
        txt: normal(&[args.batch, args.text, config.context_in_dim])?,
        vec: normal(&[args.batch, config.vec_in_dim])?,
        noise: normal(&[args.batch, args.side * args.side, config.in_channels])?,
        times: Tensor::f_from_slice(&times)?,
        weight: 1.0,
    })
}
