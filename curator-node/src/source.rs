//! Where a stage's candidates come from.

use crate::compose::{ComposeError, Composer};
use crate::counts::Counts;
use crate::endpoint::network::Outside;
use crate::filter::SimilarityFilter;
use crate::generate::Generator;
use crate::import::{ImportError, Imported, Uno1m, Webdataset};
use crate::prompts::PromptError;
use crate::recompose::{Recomposer, Taken};
use crate::rejected::Rejected;
use crate::studio::Means;
use crescendo_core::spec::{DataSource, ImportFormat, JobSpec, StageSpec};
use crescendo_model::ModelError;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a source cannot be opened, or a unit of it made.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("format uno-1m has one reference a pair; the stage wants {references}")]
    References { references: u32 },
    #[error("path {path} is below the object store's root, which is not a folder of this machine")]
    Store { path: String },
    #[error("the stage says nothing of what is to be drawn: set data.prompts or data.subjects")]
    NoPrompts,
    #[error(transparent)]
    Prompts(#[from] Box<PromptError>),
    #[error("the job has no weights to draw with: set spec.model.weights")]
    NoWeights,
    #[error("the stage has neither data.detector nor data.subjects")]
    NoDetector,
    #[error("there is no checkpoint of stage {stage} to draw with")]
    NoCheckpoint { stage: String },
    #[error("drawing: {0}")]
    Model(#[from] ModelError),
}

/// Where the paths of a spec lead on this machine.
#[derive(Clone, Debug)]
pub struct Roots {
    /// What relative paths are below.
    pub library: PathBuf,
    /// The object store's root, if it is a folder of this machine, or else the folder with copies from it.
    pub store: Option<PathBuf>,
    /// The way to language models, where this process has one.
    pub outside: Option<Outside>,
}

impl Roots {
    /// Roots for an object store at `url`.
    pub fn new(library: &Path, url: &str) -> Roots {
        let store = url.strip_prefix("file://").map(PathBuf::from);
        Roots { library: library.to_owned(), store, outside: None }
    }

    /// The same, with the object store's root at `folder`.
    pub fn with_store_at(self, folder: &Path) -> Roots {
        Roots { store: Some(folder.to_owned()), ..self }
    }

    /// The same, with a way to language models.
    pub fn with_outside(self, outside: Outside) -> Roots {
        Roots { outside: Some(outside), ..self }
    }

    /// A path of a spec: absolute, below the library's root, or `store:` and a key.
    pub fn resolve(&self, path: &str) -> Result<PathBuf, SourceError> {
        match (path.strip_prefix("store:"), &self.store) {
            (None, _) => Ok(self.library.join(path)),
            (Some(key), Some(root)) => Ok(root.join(key.trim_start_matches('/'))),
            (Some(_), None) => Err(SourceError::Store { path: path.to_owned() }),
        }
    }
}

/// An opened source.
#[derive(Debug)]
pub enum Source {
    Compose(Composer),
    Uno1m(Uno1m),
    Webdataset(Webdataset),
    Generate(Box<Generator>),
    Recompose(Box<Recomposer>),
}

impl Source {
    /// Opens the source of a stage. A source that compares what it makes itself takes the filter for it.
    pub fn open(
        job: &JobSpec,
        stage: &StageSpec,
        stage_index: u32,
        roots: &Roots,
        means: &Means,
        filter: &mut Option<SimilarityFilter>,
    ) -> Result<Source, SourceError> {
        match &stage.data.source {
            DataSource::Compose(spec) => {
                let mut spec = spec.clone();
                spec.subjects = roots.resolve(&spec.subjects)?.to_string_lossy().into_owned();
                if let Some(photos) = &mut spec.photos {
                    *photos = roots.resolve(photos)?.to_string_lossy().into_owned();
                }
                let composer = Composer::open(&spec, stage.references, job.seed, stage_index, Path::new(""))?;
                Ok(Source::Compose(composer))
            }
            DataSource::Generate(spec) => {
                Ok(Source::Generate(Box::new(Generator::open(spec, job, stage, stage_index, roots, means)?)))
            }
            DataSource::Recompose(_) | DataSource::Crop(_) => {
                let filter = filter.take();
                let recomposer = Recomposer::open(job, stage, stage_index, filter, roots, means)?;
                Ok(Source::Recompose(Box::new(recomposer)))
            }
            DataSource::Import(spec) => {
                let folder = roots.resolve(&spec.path)?;
                match spec.format {
                    ImportFormat::Uno1m if stage.references > 1 => {
                        Err(SourceError::References { references: stage.references })
                    }
                    ImportFormat::Uno1m => {
                        let mut data_set = Uno1m::open(&folder, spec)?;
                        data_set.counts = means.counts.clone();
                        Ok(Source::Uno1m(data_set))
                    }
                    ImportFormat::Webdataset => {
                        Ok(Source::Webdataset(Webdataset::open(&folder, stage.references as usize)?))
                    }
                }
            }
        }
    }

    /// The candidates of a unit, in their order: a function of the spec, the seed and the unit alone, and for sources that
    /// take from an earlier stage, of its final checkpoint and of the pairs in `taken`. `stop` ends it early, with a result
    /// that must not be used.
    pub fn unit(
        &mut self,
        unit: u64,
        unit_size: u32,
        taken: Taken,
        stop: &AtomicBool,
        counts: &Counts,
    ) -> Result<Imported, SourceError> {
        match self {
            Source::Compose(composer) => {
                let candidates = (0..unit_size)
                    .take_while(|_| !stop.load(Ordering::Relaxed))
                    .map(|candidate| composer.candidate(unit, candidate))
                    .inspect(|_| counts.drawn(1))
                    .collect();
                Ok(Imported::of(candidates, false))
            }
            Source::Generate(generator) => generator.unit(unit, unit_size, stop),
            Source::Recompose(recomposer) => recomposer.unit(unit, unit_size, taken, stop),
            Source::Uno1m(data_set) => Ok(data_set.unit(unit, unit_size, stop)?),
            Source::Webdataset(folder) => Ok(folder.unit(unit)?),
        }
    }

    /// What the units so far turned down and kept, with its pictures, for people to see; it is given away once.
    pub fn take_rejected(&mut self) -> Vec<Rejected> {
        match self {
            Source::Uno1m(data_set) => data_set.take_rejected(),
            Source::Compose(_) | Source::Webdataset(_) | Source::Generate(_) | Source::Recompose(_) => {
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_below_their_roots() {
        let roots = Roots::new(Path::new("/library"), "file:///objects");
        let resolve = |path| roots.resolve(path).map_err(|e| e.to_string());
        assert_eq!(resolve("a/b"), Ok(PathBuf::from("/library/a/b")));
        assert_eq!(resolve("/a/b"), Ok(PathBuf::from("/a/b")));
        assert_eq!(resolve("store:sets/x"), Ok(PathBuf::from("/objects/sets/x")));
        let remote = Roots::new(Path::new("/library"), "s3://bucket");
        assert!(remote.resolve("store:sets/x").is_err());
    }
}
