//! What the panels of a step are, and what their vectors are to be.

use anyhow::Result;
use crescendo_curator_node::rng::SeededRng;
use crescendo_curator_node::sources::compose::{Composer, Panel};
use crescendo_model::tch::{Device, Kind, Tensor};

use super::{Reads, TrainEncoderArgs, softened};
use crate::measures::phrases::{MOST_COUNTED, Segment, arrangement, arrangements, counts};

/// Layouts of each subject in a step: so many of one subject have to be told apart.
const LAYOUTS: usize = 6;
/// Weight of one subject, of two and so on among the panels of a step that show any; one in ten shows none.
const SHARES: [usize; MOST_COUNTED] = [4, 3, 1, 1];

/// In words, for the figures.
pub fn words(reads: Reads) -> &'static str {
    match reads {
        Reads::Subject => "NT-Xent between two composed panels of a training subject",
        Reads::Colour => {
            "NT-Xent between two composed panels of a training subject, their pixels in random order"
        }
        Reads::Outline => "NT-Xent between two composed panels of a training subject without colour",
        Reads::Layout => {
            "NT-Xent between two panels of a training subject at the same place, as large and in the same direction, in two scenes"
        }
        Reads::Prompt => {
            "cross-entropy of the cosines with the phrases of scene, place and number of subjects"
        }
    }
}

/// Panels and what is wanted of their vectors.
pub struct Batch {
    /// Planar RGB in `[0, 1]` of each.
    pub pixels: Vec<f32>,
    pub wanted: Wanted,
}

/// What is wanted of a step's vectors.
pub enum Wanted {
    /// The first half and the second show the same, in the same order.
    Partners,
    /// Of each segment: vectors of the phrases that occur, and which of them each panel shows; none shows −100.
    Phrases(Vec<(Segment, Tensor, Tensor)>),
}

impl Wanted {
    /// Of vectors `[panels, width]`.
    pub fn loss(&self, vectors: &Tensor, temperature: f64) -> Result<Tensor> {
        match self {
            Wanted::Partners => contrast(vectors, temperature),
            Wanted::Phrases(segments) => {
                let mut sum = Tensor::f_zeros([], (Kind::Float, Device::Cpu))?;
                for (segment, phrases, shown) in segments {
                    let part = vectors.f_narrow(1, segment.start() as i64, segment.width() as i64)?;
                    let scores =
                        unit(&part)?.f_matmul(&phrases.f_transpose(0, 1)?)?.f_div_scalar(temperature)?;
                    let loss = scores.f_cross_entropy_loss::<Tensor>(
                        shown,
                        None,
                        crescendo_model::tch::Reduction::Mean,
                        NOTHING,
                        0.0,
                    )?;
                    sum = sum.f_add(&loss)?;
                }
                Ok(sum)
            }
        }
    }
}

/// Of a panel that shows nothing of a segment.
const NOTHING: i64 = -100;

/// Gives the panels of each step.
pub struct Batches<'a> {
    args: &'a TrainEncoderArgs,
    composer: &'a Composer,
    /// Subjects of a step.
    subjects: usize,
    order: Vec<usize>,
    next: usize,
    shuffling: SeededRng,
}

impl<'a> Batches<'a> {
    pub fn new(args: &'a TrainEncoderArgs, composer: &'a Composer) -> Self {
        let all = composer.training_subjects().len();
        let subjects = match args.reads {
            Reads::Layout => (args.batch / LAYOUTS).max(1),
            _ => args.batch,
        };
        Self {
            args,
            composer,
            subjects: subjects.min(all),
            order: (0..all).collect(),
            next: all,
            shuffling: SeededRng::new("encoder order", &[args.seed]),
        }
    }

    pub fn next(&mut self, step: u64) -> Result<Batch> {
        match self.args.reads {
            Reads::Prompt => self.panels(step),
            _ => self.partners(step),
        }
    }

    /// Subjects of this step: every one once before any comes again.
    fn turn(&mut self) -> Vec<usize> {
        if self.next + self.subjects > self.order.len() {
            self.shuffling.shuffle(&mut self.order);
            self.next = 0;
        }
        self.next += self.subjects;
        self.order[self.next - self.subjects..self.next].to_vec()
    }

    fn partners(&mut self, step: u64) -> Result<Batch> {
        let seed = self.args.seed;
        let mut panels = [Vec::new(), Vec::new()];
        for subject in self.turn() {
            let several = if self.args.reads == Reads::Layout { LAYOUTS as u64 } else { 1 };
            for number in step * several..(step + 1) * several {
                let views = match self.args.reads {
                    Reads::Layout => self.composer.training_layout(subject, number)?,
                    _ => self.composer.training_views(subject, number)?,
                };
                for (side, (view, of)) in views.iter().zip(&mut panels).enumerate() {
                    let key = [seed, number, subject as u64, side as u64];
                    let mut draw = SeededRng::new("encoder view", &key);
                    let mut planes = softened(view, &mut draw);
                    self.args.reads.view().apply(&mut planes, &mut draw);
                    of.push(planes);
                }
            }
        }
        Ok(Batch { pixels: panels.concat().concat(), wanted: Wanted::Partners })
    }

