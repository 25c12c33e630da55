//! The weights of one network, in one file or in several that an index names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crescendo_dataset::checkpoint::{ADAPTER_FILE, MODEL_FILE};
use safetensors::Dtype;
use serde::Deserialize;
use tch::Tensor;

use crate::error::{ModelError, Result};
use crate::weights::{TensorFile, broken};

/// Largest index that is read, bytes: published ones have some hundred kilobytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// File names of one network's weights in a folder, as published or as a checkpoint has them, in the order in which they are
/// looked for.
const NAMES_IN_FOLDER: [&str; 7] = [
    MODEL_FILE,
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    ADAPTER_FILE,
    "flux1-dev.safetensors",
    "flux1-schnell.safetensors",
];

/// An opened set of weight files: every header read and checked, tensors read on demand.
#[derive(Debug)]
pub struct WeightFiles {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name to its place in `files`.
    places: BTreeMap<String, usize>,
}

/// What an index file says, as Hugging Face writes it.
#[derive(Deserialize)]
struct Index {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let io_error = |source| ModelError::Io { path: path.to_owned(), source };
        let size_bytes = std::fs::metadata(path).map_err(io_error)?.len();
        if size_bytes > MAX_INDEX_BYTES {
            return Err(broken(path, format!("{size_bytes} bytes is too long for an index")));
        }
        let text = std::fs::read(path).map_err(io_error)?;
        let index: Self = serde_json::from_slice(&text).map_err(|error| broken(path, error.to_string()))?;
        for name in index.weight_map.values() {
            // An index reaches no other folder.
            let mut components = Path::new(name).components();
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(broken(path, format!("{name:?} is not the name of a file beside it")));
            }
        }
        Ok(index)
    }
}

/// Names of the files, beside it, that the index at `path` puts tensors in.
pub fn shards_of_index(path: &Path) -> Result<BTreeSet<String>> {
    Ok(Index::read(path)?.weight_map.into_values().collect())
}

impl WeightFiles {
    /// Opens `path`: a safetensors file, an index (`*.index.json`) with its files beside it, or a folder that holds
    /// either under a published name.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let found = NAMES_IN_FOLDER.iter().map(|name| path.join(name)).find(|path| path.is_file());
            let found = found.ok_or_else(|| {
                broken(path, format!("the folder has none of {}", NAMES_IN_FOLDER.join(", ")))
            })?;
            return Self::open(&found);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path);
        }
        let file = TensorFile::open(path)?;
        let places = file.names().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { path: path.to_owned(), files: vec![file], places })
    }

    fn open_index(path: &Path) -> Result<Self> {
        let index = Index::read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let mut files = Vec::with_capacity(names.len());
        let mut places = BTreeMap::new();
        for (place, name) in names.into_iter().enumerate() {
            let file = TensorFile::open(&folder.join(name))?;
            for (tensor, _) in index.weight_map.iter().filter(|(_, file)| *file == name) {
                if file.info(tensor).is_none() {
                    return Err(broken(
                        file.path(),
                        format!("tensor {tensor} is missing, which the index puts there"),
                    ));
                }
                places.insert(tensor.clone(), place);
            }
            files.push(file);
        }
        Ok(Self { path: path.to_owned(), files, places })
    }

    /// What was opened: the file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Shape and dtype of one tensor, without reading it.
    pub fn info(&self, name: &str) -> Option<(Vec<i64>, Dtype)> {
        self.files.get(*self.places.get(name)?)?.info(name)
    }

    /// Reads one tensor onto the CPU in the dtype that it has in the file.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.places.get(name).and_then(|place| self.files.get(*place)) {
            Some(file) => file.tensor(name),
            None => Err(broken(&self.path, format!("tensor {name} is missing"))),
        }
    }

    /// The string called `key` in the header of the first file.
    pub fn string(&self, key: &str) -> Option<String> {
        self.files.first()?.strings().remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{TensorMap, save};

    fn shard(folder: &Path, name: &str, tensors: &[(&str, f32)]) {
        let tensors: TensorMap =
            tensors.iter().map(|(name, value)| ((*name).to_owned(), Tensor::from_slice(&[*value]))).collect();
        save(&folder.join(name), &tensors, &BTreeMap::new()).unwrap();
    }

    fn index(folder: &Path, map: serde_json::Value) -> PathBuf {
        let path = folder.join("model.safetensors.index.json");
        std::fs::write(&path, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
        path
    }

    #[test]
    fn tensors_come_from_the_shard_that_the_index_names() {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "one.safetensors", &[("a", 1.0), ("b", 2.0)]);
        shard(folder.path(), "two.safetensors", &[("c", 3.0), ("b", 9.0)]);
        let map = serde_json::json!({"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"});
        let path = index(folder.path(), map);
        for path in [path.as_path(), folder.path()] {
            let files = WeightFiles::open(path).unwrap();
            assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b", "c"]);
            for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
                assert_eq!(files.tensor(name).unwrap(), Tensor::from_slice(&[value as f32]));
            }
            assert!(files.tensor("d").is_err() && files.info("d").is_none());
        }
    }

    #[test]
    fn a_bad_index_is_an_error_that_names_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "one.safetensors", &[("a", 1.0)]);
        for (map, named) in [
            (serde_json::json!({"a": "one.safetensors", "x": "one.safetensors"}), "tensor x"),
            (serde_json::json!({"a": "absent.safetensors"}), "absent.safetensors"),
            (serde_json::json!({"a": "../one.safetensors"}), "../one.safetensors"),
            (serde_json::json!({"a": "/one.safetensors"}), "/one.safetensors"),
            (serde_json::json!(["a"]), "index.json"),
        ] {
            let error = WeightFiles::open(&index(folder.path(), map)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(WeightFiles::open(empty.path()).unwrap_err().to_string().contains("model.safetensors"));
    }
}
