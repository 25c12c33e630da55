//! The passes as libtorch's operations: what the kernels are held to, and what runs where there are none.

use tch::{Kind, Tensor};

use super::{HeadNorm, Heads, ModulationColumns, NormStats, StreamPlace};
use crate::error::Result;
use crate::layers::cast;

pub(super) fn norm_modulate(
    x: &Tensor,
    modulation: &ModulationColumns,
    eps: f64,
) -> Result<(Tensor, NormStats)> {
    let width = x.size3()?.2;
    let (normal, mean, rstd) = x.f_native_layer_norm([width], None::<&Tensor>, None::<&Tensor>, eps)?;
    let scale = modulation.column(1)?.f_add_scalar(1.0)?;
    let flat = |tensor: Tensor| -> Result<Tensor> { Ok(cast(&tensor, Kind::Float)?.f_reshape([-1])?) };
    let stats = NormStats { mean: flat(mean)?, rstd: flat(rstd)? };
    Ok((modulation.column(0)?.f_addcmul(&scale, &normal)?, stats))
}

pub(super) fn norm_modulate_backward(
    grad: &Tensor,
    x: &Tensor,
    modulation: &ModulationColumns,
    stats: &NormStats,
    residual: &Tensor,
) -> Result<Tensor> {
    let (batch, tokens, _) = x.size3()?;
    let stat = |tensor: &Tensor| tensor.f_view([batch, tokens, 1]);
    let (mean, rstd) = (stat(&stats.mean)?, stat(&stats.rstd)?);
    let normal = cast(x, Kind::Float)?.f_sub(&mean)?.f_mul(&rstd)?;
    let scale = cast(&modulation.column(1)?, Kind::Float)?.f_add_scalar(1.0)?;
    let through = cast(grad, Kind::Float)?.f_mul(&scale)?;
    let average = |tensor: &Tensor| tensor.f_mean_dim(&[-1i64][..], true, None);
    let along = average(&through.f_mul(&normal)?)?;
    let grad_x = through.f_sub(&average(&through)?)?.f_sub(&normal.f_mul(&along)?)?.f_mul(&rstd)?;
    cast(&grad_x.f_add(residual)?, x.f_kind()?)
}

pub(super) fn gated_residual(x: &Tensor, modulation: &ModulationColumns, update: &Tensor) -> Result<Tensor> {
    Ok(x.f_addcmul(&modulation.column(2)?, &update.f_view(x.size().as_slice())?)?)
}

pub(super) fn gate_backward(grad: &Tensor, modulation: &ModulationColumns, out: &Tensor) -> Result<()> {
    Ok(out.f_view(grad.size().as_slice())?.f_copy_(&grad.f_mul(&modulation.column(2)?)?)?)
}

/// The stream's part of a tensor `[batch, heads, all tokens, head width]`.
fn part(heads: &Tensor, place: &StreamPlace) -> Result<Tensor> {
    Ok(heads.f_narrow(2, place.first_token, place.tokens)?)
}

/// The `parts` tensors `[batch, heads, tokens, head width]` that the first columns of `rows` hold.
fn heads_of(rows: &Tensor, place: &StreamPlace, parts: i64) -> Result<Tensor> {
    let StreamPlace { batch, tokens, heads, head_width, .. } = *place;
    let first = rows.f_narrow(1, 0, parts * heads * head_width)?;
    Ok(first.f_view([batch, tokens, parts, heads, head_width])?.f_permute([2, 0, 3, 1, 4])?)
}

/// Query and key before their norm, float32 `[2, batch, heads, tokens, head width]`, and the inverse of their root mean square.
fn raw(rows: &Tensor, place: &StreamPlace, eps: f64) -> Result<(Tensor, Tensor)> {
    let x = cast(&heads_of(rows, place, 3)?.f_narrow(0, 0, 2)?, Kind::Float)?;
    let rms = x.f_square()?.f_mean_dim(&[-1i64][..], true, None)?.f_add_scalar(eps)?.f_rsqrt()?;
    Ok((x, rms))
}

/// `[2, 1, 1, 1, head width]`
fn scales(norm: &HeadNorm<'_>) -> Result<Tensor> {
    Ok(Tensor::f_stack(&[norm.query_scale, norm.key_scale], 0)?.f_reshape([2, 1, 1, 1, -1])?)
}

pub(super) fn split_heads(
    rows: &Tensor,
    place: &StreamPlace,
    norm: &HeadNorm<'_>,
    out: &Heads,
) -> Result<()> {
    let (x, rms) = raw(rows, place, norm.eps)?;
    let rope = norm.rope.tokens(place.first_token, place.tokens)?;
    let rotated = rope.rotate(&x.f_mul(&rms)?.f_mul(&scales(norm)?)?)?;
    part(&out.query, place)?.f_copy_(&rotated.f_select(0, 0)?)?;
    part(&out.key, place)?.f_copy_(&rotated.f_select(0, 1)?)?;
    Ok(part(&out.value, place)?.f_copy_(&heads_of(rows, place, 3)?.f_select(0, 2)?)?)
}

pub(super) fn split_heads_backward(
    grads: &Heads,
    rows: &Tensor,
    place: &StreamPlace,
    norm: &HeadNorm<'_>,
    grad_rows: &Tensor,
) -> Result<()> {
    let (x, rms) = raw(rows, place, norm.eps)?;
    let both = Tensor::f_stack(&[part(&grads.query, place)?, part(&grads.key, place)?], 0)?;
    let rope = norm.rope.tokens(place.first_token, place.tokens)?;
    let through = rope.rotate_back(&cast(&both, Kind::Float)?)?.f_mul(&scales(norm)?)?;
    let along = through.f_mul(&x)?.f_mean_dim(&[-1i64][..], true, None)?.f_mul(&rms.f_square()?)?;
    let grad = through.f_sub(&x.f_mul(&along)?)?.f_mul(&rms)?;
    let mut to = heads_of(grad_rows, place, 3)?;
    to.f_narrow(0, 0, 2)?.f_copy_(&grad)?;
    to = to.f_select(0, 2)?;
    Ok(to.f_copy_(&part(&grads.value, place)?)?)
}

pub(super) fn move_heads(heads: &Tensor, place: &StreamPlace, rows: &Tensor, to_rows: bool) -> Result<()> {
    let mut first = part(heads, place)?;
    let mut row = heads_of(rows, place, 1)?.f_select(0, 0)?;
    if to_rows {
        row.f_copy_(&first)?;
    } else {
        first.f_copy_(&row)?;
    }
    Ok(())
}

pub(super) fn gelu(x: &Tensor, out: &Tensor) -> Result<()> {
    Ok(out.shallow_clone().f_copy_(&x.f_gelu("tanh")?)?)
}

pub(super) fn gelu_backward(grad: &Tensor, x: &Tensor, grad_x: &Tensor) -> Result<()> {
    Ok(grad_x.shallow_clone().f_copy_(&x.f_gelu_backward(grad, "tanh")?)?)
}

pub(super) fn softmax(scores: &Tensor, scale: f64) -> Result<()> {
    let probabilities = scores.f_mul_scalar(scale)?.f_softmax(-1, None)?;
    Ok(scores.shallow_clone().f_copy_(&probabilities)?)
}

pub(super) fn softmax_backward(probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<()> {
    let dot = grad.f_mul(probabilities)?.f_sum_dim_intlist(&[-1i64][..], true, None)?;
    let through = grad.f_sub(&dot)?.f_mul(probabilities)?.f_mul_scalar(scale)?;
    Ok(grad.shallow_clone().f_copy_(&through)?)
}
