//! Plain lines: one for each change of state, and one every few seconds for what moves.

use std::io::Write;
use std::time::Duration;

use crescendo_proto::v1::{Job, StagePhase, StageStatus};
use tokio::time::Instant;

use super::{Progress, ending, pairs, training};
use crate::show::words;

/// Between two lines about the same stage that only say that it goes on.
const EVERY: Duration = Duration::from_secs(5);

pub struct Lines<W> {
    out: W,
    /// State, and the shape of its reason, as printed last.
    state: Option<(i32, String)>,
    stages: Vec<Shown>,
    lost: bool,
}

/// What was printed last of a stage.
struct Shown {
    phase: i32,
    generation: u64,
    /// Its shape.
    waiting_for: String,
    sealed: bool,
    step: u64,
    pairs: u64,
    at: Instant,
}

impl<W: Write> Lines<W> {
    pub fn new(out: W) -> Lines<W> {
        Lines { out, state: None, stages: Vec::new(), lost: false }
    }

    fn say(&mut self, text: &str) {
        // A reader that has gone away does not end the job; there is just no one to tell.
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }

    fn stage(&mut self, index: usize, stage: &StageStatus) {
        let now = Instant::now();
        let news = match self.stages.get(index) {
            None => true,
            Some(shown) => {
                shown.phase != stage.phase
                    || shown.generation != stage.generation
                    || shown.waiting_for != shape(&stage.waiting_for)
                    || shown.sealed != stage.pairs_sealed
                    || (now - shown.at >= EVERY
                        && (shown.step, shown.pairs) != (stage.step, stage.pairs_committed))
            }
        };
        if !news {
            return;
        }
        let shown = Shown {
            phase: stage.phase,
            generation: stage.generation,
            waiting_for: shape(&stage.waiting_for),
            sealed: stage.pairs_sealed,
            step: stage.step,
            pairs: stage.pairs_committed,
            at: now,
        };
        match self.stages.get_mut(index) {
            Some(slot) => *slot = shown,
            None => self.stages.push(shown),
        }
        let mut parts = vec![format!("step {}/{}", stage.step, stage.steps_total)];
        parts.extend(Some(training(stage)).filter(|text| !text.is_empty()));
        parts.push(pairs(stage));
        let (name, phase) = (words::one_line(&stage.name), words::stage_phase(stage.phase()));
        self.say(&format!("{name}: {phase}, {}", parts.join(", ")));
    }
}

impl<W: Write> Progress for Lines<W> {
    fn update(&mut self, job: &Job) {
        let ended = words::is_final(job.state());
        let told_by_stage = job.stages.iter().any(|stage| stage.waiting_for == job.reason);
        let reason = if told_by_stage { "" } else { job.reason.as_str() };
        let state = (job.state, shape(reason));
        if self.state.as_ref() != Some(&state) {
            self.state = Some(state);
            if !ended {
                let why =
                    if reason.is_empty() { String::new() } else { format!(": {}", words::one_line(reason)) };
                self.say(&format!("job {} {}{why}", job.job_id, words::job_state(job.state())));
            }
        }
        for (index, stage) in job.stages.iter().enumerate() {
            // What a stage was doing when its job was stopped is no news.
            if !ended || stage.phase() == StagePhase::Done {
                self.stage(index, stage);
            }
        }
        if ended {
            for stage in job.stages.iter().filter(|stage| !stage.final_checkpoint.is_empty()) {
                let (name, path) = (words::one_line(&stage.name), words::one_line(&stage.final_checkpoint));
                self.say(&format!("{name}: final checkpoint {path}"));
            }
            self.say(&ending(job));
        }
    }

    fn lost(&mut self, why: &str) {
        if !std::mem::replace(&mut self.lost, true) {
            self.say(&format!("the controller cannot be reached ({why}); trying again, the job goes on"));
        }
    }

    fn found(&mut self) {
        if std::mem::replace(&mut self.lost, false) {
            self.say("the controller is back");
        }
    }

    fn close(&mut self) {}
}

/// The text without its numbers: "3 of 8 pairs" after "2 of 8 pairs" is no news.
fn shape(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use crescendo_proto::v1::JobState;

    use super::*;

    fn job(state: JobState, phase: StagePhase, step: u64) -> Job {
        let stage = StageStatus {
            name: "stage-1".into(),
            phase: phase as i32,
            step,
            steps_total: 10,
            loss: if step > 0 { 0.25 } else { 0.0 },
            samples_per_sec: 12.0,
            eta_seconds: 90.0,
            pairs_committed: 7,
            pairs_target: 9,
            pairs_rejected: [("similarity_low".to_owned(), 2)].into(),
            ..StageStatus::default()
        };
        Job { job_id: "j-1".into(), state: state as i32, stages: vec![stage], ..Job::default() }
    }

    fn printed(updates: &[Job]) -> String {
        let mut lines = Lines::new(Vec::new());
        for update in updates {
            lines.update(update);
        }
        String::from_utf8(lines.out).unwrap()
    }

    #[test]
    fn changes_are_told_and_repetitions_are_not() {
        let text = printed(&[
            job(JobState::Queued, StagePhase::Pending, 0),
            job(JobState::Running, StagePhase::Training, 1),
            job(JobState::Running, StagePhase::Training, 2),
            job(JobState::Succeeded, StagePhase::Done, 10),
        ]);
        assert_eq!(
            text,
            "\
job j-1 queued
stage-1: pending, step 0/10, 7/9 pairs, rejected 2 similarity_low
job j-1 running
stage-1: training, step 1/10, loss 0.2500, 12.0 samples/s, 1m 30s left, 7/9 pairs, rejected 2 similarity_low
stage-1: done, step 10/10, loss 0.2500, 7/9 pairs, rejected 2 similarity_low
job j-1 succeeded
"
        );
    }

    #[test]
    fn a_count_that_grows_is_no_news_and_is_told_by_the_stage() {
        let waiting = |pairs: u64| {
            let mut job = job(JobState::Running, StagePhase::Curating, 0);
            job.reason = format!("waits for pairs: {pairs} of 9");
            job.stages[0].waiting_for = job.reason.clone();
            job
        };
        let text = printed(&[waiting(1), waiting(2)]);
        let stage =
            "stage-1: curating, step 0/10, waits for pairs: 1 of 9, 7/9 pairs, rejected 2 similarity_low";
        assert_eq!(text, format!("job j-1 running\n{stage}\n"));
    }

    #[test]
    fn an_outage_is_told_once() {
        let mut lines = Lines::new(Vec::new());
        lines.lost("refused");
        lines.lost("refused");
        lines.found();
        lines.found();
        let text = String::from_utf8(lines.out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
