//! The single-stream block.

use tch::Tensor;

use super::low_rank::{Adapted, Output, OutputGrad, PairGrads};
use super::{Context, attention, empty, linear_backward, rows, scale};
use crate::error::{ModelError, Result};
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

/// The first layer: queries, keys and values for all tokens, and the MLP for those that are read.
struct FirstLayer<'a> {
    /// Gives both, where all tokens are read.
    adapted: Adapted<'a>,
    /// Gives the MLP otherwise.
    mlp: Option<Linear>,
    hidden: i64,
    span: Span,
}

/// What its gradients are written into.
struct FirstGrads {
    parts: FirstProduct,
    of_adapted: OutputGrad,
}

impl<'a> FirstLayer<'a> {
    /// For `x` `[batch, tokens, hidden]`.
    fn new(block: &SingleBlock, lora: Option<&'a SingleLora>, x: &Tensor, span: Span) -> Result<Self> {
        let (_, tokens, hidden) = x.size3()?;
        let whole = Adapted::new(&block.linear1, lora.map(|l| &l.qkv))?;
        let (adapted, mlp) = if span.tokens == tokens {
            (whole, None)
        } else {
            let (adapted, mlp) = whole.split(3 * hidden)?;
            (adapted, Some(mlp))
        };
        Ok(Self { adapted, mlp, hidden, span })
    }

    /// Columns of `out`, and those of `mlp` if they are apart.
    fn parts(&self, out: &Tensor, mlp: Option<Tensor>) -> Result<FirstProduct> {
        let qkv = out.f_narrow(1, 0, 3 * self.hidden)?;
        let mlp = match mlp {
            Some(mlp) => mlp,
            None => out.f_narrow(1, 3 * self.hidden, out.size2()?.1 - 3 * self.hidden)?,
        };
        Ok(FirstProduct { qkv, mlp })
    }

    /// Its output, and the update's middle.
    fn forward(&self, modulated: &Tensor) -> Result<(FirstProduct, Option<Tensor>)> {
        let Output { out, middle } = self.adapted.forward(&rows(modulated)?)?;
        let apart = self.mlp.as_ref().map(|mlp| mlp.forward(&rows(&self.span.of(modulated)?)?));
        Ok((self.parts(&out, apart.transpose()?)?, middle))
    }

    fn grads(&self, product: &FirstProduct) -> Result<FirstGrads> {
        let of_adapted = self.adapted.output_grad(product.qkv.size2()?.0, &product.qkv)?;
        let apart = self.mlp.as_ref().map(|_| empty(&product.mlp.size(), &product.mlp)).transpose()?;
        Ok(FirstGrads { parts: self.parts(&of_adapted.out, apart)?, of_adapted })
    }

    /// The gradients of `modulated` (if `track`), shaped as it is, and of the update's weights.
    fn backward(
        &self,
        grads: &FirstGrads,
        modulated: &Tensor,
        middle: Option<&Tensor>,
        track: bool,
    ) -> Result<(Option<Tensor>, Option<PairGrads>)> {
        let (through, pair) = self.adapted.backward(&grads.of_adapted, &rows(modulated)?, middle, track)?;
        let through = through.map(|through| through.f_view(modulated.size().as_slice())).transpose()?;
        if let (Some(through), Some(mlp)) = (&through, &self.mlp) {
            let mut read = self.span.of(through)?;
            let of_mlp = linear_backward(mlp, &grads.parts.mlp)?;
            drop(read.f_add_(&of_mlp.f_view(read.size().as_slice())?)?);
        }
        Ok((through, pair))
    }
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
    let (first, qkv_middle) = FirstLayer::new(block, lora, x, span)?.forward(&modulated)?;
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
    let second = Adapted::new(&block.linear2, lora.map(|l| &l.proj))?;
    let Output { out: update, middle: proj_middle } = second.forward(&joined)?;
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
    let second = Adapted::new(&block.linear2, lora.map(|l| &l.proj))?;
    let grad_update = second.output_grad(saved.joined.size2()?.0, x)?;
    fused.gate_backward(grad, &saved.modulation, &grad_update.out)?;
    let (grad_joined, proj) =
        second.backward(&grad_update, &saved.joined, saved.proj_middle.as_ref(), true)?;
    let grad_joined = grad_joined.ok_or_else(|| ModelError::input("block", "gave no gradient"))?;
    drop(grad_update);

    let layer = FirstLayer::new(block, lora, x, span)?;
    let grads = layer.grads(&saved.first)?;
    let mlp = saved.first.mlp.size2()?.1;
    fused.gelu_backward(&grad_joined.f_narrow(1, hidden, mlp)?, &saved.first.mlp, &grads.parts.mlp)?;
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
    fused.split_heads_backward(&grad_heads, &saved.first.qkv, &saved.place, &norm, &grads.parts.qkv)?;
    drop(grad_heads);

    let (modulated, _) = fused.norm_modulate(x, &saved.modulation, NORM_EPS)?;
    let (through, qkv) = layer.backward(&grads, &modulated, saved.qkv_middle.as_ref(), track)?;
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
