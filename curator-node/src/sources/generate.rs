//! `source: generate`: pictures of two panels with one subject, drawn by the job's own base and split at their border.
//!
//! ```text
//!  (seed, stage, candidate) ─▶ Wanted { subject, scenes, companion } ─▶ caption ─┐
//!                        unit ─▶ arrangement, shape of a panel ──────────────────┼─▶ pipeline ─▶ drawing
//!                           noise: a function of (seed, stage, candidate) ───────┘               │
//!  Pair { target: second panel, reference: first panel } ◀─ fitted ◀─ panels ◀─ panel_split ◀────┘
//! ```
//!
//! The base draws the same subject twice because the caption announces it (UNO paper, section 3.2). The panels of a
//! drawing are of whatever size the border leaves them; each is scaled to cover the size that was asked for and cut at the
//! centre, so that all pairs of a unit have one size and nothing is stretched.
//!
//! A pair is a function of (spec, seed, stage, candidate) and, in its last bits, of the kind of machine that draws.

use crate::candidates::CandidateBatch;
use crate::images;
use crate::paths::PathResolver;
use crate::pipeline::{DiffusionPipeline, ModelContext};
use crate::rng::SeededRng;
use crate::sources::SourceError;
use crate::sources::captions::{SETTINGS, Wanted, captions};
use crate::sources::compose::{
    ComposeError, HoldOut, Library, Scene, hold_out, tell_held_out, tell_problems,
};
use crate::sources::panel_split::{self, Arrangement, PanelSplitError};
use crate::sources::prompts::{PromptBook, PromptSource};
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{GenerateSpec, JobSpec, ModelPreset, PanelArrangement, PanelShapes, StageSpec};
use crescendo_dataset::pair::Pair;
use crescendo_model::drawing::GenerationRequest;
use crescendo_model::unope::Offsets;
use image::RgbImage;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Longer side to which a library's pictures would be shrunk; only its words are read here.
const UNUSED_LIMIT: usize = 64;

/// A drawing before it is split, with what was asked for.
#[derive(Debug)]
pub struct Drawing {
    pub picture: RgbImage,
    pub wanted: Wanted,
    pub caption: String,
    pub arrangement: Arrangement,
}

/// Where subjects come from.
#[derive(Debug)]
enum Subjects {
    /// Id and words of a library's training subjects; not empty.
    Library(Vec<(String, String)>),
    Book(Arc<PromptBook>),
}

/// Draws pairs.
#[derive(Debug)]
pub struct Generator {
    spec: GenerateSpec,
    preset: ModelPreset,
    pipeline: DiffusionPipeline,
    subjects: Subjects,
    seed: u64,
    stage_index: u64,
}

impl Generator {
    /// Loads the job's base and the words of its subjects.
    pub fn open(
        spec: &GenerateSpec,
        job: &JobSpec,
        stage: &StageSpec,
        stage_index: u32,
        paths: &PathResolver,
        source: PromptSource<'_>,
        models: &ModelContext,
    ) -> Result<Generator, SourceError> {
        let subjects = match (&spec.subjects, &stage.data.prompts) {
            (Some(folder), _) => {
                let hold_out = hold_out(&spec.hold_out, spec.hold_out_one_in);
                Subjects::Library(library(&paths.resolve(folder)?, hold_out)?)
            }
            (None, Some(prompts)) => Subjects::Book(match source.book {
                Some(book) => book,
                None => {
                    let book = PromptBook::open(prompts, &job.endpoints, job.seed, paths, source.llm);
                    Arc::new(book.map_err(Box::new)?)
                }
            }),
            (None, None) => return Err(SourceError::NoPrompts),
        };
        // The base draws without references, so positions say nothing.
        let pipeline =
            DiffusionPipeline::open(job, stage_index, &spec.draw, Offsets::PUBLISHED, paths, models)?;
        Ok(Generator {
            spec: spec.clone(),
            preset: job.model.preset,
            pipeline,
            subjects,
            seed: job.seed,
            stage_index: u64::from(stage_index),
        })
    }

