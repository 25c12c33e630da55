//! Where a rank's time goes: every moment between two steps counts to one phase. Pure: times are arguments.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crescendo_model::config::FluxConfig;
use crescendo_model::flux::{StepTokens, step_flops};
use crescendo_model::training::MicroBatch;
use crescendo_model::unope::Grid;
use crescendo_proto::v1::PhaseSeconds;

/// Weight of the newest step in a smoothed number.
const NEWEST: f64 = 0.2;

/// Steps whose times give the median.
const RECENT_STEPS: usize = 32;

/// What a rank does with a moment; see `docs/metrics.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    DataWait,
    Forward,
    Backward,
    AllReduce,
    Optimizer,
    Checkpoint,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct StepProfiler {
    /// End of what was counted last.
    counted_to: Instant,
    began: Instant,
    phases: PhaseSeconds,
    steps: u64,
    samples_per_sec: Option<f64>,
    operations_per_sec: Option<f64>,
    /// What was counted up to the last step, and the times of the last ones.
    at_last_step: PhaseSeconds,
    recent: VecDeque<StepSeconds>,
}

/// How long a step took, without waiting for pairs and without saving; and the part of it in which this rank computed itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSeconds {
    pub whole: f64,
    pub own: f64,
}

/// What one step was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Of the whole gang.
    pub samples: u32,
    /// Least arithmetic of this rank's share.
    pub operations: u64,
    pub seconds: f64,
}

impl StepProfiler {
    /// Counts from `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            counted_to: now,
            began: now,
            phases: PhaseSeconds::default(),
            steps: 0,
            samples_per_sec: None,
            operations_per_sec: None,
            at_last_step: PhaseSeconds::default(),
            recent: VecDeque::with_capacity(RECENT_STEPS),
        }
    }

    /// Ends a phase that began where the last one ended.
    pub fn end(&mut self, phase: Phase, now: Instant) {
        self.end_with(phase, phase, Duration::ZERO, now);
    }

    /// Ends a stretch of time in which `within` was another phase.
    pub fn end_with(&mut self, phase: Phase, other: Phase, within: Duration, now: Instant) {
        let all = now.saturating_duration_since(self.counted_to);
        let within = within.min(all);
        *self.seconds_of(other) += within.as_secs_f64();
        *self.seconds_of(phase) += (all - within).as_secs_f64();
        self.counted_to = now;
    }

    fn seconds_of(&mut self, phase: Phase) -> &mut f64 {
        let phases = &mut self.phases;
        match phase {
            Phase::DataWait => &mut phases.data_wait,
            Phase::Forward => &mut phases.forward,
            Phase::Backward => &mut phases.backward,
            Phase::AllReduce => &mut phases.all_reduce,
            Phase::Optimizer => &mut phases.optimizer,
            Phase::Checkpoint => &mut phases.checkpoint,
        }
    }

    /// A step has its loss and gradients.
    pub fn stepped(&mut self, step: Step) {
        let seconds = step.seconds.max(1e-9);
        smooth(&mut self.samples_per_sec, f64::from(step.samples) / seconds);
        smooth(&mut self.operations_per_sec, step.operations as f64 / seconds);
        self.steps += 1;
        let before = std::mem::replace(&mut self.at_last_step, self.phases);
        let (own, all_reduce) =
            (own_seconds(&self.phases) - own_seconds(&before), self.phases.all_reduce - before.all_reduce);
        if self.recent.len() == RECENT_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back(StepSeconds { whole: own + all_reduce, own });
    }

    /// Medians over the last steps; zero before the first.
    pub fn median_step(&self) -> StepSeconds {
        let median = |of: fn(&StepSeconds) -> f64| {
            let mut times: Vec<f64> = self.recent.iter().map(of).collect();
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        StepSeconds { whole: median(|step| step.whole), own: median(|step| step.own) }
    }

    /// Seconds in each phase since the start.
    pub fn phases(&self) -> PhaseSeconds {
        self.phases
    }

    /// Seconds since the start, for the moments that were counted.
    pub fn counted(&self) -> Duration {
        self.counted_to - self.began
    }

    /// Steps of this process.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Smoothed; 0 before the first step.
    pub fn samples_per_sec(&self) -> f64 {
        self.samples_per_sec.unwrap_or(0.0)
    }

    /// Smoothed; 0 before the first step.
    pub fn operations_per_sec(&self) -> f64 {
        self.operations_per_sec.unwrap_or(0.0)
    }
}

fn own_seconds(phases: &PhaseSeconds) -> f64 {
    phases.forward + phases.backward + phases.optimizer
}

