//! Large pictures in tiles, so that memory is bounded by a tile.
//!
//! Tiles overlap, and in an overlap each result counts less the nearer it is to its tile's edge. Each tile has norms
//! of its own, so the result is close to that of the whole picture but not the same.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};

/// When and how a picture is cut, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// A picture with no side above this is done in one piece.
    pub limit_px: i64,
    /// Longest side of a tile; at most `limit_px`, a multiple of the codec's downscale.
    pub tile_px: i64,
    /// Least overlap of neighbours; at most half a tile, a multiple of the codec's downscale.
    pub overlap_px: i64,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { limit_px: 1536, tile_px: 1024, overlap_px: 256 }
    }
}

/// A stretch of one side, in cells (latent pixels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: i64,
    cells: i64,
}

impl Span {
    fn end(self) -> i64 {
        self.start + self.cells
    }
}

impl Tiling {
    /// Fails with the field that does not fit a codec with this downscale.
    pub fn validate(&self, downscale: i64) -> Result<()> {
        let bad = |field: &'static str, reason: String| Err(ModelError::Config { field, reason });
        if self.tile_px < 2 * downscale || self.tile_px > self.limit_px {
            let reason = format!("{} is not in {} to {}", self.tile_px, 2 * downscale, self.limit_px);
            return bad("tile_px", reason);
        }
        if self.overlap_px < downscale || self.overlap_px > self.tile_px / 2 {
            let reason = format!("{} is not in {downscale} to half a tile", self.overlap_px);
            return bad("overlap_px", reason);
        }
        for (field, value) in [("tile_px", self.tile_px), ("overlap_px", self.overlap_px)] {
            if value % downscale != 0 {
                return bad(field, format!("{value} is not a multiple of {downscale}"));
            }
        }
        Ok(())
    }

    /// The tiles of a side of `length` cells: of one size, that of the fewest tiles which cover the side with the
    /// least overlap between each and the next.
    fn spans(&self, length: i64, downscale: i64) -> Vec<Span> {
        let (tile, overlap) = (self.tile_px / downscale, self.overlap_px / downscale);
        if length <= tile {
            return vec![Span { start: 0, cells: length }];
        }
        let ceil = |a: i64, b: i64| (a + b - 1) / b;
        let count = ceil(length - overlap, tile - overlap);
        let cells = ceil(length + (count - 1) * overlap, count);
        (0..count).map(|i| Span { start: (i * (cells - overlap)).min(length - cells), cells }).collect()
    }
}

/// For each span the weight of each of its positions, `resolution` positions to a cell. Weights of one position sum to 1
/// over the spans; within an overlap they rise and fall linearly.
fn weights(spans: &[Span], resolution: i64) -> Vec<Vec<f32>> {
    let length = spans.iter().map(|span| span.end()).max().unwrap_or(0) * resolution;
    let mut sums = vec![0f64; usize::try_from(length).unwrap_or_default()];
    let raw: Vec<Vec<f64>> = spans
        .iter()
        .enumerate()
        .map(|(i, span)| {
            let before = i.checked_sub(1).and_then(|i| spans.get(i)).map_or(0, |b| b.end() - span.start);
            let after = spans.get(i + 1).map_or(0, |next| span.end() - next.start);
            let ramp = |distance: i64, overlap: i64| {
                let overlap = overlap * resolution;
                if overlap > 0 { ((distance as f64 + 0.5) / overlap as f64).min(1.0) } else { 1.0 }
            };
            let count = span.cells * resolution;
            (0..count).map(|x| ramp(x, before).min(ramp(count - 1 - x, after))).collect()
        })
        .collect();
    for (span, raw) in spans.iter().zip(&raw) {
        let start = usize::try_from(span.start * resolution).unwrap_or_default();
        for (sum, weight) in sums.iter_mut().skip(start).zip(raw) {
            *sum += weight;
        }
    }
    spans
        .iter()
        .zip(&raw)
        .map(|(span, raw)| {
            let start = usize::try_from(span.start * resolution).unwrap_or_default();
            raw.iter().zip(sums.iter().skip(start)).map(|(weight, sum)| (weight / sum) as f32).collect()
        })
        .collect()
}

/// Positions to a cell, of what goes in and of what comes out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolutions {
    pub input: i64,
    pub output: i64,
}

