//! Decoding of picture files within bounds.
//!
//! | file | pixels |
//! |---|---|
//! | PNG | as stored; 16 bits cut to the upper 8, 2 and 4 bits of grey spread to 8, 1 bit a palette of black and white; a transparent colour is not applied |
//! | GIF | palette indices of the first frame |
//! | JPEG | grey or RGB; CMYK is converted to RGB while decoding |
//! | WebP | RGB or RGBA, of an animation the first frame |

use std::io::{Cursor, Read as _};
use std::num::NonZeroU64;
use std::path::Path;

use crescendo_core::spec::Orientation;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation as Noted;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::{Channels, MAX_FILE_BYTES, MAX_PIXELS, Picture, PictureError, Result};

/// Memory that decoding may take beside the pixels themselves; the largest picture has 4 bytes a pixel, 8 before it
/// is cut to 8 bits.
const MAX_DECODING_BYTES: u64 = 16 * MAX_PIXELS;

/// What is wrong with a file; the caller adds its name.
type Decoded<T> = std::result::Result<T, String>;

impl Picture {
    /// Reads and decodes a PNG, JPEG, WebP or GIF file. Its format is told by its first bytes, not by its name.
    pub fn open(path: &Path) -> Result<Self> {
        Self::decode(&path.display().to_string(), &read(path)?)
    }

    /// [`Picture::open`], turned as `orientation` says.
    pub fn open_as(path: &Path, orientation: Orientation) -> Result<Self> {
        Self::decode_as(&path.display().to_string(), &read(path)?, orientation)
    }

    /// [`Picture::decode`], upright as a camera noted beside the pixels (EXIF) unless it is wanted as stored. The published code
    /// leaves a photograph taken upright on its side, as its file has it; one that was turned has three channels here.
    pub fn decode_as(name: &str, bytes: &[u8], orientation: Orientation) -> Result<Self> {
        let picture = Self::decode(name, bytes)?;
        let noted = match orientation {
            Orientation::AsStored => Noted::NoTransforms,
            Orientation::Upright => ImageReader::new(Cursor::new(bytes))
                .with_guessed_format()
                .ok()
                .and_then(|reader| reader.into_decoder().ok()?.orientation().ok())
                .unwrap_or(Noted::NoTransforms),
        };
        if noted == Noted::NoTransforms {
            return Ok(picture);
        }
        let mut turned = DynamicImage::ImageRgb8(picture.into_rgb());
        turned.apply_orientation(noted);
        Ok(Self::from(turned.into_rgb8()))
    }

    /// Decodes a file's bytes; `name` is how an error calls it.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        let decoded = match bytes {
            _ if bytes.len() as u64 > MAX_FILE_BYTES => {
                Err(format!("the file is larger than {MAX_FILE_BYTES} bytes"))
            }
            [] => Err("the file is empty".to_owned()),
            [0x89, b'P', b'N', b'G', ..] => png(bytes),
            [0xff, 0xd8, ..] => jpeg(bytes),
            [b'G', b'I', b'F', b'8', ..] => gif(bytes),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(bytes),
            _ => Err("it is none of PNG, JPEG, WebP and GIF".to_owned()),
        };
        decoded.map_err(|reason| PictureError::Picture { name: name.to_owned(), reason })
    }
}

/// The bytes of a file, as far as one may be large.
fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| PictureError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file of exactly that size from a larger one.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Refuses a size before anything of that size is allocated.
fn check_size(width: u32, height: u32) -> Decoded<()> {
    match u64::from(width) * u64::from(height) {
        0 => Err(format!("{width}x{height} has no pixels")),
        pixels if pixels > MAX_PIXELS => Err(format!("{width}x{height} is more than {MAX_PIXELS} pixels")),
        _ => Ok(()),
    }
}

fn assembled(width: u32, height: u32, channels: Channels, bytes: Vec<u8>) -> Decoded<Picture> {
    Picture::from_pixels(width, height, channels, bytes).map_err(|error| error.to_string())
}

