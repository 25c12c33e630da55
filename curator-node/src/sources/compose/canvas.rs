//! The panel that scenes and subjects are painted on.

use crescendo_dataset::{Edge, Raster, Region};
use image::{Rgb, RgbImage};

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
        let (across, down) = (raster.width() as f32 / place.width, raster.height() as f32 / place.height);
        let mut region = Region {
            x: (left - place.x) * across,
            y: (top - place.y) * down,
            width: columns as f32 * across,
            height: rows as f32 * down,
        };
        if mirrored {
            region.x = raster.width() as f32 - region.x - region.width;
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
    use image::{Rgba, RgbaImage};

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
