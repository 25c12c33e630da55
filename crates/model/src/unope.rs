//! Position ids of text, target and references (UnoPE, arXiv 2504.02160 section 3.3, and its variants), whose offset can be
//! scaled.
//!
//! A token's id is (frame, row, column). Ids are float32 throughout: bfloat16 cannot tell positions above
//! 256 apart.
//!
//! ```text
//!   diagonal:  target | .        height:  target     frame:  target at frame 0,
//!              -------+-------            -------            reference n at frame n+1,
//!                .    | ref 0             ref 0              rows and columns from 0
//! ```

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Where a reference's positions start relative to everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionMode {
    /// Rows and columns both start past everything before: images share no row and no column.
    Diagonal,
    /// Only rows are shifted.
    Height,
    /// Only columns are shifted.
    Width,
    /// No shift: references overlap the target.
    None,
    /// Rows and columns start at 0, the frame axis counts 1, 2, … for the references.
    Frame,
}

impl PositionMode {
    /// The name as a job spec spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diagonal => "diagonal",
            Self::Height => "height",
            Self::Width => "width",
            Self::None => "none",
            Self::Frame => "frame",
        }
    }
}

impl FromStr for PositionMode {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Diagonal, Self::Height, Self::Width, Self::None, Self::Frame]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| ModelError::Config {
                field: "positions",
                reason: format!("{name:?} is not one of diagonal, height, width, none, frame"),
            })
    }
}

/// Where references go: on which axes they are offset, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offsets {
    pub mode: PositionMode,
    /// Times the published offset, in thousandths.
    thousandths: u32,
}

impl Offsets {
    /// UnoPE as published.
    pub const PUBLISHED: Offsets = Offsets::unscaled(PositionMode::Diagonal);

    /// `mode` with offsets as published.
    pub const fn unscaled(mode: PositionMode) -> Self {
        Self { mode, thousandths: 1000 }
    }

    /// With offsets `scale` times as large, to three decimals. Not a number is 0.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        // `as` cuts off what does not fit.
        Self { thousandths: (scale * 1000.0).round() as u32, ..self }
    }

    fn of(self, published: i64) -> f64 {
        published as f64 * f64::from(self.thousandths) / 1000.0
    }
}

impl From<PositionMode> for Offsets {
    fn from(mode: PositionMode) -> Self {
        Self::unscaled(mode)
    }
}

/// A grid of tokens: rows and columns, half the latent's height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    pub rows: i64,
    pub columns: i64,
}

impl Grid {
    /// The grid of a latent tensor `[.., height, width]`.
    pub fn of_latent(latent: &Tensor) -> Result<Self> {
        match *latent.size().as_slice() {
            [.., height, width] if height >= 2 && width >= 2 && height % 2 == 0 && width % 2 == 0 => {
                Ok(Self { rows: height / 2, columns: width / 2 })
            }
            _ => Err(ModelError::input(
                "latent",
                format!("shape {:?} does not end in an even height and width", latent.size()),
            )),
        }
    }

    pub fn tokens(self) -> i64 {
        self.rows * self.columns
    }
}

/// The images of one sample, as far as positions go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    pub text_tokens: i64,
    pub target: Grid,
    pub references: Vec<Grid>,
    pub offsets: Offsets,
}

/// Ids of one sample, each float32 `[1, tokens, 3]`.
#[derive(Debug)]
pub struct PositionIds {
    pub text: Tensor,
    pub target: Tensor,
    pub references: Vec<Tensor>,
}

impl PositionIds {
    /// All ids in the order of attention: text, target, reference 0, …: float32 `[1, tokens, 3]`.
    pub fn concatenated(&self) -> Result<Tensor> {
        let mut parts = vec![&self.text, &self.target];
        parts.extend(&self.references);
        Ok(Tensor::f_cat(&parts, 1)?)
    }
}

