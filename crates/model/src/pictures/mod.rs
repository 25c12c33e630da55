//! Pictures from files to what networks take, pixel for pixel as the published code does it.
//!
//! ```text
//!   file ──decode──▶ Picture (its own channels) ──┬─ reference: long side, Lanczos, crop ──▶ RGB
//!                                                 ├─ to_rgb ─┬─ bucket: stretched, bilinear ──▶ tensor in [−1, 1]
//!                                                 │          └─ processor: CLIP, DINO ──▶ normalised tensor
//! ```
//!
//! - [`Picture::open`]: PNG, JPEG, WebP, GIF within [`MAX_PIXELS`] and [`MAX_FILE_BYTES`];
//! - [`resample`]: the 8-bit resampler of Pillow, bit for bit;
//! - [`reference`](mod@reference): references for inference; [`bucket`]: training sizes; [`processor`]: what CLIP and DINO look at.
//!
//! No orientation stored beside the pixels is applied: the published code does not apply it either.

pub mod bucket;
mod decode;
pub mod processor;
pub mod reference;
pub mod resample;

use image::RgbImage;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};

/// Pixels beyond which a picture is refused before its pixels are decoded: 8192 x 8192.
pub const MAX_PIXELS: u64 = 1 << 26;
/// Size of a picture file beyond which it is not read.
pub const MAX_FILE_BYTES: u64 = 1 << 28;

/// What the values of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    Gray,
    GrayAlpha,
    Rgb,
    /// Alpha is straight, not multiplied in.
    Rgba,
    /// One index into the palette.
    Indexed,
}

impl Channels {
    /// Bytes of a pixel.
    pub fn count(self) -> usize {
        match self {
            Self::Gray | Self::Indexed => 1,
            Self::GrayAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// A decoded picture, 8 bits a value, in the channels that its file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    channels: Channels,
    /// Row by row, `width · height · channels.count()`.
    bytes: Vec<u8>,
    /// Colours of [`Channels::Indexed`]; indices beyond its end are black.
    palette: Vec<[u8; 3]>,
}

impl Picture {
    /// A picture from its pixels, row by row.
    pub fn from_pixels(width: u32, height: u32, channels: Channels, bytes: Vec<u8>) -> Result<Self> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MAX_PIXELS {
            return Err(ModelError::input(
                "picture",
                format!("{width}x{height} is not 1 to {MAX_PIXELS} pixels"),
            ));
        }
        if bytes.len() as u64 != pixels * channels.count() as u64 {
            return Err(ModelError::input(
                "picture",
                format!("{} bytes are not {width}x{height} pixels of {}", bytes.len(), channels.count()),
            ));
        }
        Ok(Self { width, height, channels, bytes, palette: Vec::new() })
    }

    /// A picture of palette indices; colours from 256 on are out of reach of an index.
    pub fn from_palette(width: u32, height: u32, indices: Vec<u8>, palette: Vec<[u8; 3]>) -> Result<Self> {
        let mut picture = Self::from_pixels(width, height, Channels::Indexed, indices)?;
        picture.palette = palette;
        Ok(picture)
    }

    /// `(width, height)`, pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The pixels, row by row, as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// [`Picture::to_rgb`], without a copy of pixels that are RGB already.
    pub fn into_rgb(self) -> RgbImage {
        match self.channels {
            Channels::Rgb => rgb_image(self.width, self.height, self.bytes),
            Channels::Gray | Channels::GrayAlpha | Channels::Rgba | Channels::Indexed => self.to_rgb(),
        }
    }

    /// Three channels: grey repeated, palette looked up, alpha dropped without a background.
    pub fn to_rgb(&self) -> RgbImage {
        let count = self.channels.count();
        let mut rgb = Vec::with_capacity(self.bytes.len() / count * 3);
        for pixel in self.bytes.chunks_exact(count) {
            rgb.extend_from_slice(&match (self.channels, pixel) {
                (Channels::Indexed, [index, ..]) => {
                    self.palette.get(usize::from(*index)).copied().unwrap_or_default()
                }
                (_, [r, g, b, ..]) => [*r, *g, *b],
                (_, [gray, ..]) => [*gray; 3],
                (_, []) => [0; 3],
            });
        }
        rgb_image(self.width, self.height, rgb)
    }
}

impl From<RgbImage> for Picture {
    fn from(picture: RgbImage) -> Self {
        let (width, height) = picture.dimensions();
        Self { width, height, channels: Channels::Rgb, bytes: picture.into_raw(), palette: Vec::new() }
    }
}

/// `rgb` holds three bytes for each pixel.
fn rgb_image(width: u32, height: u32, rgb: Vec<u8>) -> RgbImage {
    // The sizes agree by construction; an empty picture is what is left if a caller broke that.
    RgbImage::from_raw(width, height, rgb).unwrap_or_default()
}

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
    Ok(rgb_image(width as u32, height as u32, Vec::<u8>::try_from(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_of_pixel_becomes_rgb() {
        let rgb = |channels, bytes: &[u8]| {
            let picture = Picture::from_pixels(1, 1, channels, bytes.to_vec());
            picture.map(|p| {
                assert_eq!(p.to_rgb(), p.clone().into_rgb());
                p.into_rgb().into_raw()
            })
        };
        assert_eq!(rgb(Channels::Gray, &[7]).ok(), Some(vec![7, 7, 7]));
        assert_eq!(rgb(Channels::GrayAlpha, &[7, 0]).ok(), Some(vec![7, 7, 7]));
        assert_eq!(rgb(Channels::Rgb, &[1, 2, 3]).ok(), Some(vec![1, 2, 3]));
        assert_eq!(rgb(Channels::Rgba, &[1, 2, 3, 0]).ok(), Some(vec![1, 2, 3]));
        let indexed = Picture::from_palette(2, 1, vec![1, 2], vec![[0; 3], [9, 8, 7]]).expect("fits");
        assert_eq!(indexed.to_rgb().into_raw(), [9, 8, 7, 0, 0, 0]);
    }

    #[test]
    fn pixels_that_do_not_fit_their_size_are_refused() {
        for (width, height, bytes) in [(0, 5, 0), (1, 1, 2), (1 << 14, 1 << 14, 0)] {
            assert!(Picture::from_pixels(width, height, Channels::Gray, vec![0; bytes]).is_err());
        }
    }

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
