//! Measures how fast pairs get from a curator to a rank: a real curator process makes a log, then serves it to a client
//! in this process. Prints one line of JSON.
//!
//! `cargo build -p crescendo-curator-node && cargo run -p crescendo-curator-node --example serve_bench -- [PAIRS] [REFERENCES]`

#[path = "../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, bail};
use crescendo_node::supervise::Tasks;
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message as Up;
use crescendo_proto::v1::stream_pairs_response::Message as Down;
use crescendo_proto::v1::{FetchPairs, GrantCredits, OpenPairs, StreamPairsRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Curator, FakeController, Log, assignment, prepare, wait_for};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

const UNIT_SIZE: u32 = 64;
const CREDITS: u32 = 64;
/// A rank gives credits back in lots of this.
const LOT: u64 = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pairs: u64 =
        arguments.next().map_or(Ok(4096), |text| text.parse()).context("PAIRS is not a number")?;
    let references: u32 =
        arguments.next().map_or(Ok(1), |text| text.parse()).context("REFERENCES is not a number")?;
    let binary = std::env::current_exe()?;
    let binary = binary.ancestors().nth(2).context("find the build folder")?.join("crescendo-curator-node");

    let folder = tempfile::tempdir()?;
    let units = pairs.div_ceil(u64::from(UNIT_SIZE));
    let log = Arc::new(watch::Sender::new(Log { open_units: units, target: pairs, ..Log::default() }));
    let (tasks, _) = Tasks::new();
    let work = assignment(prepare(folder.path(), UNIT_SIZE, references), &folder.path().join("objects"));
    let controller = FakeController::serve("127.0.0.1:0", log.clone(), work, tasks.clone()).await;
    let curator = Curator::start(&binary, folder.path(), controller)?;
    let (address, _) = curator.addresses().await?;
    wait_for(&log, "the first unit is done", |log| log.units.contains_key(&0)).await;
    let started = Instant::now();
    wait_for(&log, "the log is full", |log| log.units.len() as u64 == units).await;
    let made_per_sec = (pairs - u64::from(UNIT_SIZE).min(pairs)) as f64 / started.elapsed().as_secs_f64();

    let mut rates = Vec::new();
    // The first round decodes every shard; what does not fit the cache is decoded again.
    for _ in 0..3 {
        rates.push(receive(&address, pairs).await?);
    }
    let (seconds, bytes) = rates.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::NAN, 0));
    let line = serde_json::json!({
        "bench": "curator_to_rank", "pairs": pairs, "references": references,
        "pairs_per_sec": (pairs as f64 / seconds).round(), "mb_per_sec": (bytes as f64 / seconds / 1e4).round() / 100.0,
        "first_round_pairs_per_sec": (pairs as f64 / rates[0].0).round(),
        "bytes_per_pair": bytes / pairs.max(1), "composed_pairs_per_sec": made_per_sec.round(),
    });
    anyhow::ensure!(curator.stop().await?.success(), "the curator did not stop cleanly");
    println!("{line}");
    tasks.stop_token().cancel();
    Ok(())
}

/// Fetches the whole log once; gives seconds and tensor bytes.
async fn receive(address: &str, pairs: u64) -> Result<(f64, u64)> {
    let mut client =
        PairServiceClient::connect(format!("http://{address}")).await?.max_decoding_message_size(64 << 20);
    let (requests, outgoing) = mpsc::channel(64);
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
    }))
    .await?;
    send(Up::Fetch(FetchPairs { first_index: 0, count: u32::try_from(pairs)? })).await?;
    let mut responses = client.stream_pairs(ReceiverStream::new(outgoing)).await?.into_inner();
    let started = Instant::now();
    let (mut received, mut bytes) = (0, 0);
    while received < pairs {
        let response = tokio::time::timeout(Duration::from_secs(30), responses.message()).await??;
        match response.and_then(|r| r.message) {
            Some(Down::Pair(pair)) => {
                received += 1;
                bytes += crescendo_curator_node::encode::size_bytes(&pair);
                if received % LOT == 0 {
                    send(Up::Grant(GrantCredits { pairs: LOT as u32 })).await?;
                }
            }
            Some(Down::Opened(_) | Down::Status(_)) => {}
            None => bail!("the stream ended after {received} pairs"),
        }
    }
    Ok((started.elapsed().as_secs_f64(), bytes))
}