    fn panels(&self, step: u64) -> Result<Batch> {
        let (mut pixels, mut shown) = (Vec::new(), Vec::new());
        let panels = 2 * self.args.batch as u64;
        for number in step * panels..(step + 1) * panels {
            let mut draw = SeededRng::new("prompt view", &[self.args.seed, number]);
            let panel = self.composer.training_panel(subjects_shown(&mut draw), number)?;
            pixels.extend(softened(&panel.picture, &mut draw));
            shown.push(panel);
        }
        let scenes = |panel: &Panel| Some(panel.scene.clone());
        let mut segments = vec![
            wanted(Segment::Scene, &shown, None, scenes)?,
            wanted(Segment::Count, &shown, Some(counts()), |panel| {
                counts().get(panel.placements.len()).cloned()
            })?,
        ];
        // Arrangements of one subject and of several are told apart among themselves.
        for count in 1..=MOST_COUNTED {
            let of = arrangements(count);
            if shown.iter().any(|panel| panel.placements.len() == count) && of.len() > 1 {
                segments.push(wanted(Segment::Place, &shown, Some(of), |panel| {
                    (panel.placements.len() == count).then(|| placed(panel))
                })?);
            }
        }
        Ok(Batch { pixels, wanted: Wanted::Phrases(segments) })
    }
}

/// Where the subjects of a panel are, in words.
pub fn placed(panel: &Panel) -> String {
    arrangement(panel.placements.iter().map(|placement| placement.position))
}

/// How many subjects a panel is to show.
pub fn subjects_shown(draw: &mut SeededRng) -> usize {
    if draw.chance(0.1) {
        return 0;
    }
    let mut left = draw.below(SHARES.iter().sum());
    for (n, share) in SHARES.iter().enumerate() {
        match left.checked_sub(*share) {
            Some(less) => left = less,
            None => return n + 1,
        }
    }
    SHARES.len()
}

/// Vectors of `phrases`, or of all that the panels show, and which of them each panel shows.
fn wanted(
    segment: Segment,
    panels: &[Panel],
    phrases: Option<Vec<String>>,
    of: impl Fn(&Panel) -> Option<String>,
) -> Result<(Segment, Tensor, Tensor)> {
    let phrases = phrases.unwrap_or_else(|| {
        let mut all: Vec<String> = panels.iter().filter_map(&of).collect();
        all.sort_unstable();
        all.dedup();
        all
    });
    let rows: Vec<f32> = phrases.iter().flat_map(|words| segment.phrase(words)).collect();
    let vectors = Tensor::f_from_slice(&rows)?.f_view([phrases.len() as i64, segment.width() as i64])?;
    let index = |words: String| phrases.iter().position(|phrase| *phrase == words).map(|n| n as i64);
    let shown: Vec<i64> = panels.iter().map(|panel| of(panel).and_then(index).unwrap_or(NOTHING)).collect();
    Ok((segment, vectors, Tensor::f_from_slice(&shown)?))
}

/// Rows at length 1.
fn unit(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?.f_clamp_min(1e-6)?;
    Ok(vectors.f_div(&length)?)
}

/// NT-Xent of vectors `[2 * n, width]`, where n and n + i show the same subject.
fn contrast(vectors: &Tensor, temperature: f64) -> Result<Tensor> {
    let count = vectors.size().first().copied().unwrap_or(0);
    let unit = unit(vectors)?;
    let own = Tensor::f_eye(count, (Kind::Float, Device::Cpu))?.f_mul_scalar(1e9)?;
    let scores = unit.f_matmul(&unit.f_transpose(0, 1)?)?.f_div_scalar(temperature)?.f_sub(&own)?;
    let half = count / 2;
    let partner: Vec<i64> = (0..count).map(|n| (n + half) % count).collect();
    Ok(scores.f_cross_entropy_loss::<Tensor>(
        &Tensor::f_from_slice(&partner)?,
        None,
        crescendo_model::tch::Reduction::Mean,
        NOTHING,
        0.0,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_small_when_partners_agree() {
        let apart = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let agreeing = Tensor::cat(&[&apart, &apart], 0);
        let crossed = Tensor::cat(&[&apart, &apart.roll([1], [0])], 0);
        let loss = |vectors: &Tensor| contrast(vectors, 0.1).expect("loss").double_value(&[]);
        assert!(loss(&agreeing) < 0.01, "{}", loss(&agreeing));
        assert!(loss(&crossed) > 5.0, "{}", loss(&crossed));
    }

    #[test]
    fn phrases_are_wanted_of_those_that_show_them() {
        let phrases = counts();
        let rows: Vec<f32> = phrases.iter().flat_map(|words| Segment::Count.phrase(words)).collect();
        let vectors = Tensor::from_slice(&rows).view([phrases.len() as i64, Segment::Count.width() as i64]);
        let loss = |shown: &[i64]| {
            let wanted =
                Wanted::Phrases(vec![(Segment::Count, vectors.shallow_clone(), Tensor::from_slice(shown))]);
            let before = Tensor::zeros(
                [shown.len() as i64, Segment::Count.start() as i64],
                (Kind::Float, Device::Cpu),
            );
            let pooled = Tensor::cat(&[before, vectors.narrow(0, 0, shown.len() as i64)], 1);
            wanted.loss(&pooled, 0.05).expect("loss").double_value(&[])
        };
        assert!(loss(&[0, 1, NOTHING]) < 0.01);
        assert!(loss(&[1, 0, NOTHING]) > 5.0);
    }

    #[test]
    fn every_number_of_subjects_is_shown() {
        let mut draw = SeededRng::new("shown", &[1]);
        let mut seen = [0usize; MOST_COUNTED + 1];
        (0..2000).for_each(|_| seen[subjects_shown(&mut draw)] += 1);
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }
}
