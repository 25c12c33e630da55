//! A real S3 server (moto) on a loopback port.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a server may take to answer: it is a Python program on what may be a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const BUCKET: &str = "crescendo-test";
const KEY_ID: &str = "test-key";
const SECRET: &str = "test-secret-that-no-one-may-see";

/// A server with one empty bucket. Killed when dropped.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    child: Child,
}

impl S3Server {
    /// Starts moto (`CRESCENDO_S3_SERVER` where that file exists, else `moto_server` on the path) and makes a bucket.
    ///
    /// When there is none: `None` with a line on stderr, so that a test can skip itself in plain sight; but a panic
    /// where it has to be there, that is with `CI` or `CRESCENDO_REQUIRE_S3` set.
    pub async fn start_or_skip() -> Option<Self> {
        let chosen = std::env::var_os("CRESCENDO_S3_SERVER").map(PathBuf::from).filter(|path| path.exists());
        match Self::start(chosen.unwrap_or_else(|| "moto_server".into())).await {
            Ok(server) => Some(server),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let required =
                    ["CI", "CRESCENDO_REQUIRE_S3"].iter().any(|name| std::env::var_os(name).is_some());
                assert!(!required, "an S3 server is required here, but not found: {error}");
                eprintln!("SKIPPED: moto_server is not on the path (set CRESCENDO_S3_SERVER)");
                None
            }
            Err(error) => panic!("cannot start moto_server: {error}"),
        }
    }

    async fn start(program: PathBuf) -> io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { port, child };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            let made = client.put(format!("{}/{BUCKET}", server.endpoint())).send().await;
            if made.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(server);
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
            }
            sleep(Duration::from_millis(50)).await;
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

    /// What no log, record or answer may have in it.
    pub fn secret(&self) -> &'static str {
        SECRET
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
