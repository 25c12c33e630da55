//! `source: log`: the pairs of a stage that has made them are trained on once more.

use serde::{Deserialize, Serialize};

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
