//! `source: recompose` and `source: crop`: further references for targets that show more than one subject.
//!
//! ```text
//!  pair of an earlier stage ─▶ caption ─▶ phrases ─▶ detector ─┐
//!  or composed target ──────────────────── its own places ────┴─▶ choose_box ─▶ cut ─┬─ crop: the reference
//!                                                                                    └─ recompose: the earlier stage's
//!         Pair { target, references: [first, further …] } ◀─ similarity to the cut ◀── model draws it elsewhere
//! ```
//!
//! The cut itself as a reference teaches to copy and paste (UNO paper, table 3): that is the baseline that `crop` is for.
//! The similarity filter compares what was drawn with the cut, not with the target, in which the subject is small. With
//! `crop` there is nothing to compare.

mod boxes;
mod phrases;

pub use boxes::{BoxLimits, choose_box, square_around};
pub use phrases::phrases;

use crate::candidates::CandidateBatch;
use crate::candidates::Rejected;
use crate::filters::similarity::{SimilarityFilter, verdict};
use crate::images;
use crate::paths::PathResolver;
use crate::pipeline::{DiffusionPipeline, ModelContext};
use crate::rng::SeededRng;
use crate::sources::SourceError;
use crate::sources::captions::{NAMELESS, SETTINGS};
use crate::sources::compose::{Composer, Region, Scene};
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{
    ComposeLayout, ComposeSpec, CropSpec, DataSource, JobSpec, ModelPreset, StageSpec,
};
use crescendo_dataset::pair::Pair;
use crescendo_model::drawing::GenerationRequest;
use crescendo_model::of_spec::compute_kind;
use crescendo_model::owlv2::{BoundingBox, Detection, Owlv2Detector};
use crescendo_model::unope::Offsets;
use image::RgbImage;
use image::imageops::crop_imm;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pairs of an earlier stage, at the place of one unit.
#[derive(Clone, Debug, Default)]
pub struct ParentPairs {
    pub pairs: Vec<Pair>,
    /// The earlier stage has none after these.
    pub exhausted: bool,
}

/// Makes pairs with further references.
#[derive(Debug)]
pub struct Recomposer {
    spec: CropSpec,
    limits: BoxLimits,
    targets: Targets,
    /// Absent for `crop`.
    redrawing: Option<Redrawing>,
    preset: ModelPreset,
    references: usize,
    seed: u64,
    stage_index: u64,
}

/// Where targets come from, and who knows what is where in them.
#[derive(Debug)]
enum Targets {
    Composed(Box<Composer>),
    Log(Box<Owlv2Detector>),
}

#[derive(Debug)]
struct Redrawing {
    pipeline: DiffusionPipeline,
    filter: Option<SimilarityFilter>,
}

/// A target whose further subjects are cut out.
struct Cut {
    pair: Pair,
    /// Number of the candidate in the stage.
    number: u64,
    cuts: Vec<(RgbImage, String, BoundingBox)>,
}

impl Recomposer {
    /// Opens what the stage's source names; `filter` compares cuts with what is drawn after them.
    pub fn open(
        job: &JobSpec,
        stage: &StageSpec,
        stage_index: u32,
        filter: Option<SimilarityFilter>,
        paths: &PathResolver,
        models: &ModelContext,
    ) -> Result<Recomposer, SourceError> {
        let spec = stage.data.source.crop().ok_or(SourceError::NoPrompts)?.clone();
        let targets = match (&spec.subjects, &spec.detector) {
            (Some(subjects), _) => {
                let resolve =
                    |path: &String| Ok::<_, SourceError>(paths.resolve(path)?.to_string_lossy().into_owned());
                let compose = ComposeSpec {
                    subjects: resolve(subjects)?,
                    photos: spec.photos.as_ref().map(resolve).transpose()?,
                    layout: ComposeLayout::Single,
                    panel: spec.panel,
                    name_share: spec.name_share,
                    hold_out: spec.hold_out.clone(),
                    hold_out_one_in: spec.hold_out_one_in,
                };
                let composer =
                    Composer::open(&compose, stage.references, job.seed, stage_index, Path::new(""))?;
                Targets::Composed(Box::new(composer))
            }
            (None, Some(detector)) => {
                let kind = compute_kind(job.model.precision, models.device);
                let detector = Owlv2Detector::load(&paths.resolve(detector)?, kind, models.device)?;
                Targets::Log(Box::new(detector))
            }
            (None, None) => return Err(SourceError::NoDetector),
        };
        let redrawing = match &stage.data.source {
            DataSource::Recompose(recompose) => {
                if models.trained.is_none() {
                    return Err(SourceError::NoCheckpoint { stage: spec.from.clone() });
                }
                let earlier = job.stages.iter().find(|other| other.name == spec.from);
                let positions = earlier.map_or(Offsets::PUBLISHED, Offsets::from);
                let pipeline =
                    DiffusionPipeline::open(job, stage_index, &recompose.draw, positions, paths, models)?;
                Some(Redrawing { pipeline, filter })
            }
            DataSource::Crop(_)
            | DataSource::Compose(_)
            | DataSource::Import(_)
            | DataSource::Generate(_)
            | DataSource::Log(_) => None,
        };
        Ok(Recomposer {
            limits: BoxLimits::of(&spec),
            spec,
            targets,
            redrawing,
            preset: job.model.preset,
            references: stage.references as usize,
            seed: job.seed,
            stage_index: u64::from(stage_index),
        })
    }

