//! Against a receiver that speaks OTLP over real sockets.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::telemetry::metrics_registry::check_gathered;

const LIMIT: Duration = Duration::from_secs(20);
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let _ = self.0.send(request.into_inner()).await;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn args(endpoint: &str, trace_sample: f64) -> TraceArgs {
    TraceArgs { otlp_endpoint: Some(endpoint.to_owned()), trace_sample }
}

fn spans(requests: &[ExportTraceServiceRequest]) -> Vec<Exported> {
    let resources = requests.iter().flat_map(|request| &request.resource_spans);
    resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
}

/// A submit, with a child whose parent went over a wire, as text.
fn work() {
    let submit = tracing::info_span!(target: TARGET, "submit", job = "j-1");
    set_parent(&submit, CALLER.parse().ok());
    let told = parent_for_others(&submit).map(|parent| parent.to_string()).unwrap_or_default();
    let _ours = submit.entered();
    let _plain = tracing::info_span!("only for the log").entered();
    let unit = tracing::info_span!(
        target: TARGET,
        "unit",
        unit = number(7u64),
        of = number(u64::MAX),
        outcome = tracing::field::Empty
    );
    set_parent(&unit, told.parse().ok());
    end(&unit, "failed", Some("no route to https://id:secret@host/v1"));
    let _done = unit.entered();
}

#[tokio::test]
async fn spans_of_one_trace_reach_a_collector() {
    let (sender, mut received) = mpsc::channel(16);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder();
        let _ = { server }
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(incoming)
            .await;
    });
    let (traces, layer) = Traces::new(&args(&endpoint, 1.0), "crescendo-test", "t-0").unwrap();
    let registry = Registry::new();
    traces.register(&registry).unwrap();
    let counts = traces.counts.clone();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
    let stop = CancellationToken::new();
    tasks.spawn(traces.export(stop.clone()));
    let request = tokio::time::timeout(LIMIT, received.recv()).await.unwrap().unwrap();
    let resource = request.resource_spans[0].resource.clone().unwrap();
    assert!(resource.attributes.iter().any(|attribute| attribute.key == "service.name"), "{resource:?}");
    let mut found = spans(&[request]);
    found.sort_by_key(|span| span.start_time_unix_nano);
    let names: Vec<&str> = found.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["submit", "unit"], "spans for the log stay here");
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert!(found.iter().all(|span| span.trace_id == trace));
    assert_eq!(found[0].parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!(found[1].parent_span_id, found[0].span_id);
    let attribute = |key: &str| {
        let found = found[1].attributes.iter().find(|attribute| attribute.key == key);
        found.and_then(|attribute| attribute.value.clone()?.value)
    };
    assert_eq!(attribute("unit"), Some(Value::IntValue(7)), "a number");
    assert_eq!(attribute("of"), Some(Value::IntValue(i64::MAX)));
    assert_eq!(attribute("outcome"), Some(Value::StringValue("failed".to_owned())));
    let status = found[1].status.clone().unwrap_or_default();
    assert_eq!(status.code, StatusCode::Error as i32);
    assert!(status.message.starts_with("no route to") && !status.message.contains("secret"), "{status:?}");
    assert_eq!(found[0].status.clone().unwrap_or_default().code, StatusCode::Unset as i32);
    assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
    stop.cancel();
    let ended = async { while tasks.join_next().await.is_some_and(|_| counts.exported.get() < 2) {} };
    tokio::time::timeout(LIMIT, ended).await.unwrap();
    assert_eq!(counts.exported.get(), 2);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_only_its_spans() {
    // Nothing listens there once the listener is gone.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (traces, layer) = Traces::new(&args(&endpoint, 1.0), "crescendo-test", "t-0").unwrap();
    let counts = traces.counts.clone();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        // Two spans each; nothing takes them yet.
        for _ in 0..QUEUE {
            work();
        }
    });
    assert_eq!(counts.dropped.with_label_values(&["queue_full"]).get(), QUEUE as u64);
    let stop = CancellationToken::new();
    stop.cancel();
    tokio::time::timeout(LIMIT, traces.export(stop)).await.unwrap();
    assert_eq!(counts.dropped.with_label_values(&["not_taken"]).get(), QUEUE as u64);
    assert_eq!(counts.exported.get(), 0);
}

#[test]
fn what_is_not_sampled_is_not_made() {
    let (traces, layer) = Traces::new(&args("http://127.0.0.1:1", 0.0), "crescendo-test", "t-0").unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
    assert!(traces.outgoing.unwrap().queue.try_recv().is_err());
    let off = TraceArgs { otlp_endpoint: None, trace_sample: 1.0 };
    let (traces, layer) = Traces::new::<tracing_subscriber::Registry>(&off, "crescendo-test", "t-0").unwrap();
    assert!(layer.is_none() && traces.outgoing.is_none());
}

#[test]
fn arguments_are_checked() {
    assert!(parse_endpoint("http://collector:4317").is_ok());
    for bad in
        ["", "collector:4317", "http://collector", "https://collector:4317", "ftp://c:1", "http://a b:1"]
    {
        assert!(parse_endpoint(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_ratio("0.25"), Ok(0.25));
    for bad in ["", "-0.1", "1.1", "NaN", "x"] {
        assert!(parse_ratio(bad).is_err(), "{bad}");
    }
}

#[test]
fn metadata_may_hold_anything() {
    let mut metadata = tonic::metadata::MetadataMap::new();
    assert_eq!(parent_in(&metadata), None);
    metadata.insert(METADATA, "rubbish".parse().unwrap());
    assert_eq!(parent_in(&metadata), None);
    metadata.insert(METADATA, CALLER.parse().unwrap());
    assert_eq!(parent_in(&metadata).map(|parent| parent.to_string()).as_deref(), Some(CALLER));
}
