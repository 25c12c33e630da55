//! Objects on their way to a file of this machine: bounded in size and in every wait, and hashed as they come.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crescendo_dataset::digest::{Content, hex};
use crescendo_proto::v1::CheckpointFile;
use object_store::{ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;

/// Limit of the wait for an object's first piece, and for each further one.
const PIECE_DEADLINE: Duration = Duration::from_secs(180);

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("{key}: not in the object store")]
    Missing { key: String },
    #[error("cannot read {key}")]
    Store {
        key: String,
        #[source]
        source: object_store::Error,
    },
    #[error("cannot read {key}: no answer within {PIECE_DEADLINE:?}")]
    Late { key: String },
    #[error("cannot write {}", path.display())]
    Local {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What the registry says of a checkpoint's file.
pub fn registered(file: &CheckpointFile) -> Content {
    Content { size_bytes: file.size_bytes, sha256: file.sha256.clone() }
}

/// Copies the object at `key` to a new file `target`. With `expected_bytes`, it ends once there is more than that: then
/// size and hash are of what came, and neither is what was expected.
pub async fn download(
    objects: &dyn ObjectStore,
    key: &str,
    target: &Path,
    expected_bytes: Option<u64>,
) -> Result<Content, DownloadError> {
    let local = |source| DownloadError::Local { path: target.into(), source };
    let remote = |source| match source {
        object_store::Error::NotFound { .. } => DownloadError::Missing { key: key.into() },
        source => DownloadError::Store { key: key.into(), source },
    };
    let late = |_| DownloadError::Late { key: key.into() };
    let location = object_store::path::Path::parse(key)
        .map_err(|source| DownloadError::Store { key: key.into(), source: source.into() })?;
    let getting = tokio::time::timeout(PIECE_DEADLINE, objects.get(&location)).await.map_err(late)?;
    let mut pieces = getting.map_err(remote)?.into_stream();
    let mut file = tokio::fs::File::create(target).await.map_err(local)?;
    let (mut hash, mut size_bytes) = (Sha256::new(), 0u64);
    while let Some(piece) = tokio::time::timeout(PIECE_DEADLINE, pieces.next()).await.map_err(late)? {
        let piece = piece.map_err(remote)?;
        hash.update(&piece);
        size_bytes += piece.len() as u64;
        file.write_all(&piece).await.map_err(local)?;
        if expected_bytes.is_some_and(|expected| size_bytes > expected) {
            break;
        }
    }
    file.flush().await.map_err(local)?;
    Ok(Content { size_bytes, sha256: hex(&hash.finalize()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_is_copied_and_hashed_and_one_that_is_too_long_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::objects::open(&format!("file://{}/s", folder.path().display())).unwrap();
        store.put(&"a/b".into(), "content".into()).await.unwrap();
        let target = folder.path().join("copy");
        let whole = download(store.as_ref(), "a/b", &target, Some(7)).await.unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"content");
        assert_eq!(whole.size_bytes, 7);
        assert_eq!(whole.sha256, "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73");
        assert!(download(store.as_ref(), "a/b", &target, Some(3)).await.unwrap().size_bytes > 3);
        let missing = download(store.as_ref(), "a/c", &target, None).await.unwrap_err();
        assert_eq!(missing.to_string(), "a/c: not in the object store");
        let nowhere = download(store.as_ref(), "a/b", &folder.path().join("no/where"), None).await;
        assert!(matches!(nowhere, Err(DownloadError::Local { .. })));
        assert!(matches!(
            download(store.as_ref(), "a//b", &target, None).await,
            Err(DownloadError::Store { .. })
        ));
    }
}
