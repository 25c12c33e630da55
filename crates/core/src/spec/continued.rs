//! The spec of a job that goes on where another one has stopped.

use super::log_source::LogSpec;
use super::start::{OtherCheckpoint, StartSpec};
use super::types::*;

/// Where the other job has stopped, and how far the new one goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// What it has trained: of one of its stages, which the new job trains on.
    pub checkpoint: OtherCheckpoint,
    /// There will be no more pairs of that stage: the new job takes those that there are.
    pub is_log_sealed: bool,
    /// Steps of the first stage of the new job.
    pub steps: u64,
    /// Name of the new job, if it is to have another.
    pub name: Option<String>,
}

/// The stage with its optimizer and its pairs, and the stages after it, which take from the other job what they took from stages that are
/// not among them. An error says what cannot be taken from there.
pub fn continued(spec: &JobSpec, how: &Continuation) -> Result<JobSpec, String> {
    let OtherCheckpoint { job, stage: name, .. } = &how.checkpoint;
    let place = spec.stages.iter().position(|stage| stage.name == name.as_str());
    let place = place.ok_or_else(|| format!("job {job} has no stage {name}"))?;
    let (left, kept) = spec.stages.split_at(place);
    let is_left = |name: &str| left.iter().any(|stage| stage.name == name);
    let mut stages = kept.to_vec();
    if let Some(first) = stages.first_mut() {
        first.init_from = Some(StartSpec { checkpoint: how.checkpoint.to_string(), optimizer: true });
        first.train.steps = how.steps;
        first.train.warmup_steps = first.train.warmup_steps.min(how.steps);
        if how.is_log_sealed && first.data.source.log().is_none() {
            take_pairs(&mut first.data, format!("{job}/{name}"));
        }
    }
    for stage in &mut stages {
        if let Some(start) = stage.init_from.as_mut().filter(|start| is_left(&start.checkpoint)) {
            start.checkpoint = format!("{job}/{}", start.checkpoint);
        }
        match &mut stage.data.source {
            // A stage that only takes pairs itself has none to give.
            DataSource::Log(log) if is_left(&log.from) || how.is_log_sealed && log.from == name.as_str() => {
                log.from = format!("{job}/{}", log.from);
            }
            DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop)
                if is_left(&crop.from) =>
            {
                return Err(format!(
                    "stage {} makes its pairs from those of stage {}, which a job that goes on from {name} does not have",
                    stage.name, crop.from
                ));
            }
            DataSource::Log(_)
            | DataSource::Recompose(_)
            | DataSource::Crop(_)
            | DataSource::Compose(_)
            | DataSource::Import(_)
            | DataSource::Generate(_) => {}
        }
    }
    let name = how.name.clone().unwrap_or_else(|| spec.name.clone());
    Ok(JobSpec { name, stages, ..spec.clone() })
}

/// All pairs of another stage in place of what the stage made.
fn take_pairs(data: &mut DataSpec, from: String) {
    data.source = DataSource::Log(LogSpec { from });
    data.prompts = None;
    data.filter = FilterSpec { similarity: None, judge: None };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{parse, to_yaml};

    const THREE: &str = "\
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno, labels: {team: vision}}
spec:
  model: {preset: nano, weights: base.safetensors}
  stages:
    - data: {source: compose, subjects: lib, pairs: 640, filter: {similarity: {min: 0.5, encoder: dino}}}
      train: {steps: 400}
    - references: 2
      data: {source: compose, subjects: lib, pairs: 320}
      train: {steps: 200}
    - references: 1
      initFrom: stage-1
      data: {source: log, from: stage-1}
      train: {steps: 100}
";

    fn from(stage: &str, step: Option<u64>, steps: u64) -> Continuation {
        let checkpoint = match step {
            None => format!("uno-7f3kq2/{stage}"),
            Some(step) => format!("uno-7f3kq2/{stage}/{step}"),
        };
        let checkpoint = OtherCheckpoint::parse(&checkpoint).expect("a checkpoint");
        Continuation { checkpoint, is_log_sealed: true, steps, name: None }
    }

    /// What is submitted is text, and the job is what it says.
    fn read_back(spec: &JobSpec) -> JobSpec {
        parse(to_yaml(spec).as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}\n{}", to_yaml(spec)))
    }

    #[test]
    fn a_job_goes_on_with_the_stage_that_has_a_checkpoint_and_those_after_it() {
        let spec = parse(THREE.as_bytes()).unwrap();
        let next = continued(&spec, &from("stage-2", Some(150), 20)).unwrap();
        let told = read_back(&next);
        let starts: Vec<_> = told.stages.iter().map(|stage| stage.init_from.clone().unwrap()).collect();
        let first = StartSpec { checkpoint: "uno-7f3kq2/stage-2/150".into(), optimizer: true };
        assert_eq!(starts, [first, StartSpec::weights_of("uno-7f3kq2/stage-1")]);
        let logs: Vec<_> =
            told.stages.iter().map(|stage| stage.data.source.log().unwrap().from.clone()).collect();
        assert_eq!(logs, ["uno-7f3kq2/stage-2", "uno-7f3kq2/stage-1"]);
        let trained: Vec<_> = told.stages.iter().map(|stage| stage.train.steps).collect();
        assert_eq!((trained, told.stages[0].train.warmup_steps), (vec![20, 100], 20));
        assert_eq!((told.name, told.labels, told.stages[0].data.pairs), (spec.name, spec.labels, 320));
    }

    #[test]
    fn pairs_that_are_not_all_there_are_made_as_before() {
        let spec = parse(THREE.as_bytes()).unwrap();
        let open =
            Continuation { is_log_sealed: false, name: Some("more".into()), ..from("stage-1", None, 800) };
        let told = read_back(&continued(&spec, &open).unwrap());
        assert_eq!((told.name.as_str(), told.stages.len()), ("more", 3));
        assert_eq!(told.stages[0].data, spec.stages[0].data);
        assert_eq!(
            told.stages[1..],
            spec.stages[1..],
            "what comes after it takes from stages of its own job"
        );
        let sealed = read_back(&continued(&spec, &from("stage-1", None, 800)).unwrap());
        assert_eq!(sealed.stages[0].data.filter.similarity, None);
        // The third one now takes what its own job takes elsewhere.
        assert_eq!(sealed.stages[2].data.source.log().unwrap().from, "uno-7f3kq2/stage-1");
    }

    #[test]
    fn what_makes_pairs_from_a_stage_that_is_left_behind_is_refused() {
        let spec = THREE.replace(
            "data: {source: log, from: stage-1}",
            "data: {source: crop, from: stage-1, detector: d}",
        );
        let spec = spec.replace("references: 1", "references: 2");
        let spec = parse(spec.as_bytes()).unwrap();
        let refused = continued(&spec, &from("stage-2", None, 20)).unwrap_err();
        assert!(refused.contains("stage-3 makes its pairs from those of stage stage-1"), "{refused}");
        let mut whole = spec.clone();
        whole.stages.truncate(2);
        assert!(continued(&whole, &from("stage-2", None, 20)).is_ok());
        assert!(continued(&whole, &from("stage-9", None, 20)).is_err());
    }
}
