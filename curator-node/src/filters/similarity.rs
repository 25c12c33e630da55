//! The similarity filter: an image encoder compares each reference with the target.
//!
//! Too little alike means another subject; too much means a mere copy. The encoder knows nothing of the model that is
//! trained.

use crate::candidates::Rejected;
use crate::images;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec;
use crescendo_dataset::pair::Pair;
use crescendo_model::dinov2::DinoV2;
use crescendo_model::tch::{self, Device, Tensor};
use crescendo_model::{ModelError, Result};
use image::RgbImage;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Pictures described in one forward pass.
const BATCH: usize = 64;

/// An encoder with the limits of a stage.
#[derive(Debug)]
pub struct SimilarityFilter {
    encoder: DinoV2,
    min: f64,
    max: f64,
}

impl SimilarityFilter {
    /// Loads the encoder that `spec` names.
    pub fn open(spec: &spec::SimilarityFilter, encoder: &Path, device: Device) -> Result<SimilarityFilter> {
        Ok(SimilarityFilter { encoder: DinoV2::load(encoder, device)?, min: spec.min, max: spec.max })
    }

    /// Least cosine of what passes.
    pub fn min(&self) -> f64 {
        self.min
    }

    /// Largest cosine of what passes.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// Cosines of two pictures each.
    pub fn cosines(&self, pictures: &[(&RgbImage, &RgbImage)]) -> Result<Vec<f64>> {
        let flat: Vec<&RgbImage> = pictures.iter().flat_map(|(a, b)| [*a, *b]).collect();
        let vectors = describe(&self.encoder, &flat)?;
        Ok(vectors.chunks_exact(2).map(|two| dot(&two[0], &two[1])).collect())
    }

    /// Judges pairs, in their order: the pair with its score noted, or why it is rejected. A pair without references
    /// passes.
    pub fn judge(&self, pairs: Vec<Pair>) -> Result<Vec<Judged>> {
        let pictures: Vec<&RgbImage> =
            pairs.iter().flat_map(|p| std::iter::once(&p.target).chain(&p.references)).collect();
        let vectors = describe(&self.encoder, &pictures)?;
        let mut next = 0;
        let mut judged = Vec::with_capacity(pairs.len());
        for mut pair in pairs {
            let of_pair = vectors.get(next..=next + pair.references.len()).unwrap_or_default();
            next += 1 + pair.references.len();
            let (target, references) =
                of_pair.split_first().map_or((&[][..], of_pair), |(t, r)| (t.as_slice(), r));
            let cosines: Vec<f64> = references.iter().map(|reference| dot(target, reference)).collect();
            if let Some(lowest) = cosines.iter().copied().min_by(f64::total_cmp) {
                pair.scores.insert("similarity".to_owned(), (lowest * 1e6).round() / 1e6);
            }
            let verdict = verdict(&cosines, self.min, self.max);
            let outcome = match verdict {
                Ok(()) => Ok(pair),
                Err(reason) => Err(Rejected::of(reason, pair)),
            };
            judged.push(Judged { cosines, outcome });
        }
        Ok(judged)
    }
}

/// What the filter says of one pair.
#[derive(Debug)]
pub struct Judged {
    /// Of each reference with the target.
    pub cosines: Vec<f64>,
    pub outcome: std::result::Result<Pair, Rejected>,
}

