//! See the library.

use std::process::ExitCode;

use clap::Parser as _;
use crescendo_device::{keep_freed_memory, load_cuda};
use crescendo_trainer_node::{Cli, Command, agent, rank};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // What does not load is told where a GPU is wanted.
    let _ = load_cuda();
    match command {
        Command::Agent(args) => run_agent(*args),
        Command::Rank(args) => {
            keep_freed_memory();
            rank::run::run(*args)
        }
    }
}

fn run_agent(args: agent::run::AgentArgs) -> ExitCode {
    // One thread, and the main one: ranks die with the thread that started them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(agent::run::run(args));
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
