//! Webhooks are told of the ends of jobs, by a real controller over HTTP to a receiver of this test.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crescendo_proto::v1;
use crescendo_store::testing::EtcdProcess;
use crescendo_testing::controller::Controller;
use crescendo_testing::specs::SPEC;
use crescendo_testing::{LIMIT, eventually};
use ring::hmac;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a receiver got.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// A receiver that answers what it was told to, 200 otherwise; on `/hang` once it is released, on `/endless` with more than anybody
/// reads.
struct Receiver {
    address: String,
    shared: Shared,
    release: watch::Sender<bool>,
    _server: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
    released: watch::Receiver<bool>,
    endless: watch::Sender<Endless>,
}

/// What became of the answer that has no end.
#[derive(Clone, Copy, Default)]
struct Endless {
    bytes: usize,
    given_up: bool,
}

/// Is dropped with the connection.
struct EndlessAnswer(watch::Sender<Endless>);

impl Iterator for EndlessAnswer {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = Bytes::from_static(&[b'x'; 8192]);
        self.0.send_modify(|endless| endless.bytes += chunk.len());
        Some(Ok(chunk))
    }
}

impl Drop for EndlessAnswer {
    fn drop(&mut self) {
        self.0.send_modify(|endless| endless.given_up = true);
    }
}

async fn answer(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let (hangs, endless) = (path == "/hang", path == "/endless");
    shared.got.lock().expect("whole").push(Got { path, headers, body });
    if hangs {
        let mut released = shared.released.clone();
        let _ = released.wait_for(|released| *released).await;
    }
    if endless {
        return Response::new(Body::from_stream(tokio_stream::iter(EndlessAnswer(shared.endless))));
    }
    let status = shared.answers.lock().expect("whole").pop_front().unwrap_or(200);
    (StatusCode::from_u16(status).expect("a status"), [("location", "/elsewhere")]).into_response()
}

impl Receiver {
    async fn start(answers: &[u16]) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (release, released) = watch::channel(false);
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let endless = watch::Sender::new(Endless::default());
        let shared = Shared { got: Arc::default(), answers, released, endless };
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, release, _server: server })
    }

    fn got(&self) -> Vec<Got> {
        self.shared.got.lock().expect("whole").clone()
    }

    /// From now on.
    fn answers(&self, answers: &[u16]) {
        *self.shared.answers.lock().expect("whole") = answers.iter().copied().collect();
    }

    async fn when(&self, count: usize) -> Result<Vec<Got>> {
        eventually("the receiver is told", async || Ok(Some(self.got()).filter(|got| got.len() >= count)))
            .await
    }
}

/// A controller with a tenants file and a folder of secrets.
struct Cluster {
    controller: Controller,
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn start(tenants: &str) -> Result<Self> {
        let (folder, flags) = files(tenants)?;
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Ok(Self { controller: Controller::start_with(&flags).await?, folder })
    }

    /// Submits a job of the tenant and cancels it.
    async fn end_a_job(&self, request_id: &str, tenant: &str) -> Result<String> {
        end_a_job(&self.controller, request_id, tenant).await
    }

    async fn findings(&self, job: &str) -> Result<String> {
        let request = v1::ExplainJobRequest { job_id: job.into() };
        Ok(self.controller.jobs().explain_job(request).await?.into_inner().findings.join("\n"))
    }

    async fn metric(&self, line: &str) -> Result<()> {
        let found = eventually(line, async || {
            Ok(self.controller.metrics().await?.lines().any(|found| found == line).then_some(()))
        });
        match found.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.controller.metrics().await?)),
        }
    }
}

fn files(tenants: &str) -> Result<(tempfile::TempDir, [String; 4])> {
    let folder = tempfile::tempdir()?;
    let (file, secrets) = (folder.path().join("tenants.yaml"), folder.path().join("secrets"));
    std::fs::write(&file, tenants)?;
    std::fs::create_dir(&secrets)?;
    let (file, secrets) = (file.display().to_string(), secrets.display().to_string());
    Ok((folder, ["--tenants".to_owned(), file, "--webhook-secrets".to_owned(), secrets]))
}

async fn end_a_job(controller: &Controller, request_id: &str, tenant: &str) -> Result<String> {
    let metadata = format!("{{name: trial, tenant: {tenant}, labels: {{run: \"7\"}}}}");
    let submitted = controller.submit(request_id, &SPEC.replace("{name: trial}", &metadata)).await?;
    let job_id = submitted.job.context("a job")?.job_id;
    let cancel = v1::CancelJobRequest { job_id: job_id.clone(), reason: "enough \"said\"".into() };
    controller.jobs().cancel_job(cancel).await?;
    Ok(job_id)
}

