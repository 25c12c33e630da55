//! Pictures from outside: decoded within bounds, and resized.

use crescendo_core::rejection::Rejection;
use crescendo_core::spec::Orientation;
use crescendo_dataset::pictures::Picture;
use crescendo_dataset::{Edge, Raster};
use image::{Rgb, RgbImage, RgbaImage};

/// Decodes a PNG, JPEG, WebP or GIF file as RGB. The size is checked before any pixel is decoded.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, Rejection> {
    Picture::decode("picture", bytes).map(Picture::into_rgb).map_err(|_| Rejection::UnreadableImage)
}

/// The same, turned as `orientation` says.
pub fn decode_as(bytes: &[u8], orientation: Orientation) -> Result<RgbImage, Rejection> {
    let picture = Picture::decode_as("picture", bytes, orientation);
    picture.map(Picture::into_rgb).map_err(|_| Rejection::UnreadableImage)
}

/// Stretches a picture to `width` x `height`: bilinear, antialiased.
pub fn resized(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    if picture.dimensions() == (width, height) {
        return picture.clone();
    }
    let opaque = RgbaImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b] = picture.get_pixel(x, y).0;
        image::Rgba([r, g, b, 255])
    });
    let raster = Raster::from_rgba(&opaque);
    let sampled = raster.sample(raster.region(), width as usize, height as usize, Edge::Ignored);
    RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, _] = sampled[y as usize * width as usize + x as usize];
        Rgb([r, g, b].map(|c| (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8))
    })
}

/// Scales a picture so that it covers `width` x `height`, and cuts what is too much at both ends alike.
pub fn covering(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (from_width, from_height) = (f64::from(picture.width().max(1)), f64::from(picture.height().max(1)));
    let scale = (f64::from(width) / from_width).max(f64::from(height) / from_height);
    // The part of the picture that is seen, whole pixels.
    let seen_width = ((f64::from(width) / scale).round() as u32).clamp(1, picture.width().max(1));
    let seen_height = ((f64::from(height) / scale).round() as u32).clamp(1, picture.height().max(1));
    let (x, y) = (
        (picture.width() - seen_width.min(picture.width())) / 2,
        (picture.height() - seen_height.min(picture.height())) / 2,
    );
    resized(&image::imageops::crop_imm(picture, x, y, seen_width, seen_height).to_image(), width, height)
}

/// Channel after channel, row by row, each value `scale * byte + offset`.
pub fn planar(picture: &RgbImage, scale: f32, offset: f32) -> impl Iterator<Item = f32> + '_ {
    (0..3).flat_map(move |channel| {
        picture.pixels().map(move |pixel| f32::from(pixel.0[channel]) * scale + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_refused_before_it_is_decoded() {
        // A PNG header that promises 60,000 x 60,000 pixels, with a right checksum and nothing behind it.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
        png.extend_from_slice(&crc32(&png[12..]).to_be_bytes());
        png.extend_from_slice(b"\0\0\0\0IDAT");
        assert_eq!(decode(&png).expect_err("too large"), Rejection::UnreadableImage);
        assert_eq!(decode(b"nothing").expect_err("no picture"), Rejection::UnreadableImage);
        assert_eq!(decode(b"").expect_err("no picture"), Rejection::UnreadableImage);
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
            })
        })
    }

    #[test]
    fn a_picture_that_covers_is_not_stretched() {
        // A square of 10 in the middle of 40 x 20 stays a square.
        let wide = RgbImage::from_fn(40, 20, |x, y| {
            Rgb(if (15..25).contains(&x) && (5..15).contains(&y) { [255; 3] } else { [0; 3] })
        });
        let covered = covering(&wide, 16, 16);
        assert_eq!(covered.dimensions(), (16, 16));
        let bright = |pixels: Vec<u8>| pixels.iter().filter(|value| **value > 127).count();
        let row: Vec<u8> = (0..16).map(|x| covered.get_pixel(x, 8).0[0]).collect();
        let column: Vec<u8> = (0..16).map(|y| covered.get_pixel(8, y).0[0]).collect();
        assert_eq!((bright(row), bright(column)), (8, 8));
        assert_eq!(covering(&wide, 40, 20), wide);
        assert_eq!(covering(&RgbImage::new(3, 100), 8, 8).dimensions(), (8, 8));
    }

    #[test]
    fn planes_follow_each_other() {
        let picture = RgbImage::from_raw(2, 1, vec![0, 10, 20, 30, 40, 50]).expect("six bytes");
        let expected = [1.0, 31.0, 11.0, 41.0, 21.0, 51.0];
        assert_eq!(planar(&picture, 1.0, 1.0).collect::<Vec<_>>(), expected);
    }
}
