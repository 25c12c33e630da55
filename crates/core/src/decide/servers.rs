//! Which curators serve the pairs of a stage that is being trained.

use crate::decide::DecideContext;
use crate::ids::{NodeId, StageRef, spread_hash};

/// Curators that serve a log to which no pair is added any more, if there are as many. A rank goes on to the next one when its
/// own is gone, and each that serves a log costs a few messages when it begins and ends.
pub(super) const MOST_SERVERS: usize = 16;

/// Those of `curators` that serve the stage, in the same order. One that is made meanwhile is made by all; of one that is
/// complete those are taken whose hashes with it are the highest, so that a curator more or less moves few.
pub(super) fn choose<'a>(
    nodes: &DecideContext<'_>,
    curators: &[&'a NodeId],
    stage: &StageRef,
) -> Vec<&'a NodeId> {
    let complete = nodes.state.read_log_of(stage).is_some_and(|log| log.is_sealed());
    if !complete || curators.len() <= MOST_SERVERS {
        return curators.to_vec();
    }
    let name = spread_hash(&[stage.job.as_str(), stage.stage.as_str()]);
    let weight = |node: &NodeId| spread_hash(&[node.as_str()]).wrapping_mul(name | 1).rotate_left(32);
    let mut by_weight: Vec<(u64, usize)> =
        curators.iter().enumerate().map(|(at, node)| (weight(node), at)).collect();
    by_weight.select_nth_unstable_by(MOST_SERVERS, |a, b| b.cmp(a));
    by_weight.truncate(MOST_SERVERS);
    let mut chosen: Vec<usize> = by_weight.into_iter().map(|(_, at)| at).collect();
    chosen.sort_unstable();
    chosen.into_iter().filter_map(|at| curators.get(at).copied()).collect()
}
