//! All-reduce between two processes of this machine: prints one line of JSON.
//!
//! It starts itself again as rank 1, reduces buffers of 1 and 64 MiB of f32, and tells the median. Bandwidth is that of
//! the algorithm: bytes of the buffer divided by the time.

use anyhow::{Context, Result, ensure};
use crescendo_collective::{GlooOptions, ProcessGroup, ReduceOp, Rendezvous};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const LIMIT: Duration = Duration::from_secs(120);
const SIZES_MIB: [usize; 2] = [1, 64];
const ROUNDS: usize = 15;

fn main() -> Result<()> {
    tch::set_num_threads(1);
    match std::env::args().nth(1) {
        Some(address) => {
            let address = address.parse().context("parse the address of rank 0")?;
            measure(ProcessGroup::gloo(1, 2, Rendezvous::join(address), &GlooOptions::default())?)?;
        }
        None => {
            let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into())?;
            let mut peer = Command::new(std::env::current_exe()?)
                .arg(host.address().to_string())
                .spawn()
                .context("start rank 1")?;
            let medians = measure(ProcessGroup::gloo(0, 2, host, &GlooOptions::default())?)?;
            ensure!(peer.wait()?.success(), "rank 1 failed");
            let figures: Vec<String> = SIZES_MIB
                .iter()
                .zip(medians)
                .map(|(mib, seconds)| {
                    let gb_per_sec = (mib << 20) as f64 / seconds / 1e9;
                    format!(
                        r#""{mib}_mib": {{"milliseconds": {:.3}, "gb_per_sec": {gb_per_sec:.3}}}"#,
                        seconds * 1e3
                    )
                })
                .collect();
            println!(
                r#"{{"bench": "all_reduce_f32", "backend": "gloo", "ranks": 2, "rounds": {ROUNDS}, {}}}"#,
                figures.join(", ")
            );
        }
    }
    Ok(())
}

/// Median seconds of an all-reduce, for each size.
fn measure(group: ProcessGroup) -> Result<Vec<f64>> {
    let mut medians = Vec::with_capacity(SIZES_MIB.len());
    for mib in SIZES_MIB {
        let tensor = Tensor::ones([(mib << 20) as i64 / 4], (Kind::Float, Device::Cpu));
        // The first touches the pages.
        group.all_reduce(&tensor, ReduceOp::Average, LIMIT)?;
        let mut seconds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            group.barrier(LIMIT)?;
            let start = Instant::now();
            group.all_reduce(&tensor, ReduceOp::Sum, LIMIT)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        medians.push(seconds.get(ROUNDS / 2).copied().context("no rounds")?);
    }
    group.leave(LIMIT)?;
    Ok(medians)
}
