//! `train-encoder`: trains the nano image encoders, those that filter and those that measure drawings.
//!
//! Panels that show the same are to be closer to each other than to panels that show something else: NT-Xent (SimCLR, arXiv
//! 2002.05709), directly on the vectors that are compared later. What *the same* is makes the encoder ([`Reads`]): the
//! subject, in other scenes, places, sizes and directions; its colours alone; its outline alone; or its place, size and
//! direction, in other scenes. The prompt's encoder learns the vectors of phrases instead, for the scene, the place and the
//! number of subjects. Views are blurred and made noisy at random, since what a model draws is softer than what is composed.
//! Subjects that are held out are only used to measure.

mod measuring;
mod objectives;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use crescendo_core::spec::{ComposeLayout, ComposeSpec};
use crescendo_curator_node::rng::SeededRng;
use crescendo_curator_node::sources::compose::Composer;
use crescendo_model::dinov2::{DinoV2, DinoV2Config, normalised};
use crescendo_model::tch::{self, COptimizer, Kind, Tensor};
use crescendo_model::weights;
use image::RgbImage;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::measures::phrases;
use crate::measures::views::{View, planar};
use objectives::Batches;

/// What an encoder tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reads {
    /// Subjects, wherever they are
    Subject,
    /// Subjects by their colours alone
    Colour,
    /// Subjects by their brightness alone: outline and inner edges
    Outline,
    /// How a subject sits in the picture: place, size and direction, in whatever scene
    Layout,
    /// What a prompt asks beside subjects: scene, place and number
    Prompt,
}

impl Reads {
    /// What it sees of a picture.
    pub fn view(self) -> View {
        match self {
            Reads::Subject | Reads::Layout | Reads::Prompt => View::Whole,
            Reads::Colour => View::Colour,
            Reads::Outline => View::Outline,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Reads::Subject => "subject",
            Reads::Colour => "colour",
            Reads::Outline => "outline",
            Reads::Layout => "layout",
            Reads::Prompt => "prompt",
        }
    }

    /// Channels of its vectors.
    fn width(self) -> i64 {
        match self {
            Reads::Prompt => phrases::WIDTH as i64,
            _ => DinoV2Config::nano().hidden_size,
        }
    }
}

/// Train a nano image encoder (DINOv2's architecture) on the subjects that are not held out
#[derive(Args, Clone, Debug)]
pub struct TrainEncoderArgs {
    /// What it is to tell apart
    #[arg(long, value_enum, default_value = "subject")]
    pub reads: Reads,
    /// Subject library: a folder with index.json and cut-outs
    #[arg(long, default_value = ".deps/demo/subjects")]
    pub subjects: PathBuf,
    /// Photographs used as scenes
    #[arg(long, default_value = ".deps/demo/photos")]
    pub photos: PathBuf,
    /// Every n-th subject is held out; must be what the jobs use
    #[arg(long, default_value_t = 12)]
    pub hold_out_one_in: u32,
    /// Height and width of a panel, pixels
    #[arg(long, default_value_t = 32)]
    pub panel: u32,
    #[arg(long, default_value_t = 1500)]
    pub steps: u64,
    /// Subjects per step, each in two panels; for `prompt` half the panels of a step
    #[arg(long, default_value_t = 96)]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// Softmax temperature of the loss
    #[arg(long, default_value_t = 0.1)]
    pub temperature: f64,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Weight file to write; the figures go beside it as .json
    #[arg(long, default_value = "assets/nano/dinov2-nano.safetensors")]
    pub out: PathBuf,
    /// Write the weights in bfloat16
    #[arg(long)]
    pub bf16: bool,
}

const WARMUP_STEPS: u64 = 50;
const WEIGHT_DECAY: f64 = 0.05;

/// Trains, measures, writes the weights and the figures.
pub fn run(args: &TrainEncoderArgs) -> Result<()> {
    ensure!(args.batch >= 2 && args.steps >= 1, "batch must be at least 2 and steps at least 1");
    tch::set_num_threads(1);
    let spec = ComposeSpec {
        subjects: args.subjects.display().to_string(),
        photos: Some(args.photos.display().to_string()),
        layout: ComposeLayout::Single,
        panel: args.panel,
        name_share: 1.0,
        hold_out: Vec::new(),
        hold_out_one_in: args.hold_out_one_in,
    };
    let composer = Composer::open(&spec, 1, args.seed, 0, std::path::Path::new(""))
        .context("open the subject library")?;
    let config = DinoV2Config {
        image_size: i64::from(args.panel),
        hidden_size: args.reads.width(),
        ..DinoV2Config::nano()
    };
    let network = DinoV2::fresh(config, args.seed)?;
    let start = Instant::now();
    let losses = train(args, &composer, &network)?;
    let seconds = start.elapsed().as_secs_f64();
    let figures = measuring::measure(args.reads, &composer, &network, 2000)?;
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let mut saved = network.weights().iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
    let saved = if args.bf16 {
        saved.map(|(name, tensor)| Ok((name, tensor.f_to_kind(Kind::BFloat16)?))).collect::<Result<_>>()?
    } else {
        saved.by_ref().collect()
    };
    let strings = BTreeMap::from([("crescendo_reads".to_owned(), args.reads.word().to_owned())]);
    weights::save(&args.out, &saved, &network.file_strings(&strings))?;
    let report = json!({
        "architecture": network.config(),
        "parameters": network.weights().values().map(Tensor::numel).sum::<usize>(),
        "data": {
            "subjects": args.subjects, "photos": args.photos, "panel": args.panel, "hold_out_one_in": args.hold_out_one_in,
            "training_subjects": composer.training_subjects().len(), "held_out_subjects": composer.held_out_subjects().len(),
        },
        "training": {
            "objective": objectives::words(args.reads), "seed": args.seed, "steps": args.steps,
            "subjects_per_step": args.batch, "learning_rate": args.learning_rate, "warmup_steps": WARMUP_STEPS,
            "weight_decay": WEIGHT_DECAY, "temperature": args.temperature, "seconds": seconds.round(),
            "loss": losses,
        },
        "held_out": figures,
    });
    let path = args.out.with_extension("json");
    std::fs::write(&path, format!("{report:#}\n")).with_context(|| format!("write {}", path.display()))?;
    println!("{report:#}");
    Ok(())
}

