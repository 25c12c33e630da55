//! Objects on this machine, brought once for all processes of it, verified at every use, and bounded.
//!
//! ```text
//!   name absent ── lock of NAME.BYTES.part ──▶ make room ─▶ download ─▶ verify ─▶ rename ─▶ NAME
//!   name there  ── shared lock of NAME ──▶ verify ─▶ in use until the Cached goes
//! ```
//!
//! A name says what the content is: by its SHA-256, or by what the store says of an object whose SHA-256 nobody knows. Locks are on
//! the files themselves and go with the process that holds them: what a process that died has left under way is nobody's,
//! and is begun anew.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crescendo_dataset::digest::{Content, hex, sha256_hex};
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::download::{DownloadError, download};
use super::with_causes;

/// Limit of the wait for another process that brings the same object, or makes room.
const LOCK_DEADLINE: Duration = Duration::from_secs(3600);
/// Between two looks at a lock.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Limit of the store's answer to what it has.
const ASK_DEADLINE: Duration = Duration::from_secs(120);
/// Bytes that are hashed at a time.
const READ_BYTES: usize = 1 << 20;
/// End of the names of files under way.
const PART: &str = ".part";
/// End of the names of files with the digest of an object that was named by what the store said.
const DIGEST: &str = ".digest";
/// Held by who makes room.
const FOLDER_LOCK: &str = "lock";

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The object is not what was expected of it.
    #[error("{key}: {} bytes with SHA-256 {}, not what was expected", found.size_bytes, found.sha256)]
    Different { key: String, found: Content },
    #[error("{key}: {bytes} bytes do not fit into the cache in {} beside what is in use: it may have {max_bytes}", folder.display())]
    Full { key: String, bytes: u64, max_bytes: u64, folder: PathBuf },
    #[error("{key}: another process has held {} for {LOCK_DEADLINE:?}", path.display())]
    Locked { key: String, path: PathBuf },
    #[error("cannot use {}", path.display())]
    Local {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A folder of objects that processes of this machine share.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    max_bytes: u64,
}

/// An object on this machine, which stays as long as this does.
#[derive(Debug)]
pub struct Cached {
    path: PathBuf,
    /// Locked, shared.
    _file: File,
}

impl Cached {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What an object is known by.
struct Wanted<'a> {
    key: &'a str,
    name: String,
    bytes: u64,
    expected: Option<&'a Content>,
}

/// Bytes and SHA-256 of an entry, beside it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Digest {
    size_bytes: u64,
    sha256: String,
}

