//! Leaving is a barrier, whatever the group meets over.

use crate::ranks::{LIMIT, Over, Rank, RankProcess, await_parent, say, start_all_over};
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs `parent` beside `world` ranks of `test`, over whatever there is.
fn over_each(test: &str, world: usize, parent: fn(Vec<RankProcess>) -> Result<()>) -> Result<()> {
    for over in Over::here(world)? {
        let ranks = start_all_over(over, test, world)?;
        parent(ranks).with_context(|| format!("{test} over {over:?}"))?;
    }
    Ok(())
}

/// The file by which rank 0 says that what it does before it leaves is done; by the process id of the test.
fn mark_of(parent: u32) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rank-0-is-done-{parent}"))
}

/// Without this a drain ends while rank 0 still writes its checkpoint.
#[test]
fn a_rank_that_is_late_to_leave_holds_up_the_others() -> Result<()> {
    const TEST: &str = "leaving::a_rank_that_is_late_to_leave_holds_up_the_others";
    if let Some(rank) = Rank::from_environment() {
        let mark = mark_of(parent_id());
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        if group.rank() == 0 {
            // The others are in `leave`, or about to be.
            await_parent()?;
            std::fs::write(&mark, [])?;
        } else {
            say("leaves");
        }
        group.leave(LIMIT)?;
        ensure!(mark.exists(), "rank {} has left while rank 0 was not done", group.rank());
        return Ok(());
    }
    over_each(TEST, 3, |mut ranks| {
        for rank in ranks.iter_mut().skip(1) {
            rank.expect("leaves")?;
        }
        ranks[0].go_on()?;
        ranks.into_iter().try_for_each(RankProcess::finish)?;
        Ok(std::fs::remove_file(mark_of(std::process::id()))?)
    })
}

#[test]
fn a_leave_that_a_rank_never_joins_ends_at_its_deadline() -> Result<()> {
    const TEST: &str = "leaving::a_leave_that_a_rank_never_joins_ends_at_its_deadline";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        if group.rank() == 0 {
            await_parent()?;
            return Ok(());
        }
        let limit = Duration::from_millis(300);
        let error = group.leave(limit).expect_err("rank 0 does not leave");
        ensure!(error.is_timeout(), "{error}");
        ensure!(error.to_string().starts_with("leave not finished within 300ms"), "{error}");
        ensure!(group.failure() == Some(error));
        say("gave up");
        return Ok(());
    }
    over_each(TEST, 2, |mut ranks| {
        ranks[1].expect("gave up")?;
        ranks[0].go_on()?;
        ranks.into_iter().try_for_each(RankProcess::finish)
    })
}

#[test]
fn a_leave_whose_peer_dies_is_an_error_within_its_deadline() -> Result<()> {
    const TEST: &str = "leaving::a_leave_whose_peer_dies_is_an_error_within_its_deadline";
    if let Some(rank) = Rank::from_environment() {
        let group = rank.connect()?;
        group.barrier(LIMIT)?;
        say("together");
        if group.rank() == 2 {
            // Killed here by the parent.
            std::thread::park_timeout(LIMIT);
            bail!("rank 2 was not killed");
        }
        let limit = LIMIT / 2;
        let start = Instant::now();
        let error = group.leave(limit).expect_err("rank 2 is dead");
        // Over NCCL between GPUs of one machine there is no connection that would tell.
        ensure!(error.is_peer_lost() || error.is_timeout(), "{error}");
        ensure!(group.device() != tch::Device::Cpu || error.is_peer_lost(), "Gloo sees it: {error}");
        ensure!(start.elapsed() < LIMIT, "only after {:?}", start.elapsed());
        say("lost");
        return Ok(());
    }
    over_each(TEST, 3, |mut ranks| {
        for rank in &mut ranks {
            rank.expect("together")?;
        }
        let mut victim = ranks.pop().context("three ranks")?;
        victim.child.kill()?;
        victim.child.wait()?;
        for mut rank in ranks {
            rank.expect("lost")?;
            rank.finish()?;
        }
        Ok(())
    })
}
