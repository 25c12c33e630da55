//! Measures whether drawing waits for its judge: a real curator process redraws references with a nano base, once without a
//! judge and once with an endpoint in this process that takes half a second for every pair, in turns. Prints one line of
//! JSON a round, and one with the medians at the end.
//!
//! `cargo build -p crescendo-curator-node && cargo run -p crescendo-curator-node --example judge_bench -- [UNITS] [UNIT_SIZE] [STEPS] [ROUNDS]`
//!
//! A speed is that of the units between the first and the last: from the lease of the second to that of the last, each of
//! which follows the end of a drawing.

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests of the node need more of it")]
mod support;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use crescendo_core::spec::{EndpointSpec, JudgeFilter, JudgeKind};
use crescendo_dataset::digest::sha256_hex;
use crescendo_model::tch::{self, Device, Kind};
use crescendo_model::{BlockSelection, Flux, FluxConfig, LoraAdapter, weights};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::{AssignCuration, Checkpoint, CheckpointFile, StageRef};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Curator, FakeController, Log, assignment, prepare, wait_for};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a pair's judgement takes; it has three turns.
const JUDGEMENT: Duration = Duration::from_millis(500);
const TURNS: u32 = 3;
const CONCURRENCY: u32 = 8;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    tch::set_num_threads(1);
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| -> Result<u64> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}: {text}")))
    };
    let (units, unit_size) = (number("UNITS", 8)?, number("UNIT_SIZE", 16)?);
    let (steps, rounds) = (number("STEPS", 25)?, number("ROUNDS", 3)?);
    let binary = std::env::current_exe()?;
    let binary = binary.ancestors().nth(2).context("find the build folder")?.join("crescendo-curator-node");
    let binary = std::env::var_os("JUDGE_BENCH_CURATOR").map_or(binary, PathBuf::from);

    let answered = Arc::new(AtomicU64::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let router = Router::new().fallback(answer).with_state(answered.clone());
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await });

    let mut speeds = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let mut order = [(0, None), (1, Some(url.as_str()))];
        // Whoever goes first may find the machine in another state.
        if round % 2 == 1 {
            order.reverse();
        }
        for (n, judge) in order {
            let per_sec = pairs_per_sec(&binary, units, unit_size, steps, judge).await?;
            speeds[n].push(per_sec);
            println!(
                "{}",
                json!({ "round": round, "judged": judge.is_some(), "pairs_per_sec": rounded(per_sec) })
            );
        }
    }
    let [alone, judged] = speeds.map(median);
    println!(
        "{}",
        json!({
            "bench": "drawing_beside_a_judge", "units": units, "unit_size": unit_size, "steps": steps,
            "judgement_seconds": JUDGEMENT.as_secs_f64(), "concurrency": CONCURRENCY,
            "without_a_judge_pairs_per_sec": rounded(alone), "judged_pairs_per_sec": rounded(judged),
            "share": rounded(judged / alone), "answers": answered.load(Ordering::Relaxed),
        })
    );
    Ok(())
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A judge that always gives the same scores, after its part of a judgement's time.
async fn answer(State(answered): State<Arc<AtomicU64>>, body: axum::body::Bytes) -> impl IntoResponse {
    tokio::time::sleep(JUDGEMENT / TURNS).await;
    answered.fetch_add(1, Ordering::Relaxed);
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = match request["messages"].as_array().map_or(0, Vec::len) {
        0..=2 => "Subject: a thing. Parts: shape, colour.",
        3..=4 => "shape: same. colour: same.",
        _ => "{\"scores\": [{\"part\": \"shape\", \"score\": 4}, {\"part\": \"colour\", \"score\": 4}]}",
    };
    let choice =
        json!({ "index": 0, "message": { "role": "assistant", "content": said }, "finish_reason": "stop" });
    let body = json!({ "id": "1", "object": "chat.completion", "choices": [choice] });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string())
}

