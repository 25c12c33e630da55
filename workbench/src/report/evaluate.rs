//! Scores what is drawn: is the nearest subject, by the image encoder, the right one?

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use crescendo_curator_node::filters::similarity::describe;
use crescendo_curator_node::sources::compose::{EvalCase, EvalSet, Region};
use crescendo_model::dinov2::DinoV2;
use crescendo_model::tch::Device;
use image::RgbImage;
use image::imageops::{FilterType, crop_imm, resize};

use super::cases::Places;
use super::score::{Assigned, Score, nearest};

/// The encoder that comes with this program, for jobs that name none.
const SHIPPED: &[u8] = include_bytes!("../../../assets/nano/dinov2-nano.safetensors");
/// How it is called.
const SHIPPED_NAME: &str = "dinov2-nano, as shipped";

/// An image encoder and how a reader may know it.
pub struct Encoder {
    pub name: String,
    network: DinoV2,
}

impl Encoder {
    /// That of the first similarity filter of the job, or else the shipped one; with a sentence where it is not the job's.
    pub fn open(places: &Places, device: Device) -> Result<(Self, Option<String>)> {
        let named = places.spec.stages.iter().find_map(|stage| stage.data.filter.similarity.as_ref());
        let Some(filter) = named else {
            let note = "no stage names an image encoder (data.filter.similarity), so the shipped one compares; it was trained on drawings of \
                        things, 32 pixels wide";
            return Ok((Self::shipped(device)?, Some(note.to_owned())));
        };
        let load = || -> Result<DinoV2> {
            let path: PathBuf = places.resolve(&filter.encoder)?;
            Ok(DinoV2::load(&path, device)?)
        };
        match load() {
            Ok(network) => Ok((Self { name: filter.encoder.clone(), network }, None)),
            Err(error) => {
                let note = format!(
                    "the job's image encoder cannot be used here, so the shipped one compares: {error:#}"
                );
                Ok((Self::shipped(device)?, Some(note)))
            }
        }
    }

    fn shipped(device: Device) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new().context("write the shipped image encoder")?;
        file.write_all(SHIPPED).context("write the shipped image encoder")?;
        let network = DinoV2::load(file.path(), device).context("load the shipped image encoder")?;
        Ok(Self { name: SHIPPED_NAME.to_owned(), network })
    }
}

/// An encoder with a gallery of subjects described once.
pub struct Judge<'a> {
    encoder: &'a Encoder,
    gallery: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Describes the gallery.
    pub fn new(encoder: &'a Encoder, set: &EvalSet) -> Result<Self> {
        let panels: Vec<&RgbImage> = set.gallery.iter().map(|entry| &entry.panel).collect();
        let gallery = describe(&encoder.network, &panels).context("describe the gallery")?;
        Ok(Self { encoder, gallery })
    }

    /// Scores one picture a case. A picture with several subjects is cut where the prompt wants each of them.
    pub fn score<'p>(
        &self,
        cases: &[EvalCase],
        pictures: impl IntoIterator<Item = &'p RgbImage>,
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
        let features = describe(&self.encoder.network, &cuts.iter().collect::<Vec<_>>());
        let features = features.context("describe pictures")?;
        let mut per_subject = vec![Vec::new(); self.gallery.len()];
        let asked = cases.iter().flat_map(|case| case.subjects.iter().zip(&case.choices));
        for ((subject, choices), feature) in asked.zip(&features) {
            let rows: Vec<&[f32]> = choices.iter().map(|&n| self.gallery[n].as_slice()).collect();
            let right = nearest(feature, &rows).is_some_and(|n| choices[n] == *subject);
            per_subject[*subject].push(Assigned { right, candidates: choices.len() });
        }
        Ok(Score { per_subject })
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
    fn the_shipped_encoder_loads_and_tells_pictures_apart() {
        let encoder = Encoder::shipped(Device::Cpu).unwrap();
        let plain = |shade| RgbImage::from_pixel(32, 32, image::Rgb([shade, 40, 40]));
        let described = describe(&encoder.network, &[&plain(10), &plain(240), &plain(10)]).unwrap();
        let apart = |one: &[f32], other: &[f32]| -> f32 {
            one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        // Some kernels round a row of a batch by its place.
        assert!(apart(&described[0], &described[2]) < 1e-5);
        assert!(apart(&described[0], &described[1]) > 1e-3);
    }
}
