//! Attention over all tokens, forward and backward.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::flux::fused_attention;
use crate::fused::{Fused, Heads};
use crate::training::backward::{gradients, leaf};

/// What the backward pass needs.
pub(super) enum Kept {
    /// Softmax of the scores, `[batch · heads, queries, keys]`.
    Probabilities(Tensor),
    /// A GPU's fused kernel, which keeps a number a token: autograd's graph of it alone.
    Graph { query: Tensor, key: Tensor, value: Tensor, out: Tensor },
}

fn scale_of(heads: &Heads) -> f64 {
    heads.query.size().last().map_or(1.0, |width| 1.0 / (*width as f64).sqrt())
}

/// `[batch, heads, tokens, width]` as `[batch · heads, tokens, width]`.
fn flat(x: &Tensor) -> Result<Tensor> {
    let (_, _, tokens, width) = x.size4()?;
    Ok(x.f_view([-1, tokens, width])?)
}

/// Softmax(q kᵀ / √width) v, shaped as `query`, which may have fewer tokens than keys and values.
pub(super) fn forward(fused: Fused, heads: &Heads) -> Result<(Tensor, Kept)> {
    if heads.query.device() == Device::Cpu {
        // Plain products are faster than libtorch's fused kernel on the CPU at these sizes.
        let scores = flat(&heads.query)?.f_bmm(&flat(&heads.key)?.f_transpose(1, 2)?)?;
        fused.softmax(&scores, scale_of(heads))?;
        let out = scores.f_bmm(&flat(&heads.value)?)?;
        return Ok((out.f_view(heads.query.size().as_slice())?, Kept::Probabilities(scores)));
    }
    tch::with_grad(|| {
        let (query, key, value) =
            (leaf(&heads.query, true)?, leaf(&heads.key, true)?, leaf(&heads.value, true)?);
        let out = fused_attention(&query, &key, &value)?;
        Ok((out.f_detach()?.f_contiguous()?, Kept::Graph { query, key, value, out }))
    })
}

/// The gradients of queries, keys and values.
pub(super) fn backward(fused: Fused, heads: &Heads, kept: Kept, grad: &Tensor) -> Result<Heads> {
    match kept {
        Kept::Probabilities(probabilities) => {
            let grad = flat(grad)?;
            let shaped =
                |x: Tensor, like: &Tensor| -> Result<Tensor> { Ok(x.f_view(like.size().as_slice())?) };
            let value = shaped(probabilities.f_transpose(1, 2)?.f_bmm(&grad)?, &heads.value)?;
            let grad_scores = grad.f_bmm(&flat(&heads.value)?.f_transpose(1, 2)?)?;
            fused.softmax_backward(&probabilities, &grad_scores, scale_of(heads))?;
            drop(probabilities);
            let query = shaped(grad_scores.f_bmm(&flat(&heads.key)?)?, &heads.query)?;
            let key = shaped(grad_scores.f_transpose(1, 2)?.f_bmm(&flat(&heads.query)?)?, &heads.key)?;
            Ok(Heads { query, key, value })
        }
        Kept::Graph { query, key, value, out } => tch::with_grad(|| {
            let mut grads = gradients(&[(&out, grad)], &[&query, &key, &value])?.into_iter();
            let mut next = || {
                let grad = grads.next().filter(Tensor::defined);
                let grad = grad.ok_or_else(|| ModelError::input("attention", "gave no gradient"))?;
                Ok::<_, ModelError>(grad.f_contiguous()?)
            };
            Ok(Heads { query: next()?, key: next()?, value: next()? })
        }),
    }
}

/// Uninitialised heads `[batch, heads, tokens, width]` for `place`.
pub(super) fn empty_heads(shape: [i64; 4], kind: Kind, device: Device) -> Result<Heads> {
    let one = || Tensor::f_empty(shape, (kind, device));
    Ok(Heads { query: one()?, key: one()?, value: one()? })
}
