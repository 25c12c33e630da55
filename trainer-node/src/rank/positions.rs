//! Which pair of the log a rank trains on, when: pure arithmetic.
//!
//! The global order numbers every sample of a stage with a position `p = step * global_batch + i`. As long as the pair
//! log may still grow, position `p` is log index `p`. Once it is sealed with `n` pairs, later epochs read it in an order
//! drawn from (job seed, stage, epoch). A position below `n` means index `p` either way, so the order does not depend
//! on when the log was sealed, nor on how many ranks there are.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

/// One rank's place in a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GangShape {
    pub rank: u32,
    pub ranks: u32,
    /// Samples per optimizer step over all ranks; a multiple of `ranks`.
    pub global_batch: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GangError {
    #[error("rank {rank} of {ranks} does not exist")]
    Rank { rank: u32, ranks: u32 },
    #[error("globalBatch {global_batch} cannot be divided evenly among {ranks} ranks")]
    Uneven { global_batch: u32, ranks: u32 },
}

impl GangShape {
    pub fn new(rank: u32, ranks: u32, global_batch: u32) -> Result<Self, GangError> {
        if rank >= ranks {
            return Err(GangError::Rank { rank, ranks });
        }
        if global_batch == 0 || !global_batch.is_multiple_of(ranks) {
            return Err(GangError::Uneven { global_batch, ranks });
        }
        Ok(Self { rank, ranks, global_batch })
    }

    /// Samples per optimizer step on each rank.
    pub fn per_rank(&self) -> u32 {
        self.global_batch / self.ranks
    }

    /// Positions that this rank handles in `step` (from 0).
    pub fn positions(&self, step: u64) -> Range<u64> {
        let first = step * u64::from(self.global_batch) + u64::from(self.rank) * u64::from(self.per_rank());
        first..first + u64::from(self.per_rank())
    }
}

/// What is known of the pair log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Pairs that can be read, from index 0.
    pub committed: u64,
    /// The log will not grow any more.
    pub sealed: bool,
}

/// Where a position's pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    At(u64),
    /// The log has to grow, or to be sealed, first.
    NotYet,
    /// The log is sealed and has no pair at all.
    Empty,
}

/// Maps positions to log indices; keeps the order of the epoch that is being read.
#[derive(Debug)]
pub struct LogOrder {
    job_seed: u64,
    stage_index: u32,
    /// Length of the log, epoch, and that epoch's order.
    epoch: Option<(u64, u64, Vec<u64>)>,
}

impl LogOrder {
    pub fn new(job_seed: u64, stage_index: u32) -> Self {
        Self { job_seed, stage_index, epoch: None }
    }

    pub fn place(&mut self, position: u64, log: LogState) -> Place {
        if position < log.committed {
            return Place::At(position);
        }
        match (log.sealed, log.committed) {
            (false, _) => Place::NotYet,
            (true, 0) => Place::Empty,
            (true, pairs) => Place::At(self.of_epoch(position / pairs, pairs, position % pairs)),
        }
    }

    fn of_epoch(&mut self, epoch: u64, pairs: u64, offset: u64) -> u64 {
        if !matches!(&self.epoch, Some((p, e, _)) if (*p, *e) == (pairs, epoch)) {
            let order = permutation(pairs, self.job_seed, self.stage_index, epoch);
            self.epoch = Some((pairs, epoch, order));
        }
        let order = self.epoch.as_ref().map(|(_, _, order)| order.as_slice()).unwrap_or_default();
        usize::try_from(offset).ok().and_then(|offset| order.get(offset)).copied().unwrap_or(offset)
    }
}

/// The numbers 0 to `pairs` - 1 in an order drawn from (job seed, stage, epoch): Fisher and Yates, with words of
/// SplitMix64 keyed by SHA-256 and Lemire's unbiased reduction.
fn permutation(pairs: u64, job_seed: u64, stage_index: u32, epoch: u64) -> Vec<u64> {
    let mut hash = Sha256::new();
    hash.update(b"crescendo pair order");
    hash.update(job_seed.to_le_bytes());
    hash.update(stage_index.to_le_bytes());
    hash.update(epoch.to_le_bytes());
    let digest = hash.finalize();
    let mut state = digest.iter().take(8).fold(0u64, |word, byte| (word << 8) | u64::from(*byte));
    let mut order: Vec<u64> = (0..pairs).collect();
    for last in (1..order.len()).rev() {
        let drawn = below(&mut state, last as u64 + 1);
        order.swap(last, drawn as usize);
    }
    order
}

/// Uniform over 0 to `bound` - 1; `bound` is at least 1.
fn below(state: &mut u64, bound: u64) -> u64 {
    loop {
        let product = u128::from(split_mix(state)) * u128::from(bound);
        // The low half is biased below 2^64 mod bound.
        if product as u64 >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_cover_each_position_once() {
        for ranks in [1, 2, 4] {
            let mut seen = Vec::new();
            for step in 0..3 {
                for rank in 0..ranks {
                    seen.extend(GangShape::new(rank, ranks, 8).unwrap().positions(step));
                }
            }
            assert_eq!(seen, (0..24).collect::<Vec<_>>());
        }
    }

    #[test]
    fn impossible_gangs_are_refused() {
        assert_eq!(GangShape::new(2, 2, 8), Err(GangError::Rank { rank: 2, ranks: 2 }));
        assert_eq!(GangShape::new(0, 3, 8), Err(GangError::Uneven { global_batch: 8, ranks: 3 }));
        assert!(GangShape::new(0, 1, 0).is_err());
    }

    #[test]
    fn each_epoch_has_each_pair_once_in_its_own_order() {
        let log = LogState { committed: 50, sealed: true };
        let mut order = LogOrder::new(7, 1);
        let mut epoch = |epoch: u64| -> Vec<u64> {
            (0..50)
                .map(|offset| match order.place(epoch * 50 + offset, log) {
                    Place::At(index) => index,
                    other => unreachable!("{other:?}"),
                })
                .collect()
        };
        let (first, second, third) = (epoch(0), epoch(1), epoch(2));
        assert_eq!(first, (0..50).collect::<Vec<_>>());
        assert_ne!(second, third);
        for mut indices in [second, third] {
            assert_ne!(indices, first);
            indices.sort_unstable();
            assert_eq!(indices, first);
        }
    }

    #[test]
    fn sealing_late_changes_nothing_that_was_read() {
        let mut order = LogOrder::new(7, 0);
        let growing = LogState { committed: 10, sealed: false };
        let sealed = LogState { committed: 10, sealed: true };
        for position in 0..10 {
            assert_eq!(order.place(position, growing), Place::At(position));
            assert_eq!(order.place(position, sealed), Place::At(position));
        }
        assert_eq!(order.place(10, growing), Place::NotYet);
        assert!(matches!(order.place(10, sealed), Place::At(_)));
        assert_eq!(order.place(0, LogState { committed: 0, sealed: true }), Place::Empty);
    }

    #[test]
    fn the_order_is_pinned() {
        // A change here makes a resumed run see other samples than the run that it resumes.
        assert_eq!(permutation(8, 1, 0, 1), permutation(8, 1, 0, 1));
        assert_ne!(permutation(64, 1, 0, 1), permutation(64, 1, 1, 1));
        assert_ne!(permutation(64, 1, 0, 1), permutation(64, 2, 0, 1));
        assert_eq!(permutation(8, 1, 0, 1), PINNED);
    }

    const PINNED: [u64; 8] = [4, 2, 6, 1, 3, 0, 7, 5];
}
