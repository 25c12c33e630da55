//! A real HTTP server that replays a recorded conversation, matching requests by what is in them.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri, header};
use crescendo_core::reach::Reach;
use crescendo_core::spec::EndpointSpec;
use crescendo_curator_node::llm::keys::Keys;
use crescendo_curator_node::llm::network::{LlmContext, Network};
use crescendo_curator_node::metrics::Metrics;
use crescendo_curator_node::paths::PathResolver;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    contains: Vec<String>,
    messages: usize,
    answers: Vec<Answer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Answer {
    say: Option<String>,
    usage: Option<Value>,
    status: Option<u16>,
    body: String,
    retry_after: Option<String>,
    raw: Option<String>,
    html: Option<String>,
    silent: bool,
    cut: bool,
    flood: bool,
    redirect: Option<String>,
}

/// How a server meets requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As it was recorded.
    #[default]
    Answers,
    /// The answer is held back until this changes.
    Holds,
    /// The server is out of order.
    Fails,
}

/// What a server has been asked.
#[derive(Debug, Default)]
pub struct Seen {
    /// All messages' texts of each request, in the order in which they came.
    pub requests: Mutex<Vec<String>>,
    /// Of each request.
    pub authorizations: Mutex<Vec<Option<String>>>,
    /// Requests to other paths than the one there is.
    pub trapped: AtomicUsize,
    /// Bytes of floods.
    pub flooded: AtomicUsize,
    /// Told of each request.
    pub arrived: Notify,
    /// How requests are met.
    pub manner: watch::Sender<Manner>,
    /// Requests that are held back.
    pub open: AtomicUsize,
    answered: Mutex<BTreeMap<usize, usize>>,
}

impl Seen {
    pub fn count(&self) -> usize {
        self.requests.lock().expect("no panic").len()
    }
}

struct Script {
    exchanges: Vec<Exchange>,
    seen: Arc<Seen>,
}

