//! Groups of real processes. Each test starts its own binary again, once a rank, running the same test: there the
//! environment names a rank, and the rank's part runs instead of the parent's.

use anyhow::{Context, Result, bail, ensure};
use crescendo_collective::{
    CollectiveError, GlooOptions, MAX_GATHER_BYTES, OverlappedReducer, ProcessGroup, ReduceOp,
    Rendezvous,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const RANK: &str = "CRESCENDO_TEST_RANK";
const WORLD: &str = "CRESCENDO_TEST_WORLD";
const ADDRESS: &str = "CRESCENDO_TEST_ADDRESS";

/// Generous: the tests wait for what happens, and this only ends a hang.
const LIMIT: Duration = Duration::from_secs(60);

/// One rank's own view, in its own process.
struct Rank {
    rank: usize,
    world: usize,
    rendezvous: Rendezvous,
}

impl Rank {
    /// `None` in the parent.
    fn from_environment() -> Option<Self> {
        let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
        let (rank, world) = (number(RANK)?, number(WORLD)?);
        tch::set_num_threads(1);
        let rendezvous = match std::env::var(ADDRESS) {
            Ok(address) => Rendezvous::join(address.parse().expect("the parent passes an address")),
            Err(_) => {
                let host =
                    Rendezvous::host(Ipv4Addr::LOCALHOST.into()).expect("loopback has free ports");
                say(&format!("address {}", host.address()));
                host
            }
        };
        Some(Self {
            rank,
            world,
            rendezvous,
        })
    }

    fn connect(self) -> Result<ProcessGroup> {
        let options = GlooOptions {
            timeout: LIMIT,
            ..GlooOptions::default()
        };
        Ok(ProcessGroup::gloo(
            self.rank,
            self.world,
            self.rendezvous,
            &options,
        )?)
    }
}

/// One line to the parent. The test harness has written on the same line before, so the line starts afresh.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@{line}")
        .and_then(|()| out.flush())
        .expect("the parent reads");
}

/// Until the parent lets this rank go on.
fn await_parent() -> Result<()> {
    ensure!(
        std::io::stdin().read_line(&mut String::new())? > 0,
        "the parent is gone"
    );
    Ok(())
}

/// A rank's process. Killed when dropped.
struct RankProcess {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl RankProcess {
    fn start(test: &str, rank: usize, world: usize, address: Option<SocketAddr>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
        command
            .env(RANK, rank.to_string())
            .env(WORLD, world.to_string());
        command
            .env_remove(ADDRESS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
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
            ensure!(
                self.out.read_line(&mut line)? > 0,
                "the rank ended without a word"
            );
            if let Some(said) = line.trim_end().strip_prefix('@') {
                return Ok(said.to_owned());
            }
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let said = self.hear()?;
        ensure!(
            said == wanted,
            "the rank said `{said}` instead of `{wanted}`"
        );
        Ok(())
    }

    /// Ends one `await_parent`.
    fn go_on(&mut self) -> Result<()> {
        Ok(writeln!(
            self.child.stdin.as_mut().context("stdin is piped")?
        )?)
    }

    fn finish(mut self) -> Result<()> {
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

fn start_all(test: &str, world: usize) -> Result<Vec<RankProcess>> {
    let mut first = RankProcess::start(test, 0, world, None)?;
    let said = first.hear()?;
    let address = said
        .strip_prefix("address ")
        .with_context(|| format!("rank 0 said `{said}`"))?
        .parse()?;
    let mut ranks = vec![first];
    for rank in 1..world {
        ranks.push(RankProcess::start(test, rank, world, Some(address))?);
    }
    Ok(ranks)
}

/// In the parent: starts `world` ranks of `test` and waits for their success. In a rank: runs `part`.
fn together(test: &str, worlds: &[usize], part: fn(ProcessGroup) -> Result<()>) -> Result<()> {
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        part(group.clone())?;
        group.leave(LIMIT)?;
        return Ok(());
    }
    for &world in worlds {
        for rank in start_all(test, world)? {
            rank.finish()
                .with_context(|| format!("{test} with {world} ranks"))?;
        }
    }
    Ok(())
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1))?)
}

