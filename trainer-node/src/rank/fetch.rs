//! Files of the object store on their way to this machine, verified: once for all ranks here, through the node's cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{Damage, verify};
use crescendo_model::weight_files::shards_of_index;
use crescendo_node::objects::cache::{Cache, CacheError, Cached};
use crescendo_node::objects::download::{DownloadError, registered};
use crescendo_proto::v1::Checkpoint;
use object_store::ObjectStore;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The checkpoint at `path` is not what the registry says.
    #[error("checkpoint {path} is damaged: {damage}")]
    Damaged { path: String, damage: Damage },
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The index of a base that is in several files.
    #[error("store:{key}: {reason}")]
    Index { key: String, reason: String },
    #[error("cannot use {}", path.display())]
    Local {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Where files come from, and where they are kept.
pub struct Fetcher<'a> {
    pub store: &'a Arc<dyn ObjectStore>,
    /// URL of the store.
    pub url: &'a str,
    pub cache: &'a Cache,
    /// Folder for files of this process alone.
    pub scratch: &'a Path,
}

/// A checkpoint's verified files on this machine. They may go when this does.
#[derive(Debug)]
pub struct LocalCheckpoint {
    /// Folder in the object store.
    pub path: String,
    pub step: u64,
    files: BTreeMap<String, Cached>,
}

impl LocalCheckpoint {
    /// Path of a file, if the checkpoint has it.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.files.get(name).map(|cached| cached.path().to_owned())
    }

    /// Damage of this checkpoint that only shows in use.
    pub fn damaged(&self, file: &str, reason: impl std::fmt::Display) -> FetchError {
        FetchError::Damaged {
            path: self.path.clone(),
            damage: Damage::Unusable { file: file.into(), reason: reason.to_string() },
        }
    }
}

/// Base weights of the object store on this machine. They may go when this does.
#[derive(Debug)]
pub struct LocalBase {
    /// The file, or the index with its files beside it.
    pub path: PathBuf,
    /// Links under the names that the files have in the store.
    _folder: tempfile::TempDir,
    _files: Vec<Cached>,
}

