//! Forward and backward of one block by hand, where an adapter trains over a frozen base: no autograd inside blocks, so that
//! it is decided here what is kept, each gradient is written where it is needed, and nothing is computed for what does not
//! train.
//!
//! ```text
//!   x ─ norm, modulate ─┬─ qkv ─ split, norm, rotate ─ attention ─┐
//!                       └─ MLP in ─ GELU ─────────────────────────┴─ out ─ gate ─ + x
//! ```
//!
//! Products run over `[tokens of all samples, width]`; the passes between them are [`crate::fused`]'s.

mod attention;
mod double;
mod low_rank;
mod single;

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use double::DoubleSaved;
use single::SingleSaved;
pub(super) use single::Span;

use crate::error::{ModelError, Result};
use crate::flux::{Flux, RopeTable};
use crate::fused::Fused;
use crate::layers::{Linear, cast};
use crate::lora::LoraAdapter;
use crate::weights::TensorMap;

/// What all blocks of a micro-batch have in common.
pub(super) struct Context<'a> {
    pub fused: Fused,
    pub rope: &'a RopeTable,
    /// SiLU of the conditioning vector, `[batch, hidden]`.
    pub vec_act: &'a Tensor,
    /// The target's tokens: what the head reads of the last block.
    pub target: Span,
}

/// What a block's backward pass needs beside its inputs.
pub(super) enum Saved {
    Double(Box<DoubleSaved>),
    Single(Box<SingleSaved>),
}

/// A network and the adapter that trains over it.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub flux: &'a Flux,
    pub adapter: Option<&'a LoraAdapter>,
}

impl Blocks<'_> {
    /// Outputs of block `index` (double blocks, then single blocks) for its contiguous inputs: image and text tokens, or both
    /// in one. The last single block gives the target's tokens alone.
    pub fn forward(
        &self,
        index: usize,
        inputs: &[Tensor],
        context: &Context<'_>,
    ) -> Result<(Vec<Tensor>, Saved)> {
        let missing = || ModelError::input("block", format!("{index} does not exist"));
        match inputs {
            [img, txt] => {
                let block = self.flux.double(index)?.ok_or_else(missing)?;
                let lora = self.adapter.and_then(|adapter| adapter.double(index));
                let (img, txt, saved) = double::forward(&block, lora, context, img, txt)?;
                Ok((vec![img, txt], Saved::Double(Box::new(saved))))
            }
            [x] => {
                let index = index.checked_sub(self.flux.double_blocks.len()).ok_or_else(missing)?;
                let block = self.flux.single(index)?.ok_or_else(missing)?;
                let lora = self.adapter.and_then(|adapter| adapter.single(index));
                let last = index + 1 == self.flux.single_blocks.len();
                let all = Span { first: 0, tokens: x.size3()?.1 };
                let span = if last { context.target } else { all };
                let (out, saved) = single::forward(&block, lora, context, x, span)?;
                Ok((vec![out], Saved::Single(Box::new(saved))))
            }
            _ => Err(ModelError::input("block", "takes one or two inputs")),
        }
    }

    /// Given `grads`, those of the outputs of block `index`: those of its inputs (none unless `track`), and of the adapter's
    /// weights in the order in which they are visited.
    pub fn backward(
        &self,
        index: usize,
        inputs: &[Tensor],
        saved: Saved,
        grads: &[Tensor],
        context: &Context<'_>,
        track: bool,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let missing = || ModelError::input("block", format!("{index} does not exist"));
        match (inputs, grads, saved) {
            ([img, txt], [grad_img, grad_txt], Saved::Double(saved)) => {
                let block = self.flux.double(index)?.ok_or_else(missing)?;
                let lora = self.adapter.and_then(|adapter| adapter.double(index));
                let grads = (&grad_img.f_contiguous()?, &grad_txt.f_contiguous()?);
                let (flow, weights) =
                    double::backward(&block, lora, context, (img, txt), *saved, grads, track)?;
                Ok((flow.map_or_else(Vec::new, |(img, txt)| vec![img, txt]), weights))
            }
            ([x], [grad], Saved::Single(saved)) => {
                let index = index.checked_sub(self.flux.double_blocks.len()).ok_or_else(missing)?;
                let block = self.flux.single(index)?.ok_or_else(missing)?;
                let lora = self.adapter.and_then(|adapter| adapter.single(index));
                let grad = grad.f_contiguous()?;
                let (flow, weights) = single::backward(&block, lora, context, x, *saved, &grad, track)?;
                Ok((flow.into_iter().collect(), weights))
            }
            _ => Err(ModelError::input("block", "was given gradients of another one")),
        }
    }
}

/// Joins every adapted layer's weights with its `down`; the copies of `down` by published name, which are to follow it.
pub(super) fn join(flux: &mut Flux, adapter: &mut LoraAdapter) -> Result<TensorMap> {
    let mut layers: BTreeMap<String, &mut Linear> = BTreeMap::new();
    for (index, block) in flux.double_blocks.iter_mut().enumerate() {
        for (number, stream) in [(1, &mut block.img), (2, &mut block.txt)] {
            layers.insert(format!("double_blocks.{index}.processor.qkv_lora{number}"), &mut stream.qkv);
            layers.insert(format!("double_blocks.{index}.processor.proj_lora{number}"), &mut stream.proj);
        }
    }
    for (index, block) in flux.single_blocks.iter_mut().enumerate() {
        layers.insert(format!("single_blocks.{index}.processor.qkv_lora"), &mut block.linear1);
        layers.insert(format!("single_blocks.{index}.processor.proj_lora"), &mut block.linear2);
    }
    let mut copies = TensorMap::new();
    for (name, pair) in adapter.pairs_mut() {
        if let Some(layer) = layers.remove(&name) {
            copies.insert(format!("{name}.down.weight"), pair.join(layer)?);
        }
    }
    Ok(copies)
}

/// `grad W`: the gradient of a linear layer's input.
fn linear_backward(layer: &Linear, grad: &Tensor) -> Result<Tensor> {
    Ok(grad.f_mm(&layer.weight_in(grad.f_kind()?)?)?)
}

/// `[batch, tokens, width]` as `[batch · tokens, width]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or(0);
    Ok(x.f_contiguous()?.f_view([-1, width])?)
}

/// An uninitialised tensor beside `like`.
fn empty(shape: &[i64], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, (like.f_kind()?, like.device()))?)
}

/// A norm's scale in float32, as the passes want it.
fn scale(tensor: &Tensor) -> Result<Tensor> {
    Ok(cast(tensor, Kind::Float)?.f_contiguous()?)
}
