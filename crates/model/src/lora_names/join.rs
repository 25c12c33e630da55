//! The updates of one projection as one pair.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::alpha::Alphas;
use super::{Rows, Update, Widths};
use crate::error::Result;
use crate::lora_sites::Site;
use crate::weight_files::WeightFiles;

/// `down` `[rank, in]` and `up` `[out, rank]`, float32, the scale in `up`.
#[derive(Debug)]
pub(super) struct Part {
    pub down: Tensor,
    pub up: Tensor,
}

impl Part {
    /// Both halves of an update, which the plan has found to fit each other.
    pub fn read(files: &WeightFiles, update: &Update, alphas: &Alphas) -> Result<Self> {
        let read = |name: &Option<String>| -> Result<Tensor> {
            Ok(files.tensor(name.as_deref().unwrap_or_default())?.f_to_kind(Kind::Float)?)
        };
        let (down, up) = (read(&update.down)?, read(&update.up)?);
        let scale = alphas.scale(files, update, down.size2()?.0)?;
        Ok(Self { down, up: up.f_mul_scalar(scale)? })
    }

    /// A pair that changes nothing.
    pub fn zero(rank: i64, (input, output): (i64, i64)) -> Result<Self> {
        let zeros = |shape: [i64; 2]| Tensor::f_zeros(shape, (Kind::Float, Device::Cpu));
        Ok(Self { down: zeros([rank, input])?, up: zeros([output, rank])? })
    }

    /// The same update at a higher rank.
    pub fn of_rank(self, rank: i64) -> Result<Self> {
        let more = rank - self.down.size2()?.0;
        if more == 0 {
            return Ok(self);
        }
        let Self { down, up } = Self::zero(more, (self.down.size2()?.1, self.up.size2()?.0))?;
        Ok(Self { down: Tensor::f_cat(&[self.down, down], 0)?, up: Tensor::f_cat(&[self.up, up], 1)? })
    }
}

/// One pair for all rows of a site. The error says what an adapter here cannot hold.
pub(super) fn joined(site: Site, mut parts: BTreeMap<Rows, Part>, widths: Widths) -> Result<Part, String> {
    let torch = |error: tch::TchError| crate::error::ModelError::from(error).to_string();
    if let Some(whole) = parts.remove(&Rows::All) {
        if !parts.is_empty() {
            return Err("it has updates for all rows and for some".to_owned());
        }
        return if site == Site::SingleQkv { without_mlp(whole, widths) } else { Ok(whole) };
    }
    let thirds: Vec<(i64, Part)> = parts
        .into_iter()
        .map(|(rows, part)| (if let Rows::Third(third) = rows { third as i64 } else { 0 }, part))
        .collect();
    let Some((_, first)) = thirds.first() else { return Err("it has no update".to_owned()) };
    let rows = first.up.size().first().copied().unwrap_or(0);
    let input = first.down.size().get(1).copied().unwrap_or(0);
    if thirds
        .iter()
        .any(|(_, part)| part.up.size().first() != Some(&rows) || part.down.size().get(1) != Some(&input))
    {
        return Err("queries, keys and values have different widths".to_owned());
    }
    let same = thirds.iter().all(|(_, part)| part.down == first.down);
    let ranks: Vec<i64> = thirds.iter().map(|(_, part)| part.down.size()[0]).collect();
    let rank = if same { ranks[0] } else { ranks.iter().sum() };
    let fill = || -> Result<Part, tch::TchError> {
        let down = if same {
            first.down.shallow_clone()
        } else {
            Tensor::f_cat(&thirds.iter().map(|(_, part)| &part.down).collect::<Vec<_>>(), 0)?
        };
        let up = Tensor::f_zeros([3 * rows, rank], (Kind::Float, Device::Cpu))?;
        let mut column = 0;
        for ((third, part), rank) in thirds.iter().zip(&ranks) {
            up.f_narrow(0, third * rows, rows)?.f_narrow(1, column, *rank)?.f_copy_(&part.up)?;
            column += if same { 0 } else { *rank };
        }
        Ok(Part { down, up })
    };
    fill().map_err(torch)
}

/// A single block's first matrix holds its MLP's rows below the others, which an adapter here leaves alone.
fn without_mlp(whole: Part, widths: Widths) -> Result<Part, String> {
    let torch = |error: tch::TchError| crate::error::ModelError::from(error).to_string();
    let (rows, wanted) = (whole.up.size().first().copied().unwrap_or(0), widths.hidden.saturating_mul(3));
    if rows <= wanted {
        return Ok(whole);
    }
    let cut = || -> Result<(Tensor, bool), tch::TchError> {
        let below = whole.up.f_narrow(0, wanted, rows - wanted)?;
        Ok((
            whole.up.f_narrow(0, 0, wanted)?.f_contiguous()?,
            below.f_count_nonzero(None)?.f_int64_value(&[])? > 0,
        ))
    };
    let (up, updated) = cut().map_err(torch)?;
    if updated {
        return Err("it updates the MLP too, which adapters here do not cover".to_owned());
    }
    Ok(Part { down: whole.down, up })
}
