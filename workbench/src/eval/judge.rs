//! Scores of one picture: whole, and by the subjects that are found in it.

use std::path::Path;

use anyhow::{Context as _, Result};
use crescendo_dataset::digest::hex;
use crescendo_dataset::pictures::Picture;
use crescendo_model::score::{assign, subject_similarity, text_similarity};
use image::RgbImage;
use image::imageops::crop_imm;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::benchmark::{Benchmark, Row, Subject};

/// What the networks say about a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Projected features of CLIP's vision tower.
    pub clip: Vec<f32>,
    /// Class token of DINO.
    pub dino: Vec<f32>,
}

/// An object that was found in a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Which of the words it was found by.
    pub query: usize,
    /// 0 to 1.
    pub score: f32,
    /// Left, top, width, height, whole pixels inside the picture, none of the last two 0.
    pub area: [u32; 4],
}

/// The networks behind the scores.
pub trait Scorer {
    /// Names networks and settings: scores of scorers with different names are not mixed.
    fn identity(&self) -> &str;

    fn describe(&self, picture: &RgbImage) -> Result<Features>;

    /// CLIP's projected features of a prompt.
    fn read(&self, prompt: &str) -> Result<Vec<f32>>;

    /// Whether [`Scorer::find`] can be asked.
    fn finds(&self) -> bool;

    /// Objects that `words` describe, best first, each place at most once.
    fn find(&self, picture: &RgbImage, words: &[&str]) -> Result<Vec<Found>>;
}

/// Scores by the subjects that were found: 0 for one that was not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CropScores {
    /// Whether each subject was found.
    pub found: Vec<bool>,
    pub clip_i: Vec<f64>,
    pub dino: Vec<f64>,
}

/// Scores of one picture; vectors have one number for each subject of its row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PictureScore {
    pub row: usize,
    pub sample: usize,
    /// Digest of the picture, its prompt, the real pictures and the scorer.
    pub inputs: String,
    pub clip_t: f64,
    pub clip_i: Vec<f64>,
    pub dino: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<CropScores>,
}

/// A subject's real pictures, described once.
struct Gallery {
    digest: [u8; 32],
    whole: Vec<Features>,
    /// By the place where the subject was found, or whole where it was not.
    crops: Vec<Features>,
}

/// Scores pictures of a benchmark.
pub struct Judge<'a> {
    scorer: &'a dyn Scorer,
    benchmark: &'a Benchmark,
    galleries: Vec<Gallery>,
}

impl<'a> Judge<'a> {
    /// Describes the real pictures of every subject.
    pub fn new(scorer: &'a dyn Scorer, benchmark: &'a Benchmark) -> Result<Self> {
        let galleries = benchmark
            .subjects
            .iter()
            .map(|subject| {
                gallery(scorer, subject).with_context(|| format!("describe subject {}", subject.name))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { scorer, benchmark, galleries })
    }

    /// What a score of this file depends on.
    pub fn inputs(&self, row: &Row, file: &[u8]) -> String {
        let mut digest = Sha256::new();
        let mut add = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        add(self.scorer.identity().as_bytes());
        add(row.prompt.as_bytes());
        for subject in &row.subjects {
            add(self.benchmark.subjects[*subject].words.as_bytes());
            add(&self.galleries[*subject].digest);
        }
        add(file);
        hex(&digest.finalize())
    }

    /// Scores the picture in `file`, which `path` names.
    pub fn score(&self, row: usize, sample: usize, path: &Path, file: &[u8]) -> Result<PictureScore> {
        let of = &self.benchmark.rows[row];
        let picture = Picture::decode(&path.display().to_string(), file)?.to_rgb();
        let features = self.scorer.describe(&picture)?;
        let galleries: Vec<&Gallery> = of.subjects.iter().map(|subject| &self.galleries[*subject]).collect();
        let (clip_i, dino) = galleries.iter().map(|gallery| similarities(&features, &gallery.whole)).unzip();
        Ok(PictureScore {
            row,
            sample,
            inputs: self.inputs(of, file),
            clip_t: text_similarity(&features.clip, &self.scorer.read(&of.prompt)?),
            clip_i,
            dino,
            crops: if self.scorer.finds() { Some(self.crops(of, &galleries, &picture)?) } else { None },
        })
    }

    /// Finds each subject in the picture: the boxes of its words go to subjects by DINO similarity, one box to one
    /// subject, so that one cat does not pass for two.
    fn crops(&self, row: &Row, galleries: &[&Gallery], picture: &RgbImage) -> Result<CropScores> {
        let words: Vec<&str> =
            row.subjects.iter().map(|subject| self.benchmark.subjects[*subject].words.as_str()).collect();
        let mut queries = words.clone();
        queries.sort_unstable();
        queries.dedup();
        let found = self.scorer.find(picture, &queries)?;
        let described = found
            .iter()
            .map(|found| self.scorer.describe(&cut(picture, found.area)))
            .collect::<Result<Vec<_>>>()?;
        let scores: Vec<Vec<(f64, f64)>> = galleries
            .iter()
            .map(|gallery| described.iter().map(|features| similarities(features, &gallery.crops)).collect())
            .collect();
        let similarity: Vec<Vec<Option<f64>>> = words
            .iter()
            .zip(&scores)
            .map(|(word, scores)| {
                let fits = |found: &Found| queries.get(found.query) == Some(word);
                found.iter().zip(scores).map(|(found, (_, dino))| fits(found).then_some(*dino)).collect()
            })
            .collect();
        let boxes = assign(&similarity);
        let of = |subject: usize| boxes[subject].map_or((0.0, 0.0), |found| scores[subject][found]);
        let (clip_i, dino) = (0..words.len()).map(of).unzip();
        Ok(CropScores { found: boxes.iter().map(Option::is_some).collect(), clip_i, dino })
    }
}

/// CLIP-I and DINO of a picture against a subject's real pictures; a subject has at least one.
fn similarities(features: &Features, real: &[Features]) -> (f64, f64) {
    let clip = subject_similarity(&features.clip, real.iter().map(|other| other.clip.as_slice()));
    let dino = subject_similarity(&features.dino, real.iter().map(|other| other.dino.as_slice()));
    (clip.unwrap_or_default(), dino.unwrap_or_default())
}

fn gallery(scorer: &dyn Scorer, subject: &Subject) -> Result<Gallery> {
    let mut digest = Sha256::new();
    let (mut whole, mut crops) = (Vec::new(), Vec::new());
    for path in &subject.pictures {
        let file = super::read(path)?;
        digest.update(Sha256::digest(&file));
        let picture = Picture::decode(&path.display().to_string(), &file)?.to_rgb();
        whole.push(scorer.describe(&picture)?);
        if scorer.finds() {
            let best = scorer.find(&picture, &[&subject.words])?.first().map(|found| found.area);
            crops.push(match best {
                Some(area) => scorer.describe(&cut(&picture, area))?,
                None => scorer.describe(&picture)?,
            });
        }
    }
    Ok(Gallery { digest: digest.finalize().into(), whole, crops })
}

fn cut(picture: &RgbImage, [left, top, width, height]: [u32; 4]) -> RgbImage {
    crop_imm(picture, left, top, width, height).to_image()
}
