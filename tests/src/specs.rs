//! Specs that are small enough for tests: 16-pixel panels, few steps. Their precision is fixed, since tests hold the bytes of
//! one job to those of another, and `auto` is settled for each by itself.

use std::fmt::Write as _;

/// A text-to-image base trained from nothing, all parameters.
pub fn base_spec(steps: u64) -> String {
    format!(
        "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: base}}
spec:
  model: {{preset: nano, precision: f32}}
  resources: {{gpus: 2}}
  seed: 3
  stages:
    - name: base
      references: 0
      data: {{source: compose, subjects: subjects, panel: 16, layout: mixed, pairs: 24, unitSize: 8}}
      train: {{adapter: none, steps: {steps}, globalBatch: 4, learningRate: 1e-3, timesteps: logit-normal}}
  checkpoints: {{every: 100, keepLast: 1}}
"
    )
}

/// LoRA stages with 1, 2, … references on a base; each stage has `steps` steps and a checkpoint every `every`.
pub fn lora_spec(weights: &str, stages: u32, steps: u64, every: u64) -> String {
    let mut spec = format!(
        "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: lora}}
spec:
  model: {{preset: nano, precision: f32, weights: {weights}}}
  resources: {{gpus: 2}}
  seed: 5
  checkpoints: {{every: {every}, keepLast: 2}}
  stages:
"
    );
    for i in 1..=stages {
        let _ = write!(
            spec,
            "    - name: stage-{i}
      references: {i}
      data: {{source: compose, subjects: subjects, panel: 16, pairs: 20, minPairs: 4, unitSize: 4}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 4, learningRate: 1e-3, warmupSteps: 2}}
"
        );
    }
    spec
}

/// One stage on a base, over `pairs` small pairs in many units, with frequent checkpoints.
pub fn chaos_spec(weights: &str, pairs: u64, steps: u64) -> String {
    format!(
        "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: chaos}}
spec:
  model: {{preset: nano, precision: f32, weights: {weights}}}
  resources: {{gpus: 2}}
  seed: 7
  checkpoints: {{every: 5, keepLast: 2}}
  stages:
    - references: 1
      data: {{source: compose, subjects: subjects, panel: 16, pairs: {pairs}, minPairs: 64, unitSize: 40}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 16, learningRate: 1e-4, warmupSteps: 2}}
"
    )
}

/// A job for more GPUs than there are: it waits until somebody cancels it.
pub fn waiting_spec() -> String {
    base_spec(2).replace("gpus: 2", "gpus: 64").replace("globalBatch: 4", "globalBatch: 64")
}
