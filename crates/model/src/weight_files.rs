//! The weights of one network, in one file or in several that an index names, under published names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crescendo_dataset::checkpoint::{ADAPTER_FILE, EMA_FILE, MODEL_FILE, OPTIMIZER_FILE};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::header::{Header, TensorHeader};
use crate::naming::{Network, Piece, Recipe, View};
use crate::weights::{TensorFile, broken};

/// Largest index that is read, bytes: published ones have some hundred kilobytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Published index files in a folder end in this.
const INDEX_END: &str = ".index.json";
/// Most files or folders that an error about a folder lists.
const LISTED: usize = 8;

/// What is wanted of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Any,
    Network(Network),
    Adapter,
}

impl Wanted {
    /// Names of files and of folders below, as published or as a checkpoint has them, in the order in which they are looked
    /// for.
    fn names(self) -> &'static [&'static str] {
        const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";
        match self {
            Self::Any => &[
                MODEL_FILE,
                DIFFUSERS,
                ADAPTER_FILE,
                "adapter_model.safetensors",
                "pytorch_lora_weights.safetensors",
                "flux1-dev.safetensors",
                "flux1-schnell.safetensors",
                "transformer",
            ],
            Self::Network(Network::Transformer) => {
                &[MODEL_FILE, "flux1-dev.safetensors", "flux1-schnell.safetensors", DIFFUSERS, "transformer"]
            }
            Self::Network(Network::Autoencoder) => &["ae.safetensors", DIFFUSERS, MODEL_FILE, "vae"],
            Self::Network(_) => &[MODEL_FILE],
            Self::Adapter => {
                &[ADAPTER_FILE, "adapter_model.safetensors", "pytorch_lora_weights.safetensors", MODEL_FILE]
            }
        }
    }

    /// The file that is meant by a folder, or the folder below that it lies in.
    fn find(self, folder: &Path) -> Result<PathBuf> {
        for name in self.names() {
            let path = folder.join(name);
            let index = folder.join(format!("{name}{INDEX_END}"));
            if let Some(found) = [path, index].into_iter().find(|path| path.is_file()) {
                return Ok(found);
            }
            let below = folder.join(name);
            if below.is_dir() {
                return self.find(&below);
            }
        }
        let listing = Listing::of(folder)?;
        match listing.weights.as_slice() {
            [only] => Ok(folder.join(only)),
            _ => Err(broken(folder, listing.reason(self.names()))),
        }
    }
}

/// What lies in a folder, sorted.
struct Listing {
    /// Safetensors files, optimizer and averaged weights of a checkpoint left out.
    weights: Vec<String>,
    folders: Vec<String>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self> {
        let io_error = |source| ModelError::Io { path: folder.to_owned(), source };
        let (mut weights, mut folders) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                folders.push(name);
            } else if name.ends_with(".safetensors") && name != OPTIMIZER_FILE && name != EMA_FILE {
                weights.push(name);
            }
        }
        weights.sort();
        folders.sort();
        Ok(Self { weights, folders })
    }

    fn reason(&self, wanted: &[&str]) -> String {
        let list = |names: &[String]| {
            let more = if names.len() > LISTED { ", …" } else { "" };
            let some: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
            format!("{}{more}", some.join(", "))
        };
        let none = format!("the folder has none of {}", wanted.join(", "));
        match (self.weights.is_empty(), self.folders.is_empty()) {
            (false, _) => format!("{none}; name one of {}", list(&self.weights)),
            (true, false) => format!("{none}; there are folders in it: {}", list(&self.folders)),
            (true, true) => none,
        }
    }
}

/// An opened set of weight files: every header read and checked, tensors read on demand.
#[derive(Debug)]
pub struct WeightFiles {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name, as the files have it, to its place in `files`.
    places: BTreeMap<String, usize>,
    view: View,
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
    /// Opens `path` under the names that it has: a safetensors file, an index (`*.index.json`) with its files beside it, or a
    /// folder that holds either under a published name.
    pub fn open(path: &Path) -> Result<Self> {
        Self::opened(path, Wanted::Any)
    }

    /// Opens `path` under the published names of `network`, whichever of the forms of [`crate::naming`] it has. Fails with
    /// every tensor of the file that its form lacks, or that does not fit its fellows.
    pub fn open_as(path: &Path, network: Network) -> Result<Self> {
        let mut files = Self::opened(path, Wanted::Network(network))?;
        files.view = View::of(&files.header(), network);
        if files.view.problems.is_empty() {
            return Ok(files);
        }
        Err(ModelError::Weights { origin: files.origin(), problems: files.view.problems })
    }

    /// Opens an adapter under the names that it has.
    pub fn open_adapter(path: &Path) -> Result<Self> {
        Self::opened(path, Wanted::Adapter)
    }

    fn opened(path: &Path, wanted: Wanted) -> Result<Self> {
        let found = if path.is_dir() { wanted.find(path)? } else { path.to_owned() };
        let mut files = if found.extension().is_some_and(|extension| extension == "json") {
            Self::open_index(&found)?
        } else {
            let file = TensorFile::open(&found)?;
            let places = file.names().into_iter().map(|name| (name, 0)).collect();
            Self { path: found, files: vec![file], places, view: View::default() }
        };
        files.view = View::plain(&files.raw_header());
        Ok(files)
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
        Ok(Self { path: path.to_owned(), files, places, view: View::default() })
    }

    /// What was opened: the file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an error calls these weights: the path, and whose names they have.
    pub fn origin(&self) -> String {
        let path = self.path.display();
        self.view.form.as_ref().map_or_else(|| path.to_string(), |form| format!("{path} ({form})"))
    }

