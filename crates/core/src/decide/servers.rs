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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decide::Limits;
    use crate::ids::{JobId, RequestId, Timestamp};
    use crate::job::JobState;
    use crate::observed::Observed;
    use crate::pairlog::tests::done;
    use crate::records::{JobRecord, Record, UnitRecord, Write};
    use crate::spec;
    use crate::state::ClusterState;

    const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno}
spec:
  model: {preset: nano, weights: base.safetensors, precision: f32}
  stages:
    - data: {source: compose, subjects: lib, pairs: 8}
";

    fn state() -> (ClusterState, StageRef) {
        let spec = spec::parse(SPEC.as_bytes()).expect("the spec is right");
        let record = JobRecord {
            id: JobId::parse("j").expect("valid"),
            request: RequestId::parse("r").expect("valid"),
            spec: Arc::new(spec),
            spec_json: Arc::from(&b"{}"[..]),
            state: JobState::Running { stage: 0 },
            submitted_at: Timestamp(0),
            trace: None,
            started_at: None,
            finished_at: None,
        };
        let (state, _) = ClusterState::load(vec![Record::Job(record)]);
        let stage = state.jobs().next().expect("one").stages[0].id.clone();
        (state, stage)
    }

    #[test]
    fn a_complete_log_has_few_servers_and_one_curator_less_moves_one_at_most() {
        let (mut state, stage) = state();
        let (seen, limits) = (Observed::new(Timestamp(0)), Limits::default());
        let names: Vec<NodeId> =
            (0..60).map(|n| NodeId::parse(&format!("c{n:02}")).expect("valid")).collect();
        let all: Vec<&NodeId> = names.iter().collect();
        let chosen = |state: &ClusterState, curators: &[&NodeId]| -> Vec<NodeId> {
            let nodes = DecideContext::new(state, &seen, &limits, Timestamp(5));
            choose(&nodes, curators, &stage).into_iter().cloned().collect()
        };
        assert_eq!(chosen(&state, &all), names, "all make it");
        let unit = UnitRecord { stage: stage.clone(), ..done(0, 8, false) };
        state.apply(Write::Put(Record::Unit(unit))).expect("the stage is there");
        assert_eq!(chosen(&state, &all[..MOST_SERVERS]), names[..MOST_SERVERS], "there are no more");
        let before = chosen(&state, &all);
        assert!(before.len() == MOST_SERVERS && before.is_sorted(), "{before:?}");
        for gone in &names {
            let others: Vec<&NodeId> = all.iter().copied().filter(|node| *node != gone).collect();
            let after = chosen(&state, &others);
            assert_eq!(after.len(), MOST_SERVERS);
            let stay = before.iter().filter(|node| after.contains(node)).count();
            assert_eq!(stay, MOST_SERVERS - usize::from(before.contains(gone)), "{gone} has gone");
        }
    }
}