/// Candidates that a fresh curator draws in a second, with an endpoint at `judge` if there is one.
async fn pairs_per_sec(
    binary: &Path,
    units: u64,
    unit_size: u64,
    steps: u64,
    judge: Option<&str>,
) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let work = redrawing(folder.path(), unit_size, steps, judge)?;
    let log = Arc::new(watch::Sender::new(Log { open_units: units, target: u64::MAX, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let curator = Curator::start(binary, folder.path(), controller)?;
    // The first unit opens the networks.
    wait_for(&log, "the second unit is begun", |log| log.next_unit >= 2).await;
    let started = Instant::now();
    let mut changes = log.subscribe();
    let drawn = changes.wait_for(|log| log.next_unit >= units || !log.failed.is_empty());
    let drawn =
        tokio::time::timeout(Duration::from_secs(600), drawn).await.context("wait for the drawing")??;
    anyhow::ensure!(drawn.failed.is_empty(), "{:?}", drawn.failed);
    drop(drawn);
    let seconds = started.elapsed().as_secs_f64();
    let mut changes = log.subscribe();
    let made = changes.wait_for(|log| log.units.len() as u64 == units || !log.failed.is_empty());
    let made = tokio::time::timeout(Duration::from_secs(600), made).await.context("wait for the judge")??;
    anyhow::ensure!(made.failed.is_empty(), "{:?}", made.failed);
    let pairs: u64 = made.units.values().map(|(shard, _)| shard.pairs).sum();
    anyhow::ensure!(pairs * 2 > units * unit_size, "only {pairs} pairs were there to be judged");
    drop(made);
    anyhow::ensure!(curator.stop().await?.success(), "the curator did not stop cleanly");
    tasks.stop_token().cancel();
    Ok((units - 2) as f64 * unit_size as f64 / seconds)
}

/// Work on a stage that has an adapter redraw second references at 64 pixels.
fn redrawing(root: &Path, unit_size: u64, steps: u64, judge: Option<&str>) -> Result<AssignCuration> {
    prepare(root, 8, 1, 64);
    let config = FluxConfig::nano();
    let mut flux = Flux::init(&config, 3, Kind::Float, Device::Cpu)?;
    weights::save(&root.join("base.safetensors"), &flux.tensors(), &Default::default())?;
    let blocks = BlockSelection::all(&config);
    let mut adapter = LoraAdapter::init(&config, 4, &blocks, 1, Kind::Float, Device::Cpu)?;
    let adapter = weights::to_bytes(&adapter.tensors(), &Default::default())?;
    let spec = format!(
        "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: test}}
spec:
  model: {{preset: nano, precision: f32, weights: base.safetensors}}
  resources: {{gpus: 1}}
  seed: 5
  stages:
    - data: {{source: compose, subjects: subjects}}
    - data: {{source: recompose, subjects: subjects, panel: 64, pairs: 100000, unitSize: {unit_size}, draw: {{steps: {steps}}}}}
"
    );
    let job =
        crescendo_core::spec::parse(spec.as_bytes()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let mut spec = serde_json::to_value(&job)?;
    if let Some(url) = judge {
        let endpoint = EndpointSpec {
            name: "vlm".into(),
            url: url.to_owned(),
            model: "waits".into(),
            key: None,
            concurrency: CONCURRENCY,
            requests_per_minute: 600_000,
            tokens_per_minute: 1_000_000_000,
            timeout_seconds: 20.0,
            tries: 4,
            max_tokens: 200,
            input_price: 0.0,
            output_price: 0.0,
            spend_limit: None,
        };
        let kind = JudgeKind::Endpoint { endpoint: "vlm".into(), retries: 2, image_side: 768 };
        spec["endpoints"] = serde_json::to_value([endpoint])?;
        spec["stages"][1]["data"]["filter"]["judge"] = serde_json::to_value(JudgeFilter { min: 3.0, kind })?;
    }
    let objects = root.join("objects");
    let path = "jobs/test-1/stage-1/checkpoints/step-00000002-g1";
    std::fs::create_dir_all(objects.join(path))?;
    std::fs::write(objects.join(path).join("dit_lora.safetensors"), &adapter)?;
    let file = CheckpointFile {
        name: "dit_lora.safetensors".into(),
        size_bytes: adapter.len() as u64,
        sha256: sha256_hex(&adapter),
    };
    let checkpoint = Checkpoint {
        job_id: "test-1".into(),
        stage: "stage-1".into(),
        step: 2,
        path: path.into(),
        files: vec![file],
        r#final: true,
        ..Checkpoint::default()
    };
    Ok(AssignCuration {
        stage: Some(StageRef { job_id: "test-1".into(), stage: "stage-2".into() }),
        stage_index: 1,
        source_checkpoint: Some(checkpoint),
        ..assignment(serde_json::to_vec(&spec)?, &objects)
    })
}
