//! Bars on a terminal: two lines for each stage, its pairs and its steps, below one about the job; and what goes wrong.
//! Every line is arranged to the terminal's width.

use std::time::Duration;

use crescendo_proto::v1::{Job, StagePhase, StageStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::lines::Lines;
use super::{Progress, training};
use crate::show::width::{self, cut, fit};
use crate::show::{curation, words};

/// Where a terminal does not tell its width.
const WIDTH: usize = 80;
/// Most columns of a stage's name, and where there are few.
const NAME: (usize, usize) = (12, 8);

pub struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    lines: Vec<ProgressBar>,
    /// The job as it was told last, and when.
    job: Option<(Job, Instant)>,
    lost: Option<String>,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    pub fn new() -> Bars {
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new_spinner());
        head.set_style(style("{spinner} {wide_msg}"));
        head.enable_steady_tick(Duration::from_millis(120));
        Bars { all, head, lines: Vec::new(), job: None, lost: None }
    }

    fn draw(&mut self) {
        let width = width::of_stderr().unwrap_or(WIDTH);
        let Some((job, told)) = &self.job else { return };
        self.head.set_message(cut(&head(job, self.lost.as_deref()), width.saturating_sub(2)));
        let lines = stage_lines(job, told.elapsed(), width);
        while self.lines.len() > lines.len() {
            if let Some(line) = self.lines.pop() {
                self.all.remove(&line);
            }
        }
        while self.lines.len() < lines.len() {
            let line = self.all.add(ProgressBar::new_spinner());
            line.set_style(style("{wide_msg}"));
            self.lines.push(line);
        }
        for (bar, text) in self.lines.iter().zip(lines) {
            bar.set_message(text);
        }
    }
}

/// The line about the job.
fn head(job: &Job, lost: Option<&str>) -> String {
    let elapsed = super::elapsed(job).map_or_else(String::new, |time| format!(" {}", words::span(time)));
    let state = words::job_state(job.state());
    let why = match lost {
        Some(why) => format!(" (the controller cannot be reached: {why}; trying again)"),
        None if job.reason.is_empty() => String::new(),
        None => format!(": {}", words::one_line(&job.reason)),
    };
    format!("{} {state}{elapsed}{why}", job.job_id)
}

/// The lines of all stages, each of at most `width` columns. `later`: since the job was told.
fn stage_lines(job: &Job, later: Duration, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let longest = job.stages.iter().map(|stage| console::measure_text_width(&stage.name)).max();
    let name = longest.unwrap_or(0).min(if width < 50 { NAME.1 } else { NAME.0 });
    for stage in &job.stages {
        lines.push(pairs_line(stage, name, width));
        lines.push(steps_line(stage, name, width));
    }
    for stage in &job.stages {
        let troubles = curation::remarks(stage, later);
        let told = troubles.iter().map(|trouble| format!("  {}: {trouble}", words::one_line(&stage.name)));
        lines.extend(told.map(|line| cut(&line, width)));
    }
    lines
}

fn pairs_line(stage: &StageStatus, name: usize, width: usize) -> String {
    let sealed = if stage.pairs_sealed { " complete" } else { "" };
    let mut parts = vec![format!("{}/{}{sealed}", stage.pairs_committed, stage.pairs_target)];
    // In the order of their importance, and in few words.
    let making = curation::making(stage);
    let (drawn, further) = making.split_at(making.len().min(1));
    parts.extend(drawn.iter().map(|text| text.replace(" candidates", "")));
    parts.extend(curation::pace(stage).iter().map(|text| text.replace(" pairs", "")));
    parts.extend(further.iter().rev().cloned());
    let rejected = words::rejected(&stage.pairs_rejected);
    parts.extend((!rejected.is_empty()).then(|| format!("rejected {rejected}")));
    // A log that was sealed early is complete all the same.
    let done = if stage.pairs_sealed { stage.pairs_target } else { stage.pairs_committed };
    let begin = begin(stage, name, "pairs");
    line(begin, (done, stage.pairs_target), &parts, width)
}

fn steps_line(stage: &StageStatus, name: usize, width: usize) -> String {
    let phase = words::stage_phase(stage.phase());
    let mut parts = vec![format!("{}/{}", stage.step, stage.steps_total)];
    parts.extend((stage.phase() != StagePhase::Training).then(|| phase.to_owned()));
    parts.extend(training(stage));
    let begin = begin(stage, name, "steps");
    line(begin, (stage.step, stage.steps_total), &parts, width)
}

/// The stage's name in `name` columns, and what the line is about.
fn begin(stage: &StageStatus, name: usize, what: &str) -> String {
    format!("  {:<name$} {what} ", cut(&words::one_line(&stage.name), name))
}

/// A bar, if there is room for one, and as many of the parts as fit.
fn line(mut line: String, (done, of): (u64, u64), parts: &[String], width: usize) -> String {
    let length = match width {
        100.. => 24,
        60.. => 8,
        _ => 0,
    };
    if length > 0 {
        line.push_str(&bar(done, of, length));
        line.push(' ');
    }
    let room = width.saturating_sub(console::measure_text_width(&line));
    cut(&format!("{line}{}", fit(parts, room)), width)
}

