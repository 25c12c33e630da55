//! One plain HTTP request.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The whole answer, head and body, which must be a 200.
pub async fn http_get(address: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connect")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await??;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    Ok(text)
}
