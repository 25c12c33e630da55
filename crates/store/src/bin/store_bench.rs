//! Measures a store, and writes to it until it is killed.
//!
//! - `store_bench bench --store embedded:DIR` prints one JSON line: transactions a second, and the 50th and 99th
//!   percentile of their latency, for records created by concurrent writers.
//! - `store_bench write-forever --store embedded:DIR` prints each transaction when it is acknowledged; the crash tests
//!   kill it and compare.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use crescendo_store::{Store, StoreLocation, Txn};
use tokio::task::JoinSet;

#[derive(Parser)]
#[command(about = "Measure a store, or write to it until killed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create records from concurrent writers and print one JSON line of figures.
    Bench {
        #[command(flatten)]
        target: Target,
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Size of each record, in bytes.
        #[arg(long, default_value_t = 1024)]
        value_bytes: usize,
    },
    /// Write pairs of records until killed, printing "WRITER NUMBER REVISION" for each acknowledged pair.
    WriteForever {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args)]
struct Target {
    /// Where to write: embedded:DIR, or etcd: and the URLs of its members with commas between.
    #[arg(long)]
    store: StoreLocation,
    /// How many write at the same time.
    #[arg(long, default_value_t = 64)]
    writers: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench { target, seconds, value_bytes } => {
            let measured = Duration::try_from_secs_f64(seconds).context("read --seconds")?;
            bench(target, measured, value_bytes).await
        }
        Command::WriteForever { target } => write_forever(target).await,
    }
}

async fn bench(target: Target, measured: Duration, value_bytes: usize) -> anyhow::Result<()> {
    // A prefix of its own, so that runs on the same store do not meet.
    let run_id = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let store = target.store.open(&format!("/bench/{run_id}/"), None).await.context("open the store")?;
    let started = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..target.writers {
        let store = store.clone();
        writers.spawn(async move {
            let value = bytes::Bytes::from(vec![b'x'; value_bytes]);
            let mut latencies = Vec::new();
            while started.elapsed() < measured {
                let key = format!("jobs/{writer}-{}", latencies.len());
                let sent = Instant::now();
                store.txn(Txn::new().absent(&key).put(&key, value.clone())).await?;
                latencies.push(sent.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(joined) = writers.join_next().await {
        latencies.extend(joined??);
    }
    let seconds = started.elapsed().as_secs_f64();
    store.close().await;
    latencies.sort();
    let percentile_ms = |percent: usize| {
        latencies
            .get(latencies.len().saturating_sub(1) * percent / 100)
            .map(|latency| latency.as_secs_f64() * 1e3)
    };
    let figures = serde_json::json!({
        "store": target.store.to_string(),
        "writers": target.writers,
        "value_bytes": value_bytes,
        "transactions": latencies.len(),
        "seconds": seconds,
        "transactions_per_sec": latencies.len() as f64 / seconds,
        "p50_ms": percentile_ms(50),
        "p99_ms": percentile_ms(99),
    });
    println!("{figures}");
    Ok(())
}

/// Each writer counts its own number up, and writes it into two records and a new third one, in one transaction.
async fn write_forever(target: Target) -> anyhow::Result<()> {
    let store = target.store.open("/crash/v1/", None).await.context("open the store")?;
    let mut writers = JoinSet::new();
    for writer in 0..target.writers {
        writers.spawn(write_pairs(store.clone(), writer));
    }
    while let Some(joined) = writers.join_next().await {
        joined??;
    }
    Ok(())
}

async fn write_pairs(store: Arc<dyn Store>, writer: usize) -> anyhow::Result<()> {
    let (left, right) = (format!("left/{writer}"), format!("right/{writer}"));
    let mut number: u64 = match store.get(&left).await? {
        Some(record) => std::str::from_utf8(&record.value)?.parse()?,
        None => 0,
    };
    loop {
        number += 1;
        let new = format!("log/{writer}/{number:08}");
        let value = number.to_string();
        let txn = Txn::new().absent(&new).put(&left, value.clone()).put(&right, value).put(&new, "");
        let revision = store.txn(txn).await?;
        // One write call a line, so that a kill does not cut one in two.
        std::io::stdout().lock().write_all(format!("{writer} {number} {revision}\n").as_bytes())?;
    }
}
