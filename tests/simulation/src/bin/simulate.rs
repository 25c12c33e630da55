//! Runs seeds of the simulation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser;
use crescendo_simulation::run::{Options, Outcome, run};
use crescendo_simulation::schedule::{KINDS, schedule};
use serde::{Deserialize, Serialize};

/// Runs a simulated cluster through schedules of work and faults, and checks the promises of the design
#[derive(Parser)]
#[command(name = "simulate")]
struct Args {
    /// Seeds to run
    #[arg(long, default_value_t = 20, conflicts_with = "seed")]
    seeds: u64,
    /// First of them; drawn from the clock if absent, so that each run sees new ones
    #[arg(long)]
    from: Option<u64>,
    /// One seed, with its whole trace
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds at a time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Kinds of faults that are left out, by name
    #[arg(long)]
    without: Vec<String>,
    /// Kinds of faults, and no others, by name
    #[arg(long)]
    only: Vec<String>,
    /// Counts of runs are added up in this file
    #[arg(long)]
    counts: Option<PathBuf>,
    /// Lines of the log of the real parts, as RUST_LOG has it
    #[arg(long, default_value = "off")]
    log: String,
}

/// What all runs so far have come to.
#[derive(Default, Serialize, Deserialize)]
struct Counts {
    schedules: u64,
    faults: u64,
    commits: u64,
    simulated_hours: f64,
    violations: u64,
    seconds: f64,
}

#[derive(Default)]
struct Totals {
    faults: u64,
    commits: u64,
    simulated_secs: f64,
    failed: BTreeMap<u64, Vec<String>>,
    ended: BTreeMap<&'static str, usize>,
}

fn kinds(args: &Args) -> anyhow::Result<Vec<usize>> {
    for name in args.only.iter().chain(&args.without) {
        anyhow::ensure!(
            KINDS.contains(&name.as_str()),
            "there is no kind {name:?}; there are {}",
            KINDS.join(", ")
        );
    }
    let wanted = |name: &&str| {
        let name = (*name).to_owned();
        (args.only.is_empty() || args.only.contains(&name)) && !args.without.contains(&name)
    };
    Ok(KINDS.iter().enumerate().filter(|(_, name)| wanted(name)).map(|(kind, _)| kind).collect())
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.log != "off" {
        let filter = tracing_subscriber::EnvFilter::try_new(&args.log).context("read --log")?;
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let kinds = kinds(&args)?;
    if let Some(seed) = args.seed {
        return one(seed, &kinds);
    }
    let from = args.from.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(0)
    });
    let began = Instant::now();
    let (next, totals) = (AtomicU64::new(0), Mutex::new(Totals::default()));
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.seeds {
                        return;
                    }
                    let seed = from + number;
                    let outcome = run(&Options {
                        seed,
                        events: schedule(seed, &kinds),
                        plant: None,
                        keep_trace: false,
                    });
                    totals.lock().unwrap_or_else(PoisonError::into_inner).add(seed, outcome, &args);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} schedules from seed {from} in {seconds:.1} s: {} faults, {} commits, {:.1} simulated hours, jobs {:?}; {} seeds with violations",
        args.seeds,
        totals.faults,
        totals.commits,
        totals.simulated_secs / 3600.0,
        totals.ended,
        totals.failed.len()
    );
    if let Some(path) = &args.counts {
        add_up(path, args.seeds, seconds, &totals)?;
    }
    Ok(if totals.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: anyhow::Result<Outcome>, args: &Args) {
        let violations = match outcome {
            Ok(outcome) => {
                self.faults += outcome.faults;
                self.commits += outcome.commits;
                self.simulated_secs += outcome.simulated.as_secs_f64();
                for (state, jobs) in outcome.ended {
                    *self.ended.entry(state).or_default() += jobs;
                }
                outcome.violations.iter().map(ToString::to_string).collect()
            }
            Err(error) => vec![format!("{error:#}")],
        };
        if violations.is_empty() {
            return;
        }
        let flags = |flag: &str, names: &[String]| -> String {
            names.iter().map(|name| format!(" --{flag} {name:?}")).collect()
        };
        println!("seed {seed}: replay with");
        println!(
            "    cargo run -p crescendo-simulation --bin simulate -- --seed {seed}{}{}",
            flags("without", &args.without),
            flags("only", &args.only)
        );
        violations.iter().take(5).for_each(|violation| println!("    {violation}"));
        self.failed.insert(seed, violations);
    }
}

fn one(seed: u64, kinds: &[usize]) -> anyhow::Result<ExitCode> {
    let outcome = run(&Options { seed, events: schedule(seed, kinds), plant: None, keep_trace: true })?;
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!(
        "seed {seed}: trace {:016x} of {} lines, {} commits, {:.0} simulated s, jobs {:?}",
        outcome.trace_hash,
        outcome.trace_lines,
        outcome.commits,
        outcome.simulated.as_secs_f64(),
        outcome.ended
    );
    outcome.violations.iter().for_each(|violation| println!("{violation}"));
    Ok(if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn add_up(path: &std::path::Path, seeds: u64, seconds: f64, totals: &Totals) -> anyhow::Result<()> {
    let mut counts: Counts = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Counts::default(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    counts.schedules += seeds;
    counts.faults += totals.faults;
    counts.commits += totals.commits;
    counts.simulated_hours += totals.simulated_secs / 3600.0;
    counts.violations += totals.failed.len() as u64;
    counts.seconds += seconds;
    let text = serde_json::to_string_pretty(&counts).context("write the counts")?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}
