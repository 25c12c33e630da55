//! Pictures stretched to a training size (upstream: UNO's dataset and its collation).

use image::RgbImage;
use tch::Tensor;

use super::{from_model_output, to_model_input};
use crate::error::{ModelError, Result};

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

/// [`stretch`] as a shard keeps it: rounded to 8 bits, which the published loader does not do, so that a value may be off
/// by half a level.
pub fn stretched(picture: &RgbImage, size: (u32, u32)) -> Result<RgbImage> {
    if picture.dimensions() == (size.1, size.0) {
        return Ok(picture.clone());
    }
    // `from_model_output` cuts off: half a level more rounds.
    from_model_output(&stretch(picture, size)?.f_add_scalar(0.5 / 127.5)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_keeps_the_nearest_level() {
        let picture = RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 255]));
        assert_eq!(stretched(&picture, (30, 40)).expect("its size"), picture);
        let kept = stretched(&picture, (16, 32)).expect("stretched");
        assert_eq!(kept.dimensions(), (32, 16));
        let exact = stretch(&picture, (16, 32)).expect("stretched");
        let off = to_model_input(&[&kept]).expect("fits").get(0) - exact;
        assert!(off.abs().max().double_value(&[]) <= 0.5 / 127.5 + 1e-6);
    }

    #[test]
    fn nothing_is_stretched_to_nothing() {
        assert!(stretch(&RgbImage::new(2, 2), (0, 16)).is_err());
        assert!(stretch(&RgbImage::new(0, 2), (16, 16)).is_err());
    }
}
