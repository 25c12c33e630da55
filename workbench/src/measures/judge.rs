//! Measures what is drawn: is the nearest subject the right one, is the prompt followed, is the reference copied?

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use crescendo_curator_node::filters::similarity::describe;
use crescendo_curator_node::images::resized;
use crescendo_curator_node::sources::compose::{Asked, EvalCase, EvalSet, Region};
use crescendo_model::dinov2::DinoV2;
use crescendo_model::tch::Device;
use image::RgbImage;
use image::imageops::{FilterType, crop_imm, resize};

use super::Measure;
use super::phrases::{MOST_COUNTED, Segment, arrangement, arrangements, counts, nearest_phrase};
use super::score::{Assigned, Score, nearest};
use super::views::View;

/// The subject's encoder that comes with this program, for jobs that name none.
const SUBJECT: &[u8] = include_bytes!("../../../assets/nano/dinov2-nano.safetensors");
const SUBJECT_FIGURES: &str = include_str!("../../../assets/nano/dinov2-nano.json");
const COLOUR_FIGURES: &str = include_str!("../../../assets/nano/colour-nano.json");
const OUTLINE_FIGURES: &str = include_str!("../../../assets/nano/outline-nano.json");
const COLOUR: &[u8] = include_bytes!("../../../assets/nano/colour-nano.safetensors");
const OUTLINE: &[u8] = include_bytes!("../../../assets/nano/outline-nano.safetensors");
const LAYOUT: &[u8] = include_bytes!("../../../assets/nano/layout-nano.safetensors");
const PROMPT: &[u8] = include_bytes!("../../../assets/nano/prompt-nano.safetensors");

/// Scores by what they count.
pub type Scores = BTreeMap<Measure, Score>;

/// The networks that measure.
pub struct Encoders {
    subject: DinoV2,
    colour: DinoV2,
    outline: DinoV2,
    layout: DinoV2,
    prompt: DinoV2,
}

impl Encoders {
    /// With `subject` to tell subjects apart, or the shipped one.
    pub fn open(subject: Option<DinoV2>, device: Device) -> Result<Self> {
        Ok(Self {
            subject: subject.map_or_else(|| shipped(SUBJECT, device), Ok)?,
            colour: shipped(COLOUR, device)?,
            outline: shipped(OUTLINE, device)?,
            layout: shipped(LAYOUT, device)?,
            prompt: shipped(PROMPT, device)?,
        })
    }

    /// How alike two pictures are, part by part.
    pub fn compare(&self, one: &RgbImage, other: &RgbImage) -> Result<PartCosines> {
        let pictures = [one.clone(), other.clone()];
        let mut cosines = [0.0; 3];
        for (cosine, measure) in cosines.iter_mut().zip(OF_SUBJECTS) {
            let described = self.describe(measure, &pictures)?;
            *cosine = described[0].iter().zip(&described[1]).map(|(a, b)| f64::from(a * b)).sum();
        }
        Ok(PartCosines(cosines))
    }

    /// Vectors of pictures by the encoder of a measure.
    fn describe(&self, measure: Measure, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let (encoder, view) = match measure {
            Measure::Subject => (&self.subject, View::Whole),
            Measure::Colour => (&self.colour, View::Colour),
            Measure::Outline => (&self.outline, View::Outline),
            Measure::Copy => (&self.layout, View::Whole),
            Measure::Prompt | Measure::Scene | Measure::Place | Measure::Count => (&self.prompt, View::Whole),
        };
        let seen: Vec<RgbImage> = match view {
            View::Whole => pictures.to_vec(),
            // At the encoder's own size: shrinking afterwards would mix what was put in another order.
            _ => {
                let side = u32::try_from(encoder.config().image_size).unwrap_or(u32::MAX);
                pictures.iter().map(|picture| view.of(&resized(picture, side, side))).collect()
            }
        };
        let described = describe(encoder, &seen.iter().collect::<Vec<_>>());
        described.with_context(|| format!("describe pictures by {}", measure.word()))
    }
}

/// Cosines of two pictures by the networks that tell subjects apart.
#[derive(Clone, Copy, Debug)]
pub struct PartCosines([f64; 3]);

