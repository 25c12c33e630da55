//! Separable resampling of 8-bit pixels with the arithmetic of Pillow (its `Resample.c`), so that what networks see is
//! what they saw when they were published.
//!
//! One pass across, its result rounded to 8 bits, then one down; the other way round where that is shorter
//!, which older versions of Pillow did not do. The weights of a pixel are those of the filter, stretched
//! when shrinking, normalised, and rounded to 22 fractional bits.

use std::ops::Range;

use super::{Channels, MAX_PIXELS, Picture, PictureError, Result};

/// Fractional bits of a weight: 8 bits are left for the pixel, 2 for sums beyond 1.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keys' cubic, a = −0.5.
    Bicubic,
    /// Windowed sinc over three lobes.
    Lanczos,
}

impl Filter {
    /// Reach of the kernel at scale 1, pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The part of a resampled picture that is computed; the rest is never held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Window {
    /// Everything of a picture of this size.
    pub fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }
}

/// Source pixels of one output pixel, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Taps of the output pixels `from .. from + count` of `output` that `input` pixels are resampled to.
fn taps(input: u32, output: u32, from: u32, count: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(input) / f64::from(output);
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let step = 1.0 / filter_scale;
    (from..from + count)
        .map(|out| {
            let center = (f64::from(out) + 0.5) * scale;
            // Casts cut off towards zero and stop at zero, as the original's do after its check for negatives.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input as usize);
            let raw: Vec<f64> = (first..end).map(|x| filter.at((x as f64 - center + 0.5) * step)).collect();
            let sum: f64 = raw.iter().sum();
            let weights = raw
                .iter()
                .map(|weight| {
                    let weight = if sum != 0.0 { weight / sum } else { *weight };
                    let fixed = weight * f64::from(1 << PRECISION_BITS);
                    (fixed + if fixed < 0.0 { -0.5 } else { 0.5 }) as i32
                })
                .collect();
            Taps { first, weights }
        })
        .collect()
}

/// A weighted sum, rounded and held to 8 bits.
fn to_byte(sum: i64) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i64 = 1 << (PRECISION_BITS - 1);

/// First and one past the last source pixel that any of `taps` reads.
fn reach(taps: &[Taps]) -> (usize, usize) {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    (first, taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0))
}

/// Resamples each row of `stride` values, whose first pixel is number `from` of the source.
fn across(rows: &[u8], stride: usize, count: usize, from: usize, columns: &[Taps]) -> Vec<u8> {
    let mut result = Vec::with_capacity(rows.len() / stride * columns.len() * count);
    for row in rows.chunks_exact(stride) {
        for column in columns {
            let pixels = &row[(column.first - from) * count..];
            for channel in 0..count {
                let values = pixels[channel..].iter().step_by(count);
                let sum: i64 =
                    column.weights.iter().zip(values).map(|(w, v)| i64::from(*w) * i64::from(*v)).sum();
                result.push(to_byte(HALF + sum));
            }
        }
    }
    result
}

/// Resamples rows of `stride` values to new rows, the first row being number `from` of the source. Of each row the
/// values `part` are taken.
fn down(lines: &[u8], stride: usize, part: Range<usize>, from: usize, rows: &[Taps]) -> Vec<u8> {
    let mut result = Vec::with_capacity(rows.len() * part.len());
    let mut sums = vec![0i64; part.len()];
    for row in rows {
        sums.fill(HALF);
        let lines = lines[(row.first - from) * stride..].chunks_exact(stride);
        for (weight, line) in row.weights.iter().zip(lines) {
            for (sum, value) in sums.iter_mut().zip(&line[part.clone()]) {
                *sum += i64::from(*weight) * i64::from(*value);
            }
        }
        result.extend(sums.iter().map(|sum| to_byte(*sum)));
    }
    result
}

/// Which pass is first. Pillow 13 shrinks the height before the width if that takes away more than twice as much.
fn height_first((in_width, in_height): (u32, u32), (width, height): (u32, u32)) -> bool {
    let less = |from: u32, to: u32| i64::from(from) - i64::from(to);
    height < in_height && less(in_height, height) > 2 * less(in_width, width)
}

