//! A job as it goes on: bars on a terminal, plain lines elsewhere, JSON lines for scripts.

mod bars;
mod lines;

use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use crescendo_proto::v1::{Job, StagePhase, StageStatus};

use super::{json, width, words};
use crate::args::Output;

/// Shows a job's changes.
pub trait Progress {
    fn update(&mut self, job: &Job);
    /// Time passes, about a second a call.
    fn tick(&mut self);
    /// The controller does not answer.
    fn lost(&mut self, why: &str);
    /// It does again.
    fn found(&mut self);
    /// Nothing more comes.
    fn close(&mut self);
}

pub fn new(output: Output) -> Box<dyn Progress> {
    match output {
        Output::Json => Box::new(JsonLines),
        Output::Table if std::io::stderr().is_terminal() => Box::new(bars::Bars::new()),
        Output::Table => Box::new(lines::Lines::new(std::io::stdout(), width::of_stdout())),
    }
}

/// Each update as one line of JSON on standard output; remarks on standard error.
struct JsonLines;

impl Progress for JsonLines {
    fn update(&mut self, job: &Job) {
        super::outln(json::job(job));
    }

    fn tick(&mut self) {}

    fn lost(&mut self, why: &str) {
        super::errln(format_args!("the controller cannot be reached ({why}); trying again"));
    }

    fn found(&mut self) {
        super::errln(format_args!("the controller is back"));
    }

    fn close(&mut self) {}
}

/// What the training of a stage is at, e.g. `loss 0.1234`, `35.2 samples/s`, `1m 20s left`.
fn training(stage: &StageStatus) -> Vec<String> {
    let mut parts = Vec::new();
    if stage.loss != 0.0 {
        parts.push(format!("loss {:.4}", stage.loss));
    }
    if stage.phase() == StagePhase::Training {
        if stage.samples_per_sec > 0.0 {
            parts.push(format!("{:.1} samples/s", stage.samples_per_sec));
        }
        if stage.data_wait_fraction >= 0.05 {
            parts.push(format!("{:.0}% waiting for data", 100.0 * stage.data_wait_fraction.min(1.0)));
        }
        if let Some(eta) = words::eta(stage.eta_seconds) {
            parts.push(format!("{eta} left"));
        }
    }
    parts.extend(words::skipped_steps(stage.skipped_steps));
    if stage.restarts > 0 {
        parts.push(format!("{} restart{}", stage.restarts, if stage.restarts == 1 { "" } else { "s" }));
    }
    if stage.phase() != StagePhase::Done && !stage.waiting_for.is_empty() {
        parts.push(words::one_line(&stage.waiting_for));
    }
    parts
}

/// Since its submit.
fn elapsed(job: &Job) -> Option<Duration> {
    SystemTime::now().duration_since(words::system_time(job.submitted_at.as_ref())?).ok()
}

/// What its curation is at, e.g. `1200/6000 pairs, rejected 30 similarity_low`.
fn pairs(stage: &StageStatus) -> String {
    let sealed = if stage.pairs_sealed { ", complete" } else { "" };
    let rejected = words::rejected(&stage.pairs_rejected);
    let rejected = if rejected.is_empty() { rejected } else { format!(", rejected {rejected}") };
    format!("{}/{} pairs{sealed}{rejected}", stage.pairs_committed, stage.pairs_target)
}

/// The last word on a job.
fn ending(job: &Job) -> String {
    let took = super::job::took(job).map_or_else(String::new, |took| format!(" after {}", words::span(took)));
    let why =
        if job.reason.is_empty() { String::new() } else { format!(": {}", words::one_line(&job.reason)) };
    format!("job {} {}{took}{why}", job.job_id, words::job_state(job.state()))
}
