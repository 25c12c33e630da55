//! Where a stage's candidates come from.
//!
//! | module | source |
//! |---|---|
//! | [`compose`] | subject cut-outs placed in scenes, with true captions; evaluation cases |
//! | [`generate`] | pictures of two panels, drawn by the job's base; [`prompts`] says of what, [`panel_split`] where they are split |
//! | [`import`] | pairs that exist: UNO-1M's layout, shards |
//! | [`mod@recompose`] | second subjects cut out of targets, and drawn once more by the parent stage's model |

mod captions;
pub mod compose;
mod error;
pub mod generate;
pub mod import;
pub mod panel_split;
pub mod prompts;
pub mod recompose;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crescendo_core::spec::{DataSource, ImportFormat, JobSpec, ModelPreset, StageSpec};
use crescendo_dataset::pictures::reference::FLUX_MULTIPLE;

use crate::candidates::{CandidateBatch, Rejected};
use crate::counts::Counts;
use crate::filters::similarity::SimilarityFilter;
use crate::paths::PathResolver;
use crate::pipeline::ModelContext;
use crate::sources::prompts::PromptSource;
use compose::Composer;
use generate::Generator;
use import::{Uno1m, Webdataset};
use recompose::{ParentPairs, Recomposer};

pub use error::SourceError;

/// Side of a network's token, pixels: what sides of pictures are multiples of.
fn token_side(preset: ModelPreset) -> u32 {
    match preset {
        ModelPreset::Nano => 4,
        ModelPreset::FluxDev | ModelPreset::FluxSchnell => FLUX_MULTIPLE,
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
        paths: &PathResolver,
        prompts: PromptSource<'_>,
        models: &ModelContext,
        filter: &mut Option<SimilarityFilter>,
    ) -> Result<Source, SourceError> {
        match &stage.data.source {
            DataSource::Compose(spec) => {
                let mut spec = spec.clone();
                spec.subjects = paths.resolve(&spec.subjects)?.to_string_lossy().into_owned();
                if let Some(photos) = &mut spec.photos {
                    *photos = paths.resolve(photos)?.to_string_lossy().into_owned();
                }
                let composer = Composer::open(&spec, stage.references, job.seed, stage_index, Path::new(""))?;
                Ok(Source::Compose(composer))
            }
            DataSource::Generate(spec) => Ok(Source::Generate(Box::new(Generator::open(
                spec,
                job,
                stage,
                stage_index,
                paths,
                prompts,
                models,
            )?))),
            DataSource::Recompose(_) | DataSource::Crop(_) => {
                let filter = filter.take();
                let recomposer = Recomposer::open(job, stage, stage_index, filter, paths, models)?;
                Ok(Source::Recompose(Box::new(recomposer)))
            }
            DataSource::Log(_) => Err(SourceError::MadeElsewhere),
            DataSource::Import(spec) => {
                let folder = paths.resolve(&spec.path)?;
                match spec.format {
                    ImportFormat::Uno1m if stage.references > 1 => {
                        Err(SourceError::References { references: stage.references })
                    }
                    ImportFormat::Uno1m | ImportFormat::UnoTrain => {
                        let mut data_set = Uno1m::open(&folder, spec, stage.references as usize)?;
                        data_set.counts = models.counts.clone();
                        Ok(Source::Uno1m(data_set))
                    }
                    ImportFormat::Webdataset => {
                        let multiple = token_side(job.model.preset);
                        let references = stage.references as usize;
                        let tars = Webdataset::open(&folder, references, multiple, spec.orientation)?;
                        Ok(Source::Webdataset(tars))
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
        taken: ParentPairs,
        stop: &AtomicBool,
        counts: &Counts,
    ) -> Result<CandidateBatch, SourceError> {
        match self {
            Source::Compose(composer) => {
                let candidates = (0..unit_size)
                    .take_while(|_| !stop.load(Ordering::Relaxed))
                    .map(|candidate| composer.candidate(unit, candidate))
                    .inspect(|_| counts.drawn(1))
                    .collect();
                Ok(CandidateBatch::of(candidates, false))
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
