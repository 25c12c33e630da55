//! Training sizes: pictures of one batch position share one bucket and are stretched to it (upstream: UNO's dataset and
//! its collation).

use image::RgbImage;
use tch::Tensor;

use super::to_model_input;
use crate::error::{ModelError, Result};

/// Buckets `(height, width)` at resolution 512, in the order in which ties are decided.
pub const BUCKETS: [(u32, u32); 11] = [
    (256, 768),
    (320, 768),
    (320, 704),
    (384, 640),
    (448, 576),
    (512, 512),
    (576, 448),
    (640, 384),
    (704, 320),
    (768, 320),
    (768, 256),
];

/// The resolution that [`BUCKETS`] are for.
const RESOLUTION: f64 = 512.0;

/// A bucket at another resolution: scaled and cut off, then floored to a multiple of 16.
fn scaled(side: u32, resolution: u32) -> u32 {
    (f64::from(side) / RESOLUTION * f64::from(resolution)) as u32 / 16 * 16
}

/// `(height, width)` that pictures of these `(height, width)` are brought to: the first bucket whose height / width
/// is nearest to the arithmetic mean of theirs.
pub fn choose(sizes: &[(u32, u32)], resolution: u32) -> Result<(u32, u32)> {
    choose_among(&BUCKETS, sizes, resolution)
}

/// [`choose`] with other buckets, `(height, width)` at resolution 512.
pub fn choose_among(buckets: &[(u32, u32)], sizes: &[(u32, u32)], resolution: u32) -> Result<(u32, u32)> {
    if sizes.is_empty() || sizes.iter().any(|(height, width)| *height == 0 || *width == 0) {
        return Err(ModelError::input("sizes", format!("{sizes:?} are not sizes of pictures")));
    }
    if !(32..=8192).contains(&resolution) {
        return Err(ModelError::input("resolution", format!("{resolution} is not between 32 and 8192")));
    }
    let ratios = sizes.iter().map(|(height, width)| f64::from(*height) / f64::from(*width));
    let mean = ratios.sum::<f64>() / sizes.len() as f64;
    let mut best = (f64::INFINITY, (0, 0));
    for (height, width) in buckets {
        let (height, width) = (scaled(*height, resolution), scaled(*width, resolution));
        if height == 0 || width == 0 {
            continue;
        }
        let distance = (f64::from(height) / f64::from(width) - mean).abs();
        if distance < best.0 {
            best = (distance, (height, width));
        }
    }
    if best.0.is_infinite() {
        return Err(ModelError::input("buckets", format!("none has pixels at resolution {resolution}")));
    }
    Ok(best.1)
}

/// Stretches a picture to `(height, width)`: `[3, height, width]` float32 in about [−1, 1], bilinear, antialiased, neither
/// rounded nor clamped to 8 bits on the way.
pub fn stretch(picture: &RgbImage, (height, width): (u32, u32)) -> Result<Tensor> {
    if height == 0 || width == 0 || height.max(width) > 8192 {
        return Err(ModelError::input(
            "size",
            format!("{height}x{width} is not between 1 and 8192 each way"),
        ));
    }
    let pixels = to_model_input(&[picture])?;
    let size = [i64::from(height), i64::from(width)];
    Ok(pixels.f_internal_upsample_bilinear2d_aa(size, false, None, None)?.f_squeeze_dim(0)?)
}

/// Chooses the bucket of the pictures and stretches them to it: `[n, 3, height, width]`.
pub fn stack(pictures: &[&RgbImage], resolution: u32) -> Result<Tensor> {
    let sizes: Vec<(u32, u32)> = pictures.iter().map(|p| (p.height(), p.width())).collect();
    let size = choose(&sizes, resolution)?;
    let stretched = pictures.iter().map(|picture| stretch(picture, size)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&stretched, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_ratios_decides() {
        assert_eq!(choose(&[(500, 500)], 512).ok(), Some((512, 512)));
        // Ratios 0.5 and 2: the mean is 1.25, not 1.
        assert_eq!(choose(&[(100, 200), (200, 100)], 512).ok(), Some((576, 448)));
        assert_eq!(choose(&[(1, 8000)], 512).ok(), Some((256, 768)));
    }

    #[test]
    fn sides_are_cut_off_twice() {
        // 448 / 512 · 320 = 280, floored to 272.
        assert_eq!(choose(&[(448, 576)], 320).ok(), Some((272, 352)));
    }

    #[test]
    fn sizes_that_make_no_bucket_are_refused() {
        assert!(
            choose(&[], 512).is_err() && choose(&[(0, 1)], 512).is_err() && choose(&[(1, 1)], 31).is_err()
        );
        assert!(stretch(&RgbImage::new(2, 2), (0, 16)).is_err());
        assert!(stretch(&RgbImage::new(0, 2), (16, 16)).is_err());
    }
}
