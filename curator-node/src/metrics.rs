//! What a curator counts.

use crate::pair::Rejection;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets,
    linear_buckets,
};

/// Registered once, passed in.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub pairs_accepted: IntCounter,
    pub pairs_rejected: IntCounterVec,
    /// By outcome: committed, done_already, lost, failed.
    pub units: IntCounterVec,
    pub unit_seconds: Histogram,
    pub similarity: Histogram,
    /// Of every pair that a judge scored.
    pub judge: Histogram,
    /// By outcome: answered, recorded, refused, spend_limit, failed.
    pub endpoint_questions: IntCounterVec,
    /// Requests that were sent.
    pub endpoint_tries: IntCounter,
    /// By kind: input, output.
    pub endpoint_tokens: IntCounterVec,
    pub pairs_served: IntCounter,
    pub bytes_served: IntCounter,
    pub streams: IntGauge,
    pub encode_seconds: Histogram,
    pub shards_loaded: IntCounter,
    pub pairs_loaded: IntCounter,
    pub shards_damaged: IntCounter,
    pub stages: IntGauge,
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(format!("crescendo_curator_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters =
                IntCounterVec::new(Opts::new(format!("crescendo_curator_{name}"), help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(format!("crescendo_curator_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| -> prometheus::Result<Histogram> {
            let options = HistogramOpts::new(format!("crescendo_curator_{name}"), help).buckets(buckets);
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let metrics = Metrics {
            pairs_accepted: counter("pairs_accepted_total", "Pairs in units that this curator committed")?,
            pairs_rejected: counters(
                "pairs_rejected_total",
                "Candidates rejected in committed units",
                "reason",
            )?,
            units: counters("units_total", "Units that this curator worked on", "outcome")?,
            unit_seconds: histogram(
                "unit_seconds",
                "Time to make a unit",
                exponential_buckets(0.01, 3.0, 10)?,
            )?,
            similarity: histogram(
                "similarity",
                "Cosine between a reference and its target",
                linear_buckets(-0.9, 0.1, 20)?,
            )?,
            judge: histogram(
                "judge",
                "Score of a pair by the stage's judge, 0 to 4",
                linear_buckets(0.25, 0.25, 16)?,
            )?,
            endpoint_questions: counters(
                "endpoint_questions_total",
                "Questions put to language models",
                "outcome",
            )?,
            endpoint_tries: counter("endpoint_tries_total", "Requests sent to language models")?,
            endpoint_tokens: counters("endpoint_tokens_total", "Tokens of answered questions", "kind")?,
            pairs_served: counter("pairs_served_total", "Encoded pairs handed to ranks")?,
            bytes_served: counter("bytes_served_total", "Tensor bytes in encoded pairs handed to ranks")?,
            streams: gauge("pair_streams", "Ranks that have a pair stream open")?,
            encode_seconds: histogram(
                "encode_seconds",
                "Time to encode one batch of pairs",
                exponential_buckets(0.001, 3.0, 10)?,
            )?,
            shards_loaded: counter(
                "shards_loaded_total",
                "Whole shards read from the object store to be served",
            )?,
            pairs_loaded: counter(
                "pairs_loaded_total",
                "Single pairs read from the object store to be served, out of shards that were read before",
            )?,
            shards_damaged: counter("shards_damaged_total", "Shards that failed to verify")?,
            stages: gauge("stages", "Stages assigned to this curator")?,
        };
        for reason in Rejection::ALL {
            metrics.pairs_rejected.with_label_values(&[reason.name()]).inc_by(0);
        }
        for outcome in ["committed", "done_already", "lost", "failed"] {
            metrics.units.with_label_values(&[outcome]).inc_by(0);
        }
        for outcome in ["answered", "recorded", "refused", "spend_limit", "failed"] {
            metrics.endpoint_questions.with_label_values(&[outcome]).inc_by(0);
        }
        for kind in ["input", "output"] {
            metrics.endpoint_tokens.with_label_values(&[kind]).inc_by(0);
        }
        Ok(metrics)
    }
}