impl PartCosines {
    /// Each part's name, its cosine, and what that is worth from 0 (as of two subjects) to 4 (as of two pictures of one).
    pub fn parts(&self) -> [(&'static str, f64, u8); 3] {
        let Self([look, colours, outline]) = *self;
        [
            ("look", look, limits(SUBJECT_FIGURES).score(look)),
            ("colours", colours, limits(COLOUR_FIGURES).score(colours)),
            ("outline", outline, limits(OUTLINE_FIGURES).score(outline)),
        ]
    }
}

/// Least cosines of the scores 1 to 4, by those of composed pictures of held-out subjects: above three quarters of those of
/// two subjects; above 19 of 20 of them; above one in 20 of those of one subject; above a quarter of them.
#[derive(Debug)]
struct Limits([f64; 4]);

impl Limits {
    fn score(&self, cosine: f64) -> u8 {
        self.0.iter().filter(|least| cosine >= **least).count() as u8
    }
}

/// Of an encoder, by its figures; nothing is ever worth more than 0 where they are not there, which a test looks at.
fn limits(figures: &str) -> Limits {
    let figures: serde_json::Value = serde_json::from_str(figures).unwrap_or_default();
    let of = |which: &str, part: &str| figures["held_out"][which][part].as_f64().unwrap_or(f64::INFINITY);
    let mut limits = [
        of("cosine_other_subject", "p75"),
        of("cosine_other_subject", "p95"),
        of("cosine_same_subject", "p05"),
        of("cosine_same_subject", "p25"),
    ];
    // Of a weak encoder the two distributions overlap.
    limits.sort_by(f64::total_cmp);
    Limits(limits)
}

fn shipped(bytes: &[u8], device: Device) -> Result<DinoV2> {
    let mut file = tempfile::NamedTempFile::new().context("write a shipped image encoder")?;
    file.write_all(bytes).context("write a shipped image encoder")?;
    DinoV2::load(file.path(), device).context("load a shipped image encoder")
}

/// What the galleries of subjects are compared by.
const OF_SUBJECTS: [Measure; 3] = [Measure::Subject, Measure::Colour, Measure::Outline];

/// Encoders with the gallery of a set, and with its references among other pictures of their subjects, described once.
pub struct Judge<'a> {
    encoders: &'a Encoders,
    cases: &'a [EvalCase],
    /// Of each of [`OF_SUBJECTS`], every subject.
    galleries: [Vec<Vec<f32>>; 3],
    /// Of each subject, other panels.
    layouts: Vec<Vec<Vec<f32>>>,
    /// Of all cases, one after the other.
    references: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Describes what drawings will be compared with.
    pub fn new(encoders: &'a Encoders, set: &'a EvalSet) -> Result<Self> {
        let panels: Vec<RgbImage> = set.gallery.iter().map(|entry| entry.panel.clone()).collect();
        let mut galleries = [Vec::new(), Vec::new(), Vec::new()];
        for (gallery, measure) in galleries.iter_mut().zip(OF_SUBJECTS) {
            *gallery = encoders.describe(measure, &panels)?;
        }
        let layouts: Vec<RgbImage> =
            set.gallery.iter().flat_map(|entry| entry.layouts.iter().cloned()).collect();
        let mut described = encoders.describe(Measure::Copy, &layouts)?.into_iter();
        let layouts =
            set.gallery.iter().map(|entry| described.by_ref().take(entry.layouts.len()).collect()).collect();
        let references: Vec<RgbImage> =
            set.cases.iter().flat_map(|case| case.references.iter().cloned()).collect();
        let references = encoders.describe(Measure::Copy, &references)?;
        Ok(Self { encoders, cases: &set.cases, galleries, layouts, references })
    }

    /// Scores one picture a case, in their order. Subjects of a picture that shows several are cut out where the prompt wants
    /// each of them.
    pub fn score<'p>(&self, pictures: impl IntoIterator<Item = &'p RgbImage>) -> Result<Scores> {
        let pictures: Vec<RgbImage> = pictures.into_iter().cloned().collect();
        let mut scores = Scores::new();
        self.score_subjects(&pictures, &mut scores)?;
        self.score_prompts(&pictures, &mut scores)?;
        self.score_copies(&pictures, &mut scores)?;
        scores.retain(|_, score| score.draws() > 0);
        Ok(scores)
    }

    fn note(&self, scores: &mut Scores, measure: Measure, subject: usize, assigned: Assigned) {
        let score = scores.entry(measure).or_default();
        score.per_subject.resize(self.galleries[0].len(), Vec::new());
        if let Some(draws) = score.per_subject.get_mut(subject) {
            draws.push(assigned);
        }
    }

    fn score_subjects(&self, pictures: &[RgbImage], scores: &mut Scores) -> Result<()> {
        let mut cuts = Vec::new();
        for (case, picture) in self.cases.iter().zip(pictures) {
            for place in &case.places {
                cuts.push(if case.subjects.len() == 1 {
                    picture.clone()
                } else {
                    let [x, y, side] = square_around(place, picture.width().min(picture.height()));
                    let cut = crop_imm(picture, x, y, side, side).to_image();
                    resize(&cut, picture.width(), picture.height(), FilterType::CatmullRom)
                });
            }
        }
        for (measure, gallery) in OF_SUBJECTS.into_iter().zip(&self.galleries) {
            let features = self.encoders.describe(measure, &cuts)?;
            let asked = self.cases.iter().flat_map(|case| case.subjects.iter().zip(&case.choices));
            for ((subject, choices), feature) in asked.zip(&features) {
                let rows: Vec<&[f32]> =
                    choices.iter().filter_map(|n| gallery.get(*n)).map(Vec::as_slice).collect();
                let right = nearest(feature, &rows).is_some_and(|n| choices.get(n) == Some(subject));
                self.note(scores, measure, *subject, Assigned { right, candidates: choices.len() });
            }
        }
        Ok(())
    }

    fn score_prompts(&self, pictures: &[RgbImage], scores: &mut Scores) -> Result<()> {
        let features = self.encoders.describe(Measure::Prompt, pictures)?;
        for (case, feature) in self.cases.iter().zip(&features) {
            let (Some(asked), Some(subject)) = (&case.asked, case.subjects.first()) else { continue };
            let parts = prompt_parts(asked, feature);
            for (measure, assigned) in &parts {
                self.note(scores, *measure, *subject, *assigned);
            }
            let all = Assigned {
                right: parts.iter().all(|(_, part)| part.right),
                candidates: parts.iter().map(|(_, part)| part.candidates).product(),
            };
            self.note(scores, Measure::Prompt, *subject, all);
        }
        Ok(())
    }

    fn score_copies(&self, pictures: &[RgbImage], scores: &mut Scores) -> Result<()> {
        let features = self.encoders.describe(Measure::Copy, pictures)?;
        let mut references = self.references.iter();
        for (case, feature) in self.cases.iter().zip(&features) {
            for (subject, reference) in
                case.subjects.iter().zip(references.by_ref().take(case.references.len()))
            {
                let others = self.layouts.get(*subject).map_or(&[][..], Vec::as_slice);
                let rows: Vec<&[f32]> = std::iter::once(reference).chain(others).map(Vec::as_slice).collect();
                if rows.len() > 1 {
                    let right = nearest(feature, &rows) == Some(0);
                    self.note(scores, Measure::Copy, *subject, Assigned { right, candidates: rows.len() });
                }
            }
        }
        Ok(())
    }
}

