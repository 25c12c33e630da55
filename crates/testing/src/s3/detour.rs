//! A way to an S3 server that bends its answers.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinSet;

/// When everything was written that has grown old.
const LONG_AGO: &str = "2020-01-01T00:00:00.000Z";

/// A way to a server, see [`super::S3Server::with_conflicts`]. Ends when dropped.
#[derive(Debug)]
pub struct Detour {
    /// The variables by which processes go this way.
    pub environment: Vec<(String, String)>,
    way: Arc<Way>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Way {
    upstream: String,
    client: reqwest::Client,
    /// Keys whose conditional write was refused; None if none is.
    met: Option<Mutex<HashSet<String>>>,
    conflicts: AtomicUsize,
    /// Once set, every listed object is old, but for those whose keys have this in them.
    young: Mutex<Option<String>>,
}

impl Detour {
    /// Serves a way to `upstream`, whose variables `environment` has.
    pub(super) async fn start(
        upstream: String,
        mut environment: Vec<(String, String)>,
        with_conflicts: bool,
    ) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let client = reqwest::Client::builder().no_proxy().build().map_err(io::Error::other)?;
        let way = Arc::new(Way {
            upstream,
            client,
            met: with_conflicts.then(Mutex::default),
            conflicts: AtomicUsize::new(0),
            young: Mutex::default(),
        });
        let app = Router::new().fallback(pass_on).layer(DefaultBodyLimit::disable()).with_state(way.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.expect("serve") });
        for (name, value) in &mut environment {
            if name == "AWS_ENDPOINT_URL" {
                endpoint.clone_into(value);
            }
        }
        Ok(Self { environment, way, _serving: serving })
    }

    /// Keys that were answered with 409.
    pub fn conflicts(&self) -> usize {
        self.way.conflicts.load(Ordering::Relaxed)
    }

    /// From now on lists say of every object that it was written years ago, except where its key has `young` in it.
    pub fn grow_old(&self, young: &str) {
        *self.way.young.lock().expect("unpoisoned") = Some(young.to_owned());
    }
}

impl Way {
    fn is_conflict(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let is_conditional = method == Method::PUT && headers.contains_key(header::IF_NONE_MATCH);
        let Some(met) = self.met.as_ref().filter(|_| is_conditional) else { return false };
        met.lock().expect("unpoisoned").insert(uri.path().to_owned())
    }

    /// The body of an answer as it is passed on.
    fn bent(&self, content: Bytes) -> Bytes {
        let Some(young) = self.young.lock().expect("unpoisoned").clone() else { return content };
        match std::str::from_utf8(&content) {
            Ok(text) if text.contains("<ListBucketResult") => aged(text, &young).into(),
            Ok(_) | Err(_) => content,
        }
    }
}

/// A list in which everything is old whose key does not have `young` in it.
fn aged(list: &str, young: &str) -> String {
    let mut parts = list.split("<Contents>");
    let mut aged = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        aged.push_str("<Contents>");
        match (part.split_once("<LastModified>"), part.split_once("</LastModified>")) {
            (Some((before, _)), Some((_, after))) if !part.contains(young) => {
                aged.extend([before, "<LastModified>", LONG_AGO, "</LastModified>", after]);
            }
            _ => aged.push_str(part),
        }
    }
    aged
}

async fn pass_on(
    State(way): State<Arc<Way>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if way.is_conflict(&method, &uri, &headers) {
        way.conflicts.fetch_add(1, Ordering::Relaxed);
        let text = "<Error><Code>ConditionalRequestConflict</Code><Message>two writers met</Message></Error>";
        return (StatusCode::CONFLICT, text).into_response();
    }
    // A HEAD has the length of what it does not send.
    let has_body = method != Method::HEAD;
    // With the host that was signed.
    let request = way.client.request(method, format!("{}{uri}", way.upstream)).headers(headers).body(body);
    match request.send().await {
        Ok(answer) => {
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            headers.remove(header::TRANSFER_ENCODING);
            match answer.bytes().await {
                Ok(content) => {
                    let content = way.bent(content);
                    if has_body {
                        headers.insert(header::CONTENT_LENGTH, content.len().into());
                    }
                    (status, headers, content).into_response()
                }
                Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
            }
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::aged;

    #[test]
    fn all_but_the_young_grow_old() {
        let list = "<ListBucketResult><Contents><Key>a</Key><LastModified>2026</LastModified></Contents>\
                    <Contents><Key>new</Key><LastModified>2026</LastModified></Contents></ListBucketResult>";
        let expected = list.replacen("2026", super::LONG_AGO, 1);
        assert_eq!(aged(list, "new"), expected);
    }
}
