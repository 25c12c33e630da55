//! A running TensorBoard, asked over HTTP as its page asks.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// TensorBoard looks for what is new every five seconds, and begins with a second or more of Python.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A TensorBoard on loopback, killed when dropped.
pub struct TensorBoard {
    port: u16,
    child: Child,
}

impl Drop for TensorBoard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl TensorBoard {
    /// With options `more` beside its own. Nothing where there is no TensorBoard (`CRESCENDO_TENSORBOARD`, else `tensorboard` on the path), in plain sight.
    pub fn start_or_skip(logdir: &Path, more: &[&str]) -> Option<Self> {
        let chosen =
            std::env::var_os("CRESCENDO_TENSORBOARD").map(PathBuf::from).filter(|path| path.exists());
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound").port();
        let spawned = Command::new(chosen.unwrap_or_else(|| "tensorboard".into()))
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--logdir"])
            .arg(logdir)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Some(Self { port, child }),
            Err(error) => {
                let required = ["CRESCENDO_REQUIRE_TENSORBOARD"];
                let required = required.iter().any(|name| std::env::var_os(name).is_some());
                assert!(!required, "TensorBoard is required here, but cannot be started: {error}");
                eprintln!("SKIPPED: tensorboard is not on the path (set CRESCENDO_TENSORBOARD)");
                None
            }
        }
    }

    /// What it answers; nothing while it does not.
    pub async fn ask(&self, path: &str) -> Option<serde_json::Value> {
        let asked = async {
            let address = format!("127.0.0.1:{}", self.port);
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), asked).await.ok()?.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}
