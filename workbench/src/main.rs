//! `crescendo-workbench`: parse, run, report.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use crescendo_device::{keep_freed_memory, load_cuda};
use crescendo_node::objects::with_causes;
use crescendo_workbench::bench::{self, BenchArgs};
use crescendo_workbench::doctor::{self, DoctorArgs};
use crescendo_workbench::eval::{self, EvalArgs};
use crescendo_workbench::export_base::{self, ExportBaseArgs};
use crescendo_workbench::generate::{self, GenerateArgs};
use crescendo_workbench::inspect::{self, InspectArgs};
use crescendo_workbench::lora::{self, LoraArgs};
use crescendo_workbench::parity::{ParityArgs, parity_main, rank_process, ranks};
use crescendo_workbench::report::{self, ReportArgs};
use crescendo_workbench::serve_judge::{self, ServeJudgeArgs};
use crescendo_workbench::train_encoder::{self, TrainEncoderArgs};

/// Tools around Crescendo's networks.
#[derive(Debug, Parser)]
#[command(name = "crescendo-workbench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// With an error, say also where in the program it came up, as far as RUST_BACKTRACE asks for that
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Parity(ParityArgs),
    /// Score drawings of a benchmark: CLIP-I, CLIP-T, DINO, and by the subjects found in them.
    Eval(EvalArgs),
    /// Draw with what a finished job has learned, score it, and write a report.
    Report(ReportArgs),
    Bench(BenchArgs),
    Doctor(DoctorArgs),
    Generate(GenerateArgs),
    Inspect(InspectArgs),
    Lora(LoraArgs),
    /// Write a checkpoint of a full-parameter stage as a base that jobs can start from.
    ExportBase(ExportBaseArgs),
    TrainEncoder(TrainEncoderArgs),
    ServeJudge(ServeJudgeArgs),
    /// One rank of a data-parallel fixture; started by `parity`.
    #[command(name = ranks::SUBCOMMAND, hide = true)]
    ParityRank(rank_process::RankArgs),
}

fn main() -> ExitCode {
    let Arguments { command, verbose } = Arguments::parse();
    // What does not load is told where a GPU is wanted.
    let _ = load_cuda();
    keep_freed_memory();
    run(command).unwrap_or_else(|error| {
        // As every other program of the project says it: one line, the causes in order.
        eprintln!("error: {}", with_causes(error.as_ref()));
        if verbose {
            eprintln!("{error:?}");
        }
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Parity(args) => parity_main(args),
        Command::Eval(args) => eval::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Command::ExportBase(args) => export_base::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Lora(args) => lora::run(&args).map(|()| ExitCode::SUCCESS),
        Command::ServeJudge(args) => serve_judge::run(&args).map(|()| ExitCode::SUCCESS),
        Command::TrainEncoder(args) => train_encoder::run(&args).map(|()| ExitCode::SUCCESS),
        Command::ParityRank(args) => rank_process::rank_main(&args).map(|()| ExitCode::SUCCESS),
    }
}
