//! `parity DIR`: holds the model crate to golden numbers.
//!
//! A folder of fixtures is pairs of `NAME.json` (sidecar) and `NAME.safetensors` (weights, inputs, expected
//! outputs). The sidecar alone says what to run: sizes, ranks, steps, tolerances. Its `fixture` field names
//! the kind by the longest known prefix; kinds that are not known are listed, not checked.

mod ae;
mod clip;
mod command;
mod compare;
mod denoise;
mod dinov2;
pub mod fixture;
mod flux;
mod image_bucket;
mod image_processors;
mod image_ref;
mod lora_export;
mod metrics;
mod owlv2;
mod picture_tensors;
pub mod rank_process;
pub mod ranks;
mod schedule;
mod t5;
mod train_step;
mod unope;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::Context;
use crescendo_model::tch::Device;
use serde::Serialize;

pub use command::{Output, ParityArgs, parity_main};
pub use compare::{Case, Comparison};
use compare::{Checks, cases};
use fixture::{Fixture, read_sidecar};

/// Settings of one run.
#[derive(Clone, Debug)]
pub struct ParityOptions {
    pub dir: PathBuf,
    /// Prefixes of the `fixture` fields to check; all if empty.
    pub only: Vec<String>,
    pub device: Device,
}

/// The outcome of one fixture.
#[derive(Clone, Debug, Serialize)]
pub struct FixtureReport {
    pub name: String,
    pub kind: &'static str,
    pub passed: bool,
    /// Why the fixture could not be run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub cases: Vec<Case>,
    /// Every comparison that missed.
    pub misses: Vec<Comparison>,
}

/// A sidecar of a kind that is not known.
#[derive(Clone, Debug, Serialize)]
pub struct Unchecked {
    pub name: String,
    pub reason: String,
}

/// The outcome of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct ParityReport {
    pub passed: bool,
    /// Number of comparisons made.
    pub comparisons: usize,
    pub fixtures: Vec<FixtureReport>,
    pub not_checked: Vec<Unchecked>,
}

type Check = fn(&Fixture, &mut Checks<'_>) -> anyhow::Result<()>;

/// Kinds by the prefix of the `fixture` field.
const KINDS: [(&str, Check); 16] = [
    ("ae", ae::check),
    ("clip_text", clip::check_text),
    ("clip_vision", clip::check_vision),
    ("denoise", denoise::check),
    ("dinov2", dinov2::check),
    ("flux", flux::check),
    ("image_preproc_bucket", image_bucket::check),
    ("image_preproc_clip_dino", image_processors::check),
    ("image_preproc_ref", image_ref::check),
    ("lora", lora_export::check),
    ("metrics", metrics::check),
    ("owlv2", owlv2::check),
    ("schedule", schedule::check),
    ("t5", t5::check),
    ("train_step", train_step::check),
    ("unope", unope::check),
];

/// The kind with the longest prefix of `field`.
fn kind_of(field: &str) -> Option<(&'static str, Check)> {
    KINDS.into_iter().filter(|(prefix, _)| field.starts_with(prefix)).max_by_key(|(prefix, _)| prefix.len())
}

/// Checks every fixture of a folder. A broken one is reported and the rest goes on; only a folder that
/// cannot be listed is an error.
pub fn run(options: &ParityOptions) -> anyhow::Result<ParityReport> {
    let mut report =
        ParityReport { passed: false, comparisons: 0, fixtures: Vec::new(), not_checked: Vec::new() };
    for path in sidecars(&options.dir)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let field = match read_sidecar(&path) {
            Ok(Some((field, _))) => field,
            Ok(None) => {
                report.not_checked.push(Unchecked { name, reason: "no fixture sidecar".to_owned() });
                continue;
            }
            Err(error) => {
                if selected(&options.only, &name) {
                    report.fixtures.push(failed(name, "unknown", format!("{error:#}")));
                }
                continue;
            }
        };
        if !selected(&options.only, &field) {
            continue;
        }
        let Some((kind, check)) = kind_of(&field) else {
            report.not_checked.push(Unchecked { name, reason: format!("kind of {field:?} is not known") });
            continue;
        };
        let (outcome, comparisons) = check_one(&path, options.device, name, kind, check);
        report.comparisons += comparisons;
        report.fixtures.push(outcome);
    }
    report.passed = report.comparisons > 0 && report.fixtures.iter().all(|fixture| fixture.passed);
    Ok(report)
}

