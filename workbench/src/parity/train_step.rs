//! Kind `train_step`: optimizer steps of adapter training, accumulated and data-parallel ones included.
//!
//! A fixture of one rank is computed here. One of several ranks is computed by as many processes of this
//! program, which average their gradients over Gloo bucket by bucket while the backward pass runs, as
//! training does; each writes what it saw to a file, and the files are compared here.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crescendo_collective::{PendingReduce, ProcessGroup, ReduceOp};
use crescendo_model::schedule::training_table;
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::training::{
    AdamW, AdamWConfig, Clip, Ema, MicroBatch, MicroOutcome, TrainOptions, TrainStep, Update,
};
use crescendo_model::weights::{TensorFile, TensorMap};
use crescendo_model::{Flux, LoraAdapter, packing};
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;
use super::ranks;

/// Longest wait for one collective operation.
const COLLECTIVE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Deserialize)]
struct Train {
    ranks: usize,
    accum: usize,
    steps: u64,
    record: Vec<u64>,
    #[serde(default)]
    resolution: Option<i64>,
}

#[derive(Clone, Deserialize)]
struct Optimizer {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    ema_decay: f64,
}

/// Bounds on what a sidecar may ask for.
const MOST_RANKS: usize = 16;
const MOST_STEPS: u64 = 10_000;

fn read_train(fixture: &Fixture) -> anyhow::Result<Train> {
    let train: Train = fixture.part("train")?;
    ensure!(
        (1..=MOST_RANKS).contains(&train.ranks),
        "train.ranks {} is not within 1..={MOST_RANKS}",
        train.ranks
    );
    ensure!(
        (1..=MOST_STEPS).contains(&train.steps),
        "train.steps {} is not within 1..={MOST_STEPS}",
        train.steps
    );
    ensure!(train.accum >= 1, "train.accum is 0");
    Ok(train)
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let train = read_train(fixture)?;
    let mut results = if train.ranks == 1 {
        vec![run_rank(fixture, &ProcessGroup::solo(fixture.device))?]
    } else {
        // Several ranks meet over Gloo, on CPUs: one GPU is no place for a group of them.
        let folder = tempfile::tempdir().context("create a temporary folder")?;
        let files = ranks::run(&fixture.path, train.ranks, folder.path())?;
        files.iter().map(|file| Ok(TensorFile::open(file)?.all()?)).collect::<anyhow::Result<Vec<_>>>()?
    };
    let first = results.remove(0);
    for (rank, result) in results.iter().enumerate() {
        for (name, tensor) in result {
            if name.contains(&format!(".rank{}.", rank + 1)) {
                checks.compare(name, tensor)?;
            } else if let Some(expected) = first.get(name) {
                // Every rank must hold bit for bit the same adapter after every step.
                checks.equal(
                    &format!("rank{}.agrees.{}", rank + 1, name.trim_start_matches("out.")),
                    tensor,
                    expected,
                )?;
            }
        }
    }
    for (name, tensor) in &first {
        checks.compare(name, tensor)?;
    }
    Ok(())
}

/// The mean over the micro-batches of all ranks.
fn mean_loss(outcomes: &[MicroOutcome], group: &ProcessGroup) -> anyhow::Result<f64> {
    let losses: Vec<f64> =
        outcomes.iter().map(|outcome| outcome.loss.f_double_value(&[])).collect::<Result<_, _>>()?;
    let everyones: Vec<f64> = group.all_gather_f64(&losses, COLLECTIVE_TIMEOUT)?.concat();
    ensure!(!everyones.is_empty(), "no micro-batch gave a loss");
    Ok(everyones.iter().sum::<f64>() / everyones.len() as f64)
}

/// Notes the loss of a micro-batch, and with a device all that it was made of.
fn note_micro(
    batch: &MicroBatch,
    outcome: MicroOutcome,
    all_on: Option<Device>,
    here: &str,
    results: &mut TensorMap,
) -> anyhow::Result<()> {
    results.insert(format!("{here}.loss"), outcome.loss);
    if let Some(device) = all_on {
        let noised = batch.noised(device)?;
        results.insert(format!("{here}.t"), batch.times.shallow_clone());
        results.insert(format!("{here}.x_t"), noised.x_t);
        results.insert(format!("{here}.target"), noised.velocity);
        results.insert(format!("{here}.pred"), outcome.prediction);
    }
    Ok(())
}

/// Notes the averaged weights and the optimizer's state.
fn note_state(
    ema: &Ema,
    adamw: &AdamW,
    train_step: &TrainStep,
    prefix: &str,
    results: &mut TensorMap,
) -> anyhow::Result<()> {
    for (name, value) in ema.export(train_step.params())? {
        results.insert(format!("{prefix}.ema.{name}"), value);
    }
    for (name, value) in adamw.export(train_step.params())? {
        results.insert(format!("{prefix}.{name}"), value);
    }
    Ok(())
}

/// Notes a rank's own gradients, by bucket, and those of all ranks.
fn note_gradients(
    train_step: &TrainStep,
    own: Vec<(usize, Tensor)>,
    own_prefix: &str,
    prefix: &str,
    results: &mut TensorMap,
) -> anyhow::Result<()> {
    for (bucket, flat) in own {
        for (name, grad) in train_step.params().named(bucket, &flat)? {
            results.insert(format!("{own_prefix}.grad.{name}"), grad);
        }
    }
    for (name, grad) in train_step.params().grads()? {
        results.insert(format!("{prefix}.grad.{name}"), grad);
    }
    Ok(())
}

