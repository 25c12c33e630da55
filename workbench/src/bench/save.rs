//! `bench save`: how long training is held up by a checkpoint, and what memory that takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{ADAPTER_FILE, OPTIMIZER_FILE};
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::training::snapshot::{Hold, Reader, SnapshotLimits, copier, snapshot_bytes, take};
use crescendo_model::training::{AdamW, AdamWConfig, Clip, TrainOptions, TrainStep, Update};
use crescendo_model::weights::{TensorMap, published_strings, to_bytes};
use crescendo_model::{BlockSelection, Flux, LoraAdapter, Preset};
use crescendo_node::objects::upload::{Piece, put, upload};
use crescendo_node::runtime::background::Background;
use object_store::ObjectStore;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::peak;
use super::step::random_nano_batch;
use crate::parity::Output;

/// Flags of `bench save`.
#[derive(Debug, Args)]
#[command(
    after_help = "The stall of a save is the time in its own call and, of the step after it, what is more than the median \
                  of the steps without one. Alone: in processor time of its thread, as on a machine with \
                  nothing else to do.\n\nExamples:\n  crescendo bench save --size 0.3\n  crescendo bench save --how whole"
)]
pub struct SaveArgs {
    /// Adapter and optimizer together, GB: sets the adapter's rank
    #[arg(long, value_name = "GB", default_value_t = 3.0)]
    size: f64,
    /// Samples a step
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i64).range(1..=64))]
    batch: i64,
    /// CPU threads of the step
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: i32,
    /// cpu, cuda, or cuda:INDEX: where the tensors are
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// Saves that are timed
    #[arg(long, default_value_t = 10)]
    saves: usize,
    /// Folder for the checkpoints, each of which replaces the one before [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// During the next step, as ranks do it; or as whole copies before it
    #[arg(long, value_enum, default_value_t = How::Streamed)]
    how: How,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
enum How {
    Streamed,
    Whole,
}

/// What was measured; times in seconds.
#[derive(Debug, Serialize)]
struct Outcome {
    how: How,
    tensors_bytes: u64,
    /// Highest resident memory from the first save on, above that of a step without one.
    memory_above_bytes: u64,
    step_median: f64,
    /// Of each save.
    stalls: Vec<f64>,
    /// The part of each that the training thread knows of: in the save's own call, and waiting for the copy.
    held_up: Vec<f64>,
    stall_p50: f64,
    stall_p99: f64,
    /// What the same rule gives for steps without a save: the machine's own noise.
    noise_p99: f64,
    /// The stall where nothing else wants the cores: what it is held up, and what the step after takes of its thread's
    /// processor time above the median.
    stall_alone_p50: f64,
    stall_alone_p99: f64,
    noise_alone_p99: f64,
    held_up_p99: f64,
    save_median: f64,
}

/// What trains.
struct Trained {
    step: TrainStep,
    optimizer: AdamW,
}

/// What a save runs on.
struct Runtimes<'a> {
    copying: &'a Handle,
    writing: &'a Handle,
}

/// A save under way.
struct Saving {
    hold: Option<Hold>,
    tasks: JoinSet<Result<()>>,
    began: Instant,
}

/// Runs `bench save`.
pub fn run(args: &SaveArgs) -> Result<()> {
    ensure!(args.size > 0.0 && args.size <= 64.0, "--size is not within 0..=64 GB");
    ensure!(args.saves > 0, "--saves must be positive");
    crescendo_model::tch::set_num_threads(args.threads);
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let place = std::path::absolute(args.folder.as_deref().unwrap_or(folder.path()))?;
    let store = crescendo_node::objects::open(&format!("file://{}", place.display()))?;
    // As ranks have them: one for copying, and one that gives way.
    let copying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let background = Background::start("save")?;
    let runtimes =
        Runtimes { copying: copying.handle(), writing: background.handle().context("it has begun")? };
    crescendo_device::open(args.device)?;
    let mut trained = trained(args.size, args.device)?;
    let tensors_bytes = snapshot_bytes(trained.step.params(), None);

    // What the first steps take once and keep is not the saves' own.
    one_step(&mut trained, args.batch, &mut None)?;
    forget_peak()?;
    let mut plain = vec![one_step(&mut trained, args.batch, &mut None)?];
    let before = peak::memory_bytes(Device::Cpu)?;
    forget_peak()?;
    let (mut calls, mut after, mut saves) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.saves {
        let began = Instant::now();
        let mut saving = match args.how {
            How::Streamed => start_streamed(&trained, args.device, &store, &runtimes)?,
            How::Whole => start_whole(&trained, &store, &runtimes)?,
        };
        calls.push(began.elapsed().as_secs_f64());
        after.push(one_step(&mut trained, args.batch, &mut saving.hold)?);
        // As ranks do: the next save begins once this one is done.
        while !saving.tasks.is_empty() {
            if let Some(done) = saving.tasks.try_join_next() {
                done.context("a save's task ended")??;
                saves.push(saving.began.elapsed().as_secs_f64());
            } else {
                one_step(&mut trained, args.batch, &mut saving.hold)?;
            }
        }
        plain.push(one_step(&mut trained, args.batch, &mut None)?);
        plain.push(one_step(&mut trained, args.batch, &mut None)?);
    }
    let memory_above_bytes = peak::memory_bytes(Device::Cpu)?.saturating_sub(before);
    let measured = Measured { plain, calls, after, saves };
    print(args.output, &measured.outcome(args.how, tensors_bytes, memory_above_bytes))
}