impl Cache {
    /// In `folder`, which is made when it is needed, with at most `max_bytes`.
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    /// The object at `key` of the store at `url`: from here if it is here, and as `expected` if that is known.
    pub async fn fetch(
        &self,
        objects: &dyn ObjectStore,
        url: &str,
        key: &str,
        expected: Option<&Content>,
    ) -> Result<Cached, CacheError> {
        std::fs::create_dir_all(&self.folder).map_err(|source| local(&self.folder, source))?;
        let (name, bytes) = match expected {
            Some(content) => (name_of(content), content.size_bytes),
            None => identity(objects, url, key).await?,
        };
        let wanted = Wanted { key, name, bytes, expected };
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            if let Some(found) = self.verified(&wanted).await? {
                return Ok(found);
            }
            if let Some(brought) = self.bring(objects, &wanted).await? {
                return Ok(brought);
            }
            if Instant::now() >= deadline {
                return Err(CacheError::Locked { key: key.into(), path: self.part(&wanted) });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn entry(&self, wanted: &Wanted<'_>) -> PathBuf {
        self.folder.join(&wanted.name)
    }

    fn part(&self, wanted: &Wanted<'_>) -> PathBuf {
        self.folder.join(format!("{}.{}{PART}", wanted.name, wanted.bytes))
    }

    fn digest(&self, wanted: &Wanted<'_>) -> PathBuf {
        self.folder.join(format!("{}{DIGEST}", wanted.name))
    }

    /// The entry, if it is there and whole. One that is damaged is removed.
    async fn verified(&self, wanted: &Wanted<'_>) -> Result<Option<Cached>, CacheError> {
        let path = self.entry(wanted);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(local(&path, source)),
        };
        // Only who removes it holds it otherwise, for a moment.
        if file.try_lock_shared().is_err() || !is_at(&file, &path) {
            return Ok(None);
        }
        let expected = match wanted.expected {
            Some(content) => Some(content.clone()),
            None => read_digest(&self.digest(wanted)),
        };
        let hashing = tokio::task::spawn_blocking({
            let path = path.clone();
            move || content_of(&file).map(|found| (file, found)).map_err(|source| local(&path, source))
        });
        let (file, found) = hashing.await.map_err(|error| local(&path, std::io::Error::other(error)))??;
        if expected.as_ref() == Some(&found) {
            // Orders what goes first. A failure costs that order alone.
            let _ = file.set_modified(SystemTime::now());
            return Ok(Some(Cached { path, _file: file }));
        }
        tracing::warn!(key = wanted.key, path = %path.display(), "a file of the cache is damaged and fetched again");
        if is_at(&file, &path) {
            remove(&path)?;
        }
        Ok(None)
    }

    /// Downloads the object; nothing if another process does so, or just did.
    async fn bring(
        &self,
        objects: &dyn ObjectStore,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Cached>, CacheError> {
        let (path, part) = (self.entry(wanted), self.part(wanted));
        let opening = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part);
        let file = opening.map_err(|source| local(&part, source))?;
        if !locked(file.try_lock(), &part)? || !is_at(&file, &part) {
            return Ok(None);
        }
        if path.exists() {
            remove(&part)?;
            return Ok(None);
        }
        if let Err(error) = self.make_room(wanted).await {
            remove(&part)?;
            return Err(error);
        }
        let found = download(objects, wanted.key, &part, Some(wanted.bytes)).await;
        let outcome = match (found, wanted.expected) {
            (Ok(found), Some(expected)) if found != *expected => {
                Err(CacheError::Different { key: wanted.key.into(), found })
            }
            (Ok(found), None) if found.size_bytes != wanted.bytes => {
                Err(CacheError::Different { key: wanted.key.into(), found })
            }
            (Ok(found), None) => write_digest(&self.digest(wanted), &found),
            (Ok(_), Some(_)) => Ok(()),
            (Err(error), _) => Err(error.into()),
        };
        if let Err(error) = outcome {
            remove(&part)?;
            return Err(error);
        }
        std::fs::rename(&part, &path).map_err(|source| local(&path, source))?;
        // Another process may get in between, and remove it: then all begins anew.
        let shared = file.unlock().is_ok() && locked(file.try_lock_shared(), &path)?;
        Ok((shared && is_at(&file, &path)).then_some(Cached { path, _file: file }))
    }

    /// Removes what was not used for longest, until there is room.
    async fn make_room(&self, wanted: &Wanted<'_>) -> Result<(), CacheError> {
        let path = self.folder.join(FOLDER_LOCK);
        let opening = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = opening.map_err(|source| local(&path, source))?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        while !locked(lock.try_lock(), &path)? {
            if Instant::now() >= deadline {
                return Err(CacheError::Locked { key: wanted.key.into(), path });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
        // Locked as long as it is decided about them: nobody begins to use one meanwhile.
        let (entries, _locks) = self.entries(wanted)?;
        let leaving = to_remove(&entries, wanted.bytes, self.max_bytes).ok_or_else(|| CacheError::Full {
            key: wanted.key.into(),
            bytes: wanted.bytes,
            max_bytes: self.max_bytes,
            folder: self.folder.clone(),
        })?;
        for name in leaving {
            remove(&self.folder.join(name))?;
            remove(&self.folder.join(format!("{name}{DIGEST}")))?;
        }
        Ok(())
    }

    /// What is in the folder beside what is wanted, and locks of what nobody uses.
    fn entries(&self, wanted: &Wanted<'_>) -> Result<(Vec<Entry>, Vec<File>), CacheError> {
        let own = self.part(wanted);
        let (mut entries, mut locks) = (Vec::new(), Vec::new());
        for found in std::fs::read_dir(&self.folder).map_err(|source| local(&self.folder, source))? {
            let path = found.map_err(|source| local(&self.folder, source))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            if path == own || name == FOLDER_LOCK || name.ends_with(DIGEST) {
                continue;
            }
            // Gone meanwhile, or nothing that this has made.
            let (Ok(file), Ok(metadata)) = (File::open(&path), std::fs::metadata(&path)) else { continue };
            let in_use = !locked(file.try_lock(), &path)?;
            let under_way = name.strip_suffix(PART).and_then(|name| name.rsplit_once('.')?.1.parse().ok());
            // One that is under way will be as large as its name says; one that nobody writes any more is waste.
            let used_at = match (under_way, in_use) {
                (Some(_), false) => SystemTime::UNIX_EPOCH,
                _ => metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            };
            let bytes = under_way.filter(|_| in_use).unwrap_or(metadata.len());
            entries.push(Entry { name, bytes, used_at, in_use });
            locks.push(file);
        }
        Ok((entries, locks))
    }
}

/// A file of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    bytes: u64,
    used_at: SystemTime,
    in_use: bool,
}

/// The entries that have to go for `needed` bytes more: those first that were not used for longest, never one that is in
/// use. Nothing if that is not enough.
fn to_remove(entries: &[Entry], needed: u64, max_bytes: u64) -> Option<Vec<&str>> {
    let mut total = entries.iter().map(|entry| entry.bytes).fold(needed, u64::saturating_add);
    let mut idle: Vec<&Entry> = entries.iter().filter(|entry| !entry.in_use).collect();
    idle.sort_by(|a, b| (a.used_at, &a.name).cmp(&(b.used_at, &b.name)));
    let mut leaving = Vec::new();
    for entry in idle {
        if total <= max_bytes {
            break;
        }
        total -= entry.bytes;
        leaving.push(entry.name.as_str());
    }
    (total <= max_bytes).then_some(leaving)
}

/// Name of an entry by its content. Hashed: what somebody registered need not be a name.
fn name_of(content: &Content) -> String {
    format!("sha256-{}", sha256_hex(format!("{}\n{}", content.sha256, content.size_bytes).as_bytes()))
}

/// Name and bytes of an object whose content nobody has said anything about.
async fn identity(objects: &dyn ObjectStore, url: &str, key: &str) -> Result<(String, u64), CacheError> {
    let store = |source| DownloadError::Store { key: key.into(), source };
    let location = object_store::path::Path::parse(key).map_err(|error| store(error.into()))?;
    let asking = tokio::time::timeout(ASK_DEADLINE, objects.head(&location)).await;
    let found =
        asking.map_err(|_| DownloadError::Late { key: key.into() })?.map_err(|error| match error {
            object_store::Error::NotFound { .. } => DownloadError::Missing { key: key.into() },
            error => store(error),
        })?;
    let tag = found.e_tag.unwrap_or_default();
    let text = format!("{url}\n{key}\n{tag}\n{}\n{}", found.size, found.last_modified);
    Ok((format!("tag-{}", sha256_hex(text.as_bytes())), found.size))
}

/// Whether `path` is this file still.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn locked(outcome: Result<(), TryLockError>, path: &Path) -> Result<bool, CacheError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(local(path, source)),
    }
}

