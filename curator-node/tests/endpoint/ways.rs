//! Each way in which servers that people have answer, or fail to: as a judge and as a writer of prompts. One server answers in
//! the way that it is set to, under one model name, so that what a bad way leaves behind would be found by the good one.

use crate::replay::Replay;
use crate::support::{Curator, FakeController, Log, assignment, prepare, wait_for};
use crate::{filter, pair};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, header};
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{EndpointSpec, PromptSpec, PromptStyle};
use crescendo_curator_node::counts::Counts;
use crescendo_curator_node::filters::judge::llm_judge::Answers;
use crescendo_curator_node::filters::judge::{JudgeError, open_remote};
use crescendo_curator_node::llm::network::LlmContext;
use crescendo_curator_node::sources::prompts::{PromptBook, PromptError};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::read_shard;
use crescendo_node::runtime::supervise::Tasks;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is understood in the end.
const UNDERSTOOD: &[&str] = &[
    "right",
    "no-temperature",
    "no-max-tokens",
    "neither",
    "parts",
    "think",
    "lone-think",
    "reasoning-field",
    "reasoning",
    "fence-and-prose",
    "float-scores",
    "string-scores",
    "share-scores",
    "extra-field",
    "no-usage",
    "gzip",
    "retry-ms",
];

#[derive(Default)]
struct Seen {
    way: String,
    /// When requests came.
    at: Vec<Instant>,
}

struct Server {
    seen: Arc<Mutex<Seen>>,
    url: String,
    /// Its object store, and what a curator needs besides.
    around: Replay,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start() -> Server {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let router = Router::new().fallback(answer).with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Server { seen, url, around: Replay::start("judge").await, _serving: serving }
    }

    fn set(&self, way: &str) {
        *self.seen.lock().expect("no panic") = Seen { way: way.to_owned(), at: Vec::new() };
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no panic").at.len()
    }

    fn spec(&self) -> EndpointSpec {
        let spec = self.around.spec();
        EndpointSpec { url: self.url.clone(), key: None, tries: 2, concurrency: 2, ..spec }
    }

    /// A curator process that knows nothing but what lies in the object store.
    fn llm(&self) -> LlmContext {
        self.around.llm()
    }

    /// Judges pairs; the scores, or none with the reason.
    async fn judge(&self, pairs: usize) -> Result<Vec<Result<f64, (Rejection, Value)>>, JudgeError> {
        let judge =
            open_remote(&filter(4.0), &[self.spec()], Some(&self.llm()))?.expect("an endpoint judges");
        let pairs: Vec<Pair> = (0..pairs).map(|n| pair(n as u8, "a cup", "a cup at sea")).collect();
        let (pairs, mut answers) = (Arc::new(pairs), Answers::default());
        judge.ask_about(&pairs, &mut answers, &Counts::default()).await?;
        let judged = judge.judged(Arc::unwrap_or_clone(pairs), answers)?;
        let outcome = |judged: crescendo_curator_node::filters::judge::Judged| match judged.outcome {
            Ok(pair) => Ok(pair.scores["judge"]),
            Err(no) => Err((no.reason, no.pair.expect("it is shown").provenance["judge"].clone())),
        };
        Ok(judged.into_iter().map(outcome).collect())
    }

    /// Has prompts written; how many subjects there are.
    async fn write(&self) -> Result<usize, PromptError> {
        let taxonomy = self.around.folder().join("taxonomy.yaml");
        std::fs::write(taxonomy, "[mug, sword]").expect("write");
        let spec = PromptSpec {
            taxonomy: Some("taxonomy.yaml".into()),
            subjects: None,
            styles: vec![PromptStyle::Realistic],
            subjects_per_category: 2,
            scenes_per_subject: 2,
            endpoint: Some("vlm".into()),
        };
        let (paths, llm) = (self.around.paths(), self.llm());
        let book = PromptBook::write(&spec, &[self.spec()], 5, &paths, &llm).await?;
        Ok(book.expect("a model writes").subjects())
    }