fn selected(only: &[String], field: &str) -> bool {
    only.is_empty() || only.iter().any(|prefix| field.starts_with(prefix.as_str()))
}

fn sidecars(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn failed(name: String, kind: &'static str, error: String) -> FixtureReport {
    FixtureReport { name, kind, passed: false, error: Some(error), cases: Vec::new(), misses: Vec::new() }
}

/// Checks one fixture; also returns the number of comparisons made.
fn check_one(
    path: &Path,
    device: Device,
    name: String,
    kind: &'static str,
    check: Check,
) -> (FixtureReport, usize) {
    let run = || -> anyhow::Result<(Vec<Comparison>, Option<String>)> {
        let fixture = Fixture::open(path, device)?;
        let mut checks = Checks::new(&fixture);
        let outcome = check(&fixture, &mut checks);
        let error = outcome.err().map(|error| format!("{error:#}"));
        Ok((checks.finish()?, error))
    };
    // A fixture is foreign data: whatever it brings about, the others are still checked.
    let (comparisons, error) = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => return (failed(name, kind, format!("{error:#}")), 0),
        Err(_) => return (failed(name, kind, "the check panicked".to_owned()), 0),
    };
    let misses: Vec<Comparison> =
        comparisons.iter().filter(|comparison| !comparison.passed).cloned().collect();
    let report = FixtureReport {
        name,
        kind,
        passed: error.is_none() && misses.is_empty() && !comparisons.is_empty(),
        error,
        cases: cases(&comparisons),
        misses,
    };
    (report, comparisons.len())
}

/// The report as a table for people.
pub fn table(report: &ParityReport) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut rows =
        vec![["case", "checks", "worst error", "tolerance", "measure", "verdict"].map(str::to_owned)];
    for fixture in &report.fixtures {
        for case in &fixture.cases {
            rows.push([
                format!("{} {}", fixture.name, case.case),
                case.checks.to_string(),
                number(case.worst.error),
                number(case.worst.tolerance),
                case.worst.measure.to_owned(),
                verdict(case.passed).to_owned(),
            ]);
        }
    }
    let mut widths = [0usize; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text.push('\n');
    for fixture in &report.fixtures {
        let _ = write!(text, "{:<8}{}", verdict(fixture.passed), fixture.name);
        if let Some(error) = &fixture.error {
            let _ = write!(text, ": {error}");
        }
        text.push('\n');
        for miss in fixture.misses.iter().take(10) {
            let reason = miss
                .note
                .clone()
                .unwrap_or_else(|| format!("{} > {}", number(miss.error), number(miss.tolerance)));
            let _ = writeln!(text, "        {} ({}): {reason}", miss.tensor, miss.measure);
        }
        if fixture.misses.len() > 10 {
            let _ = writeln!(text, "        and {} more", fixture.misses.len() - 10);
        }
    }
    for unchecked in &report.not_checked {
        let _ = writeln!(text, "not checked {}: {}", unchecked.name, unchecked.reason);
    }
    let _ = writeln!(
        text,
        "{} comparisons in {} fixtures: {}",
        report.comparisons,
        report.fixtures.len(),
        if report.comparisons == 0 { "nothing checked" } else { verdict(report.passed) }
    );
    text
}

fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "pass" } else { "FAIL" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_their_longest_prefix() {
        for (field, expected) in [
            ("flux_tiny_bf16", Some("flux")),
            ("train_step_dp4", Some("train_step")),
            ("lora_export", Some("lora")),
            ("teapot", None),
        ] {
            assert_eq!(kind_of(field).map(|(kind, _)| kind), expected);
        }
    }
}