/// Times of steps without a save, of the saves' calls, of the steps after these, and of whole saves.
struct Measured {
    plain: Vec<StepTime>,
    calls: Vec<f64>,
    after: Vec<StepTime>,
    saves: Vec<f64>,
}

impl Measured {
    fn outcome(&self, how: How, tensors_bytes: u64, memory_above_bytes: u64) -> Outcome {
        let of = |time: fn(&StepTime) -> f64| -> (f64, Vec<f64>, Vec<f64>) {
            let plain: Vec<f64> = self.plain.iter().map(time).collect();
            let median = percentile(&plain, 0.5);
            let above = |seconds: f64| (seconds - median).max(0.0);
            let noise = plain.into_iter().map(above).collect();
            (median, noise, self.after.iter().map(|step| above(time(step))).collect())
        };
        let plus = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let waited: Vec<f64> = self.after.iter().map(|step| step.waited).collect();
        let held_up = plus(&self.calls, &waited);
        let (step_median, noise, slower) = of(|step| step.wall);
        let (_, noise_alone, slower_alone) = of(|step| step.thread);
        let stalls = plus(&self.calls, &slower);
        let alone = plus(&held_up, &slower_alone);
        Outcome {
            how,
            tensors_bytes,
            memory_above_bytes,
            step_median,
            stall_p50: percentile(&stalls, 0.5),
            stall_p99: percentile(&stalls, 0.99),
            noise_p99: percentile(&noise, 0.99),
            stall_alone_p50: percentile(&alone, 0.5),
            stall_alone_p99: percentile(&alone, 0.99),
            noise_alone_p99: percentile(&noise_alone, 0.99),
            held_up_p99: percentile(&held_up, 0.99),
            save_median: percentile(&self.saves, 0.5),
            stalls,
            held_up,
        }
    }
}

/// A nano network with an adapter whose values and moments have `gigabytes`.
fn trained(gigabytes: f64, device: Device) -> Result<Trained> {
    let config = Preset::Nano.config();
    let all = BlockSelection::all(&config);
    let of_rank = |rank: i64| -> Result<i64> {
        let layout = LoraAdapter::layout(&config, rank, &all)?;
        Ok(layout.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum())
    };
    let wanted = gigabytes * 1e9 / 12.0;
    let rank = ((wanted / of_rank(1)? as f64).round() as i64).max(1);
    let values = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, device))?.f_mul_scalar(0.01);
    let tensors = LoraAdapter::layout(&config, rank, &all)?
        .into_iter()
        .map(|(name, shape)| Ok((name, values(&shape)?)))
        .collect::<Result<TensorMap>>()?;
    let flux = Flux::init(&config, 0, Kind::Float, device)?;
    let adapter = LoraAdapter::from_tensors(&config, tensors, "noise", Kind::Float, device)?;
    let step = TrainStep::for_adapter(flux, adapter, TrainOptions::default())?;
    let optimizer = AdamW::new(AdamWConfig::default(), step.params())?;
    Ok(Trained { step, optimizer })
}

/// What a step took, seconds.
#[derive(Clone, Copy, Debug)]
struct StepTime {
    wall: f64,
    /// Processor time of the training thread.
    thread: f64,
    /// Wait for copies.
    waited: f64,
}

/// Trains one step.
fn one_step(trained: &mut Trained, batch: i64, hold: &mut Option<Hold>) -> Result<StepTime> {
    let batch = random_nano_batch(batch)?;
    let (began, thread_began) = (Instant::now(), thread_seconds());
    let mut waited = 0.0;
    trained.step.gradients(&[batch], None)?;
    let norm = trained.step.params().grad_norm()?;
    let update = Update { clip: Some(Clip { norm: &norm, max_norm: 1.0 }), ..Update::at(1e-6) };
    trained.optimizer.step_after(trained.step.params_mut(), update, &mut |bucket| {
        if let Some(hold) = hold {
            waited += hold.before_change(bucket)?.waited.as_secs_f64();
        }
        Ok(())
    })?;
    *hold = None;
    crescendo_device::choice::wait(trained.step.flux().device());
    Ok(StepTime { wall: began.elapsed().as_secs_f64(), thread: thread_seconds() - thread_began, waited })
}

