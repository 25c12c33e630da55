//! The single-stream block.

use tch::Tensor;

use super::low_rank::{self, PairGrads};
use super::{Context, attention, empty, linear_backward, rows, scale};
use crate::error::Result;
use crate::flux::{NORM_EPS, SingleBlock};
use crate::fused::{HeadNorm, Heads, ModulationColumns, NormStats, StreamPlace};
use crate::layers::Linear;
use crate::lora::SingleLora;

/// The tokens of a block's output that anything reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::training) struct Span {
    pub first: i64,
    pub tokens: i64,
}

impl Span {
    /// These tokens of `x` `[batch, tokens, width]`.
    fn of(self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_narrow(1, self.first, self.tokens)?)
    }
}

/// What the backward pass needs beside the block's input.
pub(in crate::training) struct SingleSaved {
    span: Span,
    modulation: ModulationColumns,
    stats: NormStats,
    place: StreamPlace,
    query_scale: Tensor,
    key_scale: Tensor,
    first: FirstProduct,
    qkv_middle: Option<Tensor>,
    heads: Heads,
    attention: attention::Kept,
    /// Input of the second product: what was attended to, and the MLP's activations.
    joined: Tensor,
    proj_middle: Option<Tensor>,
}

/// Output of the first product, or its gradient: queries, keys and values before their norm, of all tokens, and the MLP before
/// its GELU, of those that are read.
struct FirstProduct {
    qkv: Tensor,
    mlp: Tensor,
}

impl FirstProduct {
    /// Columns of one tensor, where all tokens are read.
    fn of(both: &Tensor, hidden: i64) -> Result<Self> {
        let mlp = both.size2()?.1 - 3 * hidden;
        Ok(Self { qkv: both.f_narrow(1, 0, 3 * hidden)?, mlp: both.f_narrow(1, 3 * hidden, mlp)? })
    }

    /// `modulated` `[batch, tokens, hidden]`.
    fn forward(layer: &Linear, modulated: &Tensor, span: Span) -> Result<Self> {
        let (_, tokens, hidden) = modulated.size3()?;
        if span.tokens == tokens {
            return Self::of(&layer.forward(&rows(modulated)?)?, hidden);
        }
        let (qkv, mlp) = halves(layer, hidden)?;
        Ok(Self { qkv: qkv.forward(&rows(modulated)?)?, mlp: mlp.forward(&rows(&span.of(modulated)?)?)? })
    }

    /// A tensor of the same sizes to be filled, and the one behind both parts if it is one.
    fn empty_like(&self, hidden: i64) -> Result<(Self, Option<Tensor>)> {
        let (rows, mlp) = self.mlp.size2()?;
        if rows == self.qkv.size2()?.0 {
            let both = empty(&[rows, 3 * hidden + mlp], &self.mlp)?;
            return Ok((Self::of(&both, hidden)?, Some(both)));
        }
        Ok((Self { qkv: self.qkv.f_empty_like()?, mlp: self.mlp.f_empty_like()? }, None))
    }
}

/// The first layer's parts that make queries, keys and values, and the MLP.
fn halves(layer: &Linear, hidden: i64) -> Result<(Linear, Linear)> {
    let width = layer.weight.size2()?.0;
    let part = |first: i64, count: i64| layer.mapped(&|tensor| Ok(tensor.f_narrow(0, first, count)?));
    Ok((part(0, 3 * hidden)?, part(3 * hidden, width - 3 * hidden)?))
}

/// The gradient of the first product's input `[batch, tokens, hidden]` from those of its output; `both` as
/// [`FirstProduct::empty_like`] gave it.
fn first_backward(
    layer: &Linear,
    grads: &FirstProduct,
    both: Option<&Tensor>,
    shape: &[i64],
    span: Span,
) -> Result<Tensor> {
    if let Some(both) = both {
        return Ok(linear_backward(layer, both)?.f_view(shape)?);
    }
    let (qkv, mlp) = halves(layer, shape.last().copied().unwrap_or(0))?;
    let grad = linear_backward(&qkv, &grads.qkv)?.f_view(shape)?;
    let mut read = span.of(&grad)?;
    let through = linear_backward(&mlp, &grads.mlp)?.f_view(read.size().as_slice())?;
    drop(read.f_add_(&through)?);
    Ok(grad)
}

