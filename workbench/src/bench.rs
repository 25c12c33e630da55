//! `bench`: measures one part on this machine.

mod draw;
mod group;
mod kernels;
mod peak;
mod save;
mod step;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use crescendo_model::Preset;
use crescendo_model::tch::{Device, Kind};

/// Measure one part on this machine.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time the training step on random data: seconds, memory, and the share of what the device could do.
    Step(step::StepArgs),
    /// Hold each fused pass of a block to libtorch's operations, and time both
    Kernels(kernels::KernelsArgs),
    /// Time a drawing, and tell the hours that a data set of them takes
    Draw(draw::DrawArgs),
    /// Try a group of one rank: all-reduce, leave, abort
    Group(group::GroupArgs),
    /// Time what a checkpoint costs training on the CPU: how long it is held up, and memory.
    Save(save::SaveArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// What was asked for, or else f32 on the CPU and bf16 on a GPU.
    fn kind(asked: Option<Self>, device: Device) -> Kind {
        match (asked, device) {
            (Some(Self::F32), _) | (None, Device::Cpu) => Kind::Float,
            _ => Kind::BFloat16,
        }
    }
}

fn parse_preset(name: &str) -> Result<Preset, String> {
    name.parse().map_err(|error: crescendo_model::ModelError| error.to_string())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Step(args) => step::run(args),
        What::Kernels(args) => kernels::run(args),
        What::Draw(args) => draw::run(args),
        What::Group(args) => group::run(args),
        What::Save(args) => save::run(args),
    }
}