/// Every reference has to be like the target, and none a copy of it.
pub(crate) fn verdict(cosines: &[f64], min: f64, max: f64) -> std::result::Result<(), Rejection> {
    // A vector that is not a number is like nothing.
    if cosines.iter().any(|c| c.is_nan() || *c < min) {
        Err(Rejection::SimilarityLow)
    } else if cosines.iter().any(|c| *c > max) {
        Err(Rejection::SimilarityHigh)
    } else {
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Vectors of length 1 of pictures of any size, in their order. A picture is scaled so that its longer side is the
/// encoder's, keeping its shape up to whole patches.
pub fn describe(encoder: &DinoV2, pictures: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
    let _guard = tch::no_grad_guard();
    let (side, patch) = (encoder.config().image_size, encoder.config().patch_size);
    let mut by_size: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
    for (n, picture) in pictures.iter().enumerate() {
        let longer = f64::from(picture.width().max(picture.height()).max(1));
        let scaled = |length: u32| {
            let patches = (f64::from(length) / longer * side as f64 / patch as f64).round().max(1.0);
            patches as u32 * patch as u32
        };
        by_size.entry((scaled(picture.width()), scaled(picture.height()))).or_default().push(n);
    }
    let mut vectors = vec![Vec::new(); pictures.len()];
    for ((width, height), numbers) in by_size {
        for chunk in numbers.chunks(BATCH) {
            let mut values = Vec::with_capacity(chunk.len() * 3 * (width * height) as usize);
            for n in chunk {
                let picture = pictures[*n];
                let fitted = if picture.dimensions() == (width, height) {
                    Cow::Borrowed(picture)
                } else {
                    Cow::Owned(images::resized(picture, width, height))
                };
                values.extend(images::planar(&fitted, 1.0 / 255.0, 0.0));
            }
            let pixels = Tensor::f_from_slice(&values)?.f_view([
                chunk.len() as i64,
                3,
                i64::from(height),
                i64::from(width),
            ])?;
            let described = encoder.describe(&pixels)?.f_to_device(Device::Cpu)?.f_contiguous()?;
            let wide = described.size().get(1).copied().unwrap_or(0) as usize;
            let mut flat = vec![0f32; chunk.len() * wide];
            let count = flat.len();
            described.f_copy_data(&mut flat, count)?;
            for (n, vector) in chunk.iter().zip(flat.chunks_exact(wide.max(1))) {
                vectors[*n] = vector.to_vec();
            }
        }
    }
    Ok(vectors)
}

/// Whether the limits of a filter can be met at all.
pub fn check_limits(spec: &spec::SimilarityFilter) -> Result<()> {
    if spec.min.is_nan() || spec.max.is_nan() || spec.min > spec.max {
        let reason = format!("min {} and max {} leave nothing", spec.min, spec.max);
        return Err(ModelError::Config { field: "filter.similarity", reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_model::dinov2::DinoV2Config;
    use image::Rgb;

    fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([(x * 7 + seed * 90) as u8, (y * 5 + seed * 60) as u8, (seed * 40) as u8])
        })
    }

    fn pair(target: RgbImage, references: Vec<RgbImage>) -> Pair {
        Pair {
            target,
            references,
            prompt: String::new(),
            reference_words: Vec::new(),
            scores: BTreeMap::new(),
            provenance: serde_json::Value::Null,
        }
    }

    fn filter(min: f64, max: f64) -> SimilarityFilter {
        let encoder = DinoV2::fresh(DinoV2Config::nano(), 3).expect("fresh weights");
        SimilarityFilter { encoder, min, max }
    }

    #[test]
    fn copies_and_strangers_are_told_from_what_is_between() {
        assert_eq!(verdict(&[0.5, 0.6], 0.4, 0.9), Ok(()));
        assert_eq!(verdict(&[0.5, 0.3], 0.4, 0.9), Err(Rejection::SimilarityLow));
        assert_eq!(verdict(&[0.5, 0.95], 0.4, 0.9), Err(Rejection::SimilarityHigh));
        assert_eq!(verdict(&[f64::NAN], -1.0, 1.0), Err(Rejection::SimilarityLow));
        assert_eq!(verdict(&[], 0.4, 0.9), Ok(()));
    }

    #[test]
    fn a_copy_has_cosine_one_and_order_is_kept() {
        let (a, b) = (picture(1, 32, 32), picture(2, 32, 32));
        let judged = filter(-1.0, 0.999)
            .judge(vec![pair(a.clone(), vec![a.clone()]), pair(a.clone(), vec![b.clone()]), pair(b, vec![])])
            .expect("judge");
        assert!((judged[0].cosines[0] - 1.0).abs() < 1e-5);
        let rejected = judged[0].outcome.as_ref().expect_err("a copy");
        assert_eq!(rejected.reason, Rejection::SimilarityHigh);
        assert!(rejected.pair.as_ref().is_some_and(|pair| pair.scores.contains_key("similarity")));
        let kept = judged[1].outcome.as_ref().expect("it passes");
        assert!((kept.scores["similarity"] - judged[1].cosines[0]).abs() < 1e-5);
        assert!(judged[2].outcome.is_ok() && judged[2].cosines.is_empty());
    }

    #[test]
    fn pictures_of_any_size_are_described() {
        let encoder = DinoV2::fresh(DinoV2Config::nano(), 3).expect("fresh weights");
        let pictures = [picture(1, 64, 64), picture(1, 200, 9), picture(2, 3, 500), picture(1, 32, 32)];
        let vectors = describe(&encoder, &pictures.iter().collect::<Vec<_>>()).expect("describe");
        for vector in &vectors {
            assert!((dot(vector, vector) - 1.0).abs() < 1e-4);
        }
        // One at a time gives the same as all at once.
        let alone = describe(&encoder, &[&pictures[2]]).expect("describe");
        assert!((dot(&alone[0], &vectors[2]) - 1.0).abs() < 1e-4);
    }
}
