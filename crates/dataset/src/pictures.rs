//! Pictures from files to pixels, bit for bit as the published code has them. What networks take is made of them in
//! `crescendo-model`.
//!
//! ```text
//!   file ──decode──▶ Picture (its own channels) ──┬─ reference: long side, Lanczos, crop ──▶ RGB
//!                                                 └─ to_rgb ─▶ bucket: the size that it is trained at
//! ```
//!
//! - [`Picture::open`]: PNG, JPEG, WebP, GIF within [`MAX_PIXELS`] and [`MAX_FILE_BYTES`];
//! - [`resample`]: the 8-bit resampler of Pillow;
//! - [`reference`](mod@reference): references for inference; [`bucket`]: training sizes.
//!
//! Of an orientation stored beside the pixels [`Picture::open`] knows nothing, as the published code; [`Picture::open_as`] turns.

pub mod bucket;
mod decode;
pub mod reference;
pub mod resample;

use std::path::PathBuf;

use image::RgbImage;

/// Why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("cannot access {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Unreadable, too large, or of a shape that nothing can be made of.
    #[error("picture {name}: {reason}")]
    Picture { name: String, reason: String },
    /// What is asked for does not fit the picture.
    #[error("input {name}: {reason}")]
    Input { name: &'static str, reason: String },
}

impl PictureError {
    fn input(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { name, reason: reason.into() }
    }
}

pub type Result<T, E = PictureError> = std::result::Result<T, E>;

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
            return Err(PictureError::input(
                "picture",
                format!("{width}x{height} is not 1 to {MAX_PIXELS} pixels"),
            ));
        }
        if bytes.len() as u64 != pixels * channels.count() as u64 {
            return Err(PictureError::input(
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
}
