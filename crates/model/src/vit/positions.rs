//! Position embeddings for a grid of another size than the stored one.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::layers::cast;

/// How stored positions are resized: by bicubic interpolation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PositionRule {
    /// The corners of both grids coincide: what current libraries do for DINOv2.
    #[default]
    ExplicitSize,
    /// The ratio of the sides is taken as (new + 0.1) / stored, which shifts the samples a little: what DINO's own code
    /// does (facebookresearch/dino `vision_transformer.py`), and older libraries for DINOv2.
    ScaleFactor,
    /// As `ExplicitSize`, with antialiasing, which shows where the grid becomes smaller: what DINOv2 with registers does.
    Antialiased,
}

/// Added to the new side under [`PositionRule::ScaleFactor`]; meant to keep a rounded ratio from losing a row.
const SCALE_OFFSET: f64 = 0.1;

/// Most rows, and columns, of a grid.
const MAX_SIDE: i64 = 4096;

/// `stored` `[1, 1 + side · side, hidden]`, class position first, for a grid of `rows` and `columns`:
/// `[1, 1 + rows · columns, hidden]` in the same dtype. The stored grid is used as it is where it fits.
pub(super) fn resized(
    stored: &Tensor,
    side: i64,
    rows: i64,
    columns: i64,
    rule: PositionRule,
) -> Result<Tensor> {
    if rows == side && columns == side {
        return Ok(stored.shallow_clone());
    }
    if !(1..=MAX_SIDE).contains(&rows) || !(1..=MAX_SIDE).contains(&columns) {
        return Err(ModelError::input(
            "grid",
            format!("{rows} x {columns} is not within 1 to {MAX_SIDE} cells a side"),
        ));
    }
    let (kind, hidden) = (stored.kind(), stored.size3()?.2);
    let factor = |new: i64| match rule {
        PositionRule::ExplicitSize | PositionRule::Antialiased => None,
        PositionRule::ScaleFactor => Some((new as f64 + SCALE_OFFSET) / side as f64),
    };
    let class = stored.f_narrow(1, 0, 1)?;
    // [1, side * side, hidden] -> [1, hidden, side, side] -> [1, hidden, rows, columns] -> [1, rows * columns, hidden]
    let grid = cast(&stored.f_narrow(1, 1, side * side)?, Kind::Float)?
        .f_reshape([1, side, side, hidden])?
        .f_permute([0, 3, 1, 2])?;
    let grid = match rule {
        PositionRule::Antialiased => {
            grid.f_internal_upsample_bicubic2d_aa([rows, columns], false, None, None)?
        }
        _ => grid.f_upsample_bicubic2d([rows, columns], false, factor(rows), factor(columns))?,
    };
    let grid = grid.f_permute([0, 2, 3, 1])?.f_reshape([1, rows * columns, hidden])?;
    Ok(Tensor::f_cat(&[class, cast(&grid, kind)?], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Stored positions whose value is row + 100 · column.
    fn ramp(side: i64) -> Tensor {
        let cells = (0..side).flat_map(|row| (0..side).map(move |column| (row + 100 * column) as f32));
        let values: Vec<f32> = std::iter::once(-7.0).chain(cells).collect();
        Tensor::from_slice(&values).view([1, 1 + side * side, 1])
    }

    fn value(positions: &Tensor, columns: i64, row: i64, column: i64) -> f64 {
        positions.double_value(&[0, 1 + row * columns + column, 0])
    }

    /// A ramp of slope 1 at `x`, cubically interpolated with the coefficient −0.75: not quite straight.
    fn cubic(x: f64) -> f64 {
        const A: f64 = -0.75;
        let start = x.floor() - 1.0;
        (0..4)
            .map(|i| start + f64::from(i))
            .map(|place| {
                let d = (x - place).abs();
                let weight = if d <= 1.0 {
                    (A + 2.0) * d.powi(3) - (A + 3.0) * d.powi(2) + 1.0
                } else {
                    A * d.powi(3) - 5.0 * A * d.powi(2) + 8.0 * A * d - 4.0 * A
                };
                weight * place
            })
            .sum()
    }

    #[test]
    fn samples_lie_where_the_rule_puts_them() {
        let (side, rows, columns) = (12, 24, 18);
        for (rule, offset) in [(PositionRule::ExplicitSize, 0.0), (PositionRule::ScaleFactor, 0.1)] {
            let found = resized(&ramp(side), side, rows, columns, rule).unwrap();
            assert_eq!(found.size(), [1, 1 + rows * columns, 1]);
            assert_eq!(found.double_value(&[0, 0, 0]), -7.0);
            // Half-pixel centres, away from the border.
            let at = |index: i64, new: i64| (index as f64 + 0.5) * side as f64 / (new as f64 + offset) - 0.5;
            for (row, column) in [(8, 7), (12, 9), (15, 11)] {
                let expected = cubic(at(row, rows)) + 100.0 * cubic(at(column, columns));
                let error = (value(&found, columns, row, column) - expected).abs();
                assert!(error < 5e-3, "{rule:?} at {row}, {column}: off by {error}");
            }
        }
    }

    #[test]
    fn the_stored_grid_is_kept_and_impossible_ones_are_refused() {
        let stored = ramp(3);
        for rule in [PositionRule::ExplicitSize, PositionRule::ScaleFactor] {
            assert_eq!(resized(&stored, 3, 3, 3, rule).unwrap(), stored);
            for (rows, columns) in [(0, 3), (3, -1), (3, 1 << 40)] {
                assert!(resized(&stored, 3, rows, columns, rule).is_err());
            }
        }
        let half = resized(&stored.to_kind(Kind::BFloat16), 3, 2, 5, PositionRule::ExplicitSize).unwrap();
        assert_eq!((half.kind(), half.device()), (Kind::BFloat16, Device::Cpu));
    }
}
