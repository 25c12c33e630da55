//! Ranks as processes of their own: each test starts its own binary again, once a rank, running the same test. There the
//! environment names a rank, and the rank's part runs instead of the parent's.

use anyhow::{Context, Result, ensure};
use crescendo_collective::{GlooOptions, ProcessGroup, Rendezvous};
use crescendo_device::DeviceChoice;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

const RANK: &str = "CRESCENDO_TEST_RANK";
const WORLD: &str = "CRESCENDO_TEST_WORLD";
const ADDRESS: &str = "CRESCENDO_TEST_ADDRESS";
/// Set where ranks are to meet over NCCL, each on the GPU of its own number.
const NCCL: &str = "CRESCENDO_TEST_NCCL";

/// Generous: the tests wait for what happens, and this only ends a hang.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Over what the ranks of a test meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Gloo,
    Nccl,
}

impl Over {
    /// What this machine has for so many ranks: NCCL needs a GPU for each.
    pub fn here(world: usize) -> Result<Vec<Self>> {
        let gpus = DeviceChoice::Auto.gpus()?.count;
        if gpus as usize >= world {
            return Ok(vec![Self::Gloo, Self::Nccl]);
        }
        eprintln!("skipped over NCCL: {world} ranks need as many GPUs, there are {gpus}");
        Ok(vec![Self::Gloo])
    }
}

/// One rank's own view, in its own process.
pub struct Rank {
    pub rank: usize,
    pub world: usize,
    pub rendezvous: Rendezvous,
    over: Over,
}

impl Rank {
    /// `None` in the parent.
    pub fn from_environment() -> Option<Self> {
        let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
        let (rank, world) = (number(RANK)?, number(WORLD)?);
        let over = if std::env::var_os(NCCL).is_some() { Over::Nccl } else { Over::Gloo };
        if over == Over::Nccl {
            // Before libtorch is asked anything.
            assert!(crescendo_device::load_cuda().expect("CUDA loads"), "the parent saw GPUs");
        }
        tch::set_num_threads(1);
        let rendezvous = match std::env::var(ADDRESS) {
            Ok(address) => Rendezvous::join(address.parse().expect("the parent passes an address")),
            Err(_) => {
                let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into()).expect("loopback has free ports");
                say(&format!("address {}", host.address()));
                host
            }
        };
        Some(Self { rank, world, rendezvous, over })
    }

    pub fn connect(self) -> Result<ProcessGroup> {
        let options = GlooOptions { timeout: LIMIT, ..GlooOptions::default() };
        let group = ProcessGroup::gloo(self.rank, self.world, self.rendezvous, &options)?;
        match self.over {
            Over::Gloo => Ok(group),
            Over::Nccl => Ok(group.with_nccl(self.rank, LIMIT)?),
        }
    }
}

/// One line to the parent. The test harness has written on the same line before, so the line starts afresh.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@{line}").and_then(|()| out.flush()).expect("the parent reads");
}

/// Until the parent lets this rank go on.
pub fn await_parent() -> Result<()> {
    ensure!(std::io::stdin().read_line(&mut String::new())? > 0, "the parent is gone");
    Ok(())
}

/// A rank's process. Killed when dropped.
pub struct RankProcess {
    pub child: Child,
    out: BufReader<ChildStdout>,
}

impl RankProcess {
    fn start(test: &str, rank: usize, world: usize, over: Over, address: Option<SocketAddr>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
        command.env(RANK, rank.to_string()).env(WORLD, world.to_string());
        command.env_remove(ADDRESS).env_remove(NCCL).stdin(Stdio::piped()).stdout(Stdio::piped());
        if over == Over::Nccl {
            command.env(NCCL, "1");
        }
        if let Some(address) = address {
            command.env(ADDRESS, address.to_string());
        }
        let mut child = command.spawn().context("start a rank")?;
        let out = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, out })
    }

    /// Reads up to the next line that the rank said.
    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.out.read_line(&mut line)? > 0, "the rank ended without a word");
            if let Some(said) = line.trim_end().strip_prefix('@') {
                return Ok(said.to_owned());
            }
        }
    }

    pub fn expect(&mut self, wanted: &str) -> Result<()> {
        let said = self.hear()?;
        ensure!(said == wanted, "the rank said `{said}` instead of `{wanted}`");
        Ok(())
    }

    /// Ends one `await_parent`.
    pub fn go_on(&mut self) -> Result<()> {
        Ok(writeln!(self.child.stdin.as_mut().context("stdin is piped")?)?)
    }

    pub fn finish(mut self) -> Result<()> {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "a rank failed: {rest}");
        Ok(())
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn start_all(test: &str, world: usize) -> Result<Vec<RankProcess>> {
    start_all_over(Over::Gloo, test, world)
}

pub fn start_all_over(over: Over, test: &str, world: usize) -> Result<Vec<RankProcess>> {
    let mut first = RankProcess::start(test, 0, world, over, None)?;
    let said = first.hear()?;
    let address = said.strip_prefix("address ").with_context(|| format!("rank 0 said `{said}`"))?.parse()?;
    let mut ranks = vec![first];
    for rank in 1..world {
        ranks.push(RankProcess::start(test, rank, world, over, Some(address))?);
    }
    Ok(ranks)
}

/// In the parent: starts `world` ranks of `test` and waits for their success. In a rank: runs `part`.
pub fn together(test: &str, worlds: &[usize], part: fn(ProcessGroup) -> Result<()>) -> Result<()> {
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        part(group.clone())?;
        group.leave(LIMIT)?;
        return Ok(());
    }
    for &world in worlds {
        for rank in start_all(test, world)? {
            rank.finish().with_context(|| format!("{test} with {world} ranks"))?;
        }
    }
    Ok(())
}
