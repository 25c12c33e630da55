//! Pictures with alpha, and resampling them to any size at any sub-pixel place.

use image::{Rgba, RgbaImage};

/// What lies outside a raster when it is sampled near its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Nothing: the edge is anti-aliased.
    Transparent,
    /// Nothing that counts: the pixels inside share the weight.
    Ignored,
}

/// A region of a raster, in its pixels, fractions allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

/// A picture with premultiplied alpha, 8 bits a channel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raster {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

impl Raster {
    /// Premultiplies a picture with straight alpha.
    pub fn from_rgba(picture: &RgbaImage) -> Raster {
        let premultiply = |c: u8, a: u8| ((u32::from(c) * u32::from(a) + 127) / 255) as u8;
        let pixels = picture
            .pixels()
            .map(|p| {
                let [r, g, b, a] = p.0;
                [premultiply(r, a), premultiply(g, a), premultiply(b, a), a]
            })
            .collect();
        Raster { width: picture.width() as usize, height: picture.height() as usize, pixels }
    }

    /// The picture with straight alpha: [`Raster::from_rgba`] of it is this raster, to the bit.
    pub fn to_rgba(&self) -> RgbaImage {
        RgbaImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let [r, g, b, a] = self.pixels[y as usize * self.width + x as usize];
            let straight = |c: u8| match u32::from(a) {
                0 => 0,
                a => ((u32::from(c) * 255 + a / 2) / a).min(255) as u8,
            };
            Rgba([straight(r), straight(g), straight(b), a])
        })
    }

    /// Premultiplied RGBA, row by row.
    pub fn pixels(&self) -> &[[u8; 4]] {
        &self.pixels
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// Memory of its pixels.
    pub fn size_bytes(&self) -> usize {
        self.pixels.len() * 4
    }

    /// All of it.
    pub fn region(&self) -> Region {
        Region { x: 0.0, y: 0.0, width: self.width as f32, height: self.height as f32 }
    }

    /// Cuts away rows and columns that are (almost) transparent. None if nothing is left.
    pub fn trimmed(&self) -> Option<Raster> {
        const VISIBLE: u8 = 8;
        let seen = |x: usize, y: usize| self.pixels[y * self.width + x][3] >= VISIBLE;
        let rows: Vec<usize> = (0..self.height).filter(|y| (0..self.width).any(|x| seen(x, *y))).collect();
        let columns: Vec<usize> = (0..self.width).filter(|x| (0..self.height).any(|y| seen(*x, y))).collect();
        let (top, bottom, left, right) = (*rows.first()?, *rows.last()?, *columns.first()?, *columns.last()?);
        let mut pixels = Vec::with_capacity((right - left + 1) * (bottom - top + 1));
        for y in top..=bottom {
            pixels.extend_from_slice(&self.pixels[y * self.width + left..=y * self.width + right]);
        }
        Some(Raster { width: right - left + 1, height: bottom - top + 1, pixels })
    }

    /// Shrinks it so that its longer side is at most `limit` pixels; leaves a smaller one as it is.
    pub fn shrunk_to(&self, limit: usize) -> Raster {
        let longer = self.width.max(self.height);
        if longer <= limit || limit == 0 {
            return self.clone();
        }
        let scaled = |side: usize| ((side * limit + longer / 2) / longer).max(1);
        let (width, height) = (scaled(self.width), scaled(self.height));
        let sampled = self.sample(self.region(), width, height, Edge::Ignored);
        let pixels = sampled.iter().map(|p| p.map(|c| (c * 255.0 + 0.5) as u8)).collect();
        Raster { width, height, pixels }
    }

    /// Resamples `region` to `width` x `height` with a triangle filter as wide as the scale, so without aliasing.
    /// Gives premultiplied RGBA, each in `[0, 1]`, row by row.
    pub fn sample(&self, region: Region, width: usize, height: usize, edge: Edge) -> Vec<[f32; 4]> {
        let across = taps(region.x, region.width, width, self.width, edge);
        let down = taps(region.y, region.height, height, self.height, edge);
        let (first_row, last_row) = down.iter().fold((usize::MAX, 0), |(low, high), tap| {
            (low.min(tap.first), high.max(tap.first + tap.weights.len()))
        });
        let rows = last_row.saturating_sub(first_row);
        let mut narrow = vec![[0f32; 4]; rows * width];
        for row in 0..rows {
            let source = &self.pixels[(first_row + row) * self.width..(first_row + row + 1) * self.width];
            for (tap, out) in across.iter().zip(&mut narrow[row * width..(row + 1) * width]) {
                for (weight, pixel) in tap.weights.iter().zip(&source[tap.first..]) {
                    for channel in 0..4 {
                        out[channel] += weight * f32::from(pixel[channel]);
                    }
                }
            }
        }
        let mut sampled = vec![[0f32; 4]; width * height];
        for (tap, line) in down.iter().zip(sampled.chunks_exact_mut(width.max(1))) {
            for (offset, weight) in tap.weights.iter().enumerate() {
                let row = tap.first - first_row + offset;
                for (pixel, out) in narrow[row * width..(row + 1) * width].iter().zip(line.iter_mut()) {
                    for channel in 0..4 {
                        out[channel] += weight / 255.0 * pixel[channel];
                    }
                }
            }
        }
        sampled
    }
}

