//! What the agent tells Prometheus. Ranks are told apart by the slot that they occupy.

use std::time::{SystemTime, UNIX_EPOCH};

use crescendo_node::telemetry::metrics_registry::{
    Label, Metric, Registrar, bounded, counter, gauge, histogram, words,
};
use crescendo_proto::v1::{AttemptPhase, PhaseSeconds, RankProgress};
use prometheus::{
    CounterVec, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

const SLOT: Label = bounded("slot", "number of the rank's slot on this machine");
const PHASES: [&str; 6] = ["data_wait", "forward", "backward", "all_reduce", "optimizer", "checkpoint"];
const ENDS: [&str; 4] = ["succeeded", "failed", "stopped", "drained"];
const OUTCOMES: [&str; 3] = ["registered", "refused", "failed"];

/// Every metric of a trainer's agent.
pub const CATALOGUE: &[Metric] = &[
    gauge("crescendo_trainer_step", "", &[SLOT], "Steps done in the stage, skipped ones included."),
    counter(
        "crescendo_trainer_steps_total",
        "",
        &[SLOT],
        "Steps that ranks have done here, those that had to be done again included.",
    ),
    counter(
        "crescendo_trainer_skipped_steps_total",
        "",
        &[SLOT],
        "Steps among them that were skipped: they updated nothing, because their loss or gradients were not finite.",
    ),
    counter(
        "crescendo_trainer_phase_seconds_total",
        "seconds",
        &[SLOT, words("phase", &PHASES)],
        "Where the time of steps went; see below.",
    ),
    gauge(
        "crescendo_trainer_loss",
        "",
        &[SLOT],
        "Training loss of the last step, mean over the global batch.",
    ),
    gauge(
        "crescendo_trainer_grad_norm",
        "",
        &[SLOT],
        "L2 norm of the last step's gradients before clipping.",
    ),
    gauge("crescendo_trainer_learning_rate", "", &[SLOT], "Learning rate of the last step."),
    gauge(
        "crescendo_trainer_samples_per_second",
        "1/s",
        &[SLOT],
        "Samples of the global batch per second, over all ranks of the gang.",
    ),
    gauge(
        "crescendo_trainer_operations_per_second",
        "1/s",
        &[SLOT],
        "Floating-point operations that this rank's steps need at least, per second.",
    ),
    gauge(
        "crescendo_trainer_peak_ratio",
        "ratio",
        &[SLOT],
        "These operations as a share of what the device can do at most; absent where that is not known.",
    ),
    gauge(
        "crescendo_trainer_data_wait_ratio",
        "ratio",
        &[SLOT],
        "Share of the last step spent waiting for data.",
    ),
    gauge("crescendo_trainer_ranks_running", "", &[], "Rank processes that live."),
    counter("crescendo_trainer_rank_starts_total", "", &[], "Rank processes started."),
    counter(
        "crescendo_trainer_rank_failures_total",
        "",
        &[],
        "Rank processes that ended other than well, or as told.",
    ),
    counter(
        "crescendo_trainer_attempts_total",
        "",
        &[words("outcome", &ENDS)],
        "Attempts by how they ended here.",
    ),
    histogram(
        "crescendo_trainer_checkpoint_write_seconds",
        "seconds",
        &[],
        "Time to write a checkpoint's files.",
    ),
    counter(
        "crescendo_trainer_checkpoints_total",
        "",
        &[words("outcome", &OUTCOMES)],
        "Checkpoints by what became of them: the registry's answer, or `failed` for each try to write the files that failed.",
    ),
    gauge(
        "crescendo_trainer_last_checkpoint_timestamp_seconds",
        "seconds",
        &[SLOT],
        "When the living rank's last checkpoint was registered, Unix time. Only at a gang's first rank, which writes them.",
    ),
    counter(
        "crescendo_trainer_checkpoints_damaged_total",
        "",
        &[],
        "Checkpoints that failed to verify when a rank wanted to begin with them.",
    ),
    counter(
        "crescendo_trainer_log_lines_dropped_total",
        "",
        &[],
        "Log lines not sent to the controller because the buffer was full.",
    ),
];

/// See the module.
#[derive(Clone, Debug)]
pub struct Metrics {
    step: IntGaugeVec,
    steps: IntCounterVec,
    skipped_steps: IntCounterVec,
    phase_seconds: CounterVec,
    loss: GaugeVec,
    grad_norm: GaugeVec,
    learning_rate: GaugeVec,
    samples_per_sec: GaugeVec,
    operations_per_sec: GaugeVec,
    peak_ratio: GaugeVec,
    data_wait_ratio: GaugeVec,
    pub ranks_running: IntGauge,
    pub rank_starts: IntCounter,
    pub rank_failures: IntCounter,
    attempts: IntCounterVec,
    pub checkpoint_write_seconds: Histogram,
    checkpoints: IntCounterVec,
    last_checkpoint: GaugeVec,
    pub checkpoints_damaged: IntCounter,
    log_lines_dropped: IntCounter,
    /// Operations a second that each slot's device can do at most, where that is known.
    peaks: Vec<Option<f64>>,
}

/// What one rank process has reported so far: what is new is the difference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    phases: PhaseSeconds,
    steps: u64,
    skipped_steps: u64,
    failed_saves: u64,
}