/// Trains in place; gives the mean loss of each twentieth of the steps.
fn train(args: &TrainEncoderArgs, composer: &Composer, network: &DinoV2) -> Result<Vec<f64>> {
    let mut optimizer = COptimizer::adamw(args.learning_rate, 0.9, 0.98, WEIGHT_DECAY, 1e-8, false)?;
    for tensor in network.weights().values() {
        optimizer.add_parameters(&tensor.f_set_requires_grad(true)?, 0)?;
    }
    let mut batches = Batches::new(args, composer);
    let every = (args.steps / 20).max(1);
    let (mut losses, mut sum) = (Vec::new(), 0.0);
    for step in 0..args.steps {
        let batch = batches.next(step)?;
        let side = i64::from(args.panel);
        let pixels = Tensor::f_from_slice(&batch.pixels)?.f_view([-1, 3, side, side])?;
        let vectors = network.forward(&normalised(&pixels)?)?.pooled;
        let loss = batch.wanted.loss(&vectors, args.temperature)?;
        optimizer.zero_grad()?;
        loss.f_backward()?;
        optimizer.set_learning_rate(rate(args.learning_rate, step, args.steps))?;
        optimizer.step()?;
        sum += loss.f_double_value(&[])?;
        if (step + 1) % every == 0 {
            let mean = sum / every as f64;
            eprintln!("step {} of {}: loss {mean:.4}", step + 1, args.steps);
            losses.push((mean * 1e4).round() / 1e4);
            sum = 0.0;
        }
    }
    for tensor in network.weights().values() {
        let _ = tensor.f_set_requires_grad(false)?;
    }
    Ok(losses)
}

/// Linear warm-up, then half a cosine down to a hundredth.
fn rate(peak: f64, step: u64, steps: u64) -> f64 {
    let warm = (step + 1) as f64 / WARMUP_STEPS as f64;
    let done = step as f64 / steps as f64;
    peak * warm.min(1.0) * (0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// Planar RGB in `[0, 1]` of a panel that is blurred, noisy, darker or paler, or none of it, at random.
fn softened(panel: &RgbImage, draw: &mut SeededRng) -> Vec<f32> {
    let mut planes = planar(panel);
    let (width, height) = (panel.width() as usize, panel.height() as usize);
    if draw.chance(0.4) {
        for _ in 0..1 + draw.below(2) {
            for plane in planes.chunks_exact_mut(width * height) {
                blur(plane, width, height);
            }
        }
    }
    let noise = if draw.chance(0.4) { draw.range(0.0, 0.08) } else { 0.0 };
    let (gain, lift) =
        if draw.chance(0.4) { (draw.range(0.8, 1.15), draw.range(-0.06, 0.06)) } else { (1.0, 0.0) };
    for value in &mut planes {
        // The sum of three uniform draws is close enough to normal here.
        let grain =
            if noise > 0.0 { (draw.unit() + draw.unit() + draw.unit() - 1.5) * 2.0 * noise } else { 0.0 };
        *value = (*value * gain + lift + grain).clamp(0.0, 1.0);
    }
    planes
}

/// Blurs a plane with the weights 1 2 1 along both axes; the edge repeats.
fn blur(plane: &mut [f32], width: usize, height: usize) {
    let source = plane.to_vec();
    for y in 0..height {
        for x in 0..width {
            let mut sum = 0.0;
            for (dy, down) in [(y.saturating_sub(1), 1.0), (y, 2.0), ((y + 1).min(height - 1), 1.0)] {
                for (dx, across) in [(x.saturating_sub(1), 1.0), (x, 2.0), ((x + 1).min(width - 1), 1.0)] {
                    sum += source[dy * width + dx] * down * across;
                }
            }
            plane[y * width + x] = sum / 16.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blur_keeps_the_mean_and_flattens() {
        let mut plane = vec![0.0; 64];
        plane[27] = 1.0;
        blur(&mut plane, 8, 8);
        assert!((plane.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((plane[27] - 0.25).abs() < 1e-6);
    }

    #[test]
    fn the_rate_warms_up_and_falls() {
        assert!(rate(1.0, 0, 1000) < 0.03);
        assert!(rate(1.0, 49, 1000) > 0.98);
        assert!(rate(1.0, 999, 1000) < 0.02);
    }
}
