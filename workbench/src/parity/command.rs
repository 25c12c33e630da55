//! The `parity` subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use crescendo_model::tch::Device;

use super::{ParityOptions, run, table};

/// How to print a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Check the networks against a folder of golden numbers.
///
/// Exits with 1 if a number is off, a fixture is broken, or nothing was checked.
#[derive(Debug, clap::Args)]
pub struct ParityArgs {
    /// Folder of fixtures: pairs of NAME.json and NAME.safetensors.
    dir: PathBuf,
    /// Check only fixtures of these kinds (prefixes of their `fixture` field).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// cpu, cuda, or cuda:INDEX: where the networks compute. Bounds on single numbers are five times as wide on a GPU.
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Runs the subcommand.
pub fn parity_main(args: ParityArgs) -> anyhow::Result<ExitCode> {
    crescendo_device::open(args.device)?;
    // Small networks: more threads only wait for each other.
    crescendo_model::tch::set_num_threads(1);
    let report = run(&ParityOptions { dir: args.dir, only: args.only, device: args.device })?;
    match args.output {
        Output::Table => print!("{}", table(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report).context("print the report")?),
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
