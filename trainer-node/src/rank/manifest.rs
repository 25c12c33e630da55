//! What is in a checkpoint, and how it is told that nothing of it is missing or changed.
//!
//! A checkpoint is a folder of the object store:
//!
//! | file | content |
//! |---|---|
//! | `dit_lora.safetensors` | the adapter, float32, published naming; `model.safetensors` when all weights are trained |
//! | `ema.safetensors` | moving average of the same, when one is kept |
//! | `optimizer.safetensors` | `exp_avg.<name>` and `exp_avg_sq.<name>`, float32 |
//! | `state.json` | [`TrainState`] |
//! | `history.jsonl` | one line a step since the stage began |
//! | `resolved_spec.json` | the job's spec |
//! | `manifest.json` | size and SHA-256 of all of the above; written last |

pub use crescendo_core::files::{ADAPTER_FILE, MODEL_FILE};
use crescendo_node::download::Downloaded;
use crescendo_proto::v1::{Checkpoint, CheckpointFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::positions::Lap;

pub const EMA_FILE: &str = "ema.safetensors";
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
pub const STATE_FILE: &str = "state.json";
pub const HISTORY_FILE: &str = "history.jsonl";
pub const SPEC_FILE: &str = "resolved_spec.json";
pub const MANIFEST_FILE: &str = "manifest.json";

/// Where training stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainState {
    pub stage: String,
    pub stage_index: u32,
    pub seed: u64,
    /// Generation of the attempt that wrote it.
    pub generation: u64,
    /// Steps done.
    pub step: u64,
    /// First position of the global order that is not trained yet.
    pub next_position: u64,
    /// Updates that the optimizer has made; what its bias correction counts with.
    pub optimizer_steps: u64,
    /// Laps in the global order so far (`onStarvation: repeat`); with `next_position`, where in the log training stood.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub laps: Vec<Lap>,
}

/// Content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestFile {
    pub name: String,
    pub size_bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl ManifestFile {
    pub fn of(name: &str, content: &[u8]) -> Self {
        Self { name: name.into(), size_bytes: content.len() as u64, sha256: hex(&Sha256::digest(content)) }
    }

    pub fn to_wire(&self) -> CheckpointFile {
        CheckpointFile { name: self.name.clone(), size_bytes: self.size_bytes, sha256: self.sha256.clone() }
    }
}

pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Folder of a checkpoint, relative to the object store's root.
pub fn folder(job_id: &str, stage: &str, step: u64, generation: u64) -> String {
    format!("jobs/{job_id}/{stage}/checkpoints/step-{step:08}-g{generation}")
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Damage {
    #[error("{file}: missing")]
    Missing { file: String },
    #[error("{file}: {found} bytes, registered with {expected}")]
    Size { file: String, found: u64, expected: u64 },
    #[error("{file}: content has SHA-256 {found}, registered with {expected}")]
    Content { file: String, found: String, expected: String },
    #[error("{file}: {reason}")]
    Unusable { file: String, reason: String },
}

/// Compares what was read of a file with its record in the registry.
pub fn verify(expected: &CheckpointFile, found: Downloaded) -> Result<(), Damage> {
    let (file, Downloaded { size_bytes, sha256 }) = (expected.name.clone(), found);
    if size_bytes != expected.size_bytes {
        return Err(Damage::Size { file, found: size_bytes, expected: expected.size_bytes });
    }
    if sha256 != expected.sha256 {
        return Err(Damage::Content { file, found: sha256, expected: expected.sha256.clone() });
    }
    Ok(())
}

/// A file name of the registry that is safe to append to a folder.
pub fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(allowed)
}

/// Folders among `expired` that the writer may delete: of its own stage, and not the checkpoint just committed.
pub fn deletable<'a>(expired: &'a [Checkpoint], committed: &Checkpoint) -> Vec<&'a Checkpoint> {
    let prefix = format!("jobs/{}/{}/checkpoints/", committed.job_id, committed.stage);
    expired
        .iter()
        .filter(|old| old.path != committed.path && old.path.strip_prefix(&prefix).is_some_and(is_plain_name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_the_file() {
        let content = b"weights";
        let record = ManifestFile::of("a.safetensors", content).to_wire();
        let check = |content: &[u8]| {
            let ManifestFile { size_bytes, sha256, .. } = ManifestFile::of("a", content);
            verify(&record, Downloaded { size_bytes, sha256 })
        };
        assert_eq!(check(content), Ok(()));
        assert_eq!(check(b"weight").unwrap_err().to_string(), "a.safetensors: 6 bytes, registered with 7");
        assert!(check(b"Weights").unwrap_err().to_string().starts_with("a.safetensors: content has SHA-256"));
    }

    #[test]
    fn only_the_stages_own_folders_are_deleted() {
        let checkpoint = |path: &str| Checkpoint {
            job_id: "job".into(),
            stage: "one".into(),
            path: path.into(),
            ..Checkpoint::default()
        };
        let committed = checkpoint("jobs/job/one/checkpoints/step-00000004-g1");
        let expired = [
            "jobs/job/one/checkpoints/step-00000002-g1",
            "jobs/job/one/checkpoints/step-00000004-g1",
            "jobs/job/two/checkpoints/step-00000002-g1",
            "jobs/job/one/checkpoints/../../two",
            "jobs/job/one/checkpoints/",
            "jobs/job/one/checkpoints/a/b",
        ]
        .map(checkpoint);
        let paths: Vec<_> = deletable(&expired, &committed).iter().map(|old| old.path.as_str()).collect();
        assert_eq!(paths, ["jobs/job/one/checkpoints/step-00000002-g1"]);
    }

    #[test]
    fn folders_sort_by_step() {
        assert_eq!(folder("j", "s", 500, 2), "jobs/j/s/checkpoints/step-00000500-g2");
    }
}
