//! `bench draw`: the time that a curator's drawing takes, and what a data set of them does.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use crescendo_model::flux::LoadOptions;
use crescendo_model::sampler::{SampleRequest, sample};
use crescendo_model::schedule::{inference_schedule, schedule};
use crescendo_model::tch::{self, Device, Kind, Tensor};
use crescendo_model::unope::Offsets;
use crescendo_model::{Flux, Preset};
use serde_json::json;

use super::{Precision, median, parse_preset, peak};
use crate::parity::Output;

/// Flags of `bench draw`.
#[derive(Debug, Args)]
#[command(
    after_help = "The network has random weights: a drawing takes as long with any. Text and pictures are not encoded or decoded.\n\n\
                  Example:\n  crescendo bench draw --preset flux-dev --device cuda --width 1024 --height 512 --steps 25"
)]
pub struct DrawArgs {
    /// Sizes of the network: flux-dev, flux-schnell, nano
    #[arg(long, default_value = "nano", value_parser = parse_preset)]
    preset: Preset,
    /// cpu, cuda, or cuda:INDEX
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// Arithmetic [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Pixels across [default: 64 for nano, otherwise 1024]
    #[arg(long)]
    width: Option<i64>,
    /// Pixels down [default: 32 for nano, otherwise 512]
    #[arg(long)]
    height: Option<i64>,
    /// Steps of the sampler
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Drawings at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=256))]
    batch: i64,
    /// Drawings that are timed, after one that is not
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Pairs of the data set that the hours are for
    #[arg(long, default_value_t = 230_000)]
    pairs: u64,
    /// Share of drawings that become pairs
    #[arg(long, default_value_t = 0.5)]
    acceptance: f64,
    /// Devices that draw
    #[arg(long, default_value_t = 8)]
    devices: u32,
    /// CPU threads
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Runs `bench draw`.
pub fn run(args: &DrawArgs) -> Result<()> {
    ensure!(
        args.acceptance > 0.0 && args.acceptance <= 1.0,
        "--acceptance: {} is not within (0, 1]",
        args.acceptance
    );
    ensure!(args.devices > 0, "--devices must be positive");
    tch::set_num_threads(args.threads);
    let device_name = crescendo_device::open(args.device)?;
    let nano = args.preset == Preset::Nano;
    // Pixels a latent pixel: nano's codec halves nothing but packs 2 × 2, the published one shrinks by 8 before.
    let (pixels, text, default) = if nano { (2, 24, (64, 32)) } else { (8, 512, (1024, 512)) };
    let (width, height) = (args.width.unwrap_or(default.0), args.height.unwrap_or(default.1));
    ensure!(
        [width, height].iter().all(|side| (2 * pixels..=8192).contains(side) && side % (2 * pixels) == 0),
        "--width and --height must be multiples of {} within {}..=8192",
        2 * pixels,
        2 * pixels
    );
    let kind = Precision::kind(args.precision, args.device);
    let config = args.preset.config();
    let flux = Flux::synthetic(&config, 0, &LoadOptions::resident(kind, args.device))?;
    let normal = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, args.device));
    let noise = normal(&[args.batch, config.latent_channels(), height / pixels, width / pixels])?;
    let (txt, vec) =
        (normal(&[args.batch, text, config.context_in_dim])?, normal(&[args.batch, config.vec_in_dim])?);
    let steps = i64::from(args.steps);
    let times = if nano {
        schedule(steps, (width / pixels / 2) * (height / pixels / 2), true)?
    } else {
        inference_schedule(steps, width, height)?
    };
    let request = SampleRequest {
        noise: &noise,
        refs: &[],
        txt: &txt,
        vec: &vec,
        positions: Offsets::PUBLISHED,
        schedule: &times,
        guidance: 4.0,
        contrast: None,
        time_kind: kind,
    };
    let mut seconds = Vec::new();
    for round in 0..=args.rounds {
        let began = Instant::now();
        drop(sample(&flux, None, &request, None)?);
        crescendo_device::choice::wait(args.device);
        if round > 0 {
            seconds.push(began.elapsed().as_secs_f64() / args.batch as f64);
        }
    }
    let each = median(&seconds).context("nothing was timed")?;
    let hours = args.pairs as f64 / args.acceptance * each / f64::from(args.devices) / 3600.0;
    let memory_bytes = peak::memory_bytes(args.device)?;
    match args.output {
        Output::Json => println!(
            "{}",
            json!({
                "preset": args.preset.name(), "device": device_name, "width": width, "height": height, "steps": steps,
                "batch": args.batch, "seconds_each": each, "memory_bytes": memory_bytes, "pairs": args.pairs,
                "acceptance": args.acceptance, "devices": args.devices, "hours": hours,
            })
        ),
        Output::Table => println!(
            "{} on {device_name}: {width}×{height}, {steps} steps: {each:.2} s a drawing, {:.1} GB\n\
             {} pairs, of which {:.0} % of the drawings become one, on {} devices: {hours:.1} hours",
            args.preset.name(),
            memory_bytes as f64 / 1e9,
            args.pairs,
            100.0 * args.acceptance,
            args.devices
        ),
    }
    Ok(())
}
