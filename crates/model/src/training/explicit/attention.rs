//! Attention over all tokens, forward and backward.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::flux::fused_attention;
use crate::fused::{Fused, Heads, profile};
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

/// Bytes of scores that are worked on at a time on the CPU: what a core's own cache holds beside the heads.
const SCORES_AT_A_TIME: usize = 512 * 1024;

/// How many of `probabilities`' matrices `[batch · heads, queries, keys]` go together: first and count of each run.
fn runs(probabilities: &Tensor) -> Result<impl Iterator<Item = (i64, i64)>> {
    let (all, queries, keys) = probabilities.size3()?;
    let bytes = (queries * keys).unsigned_abs() as usize * probabilities.f_kind()?.elt_size_in_bytes();
    let most = i64::try_from(SCORES_AT_A_TIME / bytes.max(1)).unwrap_or(1).clamp(1, all.max(1));
    Ok((0..all).step_by(usize::try_from(most).unwrap_or(1)).map(move |first| (first, most.min(all - first))))
}

/// Softmax(q kᵀ / √width) v, shaped as `query`, which may have fewer tokens than keys and values.
pub(super) fn forward(fused: Fused, heads: &Heads) -> Result<(Tensor, Kept)> {
    let _timed = profile::part(profile::ATTENTION, heads.query.device());
    if heads.query.device() == Device::Cpu {
        return forward_by_products(fused, heads);
    }
    tch::with_grad(|| {
        let (query, key, value) =
            (leaf(&heads.query, true)?, leaf(&heads.key, true)?, leaf(&heads.value, true)?);
        let out = fused_attention(&query, &key, &value)?;
        Ok((out.f_detach()?.f_contiguous()?, Kept::Graph { query, key, value, out }))
    })
}

/// Plain products are faster than libtorch's fused kernel on the CPU at these sizes; a few heads at a time, so that their scores
/// are still in the cache when they are read.
fn forward_by_products(fused: Fused, heads: &Heads) -> Result<(Tensor, Kept)> {
    let (query, key, value) = (flat(&heads.query)?, flat(&heads.key)?, flat(&heads.value)?);
    let keys = key.f_transpose(1, 2)?;
    let (all, queries, width) = query.size3()?;
    let options = (query.f_kind()?, query.device());
    let probabilities = Tensor::f_empty([all, queries, key.size3()?.1], options)?;
    let out = Tensor::f_empty([all, queries, width], options)?;
    for (first, count) in runs(&probabilities)? {
        let part = |x: &Tensor| x.f_narrow(0, first, count);
        let scores = part(&probabilities)?;
        drop(part(&query)?.f_bmm_out(&scores, &part(&keys)?)?);
        fused.softmax(&scores, scale_of(heads))?;
        drop(scores.f_bmm_out(&part(&out)?, &part(&value)?)?);
    }
    Ok((out.f_view(heads.query.size().as_slice())?, Kept::Probabilities(probabilities)))
}

/// The gradients of queries, keys and values.
pub(super) fn backward(fused: Fused, heads: &Heads, kept: Kept, grad: &Tensor) -> Result<Heads> {
    let _timed = profile::part(profile::ATTENTION, grad.device());
    match kept {
        Kept::Probabilities(probabilities) => backward_by_products(fused, heads, &probabilities, grad),
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

fn backward_by_products(fused: Fused, heads: &Heads, probabilities: &Tensor, grad: &Tensor) -> Result<Heads> {
    let (query, key, value) = (flat(&heads.query)?, flat(&heads.key)?, flat(&heads.value)?);
    let grad = flat(grad)?;
    let like = |heads: &Tensor| Tensor::f_empty(heads.size(), (heads.f_kind()?, heads.device()));
    let grads = Heads { query: like(&heads.query)?, key: like(&heads.key)?, value: like(&heads.value)? };
    let (grad_query, grad_key, grad_value) = (flat(&grads.query)?, flat(&grads.key)?, flat(&grads.value)?);
    for (first, count) in runs(probabilities)? {
        let part = |x: &Tensor| x.f_narrow(0, first, count);
        let (probabilities, grad) = (part(probabilities)?, part(&grad)?);
        drop(probabilities.f_transpose(1, 2)?.f_bmm_out(&part(&grad_value)?, &grad)?);
        let grad_scores = grad.f_bmm(&part(&value)?.f_transpose(1, 2)?)?;
        fused.softmax_backward(&probabilities, &grad_scores, scale_of(heads))?;
        drop(grad_scores.f_bmm_out(&part(&grad_query)?, &part(&key)?)?);
        drop(grad_scores.f_transpose(1, 2)?.f_bmm_out(&part(&grad_key)?, &part(&query)?)?);
    }
    Ok(grads)
}

/// Uninitialised heads `[batch, heads, tokens, width]` for `place`.
pub(super) fn empty_heads(shape: [i64; 4], kind: Kind, device: Device) -> Result<Heads> {
    let one = || Tensor::f_empty(shape, (kind, device));
    Ok(Heads { query: one()?, key: one()?, value: one()? })
}
