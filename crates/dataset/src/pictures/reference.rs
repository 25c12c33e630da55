//! Reference pictures for inference: long side, crop to whole tokens, colours (upstream: `preprocess_ref` of UNO's
//! pipeline).

use image::RgbImage;

use super::resample::{Filter, Window, resample};
use super::{Picture, PictureError, Result};

/// Side of a token of FLUX, pixels: two latent pixels of eight picture pixels each.
pub const FLUX_MULTIPLE: u32 = 16;
/// Longest side of a reference, pixels.
const LONGEST: u32 = 8192;

/// Long side of the references of one picture, pixels: 512 for a single reference, 320 for several.
pub fn long_side(references: usize) -> u32 {
    if references <= 1 { 512 } else { 320 }
}

/// How a reference is scaled, and which part of the scaled one is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceLayout {
    /// Size after scaling, pixels.
    pub width: u32,
    pub height: u32,
    /// What is kept of it; without pixels if a side is shorter than a token.
    pub kept: Window,
}

impl ReferenceLayout {
    /// The layout of a picture of `width` x `height` pixels with its long side at `long`, cropped to multiples of `multiple`:
    /// the side of a token of the network that sees it.
    ///
    /// The short side is `int((long / long_px) * short_px)` in float64 and in that order, which can be one pixel below the exact
    /// quotient; networks were trained with it.
    pub fn of(width: u32, height: u32, long: u32, multiple: u32) -> Self {
        let scaled =
            |side: u32, long_px: u32| (f64::from(long) / f64::from(long_px) * f64::from(side)) as u32;
        let (new_width, new_height) =
            if width >= height { (long, scaled(height, width)) } else { (scaled(width, height), long) };
        let multiple = multiple.max(1);
        let (kept_width, kept_height) = (new_width / multiple * multiple, new_height / multiple * multiple);
        Self {
            width: new_width,
            height: new_height,
            kept: Window {
                left: (new_width - kept_width) / 2,
                top: (new_height - kept_height) / 2,
                width: kept_width,
                height: kept_height,
            },
        }
    }
}

/// Scales and crops a reference: Lanczos in the picture's own channels, then three channels. `name` is how an error
/// calls the picture.
pub fn prepare(name: &str, picture: &Picture, long: u32, multiple: u32) -> Result<RgbImage> {
    let refused = |reason: String| PictureError::Picture { name: name.to_owned(), reason };
    if !(multiple.max(1)..=LONGEST).contains(&long) {
        return Err(refused(format!("a long side of {long} pixels is not between {multiple} and {LONGEST}")));
    }
    let (width, height) = picture.size();
    let layout = ReferenceLayout::of(width, height, long, multiple);
    if layout.kept.width == 0 || layout.kept.height == 0 {
        return Err(refused(format!(
            "{width}x{height} pixels are too thin for a reference: with the long side at {long} the short one has {}, \
             at least {multiple} are needed; draw with larger references, or lay the picture on a wider canvas",
            layout.width.min(layout.height)
        )));
    }
    let scaled = resample(picture, (layout.width, layout.height), layout.kept, Filter::Lanczos)?;
    Ok(scaled.to_rgb())
}

#[cfg(test)]
mod tests {
    use super::super::Channels;
    use super::*;

    #[test]
    fn one_pixel_becomes_a_square_of_its_colour() {
        let picture = Picture::from_pixels(1, 1, Channels::Rgb, vec![1, 2, 3]).expect("fits");
        let prepared = prepare("dot.png", &picture, 320, FLUX_MULTIPLE).expect("square");
        assert_eq!(prepared.dimensions(), (320, 320));
        assert!(prepared.pixels().all(|pixel| pixel.0 == [1, 2, 3]));
    }

    #[test]
    fn a_thin_picture_is_refused_by_name() {
        let picture = Picture::from_pixels(2000, 30, Channels::Gray, vec![0; 60_000]).expect("fits");
        let error = prepare("shelf.png", &picture, 320, FLUX_MULTIPLE).expect_err("thin").to_string();
        assert!(error.contains("shelf.png") && error.contains("2000x30"), "{error}");
        assert!(prepare("shelf.png", &picture, 0, FLUX_MULTIPLE).is_err());
    }

    #[test]
    fn sizes_are_multiples_of_sixteen_and_central() {
        let layout = ReferenceLayout::of(300, 200, 512, FLUX_MULTIPLE);
        assert_eq!((layout.width, layout.height), (512, 341));
        assert_eq!(layout.kept, Window { left: 0, top: 2, width: 512, height: 336 });
    }

    /// A token of nano has 4 pixels: what FLUX's token would crop of a picture of 32 pixels is kept.
    #[test]
    fn small_tokens_keep_almost_all_of_a_picture_that_is_not_square() {
        for (width, height, kept) in [(344, 326, (32, 28)), (527, 177, (32, 8)), (200, 1600, (4, 32))] {
            let layout = ReferenceLayout::of(width, height, 32, 4);
            assert_eq!((layout.kept.width, layout.kept.height), kept, "{width}x{height}");
        }
        let keys = Picture::from_pixels(527, 177, Channels::Gray, vec![7; 527 * 177]).expect("fits");
        assert_eq!(prepare("keys.png", &keys, 32, 4).expect("wide enough").dimensions(), (32, 8));
        assert!(prepare("keys.png", &keys, 32, FLUX_MULTIPLE).is_err());
    }
}