fn png(bytes: &[u8]) -> Decoded<Picture> {
    let unreadable = |error: png::DecodingError| format!("it cannot be decoded: {error}");
    let limits = png::Limits { bytes: usize::try_from(MAX_DECODING_BYTES).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(unreadable)?;
    check_size(header.width, header.height)?;
    let mut reader = decoder.read_info().map_err(unreadable)?;
    let palette: Vec<[u8; 3]> = reader
        .info()
        .palette
        .as_deref()
        .unwrap_or_default()
        .chunks_exact(3)
        .map(|color| [color[0], color[1], color[2]])
        .collect();
    let size_bytes = reader.output_buffer_size().ok_or("its pixels do not fit into memory")?;
    let mut pixels = vec![0; size_bytes];
    let frame = reader.next_frame(&mut pixels).map_err(unreadable)?;
    pixels.truncate(frame.buffer_size());
    let (width, height) = (frame.width, frame.height);
    let bits = frame.bit_depth as usize;
    let samples = if bits < 8 { unpacked(&pixels, frame.line_size, width as usize, bits) } else { pixels };
    match (frame.color_type, bits) {
        (png::ColorType::Indexed, _) => {
            Picture::from_palette(width, height, samples, palette).map_err(|error| error.to_string())
        }
        // Pillow's mode of 1 bit is resampled like a palette; so is ours.
        (png::ColorType::Grayscale, 1) => {
            Picture::from_palette(width, height, samples, vec![[0; 3], [255; 3]])
                .map_err(|error| error.to_string())
        }
        (png::ColorType::Grayscale, 2 | 4) => {
            let step = if bits == 2 { 85 } else { 17 };
            let spread = samples.iter().map(|value| value * step).collect();
            assembled(width, height, Channels::Gray, spread)
        }
        (png::ColorType::Grayscale, _) => assembled(width, height, Channels::Gray, samples),
        (png::ColorType::GrayscaleAlpha, _) => assembled(width, height, Channels::GrayAlpha, samples),
        (png::ColorType::Rgb, _) => assembled(width, height, Channels::Rgb, samples),
        (png::ColorType::Rgba, _) => assembled(width, height, Channels::Rgba, samples),
    }
}

/// One byte for each value of 1, 2 or 4 bits, the high bits of a byte first; rows start at whole bytes.
fn unpacked(bytes: &[u8], line_bytes: usize, width: usize, bits: usize) -> Vec<u8> {
    let per_byte = 8 / bits;
    let mask = (1u8 << bits) - 1;
    bytes
        .chunks_exact(line_bytes)
        .flat_map(|line| {
            line.iter()
                .flat_map(move |byte| (0..per_byte).map(move |i| (byte >> (8 - bits * (i + 1))) & mask))
                .take(width)
        })
        .collect()
}

fn gif(bytes: &[u8]) -> Decoded<Picture> {
    let unreadable = |error: gif::DecodingError| format!("it cannot be decoded: {error}");
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.check_frame_consistency(true);
    if let Some(limit) = NonZeroU64::new(MAX_DECODING_BYTES) {
        options.set_memory_limit(gif::MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(bytes).map_err(unreadable)?;
    let (width, height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    check_size(width, height)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder.read_next_frame().map_err(unreadable)?.ok_or("it has no frame")?;
    let palette: Vec<[u8; 3]> = frame
        .palette
        .clone()
        .or(global)
        .ok_or("it has no palette")?
        .chunks_exact(3)
        .map(|color| [color[0], color[1], color[2]])
        .collect();
    // A frame smaller than the picture lies on what is transparent, else on the first colour.
    let mut indices = vec![frame.transparent.unwrap_or(0); width as usize * height as usize];
    let frame_width = usize::from(frame.width);
    let rows = indices.chunks_exact_mut(width as usize).skip(usize::from(frame.top));
    if frame_width > 0 {
        for (row, line) in rows.zip(frame.buffer.chunks_exact(frame_width)) {
            let left = usize::from(frame.left);
            let cells =
                row.get_mut(left..left + frame_width).ok_or("its frame is larger than the picture")?;
            cells.copy_from_slice(line);
        }
    }
    // A palette that maps each index to the grey of its number makes a grey picture.
    let gray =
        palette.iter().enumerate().all(|(i, color)| color.iter().all(|value| usize::from(*value) == i));
    if gray {
        return assembled(width, height, Channels::Gray, indices);
    }
    Picture::from_palette(width, height, indices, palette).map_err(|error| error.to_string())
}

fn jpeg(bytes: &[u8]) -> Decoded<Picture> {
    // The decoder paints what is missing of a cut file grey.
    if !ends_as_jpeg(bytes) {
        return Err("it cannot be decoded: it is cut short".to_owned());
    }
    let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(unreadable_image)?;
    with_image(decoder)
}

/// Walks the segments of a JPEG file: whether its end marker is reached.
fn ends_as_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(rest) = bytes.get(at..) {
        // Outside of segments there are only scan data, in which a marker is a 0xff before something else than 0.
        let Some(found) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))
        else {
            return false;
        };
        at += found + 2;
        match rest[found + 1] {
            0xd9 => return true,
            // Restarts and the start have no length.
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let Some(&[high, low]) = bytes.get(at..at + 2) else {
                    return false;
                };
                at += usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    false
}

fn webp(bytes: &[u8]) -> Decoded<Picture> {
    with_image(WebPDecoder::new(Cursor::new(bytes)).map_err(unreadable_image)?)
}

fn unreadable_image(error: image::ImageError) -> String {
    format!("it cannot be decoded: {error}")
}

fn with_image(mut decoder: impl ImageDecoder) -> Decoded<Picture> {
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODING_BYTES);
    decoder.set_limits(limits).map_err(unreadable_image)?;
    let (channels, bytes) = match DynamicImage::from_decoder(decoder).map_err(unreadable_image)? {
        DynamicImage::ImageLuma8(pixels) => (Channels::Gray, pixels.into_raw()),
        DynamicImage::ImageLumaA8(pixels) => (Channels::GrayAlpha, pixels.into_raw()),
        DynamicImage::ImageRgba8(pixels) => (Channels::Rgba, pixels.into_raw()),
        other => (Channels::Rgb, other.into_rgb8().into_raw()),
    };
    assembled(width, height, channels, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upright::tests::jpeg_held;

    const CMYK: &[u8] = include_bytes!("testdata/cmyk.jpg");
    const GIF: &[u8] = include_bytes!("testdata/animated.gif");
    const WEBP: &[u8] = include_bytes!("testdata/animated.webp");

    fn encoded(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![1, 2, 3, 40, 50, 60, 7, 8, 9]);
            encoder.set_trns(vec![0]);
        }
        let mut writer = encoder.write_header().expect("header");
        writer.write_image_data(data).expect("pixels");
        writer.finish().expect("end");
        bytes
    }

    #[test]
    fn png_keeps_its_channels() {
        use png::{BitDepth, ColorType};
        for (color, depth, data, channels, rgb) in [
            (ColorType::Grayscale, BitDepth::Eight, &[9][..], Channels::Gray, [9, 9, 9]),
            (ColorType::Grayscale, BitDepth::Sixteen, &[200, 255], Channels::Gray, [200, 200, 200]),
            (ColorType::Grayscale, BitDepth::Four, &[0xf0], Channels::Gray, [255, 255, 255]),
            (ColorType::Grayscale, BitDepth::Two, &[0x40], Channels::Gray, [85, 85, 85]),
            (ColorType::Grayscale, BitDepth::One, &[0x80], Channels::Indexed, [255, 255, 255]),
            (ColorType::GrayscaleAlpha, BitDepth::Eight, &[3, 0], Channels::GrayAlpha, [3, 3, 3]),
            (ColorType::Rgb, BitDepth::Sixteen, &[1, 255, 2, 255, 3, 255], Channels::Rgb, [1, 2, 3]),
            (ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0], Channels::Rgba, [1, 2, 3]),
            (ColorType::Indexed, BitDepth::Two, &[0x40], Channels::Indexed, [40, 50, 60]),
        ] {
            let picture = Picture::decode("one.png", &encoded(1, 1, color, depth, data)).expect("decodes");
            assert_eq!(picture.channels(), channels, "{color:?} {depth:?}");
            assert_eq!(picture.to_rgb().into_raw(), rgb, "{color:?} {depth:?}");
        }
    }

    #[test]
    fn rows_of_packed_values_start_at_whole_bytes() {
        let bytes = encoded(3, 2, png::ColorType::Indexed, png::BitDepth::Four, &[0x01, 0x20, 0x21, 0x00]);
        assert_eq!(Picture::decode("packed.png", &bytes).expect("decodes").bytes(), [0, 1, 2, 2, 1, 0]);
    }

    #[test]
    fn cmyk_becomes_rgb() {
        let picture = Picture::decode("print.jpg", CMYK).expect("decodes");
        assert_eq!((picture.size(), picture.channels()), ((24, 16), Channels::Rgb));
        // Written as CMYK (30, 60, 100, 21): (255 - c)(255 - k) / 255.
        let [r, g, b] = picture.to_rgb().get_pixel(3, 4).0;
        for (got, expected) in [(r, 206u8), (g, 179), (b, 142)] {
            assert!(got.abs_diff(expected) <= 8, "{r} {g} {b}");
        }
    }

    #[test]
    fn of_an_animation_the_first_frame_is_taken() {
        let gif = Picture::decode("moving.gif", GIF).expect("decodes");
        assert_eq!((gif.size(), gif.channels()), ((6, 4), Channels::Indexed));
        assert_eq!(gif.to_rgb().into_raw()[..9], [200, 10, 20, 5, 250, 7, 0, 0, 255]);
        let webp = Picture::decode("moving.webp", WEBP).expect("decodes");
        assert_eq!(webp.size(), (6, 4));
        assert!(webp.to_rgb().pixels().all(|pixel| pixel.0 == [255, 0, 0]));
    }

    #[test]
    fn cut_files_are_refused_wherever_they_are_cut() {
        let png = encoded(40, 40, png::ColorType::Rgb, png::BitDepth::Eight, &[7; 40 * 40 * 3]);
        for (name, bytes) in [("a.png", &png[..]), ("b.jpg", CMYK), ("c.webp", WEBP)] {
            // The last bytes of a PNG or an animated WebP lie behind the first picture.
            let enough = if name == "b.jpg" { bytes.len() } else { bytes.len() / 3 };
            for end in 0..enough {
                let error = Picture::decode(name, &bytes[..end])
                    .expect_err(&format!("{name} cut at {end}"))
                    .to_string();
                assert!(error.contains(name), "{error}");
            }
        }
        for end in 0..GIF.len() {
            // No panic; what is whole of the first frame may be there.
            let _ = Picture::decode("d.gif", &GIF[..end]);
        }
    }

    #[test]
    fn damaged_files_do_not_panic() {
        let png = encoded(8, 8, png::ColorType::Indexed, png::BitDepth::Eight, &[1; 64]);
        for bytes in [&png[..], CMYK, GIF, WEBP] {
            for at in 0..bytes.len() {
                for change in [0x01, 0x80, 0xff] {
                    let mut damaged = bytes.to_vec();
                    damaged[at] ^= change;
                    let _ = Picture::decode("damaged", &damaged);
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_decoded() {
        let mut png = encoded(1, 1, png::ColorType::Rgb, png::BitDepth::Eight, &[0; 3]);
        // 10,000 x 10,000 pixels, with the right checksum over the header.
        png[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
        let sum = crc32(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&sum);
        let mut gif = GIF.to_vec();
        gif[6..10].copy_from_slice(&[0xff; 4]);
        for (name, bytes) in [("bomb.png", png), ("bomb.gif", gif)] {
            let error = Picture::decode(name, &bytes).expect_err("too large").to_string();
            assert!(error.contains(name) && error.contains("pixels"), "{error}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
            })
        })
    }

    #[test]
    fn a_photograph_is_turned_where_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("held.jpg");
        for (orientation, size) in [(1, (24, 16)), (6, (16, 24)), (3, (24, 16))] {
            std::fs::write(&path, jpeg_held(&image::RgbImage::new(24, 16), orientation)).expect("write");
            assert_eq!(Picture::open(&path).expect("decodes").size(), (24, 16));
            let upright = Picture::open_as(&path, Orientation::Upright).expect("decodes");
            assert_eq!(upright.size(), size, "{orientation}");
            let stored = Picture::open_as(&path, Orientation::AsStored).expect("decodes");
            assert_eq!(stored.size(), (24, 16), "{orientation}");
        }
        std::fs::write(&path, GIF).expect("write");
        let (upright, as_it_is) = (Picture::open_as(&path, Orientation::Upright), Picture::open(&path));
        assert_eq!(upright.expect("decodes"), as_it_is.expect("decodes"), "nothing is noted beside it");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        for bytes in [&b""[..], b"BM", b"not a picture", &[0xff, 0xd8], &[0x89, b'P', b'N', b'G']] {
            let error = Picture::decode("notes.txt", bytes).expect_err("no picture").to_string();
            assert!(error.contains("notes.txt"), "{error}");
        }
        let error = Picture::open(Path::new("/absent/x.png")).expect_err("absent").to_string();
        assert!(error.contains("/absent/x.png"), "{error}");
    }
}
