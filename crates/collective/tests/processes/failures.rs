//! Ranks that are killed, hang, abort, or never come.

use crate::ranks::{LIMIT, Rank, await_parent, say, start_all};
use anyhow::{Context, Result, bail, ensure};
use crescendo_collective::{CollectiveError, GlooOptions, ProcessGroup, ReduceOp, Rendezvous};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

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
    const TEST: &str = "failures::a_killed_peer_is_seen_as_lost_by_all_long_before_the_timeout";
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
fn a_peer_killed_in_mid_transfer_is_lost_too() -> Result<()> {
    const TEST: &str = "failures::a_peer_killed_in_mid_transfer_is_lost_too";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        let tensors: Vec<Tensor> =
            (0..3).map(|_| Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu))).collect();
        for round in 0.. {
            if round == 3 {
                say("moving");
            }
            let reduced: crescendo_collective::Result<()> = tensors
                .iter()
                .map(|tensor| group.all_reduce_async(tensor, ReduceOp::Average, LIMIT))
                .collect::<crescendo_collective::Result<Vec<_>>>()
                .and_then(|pending| pending.into_iter().try_for_each(|one| one.wait(LIMIT)));
            if let Err(error) = reduced {
                ensure!(error.is_peer_lost(), "{error}");
                break;
            }
        }
        drop(group);
        say("lost");
        return Ok(());
    }
    let mut ranks = start_all(TEST, 3)?;
    for rank in &mut ranks {
        rank.expect("moving")?;
    }
    // Rank 0 has the store: the hardest to lose.
    let mut victim = ranks.remove(0);
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
    const TEST: &str = "failures::a_peer_that_hangs_is_a_timeout";
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
        ensure!(error.to_string().starts_with("all-reduce not finished within 300ms"), "{error}");
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
    const TEST: &str = "failures::abort_from_another_thread_ends_a_wait_and_tells_the_peers";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        if group.rank() == 1 {
            // Waits for what rank 0 never sends: it aborts, and so this rank loses a peer.
            let tensor = Tensor::zeros([8], (Kind::Float, Device::Cpu));
            let error = group.broadcast(&tensor, 0, LIMIT).expect_err("rank 0 sends nothing");
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
    let options = GlooOptions { timeout: limit, ..GlooOptions::default() };
    let error = ProcessGroup::gloo(1, 2, Rendezvous::join(address), &options).expect_err("nobody is there");
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().starts_with("rendezvous not finished within 500ms"), "{error}");
    Ok(())
}

#[test]
fn a_missing_rank_1_is_a_timeout_too() -> Result<()> {
    let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into())?;
    let options = GlooOptions { timeout: Duration::from_millis(500), ..GlooOptions::default() };
    let error = ProcessGroup::gloo(0, 2, host, &options).expect_err("nobody came");
    assert!(error.is_timeout(), "{error}");
    Ok(())
}

#[test]
fn ranks_of_different_generations_do_not_meet() -> Result<()> {
    const TEST: &str = "failures::ranks_of_different_generations_do_not_meet";
    if let Some(rank) = Rank::from_environment() {
        let options =
            GlooOptions { timeout: Duration::from_secs(1), generation: rank.rank as u64, interface: None };
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
