//! Jobs as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crescendo_proto::v1::{Job, JobNote, StagePhase, StageStatus};

use super::table::Table;
use super::{curation, words};

/// One line a job.
pub fn list(jobs: &[Job]) -> Table {
    let mut table = Table::new(&["JOB", "STATE", "STAGE", "STEP", "LOSS", "SUBMITTED", "WHY"]);
    for job in jobs {
        let stage = current_stage(job);
        table.row([
            job.job_id.clone(),
            words::job_state(job.state()).into(),
            stage.map_or_else(|| "-".into(), |stage| stage.name.clone()),
            stage.map_or_else(|| "-".into(), step),
            stage.map_or_else(|| "-".into(), loss),
            words::time(job.submitted_at.as_ref()),
            if job.reason.is_empty() { "-".into() } else { job.reason.clone() },
        ]);
    }
    table
}

/// The first stage that is not done, or else the last.
pub fn current_stage(job: &Job) -> Option<&StageStatus> {
    job.stages.iter().find(|stage| stage.phase() != StagePhase::Done).or(job.stages.last())
}

fn step(stage: &StageStatus) -> String {
    format!("{}/{}", stage.step, stage.steps_total)
}

/// A loss of 0 was not reported: a controller that has been restarted does not know it until the next report.
fn loss(stage: &StageStatus) -> String {
    if stage.loss == 0.0 { "-".into() } else { format!("{:.4}", stage.loss) }
}

/// `nightly=yes, team=vision`.
fn labels(job: &Job) -> String {
    let labels: BTreeMap<&String, &String> = job.labels.iter().collect();
    labels.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(", ")
}

/// `2026-11-30 12:00 ada: blurred from step 800 on`, as times are shown.
fn noted(note: &JobNote) -> String {
    let JobNote { at, by, text } = note;
    format!("{} {by}: {text}", words::time(at.as_ref()))
}

/// Everything about one job.
pub fn details(job: &Job) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {}", words::one_line(value));
    };
    line("job", &job.job_id);
    line("name", &job.name);
    line("tenant", &job.tenant);
    let labels = labels(job);
    let lines = [("labels", labels.as_str()), ("state", words::job_state(job.state())), ("why", &job.reason)];
    lines.iter().filter(|(_, value)| !value.is_empty()).for_each(|(name, value)| line(name, value));
    if let Some(deletion) = job.deletion.as_ref().filter(|deletion| !deletion.waiting_for.is_empty()) {
        line("waits", &deletion.waiting_for);
    }
    line("priority", &job.priority.to_string());
    line("submitted", &words::time(job.submitted_at.as_ref()));
    if job.started_at.is_some() {
        line("started", &words::time(job.started_at.as_ref()));
    }
    if job.finished_at.is_some() {
        line("finished", &words::time(job.finished_at.as_ref()));
    }
    if let Some(took) = took(job) {
        line("took", &words::span(took));
    }
    job.notes.iter().for_each(|note| line("note", &noted(note)));
    let mut table =
        Table::new(&["STAGE", "PHASE", "STEP", "LOSS", "SAMPLES/S", "PAIRS", "REJECTED", "RESTARTS", "ETA"]);
    for stage in &job.stages {
        let rejected = words::rejected(&stage.pairs_rejected);
        table.row([
            stage.name.clone(),
            words::stage_phase(stage.phase()).into(),
            step(stage),
            loss(stage),
            if stage.samples_per_sec > 0.0 { format!("{:.1}", stage.samples_per_sec) } else { "-".into() },
            format!("{}/{}", stage.pairs_committed, stage.pairs_target),
            if rejected.is_empty() { "-".into() } else { rejected },
            stage.restarts.to_string(),
            words::eta(stage.eta_seconds).unwrap_or_else(|| "-".into()),
        ]);
    }
    let _ = write!(out, "\n{table}");
    for stage in &job.stages {
        for (name, histogram) in &stage.scores {
            let line = words::distribution(histogram);
            let _ = writeln!(out, "{}: {} {line}", stage.name, words::one_line(name));
        }
        for line in numbers(stage) {
            let _ = writeln!(out, "{}: {}", stage.name, words::one_line(&line));
        }
        if stage.replay_passes > 0 {
            let replay_passes = stage.replay_passes;
            let _ = writeln!(
                out,
                "{}: for want of new pairs, went {replay_passes} times round those before",
                stage.name
            );
        }
        if let Some(skipped) = words::skipped_steps(stage.skipped_steps) {
            let _ = writeln!(out, "{}: {skipped}: the loss or the gradients were not finite", stage.name);
        }
        if !stage.waiting_for.is_empty() {
            let _ = writeln!(out, "{}: {}", stage.name, words::one_line(&stage.waiting_for));
        }
        let mut making = curation::making(stage);
        making.extend(curation::pace(stage));
        if !making.is_empty() {
            let _ = writeln!(out, "{}: {}", stage.name, making.join(", "));
        }
        for trouble in curation::troubles(stage, Duration::ZERO) {
            let _ = writeln!(out, "{}: {trouble}", stage.name);
        }
        if !stage.final_checkpoint.is_empty() {
            let _ = writeln!(out, "{} ended with {}", stage.name, words::one_line(&stage.final_checkpoint));
        }
    }
    out
}

/// What its numbers depend on: the precision, with the reason where it was settled, and changes of processor.
fn numbers(stage: &StageStatus) -> Vec<String> {
    let mut lines = Vec::new();
    match (stage.precision.as_str(), stage.precision_reason.as_str()) {
        ("", _) => {}
        (precision, "") => lines.push(format!("computes in {precision}")),
        (precision, reason) => lines.push(format!("computes in {precision}: {reason}")),
    }
    lines.extend(stage.kind_changes.iter().cloned());
    lines
}

/// From the first step to the end.
pub fn took(job: &Job) -> Option<Duration> {
    let started = words::system_time(job.started_at.as_ref().or(job.submitted_at.as_ref()))?;
    let finished = words::system_time(job.finished_at.as_ref())?;
    finished.duration_since(started).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_says_what_its_numbers_depend_on() {
        let settled = StageStatus {
            name: "stage-1".into(),
            precision: "f32".into(),
            precision_reason: "node a runs bf16 at 0.12 of f32".into(),
            kind_changes: vec!["resumed at step 7 on a slower one".into()],
            skipped_steps: 2,
            ..StageStatus::default()
        };
        let asked = StageStatus { precision: "bf16".into(), ..StageStatus::default() };
        assert_eq!(numbers(&asked), ["computes in bf16"]);
        assert!(numbers(&StageStatus::default()).is_empty());
        let text = details(&Job { stages: vec![settled], ..Job::default() });
        assert!(text.contains("stage-1: computes in f32: node a runs bf16 at 0.12 of f32\n"), "{text}");
        assert!(text.contains("stage-1: resumed at step 7 on a slower one\n"), "{text}");
        let skipped = "stage-1: 2 steps skipped: the loss or the gradients were not finite\n";
        assert!(text.contains(skipped), "{text}");
    }
}
