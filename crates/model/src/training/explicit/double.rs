//! The double-stream block: text and images apart, but for attention.

use tch::Tensor;

use super::low_rank::{Adapted, Output, PairGrads};
use super::{Context, attention, empty, linear_backward, rows, scale};
use crate::error::Result;
use crate::flux::{DoubleBlock, NORM_EPS, Stream};
use crate::fused::{Fused, HeadNorm, Heads, ModulationColumns, NormStats, StreamPlace, profile};
use crate::layers::Linear;
use crate::lora::{DoubleLora, LoraPair};

/// Gradients of the streams of images and text.
type FlowGrads = (Tensor, Tensor);

/// What the backward pass needs beside the block's inputs.
pub(in crate::training) struct DoubleSaved {
    heads: Heads,
    attention: attention::Kept,
    img: StreamSaved,
    txt: StreamSaved,
}

/// The same of one stream.
struct StreamSaved {
    place: StreamPlace,
    attn: ModulationColumns,
    mlp: ModulationColumns,
    stats: NormStats,
    query_scale: Tensor,
    key_scale: Tensor,
    /// Queries, keys and values before their norm.
    qkv: Tensor,
    qkv_middle: Option<Tensor>,
    /// After attention; filled in then.
    after: Option<AfterSaved>,
}

struct AfterSaved {
    attended: Tensor,
    proj_middle: Option<Tensor>,
    /// The stream after its first residual, `[batch, tokens, hidden]`.
    between: Tensor,
    stats: NormStats,
    /// The MLP before its GELU.
    mlp_in: Tensor,
}

/// One stream's adapter.
#[derive(Clone, Copy)]
struct StreamLora<'a> {
    qkv: Option<&'a LoraPair>,
    proj: Option<&'a LoraPair>,
}

impl<'a> StreamLora<'a> {
    fn img(lora: Option<&'a DoubleLora>) -> Self {
        Self { qkv: lora.map(|l| &l.qkv_img), proj: lora.map(|l| &l.proj_img) }
    }

    fn txt(lora: Option<&'a DoubleLora>) -> Self {
        Self { qkv: lora.map(|l| &l.qkv_txt), proj: lora.map(|l| &l.proj_txt) }
    }
}

impl StreamSaved {
    fn norm<'a>(&'a self, context: &Context<'a>) -> HeadNorm<'a> {
        HeadNorm {
            query_scale: &self.query_scale,
            key_scale: &self.key_scale,
            rope: context.rope,
            eps: NORM_EPS,
        }
    }

    /// Up to attention: writes the stream's part of `heads`.
    fn before(
        stream: &Stream,
        lora: StreamLora<'_>,
        context: &Context<'_>,
        x: &Tensor,
        place: StreamPlace,
        heads: &Heads,
    ) -> Result<Self> {
        let hidden = x.size3()?.2;
        let all = stream.modulation.forward(context.vec_act)?;
        let (attn, mlp) = (ModulationColumns::new(&all, 0, hidden), ModulationColumns::new(&all, 1, hidden));
        let (modulated, stats) = context.fused.norm_modulate(x, &attn, NORM_EPS)?;
        let modulated = rows(&modulated)?;
        let Output { out: qkv, middle: qkv_middle } =
            Adapted::new(&stream.qkv, lora.qkv)?.forward(&modulated)?;
        let saved = Self {
            place,
            attn,
            mlp,
            stats,
            query_scale: scale(&stream.norm.query)?,
            key_scale: scale(&stream.norm.key)?,
            qkv,
            qkv_middle,
            after: None,
        };
        context.fused.split_heads(&saved.qkv, &place, &saved.norm(context), heads)?;
        Ok(saved)
    }

