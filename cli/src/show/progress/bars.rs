//! Bars on a terminal: two for each stage, its pairs and its steps, below a line about the job.

use std::time::Duration;

use crescendo_proto::v1::{Job, StagePhase, StageStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::Lines;
use super::{Progress, pairs, training};
use crate::show::words;

pub struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    stages: Vec<Stage>,
    job: String,
}

struct Stage {
    pairs: ProgressBar,
    steps: ProgressBar,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

impl Bars {
    pub fn new() -> Bars {
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new_spinner());
        head.set_style(style("{spinner} {msg}"));
        head.enable_steady_tick(Duration::from_millis(120));
        Bars { all, head, stages: Vec::new(), job: String::new() }
    }

    fn stage(&mut self, index: usize, stage: &StageStatus) {
        if self.stages.len() <= index {
            let name = words::one_line(&stage.name);
            let bar = |template: &str| {
                let bar = self.all.add(ProgressBar::new(1));
                bar.set_style(style(template));
                bar.set_prefix(name.clone());
                bar
            };
            let pairs = bar("  {prefix:<12} pairs {bar:24} {wide_msg}");
            let steps = bar("  {prefix:<12} steps {bar:24} {wide_msg}");
            self.stages.push(Stage { pairs, steps });
        }
        let Some(Stage { pairs: pairs_bar, steps }) = self.stages.get(index) else { return };
        pairs_bar.set_length(stage.pairs_target.max(1));
        // A log that was sealed early is complete all the same.
        pairs_bar.set_position(if stage.pairs_sealed { stage.pairs_target } else { stage.pairs_committed });
        pairs_bar.set_message(pairs(stage));
        steps.set_length(stage.steps_total.max(1));
        steps.set_position(stage.step);
        let phase = words::stage_phase(stage.phase());
        let training = training(stage);
        let what = match stage.phase() {
            StagePhase::Training => training,
            _ if training.is_empty() => phase.to_owned(),
            _ => format!("{phase}, {training}"),
        };
        steps.set_message(format!("{}/{} {what}", stage.step, stage.steps_total));
    }
}

impl Progress for Bars {
    fn update(&mut self, job: &Job) {
        let why =
            if job.reason.is_empty() { String::new() } else { format!(": {}", words::one_line(&job.reason)) };
        self.job = format!("{} {}{why}", job.job_id, words::job_state(job.state()));
        self.head.set_message(self.job.clone());
        for (index, stage) in job.stages.iter().enumerate() {
            self.stage(index, stage);
        }
        if words::is_final(job.state()) {
            // What stays on the screen is plain text.
            self.close();
            Lines::new(std::io::stderr()).update(job);
        }
    }

    fn lost(&mut self, why: &str) {
        self.head
            .set_message(format!("{} (the controller cannot be reached: {why}; trying again)", self.job));
    }

    fn found(&mut self) {
        self.head.set_message(self.job.clone());
    }

    fn close(&mut self) {
        // A terminal that is gone needs no cleaning.
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }
}
