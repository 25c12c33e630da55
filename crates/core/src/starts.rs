//! What specs start from in other jobs, held to what those jobs are.

use crate::error::Overreach;
use crate::spec::{AdapterSpec, JobSpec, OtherCheckpoint, StageSpec, starts_elsewhere};
use crate::state::ClusterState;

/// Stages of a spec that start from something that is not there, or is of another network.
pub(crate) fn of(spec: &JobSpec, state: &ClusterState) -> Vec<Overreach> {
    let refused = |(index, named): (usize, OtherCheckpoint)| {
        let message = wrong(spec, spec.stages.get(index)?, &named, state)?;
        Some(Overreach { field: format!("spec.stages[{index}].initFrom"), message })
    };
    starts_elsewhere(spec).filter_map(refused).collect()
}

fn wrong(spec: &JobSpec, stage: &StageSpec, named: &OtherCheckpoint, state: &ClusterState) -> Option<String> {
    let OtherCheckpoint { job: id, stage: name, step } = named;
    // A job of another tenant does not exist.
    let Some(job) = state.job(id).filter(|job| job.record.spec.tenant == spec.tenant) else {
        return Some(format!("there is no job {id}"));
    };
    if state.deletion(id).is_some() {
        return Some(format!("job {id} is being deleted"));
    }
    let theirs = &job.record.spec;
    let Some(other) = theirs.stages.iter().find(|other| other.name == name.as_str()) else {
        let names: Vec<&str> = theirs.stages.iter().map(|other| other.name.as_str()).collect();
        return Some(format!("job {id} has no stage {name}; it has {}", names.join(", ")));
    };
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