fn smooth(value: &mut Option<f64>, now: f64) {
    *value = Some(value.map_or(now, |before| (1.0 - NEWEST) * before + NEWEST * now));
}

/// Least arithmetic of a step over these micro-batches, operations.
pub fn operations(config: &FluxConfig, micros: &[MicroBatch], adapter_rank: Option<i64>) -> u64 {
    let rank = adapter_rank.and_then(|rank| u64::try_from(rank).ok());
    micros.iter().filter_map(tokens).map(|tokens| step_flops(config, &tokens, rank)).sum()
}

fn tokens(micro: &MicroBatch) -> Option<StepTokens> {
    let size = |value: i64| u64::try_from(value).ok();
    let [batch, text, _] = *micro.txt.size() else { return None };
    let [_, target, _] = *micro.noise.size() else { return None };
    let references = micro.refs.iter().map(|latent| Grid::of_latent(latent).ok().map(Grid::tokens));
    let references = references.sum::<Option<i64>>()?;
    Some(StepTokens {
        batch: size(batch)?,
        text: size(text)?,
        target: size(target)?,
        references: size(references)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn every_moment_counts_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = StepProfiler::new(start);
        meter.end(Phase::DataWait, at(100));
        meter.end_with(Phase::Forward, Phase::Backward, Duration::from_millis(300), at(500));
        meter.end(Phase::AllReduce, at(520));
        meter.end(Phase::Optimizer, at(600));
        meter.end(Phase::Checkpoint, at(650));
        meter.end(Phase::DataWait, at(700));
        // More than there was.
        meter.end_with(Phase::Forward, Phase::Backward, Duration::from_secs(9), at(800));
        let phases = meter.phases();
        let millis = |seconds: f64| (seconds * 1e3).round() as u64;
        assert_eq!(millis(phases.data_wait), 150);
        assert_eq!(millis(phases.forward), 100);
        assert_eq!(millis(phases.backward), 400);
        assert_eq!(millis(phases.all_reduce), 20);
        assert_eq!(millis(phases.optimizer), 80);
        assert_eq!(millis(phases.checkpoint), 50);
        assert_eq!(meter.counted(), Duration::from_millis(800));
    }

    #[test]
    fn a_steps_time_is_without_waiting_and_saving_and_the_ranks_own_without_the_others() {
        let start = Instant::now();
        let mut meter = StepProfiler::new(start);
        let mut at = start;
        let mut end = |meter: &mut StepProfiler, phase, millis| {
            at += Duration::from_millis(millis);
            meter.end(phase, at);
        };
        for compute in [100, 100, 900] {
            end(&mut meter, Phase::DataWait, 5_000);
            end(&mut meter, Phase::Forward, compute);
            end(&mut meter, Phase::AllReduce, 40);
            meter.stepped(Step { samples: 1, operations: 1, seconds: 1.0 });
            end(&mut meter, Phase::Optimizer, 10);
            end(&mut meter, Phase::Checkpoint, 700);
        }
        let StepSeconds { whole, own } = meter.median_step();
        assert!((whole - 0.15).abs() < 1e-6 && (own - 0.11).abs() < 1e-6, "{whole} {own}");
        assert_eq!(StepProfiler::new(start).median_step(), StepSeconds::default());
    }

    #[test]
    fn rates_are_smoothed() {
        let mut meter = StepProfiler::new(Instant::now());
        assert_eq!((meter.steps(), meter.samples_per_sec()), (0, 0.0));
        let step = |seconds| Step { samples: 8, operations: 1_000, seconds };
        meter.stepped(step(2.0));
        assert_eq!((meter.samples_per_sec(), meter.operations_per_sec()), (4.0, 500.0));
        meter.stepped(step(0.5));
        assert!((meter.samples_per_sec() - (0.8 * 4.0 + 0.2 * 16.0)).abs() < 1e-9);
        assert_eq!(meter.steps(), 2);
    }

    #[test]
    fn operations_are_those_of_the_tokens() {
        let config = crescendo_model::Preset::Nano.config();
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let micro = MicroBatch {
            latents: zeros(&[3, 12, 8, 8]),
            refs: vec![zeros(&[3, 12, 4, 8])],
            txt: zeros(&[3, 7, 16]),
            vec: zeros(&[3, 16]),
            noise: zeros(&[3, 16, 48]),
            times: zeros(&[3]),
            weight: 1.0,
        };
        let tokens = StepTokens { batch: 3, text: 7, target: 16, references: 8 };
        let expected = step_flops(&config, &tokens, Some(4));
        assert_eq!(operations(&config, &[micro], Some(4)), expected);
        assert_eq!(operations(&config, &[], Some(4)), 0);
    }
}
