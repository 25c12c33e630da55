//! Drawn units on this machine's disk, from the end of their drawing until their commit: bounded in bytes, what was written
//! longest ago goes first. Losing one costs the time to draw it again, and nothing else.

use crate::curate::drawn::{DrawnUnit, of_bytes, to_bytes};
use crescendo_core::spec::JobSpec;
use crescendo_dataset::digest::{of_parts, sha256_hex};
use crescendo_dataset::whole_file;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// How kept units are written; another number makes what was kept before unreadable.
const FORMAT: u32 = 1;
/// How kept files are named.
const SUFFIX: &str = "drawn";

/// The folder of all stages' drawn units. Its clones share it.
#[derive(Clone, Debug)]
pub struct DrawnStore {
    root: Arc<PathBuf>,
    capacity_bytes: u64,
    files: Arc<Mutex<VecDeque<KeptFile>>>,
}

#[derive(Debug)]
struct KeptFile {
    path: PathBuf,
    size_bytes: u64,
}

/// Where a unit lies, and all that decides what is in it.
#[derive(Clone, Debug)]
pub struct DrawnKey {
    /// Of the stage.
    folder: String,
    unit: u64,
    digest: String,
}

/// What decides the units of a stage, the same for all of them.
#[derive(Clone, Debug)]
pub struct StageDigest {
    folder: String,
    digest: String,
}

impl StageDigest {
    /// For stage `index` of a job. `inputs` says what the spec does not: the content of files, what an earlier stage has
    /// trained, the machine.
    pub fn of(job_id: &str, job: &JobSpec, index: u32, inputs: &[String]) -> StageDigest {
        let (version, spec) = (env!("CARGO_PKG_VERSION"), serde_json::to_vec(job).unwrap_or_default());
        let (format, place) = (FORMAT.to_le_bytes(), index.to_le_bytes());
        let own: [&[u8]; 5] = [version.as_bytes(), &format, job_id.as_bytes(), &place, &spec];
        let digest = of_parts(own.into_iter().chain(inputs.iter().map(String::as_bytes)));
        let folder = sha256_hex(format!("{job_id}\n{index}").as_bytes());
        StageDigest { folder: folder.chars().take(32).collect(), digest }
    }

    pub fn unit(&self, unit: u64) -> DrawnKey {
        DrawnKey { folder: self.folder.clone(), unit, digest: self.digest.clone() }
    }
}

impl DrawnKey {
    pub fn unit(&self) -> u64 {
        self.unit
    }
}

