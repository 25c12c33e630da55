//! A server of a few of S3's requests, with a fault.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinSet;

/// What the server and its clients know and nobody else should.
pub const SECRETS: [&str; 3] = ["the-secret-key", "the-session-token", "the-string-that-was-signed"];

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Makes objects that are there already, and says that all is well.
    IgnoresConditions,
    /// Answers 501 to a condition.
    KnowsNoConditions,
    /// Answers so many requests with 503.
    FailsAtFirst(usize),
    /// Answers so many conditional writes of each key with 409: two writers met, and nothing was stored.
    Conflicts(usize),
    /// Refuses everything, with an answer that says too much.
    Refuses,
}

#[derive(Debug)]
struct Server {
    fault: Fault,
    requests: AtomicUsize,
    objects: Mutex<HashMap<String, Bytes>>,
    conflicts: Mutex<HashMap<String, usize>>,
}

pub struct FaultyS3 {
    address: String,
    /// Ends the server when dropped.
    _serving: JoinSet<()>,
}

impl FaultyS3 {
    pub async fn start(fault: Fault) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound").to_string();
        let server = Server {
            fault,
            requests: AtomicUsize::new(0),
            objects: Mutex::default(),
            conflicts: Mutex::default(),
        };
        let app = Router::new().fallback(answer).with_state(Arc::new(server));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.expect("serve") });
        Self { address, _serving: serving }
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", SECRETS[0]),
            ("AWS_SESSION_TOKEN", SECRETS[1]),
            ("AWS_ENDPOINT_URL", &format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

async fn answer(
    State(server): State<Arc<Server>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let number = server.requests.fetch_add(1, Ordering::Relaxed);
    let conditional = headers.contains_key(header::IF_NONE_MATCH);
    match server.fault {
        Fault::Refuses => {
            let text = format!(
                "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>\
                 <Token-0>{}</Token-0><StringToSign>{}</StringToSign></Error>",
                SECRETS[1], SECRETS[2]
            );
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
        Fault::FailsAtFirst(count) if number < count => {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        Fault::KnowsNoConditions if conditional => {
            let text = "<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>";
            return (StatusCode::NOT_IMPLEMENTED, text).into_response();
        }
        Fault::Conflicts(count) if conditional => {
            let mut conflicts = server.conflicts.lock().expect("unpoisoned");
            let so_far = conflicts.entry(uri.path().to_owned()).or_default();
            *so_far += 1;
            if *so_far <= count {
                let text = "<Error><Code>ConditionalRequestConflict</Code><Message>two writers met</Message></Error>";
                return (StatusCode::CONFLICT, text).into_response();
            }
        }
        Fault::IgnoresConditions
        | Fault::KnowsNoConditions
        | Fault::FailsAtFirst(_)
        | Fault::Conflicts(_) => {}
    }
    let mut objects = server.objects.lock().expect("unpoisoned");
    let path = uri.path().to_owned();
    let facts = [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Tue, 03 Nov 2026 10:00:00 GMT")];
    let exists = objects.contains_key(&path);
    match method {
        Method::PUT if conditional && exists && matches!(server.fault, Fault::Conflicts(_)) => {
            StatusCode::PRECONDITION_FAILED.into_response()
        }
        Method::DELETE => {
            objects.remove(&path);
            StatusCode::NO_CONTENT.into_response()
        }
        Method::PUT => {
            objects.insert(path, body);
            (facts, "").into_response()
        }
        Method::GET => match objects.get(&path) {
            Some(content) => (facts, content.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}
