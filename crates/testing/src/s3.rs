//! A real S3 server (SeaweedFS, or MinIO where it is chosen) on loopback ports.

mod detour;
mod launch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

pub use detour::Detour;
use launch::{BUCKET, KEY_ID, Launched, SECRET, launch};
use tokio::time::{Instant, sleep};

/// How long a server may take to answer on what may be a busy machine: it elects a leader of one first.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A server with one empty bucket. Killed when dropped.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    child: Child,
    _data: tempfile::TempDir,
}

impl S3Server {
    /// Starts the program that `CRESCENDO_S3_SERVER` names where that file exists, else `weed` on the path, and makes a bucket. A
    /// program whose name begins with `minio` is MinIO, any other SeaweedFS.
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
            Err(error) => panic!("cannot start the S3 server: {error}"),
        }
    }

    async fn start(program: &Path) -> io::Result<Self> {
        let data = tempfile::tempdir()?;
        let Launched { child, port, ready } = launch(program, data.path())?;
        let mut server = Self { port, child, _data: data };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            match ready.holds(&client).await {
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

    /// A way to it on which nothing is changed until [`Detour::grow_old`] is called.
    pub async fn detour(&self) -> io::Result<Detour> {
        Detour::start(self.endpoint(), self.environment(), false).await
    }

    /// A way to it on which the first conditional write of each key is answered with 409: two writers have met, and nothing was
    /// stored.
    pub async fn with_conflicts(&self) -> io::Result<Detour> {
        Detour::start(self.endpoint(), self.environment(), true).await
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