fn bar(done: u64, of: u64, length: usize) -> String {
    let share = (done as f64 / of.max(1) as f64).clamp(0.0, 1.0);
    let full = (share * length as f64) as usize;
    let tip = usize::from(full < length && share > 0.0);
    format!("{}{}{}", "━".repeat(full), "╸".repeat(tip), "─".repeat(length - full - tip))
}

impl Progress for Bars {
    fn update(&mut self, job: &Job) {
        self.job = Some((job.clone(), Instant::now()));
        if words::is_final(job.state()) {
            // What stays on the screen is plain text.
            self.close();
            Lines::new(std::io::stderr(), width::of_stderr()).update(job);
        } else {
            self.draw();
        }
    }

    fn tick(&mut self) {
        self.draw();
    }

    fn lost(&mut self, why: &str) {
        self.lost = Some(why.to_owned());
        self.draw();
    }

    fn found(&mut self) {
        self.lost = None;
        self.draw();
    }

    fn close(&mut self) {
        // A terminal that is gone needs no cleaning.
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }
}

#[cfg(test)]
mod tests {
    use crescendo_proto::v1::{JobState, UnitFailure, UnitsUnderWay};

    use super::*;

    fn job() -> Job {
        let under_way =
            UnitsUnderWay { units: 1, candidates: 64, drawn: 37, filtered: 32, judged: 12, accepted: 9 };
        let failure = UnitFailure {
            unit: 3,
            node_id: "curator-1".into(),
            reason: "the judge's endpoint does not answer within 30 seconds, which is the limit".into(),
            ago_seconds: 12.0,
            retry_in_seconds: 8.0,
        };
        let curating = StageStatus {
            name: "stage-1".into(),
            phase: StagePhase::Curating as i32,
            steps_total: 400,
            pairs_committed: 128,
            pairs_target: 512,
            pairs_per_minute: 24.0,
            pairs_rejected: [("similarity_low".to_owned(), 30), ("judge_low".to_owned(), 5)].into(),
            under_way: Some(under_way),
            last_failure: Some(failure),
            waiting_for: "waits for pairs of stage-1: 128 of the 256 that training starts with".into(),
            ..StageStatus::default()
        };
        let training = StageStatus {
            name: "several-subjects".into(),
            phase: StagePhase::Training as i32,
            step: 200,
            steps_total: 400,
            loss: 0.1234,
            samples_per_sec: 35.2,
            data_wait_fraction: 0.4,
            eta_seconds: 80.0,
            pairs_committed: 512,
            pairs_target: 512,
            pairs_sealed: true,
            ..StageStatus::default()
        };
        let reason = curating.waiting_for.clone();
        Job {
            job_id: "first-job-k7f3q2".into(),
            state: JobState::Running as i32,
            reason,
            stages: vec![curating, training],
            ..Job::default()
        }
    }

    fn drawn(width: usize) -> String {
        let job = job();
        let mut lines = vec![cut(&head(&job, None), width - 2)];
        lines.extend(stage_lines(&job, Duration::ZERO, width));
        for line in &lines {
            let columns = console::measure_text_width(line);
            assert!(columns <= width, "{columns} columns of {width}: {line}");
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn eighty_columns_hold_what_matters() {
        assert_eq!(
            drawn(80),
            "\
first-job-k7f3q2 running: waits for pairs of stage-1: 128 of the 256 that…
  stage-1      pairs ━━╸───── 128/512, 37 of 64 drawn, 24.0 a minute, all in 16m
  stage-1      steps ──────── 0/400, curating
  several-sub… pairs ━━━━━━━━ 512/512 complete
  several-sub… steps ━━━━╸─── 200/400, loss 0.1234, 35.2 samples/s, 1m 20s left
  stage-1: unit 3 failed on curator-1 12s ago: the judge's endpoint does not…
"
        );
    }

    #[test]
    fn forty_columns_and_fewer_break_no_word() {
        assert_eq!(
            drawn(40),
            "\
first-job-k7f3q2 running: waits for…
  stage-1  pairs 128/512, 37 of 64 drawn
  stage-1  steps 0/400, curating
  several… pairs 512/512 complete
  several… steps 200/400, loss 0.1234
  stage-1: unit 3 failed on curator-1…
"
        );
        for width in 20..200 {
            drawn(width);
        }
    }

    #[test]
    fn a_bar_is_as_long_as_it_should_be() {
        for (done, of) in [(0, 0), (0, 9), (1, 1_000_000), (9, 9), (99, 9)] {
            assert_eq!(bar(done, of, 16).chars().count(), 16, "{done} of {of}");
        }
        assert_eq!((bar(1, 4, 4), bar(4, 4, 4), bar(0, 4, 4)), ("━╸──".into(), "━━━━".into(), "────".into()));
    }
}
