//! Pictures from outside: decoded within bounds, turned upright, and cut down to what is needed.

use crate::raster::Raster;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder as _, ImageFormat, ImageReader, Limits,
    RgbaImage,
};
use std::io::{BufRead, Cursor, Seek};
use std::path::Path;

/// Size of a picture's file beyond which it is refused.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// Longer side of what is visible below which a picture is refused, pixels: nothing can be told from it.
pub const MIN_SIDE: usize = 8;

/// Longer side of a library's pictures unless it is asked for otherwise: twice the panel of 512 pixels that FLUX trains on.
pub const DEFAULT_SIZE_PX: usize = 1024;

/// What decoding is held to.
#[derive(Clone, Copy, Debug)]
pub enum Bounds {
    /// A picture of a library: up to 8,192 pixels a side.
    Library,
    /// A picture as it comes from a camera: up to 20,000.
    Camera,
}

impl Bounds {
    fn max_side(self) -> u32 {
        match self {
            Bounds::Library => 8192,
            Bounds::Camera => 20_000,
        }
    }
}

/// A decoded picture.
#[derive(Debug)]
pub struct Decoded {
    pub pixels: RgbaImage,
    /// It lay on its side or its head, as a camera says in its EXIF data, and was turned.
    pub was_turned: bool,
    /// What files of its format end in.
    pub ending: &'static str,
}

/// Decodes PNG, JPEG or WebP by content, whatever the file is called, and turns it upright.
pub fn decode(bytes: &[u8], bounds: Bounds) -> Result<Decoded, String> {
    let (mut decoder, ending) = decoder(Cursor::new(bytes), bounds)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    picture.apply_orientation(orientation);
    Ok(Decoded { pixels: picture.into_rgba8(), was_turned: orientation != Orientation::NoTransforms, ending })
}

/// Whether a file begins like a picture that [`decode`] takes; of its pixels nothing is read.
pub fn peek(path: &Path, bounds: Bounds) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("it has {size} bytes, more than {MAX_FILE_BYTES}"));
    }
    decoder(std::io::BufReader::new(file), bounds).map(|_| ())
}

/// Reads a picture's file within bounds.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_FILE_BYTES {
        let reason = format!("it has {size} bytes, more than {MAX_FILE_BYTES}");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason));
    }
    std::fs::read(path)
}