    /// The candidates of a unit: from `taken`, or composed. `stop` ends it early, with a result that must not be used.
    pub fn unit(
        &self,
        unit: u64,
        unit_size: u32,
        taken: ParentPairs,
        stop: &AtomicBool,
    ) -> Result<CandidateBatch, SourceError> {
        let first = unit.wrapping_mul(u64::from(unit_size));
        let mut cut: Vec<Result<Cut, Rejection>> = Vec::with_capacity(unit_size as usize);
        let exhausted = match &self.targets {
            Targets::Composed(composer) => {
                for candidate in 0..unit_size {
                    cut.push(self.composed(
                        composer,
                        unit,
                        candidate,
                        first.wrapping_add(u64::from(candidate)),
                    ));
                }
                false
            }
            Targets::Log(detector) => {
                for (pair, number) in taken.pairs.into_iter().zip(first..) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    cut.push(self.detected(detector, pair, number)?);
                }
                taken.exhausted
            }
        };
        let Some(redrawing) = &self.redrawing else {
            let candidates = cut.into_iter().map(|cut| cut.map(|cut| self.cropped(cut))).collect();
            return Ok(CandidateBatch::of(candidates, exhausted));
        };
        self.redrawn(redrawing, cut, exhausted, stop)
    }

    /// A composed target: its first reference stays, the other subjects are cut out where they were placed.
    fn composed(
        &self,
        composer: &Composer,
        unit: u64,
        candidate: u32,
        number: u64,
    ) -> Result<Cut, Rejection> {
        let (mut pair, places) = composer.placed(unit, candidate)?;
        let size = pair.target.dimensions();
        let bounds: Vec<BoundingBox> = places.iter().map(bounds_of).collect();
        let Some((first, others)) = bounds.split_first() else { return Err(Rejection::NoSecondSubject) };
        let mut taken = vec![*first];
        let mut cuts = Vec::with_capacity(others.len());
        for (n, bounds) in others.iter().enumerate() {
            let placed = Detection { score: 1.0, query: n, bounds: *bounds };
            let chosen = choose_box(&[placed], &taken, size, &self.limits)?;
            taken.push(chosen.bounds);
            let words = pair.reference_words.get(n + 1).cloned().unwrap_or_default();
            cuts.push((self.cut(&pair.target, &chosen.bounds), words, chosen.bounds));
        }
        pair.references.truncate(1);
        Ok(Cut { pair, number, cuts })
    }

    /// A pair of the log: its caption says what the detector looks for.
    fn detected(
        &self,
        detector: &Owlv2Detector,
        mut pair: Pair,
        number: u64,
    ) -> Result<Result<Cut, Rejection>, SourceError> {
        let first = pair.reference_words.first().cloned().unwrap_or_default();
        let others = match pair.provenance.get("companion").and_then(serde_json::Value::as_str) {
            // Known to be drawn, or at least to be asked for.
            Some(companion) => vec![companion.to_owned()],
            None => phrases(&pair.prompt, &first),
        };
        let queries: Vec<&str> =
            std::iter::once(first.as_str()).chain(others.iter().map(String::as_str)).collect();
        let found = detector.find(&pair.target, &queries, self.spec.detector_min as f32)?;
        let mut taken: Vec<BoundingBox> =
            found.iter().filter(|one| one.query == 0).take(1).map(|one| one.bounds).collect();
        let mut further: Vec<Detection> = found.into_iter().filter(|one| one.query > 0).collect();
        let size = pair.target.dimensions();
        let mut cuts: Vec<(RgbImage, String, BoundingBox)> = Vec::new();
        while cuts.len() + 1 < self.references {
            let chosen = match choose_box(&further, &taken, size, &self.limits) {
                Ok(chosen) => chosen,
                // One that is taken already hides that there is no other.
                Err(Rejection::BoxOverlap) if !cuts.is_empty() => return Ok(Err(Rejection::NoSecondSubject)),
                Err(reason) => return Ok(Err(reason)),
            };
            further.retain(|one| one.bounds != chosen.bounds);
            taken.push(chosen.bounds);
            let words = others.get(chosen.query.saturating_sub(1)).cloned().unwrap_or_default();
            cuts.push((self.cut(&pair.target, &chosen.bounds), words, chosen.bounds));
        }
        pair.references.truncate(1);
        Ok(Ok(Cut { pair, number, cuts }))
    }

    /// The part of a target that shows one subject, at the size of a reference.
    fn cut(&self, target: &RgbImage, bounds: &BoundingBox) -> RgbImage {
        let (x, y, side) = square_around(bounds, target.dimensions());
        images::resized(&crop_imm(target, x, y, side, side).to_image(), self.spec.panel, self.spec.panel)
    }

    fn cropped(&self, cut: Cut) -> Pair {
        let references = cut.cuts.iter().map(|(picture, ..)| picture.clone()).collect();
        self.pair(cut, "crop", references, &[])
    }

    fn redrawn(
        &self,
        redrawing: &Redrawing,
        cut: Vec<Result<Cut, Rejection>>,
        exhausted: bool,
        stop: &AtomicBool,
    ) -> Result<CandidateBatch, SourceError> {
        let mut asked: Vec<(String, &RgbImage, u64, u64)> = Vec::new();
        for one in cut.iter().flatten() {
            for (which, (picture, words, _)) in one.cuts.iter().enumerate() {
                let prompt = self.prompt(words, one.number, which as u64);
                asked.push((prompt, picture, one.number, which as u64));
            }
        }
        let requests: Vec<GenerationRequest<'_>> = asked
            .iter()
            .map(|(prompt, picture, number, which)| GenerationRequest {
                prompt,
                references: std::slice::from_ref(*picture),
                noise: redrawing.pipeline.noise(*number, *which),
            })
            .collect();
        let size = (self.spec.panel, self.spec.panel);
        let drawn = redrawing.pipeline.draw(size, &requests, stop)?;
        drop(requests);
        if drawn.len() != asked.len() {
            // Stopped in between.
            return Ok(CandidateBatch::of(Vec::new(), false));
        }
        let compared: Vec<(&RgbImage, &RgbImage)> =
            asked.iter().zip(&drawn).map(|((_, cut, ..), drawn)| (*cut, drawn)).collect();
        let cosines = match &redrawing.filter {
            Some(filter) => filter.cosines(&compared)?,
            None => Vec::new(),
        };
        let prompts: Vec<String> = asked.into_iter().map(|(prompt, ..)| prompt).collect();
        let mut made: Vec<Result<Pair, Rejection>> = Vec::with_capacity(cut.len());
        let mut turned_down = Vec::new();
        let mut next = 0;
        for one in cut {
            let one = match one {
                Ok(one) => one,
                Err(reason) => {
                    made.push(Err(reason));
                    continue;
                }
            };
            let range = next..next + one.cuts.len();
            next = range.end;
            let of_pair = cosines.get(range.clone()).unwrap_or_default();
            let references = drawn.get(range.clone()).unwrap_or_default().to_vec();
            let mut pair = self.pair(one, "recompose", references, prompts.get(range).unwrap_or_default());
            if let Some(lowest) = of_pair.iter().copied().min_by(f64::total_cmp) {
                // What this stage's filter saw, in place of what that of the pair's own stage did.
                pair.scores.insert("similarity".to_owned(), (lowest * 1e6).round() / 1e6);
            }
            let filter = redrawing.filter.as_ref();
            made.push(match filter.map_or(Ok(()), |filter| verdict(of_pair, filter.min(), filter.max())) {
                Ok(()) => Ok(pair),
                Err(reason) => {
                    turned_down.push(Rejected::of(reason, pair));
                    Err(reason)
                }
            });
        }
        Ok(CandidateBatch { cosines, turned_down, ..CandidateBatch::of(made, exhausted) })
    }

    /// What the earlier stage's model is told: the subject, elsewhere.
    fn prompt(&self, words: &str, number: u64, which: u64) -> String {
        let mut draw = SeededRng::new("recompose", &[self.seed, self.stage_index, number, which]);
        let named = f64::from(draw.unit()) < self.spec.name_share && !words.is_empty();
        let subject = if named { words } else { NAMELESS };
        match self.preset {
            ModelPreset::Nano => format!("{subject} on {}", Scene::draw(&mut draw, None).words()),
            ModelPreset::FluxDev | ModelPreset::FluxSchnell => {
                format!("{subject} {}", draw.pick(SETTINGS).copied().unwrap_or_default())
            }
        }
    }

    fn pair(&self, cut: Cut, source: &str, further: Vec<RgbImage>, prompts: &[String]) -> Pair {
        let Cut { mut pair, number, cuts } = cut;
        let first = pair.reference_words.first().cloned().unwrap_or_default();
        pair.reference_words =
            std::iter::once(first).chain(cuts.iter().map(|(_, words, _)| words.clone())).collect();
        pair.references.extend(further);
        let boxes: Vec<[f32; 4]> = cuts.iter().map(|(.., b)| [b.left, b.top, b.right, b.bottom]).collect();
        pair.provenance = json!({
            "source": source, "seed": self.seed, "stage": self.stage_index, "candidate": number, "from": self.spec.from,
            "boxes": boxes, "redrawn_as": prompts, "draw": self.redrawing.as_ref().map(|r| r.pipeline.provenance()),
            "target": pair.provenance,
        });
        pair
    }
}

fn bounds_of(place: &Region) -> BoundingBox {
    BoundingBox { left: place.x, top: place.y, right: place.x + place.width, bottom: place.y + place.height }
}

#[cfg(test)]
mod tests;
