//! Measures how fast pairs get from a curator to a rank, and what that costs: a real curator process makes a log, then
//! serves it to a client in this process, in order and out of order. Prints one line of JSON a round, and one at the end.
//!
//! `cargo build -p crescendo-curator-node && cargo run -p crescendo-curator-node --example serve_bench -- [PAIRS] [REFERENCES] [PANEL] [ROUNDS]`
//!
//! `CRESCENDO_SHARD_CACHE_MIB` bounds the curator's cache, as ever; `SERVE_BENCH_CURATOR` names another build of it.
//! `SERVE_BENCH_KEEP` names a folder that the log is left in, for other loaders to read.

#[path = "../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, bail};
use crescendo_curator_node::rng::SeededRng;
use crescendo_model::tch::{self, Kind, Tensor};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message as Up;
use crescendo_proto::v1::stream_pairs_response::Message as Down;
use crescendo_proto::v1::{DataType, FetchPairs, GrantCredits, OpenPairs, StreamPairsRequest, TensorData};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Curator, FakeController, Log, assignment, cpu_seconds_of, prepare, wait_for};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

const UNIT_SIZE: u32 = 64;
const CREDITS: u32 = 64;
/// A rank gives credits back in lots of this.
const LOT: u64 = 16;
/// Ranges that are asked for and not served yet.
const AHEAD: usize = 256;
/// Looks at the curator's memory while pairs are made.
const LOOKS: u64 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    tch::set_num_threads(1);
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| -> Result<u64> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}: {text}")))
    };
    let (pairs, references, panel) = (number("PAIRS", 4096)?, number("REFERENCES", 1)?, number("PANEL", 32)?);
    let rounds = number("ROUNDS", 3)?;
    let binary = std::env::current_exe()?;
    let binary = binary.ancestors().nth(2).context("find the build folder")?.join("crescendo-curator-node");
    let binary = std::env::var_os("SERVE_BENCH_CURATOR").map_or(binary, PathBuf::from);

    let folder = tempfile::tempdir()?;
    let objects = match std::env::var_os("SERVE_BENCH_KEEP") {
        Some(kept) => std::path::absolute(kept)?,
        None => folder.path().join("objects"),
    };
    let units = pairs.div_ceil(u64::from(UNIT_SIZE));
    let log = Arc::new(watch::Sender::new(Log { open_units: units, target: pairs, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let spec = prepare(folder.path(), UNIT_SIZE, u32::try_from(references)?, u32::try_from(panel)?);
    let work = assignment(spec, &objects);
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let curator = Curator::start(&binary, folder.path(), controller)?;
    let (address, _) = curator.addresses().await?;
    wait_for(&log, "the first unit is done", |log| log.units.contains_key(&0)).await;
    let started = Instant::now();
    let mut resident_mib = Vec::new();
    for look in 1..=LOOKS {
        wait_for(&log, "more units are done", |log| log.units.len() as u64 >= units * look / LOOKS).await;
        resident_mib.push(curator.resident_mib()?);
    }
    let made_per_sec = (pairs - u64::from(UNIT_SIZE).min(pairs)) as f64 / started.elapsed().as_secs_f64();

    let in_order: Vec<u64> = (0..pairs).collect();
    let mut shuffled = in_order.clone();
    SeededRng::new("serve bench", &[pairs]).shuffle(&mut shuffled);
    let mut best = [(f64::INFINITY, 0); 2];
    let mut first_seconds = None;
    // The first round decodes every shard; what does not fit the cache is read again.
    for round in 0..rounds {
        for (n, (name, order)) in [("in order", &in_order), ("shuffled", &shuffled)].into_iter().enumerate() {
            let (cpu_before, own_before) = (curator.cpu_seconds()?, cpu_seconds_of("self")?);
            let (seconds, bytes) = receive(&address, order).await?;
            let cpu_seconds = curator.cpu_seconds()? - cpu_before;
            let own_seconds = cpu_seconds_of("self")? - own_before;
            first_seconds.get_or_insert(seconds);
            if seconds < best[n].0 {
                best[n] = (seconds, bytes);
            }
            resident_mib.push(curator.resident_mib()?);
            println!(
                "{}",
                serde_json::json!({
                    "round": round, "order": name, "pairs_per_sec": (pairs as f64 / seconds).round(),
                    "curator_cpu_ms_per_pair": (1e6 * cpu_seconds / pairs as f64).round() / 1e3,
                    "pairs_per_cpu_sec": (pairs as f64 / cpu_seconds.max(0.01)).round(),
                    "receiver_cpu_ms_per_pair": (1e6 * own_seconds / pairs as f64).round() / 1e3,
                    "pairs_per_cpu_sec_of_both": (pairs as f64 / (cpu_seconds + own_seconds).max(0.01)).round(),
                })
            );
        }
    }
    let [(seconds, bytes), (shuffled_seconds, _)] = best;
    let line = serde_json::json!({
        "bench": "curator_to_rank", "pairs": pairs, "references": references, "panel": panel,
        "pairs_per_sec": (pairs as f64 / seconds).round(), "mb_per_sec": (bytes as f64 / seconds / 1e4).round() / 100.0,
        "shuffled_pairs_per_sec": (pairs as f64 / shuffled_seconds).round(),
        "first_round_pairs_per_sec": (pairs as f64 / first_seconds.unwrap_or(f64::NAN)).round(),
        "bytes_per_pair": bytes / pairs.max(1), "composed_pairs_per_sec": made_per_sec.round(),
        "resident_mib": resident_mib,
    });
    anyhow::ensure!(curator.stop().await?.success(), "the curator did not stop cleanly");
    println!("{line}");
    tasks.stop_token().cancel();
    Ok(())
}

/// The float32 tensor that a rank makes of what came.
fn floats(data: &TensorData) -> Result<Tensor> {
    let shape: Vec<i64> = data.shape.iter().map(|side| i64::from(*side)).collect();
    let kind = if data.dtype() == DataType::U8 { Kind::Uint8 } else { Kind::Float };
    let mut values = Tensor::f_from_data_size(&data.data, &shape, kind)?.f_to_kind(Kind::Float)?;
    if kind == Kind::Uint8 {
        values = values.f_mul_scalar_(f64::from(data.scale))?.f_add_scalar_(f64::from(data.offset))?;
    }
    Ok(values)
}

/// Fetches the whole log once, in this order; gives seconds and tensor bytes.
async fn receive(address: &str, order: &[u64]) -> Result<(f64, u64)> {
    let mut client = PairServiceClient::connect(format!("http://{address}"))
        .await?
        .max_decoding_message_size(crescendo_proto::MAX_REPLY_BYTES);
    let (requests, outgoing) = mpsc::channel(2 * AHEAD);
    let send = |message| {
        let requests = requests.clone();
        async move {
            requests.send(StreamPairsRequest { message: Some(message) }).await.context("the stream ended")
        }
    };
    send(Up::Open(OpenPairs {
        job_id: "test-1".into(),
        stage: "stage-1".into(),
        generation: 1,
        rank: 0,
        credits: CREDITS,
        takes_bytes: true,
    }))
    .await?;
    // Neighbours in one range, as ranks ask.
    let mut ranges = Vec::new();
    for index in order {
        match ranges.last_mut() {
            Some(FetchPairs { first_index, count }) if *first_index + u64::from(*count) == *index => {
                *count += 1
            }
            _ => ranges.push(FetchPairs { first_index: *index, count: 1 }),
        }
    }
    let mut ranges = ranges.into_iter();
    for range in ranges.by_ref().take(AHEAD) {
        send(Up::Fetch(range)).await?;
    }
    let mut responses = client.stream_pairs(ReceiverStream::new(outgoing)).await?.into_inner();
    let started = Instant::now();
    let (mut received, mut bytes) = (0, 0);
    while received < order.len() as u64 {
        let response = tokio::time::timeout(Duration::from_secs(30), responses.message()).await??;
        match response.and_then(|r| r.message) {
            Some(Down::Pair(pair)) => {
                anyhow::ensure!(
                    order.get(received as usize) == Some(&pair.index),
                    "pair {} came",
                    pair.index
                );
                received += 1;
                for tensor in pair.target.iter().chain(&pair.references) {
                    anyhow::ensure!(floats(tensor)?.dim() == 3, "a latent has three dimensions");
                }
                bytes += crescendo_curator_node::serve::encode::size_bytes(&pair);
                if received % LOT == 0 {
                    send(Up::Grant(GrantCredits { pairs: LOT as u32 })).await?;
                }
                if let Some(range) = ranges.next() {
                    send(Up::Fetch(range)).await?;
                }
            }
            Some(Down::Opened(_) | Down::Status(_)) => {}
            None => bail!("the stream ended after {received} pairs"),
        }
    }
    Ok((started.elapsed().as_secs_f64(), bytes))
}
