//! Pure: which checkpoint is meant, and which of its files a person takes.

use crescendo_dataset::checkpoint::{ADAPTER_FILE, MODEL_FILE};
use crescendo_proto::v1::{Checkpoint, CheckpointFile};

use crate::failure::Failure;
use crate::show::words;

/// A job, and one of its stages if it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStage {
    pub job: String,
    pub stage: Option<String>,
}

impl std::str::FromStr for JobStage {
    type Err = String;

    /// `JOB` or `JOB:STAGE`.
    fn from_str(text: &str) -> Result<JobStage, String> {
        let (job, stage) = match text.split_once(':') {
            Some((job, stage)) => (job, Some(stage)),
            None => (text, None),
        };
        if job.is_empty() || stage.is_some_and(|stage| stage.is_empty() || stage.contains(':')) {
            return Err("expected JOB or JOB:STAGE, e.g. nano-7f3kq2:stage-1".into());
        }
        Ok(JobStage { job: job.to_owned(), stage: stage.map(str::to_owned) })
    }
}

/// The checkpoint of `step`, or else the last one that is not damaged; of the named stage, or else of the last one that has
/// any. `registered` is the job's list, oldest first.
pub fn choose<'a>(
    of: &JobStage,
    registered: &'a [Checkpoint],
    step: Option<u64>,
) -> Result<&'a Checkpoint, Failure> {
    let job = &of.job;
    let Some(newest) = registered.last() else {
        return Err(Failure::other(format!(
            "job {job} has no checkpoint yet; `crescendo get {job}` shows how far it is"
        )));
    };
    let stage = of.stage.as_deref().unwrap_or(&newest.stage);
    let of_stage: Vec<&Checkpoint> =
        registered.iter().filter(|checkpoint| checkpoint.stage == stage).collect();
    if of_stage.is_empty() {
        let mut stages: Vec<&str> = registered.iter().map(|checkpoint| checkpoint.stage.as_str()).collect();
        stages.dedup();
        return Err(Failure::Usage(format!(
            "job {job} has no checkpoint of a stage {stage}; it has some of {}",
            words::one_line(&stages.join(", "))
        )));
    }
    let Some(step) = step else {
        let sound = of_stage.iter().rfind(|checkpoint| checkpoint.damaged.is_empty());
        return sound.copied().ok_or_else(|| {
            Failure::other(format!(
                "every checkpoint of stage {stage} of job {job} is damaged; `crescendo checkpoints {job}` says how"
            ))
        });
    };
    let Some(found) = of_stage.iter().rfind(|checkpoint| checkpoint.step == step) else {
        let mut steps: Vec<String> = of_stage.iter().map(|checkpoint| checkpoint.step.to_string()).collect();
        steps.dedup();
        return Err(Failure::Usage(format!(
            "stage {stage} of job {job} has no checkpoint of step {step}; it has those of {}",
            steps.join(", ")
        )));
    };
    if !found.damaged.is_empty() {
        return Err(Failure::other(format!(
            "the checkpoint of step {step} is damaged: {}",
            words::one_line(&found.damaged)
        )));
    }
    Ok(found)
}

/// What a stage trains: its adapter, or all weights.
pub fn trained_file(checkpoint: &Checkpoint) -> Result<&CheckpointFile, Failure> {
    let named = |name: &str| checkpoint.files.iter().find(|file| file.name == name);
    named(ADAPTER_FILE).or_else(|| named(MODEL_FILE)).ok_or_else(|| {
        Failure::other(format!(
            "checkpoint {} has neither {ADAPTER_FILE} nor {MODEL_FILE}",
            words::one_line(&checkpoint.path)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(stage: &str, step: u64, damaged: &str) -> Checkpoint {
        let path = format!("jobs/a-1/{stage}/checkpoints/step-{step:08}-g1");
        Checkpoint { stage: stage.into(), step, path, damaged: damaged.into(), ..Checkpoint::default() }
    }

    fn steps(of: &str, registered: &[Checkpoint], step: Option<u64>) -> Result<(String, u64), (u8, String)> {
        match choose(&of.parse().unwrap(), registered, step) {
            Ok(found) => Ok((found.stage.clone(), found.step)),
            Err(failure) => Err((failure.exit_code(), failure.to_string())),
        }
    }

    #[test]
    fn the_last_sound_one_of_the_last_stage_is_meant_unless_another_is_named() {
        let registered = [
            checkpoint("stage-1", 50, ""),
            checkpoint("stage-1", 100, ""),
            checkpoint("stage-2", 50, ""),
            checkpoint("stage-2", 100, "optimizer.safetensors: too short"),
        ];
        assert_eq!(steps("a-1", &registered, None), Ok(("stage-2".into(), 50)));
        assert_eq!(steps("a-1:stage-1", &registered, None), Ok(("stage-1".into(), 100)));
        assert_eq!(steps("a-1:stage-1", &registered, Some(50)), Ok(("stage-1".into(), 50)));

        let (code, why) = steps("a-1", &registered, Some(100)).unwrap_err();
        assert!(code == 1 && why.contains("is damaged: optimizer.safetensors: too short"), "{why}");
        let (code, why) = steps("a-1:stage-1", &registered, Some(70)).unwrap_err();
        assert!(code == 2 && why.ends_with("it has those of 50, 100"), "{why}");
        let (code, why) = steps("a-1:stage-3", &registered, None).unwrap_err();
        assert!(code == 2 && why.ends_with("it has some of stage-1, stage-2"), "{why}");
        let (code, why) = steps("a-1:stage-2", &registered[3..], None).unwrap_err();
        assert!(code == 1 && why.contains("every checkpoint of stage stage-2"), "{why}");
        let (code, why) = steps("a-1", &[], None).unwrap_err();
        assert!(code == 1 && why.contains("no checkpoint yet"), "{why}");
    }

    #[test]
    fn of_a_checkpoint_the_adapter_is_taken_or_else_all_weights() {
        let file = |name: &str| CheckpointFile { name: name.into(), ..CheckpointFile::default() };
        let of = |names: &[&str]| Checkpoint {
            files: names.iter().map(|name| file(name)).collect(),
            ..Checkpoint::default()
        };
        let name = |checkpoint: &Checkpoint| trained_file(checkpoint).map(|file| file.name.clone()).ok();
        assert_eq!(name(&of(&["optimizer.safetensors", ADAPTER_FILE])).as_deref(), Some(ADAPTER_FILE));
        assert_eq!(name(&of(&["ema.safetensors", MODEL_FILE])).as_deref(), Some(MODEL_FILE));
        assert_eq!(name(&of(&["state.json"])), None);
    }

    #[test]
    fn a_job_and_a_stage_have_a_colon_between_them() {
        let parsed = |text: &str| text.parse::<JobStage>().ok().map(|of| (of.job, of.stage));
        assert_eq!(parsed("a-1"), Some(("a-1".into(), None)));
        assert_eq!(parsed("a-1:stage-2"), Some(("a-1".into(), Some("stage-2".into()))));
        for wrong in ["", ":stage-1", "a-1:", "a-1:b:c"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