    /// Files of records in the object store.
    fn records(&self) -> usize {
        fn count(folder: &std::path::Path) -> usize {
            let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
            entries.flatten().map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
        }
        let objects = self.around.folder().join("objects");
        count(&objects.join("endpoint")) + count(&objects.join("prompts"))
    }
}

fn words(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// What a server that does all right says to a conversation.
fn right(messages: &[Value]) -> String {
    let last = words(messages.last().expect("a message"));
    if last.starts_with("Name ") {
        let category = last.split('"').nth(1).unwrap_or_default();
        json!({ "subjects": [format!("red {category}"), format!("old {category}")] }).to_string()
    } else if let Some(rest) = last.strip_prefix("For each of the subjects ") {
        let subjects: Vec<String> = serde_json::Deserializer::from_str(rest)
            .into_iter()
            .next()
            .and_then(Result::ok)
            .expect("a list of subjects");
        let scenes = |subject: &String| json!({ "subject": subject, "scenes": [format!("{subject} here"), format!("{subject} there")] });
        json!({ "subjects": subjects.iter().map(scenes).collect::<Vec<_>>() }).to_string()
    } else if last.contains("JSON object") {
        r#"{"scores": [{"part": "handle", "score": 4}, {"part": "body", "score": 4}]}"#.to_owned()
    } else {
        "parts: handle, body".to_owned()
    }
}

fn send(status: u16, body: &Value, headers: &[(&str, String)]) -> Response<Body> {
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(body.to_string())).expect("a response")
}

fn error(status: u16, message: &str, code: &str, param: Option<&str>) -> Response<Body> {
    let error = json!({ "message": message, "type": "error", "code": code, "param": param });
    send(status, &json!({ "error": error }), &[])
}

fn said(content: Value, more: Value, finish: &str) -> Value {
    let mut message = json!({ "role": "assistant", "content": content });
    more.as_object().into_iter().flatten().for_each(|(name, value)| message[name] = value.clone());
    json!({
        "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
        "usage": { "prompt_tokens": 900, "completion_tokens": 30 },
    })
}

fn gzipped(body: &Value) -> Response<Body> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(body.to_string().as_bytes()).expect("pack");
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(Body::from(packer.finish().expect("pack")))
        .expect("a response")
}

