//! What a stage may start from in another job.

use std::fmt;

use super::types::JobSpec;
use crate::ids::{JobId, StageName};

/// `JOB/STAGE`, the final checkpoint of a stage, or `JOB/STAGE/STEP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherCheckpoint {
    pub job: JobId,
    pub stage: StageName,
    /// None: the final one.
    pub step: Option<u64>,
}

impl OtherCheckpoint {
    /// `None` if `text` names none, as a stage of the job itself does.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (job, stage, step) = (parts.next()?, parts.next()?, parts.next());
        if parts.next().is_some() {
            return None;
        }
        let step = match step {
            None => None,
            // Only as numbers are written, so that one checkpoint has one name.
            Some(text) => {
                Some(text.parse::<u64>().ok().filter(|step| *step > 0 && step.to_string() == text)?)
            }
        };
        Some(Self { job: JobId::parse(job).ok()?, stage: StageName::parse(stage).ok()?, step })
    }
}

impl fmt::Display for OtherCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.stage)?;
        self.step.map_or(Ok(()), |step| write!(f, "/{step}"))
    }
}

/// What the stages of a spec start from in other jobs, with the stages' indices.
pub fn starts_elsewhere(spec: &JobSpec) -> impl Iterator<Item = (usize, OtherCheckpoint)> + '_ {
    let stages = spec.stages.iter().enumerate();
    stages.filter_map(|(index, stage)| Some((index, OtherCheckpoint::parse(stage.init_from.as_deref()?)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_of_another_job_has_one_name() {
        for text in ["uno-7f3kq2/stage-1", "uno-7f3kq2/stage-1/200"] {
            assert_eq!(OtherCheckpoint::parse(text).map(|named| named.to_string()).as_deref(), Some(text));
        }
        for text in
            ["stage-1", "", "/", "a/", "/b", "a/b/", "a/b/0", "a/b/01", "a/b/+1", "a/b/1/2", "a/B", "a/b/x"]
        {
            assert_eq!(OtherCheckpoint::parse(text), None, "{text}");
        }
    }
}