/// Processor time of this thread so far.
fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn start_streamed(
    trained: &Trained,
    device: Device,
    store: &Arc<dyn ObjectStore>,
    runtimes: &Runtimes<'_>,
) -> Result<Saving> {
    let began = Instant::now();
    let params = trained.step.params();
    let free_bytes = match device {
        Device::Cpu => 0,
        _ => crescendo_device::cuda::memory()?.free_bytes,
    };
    let limits = SnapshotLimits::new(snapshot_bytes(params, None), device, free_bytes);
    let (hold, reader) = take(params, &trained.optimizer, None, ADAPTER_FILE, limits)?;
    let store = Arc::clone(store);
    let mut tasks = JoinSet::new();
    tasks.spawn_on(stream(reader, device, store, runtimes.copying.clone()), runtimes.writing);
    Ok(Saving { hold: Some(hold), tasks, began })
}

async fn stream(
    mut reader: Reader,
    device: Device,
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
) -> Result<()> {
    let names: Vec<&str> = reader.files().iter().map(|file| file.name).collect();
    let (copied, mut pieces) = mpsc::channel(reader.chunks().max(1));
    let copying = runtime.spawn_blocking(move || -> Result<()> {
        let mut copier = copier(device)?;
        while let Some(chunk) = reader.next_chunk(copier.as_mut())? {
            let is_last = chunk.is_last_of_file;
            copied.blocking_send(Piece { bytes: bytes::Bytes::from_owner(chunk), is_last })?;
        }
        Ok(())
    });
    for name in names {
        upload(store.as_ref(), &object_keys::checkpoint_file("bench", name), &mut pieces).await?;
    }
    copying.await?
}

/// Copies everything first, as ranks did once: a baseline.
fn start_whole(trained: &Trained, store: &Arc<dyn ObjectStore>, runtimes: &Runtimes<'_>) -> Result<Saving> {
    let began = Instant::now();
    let params = trained.step.params();
    let copies = [(ADAPTER_FILE, params.values()?), (OPTIMIZER_FILE, trained.optimizer.export(params)?)];
    let store = Arc::clone(store);
    let mut tasks = JoinSet::new();
    let write = async move {
        let making = tokio::task::spawn_blocking(move || -> Result<Vec<_>> {
            let file = |(name, tensors): &(&'static str, TensorMap)| -> Result<_> {
                let content = bytes::Bytes::from(to_bytes(tensors, &published_strings())?);
                // Hashed, as its record needs.
                Ok((*name, crescendo_dataset::checkpoint::ManifestFile::of(name, &content), content))
            };
            copies.iter().map(file).collect()
        });
        for (name, _, content) in making.await?? {
            put(store.as_ref(), &object_keys::checkpoint_file("bench", name), &content).await?;
        }
        Ok(())
    };
    tasks.spawn_on(write, runtimes.copying);
    Ok(Saving { hold: None, tasks, began })
}

/// Makes the highest resident memory what is resident now.
fn forget_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("write /proc/self/clear_refs")
}

/// The value at `share` of the sorted ones, the higher one where it falls between two; 0 of none.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(0.0)
}

fn print(output: Output, outcome: &Outcome) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string(outcome)?);
        return Ok(());
    }
    let Outcome { tensors_bytes, memory_above_bytes, step_median, .. } = outcome;
    let (tensors, above) = (*tensors_bytes as f64, *memory_above_bytes as f64);
    println!(
        "tensors {:.2} GB; a step takes {step_median:.2} s, a save {:.1} s",
        tensors / 1e9,
        outcome.save_median
    );
    let saves = outcome.stalls.len();
    for (name, p50, p99, noise) in [
        ("stall", outcome.stall_p50, outcome.stall_p99, outcome.noise_p99),
        ("alone", outcome.stall_alone_p50, outcome.stall_alone_p99, outcome.noise_alone_p99),
    ] {
        let (p50, p99, noise) = (p50 * 1e3, p99 * 1e3, noise * 1e3);
        println!(
            "{name}   {p50:.0} ms (median), {p99:.0} ms (p99) of {saves} saves; steps without one: {noise:.0} ms (p99)"
        );
    }
    println!("waits   {:.0} ms (p99) of the training thread for a save", outcome.held_up_p99 * 1e3);
    println!(
        "memory  {:.2} GB above what a step takes: {:.2} of the tensors' bytes",
        above / 1e9,
        above / tensors
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_there_were() {
        let values: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 0.0].map(|share| percentile(&values, share)), [5.0, 10.0, 1.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn both_ways_write_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = crescendo_node::objects::open(&format!("file://{}", folder.path().display())).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let runtimes = Runtimes { copying: runtime.handle(), writing: runtime.handle() };
        let mut trained = trained(0.004, Device::Cpu).unwrap();
        one_step(&mut trained, 1, &mut None).unwrap();
        let written = |how| -> Vec<Vec<u8>> {
            let saving = match how {
                How::Streamed => start_streamed(&trained, Device::Cpu, &store, &runtimes),
                How::Whole => start_whole(&trained, &store, &runtimes),
            };
            let mut saving = saving.unwrap();
            runtime.block_on(saving.tasks.join_next()).unwrap().unwrap().unwrap();
            let file = |name: &&str| std::fs::read(folder.path().join("bench").join(name)).unwrap();
            [ADAPTER_FILE, OPTIMIZER_FILE].iter().map(file).collect()
        };
        assert!(written(How::Streamed) == written(How::Whole));
    }
}