/// What is read of a picture, and whether the prompt asked for it. A part with nothing to choose from is left out.
fn prompt_parts(asked: &Asked, feature: &[f32]) -> Vec<(Measure, Assigned)> {
    let mut parts = Vec::new();
    let mut read = |measure, segment, phrases: &[String], right: Option<usize>| {
        if phrases.len() > 1 && right.is_some() {
            let right = nearest_phrase(segment, feature, phrases) == right;
            parts.push((measure, Assigned { right, candidates: phrases.len() }));
        }
    };
    let scenes: Vec<String> = std::iter::once(&asked.scene).chain(&asked.other_scenes).cloned().collect();
    read(Measure::Scene, Segment::Scene, &scenes, Some(0));
    let subjects = asked.placements.len();
    let places = arrangements(subjects);
    let placed = arrangement(asked.placements.iter().map(|placement| placement.position));
    read(Measure::Place, Segment::Place, &places, places.iter().position(|place| *place == placed));
    read(Measure::Count, Segment::Count, &counts(), (subjects <= MOST_COUNTED).then_some(subjects));
    parts
}

/// Left, top and side of the square cut around a subject: a little wider than the subject, inside a picture of `limit`
/// pixels each way.
fn square_around(place: &Region, limit: u32) -> [u32; 3] {
    const MARGIN: f32 = 1.2;
    let side = (place.width.max(place.height) * MARGIN).ceil().clamp(1.0, limit as f32);
    let start =
        |low: f32, extent: f32| (low + extent / 2.0 - side / 2.0).round().clamp(0.0, limit as f32 - side);
    [start(place.x, place.width) as u32, start(place.y, place.height) as u32, side as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_stays_inside_the_picture() {
        let place = |x, y, width, height| Region { x, y, width, height };
        assert_eq!(square_around(&place(10.0, 10.0, 10.0, 5.0), 32), [9, 7, 12]);
        assert_eq!(square_around(&place(28.0, 0.0, 4.0, 40.0), 32), [0, 0, 32]);
        let [x, y, side] = square_around(&place(30.0, 31.0, 9.0, 9.0), 32);
        assert!(x + side <= 32 && y + side <= 32, "{x} {y} {side}");
    }

    #[test]
    fn a_score_rises_with_the_cosine_and_ends_at_four() {
        for figures in [SUBJECT_FIGURES, COLOUR_FIGURES, OUTLINE_FIGURES] {
            let limits = limits(figures);
            assert!(limits.0.iter().all(|limit| limit.is_finite() && *limit < 1.0), "{limits:?}");
            let scores: Vec<u8> = (-20..=20).map(|n| limits.score(f64::from(n) / 20.0)).collect();
            assert!(scores.is_sorted() && scores[0] == 0 && scores[40] == 4, "{scores:?}");
        }
    }

    #[test]
    fn the_shipped_encoders_load_and_tell_pictures_apart() {
        let encoders = Encoders::open(None, Device::Cpu).unwrap();
        let plain = |shade| RgbImage::from_pixel(32, 32, image::Rgb([shade, 40, 40]));
        let pictures = [plain(10), plain(240), plain(10)];
        for measure in [Measure::Subject, Measure::Colour, Measure::Outline, Measure::Prompt] {
            let described = encoders.describe(measure, &pictures).unwrap();
            let apart = |one: &[f32], other: &[f32]| -> f32 {
                one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            // Some kernels round a row of a batch by its place.
            assert!(apart(&described[0], &described[2]) < 1e-5, "{measure:?}");
            assert!(apart(&described[0], &described[1]) > 1e-3, "{measure:?}");
        }
    }
}
