//! `serve-judge`: a judge of pairs at nano size, behind the same endpoint as a vision-language model's.
//!
//! ```text
//!   curator ── POST /v1/chat/completions ──▶ turn 1: what the pictures show, and the parts
//!              two pictures, three turns     turn 2: how the parts differ
//!                                            turn 3: {"scores": [{"part": "colours", "score": 4}, …]}
//! ```
//!
//! It compares a reference with a target by the small networks that measure drawings: by all of the picture, by colours
//! alone, by brightness alone. A part's score says how its cosine lies among those of composed pictures of one subject, and
//! of two: 4 is what two true pictures of one subject have, 0 what two subjects have. It knows no words, looks at whole
//! pictures, and says of photographs as little as the networks do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use clap::Args;
use crescendo_model::tch::{self, Device};
use image::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::measures::judge::{Encoders, PartCosines};

/// Answers a judge's questions about pairs of the nano network over an OpenAI-compatible endpoint, until it is stopped.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  crescendo-workbench serve-judge &\n  crescendo submit examples/nano-judge.yaml"
)]
pub struct ServeJudgeArgs {
    /// Where it listens; anyone who reaches the address may ask
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8011")]
    pub listen: SocketAddr,
}

/// Name of the model, whatever is asked for.
const MODEL: &str = "nano-judge";
/// Largest question: two pictures of 8,192 pixels as PNG rarely have more.
const MAX_BYTES: usize = 32 << 20;
/// Largest side of a picture that is decoded, pixels.
const MAX_SIDE: u32 = 8192;
/// Questions that wait for the networks at most.
const WAITING: usize = 64;
/// Limit of one answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Serves until the process is ended.
pub fn run(args: &ServeJudgeArgs) -> Result<()> {
    let networks = Networks::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("listen at {}", args.listen))?;
        println!("http://{}/v1", listener.local_addr()?);
        axum::serve(listener, app(networks)).await.context("serve")
    })
}

/// A question, and where its answer goes.
type Question = (Asked, oneshot::Sender<Result<String, Refused>>);

/// The networks, on a thread of their own: they are for one at a time.
#[derive(Clone)]
pub struct Networks(mpsc::Sender<Question>);

impl Networks {
    /// Loads them. The thread ends when nobody asks any more.
    pub fn start() -> Result<Self> {
        let (asking, mut asked) = mpsc::channel::<Question>(WAITING);
        let (ready, loaded) = std::sync::mpsc::channel();
        let work = move || {
            tch::set_num_threads(1);
            let encoders = match Encoders::open(None, Device::Cpu) {
                Ok(encoders) => encoders,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            while let Some((question, reply)) = asked.blocking_recv() {
                // Who has gone is not answered.
                if !reply.is_closed() {
                    let _ = reply.send(answer(&encoders, &question));
                }
            }
        };
        std::thread::Builder::new().name("networks".to_owned()).spawn(work).context("start a thread")?;
        loaded.recv().context("the networks' thread ended")?.context("load the networks")?;
        Ok(Self(asking))
    }

    async fn ask(&self, question: Asked) -> Result<String, Refused> {
        let (reply, answered) = oneshot::channel();
        let asking = async {
            self.0.send((question, reply)).await.map_err(|_| Refused::ended())?;
            answered.await.map_err(|_| Refused::ended())?
        };
        tokio::time::timeout(DEADLINE, asking).await.map_err(|_| Refused {
            status: StatusCode::GATEWAY_TIMEOUT,
            reason: format!("no answer within {DEADLINE:?}"),
        })?
    }
}

/// The server's routes.
pub fn app(networks: Networks) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(models))
        .layer(DefaultBodyLimit::max(MAX_BYTES))
        .with_state(networks)
}

async fn models() -> Response {
    of_json(StatusCode::OK, &json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }))
}

fn of_json(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// Why there is no answer, in the form that clients of such endpoints read.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    reason: String,
}

impl Refused {
    fn bad(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: reason.into() }
    }

    fn ended() -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: "the networks have ended".to_owned() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let kind =
            if self.status == StatusCode::BAD_REQUEST { "invalid_request_error" } else { "server_error" };
        let body = json!({ "error": { "message": self.reason, "type": kind, "param": null, "code": null } });
        of_json(self.status, &body)
    }
}

