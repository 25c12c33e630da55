//! The object store behind a URL.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    #[error("object store url {url}: {reason}")]
    Url { url: String, reason: String },
    #[error("cannot open object store {url}")]
    Open {
        url: String,
        #[source]
        source: object_store::Error,
    },
    #[error("cannot create the folder of object store {url}")]
    Folder {
        url: String,
        #[source]
        source: std::io::Error,
    },
}

/// Opens the store at `url`. `file:///ABSOLUTE/PATH` is a folder of this machine (made if it is missing, written durably);
/// there are no other kinds.
pub fn open(url: &str) -> Result<Arc<dyn ObjectStore>, ObjectsError> {
    let folder = local_folder(url)?;
    std::fs::create_dir_all(&folder).map_err(|source| ObjectsError::Folder { url: url.into(), source })?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|source| ObjectsError::Open { url: url.into(), source })?
        .with_fsync(true)
        // Deleting a checkpoint takes its folder along.
        .with_automatic_cleanup(true);
    Ok(Arc::new(store))
}

fn local_folder(url: &str) -> Result<PathBuf, ObjectsError> {
    let problem = |reason: &str| ObjectsError::Url { url: url.into(), reason: reason.into() };
    let Some(path) = url.strip_prefix("file://") else {
        return Err(problem("must begin with file://; no other kind of store is built in"));
    };
    if !path.starts_with('/') {
        return Err(problem("needs an absolute path, as in file:///var/lib/crescendo"));
    }
    if path.contains('%') || path.split('/').any(|part| part == "..") {
        return Err(problem("must be a plain path without '%' and '..'"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt as _;

    #[tokio::test]
    async fn opens_a_new_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("file://{}/a/b", folder.path().display())).unwrap();
        store.put(&"x/y".into(), "content".into()).await.unwrap();
        assert_eq!(std::fs::read(folder.path().join("a/b/x/y")).unwrap(), b"content");
    }

    #[test]
    fn refuses_what_it_cannot_open() {
        for bad in ["s3://bucket", "/tmp", "file://relative", "file:///a/../b", ""] {
            assert!(matches!(open(bad), Err(ObjectsError::Url { .. })), "{bad}");
        }
    }
}
