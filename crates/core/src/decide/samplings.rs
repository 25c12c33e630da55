//! Which curator draws which pictures of checkpoints.

use std::collections::BTreeSet;

use crate::decide::{DecideContext, Limits};
use crate::ids::{NodeId, Timestamp};
use crate::observed::Observed;
use crate::records::NodeKind;
use crate::sampling::{SamplingRecord, SamplingRef};
use crate::spec::ModelPreset;
use crate::state::{ClusterState, Job};

/// What is to be drawn next and by whom: the jobs that go first first, and of a stage the earlier steps. A curator draws for one at a
/// time. `under_way` are those that are being drawn, `may` says which of the others may be tried now.
pub fn next_samplings(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    under_way: &[(&SamplingRef, &NodeId)],
    may: impl Fn(&SamplingRef) -> bool,
    now: Timestamp,
) -> Vec<(NodeId, SamplingRef)> {
    let is_free = |sampling: &(SamplingRef, &Job)| {
        let job = &sampling.0.stage.job;
        under_way.iter().all(|(other, _)| **other != sampling.0)
            && may(&sampling.0)
            && state.deletion(job).is_none()
            && state.unreadable().of_job(job).is_none()
    };
    let wanted = state.wanted_samplings().map(SamplingRecord::id);
    let wanted = wanted.filter_map(|id| Some((state.job(&id.stage.job)?, id)));
    let mut wanted: Vec<(SamplingRef, &Job)> = wanted.map(|(job, id)| (id, job)).filter(is_free).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    wanted.sort_by(|left, right| (left.1.order(), &left.0).cmp(&(right.1.order(), &right.0)));
    let nodes = DecideContext::new(state, seen, limits, now);
    let busy: BTreeSet<&NodeId> = under_way.iter().map(|(_, node)| *node).collect();
    let mut curators: Vec<_> =
        nodes.open_to_work(NodeKind::Curator).filter(|(record, _)| !busy.contains(&record.id)).collect();
    let mut chosen = Vec::new();
    for (id, job) in wanted {
        let wants_gpu = job.record.spec.model.preset != ModelPreset::Nano;
        // One that makes pairs is not taken from it as long as another is idle; a network of FLUX's size is for a GPU.
        let best = curators.iter().enumerate().min_by_key(|(_, (record, view))| {
            let is_gpu = record.device == "cuda";
            (wants_gpu && !is_gpu, view.curating.len(), &record.id)
        });
        let Some(at) = best.map(|(at, _)| at) else { break };
        let (record, _) = curators.swap_remove(at);
        chosen.push((record.id.clone(), id));
    }
    chosen
}