    /// From attention on: the stream's output.
    fn after(
        &mut self,
        stream: &Stream,
        lora: StreamLora<'_>,
        fused: Fused,
        x: &Tensor,
        attended: &Tensor,
    ) -> Result<Tensor> {
        let own = empty(&[self.place.batch * self.place.tokens, x.size3()?.2], x)?;
        fused.heads_to_rows(attended, &self.place, &own)?;
        let Output { out: update, middle: proj_middle } =
            Adapted::new(&stream.proj, lora.proj)?.forward(&own)?;
        let between = fused.gated_residual(x, &self.attn, &update)?;
        let (modulated, stats) = fused.norm_modulate(&between, &self.mlp, NORM_EPS)?;
        let mlp_in = Adapted::new(&stream.mlp_in, None)?.forward(&rows(&modulated)?)?.out;
        let active = mlp_in.f_empty_like()?;
        fused.gelu(&mlp_in, &active)?;
        let update = Adapted::new(&stream.mlp_out, None)?.forward(&active)?.out;
        let out = fused.gated_residual(&between, &self.mlp, &update)?;
        self.after = Some(AfterSaved { attended: own, proj_middle, between, stats, mlp_in });
        Ok(out)
    }

    /// Back to attention: writes the stream's part of `grad_attended`; returns the gradient that reaches the stream's input
    /// beside attention, and the projection's.
    fn after_backward(
        &mut self,
        stream: &Stream,
        lora: StreamLora<'_>,
        fused: Fused,
        grad: &Tensor,
        grad_attended: &Tensor,
    ) -> Result<(Tensor, Option<PairGrads>)> {
        let Some(after) = self.after.take() else {
            return Err(crate::ModelError::input("block", "was not run forward"));
        };
        let grad_update = rows(&grad.f_empty_like()?)?;
        fused.gate_backward(grad, &self.mlp, &grad_update)?;
        let grad_mlp = mlp_backward(fused, &stream.mlp_in, &stream.mlp_out, &after.mlp_in, &grad_update)?;
        let grad_mlp = grad_mlp.f_view(grad.size().as_slice())?;
        let grad_between =
            fused.norm_modulate_backward(&grad_mlp, &after.between, &self.mlp, &after.stats, grad)?;
        let layer = Adapted::new(&stream.proj, lora.proj)?;
        let grad_update = layer.output_grad(grad_update.size2()?.0, grad)?;
        fused.gate_backward(&grad_between, &self.attn, &grad_update.out)?;
        let middle = after.proj_middle.as_ref();
        let (grad_own, proj) = layer.backward(&grad_update, &after.attended, middle, true)?;
        let grad_own = grad_own.ok_or_else(|| crate::ModelError::input("block", "gave no gradient"))?;
        fused.rows_to_heads(&grad_own, &self.place, grad_attended)?;
        Ok((grad_between, proj))
    }

    /// From the gradients of the heads to that of the stream's input (if `track`), where `beside` reaches it already.
    fn before_backward(
        &self,
        stream: &Stream,
        lora: StreamLora<'_>,
        context: &Context<'_>,
        x: &Tensor,
        grads: &Heads,
        beside: Option<&Tensor>,
    ) -> Result<(Option<Tensor>, Option<PairGrads>)> {
        let fused = context.fused;
        let layer = Adapted::new(&stream.qkv, lora.qkv)?;
        let grad_qkv = layer.output_grad(self.qkv.size2()?.0, x)?;
        fused.split_heads_backward(grads, &self.qkv, &self.place, &self.norm(context), &grad_qkv.out)?;
        let (modulated, _) = fused.norm_modulate(x, &self.attn, NORM_EPS)?;
        let middle = self.qkv_middle.as_ref();
        let (through, qkv) = layer.backward(&grad_qkv, &rows(&modulated)?, middle, beside.is_some())?;
        let (Some(through), Some(beside)) = (through, beside) else { return Ok((None, qkv)) };
        let through = through.f_view(x.size().as_slice())?;
        Ok((Some(fused.norm_modulate_backward(&through, x, &self.attn, &self.stats, beside)?), qkv))
    }
}

