//! From a network's output to boxes on a picture.

use tch::{Device, Kind, Tensor};

use super::Owlv2Output;
use crate::error::{ModelError, Result};

/// A box on a picture, pixels; corners may lie outside the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundingBox {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl BoundingBox {
    fn area(&self) -> f32 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    /// Area of the intersection over area of the union, in [0, 1]; 0 for boxes without area.
    pub fn overlap(&self, other: &Self) -> f32 {
        let common = Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
        .area();
        let union = self.area() + other.area() - common;
        if union > 0.0 { common / union } else { 0.0 }
    }

    /// The whole pixels within a picture that the box touches, as (x, y, width, height); `None` if there are none.
    pub fn pixels(&self, width_px: u32, height_px: u32) -> Option<(u32, u32, u32, u32)> {
        // A cast from float to integer saturates, and takes NaN to 0.
        let span = |low: f32, high: f32, most: u32| {
            let (low, high) = (low.floor() as u32, (high.ceil() as u32).min(most));
            (low < high).then(|| (low, high - low))
        };
        let (x, width) = span(self.left, self.right, width_px)?;
        let (y, height) = span(self.top, self.bottom, height_px)?;
        Some((x, y, width, height))
    }
}

/// One object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// In [0, 1].
    pub score: f32,
    /// Index of the query that fits best.
    pub query: usize,
    pub bounds: BoundingBox,
}

/// What was found on picture `index` of the batch, whose size before it was padded to a square is `width_px` times
/// `height_px`: every cell with a score above `threshold`, in the order of cells.
pub fn detections(
    output: &Owlv2Output,
    index: i64,
    (width_px, height_px): (u32, u32),
    threshold: f32,
) -> Result<Vec<Detection>> {
    let batch = output.logits.size3()?.0;
    if !(0..batch).contains(&index) {
        return Err(ModelError::input("index", format!("picture {index} is not in a batch of {batch}")));
    }
    let (logits, query) = output.logits.f_select(0, index)?.f_max_dim(1, false)?;
    let scores: Vec<f32> = host(&logits.f_sigmoid()?)?;
    let query: Vec<i64> = Vec::try_from(&query.f_to_device(Device::Cpu)?)?;
    let side = f64::from(width_px.max(height_px));
    let parts = output.boxes.f_select(0, index)?.f_unbind(1)?;
    let [x, y, width, height] = parts.as_slice() else {
        return Err(ModelError::input("boxes", "do not have 4 numbers each"));
    };
    let corner = |centre: &Tensor, extent: &Tensor, half: f64| -> Result<Vec<f32>> {
        host(&centre.f_add(&extent.f_mul_scalar(half)?)?.f_mul_scalar(side)?)
    };
    let (left, right) = (corner(x, width, -0.5)?, corner(x, width, 0.5)?);
    let (top, bottom) = (corner(y, height, -0.5)?, corner(y, height, 0.5)?);
    let edges = left.iter().zip(&top).zip(right.iter().zip(&bottom));
    Ok(scores
        .iter()
        .zip(&query)
        .zip(edges)
        .filter(|((score, _), _)| **score > threshold)
        .map(|((score, query), ((left, top), (right, bottom)))| Detection {
            score: *score,
            query: usize::try_from(*query).unwrap_or_default(),
            bounds: BoundingBox { left: *left, top: *top, right: *right, bottom: *bottom },
        })
        .collect())
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::try_from(&tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)?)
}

/// Keeps the best of boxes that overlap by more than `most`, whatever their queries; best first.
pub fn suppress(mut found: Vec<Detection>, most: f32) -> Vec<Detection> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Detection> = Vec::new();
    for detection in found {
        if kept.iter().all(|better| better.bounds.overlap(&detection.bounds) <= most) {
            kept.push(detection);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(left: f32, top: f32, right: f32, bottom: f32) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

    #[test]
    fn overlap_is_of_areas() {
        let square = bounds(0.0, 0.0, 4.0, 4.0);
        for (other, expected) in [
            (square, 1.0),
            (bounds(2.0, 0.0, 6.0, 4.0), 8.0 / 24.0),
            (bounds(4.0, 0.0, 8.0, 4.0), 0.0),
            (bounds(1.0, 1.0, 1.0, 3.0), 0.0),
            (bounds(3.0, 3.0, 1.0, 1.0), 0.0),
        ] {
            assert_eq!(square.overlap(&other), expected, "{other:?}");
            assert_eq!(other.overlap(&square), expected, "{other:?}");
        }
        assert_eq!(bounds(1.0, 1.0, 1.0, 1.0).overlap(&bounds(1.0, 1.0, 1.0, 1.0)), 0.0);
    }

    #[test]
    fn boxes_are_cut_to_whole_pixels_of_the_picture() {
        assert_eq!(bounds(-3.0, 1.2, 4.1, 99.0).pixels(10, 8), Some((0, 1, 5, 7)));
        assert_eq!(bounds(10.0, 0.0, 12.0, 5.0).pixels(10, 8), None);
        assert_eq!(bounds(2.0, 3.0, 2.0, 3.0).pixels(10, 8), None);
        assert_eq!(bounds(f32::NAN, f32::NAN, f32::NAN, f32::NAN).pixels(10, 8), None);
    }

    #[test]
    fn the_best_of_overlapping_boxes_is_kept_whatever_its_query() {
        let found = |score: f32, query: usize, left: f32| Detection {
            score,
            query,
            bounds: bounds(left, 0.0, left + 10.0, 10.0),
        };
        let all = vec![found(0.5, 0, 0.0), found(0.9, 1, 1.0), found(0.7, 0, 30.0), found(0.6, 2, 9.0)];
        assert_eq!(suppress(all.clone(), 0.3), [all[1], all[2], all[3]]);
        assert_eq!(suppress(all.clone(), 1.0).len(), 4);
        assert!(suppress(Vec::new(), 0.3).is_empty());
    }

    #[test]
    fn boxes_scale_by_the_longer_side_and_low_scores_go() {
        let output = Owlv2Output {
            logits: Tensor::from_slice(&[-2.0f32, 2.0, 0.1, f32::MIN, -1.0, -3.0]).view([1, 3, 2]),
            boxes: Tensor::from_slice(&[0.5f32, 0.25, 0.2, 0.1, 0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 1.0, 1.0])
                .view([1, 3, 4]),
            objectness: Tensor::from_slice(&[0.0f32; 3]).view([1, 3]),
            class_vectors: Tensor::from_slice(&[0.0f32; 3]).view([1, 3, 1]),
        };
        let found = detections(&output, 0, (40, 100), 0.5).unwrap();
        assert_eq!(found.iter().map(|one| one.query).collect::<Vec<_>>(), [1, 0]);
        let first = found[0].bounds;
        for (edge, expected) in
            [(first.left, 40.0), (first.top, 20.0), (first.right, 60.0), (first.bottom, 30.0)]
        {
            assert!((edge - expected).abs() < 1e-4, "{first:?}");
        }
        assert!((found[0].score - 0.880_797).abs() < 1e-5);
        assert!(detections(&output, 1, (40, 100), 0.5).is_err());
    }
}
