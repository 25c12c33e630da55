//! The object store, one blocking call at a time: the edge between this command and the asynchronous client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use crescendo_curator_node::curate::mirror::Mirror;
use crescendo_node::objects::{self, Location, with_causes};
use futures::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Runtime;

/// Limit of one read and of one listing.
const READ_DEADLINE: Duration = Duration::from_secs(120);

/// A folder of this machine, or a bucket whose files are copied here when they are needed.
pub struct Objects {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    root: Root,
}

enum Root {
    Folder(PathBuf),
    /// Goes with this.
    Copies(Mirror),
}

impl Objects {
    /// Opens a folder, `file://` or `s3://`; a bucket is set up by the environment, as everywhere. A folder has to be there.
    pub fn open(given: &str) -> Result<Self> {
        let url = if given.contains("://") {
            given.to_owned()
        } else {
            let folder = Path::new(given).canonicalize().with_context(|| format!("object store {given}"))?;
            format!("file://{}", folder.display())
        };
        let root = match Location::parse(&url)? {
            Location::Folder(folder) => {
                ensure!(folder.is_dir(), "object store {given}: there is no such folder");
                Root::Folder(folder)
            }
            Location::S3 { .. } => Root::Copies(Mirror::empty()?),
        };
        let store = objects::open(&url)
            .map_err(|error| anyhow!(with_causes(&error)))
            .with_context(|| format!("open object store {given}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the object store's client")?;
        let objects = Self { runtime, store, root };
        if matches!(objects.root, Root::Copies(_)) {
            objects.reach().with_context(|| format!("reach object store {given}"))?;
        }
        Ok(objects)
    }

    /// Asks for one entry of the store, so that a bucket that cannot be reached is said once.
    fn reach(&self) -> Result<()> {
        let mut listing = self.store.list(None);
        let first = self
            .runtime
            .block_on(async { tokio::time::timeout(READ_DEADLINE, listing.try_next()).await })
            .with_context(|| format!("no answer within {READ_DEADLINE:?}"))?;
        first.map(drop).map_err(|error| anyhow!(with_causes(&error)))
    }

    /// What stands for the store's root on this machine.
    pub fn root(&self) -> &Path {
        match &self.root {
            Root::Folder(folder) => folder,
            Root::Copies(mirror) => mirror.root(),
        }
    }

    /// Where the object at `key`, or all that lie below it, are on this machine.
    pub fn bring(&self, key: &str) -> Result<PathBuf> {
        let key = parsed(key)?;
        let path = self.root().join(key.as_ref());
        match &self.root {
            Root::Folder(_) => {
                ensure!(path.exists(), "{}: there is no such file or folder", path.display());
            }
            Root::Copies(mirror) => {
                self.runtime.block_on(mirror.bring_key(self.store.as_ref(), key.as_ref()))?;
            }
        }
        Ok(path)
    }

    /// The bytes of an object.
    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        let location = parsed(key)?;
        let reading = async { self.store.get(&location).await?.bytes().await };
        let bytes = self
            .runtime
            .block_on(async { tokio::time::timeout(READ_DEADLINE, reading).await })
            .with_context(|| format!("read {key}: no answer within {READ_DEADLINE:?}"))?;
        Ok(bytes.map_err(|error| anyhow!("read {key}: {}", with_causes(&error)))?.to_vec())
    }

    /// Keys below `prefix`, sorted.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let location = parsed(prefix)?;
        let listing = self.store.list(Some(&location)).map_ok(|found| found.location.to_string());
        let listing = listing.try_collect::<Vec<String>>();
        let keys = self
            .runtime
            .block_on(async { tokio::time::timeout(READ_DEADLINE, listing).await })
            .with_context(|| format!("list {prefix}: no answer within {READ_DEADLINE:?}"))?;
        let mut keys = keys.map_err(|error| anyhow!("list {prefix}: {}", with_causes(&error)))?;
        keys.sort();
        Ok(keys)
    }
}

fn parsed(key: &str) -> Result<Key> {
    Key::parse(key.trim_matches('/')).with_context(|| format!("{key:?} is not a key of the object store"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_where_it_lies_and_nothing_outside_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("jobs/a/pairs")).unwrap();
        std::fs::write(folder.path().join("jobs/a/pairs/2.tar"), "two").unwrap();
        std::fs::write(folder.path().join("jobs/a/pairs/1.tar"), "one").unwrap();
        let objects = Objects::open(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(objects.list("jobs/a/pairs").unwrap(), ["jobs/a/pairs/1.tar", "jobs/a/pairs/2.tar"]);
        assert!(objects.list("jobs/b/pairs").unwrap().is_empty());
        assert_eq!(objects.read("jobs/a/pairs/1.tar").unwrap(), b"one");
        assert!(objects.bring("jobs/a").unwrap().is_dir());
        for wrong in ["../secret", "jobs/../../secret"] {
            let error = format!("{:#}", objects.bring(wrong).unwrap_err());
            assert!(error.contains("is not a key"), "{error}");
        }
        let error = format!("{:#}", objects.read("jobs/none").unwrap_err());
        assert!(error.contains("jobs/none"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        for given in [absent.display().to_string(), format!("file://{}", absent.display())] {
            let error = format!("{:#}", Objects::open(&given).err().expect("refused"));
            assert!(error.contains("absent"), "{error}");
        }
        assert!(!absent.exists());
    }
}
