//! Halves of files in a folder store. A file is written beside its place, as `NAME#NUMBER`, and moved there once it is whole; what a
//! writer that died has left so is in no list of the store.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Location, ObjectsError};

/// The half of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornFile {
    /// Key that it would have if it were an object.
    pub key: String,
    pub path: PathBuf,
    pub size_bytes: u64,
    pub modified: SystemTime,
}

/// Those below `prefix` in the store at `url`, at most `most`; none where the store is no folder. Reads the folder, which takes its
/// time. What cannot be read is left out: it is looked for again.
pub fn torn_files(url: &str, prefix: &str, most: usize) -> Result<Vec<TornFile>, ObjectsError> {
    let Location::Folder(root) = Location::parse(url)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut folders = vec![root.join(prefix)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // A link is followed neither here nor when a file is removed.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Some(torn) = torn_file(&root, entry.path())
            {
                found.push(torn);
                if found.len() >= most {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

fn torn_file(root: &Path, path: PathBuf) -> Option<TornFile> {
    let (_, number) = path.file_name()?.to_str()?.split_once('#')?;
    number.parse::<u32>().ok()?;
    let key = path.strip_prefix(root).ok()?.to_str()?.to_owned();
    let about = std::fs::symlink_metadata(&path).ok()?;
    let modified = about.modified().ok()?;
    Some(TornFile { key, path, size_bytes: about.len(), modified })
}

#[cfg(test)]
mod tests {
    use object_store::{MultipartUpload as _, ObjectStoreExt as _};

    use super::*;
    use crate::objects;

    #[tokio::test]
    async fn what_a_dead_writer_leaves_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let store = objects::open(&url).unwrap();
        store.put(&"jobs/j/s/whole.tar".into(), "whole".into()).await.unwrap();
        let mut upload = store.put_multipart(&"jobs/j/s/half.tar".into()).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        // As if it were killed: neither completed nor aborted.
        std::mem::forget(upload);
        let torn = torn_files(&url, "jobs", 10).unwrap();
        assert_eq!(torn.len(), 1, "{torn:?}");
        assert!(torn[0].key.starts_with("jobs/j/s/half.tar#") && torn[0].size_bytes == 4, "{torn:?}");
        assert!(torn_files(&url, "jobs/other", 10).unwrap().is_empty());
        assert!(torn_files("s3://bucket", "jobs", 10).unwrap().is_empty());
    }
}
