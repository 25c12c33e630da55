//! A job as files: its JSON, and what its stages left in the object store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use crescendo_core::object_keys;
use crescendo_core::spec::{AdapterSpec, JobSpec, StageSpec};
use crescendo_dataset::checkpoint::{ADAPTER_FILE, HISTORY_FILE, MODEL_FILE};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::history::{self, StepRecord};
use super::objects::Objects;

/// Size of a job's JSON beyond which it is refused.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// What `crescendo get JOB -o json` prints, as far as a report needs it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub job_id: String,
    pub name: String,
    #[serde(default)]
    pub state: String,
    pub resolved_spec_yaml: String,
    #[serde(default)]
    pub submitted_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
    /// What people have noted on it.
    #[serde(default)]
    pub notes: Vec<JobNote>,
    pub stages: Vec<StageJson>,
    /// What curators have drawn with its checkpoints.
    #[serde(default)]
    pub samplings: Vec<SamplingJson>,
}

/// What was drawn of one step, or is to be.
#[derive(Debug, Deserialize)]
pub struct SamplingJson {
    pub stage: String,
    pub step: u64,
    #[serde(default)]
    pub file: Option<FileJson>,
    #[serde(default)]
    pub validation: Option<ValidationJson>,
}

#[derive(Debug, Deserialize)]
pub struct FileJson {
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct ValidationJson {
    pub mean: f64,
    pub pairs: u32,
}

/// What somebody has noted on the job.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct JobNote {
    /// RFC 3339.
    #[serde(default)]
    pub at: Option<String>,
    pub by: String,
    pub text: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageJson {
    pub name: String,
    #[serde(default)]
    pub restarts: u32,
    #[serde(default)]
    pub step: u64,
    #[serde(default)]
    pub steps_total: u64,
    #[serde(default)]
    pub pairs_committed: u64,
    #[serde(default)]
    pub pairs_target: u64,
    #[serde(default)]
    pub pairs_rejected: BTreeMap<String, u64>,
    #[serde(default)]
    pub replay_passes: u64,
    /// What it was computed in: `f32` or `bf16`; empty where that is not known.
    #[serde(default)]
    pub precision: String,
    #[serde(default)]
    pub kind_changes: Vec<String>,
    #[serde(default)]
    pub scores: BTreeMap<String, Distribution>,
    #[serde(default)]
    final_checkpoint: String,
}

/// Counts of a score in buckets of equal width from `least` to `most`.
#[derive(Clone, Debug, PartialEq, Deserialize, serde::Serialize)]
pub struct Distribution {
    pub least: f64,
    pub most: f64,
    pub counts: Vec<u64>,
}

/// What a stage trained, as a file of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trained {
    Adapter(PathBuf),
    /// All weights of the network.
    Network(PathBuf),
}

impl Trained {
    pub fn path(&self) -> &Path {
        match self {
            Self::Adapter(path) | Self::Network(path) => path,
        }
    }
}

/// What a stage left.
#[derive(Debug, Default)]
pub struct Left {
    pub trained: Option<Trained>,
    pub history: Vec<StepRecord>,
    /// Why something of it is missing, a sentence each.
    pub missing: Vec<String>,
}

impl Job {
    /// Reads the job's JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let job: Self = read_json(path)?;
        ensure!(!job.stages.is_empty(), "{}: the job has no stages", path.display());
        Ok(job)
    }

    /// The resolved spec.
    pub fn spec(&self) -> Result<JobSpec> {
        let spec = crescendo_core::spec::parse(self.resolved_spec_yaml.as_bytes()).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the job's resolved spec does not parse: {}", all.join("; "))
        })?;
        ensure!(
            self.stages.len() == spec.stages.len(),
            "the job has {} stages and its spec {}",
            self.stages.len(),
            spec.stages.len()
        );
        Ok(spec)
    }

    /// From the first step to the end; from the submission where the start is not known.
    pub fn took(&self) -> Option<Duration> {
        let time = |text: &Option<String>| humantime::parse_rfc3339(text.as_deref()?).ok();
        let from: SystemTime = time(&self.started_at).or_else(|| time(&self.submitted_at))?;
        time(&self.finished_at)?.duration_since(from).ok()
    }
}

