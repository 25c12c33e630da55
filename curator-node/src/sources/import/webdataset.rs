//! WebDataset tars, whoever packed them.

use super::ImportError;
use crate::candidates::CandidateBatch;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::Orientation;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::tar_pairs::{self, TarPairs};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// A folder of shards.
#[derive(Debug)]
pub struct Webdataset {
    tars: Vec<PathBuf>,
    references: usize,
    /// Sides of pictures are multiples of this, pixels: one token.
    multiple: u32,
    orientation: Orientation,
}

impl Webdataset {
    /// Lists the tars of `folder`; a pair is to have `references` references, and sides that are multiples of `multiple`.
    pub fn open(
        folder: &Path,
        references: usize,
        multiple: u32,
        orientation: Orientation,
    ) -> Result<Webdataset, ImportError> {
        let read = |source| ImportError::Read { path: folder.to_owned(), source };
        let mut tars: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(read)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")))
            .collect();
        tars.sort();
        if tars.is_empty() {
            return Err(ImportError::Nothing { path: folder.to_owned(), what: "tar" });
        }
        Ok(Webdataset { tars, references, multiple, orientation })
    }

    /// The pairs of one tar.
    pub fn unit(&self, unit: u64) -> Result<CandidateBatch, ImportError> {
        let last = self.tars.len() as u64 - 1;
        let Some(path) = usize::try_from(unit).ok().and_then(|unit| self.tars.get(unit)) else {
            return Ok(CandidateBatch::of(Vec::new(), true));
        };
        let file = File::open(path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
        let TarPairs { pairs, foreign } = tar_pairs::read(BufReader::new(file), self.orientation)
            .map_err(|source| ImportError::Shard { path: path.clone(), source })?;
        if foreign.members > 0 {
            let (tar, members, first) = (path.display(), foreign.members, foreign.first);
            tracing::warn!(%tar, members, first, "members of the tar are no part of a pair, and are left out");
        }
        let candidates = pairs.into_iter().map(|pair| self.fitting(pair?)).collect();
        Ok(CandidateBatch::of(candidates, unit >= last))
    }

    /// A pair as the stage takes it.
    fn fitting(&self, mut pair: Pair) -> Result<Pair, Rejection> {
        if pair.references.len() < self.references {
            return Err(Rejection::MissingFile);
        }
        pair.references.truncate(self.references);
        pair.reference_words.truncate(self.references);
        let fits = |side: u32| side > 0 && side.is_multiple_of(self.multiple.max(1));
        let mut pictures = std::iter::once(&pair.target).chain(&pair.references);
        if !pictures.all(|picture| fits(picture.width()) && fits(picture.height())) {
            return Err(Rejection::BadSize);
        }
        Ok(pair)
    }
}
