//! Scores what is drawn of held-out subjects: is the nearest subject, by the image encoder, the right one?

use anyhow::{Context as _, Result};
use crescendo_curator_node::compose::{EvalCase, EvalSet, Region};
use crescendo_model::dinov2::DinoV2;
use crescendo_model::pictures::to_unit_range;
use crescendo_model::tch::{Tensor, no_grad};
use image::RgbImage;
use image::imageops::{FilterType, crop_imm, resize};

use super::score::{Score, nearest};

/// Pictures that the encoder describes together.
const BATCH: usize = 64;

/// The encoder with the gallery of held-out subjects described once.
pub struct Judge<'a> {
    encoder: &'a DinoV2,
    gallery: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Describes the gallery.
    pub fn new(encoder: &'a DinoV2, set: &EvalSet) -> Result<Self> {
        let panels: Vec<&RgbImage> = set.gallery.iter().map(|entry| &entry.panel).collect();
        Ok(Self { encoder, gallery: describe(encoder, &panels).context("describe the gallery")? })
    }

    /// Scores one picture a case. A picture with several subjects is cut where the prompt wants each of them.
    pub fn score(
        &self,
        label: &str,
        references: u32,
        cases: &[EvalCase],
        pictures: &[RgbImage],
    ) -> Result<Score> {
        let mut cuts = Vec::new();
        for (case, picture) in cases.iter().zip(pictures) {
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
        let features =
            describe(self.encoder, &cuts.iter().collect::<Vec<_>>()).context("describe pictures")?;
        let mut per_subject = vec![Vec::new(); self.gallery.len()];
        let asked = cases.iter().flat_map(|case| case.subjects.iter().zip(&case.choices));
        for ((subject, choices), feature) in asked.zip(&features) {
            let rows: Vec<&[f32]> = choices.iter().map(|&n| self.gallery[n].as_slice()).collect();
            per_subject[*subject].push(nearest(feature, &rows).is_some_and(|n| choices[n] == *subject));
        }
        per_subject.retain(|draws| !draws.is_empty());
        Ok(Score { label: label.to_owned(), references, per_subject })
    }
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

/// Features of unit length, one row a picture.
fn describe(encoder: &DinoV2, pictures: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::with_capacity(pictures.len());
    for batch in pictures.chunks(BATCH) {
        let pixels = to_unit_range(batch)?;
        let features: Tensor = no_grad(|| encoder.describe(&pixels))?;
        for i in 0..features.size()[0] {
            rows.push(Vec::<f32>::try_from(features.f_get(i)?)?);
        }
    }
    Ok(rows)
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
}
