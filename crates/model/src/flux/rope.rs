//! Rotary position embedding over three axes.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use crate::config::FluxConfig;
use crate::error::{ModelError, Result};
use crate::unope::Layout;

/// Rotations of every token: complex64 `[batch or 1, 1, tokens, head_dim / 2]`, cos + i·sin.
///
/// Angles are computed in float64 and rounded to float32 as cos and sin; channels (2k, 2k+1) form pair k.
#[derive(Debug)]
pub struct RopeTable {
    rotations: Tensor,
}

impl RopeTable {
    /// The table for position ids `[batch or 1, tokens, 3]`, on the ids' device.
    pub fn from_ids(ids: &Tensor, config: &FluxConfig) -> Result<Self> {
        match ids.size().as_slice() {
            [_, _, 3] => {}
            other => {
                return Err(ModelError::input(
                    "position ids",
                    format!("shape {other:?} is not [batch, tokens, 3]"),
                ));
            }
        }
        let ids = ids.f_to_kind(Kind::Double)?;
        let mut angles = Vec::with_capacity(config.axes_dim.len());
        for (axis, width) in config.axes_dim.iter().enumerate() {
            // omega_k = theta^(-2k / width), k = 0 .. width / 2
            let exponents = Tensor::f_arange(width / 2, (Kind::Double, ids.device()))?
                .f_mul_scalar(2.0 / *width as f64)?;
            let omega = exponents.f_mul_scalar(-config.theta.ln())?.f_exp()?;
            angles.push(ids.f_select(-1, axis as i64)?.f_unsqueeze(-1)?.f_mul(&omega)?);
        }
        let angles = Tensor::f_cat(&angles, -1)?.f_unsqueeze(1)?;
        let cos = angles.f_cos()?.f_to_kind(Kind::Float)?;
        let sin = angles.f_sin()?.f_to_kind(Kind::Float)?;
        Ok(Self { rotations: Tensor::f_complex(&cos, &sin)? })
    }

    /// The table for the images of one sample; it serves a batch of any size.
    pub fn from_layout(layout: &Layout, config: &FluxConfig, device: Device) -> Result<Self> {
        Self::from_ids(&layout.ids(device)?.concatenated()?, config)
    }

    /// Another handle on the same table.
    pub fn share(&self) -> Self {
        Self { rotations: self.rotations.shallow_clone() }
    }

    /// Rotates `[.., batch, heads, tokens, head_dim]` (float32, contiguous last axis).
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.size();
        let last = shape.pop().unwrap_or(0);
        shape.extend([last / 2, 2]);
        let pairs = x.f_contiguous()?.f_view(shape.as_slice())?.f_view_as_complex()?;
        Ok(pairs.f_mul(&self.rotations)?.f_view_as_real()?.f_flatten(-2, -1)?)
    }

    /// The inverse of [`RopeTable::rotate`], and so its gradient.
    pub(crate) fn rotate_back(&self, x: &Tensor) -> Result<Tensor> {
        Self { rotations: self.rotations.f_conj()?.f_resolve_conj()? }.rotate(x)
    }

    /// The table of `count` tokens from `first` on.
    pub(crate) fn tokens(&self, first: i64, count: i64) -> Result<Self> {
        Ok(Self { rotations: self.rotations.f_narrow(2, first, count)? })
    }

    /// Cosines and sines, float32 `[batch or 1, 1, tokens, head_dim / 2, 2]`.
    pub(crate) fn pairs(&self) -> Result<Tensor> {
        Ok(self.rotations.f_view_as_real()?)
    }

    /// The published layout of the table: `[batch, 1, tokens, head_dim / 2, 2, 2]` = [[cos, −sin], [sin, cos]].
    pub fn matrices(&self) -> Result<Tensor> {
        let parts = self.rotations.f_view_as_real()?;
        let (cos, sin) = (parts.f_select(-1, 0)?, parts.f_select(-1, 1)?);
        let flat = Tensor::f_stack(&[&cos, &sin.f_neg()?, &sin, &cos], -1)?;
        let mut shape = cos.size();
        shape.extend([2, 2]);
        Ok(flat.f_reshape(shape.as_slice())?)
    }

    pub(crate) fn check(&self, batch: i64, tokens: i64, head_dim: i64) -> Result<()> {
        match self.rotations.size().as_slice() {
            [b, 1, n, half] if (*b == 1 || *b == batch) && *n == tokens && *half * 2 == head_dim => Ok(()),
            other => Err(ModelError::input(
                "rope",
                format!(
                    "table {other:?} does not fit {batch} samples of {tokens} tokens, head width {head_dim}"
                ),
            )),
        }
    }
}

/// Tables by layout, so that a training step does not compute one that it has seen.
#[derive(Debug, Default)]
pub struct RopeCache {
    tables: HashMap<Layout, RopeTable>,
}

/// Layouts kept: image buckets × reference counts stay far below; beyond it the cache starts anew.
const MOST_LAYOUTS: usize = 256;

impl RopeCache {
    /// The table for `layout` on `device`; a cache serves one configuration and one device.
    pub fn get(&mut self, layout: &Layout, config: &FluxConfig, device: Device) -> Result<RopeTable> {
        if let Some(table) = self.tables.get(layout) {
            return Ok(table.share());
        }
        if self.tables.len() >= MOST_LAYOUTS {
            self.tables.clear();
        }
        let table = RopeTable::from_layout(layout, config, device)?;
        let shared = table.share();
        self.tables.insert(layout.clone(), table);
        Ok(shared)
    }
}
