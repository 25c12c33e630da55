//! What a curator counts.

use crescendo_core::rejection::Rejection;
use crescendo_node::telemetry::metrics_registry::{Metric, Registrar, counter, gauge, histogram, words};
use prometheus::{
    Histogram, IntCounter, IntCounterVec, IntGauge, Registry, exponential_buckets, linear_buckets,
};

const OUTCOMES: [&str; 5] = ["committed", "done_already", "lost", "failed", "released"];
const ENCODED: [&str; 2] = ["encoder", "cache"];
const ORIGINS: [&str; 2] = ["drawn", "kept"];
const ANSWERS: [&str; 6] = ["answered", "recorded", "refused", "unreadable", "spend_limit", "failed"];
const TOKENS: [&str; 2] = ["input", "output"];

/// Names of the reasons, in the order of [`Rejection::ALL`]; a unit is given up by the controller, not here.
const REASONS: [&str; Rejection::OF_CANDIDATES] = {
    let mut names = [""; Rejection::OF_CANDIDATES];
    let mut index = 0;
    while index < names.len() {
        names[index] = Rejection::ALL[index].name();
        index += 1;
    }
    names
};

/// Every metric of a curator.
pub const CATALOGUE: &[Metric] = &[
    counter("crescendo_curator_pairs_accepted_total", "", &[], "Pairs in units that this curator committed."),
    counter(
        "crescendo_curator_pairs_rejected_total",
        "",
        &[words("reason", &REASONS)],
        "Candidates rejected in committed units.",
    ),
    counter(
        "crescendo_curator_units_total",
        "",
        &[words("outcome", &OUTCOMES)],
        "Units that this curator worked on.",
    ),
    histogram("crescendo_curator_unit_seconds", "seconds", &[], "Time to make a unit."),
    counter(
        "crescendo_curator_candidates_total",
        "",
        &[words("from", &ORIGINS)],
        "Candidates of units by where this curator got them: drawn now, or kept on its disk since they were drawn.",
    ),
    histogram(
        "crescendo_curator_draw_seconds",
        "seconds",
        &[],
        "Time to draw a unit and send it through the filters that compute here; judging at an endpoint goes on beside the next.",
    ),
    gauge(
        "crescendo_curator_drawn_bytes",
        "bytes",
        &[],
        "Size of the drawn units that are kept on disk until they are committed.",
    ),
    histogram("crescendo_curator_similarity", "", &[], "Cosine between a reference and its target."),
    histogram("crescendo_curator_judge", "", &[], "Score of a pair by the stage's judge, 0 to 4."),
    counter(
        "crescendo_curator_endpoint_questions_total",
        "",
        &[words("outcome", &ANSWERS)],
        "Questions put to language models.",
    ),
    counter("crescendo_curator_endpoint_tries_total", "", &[], "Requests sent to language models."),
    counter(
        "crescendo_curator_endpoint_tokens_total",
        "",
        &[words("kind", &TOKENS)],
        "Tokens of answered questions.",
    ),
    counter("crescendo_curator_pairs_served_total", "", &[], "Encoded pairs handed to ranks."),
    counter(
        "crescendo_curator_bytes_served_total",
        "",
        &[],
        "Tensor bytes in encoded pairs handed to ranks.",
    ),
    gauge("crescendo_curator_pair_streams", "", &[], "Ranks that have a pair stream open."),
    histogram("crescendo_curator_encode_seconds", "seconds", &[], "Time to encode one batch of pairs."),
    counter(
        "crescendo_curator_encodings_total",
        "",
        &[words("from", &ENCODED)],
        "Prompts and pictures of served pairs by where their encoding came from: computed, or kept on disk; none where encoding costs nothing.",
    ),
    gauge("crescendo_curator_encodings_bytes", "bytes", &[], "Size of the encodings that are kept on disk."),
    counter(
        "crescendo_curator_shards_loaded_total",
        "",
        &[],
        "Whole shards read from the object store to be served.",
    ),
    counter(
        "crescendo_curator_pairs_loaded_total",
        "",
        &[],
        "Single pairs read from the object store to be served, out of shards that were read before.",
    ),
    counter("crescendo_curator_shards_damaged_total", "", &[], "Shards that failed to verify."),
    gauge("crescendo_curator_stages", "", &[], "Stages assigned to this curator."),
];