/// Source pixels `first..` and their weights for one output pixel. Weights sum to 1 less what lies outside.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

fn taps(start: f32, length: f32, count: usize, source: usize, edge: Edge) -> Vec<Tap> {
    let scale = length / count.max(1) as f32;
    let support = scale.max(1.0);
    (0..count)
        .map(|i| {
            let centre = start + (i as f32 + 0.5) * scale;
            let low = (centre - support).floor() as i64;
            let high = (centre + support).ceil() as i64;
            let last = source as i64 - 1;
            let first = low.clamp(0, last.max(0));
            let mut weights = vec![0f32; (high.clamp(0, last.max(0)) - first + 1).max(0) as usize];
            let mut total = 0.0;
            for x in low..=high {
                let weight = (1.0 - ((x as f32 + 0.5 - centre) / support).abs()).max(0.0);
                let inside = (0..=last).contains(&x);
                if inside || edge == Edge::Transparent {
                    total += weight;
                }
                if inside && let Some(slot) = weights.get_mut((x - first) as usize) {
                    *slot += weight;
                }
            }
            for weight in &mut weights {
                *weight /= total.max(f32::MIN_POSITIVE);
            }
            Tap { first: first as usize, weights }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disc(side: u32) -> RgbaImage {
        RgbaImage::from_fn(side, side, |x, y| {
            let (dx, dy) = (x as f32 - side as f32 / 2.0 + 0.5, y as f32 - side as f32 / 2.0 + 0.5);
            let inside = dx * dx + dy * dy < (side as f32 / 3.0).powi(2);
            if inside { Rgba([200, 10, 30, 255]) } else { Rgba([0, 255, 0, 0]) }
        })
    }

    #[test]
    fn trims_to_what_is_visible() {
        let trimmed = Raster::from_rgba(&disc(90)).trimmed().expect("a disc is visible");
        assert_eq!((trimmed.width(), trimmed.height()), (60, 60));
        assert!(Raster::from_rgba(&RgbaImage::new(5, 5)).trimmed().is_none());
    }

    #[test]
    fn shrinking_keeps_mean_and_shape() {
        let raster = Raster::from_rgba(&RgbaImage::from_fn(200, 100, |x, _| {
            Rgba([if x % 2 == 0 { 0 } else { 200 }, 0, 0, 255])
        }));
        let small = raster.shrunk_to(20);
        assert_eq!((small.width(), small.height()), (20, 10));
        assert!(
            small.pixels.iter().all(|p| (95..=105).contains(&p[0]) && p[3] == 255),
            "{:?}",
            small.pixels[0]
        );
    }

    #[test]
    fn straight_alpha_comes_back_to_the_bit() {
        // Every premultiplied colour that there is.
        for alpha in 0..=255u32 {
            let pixels: Vec<[u8; 4]> =
                (0..=alpha).map(|c| [c as u8, (alpha - c) as u8, alpha as u8, alpha as u8]).collect();
            let raster = Raster { width: pixels.len(), height: 1, pixels };
            assert_eq!(Raster::from_rgba(&raster.to_rgba()), raster);
        }
    }
}
