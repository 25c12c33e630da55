//! Files beside the weights of published networks: their configuration and, shared with the tokenizers, bounded reading.

use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ModelError, Result};

/// Largest `config.json` that is read, bytes: published ones have a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// All of a file, which must not be longer than `most_bytes`.
pub(crate) fn read_bounded(path: &Path, most_bytes: u64) -> Result<Vec<u8>> {
    let io_error = |source| ModelError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io_error)?;
    let mut bytes = Vec::new();
    file.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > most_bytes {
        return Err(not_usable(path, format!("it is longer than {most_bytes} bytes")));
    }
    Ok(bytes)
}

pub(crate) fn not_usable(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::File { path: path.to_owned(), reason: reason.into() }
}

/// `config.json` in the folder `weights`, or beside it if it is a file; `None` if there is none.
pub(crate) fn config_beside(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    Some(folder.join("config.json")).filter(|path| path.is_file())
}

/// Reads a configuration as Hugging Face writes it. Keys that are not known are left out: such files describe much that
/// is of no use here. Where the file describes several networks, `part` is the key of the one that is wanted.
pub(crate) fn read_config<T: DeserializeOwned>(path: &Path, part: Option<&str>) -> Result<T> {
    let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
    let mut value: Value =
        serde_json::from_slice(&bytes).map_err(|error| not_usable(path, error.to_string()))?;
    if let Some(inner) = part.and_then(|part| value.get_mut(part)) {
        value = inner.take();
    }
    T::deserialize(value).map_err(|error| not_usable(path, error.to_string()))
}

/// Holds a configured number within a range.
pub(crate) fn check_range(field: &'static str, value: i64, range: RangeInclusive<i64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let reason = format!("{value} is not within {}..={}", range.start(), range.end());
    Err(ModelError::Config { field, reason })
}

/// Holds an epsilon of a norm within (0, 1).
pub(crate) fn check_eps(field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(ModelError::Config { field, reason: format!("{value} is not between 0 and 1") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_from_its_part_and_bounded() {
        #[derive(Debug, serde::Deserialize)]
        struct Sizes {
            width: i64,
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(config_beside(folder.path()), None);
        std::fs::write(&path, r#"{"width": 1, "inner": {"width": 2, "other": "x"}}"#).unwrap();
        let width = |part| read_config::<Sizes>(&path, part).unwrap().width;
        assert_eq!([width(None), width(Some("inner")), width(Some("absent"))], [1, 2, 1]);
        assert_eq!(config_beside(folder.path()), Some(path.clone()));
        assert_eq!(config_beside(&folder.path().join("model.safetensors")), Some(path.clone()));
        for damage in ["{\"width\": \"wide\"}", "{\"width\"", ""] {
            std::fs::write(&path, damage).unwrap();
            let error = read_config::<Sizes>(&path, None).unwrap_err().to_string();
            assert!(error.contains("config.json"), "{error}");
        }
        assert!(read_bounded(&path, 0).is_ok());
        std::fs::write(&path, "{}").unwrap();
        assert!(read_bounded(&path, 1).unwrap_err().to_string().contains("longer than 1 bytes"));
    }
}
