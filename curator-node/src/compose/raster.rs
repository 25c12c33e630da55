//! Pictures with alpha, and resampling them to any size at any sub-pixel place.

use image::{Rgb, RgbImage, RgbaImage};

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

/// An opaque picture being painted: RGB in `[0, 1]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<[f32; 3]>,
}

impl Canvas {
    /// Paints each pixel with the mean of `colour` at four points in it; `colour` gets coordinates in pixels.
    pub fn painted(width: usize, height: usize, colour: impl Fn(f32, f32) -> [f32; 3]) -> Canvas {
        let mut pixels = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                let mut sum = [0f32; 3];
                for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                    let sample = colour(x as f32 + dx, y as f32 + dy);
                    for channel in 0..3 {
                        sum[channel] += sample[channel] / 4.0;
                    }
                }
                pixels.push(sum);
            }
        }
        Canvas { width, height, pixels }
    }

    /// Lays a raster over the box at (`x`, `y`) of `width` x `height` pixels (fractions allowed), mirrored if asked.
    pub fn lay(&mut self, raster: &Raster, place: Region, mirrored: bool) {
        if place.width <= 0.0 || place.height <= 0.0 {
            return;
        }
        let (left, top) = (place.x.floor().max(0.0), place.y.floor().max(0.0));
        let right = (place.x + place.width).ceil().min(self.width as f32);
        let bottom = (place.y + place.height).ceil().min(self.height as f32);
        if right <= left || bottom <= top {
            return;
        }
        let (columns, rows) = ((right - left) as usize, (bottom - top) as usize);
        let (across, down) = (raster.width as f32 / place.width, raster.height as f32 / place.height);
        let mut region = Region {
            x: (left - place.x) * across,
            y: (top - place.y) * down,
            width: columns as f32 * across,
            height: rows as f32 * down,
        };
        if mirrored {
            region.x = raster.width as f32 - region.x - region.width;
        }
        let sampled = raster.sample(region, columns, rows, Edge::Transparent);
        for row in 0..rows {
            for column in 0..columns {
                let from = if mirrored { columns - 1 - column } else { column };
                let [r, g, b, a] = sampled[row * columns + from];
                let pixel = &mut self.pixels[(top as usize + row) * self.width + left as usize + column];
                for (channel, over) in [r, g, b].into_iter().enumerate() {
                    pixel[channel] = over + pixel[channel] * (1.0 - a);
                }
            }
        }
    }

    /// Rounds to 8 bits a channel.
    pub fn to_image(&self) -> RgbImage {
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            Rgb(self.pixels[y as usize * self.width + x as usize]
                .map(|c| (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8))
        })
    }
}

/// Puts pictures of one height side by side.
pub fn side_by_side(left: &RgbImage, right: &RgbImage) -> RgbImage {
    RgbImage::from_fn(left.width() + right.width(), left.height().min(right.height()), |x, y| {
        if x < left.width() { *left.get_pixel(x, y) } else { *right.get_pixel(x - left.width(), y) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgba;

    fn disc(side: u32) -> RgbaImage {
        RgbaImage::from_fn(side, side, |x, y| {
            let (dx, dy) = (x as f32 - side as f32 / 2.0 + 0.5, y as f32 - side as f32 / 2.0 + 0.5);
            let inside = dx * dx + dy * dy < (side as f32 / 3.0).powi(2);
            if inside { Rgba([200, 10, 30, 255]) } else { Rgba([0, 255, 0, 0]) }
        })
    }

    #[test]
    fn transparent_colour_does_not_leak() {
        // The transparent pixels are bright green: straight-alpha resampling would leave a green rim.
        let raster = Raster::from_rgba(&disc(90));
        let mut canvas = Canvas::painted(32, 32, |_, _| [0.0, 0.0, 0.0]);
        canvas.lay(&raster, Region { x: 1.3, y: 2.7, width: 28.5, height: 28.5 }, false);
        assert!(canvas.pixels.iter().all(|p| p[1] <= 10.0 / 255.0 + 1e-3), "green leaked");
        assert!(canvas.pixels[16 * 32 + 15][0] > 0.75);
    }

    #[test]
    fn trims_to_what_is_visible() {
        let trimmed = Raster::from_rgba(&disc(90)).trimmed().expect("a disc is visible");
        assert_eq!((trimmed.width(), trimmed.height()), (60, 60));
        assert!(Raster::from_rgba(&RgbaImage::new(5, 5)).trimmed().is_none());
    }

    #[test]
    fn mirroring_swaps_left_and_right() {
        let half =
            RgbaImage::from_fn(
                16,
                16,
                |x, _| {
                    if x < 8 { Rgba([255, 0, 0, 255]) } else { Rgba([0, 0, 255, 255]) }
                },
            );
        let raster = Raster::from_rgba(&half);
        let place = Region { x: 4.0, y: 4.0, width: 8.0, height: 8.0 };
        let mut plain = Canvas::painted(16, 16, |_, _| [1.0; 3]);
        let mut mirrored = plain.clone();
        plain.lay(&raster, place, false);
        mirrored.lay(&raster, place, true);
        for y in 0..16 {
            for x in 0..16 {
                let (a, b) = (plain.pixels[y * 16 + x], mirrored.pixels[y * 16 + 15 - x]);
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "({x}, {y}): {a:?} {b:?}");
            }
        }
        assert!(plain.pixels[8 * 16 + 5][0] > 0.9 && mirrored.pixels[8 * 16 + 5][2] > 0.9);
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
    fn a_place_outside_paints_nothing() {
        let raster = Raster::from_rgba(&disc(9));
        let mut canvas = Canvas::painted(8, 8, |_, _| [0.5; 3]);
        let before = canvas.clone();
        for place in [
            Region { x: 20.0, y: 0.0, width: 5.0, height: 5.0 },
            Region { x: -9.0, y: -9.0, width: 5.0, height: 5.0 },
            Region { x: 1.0, y: 1.0, width: 0.0, height: 3.0 },
        ] {
            canvas.lay(&raster, place, false);
        }
        assert_eq!(canvas, before);
    }
}
