//! Pictures to what networks take, and back, as the published code does it. Files, resampling and sizes are
//! [`crescendo_dataset::pictures`].
//!
//! - [`bucket`]: stretched to a training size, bilinear; a tensor in [−1, 1];
//! - [`processor`]: what CLIP and DINO look at.

pub mod bucket;
pub mod processor;

use crescendo_dataset::pictures::MAX_PIXELS;
use image::RgbImage;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};

/// Pictures of one size to `[n, 3, height, width]` float32 in [−1, 1]: v / 255 · 2 − 1.
pub fn to_model_input(pictures: &[&RgbImage]) -> Result<Tensor> {
    Ok(to_unit_range(pictures)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
}

/// Pictures of one size to `[n, 3, height, width]` float32 in [0, 1].
pub fn to_unit_range(pictures: &[&RgbImage]) -> Result<Tensor> {
    Ok(planes(pictures)?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?)
}

/// Pictures of one size to `[n, 3, height, width]` uint8.
pub(crate) fn planes(pictures: &[&RgbImage]) -> Result<Tensor> {
    let Some(first) = pictures.first() else {
        return Err(ModelError::input("pictures", "there is none"));
    };
    let (width, height) = first.dimensions();
    if width == 0 || height == 0 {
        return Err(ModelError::input("pictures", format!("{width}x{height} has no pixels")));
    }
    let mut stacked = Vec::with_capacity(pictures.len());
    for picture in pictures {
        if picture.dimensions() != (width, height) {
            return Err(ModelError::input(
                "pictures",
                format!("{:?} and {:?} are stacked", picture.dimensions(), (width, height)),
            ));
        }
        let pixels = Tensor::f_from_slice(picture.as_raw())?;
        stacked.push(pixels.f_view([i64::from(height), i64::from(width), 3])?.f_permute([2, 0, 1])?);
    }
    Ok(Tensor::f_stack(&stacked, 0)?.f_contiguous()?)
}

/// `[3, height, width]` float in [−1, 1] to a picture, fractions cut off as the published code does.
pub fn from_model_output(pixels: &Tensor) -> Result<RgbImage> {
    let (channels, height, width) = pixels.size3()?;
    if channels != 3 || height < 1 || width < 1 || (height * width) as u64 > MAX_PIXELS {
        return Err(ModelError::input(
            "pixels",
            format!("shape {:?} is not [3, height, width]", pixels.size()),
        ));
    }
    let bytes = pixels
        .f_to_kind(Kind::Float)?
        .f_clamp(-1.0, 1.0)?
        .f_add_scalar(1.0)?
        .f_mul_scalar(127.5)?
        .f_permute([1, 2, 0])?
        .f_contiguous()?
        .f_to_kind(Kind::Uint8)?
        .f_reshape([-1])?;
    let bytes = Vec::<u8>::try_from(&bytes)?;
    // The sizes agree by construction.
    Ok(RgbImage::from_raw(width as u32, height as u32, bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_and_pictures_are_inverse_but_for_fractions() {
        let picture = RgbImage::from_fn(3, 2, |x, y| image::Rgb([(x * 100) as u8, (y * 255) as u8, 17]));
        let tensor = to_model_input(&[&picture]).expect("stacks");
        assert_eq!(tensor.size(), [1, 3, 2, 3]);
        let back = from_model_output(&tensor.get(0)).expect("fits");
        assert!(picture.as_raw().iter().zip(back.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1));
        assert!(to_model_input(&[]).is_err());
        assert!(to_model_input(&[&picture, &RgbImage::new(2, 2)]).is_err());
        assert!(from_model_output(&tensor.get(0).narrow(0, 0, 2)).is_err());
    }
}
