//! `train-encoder`: trains the nano image encoder on two views of each training subject.
//!
//! Two panels of one subject, in other scenes, places, sizes and directions, are to be closer to each other than to the
//! panels of other subjects: NT-Xent (SimCLR, arXiv 2002.05709), directly on the vectors that are compared later. Views
//! are blurred and made noisy at random, since what a model draws is softer than what is composed. Subjects that are
//! held out are only used to measure.

use anyhow::{Context, Result, ensure};
use clap::Args;
use crescendo_core::spec::{ComposeLayout, ComposeSpec};
use crescendo_curator_node::filters::similarity::describe;
use crescendo_curator_node::rng::SeededRng;
use crescendo_curator_node::sources::compose::{Composer, EvalSet};
use crescendo_model::dinov2::{DinoV2, DinoV2Config, normalised};
use crescendo_model::tch::{self, COptimizer, Device, Kind, Tensor};
use crescendo_model::weights;
use image::RgbImage;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Train the nano image encoder (DINOv2's architecture) on the subjects that are not held out
#[derive(Args, Clone, Debug)]
pub struct TrainEncoderArgs {
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
    /// Subjects per step; each gives two panels
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
    let config = DinoV2Config { image_size: i64::from(args.panel), ..DinoV2Config::nano() };
    let network = DinoV2::fresh(config, args.seed)?;
    let start = Instant::now();
    let losses = train(args, &composer, &network)?;
    let seconds = start.elapsed().as_secs_f64();
    let figures = measure(&composer, &network, 2000)?;
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    weights::save(&args.out, network.weights(), &network.file_strings(&BTreeMap::new()))?;
    let report = json!({
        "architecture": network.config(),
        "parameters": network.weights().values().map(Tensor::numel).sum::<usize>(),
        "data": {
            "subjects": args.subjects, "photos": args.photos, "panel": args.panel, "hold_out_one_in": args.hold_out_one_in,
            "training_subjects": composer.training_subjects().len(), "held_out_subjects": composer.held_out_subjects().len(),
        },
        "training": {
            "objective": "NT-Xent between two composed panels of a training subject", "seed": args.seed, "steps": args.steps,
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
    let subjects = composer.training_subjects().len();
    let batch = args.batch.min(subjects);
    let mut order: Vec<usize> = (0..subjects).collect();
    let mut next = subjects;
    let mut shuffling = SeededRng::new("encoder order", &[args.seed]);
    let every = (args.steps / 20).max(1);
    let (mut losses, mut sum) = (Vec::new(), 0.0);
    for step in 0..args.steps {
        if next + batch > subjects {
            shuffling.shuffle(&mut order);
            next = 0;
        }
        let mut panels = [Vec::new(), Vec::new()];
        for subject in &order[next..next + batch] {
            let views = composer.training_views(*subject, step)?;
            for (side, (view, of)) in views.iter().zip(&mut panels).enumerate() {
                let mut draw =
                    SeededRng::new("encoder view", &[args.seed, step, *subject as u64, side as u64]);
                of.push(softened(view, &mut draw));
            }
        }
        next += batch;
        let all: Vec<f32> = panels.concat().concat();
        let pixels = Tensor::f_from_slice(&all)?.f_view([
            2 * batch as i64,
            3,
            i64::from(args.panel),
            i64::from(args.panel),
        ])?;
        let loss = contrast(&network.forward(&normalised(&pixels)?)?.pooled, args.temperature)?;
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

/// NT-Xent of vectors `[2 * n, width]`, where n and n + i show the same subject.
fn contrast(vectors: &Tensor, temperature: f64) -> Result<Tensor> {
    let count = vectors.size().first().copied().unwrap_or(0);
    let length = vectors.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?.f_clamp_min(1e-6)?;
    let unit = vectors.f_div(&length)?;
    let own = Tensor::f_eye(count, (Kind::Float, Device::Cpu))?.f_mul_scalar(1e9)?;
    let scores = unit.f_matmul(&unit.f_transpose(0, 1)?)?.f_div_scalar(temperature)?.f_sub(&own)?;
    let half = count / 2;
    let partner: Vec<i64> = (0..count).map(|n| (n + half) % count).collect();
    Ok(scores.f_cross_entropy_loss::<Tensor>(
        &Tensor::f_from_slice(&partner)?,
        None,
        tch::Reduction::Mean,
        -100,
        0.0,
    )?)
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

fn planar(panel: &RgbImage) -> Vec<f32> {
    let mut planes = Vec::with_capacity(panel.as_raw().len());
    for channel in 0..3 {
        planes.extend(panel.pixels().map(|pixel| f32::from(pixel.0[channel]) / 255.0));
    }
    planes
}

/// How well the encoder tells held-out subjects apart: the ceiling of every score read with it.
fn measure(composer: &Composer, network: &DinoV2, cases: usize) -> Result<serde_json::Value> {
    let set = composer.eval_set(cases, 1, 16, 0).context("make evaluation cases")?;
    let gallery = describe(network, &set.gallery.iter().map(|g| &g.panel).collect::<Vec<_>>())?;
    let right_of = |pictures: Vec<&RgbImage>| -> Result<(f64, Vec<Vec<f64>>)> {
        let cosines: Vec<Vec<f64>> = describe(network, &pictures)?
            .iter()
            .map(|picture| gallery.iter().map(|g| dot(picture, g)).collect())
            .collect();
        Ok((share_right(&set, &cosines), cosines))
    };
    let (accuracy, cosines) = right_of(set.cases.iter().map(|c| &c.truth).collect())?;
    let blurred: Vec<RgbImage> = set.cases.iter().map(|c| image::imageops::blur(&c.truth, 1.0)).collect();
    let (accuracy_blurred, _) = right_of(blurred.iter().collect())?;
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for (n, case) in set.cases.iter().enumerate() {
        for (column, cosine) in cosines[n].iter().copied().enumerate() {
            if case.subjects.contains(&column) { same.push(cosine) } else { other.push(cosine) }
        }
    }
    let error = (accuracy * (1.0 - accuracy) / cases as f64).sqrt();
    Ok(json!({
        "cases": cases, "choices": 16, "chance": 1.0 / 16.0,
        "nearest_of_16": rounded(accuracy), "standard_error": rounded(error),
        "nearest_of_16_blurred": rounded(accuracy_blurred),
        "cosine_same_subject": distribution(same), "cosine_other_subject": distribution(other),
    }))
}

/// Share of cases whose nearest choice is the right one.
fn share_right(set: &EvalSet, cosines: &[Vec<f64>]) -> f64 {
    let mut right = 0usize;
    for (n, case) in set.cases.iter().enumerate() {
        let mut best = (f64::NEG_INFINITY, usize::MAX);
        for choice in &case.choices[0] {
            let cosine = cosines[n][*choice];
            if cosine > best.0 {
                best = (cosine, *choice);
            }
        }
        right += usize::from(best.1 == case.subjects[0]);
    }
    right as f64 / set.cases.len().max(1) as f64
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn distribution(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let at =
        |share: f64| values.get(((values.len().max(1) - 1) as f64 * share) as usize).copied().map(rounded);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    json!({ "mean": rounded(mean), "p01": at(0.01), "p05": at(0.05), "p25": at(0.25), "p50": at(0.5), "p75": at(0.75), "p95": at(0.95), "p99": at(0.99) })
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_small_when_partners_agree() {
        let apart = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let agreeing = Tensor::cat(&[&apart, &apart], 0);
        let crossed = Tensor::cat(&[&apart, &apart.roll([1], [0])], 0);
        let loss = |vectors: &Tensor| contrast(vectors, 0.1).expect("loss").double_value(&[]);
        assert!(loss(&agreeing) < 0.01, "{}", loss(&agreeing));
        assert!(loss(&crossed) > 5.0, "{}", loss(&crossed));
    }

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
