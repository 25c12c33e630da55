//! What a stage starts from: a checkpoint of the job itself, or of another one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, StageName};

/// The checkpoint that a stage starts from, and what is taken over of it. In JSON it is its name alone where nothing but the weights
/// is, as it was before there was a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct StartSpec {
    /// A stage of the job, its final checkpoint, or an [`OtherCheckpoint`].
    pub checkpoint: String,
    /// Whether AdamW's moments and its count of steps are taken over, and the moving average if both stages have one.
    pub optimizer: bool,
}

impl StartSpec {
    /// From the weights alone.
    pub fn weights_of(checkpoint: impl Into<String>) -> Self {
        Self { checkpoint: checkpoint.into(), optimizer: false }
    }

    /// The checkpoint, if it is of another job.
    pub fn elsewhere(&self) -> Option<OtherCheckpoint> {
        OtherCheckpoint::parse(&self.checkpoint)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Short(String),
    Long(WrittenLong),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLong {
    checkpoint: String,
    #[serde(default)]
    optimizer: bool,
}

impl From<Written> for StartSpec {
    fn from(written: Written) -> Self {
        match written {
            Written::Short(checkpoint) => Self::weights_of(checkpoint),
            Written::Long(WrittenLong { checkpoint, optimizer }) => Self { checkpoint, optimizer },
        }
    }
}

impl From<StartSpec> for Written {
    fn from(StartSpec { checkpoint, optimizer }: StartSpec) -> Self {
        if optimizer { Self::Long(WrittenLong { checkpoint, optimizer }) } else { Self::Short(checkpoint) }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_stored_as_before_unless_more_than_weights_is_taken() {
        let weights = StartSpec::weights_of("stage-1");
        assert_eq!(serde_json::to_string(&weights).unwrap(), r#""stage-1""#);
        let all = StartSpec { optimizer: true, ..weights.clone() };
        let json = r#"{"checkpoint":"stage-1","optimizer":true}"#;
        assert_eq!(serde_json::to_string(&all).unwrap(), json);
        for (json, start) in
            [(json, all), (r#""stage-1""#, weights.clone()), (r#"{"checkpoint":"stage-1"}"#, weights)]
        {
            assert_eq!(serde_json::from_str::<StartSpec>(json).unwrap(), start);
        }
        assert!(serde_json::from_str::<StartSpec>(r#"{"checkpoint":"stage-1","ema":true}"#).is_err());
    }

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
