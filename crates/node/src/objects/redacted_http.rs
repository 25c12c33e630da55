//! Answers of refused requests, cut down to what may be logged. S3's own may repeat the session token, and what was
//! signed; those of a broken proxy may be of any size.

use async_trait::async_trait;
use futures::StreamExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

/// What is read of such an answer.
const MAX_BODY_BYTES: usize = 64 << 10;
/// What is kept of its code, and of its message.
const MAX_CODE_CHARS: usize = 64;
const MAX_MESSAGE_CHARS: usize = 300;

/// Makes clients whose errors say no more than a code and a message.
#[derive(Debug)]
pub struct Discreet<C> {
    inner: C,
}

impl<C> Discreet<C> {
    pub fn new(inner: C) -> Self {
        Self { inner }
    }
}

impl<C: HttpConnector> HttpConnector for Discreet<C> {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service { inner: self.inner.connect(options)? }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.inner.execute(request).await?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let mut chunks = body.bytes_stream();
        let mut read = Vec::new();
        while let Some(chunk) = chunks.next().await {
            read.extend_from_slice(&chunk?);
            if read.len() > MAX_BODY_BYTES {
                break;
            }
        }
        read.truncate(MAX_BODY_BYTES);
        let text = summary(&String::from_utf8_lossy(&read));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(text)))
    }
}

/// Code and message of an error's XML; nothing of any other answer.
fn summary(body: &str) -> String {
    let element = |name: &str, most: usize| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        let plain = |c: char| if c.is_control() || c == '<' || c == '>' { ' ' } else { c };
        Some(text.chars().take(most).map(plain).collect::<String>())
    };
    let parts = [element("Code", MAX_CODE_CHARS), element("Message", MAX_MESSAGE_CHARS)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_message_are_kept_and_nothing_else() {
        let body = "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>\
                    <Token-0>secret</Token-0><StringToSign>secret</StringToSign></Error>";
        assert_eq!(summary(body), "ExpiredToken: The provided token has expired.");
        assert_eq!(summary("<html>secret</html>"), "");
        assert_eq!(summary("<Code>A\n<b></Code>"), "A  b ");
        let long = format!("<Message>{}</Message>", "ä".repeat(10_000));
        assert_eq!(summary(&long).chars().count(), MAX_MESSAGE_CHARS);
    }
}
