//! Evaluation cases: subjects that training never saw, or some of those that it saw, in scenes of their own.

use super::{ComposeError, Composer, Placement, Region, Scene, distinct};
use crate::rng::SeededRng;
use image::RgbImage;

/// Subjects beyond which only some of the training subjects, evenly spread, are cases.
const MOST_TRAINING_SUBJECTS: usize = 128;

/// Which subjects of the library the cases show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalSubjects {
    HeldOut,
    /// Those that training may have seen, in scenes that it has not.
    Training,
}

/// A subject and one picture of it to compare with.
#[derive(Clone, Debug)]
pub struct GalleryEntry {
    pub id: String,
    pub words: String,
    /// The subject alone on a panel, in a scene that no case uses.
    pub panel: RgbImage,
    /// More of them, placed as at random as references are: what a copy of a reference is told from.
    pub layouts: Vec<RgbImage>,
}

/// One thing to draw.
#[derive(Clone, Debug)]
pub struct EvalCase {
    /// Gallery numbers of the subjects to draw, in the order of the references.
    pub subjects: Vec<usize>,
    /// For each subject, the gallery numbers to choose from: the right one and others, in random order, none of them
    /// another subject of the case.
    pub choices: Vec<Vec<usize>>,
    pub prompt: String,
    /// One panel a subject, in a scene other than the target's and the gallery's.
    pub references: Vec<RgbImage>,
    /// A picture that the prompt is true of: what a perfect model might draw.
    pub truth: RgbImage,
    /// Where the prompt wants each subject, `truth`'s pixels.
    pub places: Vec<Region>,
    /// What else the prompt asks, and what a copy would show instead; none of a pair that was not composed.
    pub asked: Option<Asked>,
}

/// What the prompt of a case asks beside its subjects, and what of the references it does not ask.
#[derive(Clone, Debug)]
pub struct Asked {
    /// [`Scene::appearance`] of the scene.
    pub scene: String,
    /// Others to choose from, that look otherwise than it and than each other.
    pub other_scenes: Vec<String>,
    /// Of each subject.
    pub placements: Vec<Placement>,
    /// How each reference shows its subject.
    pub reference_placements: Vec<Placement>,
}

/// Cases and the gallery that they are scored with.
#[derive(Clone, Debug)]
pub struct EvalSet {
    /// All subjects of the cases.
    pub gallery: Vec<GalleryEntry>,
    pub cases: Vec<EvalCase>,
}

impl Composer {
    /// Cases with held-out subjects: see [`Composer::eval_set_of`].
    pub fn eval_set(
        &self,
        count: usize,
        subjects_per_case: usize,
        choices: usize,
        seed: u64,
    ) -> Result<EvalSet, ComposeError> {
        self.eval_set_of(EvalSubjects::HeldOut, count, subjects_per_case, choices, seed)
    }