/// The gradient of an MLP's input; `middle` is what its GELU was given.
fn mlp_backward(
    fused: Fused,
    first: &Linear,
    second: &Linear,
    middle: &Tensor,
    grad: &Tensor,
) -> Result<Tensor> {
    let product = |layer, grad: &Tensor| {
        let _timed = profile::part(profile::PRODUCTS, grad.device());
        linear_backward(layer, grad)
    };
    let grad_active = product(second, grad)?;
    // In place: each element is read before it is written.
    fused.gelu_backward(&grad_active, middle, &grad_active)?;
    product(first, &grad_active)
}

/// The block's outputs for `img` and `txt`, each `[batch, tokens, hidden]`, contiguous.
pub(in crate::training) fn forward(
    block: &DoubleBlock,
    lora: Option<&DoubleLora>,
    context: &Context<'_>,
    img: &Tensor,
    txt: &Tensor,
) -> Result<(Tensor, Tensor, DoubleSaved)> {
    let (batch, img_tokens, hidden) = img.size3()?;
    let txt_tokens = txt.size3()?.1;
    let all_tokens = txt_tokens + img_tokens;
    let head_width = hidden / block.heads;
    let place = |first_token, tokens| StreamPlace {
        batch,
        tokens,
        first_token,
        all_tokens,
        heads: block.heads,
        head_width,
    };
    let heads =
        attention::empty_heads([batch, block.heads, all_tokens, head_width], img.f_kind()?, img.device())?;
    let (img_lora, txt_lora) = (StreamLora::img(lora), StreamLora::txt(lora));
    let mut img_saved =
        StreamSaved::before(&block.img, img_lora, context, img, place(txt_tokens, img_tokens), &heads)?;
    let mut txt_saved =
        StreamSaved::before(&block.txt, txt_lora, context, txt, place(0, txt_tokens), &heads)?;
    let (attended, attention) = attention::forward(context.fused, &heads)?;
    let img = img_saved.after(&block.img, img_lora, context.fused, img, &attended)?;
    let txt = txt_saved.after(&block.txt, txt_lora, context.fused, txt, &attended)?;
    Ok((img, txt, DoubleSaved { heads, attention, img: img_saved, txt: txt_saved }))
}

/// Given the gradients of the block's outputs: those of its inputs `img` and `txt` (if `track`), and of the adapter's weights
/// in the order in which they are visited.
pub(in crate::training) fn backward(
    block: &DoubleBlock,
    lora: Option<&DoubleLora>,
    context: &Context<'_>,
    (img, txt): (&Tensor, &Tensor),
    saved: DoubleSaved,
    (grad_img, grad_txt): (&Tensor, &Tensor),
    track: bool,
) -> Result<(Option<FlowGrads>, Vec<Tensor>)> {
    let DoubleSaved { heads, attention, img: mut img_saved, txt: mut txt_saved } = saved;
    let fused = context.fused;
    let (img_lora, txt_lora) = (StreamLora::img(lora), StreamLora::txt(lora));
    let grad_attended = heads.query.f_empty_like()?;
    let (img_beside, proj_img) =
        img_saved.after_backward(&block.img, img_lora, fused, grad_img, &grad_attended)?;
    let (txt_beside, proj_txt) =
        txt_saved.after_backward(&block.txt, txt_lora, fused, grad_txt, &grad_attended)?;
    let grads = attention::backward(fused, &heads, attention, &grad_attended)?;
    drop((heads, grad_attended));
    let beside = |tensor| track.then_some(tensor);
    let (grad_img, qkv_img) =
        img_saved.before_backward(&block.img, img_lora, context, img, &grads, beside(&img_beside))?;
    let (grad_txt, qkv_txt) =
        txt_saved.before_backward(&block.txt, txt_lora, context, txt, &grads, beside(&txt_beside))?;
    let mut weights = Vec::new();
    for pair in [qkv_img, proj_img, qkv_txt, proj_txt].into_iter().flatten() {
        pair.push_to(&mut weights);
    }
    Ok((grad_img.zip(grad_txt), weights))
}