/// As a receiver checks it.
fn is_signed(got: &Got, secret: &[u8]) -> bool {
    let (id, timestamp) = (got.header("webhook-id"), got.header("webhook-timestamp"));
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &got.body].concat();
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &signed);
    got.header("webhook-signature") == format!("v1,{}", STANDARD.encode(signature))
}

#[tokio::test]
async fn an_end_is_told_once_with_what_it_is_and_signed() -> Result<()> {
    let receiver = Receiver::start(&[]).await?;
    let address = &receiver.address;
    let cluster = Cluster::start(&format!(
        "default: {{webhooks: [{{url: \"http://{address}/all\", secret: chat}}, {{url: \"http://{address}/failed\", events: [failed]}}]}}"
    ))
    .await?;
    let secret = cluster.folder.path().join("secrets/chat");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")?;
    let job = cluster.end_a_job("r-1", "research").await?;
    let first = receiver.when(1).await?.remove(0);
    assert!(is_signed(&first, &STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?), "{first:?}");
    assert_eq!((first.path.as_str(), first.header("content-type")), ("/all", "application/json"));
    let body = first.json();
    for (field, value) in [
        ("id", first.header("webhook-id")),
        ("event", "job.cancelled"),
        ("jobId", &job),
        ("name", "trial"),
        ("tenant", "research"),
        ("state", "cancelled"),
        ("reason", "enough \"said\""),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    assert_eq!(
        (&body["labels"]["run"], &body["attempt"], &body["startedAt"]),
        (&"7".into(), &1.into(), &Value::Null)
    );
    assert!(body["finishedAt"].as_str() >= body["submittedAt"].as_str(), "{body}");

    // Another secret counts from the next delivery on.
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 1").await?;
    std::fs::write(&secret, "plain")?;
    cluster.end_a_job("r-2", "research").await?;
    let second = receiver.when(2).await?.remove(1);
    assert!(is_signed(&second, b"plain"), "{second:?}");
    assert_ne!(second.header("webhook-id"), first.header("webhook-id"));
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 2").await?;
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    assert_eq!(receiver.got().len(), 2, "each once, and none to the one for failures");
    assert!(!cluster.findings(&job).await?.contains("webhook"), "nothing is left to be told");
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_with_the_same_id() -> Result<()> {
    let receiver = Receiver::start(&[500]).await?;
    let cluster =
        Cluster::start(&format!("default: {{webhooks: [{{url: \"http://{}/KEY\"}}]}}", receiver.address))
            .await?;
    let job = cluster.end_a_job("r-1", "research").await?;
    let told = eventually("it is told why", async || {
        let told = cluster.findings(&job).await?;
        Ok(told.contains("it answers 500").then_some(told))
    })
    .await?;
    assert!(
        told.contains(&format!("1 webhook has not been told: http://{} failed 1", receiver.address)),
        "{told}"
    );
    assert!(!told.contains("KEY"), "{told}");
    let got = receiver.when(2).await?;
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
    assert_eq!((got[0].json()["attempt"].as_u64(), got[1].json()["attempt"].as_u64()), (Some(1), Some(2)));
    assert_eq!(got[1].header("webhook-signature"), "", "without a secret nothing is signed");
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 1").await?;
    cluster.metric("crescendo_webhooks_total{outcome=\"failed\"} 1").await?;
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    let log = std::fs::read_to_string(cluster.controller.folder().join("controller.log"))?;
    assert!(log.contains("a webhook cannot be told") && !log.contains("KEY"), "{log}");
    Ok(())
}

#[tokio::test]
async fn redirects_are_not_followed_and_410_is_an_end() -> Result<()> {
    let receiver = Receiver::start(&[302]).await?;
    let cluster =
        Cluster::start(&format!("default: {{webhooks: [{{url: \"http://{}/x\"}}]}}", receiver.address))
            .await?;
    let job = cluster.end_a_job("r-1", "research").await?;
    eventually("it is told why", async || {
        Ok(cluster
            .findings(&job)
            .await?
            .contains("it answers 302, and redirects are not followed")
            .then_some(()))
    })
    .await?;
    receiver.answers(&[410]);
    cluster.metric("crescendo_webhooks_total{outcome=\"given_up\"} 1").await?;
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    let paths: Vec<String> = receiver.got().into_iter().map(|got| got.path).collect();
    assert_eq!(paths, ["/x", "/x"]);
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_other_tenant() -> Result<()> {
    let receiver = Receiver::start(&[]).await?;
    let address = &receiver.address;
    let tenants = format!(
        "tenants:\n  slow: {{webhooks: [{{url: \"http://{address}/hang\"}}]}}\n  fast: {{webhooks: [{{url: \"http://{address}/fast\"}}]}}\n"
    );
    let cluster = Cluster::start(&tenants).await?;
    for request in 0..12 {
        cluster.end_a_job(&format!("slow-{request}"), "slow").await?;
    }
    receiver.when(2).await?;
    cluster.end_a_job("fast", "fast").await?;
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 1").await?;
    let got = receiver.got();
    let hanging = got.iter().filter(|got| got.path == "/hang").count();
    assert_eq!((got.len() - hanging, hanging), (1, 2), "two of a tenant at a time");
    receiver.release.send_replace(true);
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    Ok(())
}

#[tokio::test]
async fn no_more_of_an_answer_is_read_than_its_beginning() -> Result<()> {
    let receiver = Receiver::start(&[]).await?;
    let cluster =
        Cluster::start(&format!("default: {{webhooks: [{{url: \"http://{}/endless\"}}]}}", receiver.address))
            .await?;
    cluster.end_a_job("r-1", "research").await?;
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 1").await?;
    let mut seen = receiver.shared.endless.subscribe();
    let endless = *tokio::time::timeout(LIMIT, seen.wait_for(|endless| endless.given_up)).await??;
    // What the sockets between them hold comes on top; within the ten seconds of a delivery it would be gigabytes.
    assert!(endless.bytes < 64 << 20, "{} bytes", endless.bytes);
    assert_eq!(receiver.got().len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_is_not_told_when_the_controller_dies_is_told_by_the_next() -> Result<()> {
    let receiver = Receiver::start(&[503; 100]).await?;
    let mut cluster =
        Cluster::start(&format!("default: {{webhooks: [{{url: \"http://{}/x\"}}]}}", receiver.address))
            .await?;
    cluster.end_a_job("r-1", "research").await?;
    let first = receiver.when(1).await?.remove(0);
    cluster.controller.kill()?;
    receiver.answers(&[]);
    let before = receiver.got().len();
    cluster.controller.restart().await?;
    let again = receiver.when(before + 1).await?.remove(before);
    assert_eq!(again.header("webhook-id"), first.header("webhook-id"));
    assert_eq!(again.json()["finishedAt"], first.json()["finishedAt"]);
    cluster.metric("crescendo_webhooks_total{outcome=\"delivered\"} 1").await?;
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    Ok(())
}

#[tokio::test]
async fn another_leader_goes_on_with_what_is_not_told() -> Result<()> {
    let Some(etcd) = EtcdProcess::start_or_skip().await else { return Ok(()) };
    let store = Some(format!("etcd:{}", etcd.endpoint()));
    let receiver = Receiver::start(&[503; 100]).await?;
    let (_folder, flags) =
        files(&format!("default: {{webhooks: [{{url: \"http://{}/x\"}}]}}", receiver.address))?;
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut first = Controller::start_process(store.clone(), &flags).await?;
    first.await_leading().await?;
    let mut second = Controller::start_process(store, &flags).await?;
    end_a_job(&first, "r-1", "research").await?;
    let told = receiver.when(1).await?.remove(0);
    first.kill()?;
    receiver.answers(&[]);
    let before = receiver.got().len();
    second.await_leading().await?;
    let again = receiver.when(before + 1).await?.remove(before);
    assert_eq!(again.header("webhook-id"), told.header("webhook-id"));
    Ok(())
}

#[tokio::test]
async fn a_webhook_that_leaves_the_file_is_told_no_more() -> Result<()> {
    let receiver = Receiver::start(&[500; 100]).await?;
    let cluster =
        Cluster::start(&format!("default: {{webhooks: [{{url: \"http://{}/x\"}}]}}", receiver.address))
            .await?;
    cluster.end_a_job("r-1", "research").await?;
    receiver.when(1).await?;
    cluster.metric("crescendo_webhooks_waiting 1").await?;
    std::fs::write(cluster.folder.path().join("tenants.yaml"), "default: {}")?;
    cluster.metric("crescendo_webhooks_total{outcome=\"given_up\"} 1").await?;
    cluster.metric("crescendo_webhooks_waiting 0").await?;
    Ok(())
}

#[tokio::test]
async fn without_its_secret_nothing_is_sent_until_it_is_there() -> Result<()> {
    let receiver = Receiver::start(&[]).await?;
    let cluster = Cluster::start(&format!(
        "default: {{webhooks: [{{url: \"http://{}/x\", secret: chat}}]}}",
        receiver.address
    ))
    .await?;
    let job = cluster.end_a_job("r-1", "research").await?;
    cluster.metric("crescendo_webhooks_total{outcome=\"no_secret\"} 1").await?;
    let told = cluster.findings(&job).await?;
    assert!(told.contains("secret chat cannot be read: No such file"), "{told}");
    assert!(receiver.got().is_empty(), "nothing goes unsigned");
    std::fs::write(cluster.folder.path().join("secrets/chat"), "plain")?;
    assert!(is_signed(&receiver.when(1).await?[0], b"plain"));
    Ok(())
}