/// A server, its address, and what a curator needs to ask it.
pub struct Replay {
    pub seen: Arc<Seen>,
    pub url: String,
    pub metrics: Metrics,
    folder: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl Replay {
    /// Serves `tests/fixtures/endpoint/<name>.json`.
    pub async fn start(name: &str) -> Replay {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/endpoint").join(name);
        let text = std::fs::read_to_string(path.with_extension("json")).expect("the recording is there");
        let exchanges: Vec<Exchange> = serde_json::from_str(&text).expect("the recording can be read");
        let seen = Arc::new(Seen::default());
        let script = Arc::new(Script { exchanges, seen: seen.clone() });
        let router = Router::new().fallback(answer).with_state(script);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("register");
        let folder = tempfile::tempdir().expect("make a folder");
        Replay { seen, url, metrics, folder, _serving: serving }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn object_store(&self) -> String {
        format!("file://{}", self.folder.path().join("objects").display())
    }

    pub fn paths(&self) -> PathResolver {
        PathResolver::new(self.folder.path(), &self.object_store(), Reach::Everything)
    }

    /// A curator process of its own that works on job `test`: nothing is shared with others but the object store.
    pub fn llm(&self) -> LlmContext {
        let keys = Keys::from_variables([
            ("CRESCENDO_ENDPOINT_TEST_URL".to_owned(), self.url.clone()),
            ("CRESCENDO_ENDPOINT_TEST_KEY".to_owned(), "sk-secret-123".to_owned()),
        ]);
        LlmContext {
            curators: Default::default(),
            network: Network::new(tokio::runtime::Handle::current(), keys, self.metrics.clone()),
            objects: crescendo_node::objects::open(&self.object_store()).expect("open the object store"),
            job_id: "test".into(),
            reach: Reach::Everything,
        }
    }

    pub fn spec(&self) -> EndpointSpec {
        EndpointSpec {
            name: "vlm".into(),
            url: self.url.clone(),
            model: "recorded".into(),
            key: Some("test".into()),
            concurrency: 4,
            requests_per_minute: 600_000,
            tokens_per_minute: 1_000_000_000,
            timeout_seconds: 20.0,
            tries: 4,
            max_tokens: 200,
            input_price: 0.0,
            output_price: 0.0,
            spend_limit: None,
        }
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    uri: Uri,
    headers: axum::http::HeaderMap,
    body: Bytes,
) -> Response<Body> {
    if uri.path() != "/v1/chat/completions" {
        script.seen.trapped.fetch_add(1, Ordering::SeqCst);
        return status(StatusCode::NOT_FOUND, "no such path", None);
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    script.seen.authorizations.lock().expect("no panic").push(authorization);
    let request: Value = serde_json::from_slice(&body).expect("a request is JSON");
    let messages = request["messages"].as_array().cloned().unwrap_or_default();
    let text = messages.iter().map(words).collect::<Vec<_>>().join("\n");
    script.seen.requests.lock().expect("no panic").push(text.clone());
    script.seen.arrived.notify_one();
    script.seen.open.fetch_add(1, Ordering::SeqCst);
    let mut manner = script.seen.manner.subscribe();
    let manner = *manner.wait_for(|manner| *manner != Manner::Holds).await.expect("the server lives");
    script.seen.open.fetch_sub(1, Ordering::SeqCst);
    if manner == Manner::Fails {
        return status(StatusCode::SERVICE_UNAVAILABLE, "out of order", None);
    }
    let found = script.exchanges.iter().position(|exchange| {
        exchange.messages == messages.len() && exchange.contains.iter().all(|part| text.contains(part))
    });
    let Some(number) = found else {
        return status(StatusCode::NOT_FOUND, "nothing of the kind was recorded", None);
    };
    let answers = &script.exchanges[number].answers;
    let turn = {
        let mut answered = script.seen.answered.lock().expect("no panic");
        let turn = answered.entry(number).or_default();
        *turn += 1;
        *turn - 1
    };
    let answer = answers[turn.min(answers.len() - 1)].clone();
    give(answer, &script.seen).await
}

fn words(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

async fn give(answer: Answer, seen: &Arc<Seen>) -> Response<Body> {
    let json = |bytes: String| typed("application/json; charset=utf-8", Body::from(bytes));
    if let Some(text) = answer.say {
        let choice = json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" });
        let mut body = json!({ "id": "1", "object": "chat.completion", "choices": [choice] });
        if let Some(usage) = answer.usage {
            body["usage"] = usage;
        }
        json(body.to_string())
    } else if let Some(raw) = answer.raw {
        json(raw)
    } else if let Some(html) = answer.html {
        typed("text/html", Body::from(html))
    } else if answer.silent {
        std::future::pending().await
    } else if answer.cut {
        let pieces = [Ok(Bytes::from_static(b"{\"choices\": [")), Err(std::io::Error::other("cut"))];
        // The first piece has to be on its way before the connection ends.
        let pieces = futures::stream::iter(pieces).then(|piece| async {
            tokio::task::yield_now().await;
            piece
        });
        typed("application/json", Body::from_stream(pieces))
    } else if answer.flood {
        let seen = seen.clone();
        let block = Bytes::from(vec![b' '; 1 << 16]);
        let blocks = futures::stream::iter(0..1 << 14).map(move |_| {
            seen.flooded.fetch_add(block.len(), Ordering::SeqCst);
            Ok::<_, Infallible>(block.clone())
        });
        typed("application/json", Body::from_stream(blocks))
    } else if let Some(path) = answer.redirect {
        Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(header::LOCATION, path)
            .body(Body::empty())
            .expect("a response")
    } else {
        let code =
            answer.status.and_then(|code| StatusCode::from_u16(code).ok()).expect("an answer of some kind");
        status(code, &answer.body, answer.retry_after)
    }
}

fn typed(content_type: &str, body: Body) -> Response<Body> {
    Response::builder().header(header::CONTENT_TYPE, content_type).body(body).expect("a response")
}

fn status(code: StatusCode, body: &str, retry_after: Option<String>) -> Response<Body> {
    let mut response = Response::builder().status(code);
    if let Some(wait) = retry_after {
        response = response.header(header::RETRY_AFTER, wait);
    }
    response.body(Body::from(body.to_owned())).expect("a response")
}