    /// The candidates of a unit. `stop` ends it early, with a result that must not be used.
    pub fn unit(&self, unit: u64, unit_size: u32, stop: &AtomicBool) -> Result<CandidateBatch, SourceError> {
        let panel = self.panel(unit);
        let drawings = self.drawings(unit, unit_size, stop)?;
        let first = unit.wrapping_mul(u64::from(unit_size));
        let candidates = drawings
            .iter()
            .zip(first..)
            .map(|(drawing, number)| self.pair(drawing, panel, unit, number))
            .collect();
        Ok(CandidateBatch::of(candidates, false))
    }

    /// The drawings of a unit, not split yet.
    pub fn drawings(
        &self,
        unit: u64,
        unit_size: u32,
        stop: &AtomicBool,
    ) -> Result<Vec<Drawing>, SourceError> {
        let arrangement = self.arrangement(unit);
        let (width, height) = self.panel(unit);
        let size = match arrangement {
            Arrangement::SideBySide => (2 * width, height),
            Arrangement::Stacked => (width, 2 * height),
        };
        let first = unit.wrapping_mul(u64::from(unit_size));
        let numbers = (0..u64::from(unit_size)).map(|n| first.wrapping_add(n));
        let wanted: Vec<(u64, Wanted)> = numbers.map(|number| (number, self.wanted(number))).collect();
        let texts: Vec<String> =
            wanted.iter().map(|(_, wanted)| captions(self.preset, wanted, arrangement).drawing).collect();
        let requests: Vec<GenerationRequest<'_>> = wanted
            .iter()
            .zip(&texts)
            .map(|((number, _), text)| GenerationRequest {
                prompt: text,
                references: &[],
                noise: self.pipeline.noise(*number, 0),
            })
            .collect();
        let pictures = self.pipeline.draw(size, &requests, stop)?;
        drop(requests);
        Ok(pictures
            .into_iter()
            .zip(wanted.into_iter().zip(texts))
            .map(|(picture, ((_, wanted), caption))| Drawing { picture, wanted, caption, arrangement })
            .collect())
    }

    /// What candidate `number` of the stage is to show.
    fn wanted(&self, number: u64) -> Wanted {
        let mut draw = SeededRng::new("generate", &[self.seed, self.stage_index, number]);
        let named = f64::from(draw.unit()) < self.spec.name_share;
        let has_companion = f64::from(draw.unit()) < self.spec.companions;
        let (id, subject, lines, companion) = match &self.subjects {
            Subjects::Library(entries) => {
                let (id, words) = draw.pick(entries).cloned().unwrap_or_default();
                let other = draw.pick(entries).map(|(_, words)| words.clone());
                (id, words, None, other)
            }
            Subjects::Book(book) => {
                let prompt = book.prompt(number);
                let other = book.prompt(draw.next_u64()).subject;
                (prompt.category, prompt.subject, Some(prompt.scenes), Some(other))
            }
        };
        let scenes = match (self.preset, lines) {
            // Its base knows the words of composed scenes alone.
            (ModelPreset::Nano, _) => two(|| Scene::draw(&mut draw, None).words().to_owned()),
            (ModelPreset::FluxDev | ModelPreset::FluxSchnell, Some(lines)) => lines,
            (ModelPreset::FluxDev | ModelPreset::FluxSchnell, None) => {
                two(|| format!("{subject} {}", draw.pick(SETTINGS).copied().unwrap_or_default()))
            }
        };
        Wanted { id, subject, named, scenes, companion: companion.filter(|_| has_companion) }
    }

    /// By unit, so that pairs of one shape lie together in the log.
    fn arrangement(&self, unit: u64) -> Arrangement {
        match self.spec.panels {
            PanelArrangement::SideBySide => Arrangement::SideBySide,
            PanelArrangement::Stacked => Arrangement::Stacked,
            PanelArrangement::Both if (unit / 3).is_multiple_of(2) => Arrangement::SideBySide,
            PanelArrangement::Both => Arrangement::Stacked,
        }
    }

    /// Width and height of the panels of a unit, pixels.
    fn panel(&self, unit: u64) -> (u32, u32) {
        let long = self.pipeline.fitting(f64::from(self.spec.panel));
        let short = self.pipeline.fitting(f64::from(self.spec.panel) * 0.75);
        match (self.spec.shapes, unit % 3) {
            (PanelShapes::Square, _) | (PanelShapes::All, 0) => (long, long),
            (PanelShapes::All, 1) => (long, short),
            (PanelShapes::All, _) => (short, long),
        }
    }

