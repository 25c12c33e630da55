//! Plain lines: one for each change of state, and one every few seconds for what moves.

use std::io::Write;
use std::time::Duration;

use crescendo_proto::v1::{Job, StagePhase, StageStatus};
use tokio::time::Instant;

use super::{Progress, ending, pairs, training};
use crate::show::job::current_stage;
use crate::show::width::wrapped;
use crate::show::{curation, words};

/// Between two lines about the same stage that only say that it goes on.
const EVERY: Duration = Duration::from_secs(5);

/// A line comes at least this often while the job lives.
const ALIVE: Duration = Duration::from_secs(10);

pub struct Lines<W> {
    out: W,
    /// Columns to break lines at; lines that no terminal shows are left whole.
    width: Option<usize>,
    /// The job as it was told last, unless it has ended, and when.
    job: Option<(Job, Instant)>,
    /// When the last line was printed.
    said: Instant,
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
    /// Their shape.
    troubles: String,
    step: u64,
    pairs: u64,
    at: Instant,
}

impl<W: Write> Lines<W> {
    pub fn new(out: W, width: Option<usize>) -> Lines<W> {
        let said = Instant::now();
        Lines { out, width, job: None, said, state: None, stages: Vec::new(), lost: false }
    }

    fn say(&mut self, text: &str) {
        self.said = Instant::now();
        let text = wrapped(text, self.width, 2);
        // A reader that has gone away does not end the job; there is just no one to tell.
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }

    fn stage(&mut self, index: usize, stage: &StageStatus) {
        let now = Instant::now();
        let said: Vec<String> = curation::remarks(stage, Duration::ZERO);
        let troubles = shape(&said.join("\n"));
        let (news, more_troubles) = match self.stages.get(index) {
            None => (true, !troubles.is_empty()),
            Some(shown) => {
                let news = shown.phase != stage.phase
                    || shown.generation != stage.generation
                    || shown.waiting_for != shape(&stage.waiting_for)
                    || shown.sealed != stage.pairs_sealed
                    || (now - shown.at >= EVERY
                        && (shown.step, shown.pairs) != (stage.step, stage.pairs_committed));
                (news, shown.troubles != troubles)
            }
        };
        if !news && !more_troubles {
            return;
        }
        let shown = Shown {
            phase: stage.phase,
            generation: stage.generation,
            waiting_for: shape(&stage.waiting_for),
            sealed: stage.pairs_sealed,
            troubles,
            step: stage.step,
            pairs: stage.pairs_committed,
            at: now,
        };
        match self.stages.get_mut(index) {
            Some(slot) => *slot = shown,
            None => self.stages.push(shown),
        }
        if news {
            self.say(&standing(stage));
        }
        for trouble in said.iter().filter(|_| more_troubles) {
            self.say(&format!("{}: {trouble}", words::one_line(&stage.name)));
        }
    }

    /// The line that says that the job lives, if nothing else has for a while.
    fn say_alive(&mut self, now: Instant, elapsed: impl FnOnce(&Job) -> Option<Duration>) {
        if now.duration_since(self.said) < ALIVE {
            return;
        }
        let Some((job, told)) = &self.job else { return };
        let after = elapsed(job).map_or_else(String::new, |time| format!("after {}: ", words::span(time)));
        let mut lines = Vec::new();
        if self.lost {
            lines.push(format!("{after}the controller cannot be reached; trying again, the job goes on"));
        } else {
            let stage = current_stage(job).map(standing).unwrap_or_default();
            lines.push(format!("{after}{}, {stage}", words::job_state(job.state())));
            let later = now.duration_since(*told);
            let troubles = current_stage(job).map(|stage| curation::troubles(stage, later));
            lines.extend(troubles.unwrap_or_default().into_iter().map(|trouble| format!("  {trouble}")));
        }
        lines.iter().for_each(|line| self.say(line));
    }
}

/// Where a stage is: its name, phase, steps, training, pairs and what is being made.
fn standing(stage: &StageStatus) -> String {
    let mut parts = vec![format!("step {}/{}", stage.step, stage.steps_total)];
    parts.extend(training(stage));
    parts.push(pairs(stage));
    parts.extend(curation::making(stage));
    parts.extend(curation::pace(stage));
    let (name, phase) = (words::one_line(&stage.name), words::stage_phase(stage.phase()));
    format!("{name}: {phase}, {}", parts.join(", "))
}

impl<W: Write> Progress for Lines<W> {
    fn tick(&mut self) {
        self.say_alive(Instant::now(), super::elapsed);
    }

    fn update(&mut self, job: &Job) {
        let ended = words::is_final(job.state());
        self.job = (!ended).then(|| (job.clone(), Instant::now()));
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
    use crescendo_proto::v1::{JobState, UnitFailure, UnitsUnderWay};

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
        let mut lines = Lines::new(Vec::new(), None);
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
    fn a_line_comes_at_least_every_ten_seconds() {
        let mut lines = Lines::new(Vec::new(), None);
        let mut job = job(JobState::Running, StagePhase::Curating, 0);
        job.stages[0].under_way =
            Some(UnitsUnderWay { units: 1, candidates: 64, drawn: 37, ..UnitsUnderWay::default() });
        lines.update(&job);
        lines.out.clear();
        let (start, elapsed) = (lines.said, |_: &Job| Some(Duration::from_secs(130)));
        lines.say_alive(start + Duration::from_secs(9), elapsed);
        assert!(lines.out.is_empty());
        lines.say_alive(start + Duration::from_secs(10), elapsed);
        let alive = "after 2m 10s: running, stage-1: curating, step 0/10, 7/9 pairs, rejected 2 similarity_low, 37 of 64 candidates drawn\n";
        assert_eq!(String::from_utf8(std::mem::take(&mut lines.out)).unwrap(), alive);
        lines.lost("refused");
        lines.out.clear();
        lines.say_alive(lines.said + Duration::from_secs(10), elapsed);
        let text = String::from_utf8(std::mem::take(&mut lines.out)).unwrap();
        assert_eq!(text, "after 2m 10s: the controller cannot be reached; trying again, the job goes on\n");
        job.state = JobState::Failed as i32;
        lines.update(&job);
        lines.out.clear();
        lines.say_alive(lines.said + Duration::from_secs(100), elapsed);
        assert!(lines.out.is_empty(), "nothing is said of a job that has ended");
    }

    #[test]
    fn a_unit_that_failed_is_told_and_lines_break_between_words() {
        let failure = UnitFailure {
            unit: 3,
            node_id: "curator-1".into(),
            reason: "cannot read /library/subjectz/index.json: No such file or directory".into(),
            ago_seconds: 1.0,
            retry_in_seconds: 3.0,
        };
        let mut job = job(JobState::Running, StagePhase::Curating, 0);
        let mut lines = Lines::new(Vec::new(), Some(40));
        lines.update(&job);
        job.stages[0].last_failure = Some(failure);
        lines.update(&job);
        job.stages[0].last_failure.as_mut().unwrap().ago_seconds = 2.0;
        lines.update(&job);
        assert_eq!(
            String::from_utf8(lines.out).unwrap(),
            "\
job j-1 running
stage-1: curating, step 0/10, 7/9 pairs,
  rejected 2 similarity_low
stage-1: unit 3 failed on curator-1 1s
  ago: cannot read
  /library/subjectz/index.json: No such
  file or directory; tried again in 3s
"
        );
    }

    #[test]
    fn an_outage_is_told_once() {
        let mut lines = Lines::new(Vec::new(), None);
        lines.lost("refused");
        lines.lost("refused");
        lines.found();
        lines.found();
        let text = String::from_utf8(lines.out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
