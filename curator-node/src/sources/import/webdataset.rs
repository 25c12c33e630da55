//! WebDataset tars as this system writes them.

use super::ImportError;
use crate::candidates::CandidateBatch;
use crescendo_core::rejection::Rejection;
use crescendo_dataset::shard::read_shard;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// A folder of shards.
#[derive(Debug)]
pub struct Webdataset {
    tars: Vec<PathBuf>,
    references: usize,
}

impl Webdataset {
    /// Lists the tars of `folder`; a pair is to have `references` references.
    pub fn open(folder: &Path, references: usize) -> Result<Webdataset, ImportError> {
        let read = |source| ImportError::Read { path: folder.to_owned(), source };
        let mut tars: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(read)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "tar"))
            .collect();
        tars.sort();
        if tars.is_empty() {
            return Err(ImportError::Nothing { path: folder.to_owned(), what: "tar" });
        }
        Ok(Webdataset { tars, references })
    }

    /// The pairs of one tar.
    pub fn unit(&self, unit: u64) -> Result<CandidateBatch, ImportError> {
        let last = self.tars.len() as u64 - 1;
        let Some(path) = usize::try_from(unit).ok().and_then(|unit| self.tars.get(unit)) else {
            return Ok(CandidateBatch::of(Vec::new(), true));
        };
        let file = File::open(path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
        let pairs = read_shard(BufReader::new(file))
            .map_err(|source| ImportError::Shard { path: path.clone(), source })?;
        let candidates = pairs
            .into_iter()
            .map(|mut pair| {
                if pair.references.len() < self.references {
                    return Err(Rejection::MissingFile);
                }
                pair.references.truncate(self.references);
                pair.reference_words.truncate(self.references);
                Ok(pair)
            })
            .collect();
        Ok(CandidateBatch::of(candidates, unit >= last))
    }
}
