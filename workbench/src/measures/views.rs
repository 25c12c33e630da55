//! What of a picture an encoder gets to see.

use crescendo_curator_node::rng::SeededRng;
use image::RgbImage;

/// What is left of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of it.
    Whole,
    /// Brightness without colour: edges and what is between them.
    Outline,
    /// Its pixels in random order: colours without shape.
    Colour,
}

impl View {
    /// Leaves of the planes (red, green and blue, row by row, 0 to 1) what the view shows. `draw` orders pixels.
    pub fn apply(self, planes: &mut [f32], draw: &mut SeededRng) {
        let plane = planes.len() / 3;
        match self {
            View::Whole => {}
            View::Outline => {
                for n in 0..plane {
                    // Of BT.601, on the values as they are.
                    let grey = 0.299 * planes[n] + 0.587 * planes[plane + n] + 0.114 * planes[2 * plane + n];
                    for channel in 0..3 {
                        planes[channel * plane + n] = grey;
                    }
                }
            }
            View::Colour => {
                let mut order: Vec<usize> = (0..plane).collect();
                draw.shuffle(&mut order);
                let from = planes.to_vec();
                for channel in 0..3 {
                    for (n, other) in order.iter().enumerate() {
                        planes[channel * plane + n] = from[channel * plane + other];
                    }
                }
            }
        }
    }

    /// A picture as the view shows it; the same picture always gives the same one.
    pub fn of(self, picture: &RgbImage) -> RgbImage {
        if self == View::Whole {
            return picture.clone();
        }
        let mut planes = planar(picture);
        self.apply(&mut planes, &mut SeededRng::new("view of a picture", &[]));
        let plane = planes.len() / 3;
        let width = picture.width() as usize;
        RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
            let at = y as usize * width + x as usize;
            image::Rgb([0, 1, 2].map(|channel| {
                let value = planes.get(channel * plane + at).copied().unwrap_or_default();
                (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
            }))
        })
    }
}

/// Planar RGB in `[0, 1]`.
pub fn planar(picture: &RgbImage) -> Vec<f32> {
    crescendo_curator_node::images::planar(picture, 1.0 / 255.0, 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn picture() -> RgbImage {
        RgbImage::from_fn(8, 4, |x, y| image::Rgb([x as u8 * 30, y as u8 * 60, 100]))
    }

    #[test]
    fn an_outline_has_no_colour_and_every_pixel_its_place() {
        let (whole, outline) = (picture(), View::Outline.of(&picture()));
        for (from, to) in whole.pixels().zip(outline.pixels()) {
            let [r, g, b] = from.0.map(f32::from);
            let grey = (0.299 * r + 0.587 * g + 0.114 * b).round() as u8;
            assert!(to.0.iter().all(|value| value.abs_diff(grey) <= 1), "{from:?} became {to:?}");
        }
    }

    #[test]
    fn colours_are_all_there_in_another_order() {
        let count = |picture: &RgbImage| {
            let mut counts = BTreeMap::new();
            for pixel in picture.pixels() {
                *counts.entry(pixel.0).or_insert(0) += 1;
            }
            counts
        };
        let colours = View::Colour.of(&picture());
        assert_eq!(count(&colours), count(&picture()));
        assert_ne!(colours, picture());
        assert_eq!(colours, View::Colour.of(&picture()));
    }

    #[test]
    fn the_whole_is_as_it_is() {
        assert_eq!(View::Whole.of(&picture()), picture());
    }
}
