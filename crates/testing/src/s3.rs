//! A real S3 server (SeaweedFS) on loopback ports.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long a server may take to answer on what may be a busy machine: it elects a leader of one first.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const BUCKET: &str = "crescendo-test";
const KEY_ID: &str = "test-key";
const SECRET: &str = "test-secret-that-no-one-may-see";

/// A server with one empty bucket. Killed when dropped.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    child: Child,
    _data: tempfile::TempDir,
}

/// What its parts listen on.
struct Ports {
    s3: u16,
    filer: u16,
    /// Flags for all of them.
    flags: Vec<String>,
}

impl Ports {
    fn free() -> io::Result<Ports> {
        const NAMES: [&str; 8] = [
            "-s3.port",
            "-filer.port",
            "-s3.port.grpc",
            "-filer.port.grpc",
            "-master.port",
            "-master.port.grpc",
            "-volume.port",
            "-volume.port.grpc",
        ];
        // All at once, so that no two are the same.
        let taken: Vec<TcpListener> =
            NAMES.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
        let ports: Vec<u16> =
            taken.iter().map(|taken| Ok(taken.local_addr()?.port())).collect::<io::Result<_>>()?;
        let flags = NAMES.iter().zip(&ports).map(|(name, port)| format!("{name}={port}")).collect();
        Ok(Ports { s3: ports[0], filer: ports[1], flags })
    }
}

impl S3Server {
    /// Starts SeaweedFS (`CRESCENDO_S3_SERVER` where that file exists, else `weed` on the path) and makes a bucket.
    ///
    /// When there is none: `None` with a line on stderr, so that a test can skip itself in plain sight; but a panic
    /// where it has to be there, that is with `CI` or `CRESCENDO_REQUIRE_S3` set.
    pub async fn start_or_skip() -> Option<Self> {
        let chosen = std::env::var_os("CRESCENDO_S3_SERVER").map(PathBuf::from).filter(|path| path.exists());
        match Self::start(&chosen.unwrap_or_else(|| "weed".into())).await {
            Ok(server) => Some(server),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let required =
                    ["CI", "CRESCENDO_REQUIRE_S3"].iter().any(|name| std::env::var_os(name).is_some());
                assert!(!required, "an S3 server is required here, but not found: {error}");
                eprintln!("SKIPPED: weed (SeaweedFS) is not on the path (set CRESCENDO_S3_SERVER)");
                None
            }
            Err(error) => panic!("cannot start SeaweedFS: {error}"),
        }
    }

    async fn start(program: &Path) -> io::Result<Self> {
        let data = tempfile::tempdir()?;
        let people = serde_json::json!({ "identities": [{
            "name": "test",
            "credentials": [{ "accessKey": KEY_ID, "secretKey": SECRET }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }] });
        let config = data.path().join("s3.json");
        std::fs::write(&config, people.to_string())?;
        let ports = Ports::free()?;
        let child = Command::new(program)
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-iam=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
            // Small volumes, so that a few fit on any disk.
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=16"])
            .args(&ports.flags)
            .arg(format!("-dir={}", data.path().display()))
            .arg(format!("-s3.config={}", config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { port: ports.s3, child, _data: data };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
        // A bucket is a folder of its file server. That something can be written there says that all parts have found
        // each other.
        let probe = format!("http://127.0.0.1:{}/buckets/{BUCKET}/probe", ports.filer);
        let health = format!("{}/healthz", server.endpoint());
        let ready = async || -> reqwest::Result<()> {
            client.put(&probe).body("written").send().await?.error_for_status()?;
            client.delete(&probe).send().await?.error_for_status()?;
            client.get(&health).send().await?.error_for_status()?;
            Ok(())
        };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            match ready().await {
                Ok(()) => return Ok(server),
                Err(error) if Instant::now() > deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, error));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A place in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The variables by which processes reach it.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// A way to it on which the first conditional write of each key is answered with 409: two writers have met, and nothing was
    /// stored.
    pub async fn with_conflicts(&self) -> io::Result<Conflicts> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
        let counted = Arc::new(AtomicUsize::new(0));
        let way = Way { upstream: self.endpoint(), client, met: Mutex::default(), counted: counted.clone() };
        let app =
            Router::new().fallback(pass_on).layer(DefaultBodyLimit::disable()).with_state(Arc::new(way));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.expect("serve") });
        let mut environment = self.environment();
        for (name, value) in &mut environment {
            if name == "AWS_ENDPOINT_URL" {
                endpoint.clone_into(value);
            }
        }
        Ok(Conflicts { environment, counted, _serving: serving })
    }

    /// What no log, record or answer may have in it.
    pub fn secret(&self) -> &'static str {
        SECRET
    }
}

/// See [`S3Server::with_conflicts`]. Ends when dropped.
#[derive(Debug)]
pub struct Conflicts {
    /// The variables by which processes go this way.
    pub environment: Vec<(String, String)>,
    counted: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Conflicts {
    /// Keys that were answered with 409.
    pub fn count(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
    }
}

struct Way {
    upstream: String,
    client: reqwest::Client,
    met: Mutex<HashSet<String>>,
    counted: Arc<AtomicUsize>,
}

async fn pass_on(
    State(way): State<Arc<Way>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let conditional = method == Method::PUT && headers.contains_key(header::IF_NONE_MATCH);
    if conditional && way.met.lock().expect("unpoisoned").insert(uri.path().to_owned()) {
        way.counted.fetch_add(1, Ordering::Relaxed);
        let text = "<Error><Code>ConditionalRequestConflict</Code><Message>two writers met</Message></Error>";
        return (StatusCode::CONFLICT, text).into_response();
    }
    // With the host that was signed.
    let request = way.client.request(method, format!("{}{uri}", way.upstream)).headers(headers).body(body);
    match request.send().await {
        Ok(answer) => {
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            headers.remove(header::TRANSFER_ENCODING);
            match answer.bytes().await {
                Ok(content) => (status, headers, content).into_response(),
                Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
            }
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