    /// Makes `count` cases of `subjects_per_case` subjects with `choices` to choose from (16 for nearest of 16; less where
    /// there are fewer subjects). Case n draws subject n modulo their number first, so every subject has its turn. The same
    /// arguments give the same set.
    pub fn eval_set_of(
        &self,
        which: EvalSubjects,
        count: usize,
        subjects_per_case: usize,
        choices: usize,
        seed: u64,
    ) -> Result<EvalSet, ComposeError> {
        let shown = match which {
            EvalSubjects::HeldOut => self.held_out.to_vec(),
            EvalSubjects::Training => {
                let all = self.training.len();
                let kept = all.min(MOST_TRAINING_SUBJECTS);
                (0..kept).map(|n| self.training[n * all / kept]).collect()
            }
        };
        let need = subjects_per_case.max(2);
        if shown.len() < need {
            return Err(ComposeError::TooFewSubjects { have: shown.len(), need });
        }
        let mut gallery = Vec::with_capacity(shown.len());
        for (n, entry) in shown.iter().enumerate() {
            let composed = self.compose(&[*entry], &mut SeededRng::new("eval gallery", &[seed, n as u64]))?;
            let facts = &self.subjects.entries()[*entry];
            gallery.push(GalleryEntry {
                id: facts.id.clone(),
                words: facts.words.clone(),
                panel: composed.picture,
                layouts: self.layouts(*entry, choices.saturating_sub(1), &[seed, n as u64])?,
            });
        }
        let everyone: Vec<usize> = (0..gallery.len()).collect();
        let mut cases = Vec::with_capacity(count);
        for case in 0..count {
            let mut draw = SeededRng::new("eval case", &[seed, case as u64]);
            let first = case % gallery.len();
            let others: Vec<usize> = everyone.iter().copied().filter(|n| *n != first).collect();
            let mut subjects = vec![first];
            subjects.extend(distinct(&mut draw, &others, subjects_per_case.saturating_sub(1)));
            let strangers: Vec<usize> = everyone.iter().copied().filter(|n| !subjects.contains(n)).collect();
            let case_choices = subjects
                .iter()
                .map(|subject| {
                    let mut of = distinct(&mut draw, &strangers, choices.saturating_sub(1));
                    of.push(*subject);
                    draw.shuffle(&mut of);
                    of
                })
                .collect();
            let entries: Vec<usize> = subjects.iter().map(|n| shown[*n]).collect();
            let target = self.compose(&entries, &mut SeededRng::new("eval target", &[seed, case as u64]))?;
            let (references, reference_placements) =
                self.eval_references(&entries, &target.scene, &[seed, case as u64])?;
            let key = [seed, case as u64];
            let asked = Asked {
                other_scenes: self.other_scenes(&target.scene, choices.saturating_sub(1), &key),
                scene: target.scene.appearance(),
                placements: target.placements.clone(),
                reference_placements,
            };
            cases.push(EvalCase {
                prompt: self.caption(&entries, &target, SeededRng::new("eval naming", &[seed, case as u64])),
                subjects,
                choices: case_choices,
                references,
                places: target.placements.iter().map(|p| p.place).collect(),
                truth: target.picture,
                asked: Some(asked),
            });
        }
        Ok(EvalSet { gallery, cases })
    }

    /// A panel of each of `entries` in a scene with other words than `than`, and where it shows its subject.
    fn eval_references(
        &self,
        entries: &[usize],
        than: &Scene,
        key: &[u64; 2],
    ) -> Result<(Vec<RgbImage>, Vec<Placement>), ComposeError> {
        let mut references = Vec::with_capacity(entries.len());
        let mut placements = Vec::with_capacity(entries.len());
        for (n, entry) in entries.iter().enumerate() {
            let mut draw = SeededRng::new("eval reference", &[key[0], key[1], n as u64]);
            let mut reference = self.compose(&[*entry], &mut draw)?;
            while reference.scene.words() == than.words() {
                reference = self.compose(&[*entry], &mut draw)?;
            }
            references.push(reference.picture);
            placements.extend(reference.placements);
        }
        Ok((references, placements))
    }

    /// `count` scenes that look otherwise than `scene` and than each other; fewer where there are no more.
    fn other_scenes(&self, scene: &Scene, count: usize, key: &[u64]) -> Vec<String> {
        /// Draws for each that is wanted: a library of photographs alone may have fewer than are asked for.
        const TRIES: usize = 20;
        let mut draw = SeededRng::new("eval scenes", key);
        let mut others: Vec<String> = Vec::with_capacity(count);
        for _ in 0..count * TRIES {
            if others.len() == count {
                break;
            }
            let other = Scene::draw(&mut draw, self.photos.as_deref()).appearance();
            if other != scene.appearance() && !others.contains(&other) {
                others.push(other);
            }
        }
        others
    }

    /// `count` panels that show a subject alone.
    fn layouts(&self, entry: usize, count: usize, key: &[u64]) -> Result<Vec<RgbImage>, ComposeError> {
        let mut draw = SeededRng::new("eval layouts", key);
        (0..count).map(|_| Ok(self.compose(&[entry], &mut draw)?.picture)).collect()
    }

    /// Another panel of gallery subject `subject`, in a scene drawn for `number`.
    pub fn held_out_view(&self, subject: usize, number: u64) -> Result<RgbImage, ComposeError> {
        let entry = self.held_out.get(subject % self.held_out.len().max(1)).copied();
        let entry = entry.ok_or(ComposeError::TooFewSubjects { have: 0, need: 1 })?;
        Ok(self
            .compose(&[entry], &mut SeededRng::new("held-out view", &[self.seed, entry as u64, number]))?
            .picture)
    }
}
