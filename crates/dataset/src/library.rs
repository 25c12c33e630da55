//! An opened library: entries, and their pictures when they are needed.

use crate::INDEX;
use crate::folder::{FolderRules, scan};
use crate::index::{self, Entry, MAX_INDEX_BYTES};
use crate::library_error::LibraryError;
use crate::problem::{Problem, Severity};
use crate::raster::Raster;
use crate::split::{self, HoldOut};
use crate::upright::{self, Bounds};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A folder of pictures, decoded when needed and kept scaled down in a bounded cache.
#[derive(Debug)]
pub struct Library {
    folder: PathBuf,
    entries: Vec<Entry>,
    /// It has no index, so its pictures are as they were taken.
    is_plain: bool,
    problems: Vec<Problem>,
    /// Longer side to which decoded pictures are shrunk, pixels.
    limit: usize,
    trim: bool,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// By entry and picture of it.
    rasters: HashMap<(usize, usize), Arc<Raster>>,
    order: VecDeque<(usize, usize)>,
    size_bytes: usize,
}

/// Decoded pictures kept, per library.
const CACHE_BYTES: usize = 64 << 20;

impl Library {
    /// Opens a library of cut-outs, or a plain folder of them; pictures are trimmed to what is visible and shrunk to `limit`
    /// pixels.
    pub fn open_subjects(folder: &Path, limit: usize) -> Result<Library, LibraryError> {
        Library::open(folder, limit, true)
    }

    /// Opens a library of photographs, or a plain folder of them; pictures are shrunk to `limit` pixels.
    pub fn open_photos(folder: &Path, limit: usize) -> Result<Library, LibraryError> {
        Library::open(folder, limit, false)
    }

    fn open(folder: &Path, limit: usize, trim: bool) -> Result<Library, LibraryError> {
        let Contents { entries, is_plain, problems } = contents(folder, &FolderRules::default())?;
        let error = problems.iter().find(|problem| problem.severity == Severity::Error);
        if let (false, Some(problem)) = (is_plain, error) {
            // What an index says must hold as a whole; a plain folder goes on without what is left out of it.
            let reason = if problem.place == INDEX { problem.reason.clone() } else { problem.to_string() };
            return Err(LibraryError::Index { path: folder.join(INDEX), reason });
        }
        let folder = folder.to_owned();
        Ok(Library { folder, entries, is_plain, problems, limit, trim, cache: Mutex::default() })
    }

    /// In the order of their ids.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What was left out of a plain folder, and what is perhaps not as it is meant.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Entry numbers for training, and those that are held out for evaluation. A name that no subject has is an error.
    pub fn split(&self, hold_out: HoldOut<'_>) -> Result<(Vec<usize>, Vec<usize>), LibraryError> {
        split::split(&self.entries, hold_out)
            .map_err(|names| LibraryError::HoldOut { path: self.folder.clone(), names })
    }

    /// Picture `number` of an entry, from the cache or decoded.
    pub fn raster(&self, entry: usize, number: usize) -> Result<Arc<Raster>, LibraryError> {
        let key = (entry, number);
        if let Some(raster) = self.lock().rasters.get(&key) {
            return Ok(raster.clone());
        }
        let file = self.entries.get(entry).and_then(|e| e.files.get(number)).map(String::as_str);
        let path = self.folder.join(file.unwrap_or_default());
        let raster = Arc::new(self.decode(&path)?);
        let mut cache = self.lock();
        if cache.rasters.insert(key, raster.clone()).is_none() {
            cache.size_bytes += raster.size_bytes();
            cache.order.push_back(key);
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
            upright::read(path).map_err(|source| LibraryError::Read { path: path.to_owned(), source })?;
        let failed = |reason: String| LibraryError::Picture { path: path.to_owned(), reason };
        let bounds = if self.is_plain { Bounds::Camera } else { Bounds::Library };
        let mut pixels = upright::decode(&bytes, bounds).map_err(failed)?.pixels;
        if self.is_plain {
            // As `make` would have written it, so that both give the same pairs.
            pixels = upright::prepared(&pixels, upright::DEFAULT_SIZE_PX).map_err(failed)?.to_rgba();
        }
        let raster =
            if self.trim { upright::visible(&pixels).map_err(failed)? } else { Raster::from_rgba(&pixels) };
        Ok(raster.shrunk_to(self.limit))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a folder holds.
pub(crate) struct Contents {
    pub entries: Vec<Entry>,
    pub is_plain: bool,
    pub problems: Vec<Problem>,
}

/// Reads the index of a folder, or, where there is none, what its pictures amount to.
pub(crate) fn contents(folder: &Path, rules: &FolderRules) -> Result<Contents, LibraryError> {
    let facts = std::fs::metadata(folder);
    let facts = facts.map_err(|source| LibraryError::Read { path: folder.to_owned(), source })?;
    if !facts.is_dir() {
        let reason = "it is a file".to_owned();
        return Err(LibraryError::Folder { path: folder.to_owned(), reason });
    }
    let path = folder.join(INDEX);
    let read = |source| LibraryError::Read { path: path.clone(), source };
    let size = match std::fs::metadata(&path) {
        Ok(facts) => facts.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let found = scan(folder, rules)?;
            return Ok(Contents { entries: found.entries, is_plain: true, problems: found.problems });
        }
        Err(error) => return Err(read(error)),
    };
    if size > MAX_INDEX_BYTES {
        return Err(LibraryError::Index {
            path,
            reason: format!("it is larger than {MAX_INDEX_BYTES} bytes"),
        });
    }
    let index = index::read(&std::fs::read(&path).map_err(read)?);
    Ok(Contents { entries: index.entries, is_plain: false, problems: index.problems })
}
