//! Whether the controller serves the web page: it may be built without.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// On loopback an answer takes milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
const GOOD: &[u8] = b"HTTP/1.1 200 ";

/// Where the page is, if it is served at `address`.
pub async fn at(address: &str) -> Option<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut status = [0; GOOD.len()];
        stream.read_exact(&mut status).await.ok()?;
        (status == GOOD).then(|| format!("http://{address}/"))
    };
    tokio::time::timeout(ANSWERS_WITHIN, asking).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answered(answer: &'static [u8]) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, b"HEAD");
            stream.write_all(answer).await.unwrap();
        };
        let (found, ()) = tokio::join!(at(&address), serving);
        found.is_some()
    }

    #[tokio::test]
    async fn only_a_page_that_is_served_is_told_of() {
        assert!(answered(b"HTTP/1.1 200 OK\r\n\r\n").await);
        assert!(!answered(b"HTTP/1.1 404 Not Found\r\n\r\n").await);
        assert!(!answered(b"\0\0\x12\x04").await, "HTTP/2 alone");
    }
}