#[test]
fn sums_and_averages_are_right_in_every_kind() -> Result<()> {
    together(
        "sums_and_averages_are_right_in_every_kind",
        &[2, 3],
        |group| {
            let (rank, world) = (group.rank() as f64, group.world() as f64);
            let all: f64 = (0..group.world()).map(|rank| rank as f64 + 1.0).sum();
            // Small whole numbers are exact in every kind.
            for kind in [
                Kind::Float,
                Kind::Double,
                Kind::Half,
                Kind::BFloat16,
                Kind::Int,
                Kind::Int64,
                Kind::Uint8,
            ] {
                let tensor = Tensor::ones([5, 3], (kind, Device::Cpu)) * (rank + 1.0);
                let tensor = tensor.to_kind(kind);
                group.all_reduce(&tensor, ReduceOp::Sum, LIMIT)?;
                ensure!(values(&tensor)? == vec![all; 15], "{kind:?}: {tensor}");
            }
            for kind in [Kind::Float, Kind::Double] {
                let tensor = Tensor::arange(100_000, (kind, Device::Cpu)) * (rank + 1.0);
                group.all_reduce(&tensor, ReduceOp::Average, LIMIT)?;
                for place in [0i64, 1, 54_321, 99_999] {
                    let (found, wanted) =
                        (tensor.double_value(&[place]), place as f64 * all / world);
                    ensure!(
                        (found - wanted).abs() <= 1e-6 * wanted,
                        "{kind:?} at {place}: {found}, not {wanted}"
                    );
                }
            }
            let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
            group.all_reduce(&empty, ReduceOp::Average, LIMIT)?;
            Ok(())
        },
    )
}

#[test]
fn results_have_the_same_bits_on_every_rank() -> Result<()> {
    together("results_have_the_same_bits_on_every_rank", &[3], |group| {
        tch::manual_seed(group.rank() as i64);
        let tensor = Tensor::randn([4099], (Kind::Float, Device::Cpu));
        let again = tensor.copy();
        group.all_reduce(&tensor, ReduceOp::Average, LIMIT)?;
        group.all_reduce(&again, ReduceOp::Average, LIMIT)?;
        ensure!(tensor == again, "two runs differ");
        let mine: Vec<f32> = Vec::try_from(&tensor)?;
        let bytes: Vec<u8> = mine.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = group.all_gather_bytes(&bytes, LIMIT)?;
        ensure!(all.iter().all(|rank| *rank == bytes), "ranks differ");
        Ok(())
    })
}

#[test]
fn broadcast_gather_and_barrier_reach_every_rank() -> Result<()> {
    together(
        "broadcast_gather_and_barrier_reach_every_rank",
        &[2, 3],
        |group| {
            for root in 0..group.world() {
                let tensor = Tensor::full([7], group.rank() as f64, (Kind::Float, Device::Cpu));
                group.broadcast(&tensor, root, LIMIT)?;
                ensure!(
                    values(&tensor)? == vec![root as f64; 7],
                    "root {root}: {tensor}"
                );
            }
            group.barrier(LIMIT)?;
            let own = vec![group.rank() as u8; group.rank() * 3];
            let wanted: Vec<Vec<u8>> = (0..group.world())
                .map(|rank| vec![rank as u8; rank * 3])
                .collect();
            ensure!(group.all_gather_bytes(&own, LIMIT)? == wanted);
            let wanted: Vec<Vec<f64>> = (0..group.world())
                .map(|rank| vec![rank as f64 + 0.1, f64::MIN])
                .collect();
            ensure!(group.all_gather_f64(&[group.rank() as f64 + 0.1, f64::MIN], LIMIT)? == wanted);
            ensure!(group.all_gather_bytes(&[], LIMIT)? == vec![Vec::<u8>::new(); group.world()]);
            Ok(())
        },
    )
}

#[test]
fn wrong_calls_are_refused_and_the_group_goes_on() -> Result<()> {
    together(
        "wrong_calls_are_refused_and_the_group_goes_on",
        &[2],
        |group| {
            let float = (Kind::Float, Device::Cpu);
            let refused = |result: crescendo_collective::Result<()>, word: &str| match result {
                Err(CollectiveError::InvalidArgument(text)) if text.contains(word) => Ok(()),
                other => bail!("`{word}` expected, found {other:?}"),
            };
            let strided = Tensor::zeros([4, 4], float).transpose(0, 1);
            refused(
                group.all_reduce(&strided, ReduceOp::Sum, LIMIT),
                "contiguous",
            )?;
            let complex = Tensor::zeros([4], (Kind::ComplexFloat, Device::Cpu));
            refused(
                group.all_reduce(&complex, ReduceOp::Sum, LIMIT),
                "ComplexFloat",
            )?;
            let whole = Tensor::zeros([4], (Kind::Int64, Device::Cpu));
            refused(
                group.all_reduce(&whole, ReduceOp::Average, LIMIT),
                "average",
            )?;
            refused(
                group.all_reduce(&Tensor::new(), ReduceOp::Sum, LIMIT),
                "undefined",
            )?;
            refused(group.broadcast(&whole, 2, LIMIT), "root 2")?;
            refused(
                group
                    .all_gather_bytes(&vec![0; MAX_GATHER_BYTES + 1], LIMIT)
                    .map(drop),
                "at most",
            )?;
            // Other layouts on another rank are found before any gradient is mixed.
            let shapes = vec![vec![vec![2 + group.rank() as i64]]];
            refused(
                OverlappedReducer::new(group.clone(), shapes, Kind::Float, LIMIT).map(drop),
                "other gradient buckets",
            )?;
            group.barrier(LIMIT)?;
            Ok(())
        },
    )
}

