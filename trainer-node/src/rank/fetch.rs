//! Files of the object store on their way to this machine, verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{Damage, verify};
use crescendo_node::objects::download::{DownloadError, download, registered};
use crescendo_proto::v1::Checkpoint;
use object_store::ObjectStore;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The checkpoint at `path` is not what the registry says.
    #[error("checkpoint {path} is damaged: {damage}")]
    Damaged { path: String, damage: Damage },
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("cannot use {}", path.display())]
    Local {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A checkpoint's verified files in a folder of this machine, which is removed with this.
#[derive(Debug)]
pub struct LocalCheckpoint {
    /// Folder in the object store.
    pub path: String,
    pub step: u64,
    folder: tempfile::TempDir,
    names: Vec<String>,
}

impl LocalCheckpoint {
    /// Path of a file, if the checkpoint has it.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.names.iter().any(|known| known == name).then(|| self.folder.path().join(name))
    }

    /// Damage of this checkpoint that only shows in use.
    pub fn damaged(&self, file: &str, reason: impl std::fmt::Display) -> FetchError {
        FetchError::Damaged {
            path: self.path.clone(),
            damage: Damage::Unusable { file: file.into(), reason: reason.to_string() },
        }
    }
}

/// Copies every file of a checkpoint to a new folder below `scratch`, checking size and SHA-256 of each against the
/// registry's record.
pub async fn fetch_checkpoint(
    store: &Arc<dyn ObjectStore>,
    checkpoint: &Checkpoint,
    scratch: &Path,
) -> Result<LocalCheckpoint, FetchError> {
    let local = |source| FetchError::Local { path: scratch.into(), source };
    std::fs::create_dir_all(scratch).map_err(local)?;
    let folder = tempfile::Builder::new().prefix("checkpoint-").tempdir_in(scratch).map_err(local)?;
    let mut names = Vec::with_capacity(checkpoint.files.len());
    for file in &checkpoint.files {
        let damaged = |damage| FetchError::Damaged { path: checkpoint.path.clone(), damage };
        if !object_keys::is_plain(&file.name) {
            return Err(damaged(Damage::Unusable {
                file: file.name.clone(),
                reason: "not a plain file name".into(),
            }));
        }
        let key = object_keys::checkpoint_file(&checkpoint.path, &file.name);
        let target = folder.path().join(&file.name);
        let found = match download(store.as_ref(), &key, &target, Some(file.size_bytes)).await {
            Err(DownloadError::Missing { .. }) => {
                return Err(damaged(Damage::Missing { file: file.name.clone() }));
            }
            other => other?,
        };
        verify(&file.name, &registered(file), &found).map_err(damaged)?;
        names.push(file.name.clone());
    }
    Ok(LocalCheckpoint { path: checkpoint.path.clone(), step: checkpoint.step, folder, names })
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
        let good = fetch_checkpoint(&store, &checkpoint("a.bin", b"content"), &scratch).await.unwrap();
        assert_eq!(std::fs::read(good.file("a.bin").unwrap()).unwrap(), b"content");
        assert_eq!(good.file("b.bin"), None);
        for (bad, expected) in [
            (checkpoint("a.bin", b"contenT"), "a.bin: content has SHA-256"),
            (checkpoint("a.bin", b"conten"), "a.bin: 7 bytes, registered with 6"),
            (checkpoint("b.bin", b"content"), "b.bin: missing"),
            (checkpoint("../a.bin", b"content"), "../a.bin: not a plain file name"),
        ] {
            let error = fetch_checkpoint(&store, &bad, &scratch).await.unwrap_err();
            assert!(matches!(&error, FetchError::Damaged { path, .. } if path == "jobs/j"), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
