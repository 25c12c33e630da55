//! `source: log`: the pairs of a stage that has made them are trained on once more.

use serde::{Deserialize, Serialize};

use super::types::{DataSource, JobSpec, StageSpec};
use crate::ids::{JobId, StageName, StageRef};

/// `source: log`: the pairs of another stage, in the order of its log. Nothing is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSpec {
    /// An earlier stage of the job, or `JOB/STAGE` of another one.
    pub from: String,
}

impl LogSpec {
    /// The stage, if it is of another job.
    pub fn elsewhere(&self) -> Option<StageRef> {
        let (job, stage) = self.from.split_once('/')?;
        Some(StageRef { job: JobId::parse(job).ok()?, stage: StageName::parse(stage).ok()? })
    }

    /// The stage, if it is of the job itself.
    pub fn earlier(&self) -> Option<&str> {
        (!self.from.contains('/')).then_some(self.from.as_str())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_of_this_job_or_of_another() {
        let of = |from: &str| LogSpec { from: from.to_owned() };
        assert_eq!(of("stage-1").earlier(), Some("stage-1"));
        assert_eq!(of("stage-1").elsewhere(), None);
        let other = of("uno-7f3kq2/stage-1");
        assert_eq!((other.earlier(), other.elsewhere().unwrap().to_string()), (None, other.from.clone()));
        for bad in ["/", "a/", "/b", "a/b/1", "a/B"] {
            assert_eq!((of(bad).elsewhere(), of(bad).earlier()), (None, None), "{bad}");
        }
    }
}