#[test]
fn operations_in_the_background_overlap_and_keep_apart() -> Result<()> {
    together(
        "operations_in_the_background_overlap_and_keep_apart",
        &[2, 3],
        |group| {
            let share = (1..=group.world()).sum::<usize>() as f64;
            let tensors: Vec<Tensor> = (0..12)
                .map(|place| {
                    let sign = (place + 1) as f64 * (group.rank() + 1) as f64;
                    Tensor::full([1000 * (place + 1)], sign, (Kind::Float, Device::Cpu))
                })
                .collect();
            let pending = tensors
                .iter()
                .map(|tensor| group.all_reduce_async(tensor, ReduceOp::Sum, LIMIT))
                .collect::<crescendo_collective::Result<Vec<_>>>()?;
            // Waited for in the other order: none depends on being asked.
            for (place, one) in pending.into_iter().enumerate().rev() {
                one.wait(LIMIT)?;
                let wanted = (place + 1) as f64 * share;
                ensure!(
                    tensors[place].eq(wanted).all().int64_value(&[]) == 1,
                    "operation {place}"
                );
            }
            Ok(())
        },
    )
}

#[test]
fn gradients_are_averaged_bucket_by_bucket() -> Result<()> {
    together(
        "gradients_are_averaged_bucket_by_bucket",
        &[2, 3],
        |group| {
            let float = (Kind::Float, Device::Cpu);
            let (rank, world) = (group.rank() as f64, group.world() as f64);
            let mean = (0..group.world()).map(|rank| rank as f64).sum::<f64>() / world;
            let shapes = vec![
                vec![vec![3, 4], vec![5]],
                vec![vec![]],
                vec![vec![2, 2], vec![0, 7], vec![1]],
            ];
            let mut reducer = OverlappedReducer::new(group, shapes.clone(), Kind::Float, LIMIT)?;
            ensure!(reducer.bucket_count() == 3);
            ensure!(reducer.buffer_bytes() == 4 * (12 + 5 + 1 + 4 + 1));
            // Twice: the buffers are used again. Ranks fill the buckets in different orders, which changes nothing.
            for step in 0..2 {
                let mut order: Vec<usize> = (0..shapes.len()).collect();
                order.rotate_left((rank as usize + step) % shapes.len());
                let gradients: Vec<Vec<Tensor>> = shapes
                    .iter()
                    .enumerate()
                    .map(|(bucket, shapes)| {
                        let value = rank + 10.0 * bucket as f64 + 100.0 * step as f64;
                        shapes
                            .iter()
                            .map(|shape| Tensor::full(shape.as_slice(), value, float))
                            .collect()
                    })
                    .collect();
                for bucket in order {
                    reducer.start(bucket, &gradients[bucket])?;
                }
                reducer.finish(LIMIT)?;
                for (bucket, gradients) in gradients.iter().enumerate() {
                    let wanted = mean + 10.0 * bucket as f64 + 100.0 * step as f64;
                    for gradient in gradients {
                        ensure!(
                            values(gradient)?.iter().all(|value| *value == wanted),
                            "step {step}, bucket {bucket}"
                        );
                    }
                }
            }
            Ok(())
        },
    )
}

/// Waits for what a rank still sees of the others, with an operation that none of them joins.
fn error_of_a_lonely_all_reduce(
    group: &ProcessGroup,
    limit: Duration,
) -> Result<(CollectiveError, Duration)> {
    let tensor = Tensor::ones([1 << 16], (Kind::Float, Device::Cpu));
    let start = Instant::now();
    match group.all_reduce(&tensor, ReduceOp::Sum, limit) {
        Ok(()) => bail!("an all-reduce without the others ended well"),
        Err(error) => Ok((error, start.elapsed())),
    }
}

#[test]
fn a_killed_peer_is_seen_as_lost_by_all_long_before_the_timeout() -> Result<()> {
    const TEST: &str = "a_killed_peer_is_seen_as_lost_by_all_long_before_the_timeout";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        say("together");
        if group.rank() == 2 {
            // Killed here by the parent.
            std::thread::park_timeout(LIMIT);
            bail!("rank 2 was not killed");
        }
        let (error, waited) = error_of_a_lonely_all_reduce(&group, LIMIT)?;
        ensure!(error.is_peer_lost(), "{error}");
        ensure!(waited < LIMIT, "only after {waited:?}");
        // The group stays broken, with the same reason, at once.
        ensure!(group.barrier(LIMIT).unwrap_err() == error);
        ensure!(group.failure() == Some(error));
        say("lost");
        return Ok(());
    }
    let mut ranks = start_all(TEST, 3)?;
    for rank in &mut ranks {
        rank.expect("together")?;
    }
    // SIGKILL.
    let mut victim = ranks.pop().context("three ranks")?;
    victim.child.kill()?;
    victim.child.wait()?;
    for mut rank in ranks {
        rank.expect("lost")?;
        rank.finish()?;
    }
    Ok(())
}

