//! `source: compose`: subject cut-outs placed in scenes, with captions that are true of the picture.
//!
//! ```text
//!  subjects/ ─▶ Library ─┐
//!  photos/   ─▶ Library ─┤    (crates/dataset)
//!   (seed, stage, unit, candidate) ─▶ Composer ─▶ Pair { target, references, prompt }
//!   (seed, number)                 ─▶ EvalSet: cases with held-out subjects only, or with training's
//! ```
//!
//! Everything is a function of the spec, the seed and those numbers: the same candidate is the same bytes, whoever makes
//! it. Subjects are split by a stable hash of their id, so evaluation never meets one that training has seen.

mod canvas;
mod eval;
mod panels;
mod placement;
mod scene;

pub use canvas::{Canvas, side_by_side};
pub use crescendo_dataset::{Edge, Entry, HoldOut, Library, LibraryError, Raster, Region, is_held_out};
pub use eval::{Asked, EvalCase, EvalSet, EvalSubjects, GalleryEntry};
pub use panels::Panel;
pub use placement::Placement;
pub use scene::Scene;

use crate::rng::SeededRng;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{ComposeLayout, ComposeSpec};
use crescendo_dataset::pair::Pair;
use image::RgbImage;
use placement::{place_alone, place_together};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Why pairs cannot be composed at all.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("the subject library has too few subjects for training: {have}, and {need} are needed")]
    TooFewSubjects { have: usize, need: usize },
    #[error("panel is {panel} pixels; it must be 8 to 2048")]
    Panel { panel: u32 },
}

/// Makes pairs from a subject library.
#[derive(Clone, Debug)]
pub struct Composer {
    subjects: Arc<Library>,
    photos: Option<Arc<Library>>,
    /// Entry numbers of the subjects that training sees.
    training: Arc<[usize]>,
    held_out: Arc<[usize]>,
    layout: ComposeLayout,
    /// Pixels.
    panel: usize,
    name_share: f64,
    references: usize,
    seed: u64,
    stage_index: u64,
}

/// What captions without names call the subjects, in the order of their references.
const ORDINALS: [&str; 8] = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

/// A scene with subjects in it.
struct Composed {
    picture: RgbImage,
    scene: Scene,
    placements: Vec<Placement>,
}

/// What tells the parts of a pair apart that draw on their own: the same numbers never mean two things.
const TARGET_SCENE: u64 = 0;
const FIRST_REFERENCE_SCENE: u64 = 1;
const NAMING: u64 = u64::MAX;

impl Composer {
    /// Opens the libraries that `spec` names, relative ones below `library_root`.
    pub fn open(
        spec: &ComposeSpec,
        references: u32,
        seed: u64,
        stage_index: u32,
        library_root: &Path,
    ) -> Result<Composer, ComposeError> {
        if !(8..=2048).contains(&spec.panel) {
            return Err(ComposeError::Panel { panel: spec.panel });
        }
        let panel = spec.panel as usize;
        let subjects = Library::open_subjects(&library_root.join(&spec.subjects), (2 * panel).max(64))?;
        tell_problems(&spec.subjects, &subjects);
        let photos = match &spec.photos {
            Some(folder) => {
                let photos = Library::open_photos(&library_root.join(folder), 4 * panel)?;
                tell_problems(folder, &photos);
                Some(Arc::new(photos))
            }
            None => None,
        };
        let (training, held_out) = subjects.split(hold_out(&spec.hold_out, spec.hold_out_one_in))?;
        tell_held_out(&spec.subjects, &subjects, &held_out);
        // Two, so that there is something to tell a subject from.
        let need = (references as usize).max(2);
        if training.len() < need {
            return Err(ComposeError::TooFewSubjects { have: training.len(), need });
        }
        Ok(Composer {
            subjects: Arc::new(subjects),
            photos,
            training: training.into(),
            held_out: held_out.into(),
            layout: spec.layout,
            panel,
            name_share: spec.name_share,
            references: references as usize,
            seed,
            stage_index: u64::from(stage_index),
        })
    }

    /// Ids of the subjects that training may see.
    pub fn training_subjects(&self) -> Vec<&str> {
        self.training.iter().map(|i| self.subjects.entries()[*i].id.as_str()).collect()
    }

    /// Ids of the subjects kept for evaluation.
    pub fn held_out_subjects(&self) -> Vec<&str> {
        self.held_out.iter().map(|i| self.subjects.entries()[*i].id.as_str()).collect()
    }

