//! Everything wrong that a peer can send, against a real curator: it stays up within its bounds and answers others meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message;
use crescendo_proto::v1::{OpenPairs, StreamPairsRequest};
use crescendo_testing::hostile::{Calls, Victim, attack, families, idle, unfinished};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const CALLS: Calls =
    Calls { unary: &["/grpc.health.v1.Health/Check"], streams: &["/crescendo.v1.PairService/StreamPairs"] };
const SEED: u64 = 6;
/// Most memory that the process may have had; libtorch alone takes some 150 MiB.
const MAX_MEMORY_BYTES: u64 = 768 << 20;
const CALL_DEADLINE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(60);

async fn check(channel: Channel) -> anyhow::Result<()> {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel).check(request).await.context("ask for its health")?;
    Ok(())
}

/// Asks for pairs of a stage that is nobody's; the refusal is the answer.
async fn ask_for_pairs(channel: Channel) -> anyhow::Result<()> {
    let open = OpenPairs {
        job_id: "job".into(),
        stage: "stage".into(),
        generation: 1,
        credits: 4,
        ..OpenPairs::default()
    };
    let requests = tokio_stream::iter([StreamPairsRequest { message: Some(Message::Open(open)) }]);
    let mut answers = PairServiceClient::new(channel).stream_pairs(requests).await?.into_inner();
    let refused = answers.message().await.expect_err("the stage is not served");
    ensure!(refused.message().contains("is not served here"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_leave_a_curator_as_it_was() -> anyhow::Result<()> {
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--node-id",
        "victim",
        // Nobody listens there.
        "--controller",
        "127.0.0.1:9",
        "--library-root",
        "{folder}",
        "--device",
        "cpu",
    ];
    let mut victim = Victim::start(env!("CARGO_BIN_EXE_crescendo-curator-node"), &args).await?;
    let channel =
        Endpoint::from_shared(format!("http://{}", victim.address))?.timeout(CALL_DEADLINE).connect().await?;
    check(channel.clone()).await?;
    let files = victim.open_files();

    let cases = families(SEED, CALLS);
    ensure!(cases.len() >= 200, "{} cases", cases.len());
    let address = victim.address.clone();
    let mut attacking = JoinSet::new();
    attacking.spawn(async move { attack(&address, cases, 16).await });
    let mut served = 0;
    let outcome = loop {
        check(channel.clone()).await?;
        served += 1;
        if let Ok(Some(outcome)) =
            tokio::time::timeout(Duration::from_millis(20), attacking.join_next()).await
        {
            break outcome?;
        }
    };
    eprintln!(
        "{} inputs, {} ended by the curator, others served {served} times",
        outcome.cases, outcome.closed
    );

    let held_open = idle(&victim.address, 500, b"").await;
    let begun = idle(&victim.address, 4, &unfinished(CALLS.streams[0], 100)).await;
    check(channel.clone()).await?;
    drop((held_open, begun));
    ask_for_pairs(channel.clone()).await?;

    let waiting = Instant::now();
    while victim.open_files() > files + 8 {
        ensure!(waiting.elapsed() < LIMIT, "{} files are open, {files} were", victim.open_files());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(victim.is_up() && victim.panics().is_empty(), "{:?}", victim.panics());
    let memory_bytes = victim.peak_memory_bytes();
    ensure!(memory_bytes <= MAX_MEMORY_BYTES, "it has had {} MiB", memory_bytes >> 20);
    Ok(())
}
