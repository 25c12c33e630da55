//! The single-stream block.

use tch::Tensor;

use super::low_rank::{self, PairGrads};
use super::{Context, attention, empty, linear_backward, rows, scale};
use crate::error::Result;
use crate::flux::{NORM_EPS, SingleBlock};
use crate::fused::{HeadNorm, Heads, ModulationColumns, NormStats, StreamPlace};
use crate::lora::SingleLora;

/// What the backward pass needs beside the block's input.
pub(in crate::training) struct SingleSaved {
    modulation: ModulationColumns,
    stats: NormStats,
    place: StreamPlace,
    query_scale: Tensor,
    key_scale: Tensor,
    /// Output of the first product: queries, keys, values before their norm, and the MLP before its GELU.
    both: Tensor,
    qkv_middle: Option<Tensor>,
    heads: Heads,
    attention: attention::Kept,
    /// Input of the second product: what was attended to, and the MLP's activations.
    joined: Tensor,
    proj_middle: Option<Tensor>,
}

/// The block's output for `x` `[batch, tokens, hidden]`, contiguous.
pub(in crate::training) fn forward(
    block: &SingleBlock,
    lora: Option<&SingleLora>,
    context: &Context<'_>,
    x: &Tensor,
) -> Result<(Tensor, SingleSaved)> {
    let (batch, tokens, hidden) = x.size3()?;
    let fused = context.fused;
    let modulation = ModulationColumns::new(&block.modulation.forward(context.vec_act)?, 0, hidden);
    let (modulated, stats) = fused.norm_modulate(x, &modulation, NORM_EPS)?;
    let modulated = rows(&modulated)?;
    let both = block.linear1.forward(&modulated)?;
    let width = both.size2()?.1;
    let qkv_middle = low_rank::add(lora.map(|l| &l.qkv), &modulated, &both.f_narrow(1, 0, 3 * hidden)?)?;
    drop(modulated);

    let place = StreamPlace {
        batch,
        tokens,
        first_token: 0,
        all_tokens: tokens,
        heads: block.heads,
        head_width: hidden / block.heads,
    };
    let heads =
        attention::empty_heads([batch, block.heads, tokens, place.head_width], x.f_kind()?, x.device())?;
    let (query_scale, key_scale) = (scale(&block.norm.query)?, scale(&block.norm.key)?);
    let norm =
        HeadNorm { query_scale: &query_scale, key_scale: &key_scale, rope: context.rope, eps: NORM_EPS };
    fused.split_heads(&both, &place, &norm, &heads)?;
    let (attended, attention) = attention::forward(fused, &heads)?;

    let mlp = width - 3 * hidden;
    let joined = empty(&[batch * tokens, hidden + mlp], x)?;
    fused.heads_to_rows(&attended, &place, &joined)?;
    fused.gelu(&both.f_narrow(1, 3 * hidden, mlp)?, &joined.f_narrow(1, hidden, mlp)?)?;
    let update = block.linear2.forward(&joined)?;
    let proj_middle = low_rank::add(lora.map(|l| &l.proj), &joined, &update)?;
    let out = fused.gated_residual(x, &modulation, &update.f_view([batch, tokens, hidden])?)?;
    let saved = SingleSaved {
        modulation,
        stats,
        place,
        query_scale,
        key_scale,
        both,
        qkv_middle,
        heads,
        attention,
        joined,
        proj_middle,
    };
    Ok((out, saved))
}

/// Given `grad`, that of the block's output: the gradient of its input `x` (if `track`), and of the adapter's weights in the
/// order in which they are visited.
pub(in crate::training) fn backward(
    block: &SingleBlock,
    lora: Option<&SingleLora>,
    context: &Context<'_>,
    x: &Tensor,
    saved: SingleSaved,
    grad: &Tensor,
    track: bool,
) -> Result<(Option<Tensor>, Vec<Tensor>)> {
    let (batch, tokens, hidden) = x.size3()?;
    let fused = context.fused;
    let width = saved.both.size2()?.1;
    let mlp = width - 3 * hidden;
    let grad_update = rows(&fused.gate_backward(grad, &saved.modulation)?)?;
    let grad_joined = linear_backward(&block.linear2, &grad_update)?;
    let proj = low_rank::backward(
        lora.map(|l| &l.proj),
        &grad_update,
        &saved.joined,
        saved.proj_middle.as_ref(),
        Some(&grad_joined),
    )?;
    drop(grad_update);

    let grad_both = empty(&[batch * tokens, width], x)?;
    fused.gelu_backward(
        &grad_joined.f_narrow(1, hidden, mlp)?,
        &saved.both.f_narrow(1, 3 * hidden, mlp)?,
        &grad_both.f_narrow(1, 3 * hidden, mlp)?,
    )?;
    let grad_attended = saved.heads.query.f_empty_like()?;
    fused.rows_to_heads(&grad_joined, &saved.place, &grad_attended)?;
    drop(grad_joined);
    let grad_heads = attention::backward(fused, &saved.heads, saved.attention, &grad_attended)?;
    drop(grad_attended);
    let norm = HeadNorm {
        query_scale: &saved.query_scale,
        key_scale: &saved.key_scale,
        rope: context.rope,
        eps: NORM_EPS,
    };
    fused.split_heads_backward(&grad_heads, &saved.both, &saved.place, &norm, &grad_both)?;
    drop(grad_heads);

    let (modulated, _) = fused.norm_modulate(x, &saved.modulation, NORM_EPS)?;
    let grad_modulated = if track { Some(linear_backward(&block.linear1, &grad_both)?) } else { None };
    let qkv = low_rank::backward(
        lora.map(|l| &l.qkv),
        &grad_both.f_narrow(1, 0, 3 * hidden)?,
        &rows(&modulated)?,
        saved.qkv_middle.as_ref(),
        grad_modulated.as_ref(),
    )?;
    let grad_x = match grad_modulated {
        Some(through) => {
            let through = through.f_view([batch, tokens, hidden])?;
            Some(fused.norm_modulate_backward(&through, x, &saved.modulation, &saved.stats, grad)?)
        }
        None => None,
    };
    let mut grads = Vec::new();
    for pair in [qkv, proj].into_iter().flatten() {
        PairGrads::push_to(pair, &mut grads);
    }
    Ok((grad_x, grads))
}
