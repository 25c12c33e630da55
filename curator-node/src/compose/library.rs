//! The pictures that scenes are composed of: subject cut-outs and photographs, each folder with an `index.json`.

use super::raster::Raster;
use crate::draw::stable_hash;
use image::{ImageReader, Limits};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries of an index beyond which it is refused.
const MAX_ENTRIES: usize = 1_000_000;
/// Size of an index beyond which it is refused.
const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Width or height of a library picture beyond which it is refused.
const MAX_SIDE: u32 = 8192;

/// Why a library cannot be used, or one picture of it.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not an index of pictures: {reason}", path.display())]
    Index { path: PathBuf, reason: String },
    #[error("cannot decode {}: {reason}", path.display())]
    Picture { path: PathBuf, reason: String },
}

/// One line of an index.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// Unique in the library, stable: whether a subject is held out depends on it.
    pub id: String,
    /// Bare name, e.g. "red apple"; the words if absent.
    #[serde(default)]
    pub name: String,
    /// File below the library's folder.
    pub file: String,
    /// How a caption calls it, e.g. "a red apple".
    pub words: String,
}

/// A folder of pictures, decoded when needed and kept scaled down in a bounded cache.
#[derive(Debug)]
pub struct Library {
    folder: PathBuf,
    entries: Vec<Entry>,
    /// Longer side to which decoded pictures are shrunk, pixels.
    limit: usize,
    trim: bool,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    rasters: HashMap<usize, Arc<Raster>>,
    order: VecDeque<usize>,
    size_bytes: usize,
}

/// Decoded pictures kept, per library.
const CACHE_BYTES: usize = 64 << 20;

impl Library {
    /// Reads the index of a library of cut-outs; pictures are trimmed to what is visible and shrunk to `limit` pixels.
    pub fn open_subjects(folder: &Path, limit: usize) -> Result<Library, LibraryError> {
        Library::open(folder, limit, true)
    }

    /// Reads the index of a library of photographs; pictures are shrunk to `limit` pixels.
    pub fn open_photos(folder: &Path, limit: usize) -> Result<Library, LibraryError> {
        Library::open(folder, limit, false)
    }

    fn open(folder: &Path, limit: usize, trim: bool) -> Result<Library, LibraryError> {
        let path = folder.join("index.json");
        let read = |source| LibraryError::Read { path: path.clone(), source };
        let index = |reason: String| LibraryError::Index { path: path.clone(), reason };
        if std::fs::metadata(&path).map_err(read)?.len() > MAX_INDEX_BYTES {
            return Err(index(format!("it is larger than {MAX_INDEX_BYTES} bytes")));
        }
        let text = std::fs::read(&path).map_err(read)?;
        let mut entries: Vec<Entry> = serde_json::from_slice(&text).map_err(|e| index(e.to_string()))?;
        if entries.is_empty() || entries.len() > MAX_ENTRIES {
            return Err(index(format!("it has {} entries, not 1 to {MAX_ENTRIES}", entries.len())));
        }
        let mut ids = BTreeSet::new();
        for entry in &mut entries {
            let plain = Path::new(&entry.file).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain || entry.file.is_empty() {
                return Err(index(format!(
                    "file {:?} of {:?} is not a path below the folder",
                    entry.file, entry.id
                )));
            }
            if !ids.insert(entry.id.clone()) {
                return Err(index(format!("id {:?} occurs twice", entry.id)));
            }
            if entry.name.is_empty() {
                entry.name = entry.words.clone();
            }
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Library { folder: folder.to_owned(), entries, limit, trim, cache: Mutex::default() })
    }

    /// In the order of their ids.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Entry numbers for training and for evaluation: every `one_in`-th by stable hash is held out; 0 holds out none.
    pub fn split(&self, one_in: u32) -> (Vec<usize>, Vec<usize>) {
        (0..self.entries.len()).partition(|i| !is_held_out(&self.entries[*i].id, one_in))
    }

    /// The picture of an entry, from the cache or decoded.
    pub fn raster(&self, entry: usize) -> Result<Arc<Raster>, LibraryError> {
        if let Some(raster) = self.lock().rasters.get(&entry) {
            return Ok(raster.clone());
        }
        let file = self.entries.get(entry).map(|e| e.file.as_str()).unwrap_or_default();
        let path = self.folder.join(file);
        let raster = Arc::new(self.decode(&path)?);
        let mut cache = self.lock();
        if cache.rasters.insert(entry, raster.clone()).is_none() {
            cache.size_bytes += raster.size_bytes();
            cache.order.push_back(entry);
        }
        while cache.size_bytes > CACHE_BYTES && cache.order.len() > 1 {
            let Some(oldest) = cache.order.pop_front() else {
                break;
            };
            if let Some(dropped) = cache.rasters.remove(&oldest) {
                cache.size_bytes -= dropped.size_bytes();
            }
        }
        Ok(raster)
    }

    fn decode(&self, path: &Path) -> Result<Raster, LibraryError> {
        let bytes =
            std::fs::read(path).map_err(|source| LibraryError::Read { path: path.to_owned(), source })?;
        let picture = |reason: String| LibraryError::Picture { path: path.to_owned(), reason };
        let mut reader =
            ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| picture(e.to_string()))?;
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        reader.limits(limits);
        let decoded = reader.decode().map_err(|e| picture(e.to_string()))?.to_rgba8();
        let mut raster = Raster::from_rgba(&decoded);
        if self.trim {
            raster = raster.trimmed().ok_or_else(|| picture("nothing in it is visible".to_owned()))?;
        }
        Ok(raster.shrunk_to(self.limit))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a subject is kept out of training. Depends on its id and `one_in` alone.
pub fn is_held_out(id: &str, one_in: u32) -> bool {
    one_in > 0 && stable_hash(id).is_multiple_of(u64::from(one_in))
}
