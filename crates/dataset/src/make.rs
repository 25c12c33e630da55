//! Makes a library of a plain folder of pictures: upright, trimmed to what is visible, no larger than needed, with an index.
//!
//! The same pictures give the same bytes. The library appears whole or not at all: it is written beside its place and moved there.

use crate::background;
use crate::digest::sha256_hex;
use crate::folder::FolderRules;
use crate::index::{self, Entry};
use crate::library::contents;
use crate::library_error::LibraryError;
use crate::problem::{Problem, Severity};
use crate::raster::Raster;
use crate::upright::{self, Bounds};
use crate::whole_file::folder_of;
use crate::{INDEX, folder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use crate::upright::DEFAULT_SIZE_PX;
/// File by which a library that was made here is known again.
const MARK: &str = "made.json";
const MAKER: &str = "crescendo library make";
/// How many may make one library at once.
const MAX_BESIDE: u32 = 100;

/// What becomes of what is behind a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// It stays: a picture without transparency is placed in scenes as a rectangle.
    #[default]
    Keep,
    /// An even one is made transparent, from the picture's border inwards. Pictures that have transparency are left alone.
    Remove,
}

#[derive(Clone, Debug)]
pub struct MakeOptions {
    pub rules: FolderRules,
    /// Longer side of the pictures at most.
    pub size_px: usize,
    pub background: Background,
    /// Replace a library that was made or changed by hand.
    pub force: bool,
}

impl Default for MakeOptions {
    fn default() -> MakeOptions {
        let (rules, background) = (FolderRules::default(), Background::default());
        MakeOptions { rules, size_px: DEFAULT_SIZE_PX, background, force: false }
    }
}

/// Why no library was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("none of the pictures in {} can be used; the first: {first}", folder.display())]
    Nothing { folder: PathBuf, first: Problem },
    #[error("will not write to {}: {reason}", path.display())]
    Occupied { path: PathBuf, reason: String },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    pub entries: Vec<Entry>,
    /// What was left out, and what is perhaps not as it is meant.
    pub problems: Vec<Problem>,
}

