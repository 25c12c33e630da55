//! What the agent tells Prometheus. Ranks are told apart by the slot that they occupy.

use crescendo_proto::v1::{AttemptPhase, RankProgress};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Metrics {
    step: IntGaugeVec,
    loss: GaugeVec,
    grad_norm: GaugeVec,
    learning_rate: GaugeVec,
    samples_per_sec: GaugeVec,
    data_wait_ratio: GaugeVec,
    pub ranks_running: IntGauge,
    pub rank_starts: IntCounter,
    pub rank_failures: IntCounter,
    pub attempts: IntCounterVec,
    pub checkpoint_write_seconds: Histogram,
    pub checkpoints: IntCounterVec,
    pub log_lines_dropped: IntGauge,
}

impl Metrics {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<GaugeVec> {
            let gauge = GaugeVec::new(Opts::new(name, help), &["slot"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let metrics = Self {
            step: IntGaugeVec::new(
                Opts::new("crescendo_trainer_step", "Optimizer steps done in the stage"),
                &["slot"],
            )?,
            loss: gauge(
                "crescendo_trainer_loss",
                "Training loss of the last step, mean over the global batch",
            )?,
            grad_norm: gauge(
                "crescendo_trainer_grad_norm",
                "L2 norm of the last step's gradients before clipping",
            )?,
            learning_rate: gauge("crescendo_trainer_learning_rate", "Learning rate of the last step")?,
            samples_per_sec: gauge(
                "crescendo_trainer_samples_per_second",
                "Samples of the global batch per second, over all ranks of the gang",
            )?,
            data_wait_ratio: gauge(
                "crescendo_trainer_data_wait_ratio",
                "Share of the last step spent waiting for data",
            )?,
            ranks_running: IntGauge::new("crescendo_trainer_ranks_running", "Rank processes that live")?,
            rank_starts: IntCounter::new("crescendo_trainer_rank_starts_total", "Rank processes started")?,
            rank_failures: IntCounter::new(
                "crescendo_trainer_rank_failures_total",
                "Rank processes that ended other than well, or as told",
            )?,
            attempts: IntCounterVec::new(
                Opts::new("crescendo_trainer_attempts_total", "Attempts by how they ended here"),
                &["outcome"],
            )?,
            checkpoint_write_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "crescendo_trainer_checkpoint_write_seconds",
                    "Time to write a checkpoint's files",
                )
                .buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]),
            )?,
            checkpoints: IntCounterVec::new(
                Opts::new("crescendo_trainer_checkpoints_total", "Checkpoints by the registry's answer"),
                &["outcome"],
            )?,
            log_lines_dropped: IntGauge::new(
                "crescendo_trainer_log_lines_dropped",
                "Log lines not sent to the controller because the buffer was full, since the start",
            )?,
        };
        registry.register(Box::new(metrics.step.clone()))?;
        registry.register(Box::new(metrics.ranks_running.clone()))?;
        registry.register(Box::new(metrics.rank_starts.clone()))?;
        registry.register(Box::new(metrics.rank_failures.clone()))?;
        registry.register(Box::new(metrics.attempts.clone()))?;
        registry.register(Box::new(metrics.checkpoint_write_seconds.clone()))?;
        registry.register(Box::new(metrics.checkpoints.clone()))?;
        registry.register(Box::new(metrics.log_lines_dropped.clone()))?;
        Ok(metrics)
    }

    pub fn progress(&self, slot: u32, progress: &RankProgress) {
        let slot = slot.to_string();
        let slot = [slot.as_str()];
        self.step.with_label_values(&slot).set(i64::try_from(progress.step).unwrap_or(i64::MAX));
        self.loss.with_label_values(&slot).set(progress.loss);
        self.grad_norm.with_label_values(&slot).set(progress.grad_norm);
        self.learning_rate.with_label_values(&slot).set(progress.learning_rate);
        self.samples_per_sec.with_label_values(&slot).set(progress.samples_per_sec);
        self.data_wait_ratio.with_label_values(&slot).set(progress.data_wait_fraction);
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
