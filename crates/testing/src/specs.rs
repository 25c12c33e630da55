//! The one minimal job spec: a stage of two ranks, 16-pixel pictures being nobody's concern where nothing is drawn.

/// A LoRA stage on composed pairs. Precision is fixed: a test that lets it be settled says so.
pub const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: trial}
spec:
  model: {preset: nano, precision: f32, weights: base.safetensors}
  resources: {gpus: 2}
  stages:
    - name: stage-1
      references: 1
      data: {source: compose, subjects: subjects, pairs: 8, minPairs: 4, unitSize: 4}
      train: {adapter: {rank: 4}, steps: 20, globalBatch: 2}
  checkpoints: {every: 5, keepLast: 2}
";
