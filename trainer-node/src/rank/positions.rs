//! Which pair of the log a rank trains on, when: pure arithmetic.
//!
//! The global order numbers every sample of a stage with a position `p = step * global_batch + i`. As long as the pair
//! log may still grow, position `p` is log index `p`. Once it is sealed with `n` pairs, later epochs read it in an order
//! drawn from (job seed, stage, epoch). A position below `n` means index `p` either way, so the order does not depend
//! on when the log was sealed, nor on how many ranks there are.
//!
//! With `onStarvation: repeat` a gang that runs out of pairs puts a **replay pass** into the order: once round the pairs before
//! it, in an order of its own. The positions of a replay pass are not counted by the rest of the arithmetic: what follows it
//! goes on at the index at which it began. So the order is a function of (job seed, stage, replay passes, position), and the
//! replay passes are part of every checkpoint.
//!
//! An epoch may leave out pairs that people have marked: see [`Epochs`], which is part of every checkpoint too.

use std::ops::Range;

use crescendo_core::marks::{EpochPlace, Epochs};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// One rank's place in a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GangShape {
    pub rank: u32,
    pub ranks: u32,
    /// Samples per optimizer step over all ranks, one a rank at least.
    pub global_batch: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GangError {
    #[error("rank {rank} of {ranks} does not exist")]
    Rank { rank: u32, ranks: u32 },
    #[error("globalBatch {global_batch} has no sample for each of {ranks} ranks")]
    TooFew { global_batch: u32, ranks: u32 },
}

impl GangShape {
    pub fn new(rank: u32, ranks: u32, global_batch: u32) -> Result<Self, GangError> {
        if rank >= ranks {
            return Err(GangError::Rank { rank, ranks });
        }
        if global_batch < ranks {
            return Err(GangError::TooFew { global_batch, ranks });
        }
        Ok(Self { rank, ranks, global_batch })
    }

    /// Samples of this rank per optimizer step: the first ranks have one more where the batch cannot be divided evenly.
    pub fn share(&self) -> u32 {
        self.global_batch / self.ranks + u32::from(self.rank < self.global_batch % self.ranks)
    }

    /// Positions that this rank handles in `step` (from 0).
    pub fn positions(&self, step: u64) -> Range<u64> {
        let (rank, ranks, batch) =
            (u64::from(self.rank), u64::from(self.ranks), u64::from(self.global_batch));
        let first = step * batch + rank * (batch / ranks) + rank.min(batch % ranks);
        first..first + u64::from(self.share())
    }
}

/// What is known of the pair log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogProgress {
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

/// A run of positions that repeats the pairs with index 0 to `pairs` - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayPass {
    /// Its first position.
    pub from: u64,
    /// Its length; every pair of the log before it, once.
    pub pairs: u64,
}

/// The replay passes of a stage so far, in order; no two overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayPasses(Vec<ReplayPass>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("replay pass {number} (from {from}, {pairs} pairs) does not follow from those before it")]
pub struct BadReplayPass {
    number: usize,
    from: u64,
    pairs: u64,
}

/// What a position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The n-th of the order without replay passes.
    Plain(u64),
    ReplayPass {
        number: u64,
        pairs: u64,
        offset: u64,
    },
}

impl ReplayPasses {
    /// Takes over replay passes that a checkpoint has.
    pub fn checked(replay_passes: Vec<ReplayPass>) -> Result<Self, BadReplayPass> {
        let mut checked = Self::default();
        for (number, ReplayPass { from, pairs }) in replay_passes.into_iter().enumerate() {
            match checked.next_replay_pass(from) {
                Some(replay_pass) if replay_pass == (ReplayPass { from, pairs }) => {
                    checked.0.push(replay_pass)
                }
                _ => return Err(BadReplayPass { number, from, pairs }),
            }
        }
        Ok(checked)
    }

    pub fn all(&self) -> &[ReplayPass] {
        &self.0
    }

    /// The replay pass that a gang goes on with if `step` cannot be had: from the step's first position, or from the end of the
    /// last replay pass if that lies within the step. None if there is nothing to repeat yet.
    pub fn at_step(&self, step: u64, global_batch: u32) -> Option<ReplayPass> {
        let first = step.saturating_mul(u64::from(global_batch));
        self.next_replay_pass(
            self.0.last().map_or(first, |last| first.max(last.from.saturating_add(last.pairs))),
        )
    }

    pub fn push(&mut self, replay_pass: ReplayPass) {
        self.0.push(replay_pass);
    }

    /// Where among the positions of `step` an epoch of a sealed log with `pairs` pairs begins, the first one left out; counted
    /// without those of replay passes. None if none does.
    pub fn epoch_begins_in(&self, step: u64, global_batch: u32, epochs: &Epochs, pairs: u64) -> Option<u64> {
        let first = step.saturating_mul(u64::from(global_batch));
        let plain = |position| match self.part(position) {
            Part::Plain(plain) => Some(plain),
            Part::ReplayPass { .. } => None,
        };
        let positions = first..first.saturating_add(u64::from(global_batch));
        positions.filter_map(plain).find(|plain| epochs.begins(*plain, pairs))
    }

