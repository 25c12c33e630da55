//! Which curators serve the pairs of a stage that is being trained.

use crate::decide::DecideContext;
use crate::ids::{NodeId, StageRef, spread_hash};

/// Curators that serve a log to which no pair is added any more, if there are as many. A rank goes on to the next one when its
/// own is gone, and each that serves a log costs a few messages when it begins and ends.
pub(super) const MOST_SERVERS: usize = 16;

/// Curators that could serve.
pub(super) struct Servers<'a> {
    /// With the hash of each.
    curators: Vec<(&'a NodeId, u64)>,
}

impl<'a> Servers<'a> {
    pub fn new(curators: Vec<&'a NodeId>) -> Self {
        let hashed = curators.into_iter().map(|node| (node, spread_hash(&[node.as_str()])));
        Self { curators: hashed.collect() }
    }

    /// Those that serve the stage, by their places in the list, in order. One that is made meanwhile is made by all; of one that
    /// is complete those are taken whose hashes with it are the highest, so that a curator more or less moves few.
    pub fn choose(&self, nodes: &DecideContext<'_>, stage: &StageRef) -> Vec<usize> {
        let all = self.curators.len();
        let complete = nodes.state.read_log_of(stage).is_some_and(|log| log.is_sealed());
        if !complete || all <= MOST_SERVERS {
            return (0..all).collect();
        }
        let name = spread_hash(&[stage.job.as_str(), stage.stage.as_str()]);
        let weight = |hash: u64| hash.wrapping_mul(name | 1).rotate_left(32);
        let mut by_weight: Vec<(u64, usize)> =
            self.curators.iter().enumerate().map(|(at, (_, hash))| (weight(*hash), at)).collect();
        by_weight.select_nth_unstable_by(MOST_SERVERS, |a, b| b.cmp(a));
        by_weight.truncate(MOST_SERVERS);
        let mut chosen: Vec<usize> = by_weight.into_iter().map(|(_, at)| at).collect();
        chosen.sort_unstable();
        chosen
    }
}
