//! What specs take from other jobs, checkpoints and pairs, held to what those jobs are.

use crate::error::Overreach;
use crate::ids::{JobId, StageRef};
use crate::job::JobState;
use crate::spec::{
    AdapterSpec, JobSpec, OtherCheckpoint, StageSpec, logs_elsewhere, starts_elsewhere, unfit,
};
use crate::state::{ClusterState, Job};

/// Stages of a spec that take something which is not there, or does not fit: another network, other pairs.
pub(crate) fn of(spec: &JobSpec, state: &ClusterState) -> Vec<Overreach> {
    let refused = |(index, named): (usize, OtherCheckpoint)| {
        let message = wrong(spec, spec.stages.get(index)?, &named, state)?;
        Some(Overreach { field: format!("spec.stages[{index}].initFrom"), message })
    };
    let pairs_refused = |(index, of): (usize, StageRef)| {
        let message = wrong_pairs(spec, spec.stages.get(index)?, &of, state)?;
        Some(Overreach { field: format!("spec.stages[{index}].data.from"), message })
    };
    let starts = starts_elsewhere(spec).filter_map(refused);
    starts.chain(logs_elsewhere(spec).filter_map(pairs_refused)).collect()
}

/// The job, with the specification of its stage; or why there is none that the spec may name.
fn named_stage<'a>(
    spec: &JobSpec,
    (id, name): (&JobId, &str),
    state: &'a ClusterState,
) -> Result<(&'a Job, &'a StageSpec), String> {
    // A job of another tenant does not exist.
    let job = state.job(id).filter(|job| job.record.spec.tenant == spec.tenant);
    let job = job.ok_or_else(|| format!("there is no job {id}"))?;
    if state.deletion(id).is_some() {
        return Err(format!("job {id} is being deleted"));
    }
    let stages = &job.record.spec.stages;
    let stage = stages.iter().find(|other| other.name == name).ok_or_else(|| {
        let names: Vec<&str> = stages.iter().map(|other| other.name.as_str()).collect();
        format!("job {id} has no stage {name}; it has {}", names.join(", "))
    })?;
    Ok((job, stage))
}

fn wrong_pairs(spec: &JobSpec, stage: &StageSpec, of: &StageRef, state: &ClusterState) -> Option<String> {
    let (job, other) = match named_stage(spec, (&of.job, of.stage.as_str()), state) {
        Ok(found) => found,
        Err(message) => return Some(message),
    };
    if let Some(message) = unfit(stage, other, &of.to_string()) {
        return Some(message);
    }
    let log = &job.stages.iter().find(|stage| stage.id == *of)?.log;
    let (id, committed) = (&of.job, log.committed());
    match &job.record.state {
        JobState::Failed { .. } if !log.is_sealed() => Some(format!(
            "job {id} is failed, and the log of {} is not complete: it has {committed} pairs; have that job tried again first",
            of.stage
        )),
        ended if ended.is_terminal() && committed == 0 => {
            Some(format!("job {id} is {ended} and has no pairs of {}", of.stage))
        }
        _ => None,
    }
}

fn wrong(spec: &JobSpec, stage: &StageSpec, named: &OtherCheckpoint, state: &ClusterState) -> Option<String> {
    let OtherCheckpoint { job: id, stage: name, step } = named;
    let (job, other) = match named_stage(spec, (id, name.as_str()), state) {
        Ok(found) => found,
        Err(message) => return Some(message),
    };
    let theirs = &job.record.spec;
    let gone = state.other_checkpoint(&spec.tenant, named).is_none() && job.record.state.is_terminal();
    if gone {
        let what = step
            .map_or_else(|| "no final checkpoint".to_owned(), |step| format!("no checkpoint of step {step}"));
        return Some(format!("job {id} is {} and has {what} of {name}", job.record.state));
    }
    if (theirs.model.preset, theirs.model.sizes) != (spec.model.preset, spec.model.sizes) {
        return Some(format!("job {id} trains another network: its spec.model.preset or sizes differ"));
    }
    match (&other.train.adapter, &stage.train.adapter) {
        (AdapterSpec::Lora { rank: theirs }, AdapterSpec::Lora { rank: ours }) if theirs != ours => {
            Some(format!("rank {ours} cannot start from {named}, which has rank {theirs}"))
        }
        (AdapterSpec::Lora { .. }, AdapterSpec::None) => {
            Some(format!("the whole network cannot be trained on from {named}, which trains a LoRA"))
        }
        (AdapterSpec::None, AdapterSpec::Lora { .. }) => Some(format!(
            "a LoRA cannot start from {named}, which trains the whole network: name its file as spec.model.weights"
        )),
        (AdapterSpec::Lora { .. }, AdapterSpec::Lora { .. }) | (AdapterSpec::None, AdapterSpec::None) => None,
    }
}