    fn pair(&self, drawing: &Drawing, panel: (u32, u32), unit: u64, number: u64) -> Result<Pair, Rejection> {
        let Drawing { picture, wanted, caption, arrangement } = drawing;
        let split = panel_split::find(picture, *arrangement).map_err(|error| match error {
            PanelSplitError::None => Rejection::NoDivider,
            PanelSplitError::Several => Rejection::SeveralDividers,
        })?;
        let [first, second] = panel_split::panels(picture, *arrangement, split)
            .map(|part| images::covering(&part, panel.0, panel.1));
        let texts = captions(self.preset, wanted, *arrangement);
        Ok(Pair {
            target: second,
            references: vec![first],
            prompt: texts.target,
            reference_words: vec![wanted.subject.clone()],
            scores: BTreeMap::new(),
            provenance: json!({
                "source": "generate", "seed": self.seed, "stage": self.stage_index, "unit": unit, "candidate": number,
                "subject": wanted.id, "caption": caption, "companion": wanted.companion,
                "split": [split.first_end, split.second_start], "draw": self.pipeline.provenance(),
            }),
        })
    }
}

/// Ids and words of the subjects of a library that training may see.
fn library(folder: &Path, hold_out: HoldOut<'_>) -> Result<Vec<(String, String)>, SourceError> {
    let library = Library::open_subjects(folder, UNUSED_LIMIT).map_err(ComposeError::from)?;
    tell_problems(&folder.to_string_lossy(), &library);
    let (training, held_out) = library.split(hold_out).map_err(ComposeError::from)?;
    tell_held_out(&folder.to_string_lossy(), &library, &held_out);
    let subjects: Vec<(String, String)> = training
        .into_iter()
        .filter_map(|n| library.entries().get(n))
        .map(|entry| (entry.id.clone(), entry.words.clone()))
        .collect();
    if subjects.is_empty() {
        return Err(ComposeError::TooFewSubjects { have: 0, need: 1 }.into());
    }
    Ok(subjects)
}