impl Layout {
    /// Ids of text (all zero), target (from 0) and references (shifted as `offsets` says).
    pub fn ids(&self, device: Device) -> Result<PositionIds> {
        let mut offset_rows = self.target.rows;
        let mut offset_columns = self.target.columns;
        let mut references = Vec::with_capacity(self.references.len());
        for (index, grid) in self.references.iter().enumerate() {
            let (frame, row, column) = match self.offsets.mode {
                PositionMode::Diagonal => (0, offset_rows, offset_columns),
                PositionMode::Height => (0, offset_rows, 0),
                PositionMode::Width => (0, 0, offset_columns),
                PositionMode::None => (0, 0, 0),
                PositionMode::Frame => (index as i64 + 1, 0, 0),
            };
            let [frame, row, column] = [frame, row, column].map(|published| self.offsets.of(published));
            references.push(grid_ids(*grid, frame, row, column, device)?);
            // Both offsets grow in every mode, also on the axis that the mode does not shift.
            offset_rows += grid.rows;
            offset_columns += grid.columns;
        }
        Ok(PositionIds {
            text: Tensor::f_zeros([1, self.text_tokens, 3], (Kind::Float, device))?,
            target: grid_ids(self.target, 0.0, 0.0, 0.0, device)?,
            references,
        })
    }
}

/// Row-major ids of one grid starting at (`frame`, `row`, `column`): float32 `[1, rows · columns, 3]`.
fn grid_ids(grid: Grid, frame: f64, row: f64, column: f64, device: Device) -> Result<Tensor> {
    let options = (Kind::Float, device);
    let shape = [grid.rows, grid.columns];
    let frames = Tensor::f_full(shape, frame, options)?;
    let rows =
        Tensor::f_arange(grid.rows, options)?.f_add_scalar(row)?.f_unsqueeze(1)?.f_expand(shape, false)?;
    let columns = Tensor::f_arange(grid.columns, options)?
        .f_add_scalar(column)?
        .f_unsqueeze(0)?
        .f_expand(shape, false)?;
    Ok(Tensor::f_stack(&[frames, rows, columns], -1)?.f_reshape([1, grid.tokens(), 3])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_id(offsets: impl Into<Offsets>, reference: usize) -> Vec<f32> {
        let layout = Layout {
            text_tokens: 2,
            target: Grid { rows: 4, columns: 6 },
            references: vec![Grid { rows: 2, columns: 3 }, Grid { rows: 5, columns: 1 }],
            offsets: offsets.into(),
        };
        let ids = layout.ids(Device::Cpu).unwrap();
        assert_eq!(ids.concatenated().unwrap().size(), [1, 2 + 24 + 6 + 5, 3]);
        Vec::try_from(ids.references[reference].get(0).get(0)).unwrap()
    }

    #[test]
    fn each_mode_shifts_its_own_axes() {
        assert_eq!(first_id(PositionMode::Diagonal, 0), [0.0, 4.0, 6.0]);
        assert_eq!(first_id(PositionMode::Diagonal, 1), [0.0, 6.0, 9.0]);
        assert_eq!(first_id(PositionMode::Height, 1), [0.0, 6.0, 0.0]);
        assert_eq!(first_id(PositionMode::Width, 1), [0.0, 0.0, 9.0]);
        assert_eq!(first_id(PositionMode::None, 1), [0.0, 0.0, 0.0]);
        assert_eq!(first_id(PositionMode::Frame, 0), [1.0, 0.0, 0.0]);
        assert_eq!(first_id(PositionMode::Frame, 1), [2.0, 0.0, 0.0]);
    }

    #[test]
    fn offsets_are_scaled_and_the_target_stays() {
        let diagonal = Offsets::PUBLISHED;
        assert_eq!(first_id(diagonal.scaled(0.5), 0), [0.0, 2.0, 3.0]);
        assert_eq!(first_id(diagonal.scaled(2.0), 1), [0.0, 12.0, 18.0]);
        assert_eq!(first_id(Offsets::from(PositionMode::Frame).scaled(3.0), 1), [6.0, 0.0, 0.0]);
        assert_eq!(diagonal.scaled(1.0), diagonal);
        let grids = (Grid { rows: 4, columns: 6 }, vec![Grid { rows: 2, columns: 3 }]);
        let layout =
            Layout { text_tokens: 2, target: grids.0, references: grids.1, offsets: diagonal.scaled(0.5) };
        let target: Vec<f32> = Vec::try_from(layout.ids(Device::Cpu).unwrap().target.get(0).get(0)).unwrap();
        assert_eq!(target, [0.0, 0.0, 0.0]);
    }

    #[test]
    fn names_parse_back() {
        for name in ["diagonal", "height", "width", "none", "frame"] {
            assert_eq!(name.parse::<PositionMode>().unwrap().name(), name);
        }
        assert!("d".parse::<PositionMode>().is_err());
    }
}