    /// Makes candidate `candidate` of unit `unit`. The same numbers give the same pair.
    pub fn candidate(&self, unit: u64, candidate: u32) -> Result<Pair, Rejection> {
        let key = [self.seed, self.stage_index, unit, u64::from(candidate)];
        let mut draw = SeededRng::new("compose", &key);
        let diptych = match self.layout {
            ComposeLayout::Single => false,
            ComposeLayout::Diptych => true,
            // By unit, so that pictures of one shape lie together in the log.
            ComposeLayout::Mixed => unit % 2 == 1,
        };
        if diptych { self.diptych(&key, &mut draw) } else { self.single(&key, &mut draw) }
    }

    /// A candidate of layout `single`, with where each of its subjects was placed in the target, pixels.
    pub fn placed(&self, unit: u64, candidate: u32) -> Result<(Pair, Vec<Region>), Rejection> {
        let key = [self.seed, self.stage_index, unit, u64::from(candidate)];
        self.single_placed(&key, &mut SeededRng::new("compose", &key))
    }

    fn single(&self, key: &[u64], draw: &mut SeededRng) -> Result<Pair, Rejection> {
        Ok(self.single_placed(key, draw)?.0)
    }

    fn single_placed(&self, key: &[u64], draw: &mut SeededRng) -> Result<(Pair, Vec<Region>), Rejection> {
        let subjects = distinct(draw, &self.training, self.references.max(1));
        let target = self.compose(&subjects, &mut part(key, TARGET_SCENE)).map_err(rejection)?;
        let mut references = Vec::with_capacity(self.references);
        for (n, subject) in subjects.iter().take(self.references).enumerate() {
            references.push(self.elsewhere(
                *subject,
                &target.scene,
                &mut part(key, FIRST_REFERENCE_SCENE + n as u64),
            )?);
        }
        let places = target.placements.iter().map(|placement| placement.place).collect();
        let pair = Pair {
            prompt: self.caption(&subjects, &target, part(key, NAMING)),
            reference_words: subjects
                .iter()
                .take(self.references)
                .map(|s| self.subjects.entries()[*s].words.clone())
                .collect(),
            provenance: json!({
                "source": "compose", "layout": "single", "seed": self.seed, "stage": self.stage_index, "unit": key[2],
                "candidate": key[3], "subjects": self.ids(&subjects), "scene": target.scene.provenance(),
                "reference_scenes": references.iter().map(|r| r.scene.provenance()).collect::<Vec<_>>(),
            }),
            target: target.picture,
            references: references.into_iter().map(|r| r.picture).collect(),
            scores: BTreeMap::new(),
        };
        Ok((pair, places))
    }

    fn diptych(&self, key: &[u64], draw: &mut SeededRng) -> Result<Pair, Rejection> {
        let subjects = distinct(draw, &self.training, 1);
        let left = self.compose(&subjects, &mut part(key, TARGET_SCENE)).map_err(rejection)?;
        let right = self.elsewhere(subjects[0], &left.scene, &mut part(key, FIRST_REFERENCE_SCENE))?;
        Ok(Pair {
            target: side_by_side(&left.picture, &right.picture),
            references: Vec::new(),
            prompt: format!(
                "two panels of {}, left on {}, right on {}",
                self.naming(&subjects, part(key, NAMING))[0],
                left.scene.words(),
                right.scene.words()
            ),
            reference_words: Vec::new(),
            scores: BTreeMap::new(),
            provenance: json!({
                "source": "compose", "layout": "diptych", "seed": self.seed, "stage": self.stage_index, "unit": key[2],
                "candidate": key[3], "subjects": self.ids(&subjects),
                "scene": left.scene.provenance(), "right_scene": right.scene.provenance(),
            }),
        })
    }

    /// A panel with `subjects` (entry numbers) in a drawn scene.
    fn compose(&self, subjects: &[usize], draw: &mut SeededRng) -> Result<Composed, LibraryError> {
        let scene = Scene::draw(draw, self.photos.as_deref());
        self.compose_on(scene, subjects, draw)
    }

    fn compose_on(
        &self,
        scene: Scene,
        subjects: &[usize],
        draw: &mut SeededRng,
    ) -> Result<Composed, LibraryError> {
        let mut canvas = scene.render(self.panel, self.photos.as_deref())?;
        let mut rasters = Vec::with_capacity(subjects.len());
        for subject in subjects {
            rasters.push(self.subjects.raster(*subject, picture_of(draw, &self.subjects, *subject))?);
        }
        let aspects: Vec<f32> = rasters.iter().map(|r| r.width() as f32 / r.height().max(1) as f32).collect();
        let placements = match aspects[..] {
            [] => Vec::new(),
            [aspect] => vec![place_alone(draw, self.panel, aspect)],
            _ => place_together(draw, self.panel, &aspects),
        };
        for (raster, placement) in rasters.iter().zip(&placements) {
            canvas.lay(raster, placement.place, placement.mirrored);
        }
        Ok(Composed { picture: canvas.to_image(), scene, placements })
    }

