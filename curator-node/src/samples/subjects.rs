//! What is drawn, and what the loss is worked out on: the spec's prompts, and subjects that training never sees.

use super::{Drawing, SamplesError, Subject};
use crate::sources::SourceError;
use crate::sources::compose::{Composer, EvalCase, EvalSet};
use crescendo_core::spec::{ComposeLayout, ComposeSpec, DataSource, ModelPreset, RecomposeSpec};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::pictures::Picture;
use crescendo_dataset::pictures::reference::{self, FLUX_MULTIPLE};
use image::RgbImage;
use serde_json::json;
use std::path::Path;

/// Side of a token of nano, pixels.
const NANO_MULTIPLE: u32 = 4;
/// Added to the seed for the pairs of the loss: they are other scenes than those that are drawn.
const VALIDATION: u64 = 1;

impl Drawing {
    /// What is drawn, in its order, and the pairs of the loss.
    pub(super) fn subjects(&self, size: u32) -> Result<(Vec<Subject>, Vec<Pair>), SamplesError> {
        let mut subjects = Vec::new();
        for prompt in self.samples.prompts_of(&self.stage) {
            let count = prompt.references.len();
            let references = prompt.references.iter().map(|path| self.reference(path, count, size));
            subjects.push(Subject {
                prompt: prompt.prompt.clone(),
                references: references.collect::<Result<_, _>>()?,
                words: prompt.references.clone(),
                provenance: json!({ "sample": "prompt" }),
            });
        }
        let (held_out, pairs) = self.samples.held_out_of(&self.stage);
        if (held_out, pairs) == (0, 0) {
            return Ok((subjects, Vec::new()));
        }
        let composer = self.composer(size)?;
        let cases = |count: u32, seed: u64| -> Result<EvalSet, SamplesError> {
            let of_each = self.stage.references.max(1) as usize;
            composer
                .eval_set(count as usize, of_each, 1, seed)
                .map_err(|error| SamplesError::Source(SourceError::from(error)))
        };
        let seed = self.samples.seed;
        if held_out > 0 {
            let EvalSet { gallery, cases } = cases(held_out, seed)?;
            subjects.extend(cases.into_iter().map(|case| {
                let shown = case.subjects.iter().filter_map(|subject| gallery.get(*subject));
                let (ids, words): (Vec<_>, Vec<_>) =
                    shown.map(|one| (one.id.clone(), one.words.clone())).unzip();
                Subject {
                    provenance: json!({ "sample": "held_out", "subjects": ids }),
                    words,
                    references: self.kept(case.references),
                    prompt: case.prompt,
                }
            }));
        }
        let pairs = match pairs {
            0 => Vec::new(),
            pairs => cases(pairs, seed.wrapping_add(VALIDATION))?.cases,
        };
        Ok((subjects, pairs.into_iter().map(|case| self.pair(case)).collect()))
    }

    fn pair(&self, case: EvalCase) -> Pair {
        Pair {
            target: case.truth,
            references: self.kept(case.references),
            prompt: case.prompt,
            reference_words: Vec::new(),
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        }
    }

    /// A stage that is trained without references draws without.
    fn kept(&self, mut references: Vec<RgbImage>) -> Vec<RgbImage> {
        references.truncate(self.stage.references as usize);
        references
    }

    /// A reference as published sampling takes it; of nano as large as the pictures.
    fn reference(&self, path: &str, count: usize, size: u32) -> Result<RgbImage, SamplesError> {
        let (long, multiple) = match self.job.model.preset {
            ModelPreset::Nano => (size, NANO_MULTIPLE),
            ModelPreset::FluxDev | ModelPreset::FluxSchnell => (reference::long_side(count), FLUX_MULTIPLE),
        };
        let refused = |reason: String| SamplesError::Reference { path: path.to_owned(), reason };
        let picture =
            Picture::open(&self.paths.resolve(path)?).map_err(|error| refused(error.to_string()))?;
        reference::prepare(path, &picture, long, multiple).map_err(|error| refused(error.to_string()))
    }

    /// Makes scenes of the subjects that the stage's library keeps out.
    fn composer(&self, size: u32) -> Result<Composer, SamplesError> {
        let source = &self.stage.data.source;
        let library = source.library().ok_or(SamplesError::Order)?;
        let photos = match source {
            DataSource::Compose(compose) => compose.photos.as_ref(),
            DataSource::Recompose(RecomposeSpec { crop, .. }) | DataSource::Crop(crop) => {
                crop.photos.as_ref()
            }
            DataSource::Generate(_) | DataSource::Import(_) | DataSource::Log(_) => None,
        };
        let resolve = |path: &str| -> Result<String, SamplesError> {
            Ok(self.paths.resolve(path)?.to_string_lossy().into_owned())
        };
        let compose = ComposeSpec {
            subjects: resolve(library.subjects)?,
            photos: photos.map(|path| resolve(path)).transpose()?,
            layout: ComposeLayout::Single,
            panel: size,
            // A prompt that says what it shows is for people too.
            name_share: library.name_share,
            hold_out: library.hold_out.to_vec(),
            hold_out_one_in: library.hold_out_one_in,
        };
        let opened = Composer::open(&compose, self.stage.references, self.samples.seed, 0, Path::new(""));
        Ok(opened.map_err(SourceError::from)?)
    }
}
