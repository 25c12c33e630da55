//! Traces over OTLP, an option: one trace from a job's submit to its last checkpoint, over every process in between.
//!
//! ```text
//!   span!(..) ─▶ layer ─▶ queue (bounded) ─▶ Traces::export ──OTLP/gRPC──▶ a collector
//!                            └─ full: dropped, and counted
//! ```
//!
//! Spans are made where they are wanted, with the target [`TARGET`]; other spans are for the log alone. Whether a trace
//! is kept depends on its id and on `--trace-sample`, so that all processes with the same ratio decide alike. Nothing
//! waits for the collector: while it is away spans are dropped, and the process goes on as it would without.

mod export;
mod processor;

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;

use clap::Args;
use crescendo_core::secret::redact;
use crescendo_core::trace::TraceParent;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData};
use prometheus::{IntCounter, IntCounterVec, Registry};
use tokio::sync::mpsc;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::metrics_registry::{Metric, Registrar, counter, words};

/// Target of spans that are exported.
pub const TARGET: &str = "crescendo::trace";
/// Key of the parent in gRPC metadata.
pub const METADATA: &str = "traceparent";
/// Spans that wait for the collector at most.
const QUEUE: usize = 2048;

const DROPS: [&str; 2] = ["queue_full", "not_taken"];

/// What is counted of spans.
pub const CATALOGUE: &[Metric] = &[
    counter("crescendo_trace_spans_exported_total", "", &[], "Spans that the collector has taken."),
    counter(
        "crescendo_trace_spans_dropped_total",
        "",
        &[words("reason", &DROPS)],
        "Spans that were lost: the queue was full, or the collector did not take them.",
    ),
];

/// Where traces go.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Collector that takes traces over OTLP/gRPC, http://HOST:PORT; none are made if absent
    #[arg(long, env = "CRESCENDO_OTLP_ENDPOINT", value_parser = parse_endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that are kept, 0 to 1; should be the same everywhere
    #[arg(long, env = "CRESCENDO_TRACE_SAMPLE", default_value_t = 1.0, value_parser = parse_ratio)]
    pub trace_sample: f64,
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    let uri: tonic::transport::Uri = text.parse().map_err(|_| "must be http://HOST:PORT".to_owned())?;
    match (uri.scheme_str(), uri.port()) {
        (Some("http"), Some(_)) => Ok(text.to_owned()),
        (Some("https"), _) => {
            Err("only plain http is spoken to collectors: run one beside, which sends on over TLS".into())
        }
        _ => Err("must be http://HOST:PORT".into()),
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

#[derive(Clone, Debug)]
struct Counts {
    exported: IntCounter,
    dropped: IntCounterVec,
}

impl Counts {
    fn new() -> prometheus::Result<Self> {
        // The registry that they are shown by comes later.
        let own = Registry::new();
        let mut registrar = Registrar::new(&own, CATALOGUE);
        let counts = Self {
            exported: registrar.counter("crescendo_trace_spans_exported_total")?,
            dropped: registrar.counters("crescendo_trace_spans_dropped_total")?,
        };
        registrar.finish()?;
        Ok(counts)
    }
}

/// The spans of this process on their way out. Nothing leaves before [`Traces::export`] runs.
#[derive(Debug)]
pub struct Traces {
    counts: Counts,
    outgoing: Option<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    endpoint: String,
    resource: Resource,
    queue: mpsc::Receiver<SpanData>,
    /// Ends when this does.
    provider: Arc<SdkTracerProvider>,
}

/// Makes spans of what happens.
pub type SpanLayer<S> = Box<dyn Layer<S> + Send + Sync>;

impl Traces {
    /// `service` is the kind of process, `instance` which one. Returns the layer that makes spans, if any are wanted.
    pub fn new<S>(
        args: &TraceArgs,
        service: &str,
        instance: &str,
    ) -> prometheus::Result<(Self, Option<SpanLayer<S>>)>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let counts = Counts::new()?;
        let Some(endpoint) = args.otlp_endpoint.clone() else {
            return Ok((Self { counts, outgoing: None }, None));
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", service.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        let full = counts.dropped.with_label_values(&["queue_full"]);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::TraceIdRatioBased(args.trace_sample))
            .with_resource(resource.clone())
            .with_span_processor(processor::Queue { sender, full })
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("crescendo"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET));
        let outgoing = Outgoing { endpoint, resource, queue, provider: Arc::new(provider) };
        Ok((Self { counts, outgoing: Some(outgoing) }, Some(layer.boxed())))
    }

    /// Shows what is counted of spans.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.counts.exported.clone()))?;
        registry.register(Box::new(self.counts.dropped.clone()))
    }
}

/// Puts `span` under `parent`. Without a parent it begins a trace of its own.
pub fn set_parent(span: &Span, parent: Option<TraceParent>) {
    if let Some(TraceParent { trace, span: parent }) = parent {
        let context = SpanContext::new(
            TraceId::from_bytes(trace.get().to_be_bytes()),
            SpanId::from_bytes(parent.get().to_be_bytes()),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        // Fails where no traces are made, which is as well.
        let _ = span.set_parent(Context::new().with_remote_span_context(context));
    }
}

/// A number as a span's attribute has it: collectors cannot count with what is sent as text, as unsigned numbers are.
pub fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Notes how what `span` is of has ended, one word, and what went wrong if something did. The span must have been made with an
/// empty field `outcome`.
pub fn end(span: &Span, outcome: &'static str, problem: Option<&str>) {
    span.record("outcome", outcome);
    span.set_status(match problem {
        None => Status::Ok,
        Some(problem) => Status::error(redact(problem).into_owned()),
    });
}

/// What others are told to be parts of, if `span` is part of a trace.
pub fn parent_for_others(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let trace = NonZeroU128::new(u128::from_be_bytes(context.trace_id().to_bytes()))?;
    let span = NonZeroU64::new(u64::from_be_bytes(context.span_id().to_bytes()))?;
    Some(TraceParent { trace, span })
}

/// The parent that a caller names, if it does and it is one.
pub fn parent_in(metadata: &tonic::metadata::MetadataMap) -> Option<TraceParent> {
    metadata.get(METADATA)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