/// The block's output for `x` `[batch, tokens, hidden]`, contiguous: that of the tokens of `span`.
pub(in crate::training) fn forward(
    block: &SingleBlock,
    lora: Option<&SingleLora>,
    context: &Context<'_>,
    x: &Tensor,
    span: Span,
) -> Result<(Tensor, SingleSaved)> {
    let (batch, tokens, hidden) = x.size3()?;
    let fused = context.fused;
    let modulation = ModulationColumns::new(&block.modulation.forward(context.vec_act)?, 0, hidden);
    let (modulated, stats) = fused.norm_modulate(x, &modulation, NORM_EPS)?;
    let first = FirstProduct::forward(&block.linear1, &modulated, span)?;
    let qkv_middle = low_rank::add(lora.map(|l| &l.qkv), &rows(&modulated)?, &first.qkv)?;
    drop(modulated);

    let place = StreamPlace {
        batch,
        tokens,
        first_token: 0,
        all_tokens: tokens,
        heads: block.heads,
        head_width: hidden / block.heads,
    };
    let mut heads =
        attention::empty_heads([batch, block.heads, tokens, place.head_width], x.f_kind()?, x.device())?;
    let (query_scale, key_scale) = (scale(&block.norm.query)?, scale(&block.norm.key)?);
    let norm =
        HeadNorm { query_scale: &query_scale, key_scale: &key_scale, rope: context.rope, eps: NORM_EPS };
    fused.split_heads(&first.qkv, &place, &norm, &heads)?;
    heads.query = heads.query.f_narrow(2, span.first, span.tokens)?;
    let (attended, attention) = attention::forward(fused, &heads)?;

    let (read_rows, mlp) = first.mlp.size2()?;
    let joined = empty(&[read_rows, hidden + mlp], x)?;
    fused.heads_to_rows(&attended, &read_place(place, span), &joined)?;
    fused.gelu(&first.mlp, &joined.f_narrow(1, hidden, mlp)?)?;
    let update = block.linear2.forward(&joined)?;
    let proj_middle = low_rank::add(lora.map(|l| &l.proj), &joined, &update)?;
    let update = update.f_view([batch, span.tokens, hidden])?;
    let out = fused.gated_residual(&span.of(x)?.f_contiguous()?, &modulation, &update)?;
    let saved = SingleSaved {
        span,
        modulation,
        stats,
        place,
        query_scale,
        key_scale,
        first,
        qkv_middle,
        heads,
        attention,
        joined,
        proj_middle,
    };
    Ok((out, saved))
}

/// The place of `span` in tensors that have its tokens alone.
fn read_place(place: StreamPlace, span: Span) -> StreamPlace {
    StreamPlace { tokens: span.tokens, all_tokens: span.tokens, ..place }
}

/// `grad` `[.., tokens of span, width]` among zeros for all other tokens, `[.., tokens, width]`; axis `axis` has the tokens.
fn among_zeros(grad: &Tensor, axis: i64, tokens: i64, span: Span) -> Result<Tensor> {
    if span.tokens == tokens {
        return Ok(grad.shallow_clone());
    }
    let mut shape = grad.size();
    if let Some(count) = usize::try_from(axis).ok().and_then(|axis| shape.get_mut(axis)) {
        *count = tokens;
    }
    let all = Tensor::f_zeros(shape, (grad.f_kind()?, grad.device()))?;
    all.f_narrow(axis, span.first, span.tokens)?.f_copy_(grad)?;
    Ok(all)
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
    let (_, tokens, hidden) = x.size3()?;
    let (fused, span) = (context.fused, saved.span);
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

    let (grads, both) = saved.first.empty_like(hidden)?;
    let mlp = saved.first.mlp.size2()?.1;
    fused.gelu_backward(&grad_joined.f_narrow(1, hidden, mlp)?, &saved.first.mlp, &grads.mlp)?;
    let grad_attended = empty(&saved.heads.query.size(), x)?;
    fused.rows_to_heads(&grad_joined, &read_place(saved.place, span), &grad_attended)?;
    drop(grad_joined);
    let mut grad_heads = attention::backward(fused, &saved.heads, saved.attention, &grad_attended)?;
    drop(grad_attended);
    grad_heads.query = among_zeros(&grad_heads.query, 2, tokens, span)?;
    let norm = HeadNorm {
        query_scale: &saved.query_scale,
        key_scale: &saved.key_scale,
        rope: context.rope,
        eps: NORM_EPS,
    };
    fused.split_heads_backward(&grad_heads, &saved.first.qkv, &saved.place, &norm, &grads.qkv)?;
    drop(grad_heads);

    let (modulated, _) = fused.norm_modulate(x, &saved.modulation, NORM_EPS)?;
    let through = if track {
        Some(first_backward(&block.linear1, &grads, both.as_ref(), &x.size(), span)?)
    } else {
        None
    };
    let qkv = low_rank::backward(
        lora.map(|l| &l.qkv),
        &grads.qkv,
        &rows(&modulated)?,
        saved.qkv_middle.as_ref(),
        through.as_ref().map(rows).transpose()?.as_ref(),
    )?;
    let grad_x = match through {
        Some(through) => {
            let beside = among_zeros(grad, 1, tokens, span)?;
            Some(fused.norm_modulate_backward(&through, x, &saved.modulation, &saved.stats, &beside)?)
        }
        None => None,
    };
    let mut grads = Vec::new();
    for pair in [qkv, proj].into_iter().flatten() {
        PairGrads::push_to(pair, &mut grads);
    }
    Ok((grad_x, grads))
}