/// Registered once, passed in.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub pairs_accepted: IntCounter,
    pub pairs_rejected: IntCounterVec,
    pub units: IntCounterVec,
    pub unit_seconds: Histogram,
    pub candidates: IntCounterVec,
    pub draw_seconds: Histogram,
    pub drawn_bytes: IntGauge,
    pub similarity: Histogram,
    pub judge: Histogram,
    pub endpoint_questions: IntCounterVec,
    pub endpoint_tries: IntCounter,
    pub endpoint_tokens: IntCounterVec,
    pub pairs_served: IntCounter,
    pub bytes_served: IntCounter,
    pub streams: IntGauge,
    pub encode_seconds: Histogram,
    pub encodings: IntCounterVec,
    pub encodings_bytes: IntGauge,
    pub shards_loaded: IntCounter,
    pub pairs_loaded: IntCounter,
    pub shards_damaged: IntCounter,
    pub stages: IntGauge,
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let metrics = Metrics {
            pairs_accepted: registrar.counter("crescendo_curator_pairs_accepted_total")?,
            pairs_rejected: registrar.counters("crescendo_curator_pairs_rejected_total")?,
            units: registrar.counters("crescendo_curator_units_total")?,
            unit_seconds: registrar
                .histogram("crescendo_curator_unit_seconds", exponential_buckets(0.01, 3.0, 10)?)?,
            candidates: registrar.counters("crescendo_curator_candidates_total")?,
            draw_seconds: registrar
                .histogram("crescendo_curator_draw_seconds", exponential_buckets(0.01, 3.0, 10)?)?,
            drawn_bytes: registrar.gauge("crescendo_curator_drawn_bytes")?,
            similarity: registrar
                .histogram("crescendo_curator_similarity", linear_buckets(-0.9, 0.1, 20)?)?,
            judge: registrar.histogram("crescendo_curator_judge", linear_buckets(0.25, 0.25, 16)?)?,
            endpoint_questions: registrar.counters("crescendo_curator_endpoint_questions_total")?,
            endpoint_tries: registrar.counter("crescendo_curator_endpoint_tries_total")?,
            endpoint_tokens: registrar.counters("crescendo_curator_endpoint_tokens_total")?,
            pairs_served: registrar.counter("crescendo_curator_pairs_served_total")?,
            bytes_served: registrar.counter("crescendo_curator_bytes_served_total")?,
            streams: registrar.gauge("crescendo_curator_pair_streams")?,
            encode_seconds: registrar
                .histogram("crescendo_curator_encode_seconds", exponential_buckets(0.001, 3.0, 10)?)?,
            encodings: registrar.counters("crescendo_curator_encodings_total")?,
            encodings_bytes: registrar.gauge("crescendo_curator_encodings_bytes")?,
            shards_loaded: registrar.counter("crescendo_curator_shards_loaded_total")?,
            pairs_loaded: registrar.counter("crescendo_curator_pairs_loaded_total")?,
            shards_damaged: registrar.counter("crescendo_curator_shards_damaged_total")?,
            stages: registrar.gauge("crescendo_curator_stages")?,
        };
        registrar.finish()?;
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_node::telemetry::metrics_registry::{check_document, check_gathered};

    #[test]
    fn the_document_has_every_metric() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        check_document(&docs, "curators", CATALOGUE).unwrap();
    }

    #[test]
    fn labels_are_from_the_catalogue() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        for reason in Rejection::ALL.into_iter().take(Rejection::OF_CANDIDATES) {
            metrics.pairs_rejected.with_label_values(&[reason.name()]).inc();
        }
        assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
    }
}