    fn next_replay_pass(&self, from: u64) -> Option<ReplayPass> {
        match self.part(from) {
            Part::Plain(pairs) if pairs > 0 && self.0.last().is_none_or(|last| last.from < from) => {
                Some(ReplayPass { from, pairs })
            }
            Part::Plain(_) | Part::ReplayPass { .. } => None,
        }
    }

    fn part(&self, position: u64) -> Part {
        let begun = self.0.partition_point(|replay_pass| replay_pass.from <= position);
        let before: u64 = self.0.iter().take(begun).map(|replay_pass| replay_pass.pairs).sum();
        match begun.checked_sub(1).and_then(|last| self.0.get(last)) {
            Some(replay_pass) if position - replay_pass.from < replay_pass.pairs => Part::ReplayPass {
                number: begun as u64 - 1,
                pairs: replay_pass.pairs,
                offset: position - replay_pass.from,
            },
            _ => Part::Plain(position - before),
        }
    }
}

/// Maps positions to log indices; keeps the order of the epoch that is being read.
#[derive(Debug)]
pub struct LogOrder {
    job_seed: u64,
    stage_index: u32,
    pub replay_passes: ReplayPasses,
    pub epochs: Epochs,
    /// Length of the epoch, its number, and its order.
    epoch: Option<(u64, u64, Vec<u64>)>,
}

impl LogOrder {
    pub fn new(job_seed: u64, stage_index: u32, replay_passes: ReplayPasses, epochs: Epochs) -> Self {
        Self { job_seed, stage_index, replay_passes, epochs, epoch: None }
    }