/// Runs `network` on `x` `[batch, channels, rows · input, columns · input]`, whole or in tiles; gives float32
/// `[batch, .., rows · output, columns · output]`. `network` gets stretches of `x` and must keep that relation.
pub(super) fn run(
    tiling: &Tiling,
    x: &Tensor,
    scales: Resolutions,
    network: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, _, height, width) = x.size4()?;
    let downscale = scales.input.max(scales.output);
    let (rows, columns) = (height / scales.input, width / scales.input);
    if rows.max(columns) * downscale <= tiling.limit_px {
        return Ok(network(x)?.f_to_kind(Kind::Float)?);
    }
    let (down, across) = (tiling.spans(rows, downscale), tiling.spans(columns, downscale));
    let (down_weights, across_weights) = (weights(&down, scales.output), weights(&across, scales.output));
    let mut whole: Option<Tensor> = None;
    for (row, row_weights) in down.iter().zip(&down_weights) {
        for (column, column_weights) in across.iter().zip(&across_weights) {
            let tile = x.f_narrow(2, row.start * scales.input, row.cells * scales.input)?.f_narrow(
                3,
                column.start * scales.input,
                column.cells * scales.input,
            )?;
            let done = network(&tile.f_contiguous()?)?.f_to_kind(Kind::Float)?;
            let (_, channels, done_height, done_width) = done.size4()?;
            let weight = |values: &[f32], shape: [i64; 2]| -> Result<Tensor> {
                Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(done.device())?)
            };
            let done = done
                .f_mul(&weight(row_weights, [done_height, 1])?)?
                .f_mul(&weight(column_weights, [1, done_width])?)?;
            let canvas = match whole.take() {
                Some(canvas) => canvas,
                None => {
                    let shape = [batch, channels, rows * scales.output, columns * scales.output];
                    Tensor::f_zeros(shape, (Kind::Float, done.device()))?
                }
            };
            let _ = canvas
                .f_narrow(2, row.start * scales.output, done_height)?
                .f_narrow(3, column.start * scales.output, done_width)?
                .f_add_(&done)?;
            whole = Some(canvas);
        }
    }
    whole.ok_or_else(|| ModelError::input("picture", "has no pixels"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const SMALL: Tiling = Tiling { limit_px: 64, tile_px: 48, overlap_px: 16 };

    #[test]
    fn tiles_cover_a_side_with_enough_overlap_and_none_is_too_long() {
        for (tile_px, overlap_px) in [(48, 16), (48, 24), (64, 8), (16, 8)] {
            let tiling = Tiling { limit_px: 64, tile_px, overlap_px };
            tiling.validate(8).unwrap();
            for length in 1..200 {
                let spans = tiling.spans(length, 8);
                assert_eq!(spans[0].start, 0);
                assert_eq!(spans.last().unwrap().end(), length);
                for pair in spans.windows(2) {
                    assert!(pair[0].start < pair[1].start, "{length}: {spans:?}");
                    assert!(pair[0].end() - pair[1].start >= overlap_px / 8, "{length}: {spans:?}");
                }
                assert!(spans.iter().all(|span| span.cells * 8 <= tile_px), "{length}: {spans:?}");
                let mut sums = vec![0f32; length as usize * 2];
                for (span, weights) in spans.iter().zip(weights(&spans, 2)) {
                    assert_eq!(weights.len() as i64, span.cells * 2);
                    for (i, weight) in weights.into_iter().enumerate() {
                        assert!(weight > 0.0);
                        sums[span.start as usize * 2 + i] += weight;
                    }
                }
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn tiles_put_a_picture_back_together_at_every_multiple_of_16() {
        for (height, width) in [(16, 80), (80, 64), (176, 112), (64, 64), (48, 304)] {
            let x = (Tensor::arange(2 * height * width, (Kind::Float, Device::Cpu)) * 0.1)
                .sin()
                .view([2, 1, height, width]);
            let mut largest = 0;
            let mut same = |tile: &Tensor| -> Result<Tensor> {
                largest = largest.max(tile.size()[2]).max(tile.size()[3]);
                Ok(tile.f_avg_pool2d([8, 8], [8, 8], [0, 0], false, true, None)?)
            };
            let found = run(&SMALL, &x, Resolutions { input: 8, output: 1 }, &mut same).unwrap();
            let expected = x.avg_pool2d([8, 8], [8, 8], [0, 0], false, true, None);
            assert_eq!(found.size(), [2, 1, height / 8, width / 8]);
            assert!((&found - &expected).abs().max().double_value(&[]) < 1e-6);
            assert!(largest <= if height.max(width) > 64 { 48 } else { 64 }, "{height}x{width}: {largest}");

            let mut grow = |tile: &Tensor| -> Result<Tensor> {
                let (_, _, height, width) = tile.size4()?;
                Ok(tile.f_upsample_nearest2d([8 * height, 8 * width], None, None)?)
            };
            let grown = run(&SMALL, &found, Resolutions { input: 1, output: 8 }, &mut grow).unwrap();
            let expected = found.upsample_nearest2d([height, width], None, None);
            assert!((&grown - &expected).abs().max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        for (tiling, field) in [
            (Tiling { tile_px: 8, ..SMALL }, "tile_px"),
            (Tiling { tile_px: 128, ..SMALL }, "tile_px"),
            (Tiling { tile_px: 44, ..SMALL }, "tile_px"),
            (Tiling { overlap_px: 0, ..SMALL }, "overlap_px"),
            (Tiling { overlap_px: 32, ..SMALL }, "overlap_px"),
            (Tiling { overlap_px: 12, ..SMALL }, "overlap_px"),
        ] {
            let error = tiling.validate(8).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        Tiling::default().validate(8).unwrap();
    }
}
