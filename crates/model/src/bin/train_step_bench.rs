//! Times training steps of the nano preset on this machine and prints one JSON line.
//!
//! Usage: `train_step_bench [adapter|all] [f32|bf16] [batch] [references] [steps]`; the defaults are the
//! adapter (rank 64), f32, 16 samples, 1 reference, 20 steps after 3 to warm up. Sizes are the demo's:
//! 32×32 panels, 24 text tokens.

use std::time::Instant;

use anyhow::{Context, bail};
use crescendo_model::randomness::SampleKey;
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::training::{AdamW, AdamWConfig, Learner, MicroBatch, TrainOptions};
use crescendo_model::{BlockSelection, Flux, FluxConfig, LoraAdapter};

const WARM_UP_STEPS: usize = 3;
const RANK: i64 = 64;
/// Side of a panel's latent: 32 pixels by the pixel codec.
const LATENT_SIDE: i64 = 16;

fn batch(samples: i64, references: i64) -> anyhow::Result<MicroBatch> {
    let key = |stage| SampleKey { job_seed: 1, stage, position: 0 };
    let latents = |stage| key(stage).noise(&[samples, 12, LATENT_SIDE, LATENT_SIDE]);
    Ok(MicroBatch {
        latents: latents(0)?,
        refs: (0..references).map(|i| latents(10 + i as u32)).collect::<Result<_, _>>()?,
        txt: key(1).noise(&[samples, 24, 64])?,
        vec: key(2).noise(&[samples, 64])?,
        noise: key(3).noise(&[samples, LATENT_SIDE * LATENT_SIDE / 4, 48])?,
        times: Tensor::f_full([samples], 0.5, (Kind::Float, Device::Cpu))?,
        weight: 1.0,
    })
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |index: usize, default: &str| arguments.get(index).cloned().unwrap_or_else(|| default.to_owned());
    let (what, dtype) = (argument(0, "adapter"), argument(1, "f32"));
    let number = |index, default| {
        argument(index, default).parse::<i64>().with_context(|| format!("read argument {index}"))
    };
    let (samples, references, steps) = (number(2, "16")?, number(3, "1")?, number(4, "20")?);
    let compute = match dtype.as_str() {
        "f32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        other => bail!("dtype {other} is neither f32 nor bf16"),
    };
    let device = Device::cuda_if_available();
    let config = FluxConfig::nano();
    let mut learner = match what.as_str() {
        "adapter" => {
            let base = Flux::init(&config, 1, compute, device)?;
            let blocks = BlockSelection::all(&config);
            let adapter = LoraAdapter::init(&config, RANK, &blocks, 1, Kind::Float, device)?;
            Learner::for_adapter(base, adapter, TrainOptions::default())?
        }
        "all" => {
            let mut base = Flux::init(&config, 1, Kind::Float, device)?;
            base.set_compute_kind(compute);
            Learner::for_all_weights(base, TrainOptions::default())?
        }
        other => bail!("{other} is neither adapter nor all"),
    };
    let mut adamw = AdamW::new(AdamWConfig::default(), learner.trainables())?;
    let micro = [batch(samples, references)?];
    let mut seconds = Vec::new();
    for step in 0..WARM_UP_STEPS + steps.max(1) as usize {
        let start = Instant::now();
        let outcomes = learner.gradients(&micro, None)?;
        let norm = learner.trainables_mut().clip(Some(1.0))?;
        adamw.step(learner.trainables_mut(), 1e-4)?;
        // Reading two numbers waits for the device, as a training loop that logs does.
        let loss = outcomes.iter().map(|outcome| outcome.loss.double_value(&[])).sum::<f64>();
        anyhow::ensure!(loss.is_finite() && norm.double_value(&[]).is_finite(), "loss is not finite");
        if step >= WARM_UP_STEPS {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    println!(
        "{}",
        serde_json::json!({
            "bench": "train_step", "preset": "nano", "trains": what, "dtype": dtype, "samples": samples,
            "references": references, "threads": crescendo_model::tch::get_num_threads(),
            "device": format!("{device:?}"), "median_step_seconds": median,
            "best_step_seconds": seconds.first(), "samples_per_second": samples as f64 / median,
        })
    );
    Ok(())
}
