//! `bench`: measures one part on this machine.

mod peak;
mod save;
mod step;

use anyhow::Result;
use clap::{Args, Subcommand};

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
    /// Time what a checkpoint costs training on the CPU: how long it is held up, and memory.
    Save(save::SaveArgs),
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Step(args) => step::run(args),
        What::Save(args) => save::run(args),
    }
}