/// Two different texts, if a few tries give them: two panels in the same place would still be a pair.
fn two(mut text: impl FnMut() -> String) -> [String; 2] {
    let first = text();
    let mut second = text();
    for _ in 0..8 {
        if second != first {
            break;
        }
        second = text();
    }
    [first, second]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::tests::{drawing_job, paths};
    use crescendo_core::spec::DataSource;

    fn generator(folder: &std::path::Path, change: impl FnOnce(&mut GenerateSpec)) -> Generator {
        let mut job = drawing_job(folder);
        let DataSource::Generate(spec) = &mut job.stages[0].data.source else { panic!("it generates") };
        change(spec);
        let spec = spec.clone();
        Generator::open(
            &spec,
            &job,
            &job.stages[0],
            0,
            &paths(folder),
            PromptSource::default(),
            &ModelContext::default(),
        )
        .expect("open")
    }

    #[test]
    fn what_is_wanted_depends_on_the_candidate_alone_and_keeps_subjects_out() {
        let folder = tempfile::tempdir().expect("make a folder");
        let generator = generator(folder.path(), |spec| {
            spec.hold_out_one_in = 2;
            spec.name_share = 1.0;
        });
        let wanted: Vec<Wanted> = (0..200).map(|n| generator.wanted(n)).collect();
        assert_eq!(wanted[7], generator.wanted(7));
        assert!(
            wanted
                .iter()
                .all(|one| !crate::sources::compose::is_held_out(&one.id, 2) && one.companion.is_none())
        );
        assert!(wanted.iter().filter(|one| one.scenes[0] != one.scenes[1]).count() > 195);
        let ids: std::collections::BTreeSet<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
        assert!(ids.len() > 5, "{ids:?}");
    }

    #[test]
    fn a_book_of_prompts_says_what_is_wanted_of_flux() {
        let folder = tempfile::tempdir().expect("make a folder");
        let mut job = drawing_job(folder.path());
        job.stages[0].data.prompts = serde_json::from_value(json!({
            "taxonomy": null, "subjects": ["brass lantern", "clay jug"], "styles": ["realistic"],
            "subjectsPerCategory": 1, "scenesPerSubject": 4, "endpoint": null,
        }))
        .expect("prompts");
        let DataSource::Generate(spec) = &mut job.stages[0].data.source else { panic!("it generates") };
        (spec.subjects, spec.name_share, spec.companions) = (None, 1.0, 1.0);
        let spec = spec.clone();
        let open = || {
            Generator::open(
                &spec,
                &job,
                &job.stages[0],
                0,
                &paths(folder.path()),
                PromptSource::default(),
                &ModelContext::default(),
            )
        };
        let mut generator = open().expect("open");
        // Its networks stay nano's: only what is asked for matters here.
        generator.preset = ModelPreset::FluxDev;
        for number in 0..8 {
            let wanted = generator.wanted(number);
            assert_eq!(wanted, generator.wanted(number));
            assert!(wanted.scenes.iter().all(|line| line.contains(&wanted.subject)), "{wanted:?}");
            assert!(wanted.companion.is_some());
        }
    }

    #[test]
    fn units_take_turns_with_shapes_and_arrangements() {
        let folder = tempfile::tempdir().expect("make a folder");
        let generator = generator(folder.path(), |spec| {
            spec.panels = PanelArrangement::Both;
            spec.shapes = PanelShapes::All;
            spec.companions = 1.0;
        });
        let stop = AtomicBool::new(false);
        let mut seen = std::collections::BTreeSet::new();
        for unit in 0..6 {
            let drawings = generator.drawings(unit, 1, &stop).expect("draw");
            assert!(drawings[0].wanted.companion.is_some());
            seen.insert(drawings[0].picture.dimensions());
        }
        let expected = [(64, 32), (64, 24), (48, 32), (32, 64), (32, 48), (24, 64)];
        assert_eq!(seen, expected.into_iter().collect());
    }

    #[test]
    fn the_same_unit_is_the_same_drawings_and_what_has_no_border_is_counted() {
        let folder = tempfile::tempdir().expect("make a folder");
        let generator = generator(folder.path(), |_| {});
        let stop = AtomicBool::new(false);
        let pictures = |unit| -> Vec<RgbImage> {
            let drawings = generator.drawings(unit, 6, &stop).expect("draw");
            drawings.into_iter().map(|drawing| drawing.picture).collect()
        };
        assert_eq!(pictures(2), pictures(2));
        assert_ne!(pictures(2), pictures(3));
        // A base that was never trained draws noise.
        let made = generator.unit(2, 6, &stop).expect("draw").candidates;
        assert_eq!(
            made.iter().map(|one| one.as_ref().err().copied()).collect::<Vec<_>>(),
            [Some(Rejection::NoDivider); 6]
        );
        assert!(generator.unit(2, 6, &AtomicBool::new(true)).expect("stopped").candidates.is_empty());
    }

    #[test]
    fn panels_come_out_at_one_size_wherever_the_border_is() {
        let folder = tempfile::tempdir().expect("make a folder");
        let generator = generator(folder.path(), |_| {});
        let wanted = Wanted {
            id: "thing".into(),
            subject: "a thing".into(),
            named: true,
            scenes: ["plain red".into(), "plain blue".into()],
            companion: None,
        };
        for border in [24, 32, 40] {
            let picture = RgbImage::from_fn(64, 32, |x, _| {
                image::Rgb(if x < border { [200, 30, 30] } else { [30, 60, 200] })
            });
            let drawing = Drawing {
                picture,
                wanted: wanted.clone(),
                caption: "two panels".into(),
                arrangement: Arrangement::SideBySide,
            };
            let pair = generator.pair(&drawing, (32, 32), 0, 5).expect("there is a border");
            assert_eq!((pair.target.dimensions(), pair.references[0].dimensions()), ((32, 32), (32, 32)));
            assert_eq!(pair.references[0].get_pixel(31, 16).0, [200, 30, 30]);
            assert_eq!(pair.target.get_pixel(0, 16).0, [30, 60, 200]);
            assert_eq!(pair.prompt, "a thing on plain blue");
            assert_eq!(
                (pair.provenance["candidate"].as_u64(), pair.provenance["split"][0].as_u64()),
                (Some(5), Some(u64::from(border)))
            );
        }
    }
}
