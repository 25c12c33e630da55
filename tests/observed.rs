//! What can be seen of a job from outside: one trace through all processes, metrics that the catalogue has, and a file for
//! TensorBoard with every step once, although a rank was killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_proto::v1::SubmitJobRequest;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 40;
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const SUBMITTED_FROM: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

/// A collector that keeps what it is sent.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Names of the spans of our trace, by the service that made them.
type Spans = BTreeMap<String, BTreeSet<String>>;

fn take(request: &ExportTraceServiceRequest, spans: &mut Spans) {
    for resource in &request.resource_spans {
        let attributes = resource.resource.iter().flat_map(|resource| &resource.attributes);
        let named = attributes.filter(|attribute| attribute.key == "service.name");
        let name = named.filter_map(|attribute| attribute.value.as_ref()?.value.as_ref()).next();
        let Some(Value::StringValue(service)) = name else { continue };
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            if span.trace_id == TRACE.to_be_bytes() && !span.parent_span_id.is_empty() {
                spans.entry(service.clone()).or_default().insert(span.name.clone());
            }
        }
    }
}

/// Number of whole records of a file of TensorBoard: each is a length, a checksum, that many bytes and a checksum.
fn records(mut file: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(length) = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
        && let Some(rest) = usize::try_from(length).ok().and_then(|length| file.get(16 + length..))
    {
        file = rest;
        count += 1;
    }
    count
}

/// What a process says once it has no `metric` any more: a rank leaves a moment after its job has ended.
async fn without(process: &str, metric: &str) -> Result<String> {
    let gone = async {
        loop {
            let text = metrics(process).await?;
            if value(&text, metric).is_none() {
                return anyhow::Ok(text);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.context("how fast a rank is, long after it has ended")?
}

/// Waits until TensorBoard's one file has every step. The last of them is appended once the last checkpoint is registered, which
/// ends the job. Three records are of something else: which format it is, what the stage is trained with, and that it is done.
async fn await_curve(folder: &Path) -> Result<()> {
    let whole = async {
        loop {
            let files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().collect();
            if let [Ok(file)] = &files[..] {
                let steps = records(&std::fs::read(file.path())?).saturating_sub(3);
                ensure!(steps <= STEPS, "{steps} records of {STEPS} steps");
                if steps == STEPS {
                    return anyhow::Ok(());
                }
            }
            ensure!(files.len() <= 1, "more than one file: {files:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, whole).await.context("the file never had all steps")?
}

/// The value of one line of `/metrics`.
fn value(text: &str, line: &str) -> Option<f64> {
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

async fn metrics(address: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connect")?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await??;
    Ok(text)
}

fn check_catalogue(text: &str) -> Result<()> {
    let catalogue = include_str!("../docs/metrics.md");
    let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    ensure!(families.len() > 10, "next to nothing is exported:\n{text}");
    for family in families {
        let name = family.split(' ').next().unwrap_or_default();
        ensure!(catalogue.contains(&format!("| `{name}` |")), "{name} is not in docs/metrics.md");
    }
    Ok(())
}

#[tokio::test]
async fn a_job_can_be_followed_through_all_processes() -> Result<()> {
    let (received, mut requests) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let collector = format!("http://{}", listener.local_addr()?);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = TraceServiceServer::new(Collector(received));
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
    });
    let environment = vec![
        ("CRESCENDO_OTLP_ENDPOINT".to_owned(), collector),
        ("CRESCENDO_PEAK_TFLOPS".to_owned(), "0.1".to_owned()),
    ];
    let cluster = Cluster::start(ClusterOptions { environment, ..ClusterOptions::default() }).await?;
    let weights = cluster.train_base().await?;

    let mut request = Request::new(SubmitJobRequest {
        request_id: "followed".to_owned(),
        spec_yaml: lora_spec(&weights, 1, STEPS, 8).into_bytes(),
        validate_only: false,
    });
    request.metadata_mut().insert("traceparent", SUBMITTED_FROM.parse()?);
    let answer = JobServiceClient::new(cluster.channel()?).submit_job(request).await?.into_inner();
    let job_id = answer.job.context("the answer has no job")?.job_id;
    cluster.await_step(&job_id, 0, 5, LIMIT).await?;
    let trainer = cluster.trainers[0].metrics_address()?;
    let ratio = "crescendo_trainer_peak_ratio{slot=\"0\"}";
    let computing = async {
        while value(&metrics(&trainer).await?, ratio).is_none_or(|ratio| ratio <= 0.0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, computing).await.context("no rank says how fast it is")??;
    cluster.kill_9_rank(1)?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    ensure!(job.stages[0].generation > 1, "the kill came too late to matter");

    let wanted: Spans = [
        ("crescendo-controller", vec!["submit", "place attempt", "commit checkpoint"]),
        ("crescendo-curator-node", vec!["unit"]),
        ("crescendo-rank", vec!["attempt", "step", "checkpoint"]),
    ]
    .into_iter()
    .map(|(service, spans)| (service.to_owned(), spans.into_iter().map(str::to_owned).collect()))
    .collect();
    let mut spans = Spans::new();
    let all = async {
        while spans != wanted {
            let request = requests.recv().await.context("the collector has ended")?;
            take(&request, &mut spans);
        }
        anyhow::Ok(())
    };
    let outcome = tokio::time::timeout(LIMIT, all).await;
    ensure!(outcome.is_ok(), "not all spans came, or others did: {spans:?}\n{}", cluster.logs());
    outcome??;

    await_curve(&cluster.objects().join(format!("jobs/{job_id}/stage-1/tensorboard"))).await?;

    for process in std::iter::once(&cluster.controller).chain(&cluster.curators) {
        check_catalogue(&metrics(&process.metrics_address()?).await?)?;
    }
    let text = without(&trainer, ratio).await?;
    check_catalogue(&text)?;
    for wanted in [
        "crescendo_trainer_phase_seconds_total{phase=\"backward\",slot=\"0\"}",
        "crescendo_trainer_steps_total{slot=\"0\"}",
        "process_resident_memory_bytes",
    ] {
        let value = value(&text, wanted);
        ensure!(value.is_some_and(|value| value > 0.0), "{wanted} is {value:?} in:\n{text}");
    }
    Ok(())
}