async fn answer(State(seen): State<Arc<Mutex<Seen>>>, body: Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).expect("a request is JSON");
    let (way, first) = {
        let mut seen = seen.lock().expect("no panic");
        seen.at.push(Instant::now());
        (seen.way.clone(), seen.at.len() == 1)
    };
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let has_pictures = messages.iter().any(|message| message["content"].is_array());
    let has = |field: &str| body.get(field).is_some();
    let text = right(&messages);
    let plain = |content: Value| send(200, &said(content, json!({}), "stop"), &[]);
    let wait = |name: &str, value: String| {
        send(429, &json!({ "error": { "message": "slow down" } }), &[(name, value)])
    };
    match way.as_str() {
        "no-temperature" | "neither" if has("temperature") => {
            error(400, "only the default is taken", "unsupported_value", Some("temperature"))
        }
        "no-max-tokens" | "neither" if has("max_tokens") => {
            error(400, "Unsupported parameter: 'max_tokens'", "unsupported_parameter", None)
        }
        "parts" => plain(json!([{ "type": "thinking", "thinking": "hm" }, { "type": "text", "text": text }])),
        "think" => plain(json!(format!("<think>\nperhaps 3? {{\"x\": 1}}\n</think>\n\n{text}"))),
        "lone-think" => plain(json!(format!("perhaps {{\"scores\": []}}?</think>{text}"))),
        "reasoning-field" => send(200, &said(Value::Null, json!({ "reasoning_content": text }), "stop"), &[]),
        "reasoning" => send(200, &said(json!(""), json!({ "reasoning": text }), "stop"), &[]),
        "length" => send(200, &said(Value::Null, json!({ "reasoning_content": "hm hm" }), "length"), &[]),
        "empty" => plain(json!("")),
        "ok-429" | "ok-401" | "ok-400" => {
            let code: u16 = way[3..].parse().expect("a number");
            send(200, &json!({ "error": { "message": format!("inner {code}"), "code": code } }), &[])
        }
        "choice-502" => {
            let mut body = said(json!(""), json!({}), "error");
            body["choices"][0]["error"] = json!({ "message": "provider is down", "code": 502 });
            send(200, &body, &[])
        }
        "fence-and-prose" => plain(json!(format!("Here it is:\n\n```json\n{text}\n```\n\nAll parts match."))),
        "float-scores" => plain(json!(text.replace(": 4", ": 4.0"))),
        "string-scores" => plain(json!(text.replace(": 4", ": \"4\""))),
        "share-scores" => plain(json!(text.replace(": 4", ": \"4/4\""))),
        "extra-field" => plain(json!(text.replace(": 4}", ": 4, \"reason\": \"same\"}"))),
        "over" => plain(json!(text.replace(": 4", ": 5"))),
        "prose" => plain(json!("All of it looks much the same to me.")),
        "no-usage" => {
            let mut body = said(json!(text), json!({}), "stop");
            body["usage"] = Value::Null;
            send(200, &body, &[])
        }
        "gzip" => gzipped(&said(json!(text), json!({}), "stop")),
        "retry-date" if first => {
            wait("retry-after", httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3)))
        }
        "retry-handed-on" if first => wait("llm_provider-retry-after", "3".to_owned()),
        "retry-ms" if first => wait("retry-after-ms", "40".to_owned()),
        "quota" => error(429, "no credit left", "insufficient_quota", None),
        "unknown-model" => error(404, "no such model", "model_not_found", None),
        "denied" => error(401, "bad key", "invalid_api_key", None),
        "forbidden" => error(403, "not for you", "", None),
        "no-pictures" if has_pictures => error(500, "image input is not supported", "", None),
        "refused" => error(400, "this cannot be answered", "", None),
        _ => plain(json!(text)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_servers_answer_is_understood() {
    for way in UNDERSTOOD {
        let server = Server::start().await;
        server.set(way);
        let scores: Vec<Result<f64, _>> = server.judge(2).await.unwrap_or_else(|e| panic!("{way}: {e}"));
        assert_eq!(scores, [Ok(4.0), Ok(4.0)], "{way}");
        // Three questions a pair, and what had to be learnt first, once for each of the two that were under way.
        assert!(server.count() <= 2 * 3 + 4, "{way}: {} requests", server.count());
        server.set(way);
        assert_eq!(server.judge(2).await.expect("it is written down"), [Ok(4.0), Ok(4.0)]);
        assert_eq!(server.count(), 0, "{way}: what was understood is not asked again");
        assert_eq!(server.write().await.unwrap_or_else(|e| panic!("{way}: {e}")), 4, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_an_endpoint_wants_to_be_asked_is_remembered() {
    let server = Server::start().await;
    server.set("neither");
    let llm = server.llm();
    let judge = open_remote(&filter(4.0), &[server.spec()], Some(&llm)).expect("open").expect("it judges");
    for round in 0..2u8 {
        server.set("neither");
        let pairs = Arc::new(vec![pair(round, "a cup", "a cup at sea")]);
        judge.ask_about(&pairs, &mut Answers::default(), &Counts::default()).await.expect("judge");
        assert_eq!(server.count(), if round == 0 { 3 + 2 } else { 3 });
    }
}

/// How a bad way ends: as a judge of 40 pairs, then as a writer.
struct Bad {
    way: &'static str,
    /// In the error, or in what is shown of each pair.
    words: &'static str,
    /// Whether the job is to fail, as a judge and as a writer.
    ends: (bool, bool),
    /// Requests at most.
    most: usize,
}

const BAD: &[Bad] = &[
    Bad {
        way: "length",
        words: "stopped at 30 tokens while it was still thinking",
        ends: (true, true),
        most: 30,
    },
    Bad { way: "empty", words: "its answer is empty", ends: (true, true), most: 60 },
    Bad { way: "prose", words: "much the same to me", ends: (true, true), most: 120 },
    Bad { way: "over", words: "the score of part 1 is not a whole number", ends: (true, false), most: 120 },
    Bad { way: "ok-429", words: "error 429 in it: inner 429", ends: (false, false), most: 8 },
    Bad { way: "choice-502", words: "error 502 in it: provider is down", ends: (false, false), most: 8 },
    Bad { way: "ok-401", words: "error 401 in it: inner 401", ends: (true, true), most: 8 },
    Bad { way: "ok-400", words: "error 400 in it: inner 400", ends: (true, true), most: 40 },
    Bad { way: "refused", words: "this cannot be answered", ends: (true, true), most: 40 },
    Bad { way: "quota", words: "no credit left", ends: (true, true), most: 8 },
    Bad { way: "unknown-model", words: "no such model", ends: (true, true), most: 8 },
    Bad { way: "denied", words: "bad key", ends: (true, true), most: 8 },
    Bad { way: "forbidden", words: "not for you", ends: (true, true), most: 8 },
    Bad { way: "no-pictures", words: "image input is not supported", ends: (true, false), most: 8 },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_way_costs_little_says_why_and_leaves_nothing_behind() {
    for Bad { way, words, ends, most } in BAD {
        let server = Server::start().await;
        server.set(way);
        let error = server.judge(40).await.expect_err(way);
        let JudgeError::Endpoint(error) = error else { panic!("{way}: {error}") };
        assert!(error.to_string().contains(words), "{way}: {error}");
        assert_eq!((error.ends_the_job(), error.is_retryable()), (ends.0, !ends.0), "{way}: {error}");
        assert!(server.count() <= *most, "{way}: {} requests", server.count());
        assert_eq!(server.records(), 0, "{way}: nothing was understood");
        if !matches!(*way, "no-pictures" | "over") {
            let error = server.write().await.expect_err(way);
            let PromptError::Endpoint(error) = error else { panic!("{way}: {error}") };
            assert!(error.to_string().contains(words) || *way == "prose", "{way}: {error}");
            assert_eq!(error.ends_the_job(), ends.1, "{way}: {error}");
            assert_eq!(server.records(), 0, "{way}: an empty category is not written");
        }
        // Mended, under the same name: all is asked again, and answered.
        server.set("right");
        assert_eq!(server.judge(2).await.expect("it is mended"), [Ok(4.0), Ok(4.0)], "{way}");
        assert_eq!(server.write().await.expect("it is mended"), 4, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn few_pairs_without_a_readable_answer_are_rejected_with_it() {
    for (way, why) in [("over", "part 1"), ("prose", "no JSON object"), ("length", "stopped at 30 tokens")] {
        let server = Server::start().await;
        server.set(way);
        let judged = server.judge(2).await.expect("two are no reason to stop");
        for outcome in judged {
            let (reason, shown) = outcome.expect_err(way);
            assert_eq!(reason, Rejection::JudgeUnparseable);
            assert!(shown["why"].as_str().is_some_and(|told| told.contains(why)), "{way}: {shown}");
        }
        server.set("right");
        assert_eq!(server.judge(2).await.expect("it is mended"), [Ok(4.0), Ok(4.0)], "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_to_come_back_is_kept_to() {
    for way in ["retry-date", "retry-handed-on"] {
        let server = Server::start().await;
        server.set(way);
        let spec = EndpointSpec { concurrency: 1, ..server.spec() };
        let judge =
            open_remote(&filter(4.0), &[spec], Some(&server.llm())).expect("open").expect("it judges");
        let pairs = Arc::new(vec![pair(1, "a cup", "a cup at sea")]);
        judge.ask_about(&pairs, &mut Answers::default(), &Counts::default()).await.expect("judge");
        let at = server.seen.lock().expect("no panic").at.clone();
        // Dates have whole seconds: three are at least two.
        assert!(at[1] - at[0] >= Duration::from_millis(1900), "{way}: {:?}", at[1] - at[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_older_versions_that_mean_nothing_are_passed_over() {
    let server = Server::start().await;
    server.set("right");
    assert_eq!(server.judge(1).await.expect("judge"), [Ok(4.0)]);
    assert_eq!(server.write().await.expect("write"), 4);
    // As an older version would have left them: answers that nothing is read from, and a category without subjects.
    let objects = server.around.folder().join("objects");
    let spoil = |folder: &str, text: &dyn Fn(&str) -> String| {
        let mut folders = vec![objects.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("list").flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    let old = std::fs::read_to_string(entry.path()).expect("read");
                    std::fs::write(entry.path(), text(&old)).expect("spoil it");
                }
            }
        }
    };
    spoil("endpoint", &|_| json!({ "text": "hm", "inputTokens": 1, "outputTokens": 1 }).to_string());
    spoil("prompts", &|old| {
        let mut category: Value = serde_json::from_str(old).expect("a category");
        category["subjects"] = json!([]);
        category.to_string()
    });
    server.set("right");
    assert_eq!(server.judge(1).await.expect("judge"), [Ok(4.0)]);
    assert_eq!(server.write().await.expect("write"), 4);
    let asked = server.count();
    assert!(asked > 0);
    // What was asked has taken the place of what was spoilt.
    assert_eq!(server.judge(1).await.expect("judge"), [Ok(4.0)]);
    assert_eq!(server.write().await.expect("write"), 4);
    assert_eq!(server.count(), asked);
}

/// Starts a real curator with work on a stage of one unit of 16 pairs that this server judges, and waits for the job's end.
async fn reason_of_the_end(server: &Server) -> String {
    let folder = server.around.folder();
    let mut spec: Value = serde_json::from_slice(&prepare(folder, 16, 1, 32)).expect("a spec");
    spec["endpoints"] = serde_json::to_value([server.spec()]).expect("encode");
    spec["stages"][0]["data"]["filter"]["judge"] = serde_json::to_value(filter(4.0)).expect("encode");
    let log = Arc::new(watch::Sender::new(Log { open_units: 1, target: 16, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let work = assignment(serde_json::to_vec(&spec).expect("encode"), &folder.join("objects"));
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let binary = Path::new(env!("CARGO_BIN_EXE_crescendo-curator-node"));
    let _curator = Curator::start(binary, folder, controller).expect("start the curator");
    let log = wait_for(&log, "the job has failed", |log| log.job_failed.is_some()).await;
    tasks.stop_token().cancel();
    log.job_failed.expect("it has")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_curator_ends_the_job_and_shows_what_it_could_not_read() {
    let server = Server::start().await;
    server.set("prose");
    let reason = reason_of_the_end(&server).await;
    assert!(reason.contains("24 answers in a row could not be read"), "{reason}");
    assert!(reason.contains("All of it looks much the same to me."), "{reason}");
    assert!(server.count() <= 120, "{} requests", server.count());
    let mut folders = vec![server.around.folder().join("objects/jobs")];
    let mut samples = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("list").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.components().any(|part| part.as_os_str() == "rejected") => samples.push(path),
                _ => {}
            }
        }
    }
    let [sample] = samples.as_slice() else { panic!("{samples:?}") };
    let shown = read_shard(std::fs::read(sample).expect("read").as_slice()).expect("it is a shard");
    assert!(!shown.is_empty());
    for pair in shown {
        assert_eq!(pair.provenance["rejected"], "judge_unparseable");
        assert_eq!(pair.provenance["judge"]["said"], "All of it looks much the same to me.");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_curator_ends_the_job_of_an_endpoint_without_credit_after_few_tries() {
    let server = Server::start().await;
    server.set("quota");
    let reason = reason_of_the_end(&server).await;
    assert!(reason.contains("endpoint vlm cannot be used: status 429: no credit left"), "{reason}");
    assert!((3..=24).contains(&server.count()), "{} requests", server.count());
}