#[test]
fn a_peer_that_hangs_is_a_timeout() -> Result<()> {
    const TEST: &str = "a_peer_that_hangs_is_a_timeout";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        if group.rank() == 1 {
            // Alive, but taking no part until the other has given up, which it learns from its broken connection.
            await_parent()?;
            let (error, _) = error_of_a_lonely_all_reduce(&group, LIMIT)?;
            ensure!(error.is_peer_lost(), "{error}");
            return Ok(());
        }
        let (error, _) = error_of_a_lonely_all_reduce(&group, Duration::from_millis(300))?;
        ensure!(error.is_timeout(), "{error}");
        ensure!(
            error
                .to_string()
                .starts_with("all-reduce not finished within 300ms"),
            "{error}"
        );
        say("gave up");
        return await_parent();
    }
    let mut ranks = start_all(TEST, 2)?;
    ranks[0].expect("gave up")?;
    for mut rank in ranks.into_iter().rev() {
        rank.go_on()?;
        rank.finish()?;
    }
    Ok(())
}

#[test]
fn abort_from_another_thread_ends_a_wait_and_tells_the_peers() -> Result<()> {
    const TEST: &str = "abort_from_another_thread_ends_a_wait_and_tells_the_peers";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        if group.rank() == 1 {
            // Waits for what rank 0 never sends: it aborts, and so this rank loses a peer.
            let tensor = Tensor::zeros([8], (Kind::Float, Device::Cpu));
            let error = group
                .broadcast(&tensor, 0, LIMIT)
                .expect_err("rank 0 sends nothing");
            ensure!(error.is_peer_lost(), "{error}");
            return Ok(());
        }
        let aborter = group.clone();
        let (waiting, is_waiting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = is_waiting.recv_timeout(LIMIT);
            aborter.abort();
        });
        let tensor = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
        let pending = group.all_reduce_async(&tensor, ReduceOp::Sum, LIMIT)?;
        let second = group.all_reduce_async(&tensor.copy(), ReduceOp::Sum, LIMIT)?;
        waiting.send(())?;
        let start = Instant::now();
        ensure!(pending.wait(LIMIT).unwrap_err().is_aborted());
        ensure!(second.wait(LIMIT).unwrap_err().is_aborted());
        ensure!(group.barrier(LIMIT).unwrap_err().is_aborted());
        ensure!(group.leave(LIMIT).unwrap_err().is_aborted());
        drop(group);
        ensure!(start.elapsed() < LIMIT);
        thread.join().expect("the aborting thread does not panic");
        return Ok(());
    }
    for rank in start_all(TEST, 2)? {
        rank.finish()?;
    }
    Ok(())
}

#[test]
fn a_missing_rank_0_is_a_timeout_that_says_so() -> Result<()> {
    // A port that was free a moment ago, and has nobody behind it.
    let address = Rendezvous::host(Ipv4Addr::LOCALHOST.into())?.address();
    let limit = Duration::from_millis(500);
    let options = GlooOptions {
        timeout: limit,
        ..GlooOptions::default()
    };
    let error =
        ProcessGroup::gloo(1, 2, Rendezvous::join(address), &options).expect_err("nobody is there");
    assert!(error.is_timeout(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("rendezvous not finished within 500ms"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_missing_rank_1_is_a_timeout_too() -> Result<()> {
    let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into())?;
    let options = GlooOptions {
        timeout: Duration::from_millis(500),
        ..GlooOptions::default()
    };
    let error = ProcessGroup::gloo(0, 2, host, &options).expect_err("nobody came");
    assert!(error.is_timeout(), "{error}");
    Ok(())
}

#[test]
fn ranks_of_different_generations_do_not_meet() -> Result<()> {
    const TEST: &str = "ranks_of_different_generations_do_not_meet";
    if let Some(rank) = Rank::from_environment() {
        let options = GlooOptions {
            timeout: Duration::from_secs(1),
            generation: rank.rank as u64,
            interface: None,
        };
        let error = ProcessGroup::gloo(rank.rank, rank.world, rank.rendezvous, &options)
            .expect_err("another attempt");
        ensure!(error.is_timeout() || error.is_peer_lost(), "{error}");
        return Ok(());
    }
    for rank in start_all(TEST, 2)? {
        rank.finish()?;
    }
    Ok(())
}
