//! The body of a rank process of a data-parallel fixture.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use crescendo_collective::{GlooOptions, ProcessGroup, Rendezvous};

use super::train_step::write_rank;

/// Arguments of a rank process.
#[derive(Debug, clap::Args)]
pub struct RankArgs {
    /// Sidecar of the fixture.
    #[arg(long)]
    sidecar: PathBuf,
    #[arg(long)]
    rank: usize,
    #[arg(long)]
    world: usize,
    /// Where rank 0 listens; rank 0 itself prints the address instead.
    #[arg(long)]
    rendezvous: Option<SocketAddr>,
    /// File for the results.
    #[arg(long)]
    out: PathBuf,
}

/// The body of a rank process.
pub fn rank_main(args: &RankArgs) -> anyhow::Result<()> {
    crescendo_model::tch::set_num_threads(1);
    let rendezvous = match args.rendezvous {
        Some(address) => Rendezvous::join(address),
        None => {
            let rendezvous = Rendezvous::host(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
            println!("{}", rendezvous.address());
            rendezvous
        }
    };
    let group = ProcessGroup::gloo(args.rank, args.world, rendezvous, &GlooOptions::default())
        .context("meet the other ranks")?;
    write_rank(&args.sidecar, &group, &args.out)?;
    group.leave(GlooOptions::default().timeout)?;
    Ok(())
}
