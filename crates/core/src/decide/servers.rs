//! Which curators serve the pairs of a stage that is being trained.

use crate::ids::{NodeId, StageRef, spread_hash};

/// Curators that serve a log to which no pair is added any more, if there are as many. A rank goes on to the next one when its
/// own is gone, and each that serves a log costs a few messages when it begins and ends.
pub(super) const MOST_SERVERS: usize = 16;

/// Curators that could serve.
pub(super) struct Servers {
    /// Of each.
    hashes: Vec<u64>,
}

impl Servers {
    pub fn new<'a>(curators: impl Iterator<Item = &'a NodeId>) -> Self {
        Self { hashes: curators.map(|node| spread_hash(&[node.as_str()])).collect() }
    }

    /// Those that serve the stage, by their places in the list, in order. One that is made meanwhile is made by all; of one that
    /// is complete those are taken whose hashes with it are the highest, so that a curator more or less moves few.
    pub fn choose(&self, stage: &StageRef, complete: bool) -> Vec<usize> {
        let all = self.hashes.len();
        if !complete || all <= MOST_SERVERS {
            return (0..all).collect();
        }
        let name = spread_hash(&[stage.job.as_str(), stage.stage.as_str()]);
        let weight = |hash: u64| hash.wrapping_mul(name | 1).rotate_left(32);
        let mut by_weight: Vec<(u64, usize)> =
            self.hashes.iter().enumerate().map(|(at, hash)| (weight(*hash), at)).collect();
        by_weight.select_nth_unstable_by(MOST_SERVERS, |a, b| b.cmp(a));
        by_weight.truncate(MOST_SERVERS);
        let mut chosen: Vec<usize> = by_weight.into_iter().map(|(_, at)| at).collect();
        chosen.sort_unstable();
        chosen
    }
}
