//! A frozen layer with its low-rank update, forward and backward.

use tch::Tensor;

use super::{empty, linear_backward};
use crate::error::Result;
use crate::fused::profile;
use crate::layers::{Linear, cast};
use crate::lora::{Joined, LoraPair};

/// x Wᵀ + b + up(down(x)), where `up` has as many outputs as the layer or fewer, and then the first ones.
pub(super) struct Adapted<'a> {
    /// Its first outputs are those of `down`, where the weights of both are joined: one product gives both.
    layer: Linear,
    /// How many these are.
    rank: i64,
    pair: Option<&'a LoraPair>,
}

/// What a layer gave.
pub(super) struct Output {
    /// `[rows, out]`, columns side by side.
    pub out: Tensor,
    /// down(x) `[rows, rank]`, which the backward pass needs.
    pub middle: Option<Tensor>,
}

/// The gradient of an output, to be filled in.
pub(super) struct OutputGrad {
    /// With room for that of down(x), where weights are joined.
    all: Tensor,
    /// `[rows, out]`, columns side by side.
    pub out: Tensor,
}

/// Gradients of one update, in the dtype of its arithmetic: `down` `[rank, in]`, `up` `[out, rank]`.
pub(super) struct PairGrads {
    pub down: Tensor,
    pub up: Tensor,
}

impl PairGrads {
    /// In the order in which the pair's weights are visited.
    pub fn push_to(self, grads: &mut Vec<Tensor>) {
        grads.extend([self.down, self.up]);
    }
}

impl<'a> Adapted<'a> {
    pub fn new(layer: &Linear, pair: Option<&'a LoraPair>) -> Result<Self> {
        let shared = |tensor: &Tensor| Ok(tensor.shallow_clone());
        match pair.and_then(LoraPair::joined) {
            Some(Joined { layer, rank }) => Ok(Self { layer: layer.mapped(&shared)?, rank: *rank, pair }),
            None => Ok(Self { layer: layer.mapped(&shared)?, rank: 0, pair }),
        }
    }

    /// The layer's first `count` outputs, among which all of the update's are, and the layer that gives the others.
    pub fn split(&self, count: i64) -> Result<(Self, Linear)> {
        let (all, first) = (self.layer.weight.size2()?.0, self.rank + count);
        let with_update = Self { layer: self.layer.outputs(0, first)?, rank: self.rank, pair: self.pair };
        Ok((with_update, self.layer.outputs(first, all - first)?))
    }

    /// For `x` `[rows, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Output> {
        let _timed = profile::part(profile::PRODUCTS, x.device());
        let all = self.layer.forward(x)?;
        let Some(pair) = self.pair else { return Ok(Output { out: all, middle: None }) };
        let (down, up) = pair.factors()?;
        if self.rank > 0 {
            let out = all.f_narrow(1, self.rank, all.size2()?.1 - self.rank)?;
            let middle = all.f_narrow(1, 0, self.rank)?;
            let mut updated = out.f_narrow(1, 0, up.size2()?.0)?;
            drop(updated.f_addmm_(&middle, &up.f_transpose(0, 1)?)?);
            return Ok(Output { out, middle: Some(middle) });
        }
        let compute = down.f_kind()?;
        let middle = cast(x, compute)?.f_mm(&down.f_transpose(0, 1)?)?;
        let mut updated = all.f_narrow(1, 0, up.size2()?.0)?;
        if compute == all.f_kind()? {
            drop(updated.f_addmm_(&middle, &up.f_transpose(0, 1)?)?);
        } else {
            drop(updated.f_add_(&middle.f_mm(&up.f_transpose(0, 1)?)?)?);
        }
        Ok(Output { out: all, middle: Some(middle) })
    }

    /// For `rows` rows of the dtype of `like`, and on its device.
    pub fn output_grad(&self, rows: i64, like: &Tensor) -> Result<OutputGrad> {
        let width = self.layer.weight.size2()?.0;
        let all = empty(&[rows, width], like)?;
        let out = all.f_narrow(1, self.rank, width - self.rank)?;
        Ok(OutputGrad { all, out })
    }

    /// The gradients of `x` (if `track`) and of the update's weights; `middle` is what [`Adapted::forward`] gave for `x`.
    pub fn backward(
        &self,
        grad: &OutputGrad,
        x: &Tensor,
        middle: Option<&Tensor>,
        track: bool,
    ) -> Result<(Option<Tensor>, Option<PairGrads>)> {
        let _timed = profile::part(profile::PRODUCTS, x.device());
        let through = |grad: &Tensor| track.then(|| linear_backward(&self.layer, grad)).transpose();
        let (Some(pair), Some(middle)) = (self.pair, middle) else { return Ok((through(&grad.all)?, None)) };
        let (down, up) = pair.factors()?;
        let compute = down.f_kind()?;
        let updated = cast(&grad.out.f_narrow(1, 0, up.size2()?.0)?, compute)?;
        let (grad_x, grad_middle) = if self.rank > 0 {
            let grad_middle = grad.all.f_narrow(1, 0, self.rank)?;
            drop(updated.f_mm_out(&grad_middle, &up)?);
            (through(&grad.all)?, grad_middle)
        } else {
            let (grad_x, grad_middle) = (through(&grad.all)?, updated.f_mm(&up)?);
            if let Some(mut grad_x) = grad_x.as_ref().map(Tensor::shallow_clone) {
                if compute == grad_x.f_kind()? {
                    drop(grad_x.f_addmm_(&grad_middle, &down)?);
                } else {
                    drop(grad_x.f_add_(&grad_middle.f_mm(&down)?)?);
                }
            }
            (grad_x, grad_middle)
        };
        let grads = PairGrads {
            up: updated.f_transpose(0, 1)?.f_mm(middle)?,
            down: grad_middle.f_transpose(0, 1)?.f_mm(&cast(x, compute)?)?,
        };
        Ok((grad_x, Some(grads)))
    }
}