/// Makes the library `out` of the pictures in `folder`; `progress` is told of pictures done, of how many.
pub fn make(
    folder: &Path,
    out: &Path,
    options: &MakeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Made, MakeError> {
    refuse_overlap(folder, out)?;
    // Before it is asked what is there: a library that comes back is not replaced unless that is wanted.
    sweep(out);
    refuse_occupied(out, options.force)?;
    let found = contents(folder, &options.rules)?;
    let mut problems = found.problems;
    let staging = Staging::beside(out)?;
    let total: usize = found.entries.iter().map(|entry| entry.files.len()).sum();
    let (mut entries, mut done) = (Vec::with_capacity(found.entries.len()), 0);
    for entry in found.entries {
        let mut files = Vec::with_capacity(entry.files.len());
        for file in &entry.files {
            match prepare(&folder.join(file), options) {
                Ok(prepared) => {
                    // A folder for several, so that no name can be that of another subject.
                    let name = if entry.files.len() == 1 {
                        format!("{}.{}", entry.id, prepared.ending)
                    } else {
                        format!("{}/{}.{}", entry.id, files.len() + 1, prepared.ending)
                    };
                    staging.write(&name, &prepared.bytes)?;
                    problems.extend(prepared.doubt.map(|reason| Problem::warning(file, reason)));
                    files.push(name);
                }
                Err(reason) => problems.push(Problem::error(file, reason)),
            }
            done += 1;
            progress(done, total);
        }
        if !files.is_empty() {
            entries.push(Entry { files, ..entry });
        }
    }
    if entries.is_empty() {
        let first = problems.into_iter().find(|problem| problem.severity == Severity::Error);
        let first = first.unwrap_or_else(|| Problem::error(INDEX, "it has no entries"));
        return Err(MakeError::Nothing { folder: folder.to_owned(), first });
    }
    problems.extend(index::doubts(&entries));
    let text = index::write(&entries).map_err(|error| staging.failed(INDEX, error.into()))?;
    let mark = Mark { by: MAKER.into(), index_sha256: sha256_hex(&text), size_px: options.size_px };
    let mut mark = serde_json::to_vec_pretty(&mark).map_err(|error| staging.failed(MARK, error.into()))?;
    mark.push(b'\n');
    staging.write(INDEX, &text)?;
    staging.write(MARK, &mark)?;
    staging.take_place_of(out)?;
    Ok(Made { entries, problems })
}

/// By what a made library is known; `index_sha256` is that of its index as it was written.
#[derive(Deserialize, Serialize)]
struct Mark {
    by: String,
    index_sha256: String,
    size_px: usize,
}

/// A picture as the library is to have it.
struct Prepared {
    bytes: Vec<u8>,
    ending: &'static str,
    /// Why it is perhaps not as it is meant.
    doubt: Option<String>,
}

fn prepare(path: &Path, options: &MakeOptions) -> Result<Prepared, String> {
    let bytes = upright::read(path).map_err(|error| error.to_string())?;
    let mut decoded = upright::decode(&bytes, Bounds::Camera)?;
    let mut doubt = None;
    let mut is_changed = decoded.was_turned;
    if options.background == Background::Remove {
        match background::removed(&decoded.pixels) {
            Ok(Some(without)) => {
                decoded.pixels = without;
                is_changed = true;
            }
            Ok(None) => {}
            Err(reason) => doubt = Some(format!("its background stays: {reason}")),
        }
    }
    let raster = upright::prepared(&decoded.pixels, options.size_px)?;
    if !is_changed && raster == Raster::from_rgba(&decoded.pixels) {
        return Ok(Prepared { bytes, ending: decoded.ending, doubt });
    }
    Ok(Prepared { bytes: upright::png(&raster.to_rgba())?, ending: "png", doubt })
}

/// A library in a library would be taken for one of its subjects.
fn refuse_overlap(folder: &Path, out: &Path) -> Result<(), MakeError> {
    let occupied = |reason: &str| MakeError::Occupied { path: out.to_owned(), reason: reason.into() };
    let read = |source| LibraryError::Read { path: folder.to_owned(), source };
    let from = folder.canonicalize().map_err(read)?;
    // What is not there yet lies in something that is.
    let there = out.ancestors().map(|part| if part.as_os_str().is_empty() { Path::new(".") } else { part });
    let Some((exists, to)) = there.filter_map(|part| Some((part, part.canonicalize().ok()?))).next() else {
        return Ok(());
    };
    if to.starts_with(&from) {
        return Err(occupied("it lies in the folder that the pictures are in; choose a place beside it"));
    }
    if exists == out && from.starts_with(&to) {
        return Err(occupied("the pictures lie in it; choose a place beside them"));
    }
    Ok(())
}

/// Refuses what is not empty, unless it is a library that was made here and is as it was left; any library with `force`.
fn refuse_occupied(out: &Path, force: bool) -> Result<(), MakeError> {
    let occupied = |reason: String| MakeError::Occupied { path: out.to_owned(), reason };
    let files = match std::fs::metadata(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(MakeError::Write { path: out.to_owned(), source }),
        Ok(facts) if !facts.is_dir() => return Err(occupied("it is not a folder".into())),
        Ok(_) => folder::files_below(out)?,
    };
    if files.is_empty() {
        return Ok(());
    }
    let Ok(text) = std::fs::read(out.join(INDEX)) else {
        return Err(occupied(
            "it is not empty, and no library; choose another place, or remove it yourself".into(),
        ));
    };
    let entries = index::read(&text).entries;
    let own: BTreeSet<&str> =
        entries.iter().flat_map(|entry| &entry.files).map(String::as_str).chain([INDEX, MARK]).collect();
    let stranger = files.iter().find(|file| !own.contains(file.as_str()));
    let mark = std::fs::read(out.join(MARK)).ok().and_then(|mark| serde_json::from_slice::<Mark>(&mark).ok());
    let reason = match (mark, stranger) {
        _ if force => return Ok(()),
        (None, _) => format!("it is a library that `{MAKER}` has not made"),
        (Some(mark), _) if mark.index_sha256 != sha256_hex(&text) => {
            format!("its {INDEX} has been changed by hand")
        }
        (Some(_), Some(file)) => format!("it has files of its own, such as {file}"),
        (Some(_), None) => return Ok(()),
    };
    Err(occupied(format!("{reason}; --force replaces it with all that is in it")))
}

/// A folder beside the place that it is for; it goes if it never gets there.
struct Staging {
    folder: PathBuf,
    /// Tells [`sweep`] that somebody is at work in it.
    _lock: File,
}

impl Staging {
    fn beside(out: &Path) -> Result<Staging, MakeError> {
        let parent = folder_of(out);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| MakeError::Write { path, source }
        };
        std::fs::create_dir_all(parent).map_err(failed(parent))?;
        for folder in hidden_beside(out, "making") {
            match std::fs::create_dir(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed(&folder)(error)),
            }
            // Another that sweeps may have found it before it was locked. Where a file system has no locks, nobody sweeps.
            let Ok(lock) = File::open(&folder) else { continue };
            if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) && folder.exists() {
                return Ok(Staging { folder, _lock: lock });
            }
        }
        Err(failed(out)(ErrorKind::AlreadyExists.into()))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), MakeError> {
        let path = self.folder.join(name);
        let parent = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, bytes))
            .map_err(|source| MakeError::Write { path, source })
    }

    fn failed(&self, name: &str, source: std::io::Error) -> MakeError {
        MakeError::Write { path: self.folder.join(name), source }
    }

    fn take_place_of(self, out: &Path) -> Result<(), MakeError> {
        let failed = |source| MakeError::Write { path: out.to_owned(), source };
        if !out.exists() {
            return std::fs::rename(&self.folder, out).map_err(failed);
        }
        // The lock goes with the folder wherever it is moved.
        let _lock = locked(out);
        let free = hidden_beside(out, "old").find(|old| !old.exists());
        let old = free.ok_or_else(|| failed(ErrorKind::AlreadyExists.into()))?;
        std::fs::rename(out, &old).map_err(failed)?;
        if let Err(error) = std::fs::rename(&self.folder, out) {
            let _ = std::fs::rename(&old, out);
            return Err(failed(error));
        }
        std::fs::remove_dir_all(&old).map_err(|source| MakeError::Write { path: old, source })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After it has taken its place there is nothing left to remove.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes what processes left behind that have ended in the middle, and puts a library back that was being replaced.
fn sweep(out: &Path) {
    let name = name_of(out);
    for entry in std::fs::read_dir(folder_of(out)).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        for what in ["old", "making"] {
            // Of the form of [`hidden_beside`], and nothing of the user's.
            let number = found.strip_prefix(&format!(".{name}.{what}-"));
            if number.is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            let Some(_lock) = locked(&entry.path()) else { continue };
            if what == "old" && !out.exists() {
                let _ = std::fs::rename(entry.path(), out);
            } else {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The lock of a folder that nobody is at work in; none where somebody is, or where the file system has no locks. Unlike the
/// number of a process, it also tells of those of another container, and ends with whoever has it.
fn locked(folder: &Path) -> Option<File> {
    File::open(folder).ok().filter(|folder| folder.try_lock().is_ok())
}

/// Names for a folder beside `out`: `.NAME.WHAT-N`.
fn hidden_beside<'a>(out: &'a Path, what: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let name = name_of(out);
    (0..MAX_BESIDE).map(move |n| folder_of(out).join(format!(".{name}.{what}-{n}")))
}

fn name_of(out: &Path) -> String {
    out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