impl StageJson {
    /// What the stage left in the object store. What cannot be had is said, and is no error.
    pub fn left(&self, spec: &StageSpec, objects: &Objects) -> Left {
        let mut left = Left::default();
        if self.final_checkpoint.is_empty() {
            left.missing.push(format!(
                "{} has no final checkpoint (it stood at step {} of {}), so nothing is drawn with it and its curves are left out",
                self.name, self.step, self.steps_total
            ));
            return left;
        }
        let (file, trained): (_, fn(PathBuf) -> Trained) = match spec.train.adapter {
            AdapterSpec::Lora { .. } => (ADAPTER_FILE, Trained::Adapter),
            AdapterSpec::None => (MODEL_FILE, Trained::Network),
        };
        match objects.bring(&object_keys::checkpoint_file(&self.final_checkpoint, file)) {
            Ok(path) => left.trained = Some(trained(path)),
            Err(error) => left.missing.push(format!("nothing is drawn with {}: {error:#}", self.name)),
        }
        let read = || -> Result<Vec<StepRecord>> {
            let bytes = objects.read(&object_keys::checkpoint_file(&self.final_checkpoint, HISTORY_FILE))?;
            history::parse(&String::from_utf8_lossy(&bytes))
        };
        match read() {
            Ok(history) => left.history = history,
            Err(error) => left.missing.push(format!("{} has no curves: {error:#}", self.name)),
        }
        left
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let shown = path.display();
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // People give the job's id, which commands that ask the controller take.
            let id =
                if shown.to_string().contains(['/', '.']) { "JOB".to_owned() } else { shown.to_string() };
            bail!("--job {shown}: there is no such file; `crescendo get {id} -o json > job.json` writes one");
        }
        found => found.with_context(|| format!("read {shown}"))?,
    };
    let size = found.len();
    ensure!(size <= MAX_JSON_BYTES, "{} is larger than {MAX_JSON_BYTES} bytes", path.display());
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not what `crescendo get JOB -o json` prints", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(started: &str, finished: &str) -> Job {
        let json = format!(
            r#"{{"jobId": "a-1", "name": "a", "resolvedSpecYaml": "", "submittedAt": "2026-01-01T00:00:00.000Z",
                 "startedAt": {started}, "finishedAt": {finished}, "stages": [{{"name": "s"}}]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_job_took_from_its_start_to_its_end() {
        let end = r#""2026-01-01T00:10:05.500Z""#;
        assert_eq!(job(r#""2026-01-01T00:10:00.000Z""#, end).took(), Some(Duration::from_millis(5500)));
        assert_eq!(job("null", end).took(), Some(Duration::from_millis(605_500)));
        assert_eq!(job("null", "null").took(), None);
        assert_eq!(job("null", r#""yesterday""#).took(), None);
    }

    #[test]
    fn a_file_that_is_no_job_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.json");
        for (content, says) in [("[]", "job.json"), (r#"{"jobId": "a-1"}"#, "crescendo get JOB -o json")] {
            std::fs::write(&path, content).unwrap();
            let error = format!("{:#}", Job::read(&path).unwrap_err());
            assert!(error.contains(says) && error.contains("job.json"), "{error}");
        }
        let absent = |given: &str| format!("{:#}", Job::read(Path::new(given)).unwrap_err());
        let error = absent("cups-1234");
        assert!(error.contains("`crescendo get cups-1234 -o json > job.json`"), "{error}");
        let error = absent("absent/job.json");
        assert!(error.contains("`crescendo get JOB -o json > job.json`"), "{error}");
    }
}