    pub fn place(&mut self, position: u64, log: LogProgress) -> Place {
        let plain = match self.replay_passes.part(position) {
            Part::Plain(plain) => plain,
            // Orders of replay passes are numbered from the other end than epochs.
            Part::ReplayPass { number, pairs, offset } => {
                return Place::At(self.of_epoch(u64::MAX - number, pairs, offset));
            }
        };
        if plain < log.committed {
            return Place::At(plain);
        }
        match (log.sealed, log.committed) {
            (false, _) => Place::NotYet,
            (true, 0) => Place::Empty,
            (true, pairs) => match self.epochs.at(plain, pairs) {
                None => Place::At(plain),
                Some(EpochPlace { epoch, offset, length }) => {
                    let drawn = self.of_epoch(epoch, length, offset);
                    Place::At(self.epochs.nth_kept(plain, drawn))
                }
            },
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
    use crescendo_core::marks::LeftOut;

    use super::*;

    #[test]
    fn ranks_cover_each_position_once() {
        for ranks in 1..=8 {
            let mut seen = Vec::new();
            for step in 0..3 {
                for rank in 0..ranks {
                    let gang = GangShape::new(rank, ranks, 8).unwrap();
                    let share = gang.positions(step);
                    assert_eq!(share.end - share.start, u64::from(gang.share()));
                    assert!((8 / ranks..=8_u32.div_ceil(ranks)).contains(&gang.share()));
                    seen.extend(share);
                }
            }
            assert_eq!(seen, (0..24).collect::<Vec<_>>());
        }
    }

    #[test]
    fn impossible_gangs_are_refused() {
        assert_eq!(GangShape::new(2, 2, 8), Err(GangError::Rank { rank: 2, ranks: 2 }));
        assert_eq!(GangShape::new(0, 9, 8), Err(GangError::TooFew { global_batch: 8, ranks: 9 }));
        assert!(GangShape::new(0, 1, 0).is_err());
    }

    #[test]
    fn each_epoch_has_each_pair_once_in_its_own_order() {
        let log = LogProgress { committed: 50, sealed: true };
        let mut order = LogOrder::new(7, 1, ReplayPasses::default(), Epochs::default());
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
        let mut order = LogOrder::new(7, 0, ReplayPasses::default(), Epochs::default());
        let growing = LogProgress { committed: 10, sealed: false };
        let sealed = LogProgress { committed: 10, sealed: true };
        for position in 0..10 {
            assert_eq!(order.place(position, growing), Place::At(position));
            assert_eq!(order.place(position, sealed), Place::At(position));
        }
        assert_eq!(order.place(10, growing), Place::NotYet);
        assert!(matches!(order.place(10, sealed), Place::At(_)));
        assert_eq!(order.place(0, LogProgress { committed: 0, sealed: true }), Place::Empty);
    }

    #[test]
    fn a_replay_pass_repeats_what_was_read_and_takes_nothing_from_the_rest() {
        let growing = LogProgress { committed: 12, sealed: false };
        let mut order = LogOrder::new(7, 0, ReplayPasses::default(), Epochs::default());
        // Steps of 4: step 2 has 8 to 11, step 3 nothing.
        assert_eq!(order.place(12, growing), Place::NotYet);
        let replay_pass = order.replay_passes.at_step(3, 4).expect("12 pairs to repeat");
        assert_eq!(replay_pass, ReplayPass { from: 12, pairs: 12 });
        order.replay_passes.push(replay_pass);
        let index = |order: &mut LogOrder, position, log| match order.place(position, log) {
            Place::At(index) => index,
            other => unreachable!("{other:?}"),
        };
        let first: Vec<u64> = (12..24).map(|position| index(&mut order, position, growing)).collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12).collect::<Vec<_>>());
        assert_eq!(order.place(24, growing), Place::NotYet);
        // Two more pairs do not fill step 6: a second replay pass, of the same pairs in another order.
        let replay_pass = order.replay_passes.at_step(6, 4).expect("12 pairs to repeat");
        assert_eq!(replay_pass, ReplayPass { from: 24, pairs: 12 });
        order.replay_passes.push(replay_pass);
        let second: Vec<u64> = (24..36).map(|position| index(&mut order, position, growing)).collect();
        assert_ne!(first, second);
        // Then the log grows and is sealed: what follows is what would have followed without replay passes.
        let sealed = LogProgress { committed: 20, sealed: true };
        let mut plain = LogOrder::new(7, 0, ReplayPasses::default(), Epochs::default());
        for position in 36..100 {
            assert_eq!(order.place(position, sealed), plain.place(position - 24, sealed), "{position}");
        }
        // And what was read before the log grew still means the same.
        assert_eq!(first, (12..24).map(|p| index(&mut order, p, sealed)).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_marked_is_left_out_of_the_next_epoch_and_nothing_else_moves() {
        let log = LogProgress { committed: 10, sealed: true };
        let read = |order: &mut LogOrder, positions: Range<u64>| -> Vec<u64> {
            positions
                .map(|position| match order.place(position, log) {
                    Place::At(index) => index,
                    other => unreachable!("{other:?}"),
                })
                .collect()
        };
        let mut plain = LogOrder::new(7, 0, ReplayPasses::default(), Epochs::default());
        let mut order = LogOrder::new(7, 0, ReplayPasses::default(), Epochs::default());
        // Steps of 4: step 5 has 20 to 23, with which the third epoch begins.
        let replay_passes = ReplayPasses::default();
        let begins = |step, epochs: &Epochs| replay_passes.epoch_begins_in(step, 4, epochs, 10);
        assert_eq!((begins(4, &order.epochs), begins(5, &order.epochs)), (None, Some(20)));
        assert_eq!(begins(0, &order.epochs), None, "the first epoch is what the log is");
        assert_eq!(begins(2, &order.epochs), Some(10), "within a step");
        let left_out = LeftOut { from: 20, version: 2, pairs: 10, indices: vec![3, 7] };
        assert!(order.epochs.push(left_out));
        assert_eq!(read(&mut order, 0..20), read(&mut plain, 0..20));
        for epoch in [20..28, 28..36] {
            let mut seen = read(&mut order, epoch);
            assert_ne!(seen, [0, 1, 2, 4, 5, 6, 8, 9]);
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 4, 5, 6, 8, 9]);
        }
        assert_eq!((begins(6, &order.epochs), begins(7, &order.epochs)), (None, Some(28)));
    }

    #[test]
    fn a_replay_pass_may_end_and_the_next_begin_within_a_step() {
        let mut replay_passes = ReplayPasses::default();
        assert_eq!(replay_passes.at_step(0, 4), None, "nothing was read yet");
        replay_passes.push(replay_passes.at_step(3, 2).expect("six pairs"));
        replay_passes.push(replay_passes.at_step(6, 2).expect("again"));
        assert_eq!(
            replay_passes.all(),
            [ReplayPass { from: 6, pairs: 6 }, ReplayPass { from: 12, pairs: 6 }]
        );
        // Batches of 5: step 3 has 15 to 19, of which 15 to 17 are of the replay pass.
        let replay_pass = replay_passes.at_step(3, 5).expect("six pairs");
        assert_eq!(replay_pass, ReplayPass { from: 18, pairs: 6 });
        assert_eq!(ReplayPasses::checked(replay_passes.all().to_vec()).as_ref(), Ok(&replay_passes));
        for bad in [
            ReplayPass { from: 14, pairs: 6 },
            ReplayPass { from: 20, pairs: 6 },
            ReplayPass { from: 12, pairs: 6 },
        ] {
            let all = replay_passes.all().iter().copied().chain([bad]).collect();
            assert_eq!(
                ReplayPasses::checked(all),
                Err(BadReplayPass { number: 2, from: bad.from, pairs: bad.pairs })
            );
        }
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