/// A decoder, and what files of its format end in.
fn decoder<'a>(
    reader: impl BufRead + Seek + 'a,
    bounds: Bounds,
) -> Result<(impl ImageDecoder + 'a, &'static str), String> {
    let mut reader = ImageReader::new(reader).with_guessed_format().map_err(|error| error.to_string())?;
    let ending = match reader.format() {
        Some(ImageFormat::Png) => "png",
        Some(ImageFormat::Jpeg) => "jpg",
        Some(ImageFormat::WebP) => "webp",
        Some(other) => return Err(format!("it is {}, not png, jpeg or webp", other.extensions_str()[0])),
        None => return Err("it is not a png, jpeg or webp picture".into()),
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(bounds.max_side());
    limits.max_image_height = Some(bounds.max_side());
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > bounds.max_side() {
        return Err(format!("it has {width} x {height} pixels, more than {} a side", bounds.max_side()));
    }
    Ok((decoder, ending))
}

/// What is visible of a picture, with its longer side at most `size_px`.
pub fn prepared(pixels: &RgbaImage, size_px: usize) -> Result<Raster, String> {
    let visible = visible(pixels)?;
    if visible.width().max(visible.height()) < MIN_SIDE {
        return Err(format!("only {} x {} pixels of it are visible", visible.width(), visible.height()));
    }
    Ok(visible.shrunk_to(size_px))
}

/// A picture trimmed to what is visible.
pub fn visible(pixels: &RgbaImage) -> Result<Raster, String> {
    Raster::from_rgba(pixels).trimmed().ok_or_else(|| "nothing in it is visible".into())
}

/// A PNG file of a picture with straight alpha, or of RGB where it is opaque. The same pixels give the same bytes.
pub fn png(pixels: &RgbaImage) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (width, height) = pixels.dimensions();
    let encoder = PngEncoder::new(&mut bytes);
    let written = if pixels.pixels().all(|pixel| pixel.0[3] == u8::MAX) {
        let rgb: Vec<u8> = pixels.pixels().flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]]).collect();
        encoder.write_image(&rgb, width, height, ExtendedColorType::Rgb8)
    } else {
        encoder.write_image(pixels.as_raw(), width, height, ExtendedColorType::Rgba8)
    };
    written.map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{Rgb, RgbImage, Rgba};

    /// A JPEG of `picture` whose EXIF data says how the camera was held.
    pub(crate) fn jpeg_held(picture: &RgbImage, orientation: u8) -> Vec<u8> {
        // A TIFF header and one directory with the one tag 0x0112, little-endian.
        let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0, 0]);
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).expect("jpeg has exif");
        encoder.encode_image(picture).expect("encode");
        bytes
    }

    #[test]
    fn a_photograph_is_turned_upright() {
        // Red on top once it is turned by 90 degrees, which is what orientation 6 asks for: red is on the left before.
        let lying = RgbImage::from_fn(48, 32, |x, _| Rgb(if x < 24 { [220, 20, 20] } else { [20, 20, 220] }));
        let turned = decode(&jpeg_held(&lying, 6), Bounds::Camera).expect("decode");
        assert!(turned.was_turned);
        assert_eq!(turned.pixels.dimensions(), (32, 48));
        assert!(turned.pixels.get_pixel(16, 8).0[0] > 150 && turned.pixels.get_pixel(16, 40).0[2] > 150);
        let upright = decode(&jpeg_held(&lying, 1), Bounds::Camera).expect("decode");
        assert!(!upright.was_turned && upright.pixels.dimensions() == (48, 32));
    }

    #[test]
    fn what_is_no_picture_says_so() {
        assert!(decode(b"", Bounds::Library).expect_err("empty").contains("not a png"));
        assert!(decode(b"GIF89a\x01\0\x01\0", Bounds::Library).expect_err("gif").contains("gif"));
        let mut cut = png(&RgbaImage::from_pixel(64, 64, Rgba([1, 2, 3, 255]))).expect("encode");
        cut.truncate(cut.len() / 2);
        assert!(decode(&cut, Bounds::Library).is_err());
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bytes = png(&RgbaImage::from_pixel(8, 8, Rgba([1, 2, 3, 255]))).expect("encode");
        // The width in the header, with a checksum that fits: 0x00010000 pixels.
        bytes[16..20].copy_from_slice(&[0, 1, 0, 0]);
        let mut crc = !0u32;
        for byte in &bytes[12..29] {
            crc =
                (0..8).fold(
                    crc ^ u32::from(*byte),
                    |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 },
                );
        }
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        assert!(decode(&bytes, Bounds::Camera).is_err());
    }

    #[test]
    fn small_and_empty_pictures_are_refused() {
        let dot = RgbaImage::from_fn(64, 64, |x, y| Rgba([9, 9, 9, if x < 4 && y < 3 { 255 } else { 0 }]));
        assert!(prepared(&dot, 64).expect_err("small").contains("4 x 3 pixels"));
        assert!(
            prepared(&RgbaImage::new(64, 64), 64).expect_err("empty").contains("nothing in it is visible")
        );
    }

    #[test]
    fn a_written_picture_reads_as_the_same_raster() {
        let fading = RgbaImage::from_fn(300, 90, |x, y| {
            Rgba([(x % 256) as u8, (y * 2) as u8, 200, ((x * 7 + y * 13) % 256) as u8])
        });
        let raster = prepared(&fading, 100).expect("prepare");
        let file = png(&raster.to_rgba()).expect("encode");
        let again = Raster::from_rgba(&decode(&file, Bounds::Library).expect("decode").pixels);
        assert_eq!(again, raster);
    }
}