/// Resamples `bytes`, `count` values a pixel, to `size` and returns the window of it.
fn resample_bytes(
    bytes: &[u8],
    count: usize,
    from: (u32, u32),
    size: (u32, u32),
    window: Window,
    filter: Filter,
) -> Vec<u8> {
    // Weights of a side that stays are exactly 1: its pass copies.
    let columns = taps(from.0, size.0, window.left, window.width, filter);
    let rows = taps(from.1, size.1, window.top, window.height, filter);
    let stride = from.0 as usize * count;
    if height_first(from, size) {
        let (first, end) = reach(&columns);
        let narrowed = down(bytes, stride, first * count..end * count, 0, &rows);
        return across(&narrowed, (end - first) * count, count, first, &columns);
    }
    // Only rows that the other pass reads.
    let (first, end) = reach(&rows);
    let narrowed = across(&bytes[first * stride..end * stride], stride, count, 0, &columns);
    let stride = columns.len() * count;
    down(&narrowed, stride, 0..stride, first, &rows)
}

/// a · b / 255, rounded, in integers.
fn multiply(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Multiplies the colours of pixels of `count` values by their last.
fn premultiply(bytes: &mut [u8], count: usize) {
    for pixel in bytes.chunks_exact_mut(count) {
        if let Some((alpha, colors)) = pixel.split_last_mut() {
            colors.iter_mut().for_each(|color| *color = multiply(*color, *alpha));
        }
    }
}

/// The inverse; pixels that are opaque or wholly transparent stay as they are.
fn unpremultiply(bytes: &mut [u8], count: usize) {
    for pixel in bytes.chunks_exact_mut(count) {
        match pixel.split_last_mut() {
            Some((alpha, colors)) if !matches!(*alpha, 0 | 255) => {
                let alpha = u32::from(*alpha);
                colors.iter_mut().for_each(|color| *color = (255 * u32::from(*color) / alpha).min(255) as u8);
            }
            _ => {}
        }
    }
}

/// Source positions of the outputs `from .. from + count` by nearest neighbour. The position grows by addition, which
/// decides where it falls between two pixels.
fn nearest(input: u32, output: u32, from: u32, count: u32) -> Vec<Option<usize>> {
    let scale = f64::from(input) / f64::from(output);
    let mut at = scale * 0.5;
    let mut positions = Vec::with_capacity(count as usize);
    for out in 0..from + count {
        if out >= from {
            // Beyond the last pixel, where rounding can lead, nothing is read.
            positions.push(Some(at as usize).filter(|position| *position < input as usize));
        }
        at += scale;
    }
    positions
}

/// Resamples `picture` to `(width, height)` and returns the window of it, in the picture's own channels: with alpha
/// multiplied in meanwhile, and by nearest neighbour where pixels are palette indices.
pub fn resample(picture: &Picture, size: (u32, u32), window: Window, filter: Filter) -> Result<Picture> {
    let (width, height) = size;
    let inside =
        |from: u32, count: u32, all: u32| count > 0 && from.checked_add(count).is_some_and(|end| end <= all);
    if !inside(window.left, window.width, width) || !inside(window.top, window.height, height) {
        return Err(PictureError::input("window", format!("{window:?} is not inside {width}x{height}")));
    }
    let pixels = u64::from(window.width) * u64::from(window.height);
    // Between the passes there are at most the picture's rows, as wide as the window, or its columns, as high.
    let between = u64::from(window.width) * u64::from(picture.height);
    let between = between.max(u64::from(picture.width) * u64::from(window.height));
    if pixels.max(between) > MAX_PIXELS * 4 {
        return Err(PictureError::input("window", format!("{window:?} is too large")));
    }
    let count = picture.channels.count();
    let run = |bytes: &[u8]| resample_bytes(bytes, count, picture.size(), size, window, filter);
    let bytes = match picture.channels {
        Channels::Gray | Channels::Rgb => run(&picture.bytes),
        Channels::GrayAlpha | Channels::Rgba if size == picture.size() => run(&picture.bytes),
        Channels::GrayAlpha | Channels::Rgba => {
            let mut multiplied = picture.bytes.clone();
            premultiply(&mut multiplied, count);
            let mut bytes = run(&multiplied);
            unpremultiply(&mut bytes, count);
            bytes
        }
        Channels::Indexed => {
            let columns = nearest(picture.width, width, window.left, window.width);
            let rows = nearest(picture.height, height, window.top, window.height);
            let stride = picture.width as usize;
            rows.iter()
                .flat_map(|row| columns.iter().map(move |column| Some(((*row)?, (*column)?))))
                .map(|at| at.and_then(|(y, x)| picture.bytes.get(y * stride + x)).copied().unwrap_or(0))
                .collect()
        }
    };
    Ok(Picture {
        width: window.width,
        height: window.height,
        channels: picture.channels,
        bytes,
        palette: picture.palette.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: u32, height: u32, channels: Channels) -> Picture {
        let count = width as usize * height as usize * channels.count();
        let mut state = 1u32;
        let bytes = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Picture::from_pixels(width, height, channels, bytes).expect("fits")
    }

    #[test]
    fn a_window_is_the_same_as_a_crop_of_the_whole() {
        for channels in [Channels::Gray, Channels::Rgba, Channels::Indexed] {
            let picture = noise(37, 23, channels);
            for size in [(80, 11), (37, 50), (9, 23)] {
                let whole =
                    resample(&picture, size, Window::whole(size.0, size.1), Filter::Lanczos).expect("fits");
                let window = Window { left: 2, top: 3, width: 5, height: 6 };
                let part = resample(&picture, size, window, Filter::Lanczos).expect("fits");
                let count = channels.count();
                for y in 0..6usize {
                    let from = ((y + 3) * size.0 as usize + 2) * count;
                    assert_eq!(
                        part.bytes[y * 5 * count..(y + 1) * 5 * count],
                        whole.bytes[from..from + 5 * count]
                    );
                }
            }
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        for channels in
            [Channels::Gray, Channels::GrayAlpha, Channels::Rgb, Channels::Rgba, Channels::Indexed]
        {
            let picture = noise(9, 7, channels);
            assert_eq!(resample(&picture, (9, 7), Window::whole(9, 7), Filter::Bicubic).ok(), Some(picture));
        }
    }

    #[test]
    fn the_height_is_shrunk_first_where_it_loses_more_than_twice_the_width() {
        for (from, to, first) in [
            ((100, 200), (50, 100), false),
            ((100, 201), (50, 100), true),
            ((100, 100), (110, 95), true),
            ((100, 100), (150, 140), false),
            ((400, 100), (300, 50), false),
        ] {
            assert_eq!(height_first(from, to), first, "{from:?} {to:?}");
        }
    }

    #[test]
    fn weights_of_every_pixel_add_up_to_one() {
        for (input, output) in [(1, 50), (50, 1), (33, 32), (7, 300)] {
            for filter in [Filter::Bicubic, Filter::Lanczos] {
                for taps in taps(input, output, 0, output, filter) {
                    let sum: i64 = taps.weights.iter().map(|w| i64::from(*w)).sum();
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= taps.weights.len() as i64, "{sum}");
                }
            }
        }
    }

    #[test]
    fn colours_behind_transparency_do_not_bleed() {
        // Left half red and opaque, right half green and transparent.
        let bytes: Vec<u8> =
            (0..8).flat_map(|x| if x < 4 { [200, 0, 0, 255] } else { [0, 200, 0, 0] }).collect();
        let picture = Picture::from_pixels(8, 1, Channels::Rgba, bytes).expect("fits");
        let wide = resample(&picture, (24, 1), Window::whole(24, 1), Filter::Bicubic).expect("fits");
        let seam: Vec<&[u8]> = wide.bytes.chunks_exact(4).filter(|pixel| pixel[3] > 0).collect();
        assert!(seam.iter().all(|pixel| pixel[1] == 0), "{seam:?}");
    }

    #[test]
    fn windows_outside_the_picture_are_refused() {
        let picture = noise(4, 4, Channels::Gray);
        for window in [
            Window { left: 3, top: 0, width: 2, height: 1 },
            Window { left: u32::MAX, top: 0, width: 2, height: 1 },
            Window { left: 0, top: 0, width: 0, height: 1 },
        ] {
            assert!(resample(&picture, (4, 4), window, Filter::Lanczos).is_err(), "{window:?}");
        }
    }
}
