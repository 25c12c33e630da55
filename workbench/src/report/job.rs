//! A finished job as files: its JSON and the final checkpoints in the object store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crescendo_core::spec::JobSpec;
use serde::Deserialize;

use super::history::{self, StepRecord};

/// What `crescendo get JOB -o json` prints, as far as a report needs it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FinishedJob {
    pub job_id: String,
    pub name: String,
    pub resolved_spec_yaml: String,
    stages: Vec<StageJson>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StageJson {
    name: String,
    #[serde(default)]
    restarts: u32,
    #[serde(default)]
    pairs_committed: u64,
    #[serde(default)]
    pairs_rejected: BTreeMap<String, u64>,
    #[serde(default)]
    scores: BTreeMap<String, Distribution>,
    #[serde(default)]
    final_checkpoint: String,
}

/// Counts of a score in buckets of equal width from `least` to `most`.
#[derive(Clone, Debug, Deserialize)]
pub struct Distribution {
    pub least: f64,
    pub most: f64,
    pub counts: Vec<u64>,
}

/// One stage with the files of its final checkpoint.
#[derive(Debug)]
pub struct FinishedStage {
    pub name: String,
    pub restarts: u32,
    pub pairs_committed: u64,
    pub pairs_rejected: BTreeMap<String, u64>,
    /// Of each score, over all candidates.
    pub scores: BTreeMap<String, Distribution>,
    /// Path of the stage's LoRA.
    pub lora: PathBuf,
    pub history: Vec<StepRecord>,
}

impl FinishedJob {
    /// Reads the job's JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
    }

    /// The resolved spec.
    pub fn spec(&self) -> Result<JobSpec> {
        crescendo_core::spec::parse(self.resolved_spec_yaml.as_bytes()).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the job's resolved spec does not parse: {}", all.join("; "))
        })
    }

    /// Its stages, with their files below `objects`.
    pub fn stages_of(&self, spec: &JobSpec, objects: &Path) -> Result<Vec<FinishedStage>> {
        ensure!(
            self.stages.len() == spec.stages.len(),
            "the job and its spec differ in their number of stages"
        );
        self.stages
            .iter()
            .map(|stage| {
                ensure!(!stage.final_checkpoint.is_empty(), "stage {} has no final checkpoint", stage.name);
                let folder = objects.join(&stage.final_checkpoint);
                let history_path = folder.join("history.jsonl");
                let text = std::fs::read_to_string(&history_path)
                    .with_context(|| format!("read {}", history_path.display()))?;
                Ok(FinishedStage {
                    name: stage.name.clone(),
                    restarts: stage.restarts,
                    pairs_committed: stage.pairs_committed,
                    pairs_rejected: stage.pairs_rejected.clone(),
                    scores: stage.scores.clone(),
                    lora: folder.join("dit_lora.safetensors"),
                    history: history::parse(&text)
                        .with_context(|| format!("read {}", history_path.display()))?,
                })
            })
            .collect()
    }
}