impl Metrics {
    pub fn register(registry: &Registry, peaks: Vec<Option<f64>>) -> prometheus::Result<Self> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let metrics = Self {
            step: registrar.gauges("crescendo_trainer_step")?,
            steps: registrar.counters("crescendo_trainer_steps_total")?,
            skipped_steps: registrar.counters("crescendo_trainer_skipped_steps_total")?,
            phase_seconds: registrar.counters_f64("crescendo_trainer_phase_seconds_total")?,
            loss: registrar.gauges_f64("crescendo_trainer_loss")?,
            grad_norm: registrar.gauges_f64("crescendo_trainer_grad_norm")?,
            learning_rate: registrar.gauges_f64("crescendo_trainer_learning_rate")?,
            samples_per_sec: registrar.gauges_f64("crescendo_trainer_samples_per_second")?,
            operations_per_sec: registrar.gauges_f64("crescendo_trainer_operations_per_second")?,
            peak_ratio: registrar.gauges_f64("crescendo_trainer_peak_ratio")?,
            data_wait_ratio: registrar.gauges_f64("crescendo_trainer_data_wait_ratio")?,
            ranks_running: registrar.gauge("crescendo_trainer_ranks_running")?,
            rank_starts: registrar.counter("crescendo_trainer_rank_starts_total")?,
            rank_failures: registrar.counter("crescendo_trainer_rank_failures_total")?,
            attempts: registrar.counters("crescendo_trainer_attempts_total")?,
            checkpoint_write_seconds: registrar.histogram(
                "crescendo_trainer_checkpoint_write_seconds",
                vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0],
            )?,
            checkpoints: registrar.counters("crescendo_trainer_checkpoints_total")?,
            last_checkpoint: registrar.gauges_f64("crescendo_trainer_last_checkpoint_timestamp_seconds")?,
            checkpoints_damaged: registrar.counter("crescendo_trainer_checkpoints_damaged_total")?,
            log_lines_dropped: registrar.counter("crescendo_trainer_log_lines_dropped_total")?,
            peaks,
        };
        registrar.finish()?;
        Ok(metrics)
    }

    /// Takes over what the rank in `slot` reports; `counted` is what it had reported before.
    pub fn progress(&self, slot: u32, progress: &RankProgress, counted: &mut Counted) {
        let peak = usize::try_from(slot).ok().and_then(|slot| self.peaks.get(slot).copied().flatten());
        let slot = slot.to_string();
        let slot = [slot.as_str()];
        self.step.with_label_values(&slot).set(i64::try_from(progress.step).unwrap_or(i64::MAX));
        self.loss.with_label_values(&slot).set(progress.loss);
        self.grad_norm.with_label_values(&slot).set(progress.grad_norm);
        self.learning_rate.with_label_values(&slot).set(progress.learning_rate);
        self.samples_per_sec.with_label_values(&slot).set(progress.samples_per_sec);
        self.data_wait_ratio.with_label_values(&slot).set(progress.data_wait_fraction);
        self.operations_per_sec.with_label_values(&slot).set(progress.operations_per_sec);
        if let Some(peak) = peak {
            self.peak_ratio.with_label_values(&slot).set(progress.operations_per_sec / peak);
        }
        let phases = progress.phases.unwrap_or(counted.phases);
        for ((phase, now), before) in PHASES.into_iter().zip(seconds(&phases)).zip(seconds(&counted.phases)) {
            // A counter must not be given less than nothing, whatever a rank says.
            let spent = now - before;
            if spent.is_finite() && spent >= 0.0 {
                self.phase_seconds.with_label_values(&[slot[0], phase]).inc_by(spent);
            }
        }
        self.steps.with_label_values(&slot).inc_by(progress.steps_done.saturating_sub(counted.steps));
        let skipped = progress.skipped_steps_done.saturating_sub(counted.skipped_steps);
        self.skipped_steps.with_label_values(&slot).inc_by(skipped);
        let failed_saves = progress.failed_saves.saturating_sub(counted.failed_saves);
        self.checkpoints.with_label_values(&["failed"]).inc_by(failed_saves);
        *counted = Counted {
            phases,
            steps: progress.steps_done.max(counted.steps),
            skipped_steps: progress.skipped_steps_done.max(counted.skipped_steps),
            failed_saves: progress.failed_saves.max(counted.failed_saves),
        };
    }

    /// The rank in `slot` has ended. Its last loss stays, for whoever asks why; how fast it is does not.
    pub fn rank_gone(&self, slot: u32) {
        let slot = slot.to_string();
        let rates =
            [&self.samples_per_sec, &self.operations_per_sec, &self.peak_ratio, &self.data_wait_ratio];
        for gauge in rates.into_iter().chain([&self.last_checkpoint]) {
            // Some are absent: of a rank that has not stepped, or that writes no checkpoints.
            let _ = gauge.remove_label_values(&[&slot]);
        }
    }

    /// `lines` have been dropped since the start.
    pub fn log_lines_dropped(&self, lines: u64) {
        self.log_lines_dropped.inc_by(lines.saturating_sub(self.log_lines_dropped.get()));
    }

    /// The registry has answered; `slot` is that of the rank that wrote the checkpoint, if it lives.
    pub fn checkpoint_decided(&self, slot: Option<u32>, refused: bool, now: SystemTime) {
        self.checkpoints.with_label_values(&[if refused { "refused" } else { "registered" }]).inc();
        if let Some(slot) = slot.filter(|_| !refused) {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.last_checkpoint.with_label_values(&[&slot.to_string()]).set(now);
        }
    }

    pub fn attempt_ended(&self, phase: AttemptPhase) {
        let outcome = match phase {
            AttemptPhase::Succeeded => "succeeded",
            AttemptPhase::Failed => "failed",
            AttemptPhase::Stopped => "stopped",
            AttemptPhase::Drained => "drained",
            AttemptPhase::Unspecified | AttemptPhase::Starting | AttemptPhase::Running => return,
        };
        self.attempts.with_label_values(&[outcome]).inc();
    }
}

