//! Where a stage's event files for TensorBoard lie, and how they grow so that a TensorBoard that is open sees it.
//!
//! | object store | how |
//! |---|---|
//! | a folder | one file, appended to in place |
//! | a bucket | a new file with each checkpoint, of the steps since the file before |
//!
//! TensorBoard's data server, the default, keeps a file open and does not see that another has taken its name, which is how an
//! object store over a folder replaces one; and its other reader does not look back at a file once there is a later one. A step
//! that is written again makes the first forget what came after it, and the second draw it twice. So every step is written once,
//! after its checkpoint is registered, and in the file that was begun last. Where a damaged checkpoint has lost steps that were
//! written, the curve is begun anew in a folder, and the files of the lost steps go in a bucket.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use crescendo_node::objects::Location;
use futures::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};

use super::tfevents::{self, NextFile, Run};

#[derive(Debug, thiserror::Error)]
pub enum EventFilesError {
    #[error("cannot write below {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write below {folder}")]
    Bucket {
        folder: String,
        #[source]
        source: object_store::Error,
    },
    #[error("{folder} is no key: {reason}")]
    Key { folder: String, reason: String },
    #[error("making the events panicked")]
    Panicked,
}

/// The event files of an object store.
#[derive(Clone, Debug)]
pub enum EventFiles {
    Folder(PathBuf),
    Bucket(Arc<dyn ObjectStore>),
}

impl EventFiles {
    /// Of the object store at `url`, which is opened as `store`.
    pub fn of(url: &str, store: &Arc<dyn ObjectStore>) -> Self {
        match Location::parse(url) {
            Ok(Location::Folder(root)) => Self::Folder(root),
            Ok(Location::S3 { .. }) | Err(_) => Self::Bucket(store.clone()),
        }
    }

    /// Brings the files below `folder` up to `step`, the last one of `history`; `is_last`: the stage is done with it.
    pub async fn write(
        &self,
        folder: &str,
        step: u64,
        history: Bytes,
        run: &Arc<Run>,
        is_last: bool,
    ) -> Result<(), EventFilesError> {
        let run = run.clone();
        match self {
            Self::Folder(root) => {
                let folder = root.join(folder);
                let writing = tokio::task::spawn_blocking(move || {
                    let all = tfevents::of_history(&history, &run, 0, is_last);
                    append(&folder, &all).map_err(|source| EventFilesError::Folder { folder, source })
                });
                writing.await.map_err(|_| EventFilesError::Panicked)?
            }
            Self::Bucket(store) => {
                let key = object_store::path::Path::parse(folder).map_err(|error| EventFilesError::Key {
                    folder: folder.to_owned(),
                    reason: error.to_string(),
                })?;
                add(store.as_ref(), &key, (step, is_last), history, run).await
            }
        }
    }
}

/// Makes the one file in `folder` hold `all`. What it holds already is a beginning of it, also where the last write was cut off:
/// the same history gives the same bytes. Where it is not, steps were lost, and another file takes its place.
fn append(folder: &Path, all: &[u8]) -> io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let mut there: Vec<(u64, String)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        there.extend(tfevents::of_name(&name).map(|(number, _)| (number, name)));
    }
    there.sort();
    if let [(_, name)] = &there[..] {
        let path = folder.join(name);
        let mut held = Vec::new();
        fs::File::open(&path)?.take(all.len() as u64 + 1).read_to_end(&mut held)?;
        if let Some(rest) = all.strip_prefix(held.as_slice()) {
            return OpenOptions::new().append(true).open(&path)?.write_all(rest);
        }
    }
    let next = there.last().map_or(1, |(number, _)| number.saturating_add(1));
    let path = folder.join(tfevents::name(next, None));
    OpenOptions::new().append(true).create_new(true).open(path)?.write_all(all)?;
    // After the new one is there: no moment without a curve.
    for (_, name) in there {
        fs::remove_file(folder.join(name))?;
    }
    Ok(())
}

/// Puts the steps since the newest file before `step` into one of their own.
async fn add(
    store: &dyn ObjectStore,
    folder: &object_store::path::Path,
    (step, is_last): (u64, bool),
    history: Bytes,
    run: Arc<Run>,
) -> Result<(), EventFilesError> {
    let failed = |source| EventFilesError::Bucket { folder: folder.to_string(), source };
    let there: Vec<ObjectMeta> = store.list(Some(folder)).try_collect().await.map_err(failed)?;
    let names = there.iter().filter_map(|object| object.location.filename());
    let NextFile { after, number, lost } = tfevents::next_file(names, step);
    let making = tokio::task::spawn_blocking(move || tfevents::of_history(&history, &run, after, is_last));
    let events = making.await.map_err(|_| EventFilesError::Panicked)?;
    if events.is_empty() {
        return Ok(());
    }
    // A name of its own: one that is written over is not looked at again.
    let location = folder.clone().join(tfevents::name(number, Some(step)));
    store.put(&location, events.into()).await.map_err(failed)?;
    for name in lost {
        store.delete(&folder.clone().join(name)).await.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
            .expect("list")
            .map(|entry| entry.expect("list").path())
            .map(|path| {
                (
                    path.file_name().expect("named").to_string_lossy().into_owned(),
                    fs::read(&path).expect("read"),
                )
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn one_file_grows_in_place_also_after_a_write_that_was_cut_off() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("jobs/j/s/tensorboard");
        append(&folder, b"").expect("nothing to write");
        assert!(!folder.exists());
        append(&folder, b"one, two").expect("written");
        let first = tfevents::name(1, None);
        assert_eq!(files(&folder), [(first.clone(), b"one, two".to_vec())]);
        // The open file of a reader stays the one that grows.
        let mut open = fs::File::open(folder.join(&first)).expect("open");
        fs::write(folder.join("notes.txt"), "not ours").expect("write");
        append(&folder, b"one, two, three").expect("appended");
        append(&folder, b"one, two, three").expect("nothing new");
        let mut seen = String::new();
        open.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, "one, two, three");
        fs::write(folder.join(&first), "one, tw").expect("cut off");
        append(&folder, b"one, two, three, four").expect("appended");
        assert_eq!(files(&folder)[0], (first, b"one, two, three, four".to_vec()));
    }

    #[test]
    fn lost_steps_begin_a_later_file() {
        let folder = tempfile::tempdir().expect("a folder");
        append(folder.path(), b"one, two, three").expect("written");
        append(folder.path(), b"one, two").expect("shorter: a checkpoint was damaged");
        assert_eq!(files(folder.path()), [(tfevents::name(2, None), b"one, two".to_vec())]);
        append(folder.path(), b"one, two, other").expect("appended");
        assert_eq!(files(folder.path()), [(tfevents::name(2, None), b"one, two, other".to_vec())]);
        // A file a checkpoint, as it was before.
        fs::write(folder.path().join(tfevents::name(500, None)), "more").expect("write");
        append(folder.path(), b"one, two, other").expect("written anew");
        assert_eq!(files(folder.path()), [(tfevents::name(501, None), b"one, two, other".to_vec())]);
    }
}