impl DrawnStore {
    /// Opens the folder, with what an earlier process left in it.
    pub fn open(root: &Path, capacity_bytes: u64) -> io::Result<DrawnStore> {
        std::fs::create_dir_all(root)?;
        let mut found = Vec::new();
        for folder in std::fs::read_dir(root)? {
            let folder = folder?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&folder)? {
                let file = file?;
                let about = file.metadata()?;
                if file.path().extension().is_some_and(|suffix| suffix == SUFFIX) {
                    let kept = KeptFile { path: file.path(), size_bytes: about.len() };
                    found.push((about.modified()?, kept));
                } else {
                    // The half of one that was being written.
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
        found.sort_by_key(|(modified, _)| *modified);
        let files: VecDeque<KeptFile> = found.into_iter().map(|(_, file)| file).collect();
        let store = DrawnStore {
            root: Arc::new(root.to_owned()),
            capacity_bytes,
            files: Arc::new(Mutex::new(files)),
        };
        store.make_room(0);
        Ok(store)
    }

    /// Bytes that are kept.
    pub fn size_bytes(&self) -> u64 {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|file| file.size_bytes).sum()
    }

    /// Keeps a unit. One that is larger than all there may be is not kept. Blocks.
    pub fn keep(&self, key: &DrawnKey, drawn: &DrawnUnit) -> io::Result<()> {
        let bytes = to_bytes(drawn, &key.digest).map_err(io::Error::other)?;
        let size_bytes = bytes.len() as u64;
        if size_bytes > self.capacity_bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("it has {size_bytes} bytes, more than all that may be kept"),
            ));
        }
        self.remove(key);
        self.make_room(size_bytes);
        let path = self.path(key);
        std::fs::create_dir_all(whole_file::folder_of(&path))?;
        whole_file::write(&path, &bytes)?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push_back(KeptFile { path, size_bytes });
        Ok(())
    }

    /// The unit, if it is kept and whole; what is of no use is removed. Blocks.
    pub fn find(&self, key: &DrawnKey) -> Option<DrawnUnit> {
        let path = self.path(key);
        let bytes = std::fs::read(&path).ok()?;
        match of_bytes(&bytes, &key.digest) {
            Ok(Some(drawn)) => return Some(drawn),
            Ok(None) => {
                tracing::info!(path = %path.display(), "what was kept of a unit was drawn from other things")
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "what was kept of a unit is damaged")
            }
        }
        self.remove(key);
        None
    }

    /// Whether there is a file for the unit.
    pub fn has(&self, key: &DrawnKey) -> bool {
        let path = self.path(key);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|file| file.path == path)
    }

    /// Forgets a unit: it is committed.
    pub fn remove(&self, key: &DrawnKey) {
        let path = self.path(key);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).retain(|file| file.path != path);
        let _ = std::fs::remove_file(path);
    }

    /// Forgets all units of a stage: its job is gone, or needs no more.
    pub fn remove_stage(&self, stage: &StageDigest) {
        let folder = self.root.join(&stage.folder);
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|file| !file.path.starts_with(&folder));
        let _ = std::fs::remove_dir_all(folder);
    }

    fn path(&self, key: &DrawnKey) -> PathBuf {
        self.root.join(&key.folder).join(format!("unit-{:08}.{SUFFIX}", key.unit))
    }

    fn make_room(&self, for_bytes: u64) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used: u64 = files.iter().map(|file| file.size_bytes).sum();
        while used.saturating_add(for_bytes) > self.capacity_bytes {
            let Some(oldest) = files.pop_front() else { break };
            used -= oldest.size_bytes;
            tracing::info!(path = %oldest.path.display(), "a drawn unit makes room for newer ones");
            let _ = std::fs::remove_file(&oldest.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::tests::job;
    use crescendo_dataset::pair::Pair;

    fn drawn(words: &str) -> DrawnUnit {
        let pair = Pair {
            target: image::RgbImage::new(8, 8),
            references: vec![],
            prompt: words.to_owned(),
            reference_words: vec![],
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        };
        DrawnUnit { candidates: 1, passed: vec![pair], ..DrawnUnit::default() }
    }

    fn prompt(store: &DrawnStore, key: &DrawnKey) -> Option<String> {
        store.find(key).map(|drawn| drawn.passed[0].prompt.clone())
    }

    #[test]
    fn units_outlive_the_process_and_go_once_they_are_committed() {
        let folder = tempfile::tempdir().expect("make a folder");
        let job = job(folder.path(), 1, None);
        let root = folder.path().join("drawn");
        let stage = StageDigest::of("job-1", &job, 0, &[]);
        let store = DrawnStore::open(&root, 1 << 20).expect("open");
        assert_eq!(prompt(&store, &stage.unit(0)), None);
        store.keep(&stage.unit(0), &drawn("first")).expect("keep");
        store.keep(&stage.unit(1), &drawn("second")).expect("keep");
        let size_bytes = store.size_bytes();
        let again = DrawnStore::open(&root, 1 << 20).expect("open again");
        assert_eq!(again.size_bytes(), size_bytes);
        assert_eq!(prompt(&again, &stage.unit(0)).as_deref(), Some("first"));
        again.remove(&stage.unit(0));
        assert_eq!((prompt(&again, &stage.unit(0)), again.size_bytes()), (None, size_bytes / 2));
        again.remove_stage(&stage);
        assert_eq!((prompt(&again, &stage.unit(1)), again.size_bytes()), (None, 0));
    }

    #[test]
    fn what_was_drawn_from_other_things_is_not_taken() {
        let folder = tempfile::tempdir().expect("make a folder");
        let mut job = job(folder.path(), 1, None);
        let store = DrawnStore::open(&folder.path().join("drawn"), 1 << 20).expect("open");
        let key = |job: &JobSpec, input: &str| StageDigest::of("job-1", job, 0, &[input.to_owned()]).unit(0);
        store.keep(&key(&job, "weights"), &drawn("it")).expect("keep");
        assert!(prompt(&store, &key(&job, "weights")).is_some());
        assert!(prompt(&store, &key(&job, "other weights")).is_none());
        assert!(prompt(&store, &key(&job, "weights")).is_none(), "what is of no use is removed");
        store.keep(&key(&job, "weights"), &drawn("it")).expect("keep");
        job.seed += 1;
        assert!(prompt(&store, &key(&job, "weights")).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest_stay() {
        let folder = tempfile::tempdir().expect("make a folder");
        let stage = StageDigest::of("job-1", &job(folder.path(), 1, None), 0, &[]);
        let root = folder.path().join("drawn");
        let one = DrawnStore::open(&root, 1 << 20).expect("open");
        one.keep(&stage.unit(0), &drawn("one")).expect("keep");
        let size_bytes = one.size_bytes();
        let store = DrawnStore::open(&root, 2 * size_bytes).expect("open");
        for unit in 1..4 {
            store.keep(&stage.unit(unit), &drawn("one")).expect("keep");
            assert!(store.size_bytes() <= 2 * size_bytes);
        }
        let kept: Vec<bool> = (0..4).map(|unit| prompt(&store, &stage.unit(unit)).is_some()).collect();
        assert_eq!(kept, [false, false, true, true]);
        let small = DrawnStore::open(&root, size_bytes - 1).expect("open");
        assert_eq!(small.size_bytes(), 0);
        let error = small.keep(&stage.unit(9), &drawn("one")).expect_err("it is too large");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