/// In the order of [`PHASES`].
fn seconds(phases: &PhaseSeconds) -> [f64; PHASES.len()] {
    let PhaseSeconds { data_wait, forward, backward, all_reduce, optimizer, checkpoint } = *phases;
    [data_wait, forward, backward, all_reduce, optimizer, checkpoint]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crescendo_node::telemetry::metrics_registry::{check_document, check_gathered};

    fn progress(steps_done: u64, backward: f64) -> RankProgress {
        RankProgress {
            step: 100 + steps_done,
            phases: Some(PhaseSeconds { backward, ..Default::default() }),
            steps_done,
            skipped_steps: 100,
            skipped_steps_done: steps_done / 2,
            operations_per_sec: 2e12,
            ..Default::default()
        }
    }

    #[test]
    fn the_document_has_every_metric() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        check_document(&docs, "trainers", CATALOGUE).unwrap();
    }

    #[test]
    fn a_ranks_counts_go_on_where_the_one_before_ended() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, vec![None, Some(1e13)]).unwrap();
        let mut counted = Counted::default();
        metrics.progress(1, &progress(3, 1.5), &mut counted);
        metrics.progress(1, &progress(4, 2.0), &mut counted);
        // The next process begins at nothing.
        metrics.progress(1, &progress(2, 1.0), &mut Counted::default());
        let mut odd = Counted::default();
        metrics.progress(1, &progress(0, f64::NAN), &mut odd);
        metrics.progress(1, &progress(0, -1.0), &mut odd);
        assert_eq!(metrics.steps.with_label_values(&["1"]).get(), 6);
        assert_eq!(metrics.skipped_steps.with_label_values(&["1"]).get(), 3);
        assert!((metrics.phase_seconds.with_label_values(&["1", "backward"]).get() - 3.0).abs() < 1e-9);
        assert!((metrics.peak_ratio.with_label_values(&["1"]).get() - 0.2).abs() < 1e-9);
        metrics.progress(0, &progress(1, 1.0), &mut Counted::default());
        assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
        let peaks =
            registry.gather().into_iter().find(|family| family.name() == "crescendo_trainer_peak_ratio");
        assert_eq!(peaks.map(|family| family.get_metric().len()), Some(1), "no peak is known of slot 0");
    }

    #[test]
    fn how_fast_a_rank_is_goes_with_it() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, vec![Some(1e13)]).unwrap();
        let shown = |what: &str| registry.gather().iter().any(|family| family.name().ends_with(what));
        let rates = ["samples_per_second", "operations_per_second", "peak_ratio", "data_wait_ratio"];
        metrics.progress(0, &progress(3, 1.5), &mut Counted::default());
        assert!(rates.iter().all(|rate| shown(rate)));
        metrics.rank_gone(0);
        assert_eq!(rates.iter().find(|rate| shown(rate)), None);
        assert!(shown("_loss") && shown("_steps_total"), "what it has come to stays");
        metrics.log_lines_dropped(3);
        metrics.log_lines_dropped(2);
        metrics.log_lines_dropped(5);
        assert_eq!(metrics.log_lines_dropped.get(), 5);
    }

    #[test]
    fn the_last_checkpoint_has_a_time_as_long_as_its_rank_lives() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, Vec::new()).unwrap();
        let there = || {
            let family = registry.gather().into_iter().find(|family| family.name().contains("timestamp"));
            family.map(|family| family.get_metric()[0].get_gauge().get_value())
        };
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        metrics.checkpoint_decided(Some(0), true, at);
        assert_eq!(there(), None, "refused");
        metrics.checkpoint_decided(Some(0), false, at);
        assert_eq!(there(), Some(1.5));
        metrics.rank_gone(0);
        assert_eq!(there(), None);
        assert_eq!(metrics.checkpoints.with_label_values(&["registered"]).get(), 1);
        metrics.attempt_ended(AttemptPhase::Failed);
        assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
    }
}