async fn complete(State(networks): State<Networks>, body: Bytes) -> Result<Response, Refused> {
    let asked: Asked = serde_json::from_slice(&body).map_err(|error| Refused::bad(error.to_string()))?;
    let turn = asked.messages.iter().filter(|message| message.role == "user").count();
    let text = networks.ask(asked).await?;
    // It has no tokens; what a small model might have spent.
    let usage = json!({ "prompt_tokens": 200 * turn, "completion_tokens": text.len() / 4 });
    let message = json!({ "role": "assistant", "content": text });
    let choice = json!({ "index": 0, "finish_reason": "stop", "message": message });
    let completion =
        json!({ "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage });
    Ok(of_json(StatusCode::OK, &completion))
}

/// As much of a request as is looked at.
#[derive(Deserialize)]
struct Asked {
    messages: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    /// A text, or a list of parts, some of which are pictures.
    content: Value,
}

impl Said {
    fn pictures(&self) -> impl Iterator<Item = &str> {
        let parts = self.content.as_array().map_or(&[][..], Vec::as_slice);
        parts.iter().filter_map(|part| part["image_url"]["url"].as_str())
    }
}

/// The answer of the turn that a conversation has come to.
fn answer(encoders: &Encoders, asked: &Asked) -> Result<String, Refused> {
    let pictures: Vec<&str> = asked.messages.iter().flat_map(Said::pictures).collect();
    let [reference, target] = pictures[..] else {
        return Err(Refused::bad(format!("messages: {} pictures, and two are compared", pictures.len())));
    };
    let pictures = [decoded("the first picture", reference)?, decoded("the second picture", target)?];
    let turn = asked.messages.iter().filter(|message| message.role == "user").count();
    let cosines = encoders.compare(&pictures[0], &pictures[1]).map_err(|error| Refused {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        reason: format!("{error:#}"),
    })?;
    Ok(match turn {
        0 | 1 => opening(&pictures),
        2 => differences(&cosines),
        _ => scores(&cosines),
    })
}

fn decoded(name: &str, url: &str) -> Result<RgbImage, Refused> {
    let bad = |reason: String| Refused::bad(format!("{name}: {reason}"));
    let (_, data) = url.split_once(";base64,").ok_or_else(|| bad("it is not sent as base64".to_owned()))?;
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(data).map_err(|error| bad(error.to_string()))?;
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| bad(error.to_string()))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    Ok(reader.decode().map_err(|error| bad(error.to_string()))?.into_rgb8())
}

fn opening(pictures: &[RgbImage; 2]) -> String {
    let [one, other] =
        pictures.each_ref().map(|picture| format!("{} × {} pixels", picture.width(), picture.height()));
    format!(
        "Subject: what the first picture shows.\nFirst picture: {one}.\nSecond picture: {other}.\nParts: look, colours, outline."
    )
}

fn differences(cosines: &PartCosines) -> String {
    let line = |(part, cosine, _): (&str, f64, u8)| format!("{part}: cosine {cosine:.3}");
    cosines.parts().map(line).join("\n")
}

fn scores(cosines: &PartCosines) -> String {
    let parts = cosines.parts().map(|(part, _, score)| json!({ "part": part, "score": score }));
    json!({ "scores": parts }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(picture: &RgbImage) -> String {
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let data = base64::engine::general_purpose::STANDARD.encode(png.into_inner());
        format!("data:image/png;base64,{data}")
    }

    fn asked(pictures: &[String], turns: usize) -> Asked {
        let images = pictures.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}}));
        let mut content: Vec<Value> = images.collect();
        content.push(json!({"type": "text", "text": "compare"}));
        let mut messages =
            vec![json!({"role": "system", "content": "judge"}), json!({"role": "user", "content": content})];
        for _ in 1..turns {
            messages.push(json!({"role": "assistant", "content": "well"}));
            messages.push(json!({"role": "user", "content": "and now"}));
        }
        serde_json::from_value(json!({"model": "any", "messages": messages, "temperature": 0})).unwrap()
    }

    fn disc(red: u8, blue: u8) -> RgbImage {
        RgbImage::from_fn(32, 32, |x, y| {
            let (dx, dy) = (x as i32 - 16, y as i32 - 16);
            if dx * dx + dy * dy < 100 { image::Rgb([red, 40, blue]) } else { image::Rgb([240, 240, 240]) }
        })
    }

    #[test]
    fn three_turns_end_with_scores_that_the_judge_reads() {
        let encoders = Encoders::open(None, Device::Cpu).unwrap();
        let same = [url(&disc(220, 30)), url(&disc(220, 30))];
        let told = answer(&encoders, &asked(&same, 1)).unwrap();
        assert!(told.contains("32 × 32") && told.contains("colours"), "{told}");
        assert!(answer(&encoders, &asked(&same, 2)).unwrap().contains("colours: cosine 1.000"));
        let read = |text: &str| -> Vec<u64> {
            let value: Value = serde_json::from_str(text).unwrap();
            value["scores"].as_array().unwrap().iter().map(|part| part["score"].as_u64().unwrap()).collect()
        };
        assert_eq!(read(&answer(&encoders, &asked(&same, 3)).unwrap()), [4, 4, 4]);
        // Asked again, it says the same.
        assert_eq!(read(&answer(&encoders, &asked(&same, 4)).unwrap()), [4, 4, 4]);
        let recoloured = [url(&disc(220, 30)), url(&disc(20, 230))];
        let scores = read(&answer(&encoders, &asked(&recoloured, 3)).unwrap());
        assert!(scores[1] < 4, "other colours are seen: {scores:?}");
    }

    #[test]
    fn what_cannot_be_compared_is_refused_with_the_reason() {
        let encoders = Encoders::open(None, Device::Cpu).unwrap();
        let picture = url(&disc(1, 2));
        let why = |pictures: &[String]| answer(&encoders, &asked(pictures, 1)).unwrap_err().reason;
        assert!(why(std::slice::from_ref(&picture)).contains("1 pictures"));
        assert!(why(&[picture.clone(), "https://example.org/cup.png".into()]).contains("second picture"));
        assert!(why(&["data:image/png;base64,AAAA".into(), picture]).contains("first picture"));
    }
}
