//! The files of a checkpoint, and how it is told that nothing of it is missing or changed.
//!
//! A checkpoint is a folder of the object store:
//!
//! | file | content |
//! |---|---|
//! | `dit_lora.safetensors` | the adapter, float32, published naming; `model.safetensors` when all weights are trained |
//! | `ema.safetensors` | moving average of the same, when one is kept |
//! | `optimizer.safetensors` | `exp_avg.<name>` and `exp_avg_sq.<name>`, float32 |
//! | `state.json` | where training stood |
//! | `history.jsonl` | one line a step since the stage began |
//! | `resolved_spec.json` | the job's spec |
//! | `manifest.json` | size and SHA-256 of all of the above; written last |

use crate::digest::Content;
use serde::{Deserialize, Serialize};

/// The trained adapter, float32, in the published naming.
pub const ADAPTER_FILE: &str = "dit_lora.safetensors";
/// All weights, where a stage trains them.
pub const MODEL_FILE: &str = "model.safetensors";
pub const EMA_FILE: &str = "ema.safetensors";
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
pub const STATE_FILE: &str = "state.json";
pub const HISTORY_FILE: &str = "history.jsonl";
pub const SPEC_FILE: &str = "resolved_spec.json";
pub const MANIFEST_FILE: &str = "manifest.json";

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
        let Content { size_bytes, sha256 } = Content::of(content);
        Self { name: name.into(), size_bytes, sha256 }
    }
}

/// What is wrong with a file of a checkpoint.
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

/// Compares what was read of a file with what the registry says of it.
pub fn verify(file: &str, expected: &Content, found: &Content) -> Result<(), Damage> {
    let file = file.to_owned();
    if found.size_bytes != expected.size_bytes {
        return Err(Damage::Size { file, found: found.size_bytes, expected: expected.size_bytes });
    }
    if found.sha256 != expected.sha256 {
        return Err(Damage::Content { file, found: found.sha256.clone(), expected: expected.sha256.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_the_file() {
        let check = |content: &[u8]| verify("a.safetensors", &Content::of(b"weights"), &Content::of(content));
        assert_eq!(check(b"weights"), Ok(()));
        assert_eq!(check(b"weight").unwrap_err().to_string(), "a.safetensors: 6 bytes, registered with 7");
        assert!(check(b"Weights").unwrap_err().to_string().starts_with("a.safetensors: content has SHA-256"));
    }
}
