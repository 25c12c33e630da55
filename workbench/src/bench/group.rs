//! `bench group`: a group of one rank on this device: all-reduce, leave, abort.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use crescendo_collective::{CollectiveError, GlooOptions, NcclId, ProcessGroup, ReduceOp, Rendezvous};
use crescendo_model::tch::{Device, Kind, Tensor};
use serde_json::json;

use super::median;
use crate::parity::Output;

/// Limit of each call.
const LIMIT: Duration = Duration::from_secs(60);
/// Size of the reduced buffer, and rounds that are timed.
const MIB: i64 = 64;
const ROUNDS: usize = 9;

/// Flags of `bench group`.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// cpu (over Gloo), cuda, or cuda:INDEX (over NCCL)
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub fn connect(device: Device) -> Result<ProcessGroup> {
    Ok(match device {
        Device::Cpu => {
            let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into())?;
            ProcessGroup::gloo(0, 1, host, &GlooOptions::default())?
        }
        Device::Cuda(index) => ProcessGroup::nccl(0, 1, index, &NcclId::generate()?, LIMIT)?,
        other => bail!("{other:?} has no groups"),
    })
}

/// Runs `bench group`; an error if a call does something else than it should.
pub fn run(args: &GroupArgs) -> Result<()> {
    let device_name = crescendo_device::open(args.device)?;
    let began = Instant::now();
    let group = connect(args.device)?;
    let connected = began.elapsed();
    let tensor = Tensor::f_full([MIB << 18], 3.0, (Kind::Float, args.device))?;
    let mut seconds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        crescendo_device::choice::wait(args.device);
        let began = Instant::now();
        group.all_reduce(&tensor, ReduceOp::Sum, LIMIT)?;
        crescendo_device::choice::wait(args.device);
        seconds.push(began.elapsed().as_secs_f64());
    }
    ensure!(tensor.f_min()?.f_double_value(&[])? == 3.0, "the sum over one rank is not its own value");
    let began = Instant::now();
    group.leave(LIMIT).context("leave")?;
    let left = began.elapsed();
    drop(group);

    // A second group in the same process, and its end by force.
    let group = connect(args.device).context("a second group")?;
    group.all_reduce(&tensor, ReduceOp::Maximum, LIMIT)?;
    let began = Instant::now();
    group.abort();
    let aborted = began.elapsed();
    match group.all_reduce(&tensor, ReduceOp::Sum, LIMIT) {
        Err(CollectiveError::Aborted) => {}
        other => bail!("after an abort, an all-reduce says {other:?}"),
    }
    drop(group);

    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let all_reduce = 1e3 * median(&seconds).context("nothing was timed")?;
    let (connected, left, aborted) = (milliseconds(connected), milliseconds(left), milliseconds(aborted));
    match args.output {
        Output::Json => println!(
            "{}",
            json!({
                "device": device_name, "connect_ms": connected, "all_reduce_64_mib_ms": all_reduce,
                "leave_ms": left, "abort_ms": aborted,
            })
        ),
        Output::Table => println!(
            "{device_name}, one rank: connect {connected:.1} ms, all-reduce of {MIB} MiB {all_reduce:.2} ms, leave {left:.1} ms, \
             abort {aborted:.1} ms"
        ),
    }
    Ok(())
}
