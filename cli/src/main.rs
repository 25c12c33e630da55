//! `crescendo`: submit jobs, follow them, look at the cluster, and start one on this machine.
//!
//! ```text
//!   submit, watch, jobs, … ──gRPC──▶ controller
//!   contexts, tokens ──settings──┘
//!   pairs, cp ──────────────reads──▶ object store
//!   up ──starts──▶ controller, curator-node, trainer-node (processes on loopback)
//!   generate, parity, eval, report, inspect, lora, bench ──exec──▶ crescendo-workbench
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `args` | the command line; `common_args`: options of every command |
//! | `settings` | which cluster, and how to log in: flags, environment, contexts |
//! | `connect` | calling the controller, through an outage; `wire`: one connection |
//! | `commands` | one file a command |
//! | `doctor` | checks of this machine, its files and the cluster |
//! | `certificates` | those of a release without another issuer: what is due, made, and kept in Secrets |
//! | `artifact` | what a job has trained: which file is meant, its copy, the command that draws with it |
//! | `objects` | the object store, as commands read it |
//! | `comparison` | jobs side by side: what differs in their specs, and what came of each |
//! | `pairs` | a stage's pairs out of the object store, and their contact sheet |
//! | `spec_edit` | a spec with fields set from the command line |
//! | `show` | tables, JSON, progress, and spec problems with their place |
//! | `up` | a cluster on this machine |
//! | `failure` | what can go wrong, and the exit code of each |

mod args;
mod artifact;
mod certificates;
mod commands;
mod common_args;
mod comparison;
mod connect;
mod doctor;
mod failure;
mod objects;
mod pairs;
#[cfg(test)]
mod reference;
mod samples;
mod settings;
mod show;
mod spec_edit;
mod up;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                show::errln(format_args!("error: {message}"));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { common, command } = cli;
    if !matches!(command, Command::Up(_)) {
        show::end_with_the_reader();
    }
    let command = match command {
        // These need neither a runtime nor a controller.
        Command::Library(command) => return commands::library::run(&common, &command),
        Command::Context(command) => return commands::context::run(&common, &command),
        Command::Completion(args) => return commands::completion::run(args.shell),
        Command::Man(args) => return commands::man::run(&args),
        Command::Token(args) => return commands::token::run(&common, &args),
        Command::Generate(args) => return commands::workbench::exec("generate", &args.rest),
        Command::Parity(args) => return commands::workbench::exec("parity", &args.rest),
        Command::Eval(args) => return commands::workbench::exec("eval", &args.rest),
        Command::Report(args) => return commands::workbench::exec("report", &args.rest),
        Command::Inspect(args) => return commands::workbench::exec("inspect", &args.rest),
        Command::Lora(args) => return commands::workbench::exec("lora", &args.rest),
        Command::Bench(args) => return commands::workbench::exec("bench", &args.rest),
        command => command,
    };
    // One thread is enough; `up` also needs it to be the one that starts its processes, since they end with it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            Command::Up(args) => up::run(&common, &args).await,
            Command::Validate(args) => commands::validate::run(&common, &args).await,
            Command::Submit(args) if !args.matrix.is_empty() => commands::matrix::run(&common, &args).await,
            Command::Submit(args) => commands::submit::run(&common, &args).await,
            Command::Jobs(args) => commands::jobs::run(&common, &args).await,
            Command::Compare(args) => commands::compare::run(&common, &args).await,
            Command::Get(args) => commands::get::run(&common, &args).await,
            Command::Explain(args) => commands::explain::run(&common, &args).await,
            Command::Login(args) => commands::login::run(&common, &args).await,
            Command::Whoami => commands::whoami::run(&common).await,
            Command::Doctor(args) => doctor::run(&common, &args).await,
            Command::Watch(args) => commands::watch::run(&common, &args).await,
            Command::Logs(args) => commands::logs::run(&common, &args).await,
            Command::Cancel(args) => commands::steer::cancel(&common, &args).await,
            Command::Pause(args) => commands::steer::pause(&common, &args).await,
            Command::Resume(args) => commands::steer::resume(&common, &args).await,
            Command::Continue(args) => commands::continuation::run(&common, &args).await,
            Command::Retry(args) => commands::steer::retry(&common, &args).await,
            Command::Note(args) => commands::steer::note(&common, &args).await,
            Command::Delete(args) => commands::delete::run(&common, &args).await,
            Command::Lineage(args) => commands::lineage::run(&common, &args).await,
            Command::Nodes(args) => commands::nodes::run(&common, &args).await,
            Command::Queues => commands::queues::run(&common).await,
            Command::Usage(args) => commands::queues::usage(&common, &args).await,
            Command::Drain(args) => commands::drain::run(&common, &args).await,
            Command::Checkpoints(args) => commands::checkpoints::run(&common, &args).await,
            Command::Samples(args) => commands::samples::run(&common, &args).await,
            Command::Cp(args) => commands::cp::run(&common, &args).await,
            Command::Pairs(args) => commands::pairs::run(&common, &args).await,
            Command::Objects(command) => commands::objects::run(&common, &command).await,
            Command::Certificates(command) => commands::certificates::run(&common, &command).await,
            Command::Curation(command) => commands::curation::run(&common, &command).await,
            Command::Library(_)
            | Command::Context(_)
            | Command::Completion(_)
            | Command::Man(_)
            | Command::Token(_)
            | Command::Generate(_)
            | Command::Parity(_)
            | Command::Eval(_)
            | Command::Report(_)
            | Command::Inspect(_)
            | Command::Lora(_)
            | Command::Bench(_) => {
                unreachable!("handled before the runtime is started")
            }
        }
    });
    // A read of standard input may still be waiting; nothing is left to be done for it.
    runtime.shutdown_background();
    result
}
