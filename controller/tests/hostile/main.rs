//! Everything wrong that a peer can send, against a real controller: it stays up within its bounds, its other clients are
//! served, and its records are what they were.

mod background_client;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use background_client::BackgroundClient;
use crescendo_store::{KEY_PREFIX, StoreLocation};
use crescendo_testing::hostile::{Calls, Victim, attack, families, idle, unfinished};
use tokio::io::AsyncWriteExt as _;

const CALLS: Calls = Calls {
    unary: &[
        "/crescendo.v1.JobService/SubmitJob",
        "/crescendo.v1.JobService/GetJob",
        "/crescendo.v1.JobService/ListJobs",
        "/crescendo.v1.JobService/WatchJob",
        "/crescendo.v1.JobService/CancelJob",
        "/crescendo.v1.JobService/ReadLogs",
        "/crescendo.v1.CurationService/LeaseUnit",
        "/crescendo.v1.CurationService/CommitUnit",
        "/crescendo.v1.CurationService/WatchPairLog",
        "/crescendo.v1.CheckpointService/CommitCheckpoint",
        "/crescendo.v1.CheckpointService/MarkCheckpointDamaged",
    ],
    streams: &["/crescendo.v1.NodeService/OpenSession"],
};
const SEED: u64 = 5;
/// Most memory that the process may have had. It has some 40 MiB when nothing happens.
const MAX_MEMORY_BYTES: u64 = 512 << 20;
const IDLE_CONNECTIONS: usize = 2000;
/// Log lines of a controller that is attacked may not fill its disk.
const MAX_LOG_BYTES: u64 = 8 << 20;

async fn start() -> anyhow::Result<Victim> {
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--store",
        "embedded:{folder}/store",
        "--object-store",
        "file://{folder}/objects",
    ];
    Victim::start(env!("CARGO_BIN_EXE_crescendo-controller"), &args).await.context("start the controller")
}

/// What has to hold after an attack.
async fn held(mut victim: Victim, neighbour: BackgroundClient) -> anyhow::Result<()> {
    let submitted = neighbour.stop().await?;
    ensure!(victim.is_up(), "the controller has ended");
    ensure!(victim.panics().is_empty(), "{:?}", victim.panics());
    let memory_bytes = victim.peak_memory_bytes();
    ensure!(memory_bytes <= MAX_MEMORY_BYTES, "it has had {} MiB", memory_bytes >> 20);
    ensure!(victim.log_bytes() <= MAX_LOG_BYTES, "it has logged {} bytes", victim.log_bytes());

    // Only what the neighbour did is in the records.
    victim.kill();
    let location: StoreLocation = format!("embedded:{}/store", victim.folder.path().display()).parse()?;
    let store = location.open(KEY_PREFIX, None).await?;
    let snapshot = store.snapshot("").await?;
    let keys: Vec<&str> = snapshot.items.iter().map(|record| record.key.as_str()).collect();
    let jobs = keys.iter().filter(|key| key.starts_with("jobs/")).count();
    ensure!(jobs == submitted, "{jobs} jobs, {submitted} were submitted: {keys:?}");
    for kind in ["nodes/", "attempts/", "units/", "shards/", "checkpoints/"] {
        ensure!(!keys.iter().any(|key| key.starts_with(kind)), "{kind} in {keys:?}");
    }
    store.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_hostile_inputs_change_nothing() -> anyhow::Result<()> {
    let victim = start().await?;
    let neighbour = BackgroundClient::start(&victim.address).await?;
    let files = victim.open_files();
    let cases = families(SEED, CALLS);
    ensure!(cases.len() >= 200, "{} cases", cases.len());
    let outcome = attack(&victim.address, cases, 16).await;
    eprintln!(
        "{} inputs, {} connections ended by the controller, {} MiB at most",
        outcome.cases,
        outcome.closed,
        victim.peak_memory_bytes() >> 20
    );
    neighbour.eventually("the connections are closed", || victim.open_files() <= files + 8).await?;
    held(victim, neighbour).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_never_end_leave_room_for_others() -> anyhow::Result<()> {
    let victim = start().await?;
    let neighbour = BackgroundClient::start(&victim.address).await?;
    let mut held_open = Vec::new();
    for path in CALLS.unary.iter().take(2).chain(CALLS.streams) {
        for _ in 0..2 {
            let mut stream = tokio::net::TcpStream::connect(&victim.address).await?;
            // More than the calls that are worked on at a time.
            stream.write_all(&unfinished(path, 1000)).await?;
            held_open.push(stream);
        }
    }
    neighbour.goes_on().await?;
    drop(held_open);
    held(victim, neighbour).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_connections_leave_room_for_others() -> anyhow::Result<()> {
    let victim = start().await?;
    let neighbour = BackgroundClient::start(&victim.address).await?;
    let silent = idle(&victim.address, IDLE_CONNECTIONS, b"").await;
    let opened = idle(&victim.address, IDLE_CONNECTIONS / 4, &unfinished(CALLS.unary[0], 0)).await;
    neighbour.goes_on().await?;
    ensure!(silent.len() + opened.len() >= IDLE_CONNECTIONS, "only {} connections", silent.len());
    drop((silent, opened));
    held(victim, neighbour).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_cost_their_sender_only() -> anyhow::Result<()> {
    let victim = start().await?;
    let neighbour = BackgroundClient::start(&victim.address).await?;
    for size_bytes in [300 << 10, 3 << 20, 9 << 20, 64 << 20] {
        for _ in 0..4 {
            let refused = neighbour.submit_bytes(vec![b'a'; size_bytes]).await;
            ensure!(refused.is_err(), "a spec of {size_bytes} bytes is accepted");
        }
    }
    tokio::time::timeout(Duration::from_secs(30), neighbour.goes_on()).await??;
    held(victim, neighbour).await
}