    /// A panel with one subject in a scene with other words than `than`.
    fn elsewhere(&self, subject: usize, than: &Scene, draw: &mut SeededRng) -> Result<Composed, Rejection> {
        let mut composed = self.compose(&[subject], draw).map_err(rejection)?;
        // Each try has its own scene, so a few suffice; the same words twice would still be a true pair.
        for _ in 0..8 {
            if composed.scene.words() != than.words() {
                break;
            }
            composed = self.compose(&[subject], draw).map_err(rejection)?;
        }
        Ok(composed)
    }

    /// What a caption calls each of `subjects`: all by their names, or none.
    fn naming(&self, subjects: &[usize], mut draw: SeededRng) -> Vec<String> {
        // Drawn only where there is a choice: captions that all have names are what they always were.
        if self.name_share >= 1.0 || f64::from(draw.unit()) < self.name_share {
            return subjects.iter().map(|subject| self.subjects.entries()[*subject].words.clone()).collect();
        }
        match subjects.len() {
            1 => vec!["the subject".to_owned()],
            count => {
                ORDINALS.iter().cycle().take(count).map(|ordinal| format!("the {ordinal} subject")).collect()
            }
        }
    }

    fn caption(&self, subjects: &[usize], composed: &Composed, draw: SeededRng) -> String {
        let names = self.naming(subjects, draw);
        match (&names[..], &composed.placements[..]) {
            ([name], [placement]) => {
                let size =
                    if placement.size.is_empty() { String::new() } else { format!(", {}", placement.size) };
                format!("{name} on {}, {}{size}", composed.scene.words(), placement.position)
            }
            _ => {
                let each: Vec<String> = names
                    .iter()
                    .zip(&composed.placements)
                    .map(|(name, placement)| format!("{name} {}", placement.position))
                    .collect();
                format!("{}, on {}", each.join(" and "), composed.scene.words())
            }
        }
    }

    fn ids(&self, subjects: &[usize]) -> Vec<&str> {
        subjects.iter().map(|s| self.subjects.entries()[*s].id.as_str()).collect()
    }
}

/// The stream of one part of a pair.
fn part(key: &[u64], number: u64) -> SeededRng {
    let mut numbers = key.to_vec();
    numbers.push(number);
    SeededRng::new("compose part", &numbers)
}

/// Says in the log what a library goes without, and what is perhaps not as it is meant.
pub fn tell_problems(folder: &str, library: &Library) {
    /// So that a folder of the wrong kind does not fill the log.
    const MOST: usize = 20;
    for problem in library.problems().iter().take(MOST) {
        tracing::warn!(folder, place = problem.place, "subject library: {}", problem.reason);
    }
    if library.problems().len() > MOST {
        tracing::warn!(
            folder,
            problems = library.problems().len(),
            "`crescendo library check` shows them all"
        );
    }
}

/// What a spec says about who is held out.
pub fn hold_out(named: &[String], one_in: u32) -> HoldOut<'_> {
    HoldOut { named, one_in }
}

/// Says in the log who is kept out of training.
pub fn tell_held_out(folder: &str, library: &Library, held_out: &[usize]) {
    /// So that a large library does not fill the log.
    const MOST: usize = 50;
    let ids = held_out.iter().filter_map(|n| library.entries().get(*n)).map(|entry| entry.id.as_str());
    let shown = ids.take(MOST).collect::<Vec<_>>().join(", ");
    let more = if held_out.len() > MOST { ", ..." } else { "" };
    let (of, count) = (library.entries().len(), held_out.len());
    tracing::info!(folder, "held out of training: {count} of {of} subjects: {shown}{more}");
}

/// Which picture of an entry is shown. Drawn only where there is a choice: pairs of subjects with one picture each are what
/// they always were.
fn picture_of(draw: &mut SeededRng, library: &Library, entry: usize) -> usize {
    match library.entries()[entry].files.len() {
        0 | 1 => 0,
        several => draw.below(several),
    }
}

/// `count` different entries of `from`, or all of them in random order if there are fewer.
fn distinct(draw: &mut SeededRng, from: &[usize], count: usize) -> Vec<usize> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count.min(from.len()) {
        let entry = from[draw.below(from.len())];
        if !taken.contains(&entry) {
            taken.push(entry);
        }
    }
    taken
}

fn rejection(error: LibraryError) -> Rejection {
    match error {
        LibraryError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Rejection::MissingFile
        }
        LibraryError::Read { .. }
        | LibraryError::Index { .. }
        | LibraryError::Folder { .. }
        | LibraryError::HoldOut { .. }
        | LibraryError::Picture { .. } => Rejection::UnreadableImage,
    }
}

#[cfg(test)]
pub(crate) mod tests;
