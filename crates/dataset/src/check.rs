//! Everything that is wrong with a library, and what is in it.

use crate::folder::FolderRules;
use crate::index;
use crate::library::contents;
use crate::library_error::LibraryError;
use crate::problem::{Problem, Severity};
use crate::raster::Raster;
use crate::upright::{self, Bounds, MIN_SIDE};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Longer side of what is visible below which a picture is blurred wherever it is used, pixels.
const SMALL_SIDE: usize = 32;
/// Side that pictures are compared at, so that the same one counts as the same in any size of file.
const COMPARED_SIDE: usize = 64;

/// What a library holds, and what is wrong with it.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// It is a plain folder, not a library with an index.
    pub is_plain: bool,
    pub subjects: usize,
    /// Subjects with more than one picture.
    pub with_several_pictures: usize,
    /// Pictures that can be used.
    pub pictures: usize,
    /// Of these, those that something shows through.
    pub with_alpha: usize,
    /// Subjects by category; those without one are under "".
    pub categories: BTreeMap<String, usize>,
    /// Longer sides of what is visible in the pictures, pixels: smallest, median, largest.
    pub sides_px: Option<[usize; 3]>,
    /// Errors first.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Number of problems of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

/// Checks the library or plain folder at `folder`, every picture of it; `progress` is told of pictures done, of how many.
pub fn check(folder: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Report, LibraryError> {
    let contents = contents(folder, &FolderRules::default())?;
    let mut report = Report {
        is_plain: contents.is_plain,
        subjects: contents.entries.len(),
        with_several_pictures: contents.entries.iter().filter(|entry| entry.files.len() > 1).count(),
        problems: contents.problems,
        ..Report::default()
    };
    let bounds = if contents.is_plain { Bounds::Camera } else { Bounds::Library };
    let total: usize = contents.entries.iter().map(|entry| entry.files.len()).sum();
    let (mut sides, mut done) = (Vec::with_capacity(total), 0);
    let mut seen: BTreeMap<[u8; 32], (&str, &str)> = BTreeMap::new();
    for entry in &contents.entries {
        *report.categories.entry(entry.category.clone()).or_default() += 1;
        for file in &entry.files {
            match open(&folder.join(file), bounds) {
                Ok((raster, has_alpha)) => {
                    let side = raster.width().max(raster.height());
                    sides.push(side);
                    report.with_alpha += usize::from(has_alpha);
                    report.problems.extend(small(&raster).map(|(severity, reason)| Problem {
                        severity,
                        place: file.clone(),
                        reason,
                    }));
                    if let Some((id, other)) = seen.insert(look(&raster), (&entry.id, file)) {
                        let reason = if id == entry.id {
                            format!("it is the same picture as {other}")
                        } else {
                            format!("it is the same picture as {other}, of another subject, {id}")
                        };
                        report.problems.push(Problem::warning(file, reason));
                    }
                }
                Err(reason) => report.problems.push(Problem::error(file, reason)),
            }
            done += 1;
            progress(done, total);
        }
    }
    if contents.entries.len() == 1 {
        let reason = "there is one subject; two are wanted at least, so that one can be told from another";
        report.problems.push(Problem::error(&contents.entries[0].id, reason));
    }
    report.problems.extend(index::doubts(&contents.entries));
    report.problems.sort_by_key(|problem| problem.severity);
    sides.sort_unstable();
    report.pictures = sides.len();
    report.sides_px = match &sides[..] {
        [] => None,
        all => Some([all[0], all[all.len() / 2], all[all.len() - 1]]),
    };
    Ok(report)
}

/// What is visible of a picture, and whether it has transparency.
fn open(path: &Path, bounds: Bounds) -> Result<(Raster, bool), String> {
    let bytes = upright::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    let decoded =
        upright::decode(&bytes, bounds).map_err(|reason| format!("it cannot be decoded: {reason}"))?;
    let has_alpha = decoded.pixels.pixels().any(|pixel| pixel.0[3] < u8::MAX);
    Ok((upright::visible(&decoded.pixels)?, has_alpha))
}

fn small(raster: &Raster) -> Option<(Severity, String)> {
    let (width, height) = (raster.width(), raster.height());
    let severity = match width.max(height) {
        side if side < MIN_SIDE => Severity::Error,
        side if side < SMALL_SIDE => Severity::Warning,
        _ => return None,
    };
    Some((severity, format!("only {width} x {height} pixels of it are visible; it is small")))
}

/// The same for the same picture, whatever its file's format and size are.
fn look(raster: &Raster) -> [u8; 32] {
    let small = raster.shrunk_to(COMPARED_SIDE);
    let mut hash = Sha256::new();
    hash.update((small.width() as u64).to_le_bytes());
    hash.update(small.pixels().as_flattened());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