    /// Whose names the files have, where they are not the ones that they are read under.
    pub fn form(&self) -> Option<&str> {
        self.view.form.as_deref()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.view.recipes.keys().map(String::as_str)
    }

    /// Names, shapes and dtypes.
    pub fn header(&self) -> Header {
        self.view.header()
    }

    /// Names, shapes and dtypes as the files have them.
    fn raw_header(&self) -> Header {
        let own = |(name, place): (&String, &usize)| {
            let (shape, dtype) = self.files.get(*place)?.info(name)?;
            let header = TensorHeader { shape, dtype: dtype.to_string(), bits: dtype.bitsize() };
            Some((name.clone(), header))
        };
        self.places.iter().filter_map(own).collect()
    }

    /// Shape and dtype of one tensor, without reading it.
    pub fn info(&self, name: &str) -> Option<TensorHeader> {
        let Recipe { shape, dtype, bits, .. } = self.view.recipes.get(name)?.clone();
        Some(TensorHeader { shape, dtype, bits })
    }

    /// Reads one tensor onto the CPU: in the dtype that it has in the file, or in float32 where it has a scale there.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let recipe = self.view.recipes.get(name);
        let recipe = recipe.ok_or_else(|| broken(&self.path, format!("tensor {name} is missing")))?;
        let pieces = recipe.pieces.iter().map(|piece| self.piece(piece)).collect::<Result<Vec<Tensor>>>()?;
        let tensor = match pieces.as_slice() {
            [one] => one.shallow_clone(),
            [first, rest @ ..] if rest.iter().all(|piece| piece.kind() == first.kind()) => {
                Tensor::f_cat(&pieces, 0)?
            }
            _ => {
                let wide = pieces.iter().map(|piece| Ok(piece.f_to_kind(Kind::Float)?));
                Tensor::f_cat(&wide.collect::<Result<Vec<Tensor>>>()?, 0)?
            }
        };
        Ok(if tensor.size() == recipe.shape { tensor } else { tensor.f_reshape(&recipe.shape)? })
    }

    /// Rows of one tensor of the files, times its scale.
    fn piece(&self, piece: &Piece) -> Result<Tensor> {
        let mut tensor = self.raw(&piece.tensor)?;
        if let Some(scale) = &piece.scale {
            let scale = self.raw(scale)?.f_to_kind(Kind::Float)?;
            // One number, or one for each row.
            let shape = vec![1; tensor.dim().saturating_sub(1)];
            let scale = scale.f_reshape([vec![-1], shape].concat())?;
            tensor = tensor.f_to_kind(Kind::Float)?.f_mul(&scale)?;
        }
        let (part, parts) = piece.part;
        if parts == 1 {
            return Ok(tensor);
        }
        let rows = tensor.size().first().copied().unwrap_or(0) / parts;
        Ok(tensor.f_narrow(0, part * rows, rows)?.f_contiguous()?)
    }

    fn raw(&self, name: &str) -> Result<Tensor> {
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

    #[test]
    fn a_folder_of_ours_or_of_theirs_is_as_good_as_the_file_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let found =
            |wanted: Wanted| wanted.find(root).map(|path| path.strip_prefix(root).unwrap().to_owned());
        let adapter = |name: &str| assert_eq!(found(Wanted::Adapter).unwrap(), Path::new(name));
        let transformer = Wanted::Network(Network::Transformer);
        // A checkpoint, as a trainer writes it.
        for name in [ADAPTER_FILE, EMA_FILE, OPTIMIZER_FILE] {
            shard(root, name, &[("a", 1.0)]);
        }
        adapter(ADAPTER_FILE);
        assert_eq!(found(Wanted::Any).unwrap(), Path::new(ADAPTER_FILE));
        // Whatever its name, if it is alone.
        std::fs::rename(root.join(ADAPTER_FILE), root.join("cat.safetensors")).unwrap();
        adapter("cat.safetensors");
        shard(root, "dog.safetensors", &[("a", 1.0)]);
        let reason = found(Wanted::Adapter).unwrap_err().to_string();
        assert!(reason.contains("name one of cat.safetensors, dog.safetensors"), "{reason}");
        shard(root, "flux1-dev.safetensors", &[("a", 1.0)]);
        shard(root, "ae.safetensors", &[("a", 1.0)]);
        assert_eq!(found(transformer).unwrap(), Path::new("flux1-dev.safetensors"));
        assert_eq!(found(Wanted::Any).unwrap(), Path::new("flux1-dev.safetensors"));
        assert_eq!(found(Wanted::Network(Network::Autoencoder)).unwrap(), Path::new("ae.safetensors"));

        let pipeline = tempfile::tempdir().unwrap();
        let below = pipeline.path().join("transformer");
        std::fs::create_dir(&below).unwrap();
        let reason = WeightFiles::open_as(pipeline.path(), Network::Transformer).unwrap_err().to_string();
        assert!(reason.contains("transformer"), "{reason}");
        shard(&below, "diffusion_pytorch_model.safetensors", &[("a", 1.0)]);
        let found = WeightFiles::open_as(pipeline.path(), Network::Transformer).unwrap();
        assert!(found.path().starts_with(&below));
        let checkpoints = tempfile::tempdir().unwrap();
        std::fs::create_dir(checkpoints.path().join("step-100-g1")).unwrap();
        let reason = WeightFiles::open_adapter(checkpoints.path()).unwrap_err().to_string();
        assert!(reason.contains("folders in it: step-100-g1"), "{reason}");
    }
}