/// One rank's part of the fixture: results under their `out.` names.
pub fn run_rank(fixture: &Fixture, group: &ProcessGroup) -> anyhow::Result<TensorMap> {
    let config = fixture.config()?;
    let train = read_train(fixture)?;
    let optimizer: Optimizer = fixture.part("optimizer")?;
    let resolution = match train.resolution {
        Some(resolution) => resolution,
        None => fixture.part("resolution")?,
    };
    let table = training_table(resolution)?;
    let flux =
        Flux::from_tensors(&config, fixture.group("model.")?, &fixture.name, Kind::Float, fixture.device)?;
    let adapter = LoraAdapter::from_tensors(
        &config,
        fixture.group("lora.")?,
        &fixture.name,
        Kind::Float,
        fixture.device,
    )?;
    let mut train_step = TrainStep::for_adapter(flux, adapter, TrainOptions::default())?;
    let settings = AdamWConfig {
        beta1: optimizer.betas[0],
        beta2: optimizer.betas[1],
        eps: optimizer.eps,
        weight_decay: optimizer.weight_decay,
    };
    let mut adamw = AdamW::new(settings, train_step.params())?;
    let mut ema = Ema::new(optimizer.ema_decay, train_step.params())?;
    let (rank, world) = (group.rank(), group.world());
    let mut results = TensorMap::new();
    for step in 1..=train.steps {
        let prefix = format!("out.step{step}");
        let here = format!("in.step{step}.rank{rank}");
        let micros = (0..train.accum)
            .map(|micro| read_micro(fixture, &format!("{here}.micro{micro}"), &table, train.accum * world))
            .collect::<anyhow::Result<Vec<_>>>()?;

        // Each bucket is summed while the block before it goes backward; the losses' weights make that the mean.
        let mut own = Vec::new();
        let mut pending: Vec<PendingReduce> = Vec::new();
        let outcomes = train_step.gradients(
            &micros,
            Some(&mut |bucket, grads: &Tensor| {
                if step == 1 {
                    own.push((bucket, grads.f_mul_scalar(world as f64)?));
                }
                pending.push(group.all_reduce_async(grads, ReduceOp::Sum, COLLECTIVE_TIMEOUT)?);
                Ok(())
            }),
        )?;
        for reduce in pending {
            reduce.wait(COLLECTIVE_TIMEOUT)?;
        }

        let logged = mean_loss(&outcomes, group)?;
        results.insert(format!("{prefix}.logged_loss"), Tensor::from(logged as f32));
        for (micro, (batch, outcome)) in micros.iter().zip(outcomes).enumerate() {
            let here = format!("{prefix}.rank{rank}.micro{micro}");
            note_micro(batch, outcome, (step == 1).then_some(fixture.device), &here, &mut results)?;
        }
        if step == 1 {
            note_gradients(&train_step, own, &format!("{prefix}.rank{rank}"), &prefix, &mut results)?;
        }
        let norm = train_step.params().grad_norm()?;
        let clip = Some(Clip { norm: &norm, max_norm: optimizer.max_grad_norm });
        let update = Update { rate: optimizer.lr, clip, ema: Some(&mut ema) };
        adamw.step(train_step.params_mut(), update)?;
        results.insert(format!("{prefix}.grad_norm"), norm);
        if train.record.contains(&step) || step == train.steps {
            for (name, value) in train_step.params().values()? {
                results.insert(format!("{prefix}.lora.{name}"), value);
            }
        }
        if step == train.steps {
            note_state(&ema, &adamw, &train_step, &prefix, &mut results)?;
        }
    }
    Ok(results)
}

/// One of `parts` micro-batches of the step, over all ranks.
fn read_micro(fixture: &Fixture, prefix: &str, table: &Tensor, parts: usize) -> anyhow::Result<MicroBatch> {
    let get = |name: &str| fixture.tensor(&format!("{prefix}.{name}"));
    let indices = get("t_index")?;
    let last = table.size().first().copied().unwrap_or(0) - 1;
    let (low, high) = (indices.f_min()?.f_int64_value(&[])?, indices.f_max()?.f_int64_value(&[])?);
    if low < 0 || high > last {
        bail!("{prefix}.t_index reaches from {low} to {high}, the table from 0 to {last}");
    }
    let latents = get("x1")?;
    ensure!(
        packing::pack(&latents)?.size() == fixture.shape(&format!("{prefix}.x0"))?,
        "{prefix}.x0 does not fit x1"
    );
    Ok(MicroBatch {
        latents,
        refs: fixture.numbered(&format!("{prefix}.ref"))?,
        txt: get("txt")?,
        vec: get("vec")?,
        noise: get("x0")?,
        times: table.f_index_select(0, &indices.f_to_device(table.device())?)?.f_to_device(fixture.device)?,
        weight: 1.0 / parts as f64,
    })
}

/// Runs one rank and writes its results to `out`.
pub fn write_rank(sidecar: &Path, group: &ProcessGroup, out: &Path) -> anyhow::Result<()> {
    let fixture = Fixture::open(sidecar, Device::Cpu)?;
    let results = run_rank(&fixture, group)?;
    crescendo_model::weights::save(out, &results, &Default::default())?;
    Ok(())
}
