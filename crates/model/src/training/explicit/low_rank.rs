//! One low-rank update and its gradients.

use tch::Tensor;

use crate::error::Result;
use crate::layers::cast;
use crate::lora::LoraPair;

/// Adds up(down(x)) to `out` in place, if there is an adapter; returns down(x), which the backward pass needs.
pub(super) fn add(pair: Option<&LoraPair>, x: &Tensor, out: &Tensor) -> Result<Option<Tensor>> {
    let Some(pair) = pair else { return Ok(None) };
    let (down, up) = pair.factors()?;
    let compute = down.f_kind()?;
    let middle = cast(x, compute)?.f_mm(&down.f_transpose(0, 1)?)?;
    let mut out = out.shallow_clone();
    if compute == out.f_kind()? {
        drop(out.f_addmm_(&middle, &up.f_transpose(0, 1)?)?);
    } else {
        drop(out.f_add_(&middle.f_mm(&up.f_transpose(0, 1)?)?)?);
    }
    Ok(Some(middle))
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

/// Given `grad`, that of the update's output, adds the input's gradient to `grad_x` (if it is wanted) and returns the weights'.
pub(super) fn backward(
    pair: Option<&LoraPair>,
    grad: &Tensor,
    x: &Tensor,
    middle: Option<&Tensor>,
    grad_x: Option<&Tensor>,
) -> Result<Option<PairGrads>> {
    let (Some(pair), Some(middle)) = (pair, middle) else { return Ok(None) };
    let (down, up) = pair.factors()?;
    let compute = down.f_kind()?;
    let grad = cast(grad, compute)?;
    let grad_middle = grad.f_mm(&up)?;
    if let Some(grad_x) = grad_x {
        let mut grad_x = grad_x.shallow_clone();
        if compute == grad_x.f_kind()? {
            drop(grad_x.f_addmm_(&grad_middle, &down)?);
        } else {
            drop(grad_x.f_add_(&grad_middle.f_mm(&down)?)?);
        }
    }
    Ok(Some(PairGrads {
        up: grad.f_transpose(0, 1)?.f_mm(middle)?,
        down: grad_middle.f_transpose(0, 1)?.f_mm(&cast(x, compute)?)?,
    }))
}