fn content_of(mut file: &File) -> std::io::Result<Content> {
    use std::io::Read as _;
    let (mut hash, mut size_bytes, mut buffer) = (Sha256::new(), 0, vec![0; READ_BYTES]);
    loop {
        let bytes = file.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(Content { size_bytes, sha256: hex(&hash.finalize()) });
        }
        hash.update(&buffer[..bytes]);
        size_bytes += bytes as u64;
    }
}

/// What cannot be read is no digest: the entry counts as damaged.
fn read_digest(path: &Path) -> Option<Content> {
    let Digest { size_bytes, sha256 } = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(Content { size_bytes, sha256 })
}

fn write_digest(path: &Path, content: &Content) -> Result<(), CacheError> {
    let Content { size_bytes, sha256 } = content.clone();
    let text = serde_json::to_vec(&Digest { size_bytes, sha256 });
    text.map_err(std::io::Error::other)
        .and_then(|text| crescendo_dataset::whole_file::write(path, &text))
        .map_err(|source| local(path, source))
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(local(path, source)),
        _ => Ok(()),
    }
}

fn local(path: &Path, source: std::io::Error) -> CacheError {
    CacheError::Local { path: path.into(), source }
}

impl CacheError {
    /// With all causes.
    pub fn text(&self) -> String {
        with_causes(self)
    }
}

#[cfg(test)]
mod tests;
