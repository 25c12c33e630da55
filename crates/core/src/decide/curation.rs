//! Which curator makes and serves which stages.

use std::collections::{BTreeMap, BTreeSet};

use crate::decide::Nodes;
use crate::decide::jobs::Decided;
use crate::ids::{NodeId, StageRef};
use crate::job::JobState;
use crate::records::NodeKind;
use crate::state::Job;

/// What each reachable curator should work on or serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Curation {
    pub wanted: BTreeMap<NodeId, BTreeSet<StageRef>>,
    /// Stages that lack pairs and have a curator.
    pub making: BTreeSet<StageRef>,
}

/// Every stage that is being trained is served by all curators, so that a rank can turn to another. The other stages that
/// lack pairs get at least one curator each, in the order of their jobs, as far as curators go; a curator stays where it is
/// as long as no stage would be left without.
pub(super) fn spread(nodes: &Nodes<'_>, decided: &Decided<'_>) -> Curation {
    let curators: Vec<_> = nodes.reachable(NodeKind::Curator).collect();
    if curators.is_empty() {
        return Curation::default();
    }
    let serve: BTreeSet<StageRef> = decided.active.keys().cloned().collect();
    let jobs = nodes.state.open_in_order();
    let open = jobs.into_iter().filter(|job| !decided.closed.contains(&job.record.id));
    // A stage that trains while it still lacks pairs has every curator already.
    let mut make: Vec<StageRef> =
        open.filter_map(stage_to_make).filter(|stage| !serve.contains(stage)).collect();
    make.truncate(curators.len());

    let quota = if make.is_empty() { 0 } else { curators.len().div_ceil(make.len()) };
    let mut makers: BTreeMap<&StageRef, usize> = make.iter().map(|stage| (stage, 0)).collect();
    let mut chosen: BTreeMap<&NodeId, &StageRef> = BTreeMap::new();
    for (record, view) in &curators {
        let stays = make
            .iter()
            .find(|stage| view.curating.contains(*stage) && makers.get(stage).is_some_and(|n| *n < quota));
        if let Some(stage) = stays {
            *makers.entry(stage).or_insert(0) += 1;
            chosen.insert(&record.id, stage);
        }
    }
    for (record, _) in &curators {
        if chosen.contains_key(&record.id) {
            continue;
        }
        // The first in order among those with the fewest.
        if let Some(stage) = make.iter().min_by_key(|stage| makers.get(stage).copied().unwrap_or(0)) {
            *makers.entry(stage).or_insert(0) += 1;
            chosen.insert(&record.id, stage);
        }
    }

    let wanted = curators
        .iter()
        .map(|(record, _)| {
            let mut stages = serve.clone();
            stages.extend(chosen.get(&record.id).map(|stage| (*stage).clone()));
            (record.id.clone(), stages)
        })
        .collect();
    Curation { wanted, making: make.into_iter().collect() }
}

/// The first stage of the job that lacks pairs: the current one, or the next one while the current one trains.
fn stage_to_make(job: &Job) -> Option<StageRef> {
    match job.record.state {
        JobState::Queued | JobState::Placing { .. } | JobState::Running { .. } => {}
        JobState::Paused
        | JobState::Preempting { .. }
        | JobState::Succeeded
        | JobState::Failed { .. }
        | JobState::Cancelled { .. } => return None,
    }
    let current = job.current_stage()?;
    job.stages.iter().skip(current).take(2).find(|stage| !stage.log.is_sealed()).map(|stage| stage.id.clone())
}
