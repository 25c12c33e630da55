//! What must hold of every durable state, whatever happened before. Used by property tests, by the tests of the
//! controller, and by the controller itself after it has loaded a snapshot.

use std::collections::BTreeMap;

use crate::deletion::DeletionPhase;
use crate::job::JobState;
use crate::state::{ClusterState, Job};

/// Every violation, as one line each; empty if all is well.
pub fn check_invariants(state: &ClusterState) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut holders: BTreeMap<(&str, u32), String> = BTreeMap::new();
    for job in state.jobs() {
        // Of one that is halted a part is not known; of one whose records are being deleted a part is gone.
        let id = &job.record.id;
        let is_whole = state.deletion(id).is_none_or(|deletion| deletion.phase == DeletionPhase::Files);
        if state.unreadable().of_job(id).is_none() && is_whole {
            check_job(job, &mut wrong);
        }
        for attempt in job.stages.iter().filter_map(|stage| stage.active_attempt()) {
            for rank in &attempt.ranks {
                let slot = (rank.node.as_str(), rank.device_index);
                if let Some(other) = holders.insert(slot, attempt.attempt.to_string()) {
                    wrong.push(format!(
                        "slot {} of {} is held by {other} and {}",
                        slot.1, slot.0, attempt.attempt
                    ));
                }
            }
        }
    }
    for deletion in state.deletions() {
        let id = &deletion.job;
        match state.job(id) {
            Some(job) if !job.record.state.is_terminal() => {
                wrong.push(format!("{id} is {} and is being deleted", job.record.state));
            }
            Some(_) if matches!(deletion.phase, DeletionPhase::Gone { .. }) => {
                wrong.push(format!("{id} is gone and has a record"));
            }
            Some(_) | None => {}
        }
    }
    wrong
}

fn check_job(job: &Job, wrong: &mut Vec<String>) {
    let record = &job.record;
    let id = &record.id;
    if job.stages.len() != record.spec.stages.len() {
        wrong.push(format!("{id} has {} stages, its spec {}", job.stages.len(), record.spec.stages.len()));
    }
    if record.state.is_terminal() != record.finished_at.is_some() {
        wrong.push(format!("{id} is {} but its end time says otherwise", record.state));
    }
    if record.state == JobState::Succeeded && job.current_stage().is_some() {
        wrong.push(format!("{id} succeeded with a stage that is not done"));
    }
    let active: Vec<_> = job.stages.iter().filter_map(|stage| stage.active_attempt()).collect();
    if active.len() > 1 {
        wrong.push(format!("{id} has {} active attempts", active.len()));
    }
    if record.state.is_terminal() && !active.is_empty() {
        wrong.push(format!("{id} is {} with an active attempt", record.state));
    }
    for attempt in active {
        let ranks = u32::try_from(attempt.ranks.len()).unwrap_or(u32::MAX);
        let resources = &record.spec.resources;
        if ranks > resources.gpus || ranks < resources.min_gpus {
            wrong.push(format!("{} has {ranks} ranks", attempt.attempt));
        }
    }
    for stage in &job.stages {
        match stage.log.segments_apart() {
            0 => {}
            apart => wrong.push(format!("{} has a gap in its log before {apart} of its segments", stage.id)),
        }
        if let Some(newest) = stage.checkpoints.values().map(|checkpoint| checkpoint.generation).max()
            && newest > stage.generation()
        {
            wrong.push(format!("{} has a checkpoint of generation {newest}, which never ran", stage.id));
        }
        if stage
            .checkpoints
            .values()
            .filter(|checkpoint| checkpoint.is_final && checkpoint.damaged.is_none())
            .count()
            > 1
        {
            wrong.push(format!("{} has two final checkpoints", stage.id));
        }
        if let Some(spec) = record.spec.stages.iter().find(|spec| spec.name == stage.id.stage.as_str())
            && stage.log.committed() > spec.data.pairs
        {
            wrong.push(format!("{} has more pairs than were asked for", stage.id));
        }
    }
}