impl Fetcher<'_> {
    /// Brings every file of a checkpoint here, checking size and SHA-256 of each against the registry's record.
    pub async fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<LocalCheckpoint, FetchError> {
        let mut files = BTreeMap::new();
        for file in &checkpoint.files {
            let damaged = |damage| FetchError::Damaged { path: checkpoint.path.clone(), damage };
            if !object_keys::is_plain(&file.name) {
                return Err(damaged(Damage::Unusable {
                    file: file.name.clone(),
                    reason: "not a plain file name".into(),
                }));
            }
            let key = object_keys::checkpoint_file(&checkpoint.path, &file.name);
            let expected = registered(file);
            let cached = match self.cache.fetch(self.store.as_ref(), self.url, &key, Some(&expected)).await {
                Err(CacheError::Download(DownloadError::Missing { .. })) => {
                    return Err(damaged(Damage::Missing { file: file.name.clone() }));
                }
                Err(CacheError::Different { key, found }) => {
                    verify(&file.name, &expected, &found).map_err(damaged)?;
                    return Err(CacheError::Different { key, found }.into());
                }
                other => other?,
            };
            files.insert(file.name.clone(), cached);
        }
        Ok(LocalCheckpoint { path: checkpoint.path.clone(), step: checkpoint.step, files })
    }

    /// Brings base weights here: the object at `key`, and if that is an index (`*.index.json`) the files that it names.
    pub async fn base(&self, key: &str) -> Result<LocalBase, FetchError> {
        let local = |source| FetchError::Local { path: self.scratch.into(), source };
        std::fs::create_dir_all(self.scratch).map_err(local)?;
        let folder = tempfile::Builder::new().prefix("base-").tempdir_in(self.scratch).map_err(local)?;
        let index = |reason: String| FetchError::Index { key: key.into(), reason };
        let (parent, name) = key.rsplit_once('/').map_or(("", key), |(parent, name)| (parent, name));
        if !object_keys::is_plain(name) {
            return Err(index("not the key of a file".into()));
        }
        let mut files = Vec::new();
        let mut bring = async |key: &str, name: &str| -> Result<PathBuf, FetchError> {
            let cached = self.cache.fetch(self.store.as_ref(), self.url, key, None).await?;
            let link = folder.path().join(name);
            std::os::unix::fs::symlink(cached.path(), &link).map_err(local)?;
            files.push(cached);
            Ok(link)
        };
        let path = bring(key, name).await?;
        if name.ends_with(".json") {
            let shards: BTreeSet<String> =
                shards_of_index(&path).map_err(|error| index(error.to_string()))?;
            for shard in shards {
                let key = if parent.is_empty() { shard.clone() } else { format!("{parent}/{shard}") };
                bring(&key, &shard).await?;
            }
        }
        Ok(LocalBase { path, _folder: folder, _files: files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::train_state::to_wire;
    use crescendo_dataset::checkpoint::ManifestFile;
    use object_store::ObjectStoreExt as _;

    async fn store_with(content: &[u8]) -> (tempfile::TempDir, Arc<dyn ObjectStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = crescendo_node::objects::open(&format!("file://{}/s", folder.path().display())).unwrap();
        store.put(&"jobs/j/a.bin".into(), content.to_vec().into()).await.unwrap();
        (folder, store)
    }

    fn checkpoint(name: &str, content: &[u8]) -> Checkpoint {
        Checkpoint {
            path: "jobs/j".into(),
            files: vec![to_wire(&ManifestFile::of(name, content))],
            ..Checkpoint::default()
        }
    }

    #[tokio::test]
    async fn only_what_is_registered_is_accepted() {
        let (folder, store) = store_with(b"content").await;
        let scratch = folder.path().join("scratch");
        let cache = Cache::new(scratch.join("cache"), 1 << 20);
        let fetcher = Fetcher { store: &store, url: "file:///s", cache: &cache, scratch: &scratch };
        let good = fetcher.checkpoint(&checkpoint("a.bin", b"content")).await.unwrap();
        assert_eq!(std::fs::read(good.file("a.bin").unwrap()).unwrap(), b"content");
        assert_eq!(good.file("b.bin"), None);
        for (bad, expected) in [
            (checkpoint("a.bin", b"contenT"), "a.bin: content has SHA-256"),
            (checkpoint("a.bin", b"conten"), "a.bin: 7 bytes, registered with 6"),
            (checkpoint("b.bin", b"else"), "b.bin: missing"),
            (checkpoint("../a.bin", b"content"), "../a.bin: not a plain file name"),
        ] {
            let error = fetcher.checkpoint(&bad).await.unwrap_err();
            assert!(matches!(&error, FetchError::Damaged { path, .. } if path == "jobs/j"), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_base_in_several_files_is_loaded_from_the_store() {
        use crescendo_model::weights::{self, TensorMap};
        use crescendo_model::{Flux, FluxConfig, Preset};
        use tch::{Device, Kind};

        let folder = tempfile::tempdir().unwrap();
        let store = crescendo_node::objects::open(&format!("file://{}/s", folder.path().display())).unwrap();
        let config: FluxConfig = Preset::Nano.config();
        let tensors = Flux::init(&config, 3, Kind::Float, Device::Cpu).unwrap().tensors();
        let mut shards = [TensorMap::new(), TensorMap::new()];
        let mut map = BTreeMap::new();
        for (at, (name, tensor)) in tensors.iter().enumerate() {
            shards[at % 2].insert(name.clone(), tensor.shallow_clone());
            map.insert(name.clone(), format!("w-{}.safetensors", at % 2));
        }
        for (at, shard) in shards.iter().enumerate() {
            let bytes = weights::to_bytes(shard, &BTreeMap::new()).unwrap();
            store.put(&format!("base/w-{at}.safetensors").into(), bytes.into()).await.unwrap();
        }
        let index = serde_json::json!({ "weight_map": map }).to_string();
        store.put(&"base/w.safetensors.index.json".into(), index.into()).await.unwrap();

        let scratch = folder.path().join("scratch");
        let cache = Cache::new(scratch.join("cache"), 1 << 30);
        let fetcher = Fetcher { store: &store, url: "file:///s", cache: &cache, scratch: &scratch };
        let base = fetcher.base("base/w.safetensors.index.json").await.unwrap();
        let loaded = Flux::load(&config, &base.path, Kind::Float, Device::Cpu).unwrap().tensors();
        assert_eq!(loaded, tensors);

        let reaching = serde_json::json!({ "weight_map": { "a": "../w-0.safetensors" } }).to_string();
        store.put(&"base/bad.index.json".into(), reaching.into()).await.unwrap();
        let error = fetcher.base("base/bad.index.json").await.unwrap_err().to_string();
        assert!(error.contains("../w-0.safetensors"), "{error}");
    }
}
