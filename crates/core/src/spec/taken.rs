//! What the stages of a spec take from other stages and jobs.

use super::log_source::LogSpec;
use super::start::OtherCheckpoint;
use super::types::{DataSource, JobSpec, StageSpec};
use crate::ids::StageRef;

impl StageSpec {
    /// Name of the checkpoint that it starts from; none from the base.
    pub fn starts_from(&self) -> Option<&str> {
        self.init_from.as_ref().map(|start| start.checkpoint.as_str())
    }
}

/// What the stages of a spec start from in other jobs, with the stages' indices.
pub fn starts_elsewhere(spec: &JobSpec) -> impl Iterator<Item = (usize, OtherCheckpoint)> + '_ {
    let stages = spec.stages.iter().enumerate();
    stages.filter_map(|(index, stage)| Some((index, stage.init_from.as_ref()?.elsewhere()?)))
}

impl DataSource {
    /// Whose pairs are taken, if none are made.
    pub fn log(&self) -> Option<&LogSpec> {
        match self {
            DataSource::Log(log) => Some(log),
            DataSource::Compose(_)
            | DataSource::Import(_)
            | DataSource::Generate(_)
            | DataSource::Recompose(_)
            | DataSource::Crop(_) => None,
        }
    }
}

/// Stages of other jobs whose pairs the stages of a spec take, with the stages' indices.
pub fn logs_elsewhere(spec: &JobSpec) -> impl Iterator<Item = (usize, StageRef)> + '_ {
    let stages = spec.stages.iter().enumerate();
    stages.filter_map(|(index, stage)| Some((index, stage.data.source.log()?.elsewhere()?)))
}

/// Why `stage` cannot be trained on the pairs of `other`, which it calls `from`.
pub(crate) fn unfit(stage: &StageSpec, other: &StageSpec, from: &str) -> Option<String> {
    if let Some(log) = other.data.source.log() {
        let theirs = match from.split_once('/') {
            Some((job, _)) if log.earlier().is_some() => format!("{job}/{}", log.from),
            Some(_) | None => log.from.clone(),
        };
        return Some(format!("`{from}` makes no pairs, and takes those of `{theirs}`: name that one"));
    }
    (other.references != stage.references).then(|| {
        format!(
            "the pairs of `{from}` are of `references: {}`, and this stage has {}",
            other.references, stage.references
        )
    })
}
