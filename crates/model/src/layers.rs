//! The layers that networks share.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::float8;
use crate::params::{Init, ParamSource};

/// y = x Wᵀ + b; weight `[out, in]`, bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    /// Where weights are 8-bit floats scaled to their range: what they are to be multiplied by, 0-dimensional float32.
    pub scale: Option<Tensor>,
}

impl Linear {
    pub fn build(
        source: &mut dyn ParamSource,
        name: &str,
        input: i64,
        output: i64,
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight_name = format!("{name}.weight");
        let weight = source.take(&weight_name, &[output, input], init)?;
        let scale = source.take_scale(&weight_name);
        let bias = bias.then(|| source.take(&format!("{name}.bias"), &[output], Init::Zero)).transpose()?;
        Ok(Self { weight, bias, scale })
    }

    /// `[.., in]` to `[.., out]`, in the dtype of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let bias = self.bias.as_ref().map(|bias| cast(bias, kind)).transpose()?;
        if let Some(scale) = &self.scale
            && float8::multiplies(x, &self.weight)
        {
            return float8::linear(x, &self.weight, scale, bias.as_ref());
        }
        Ok(x.f_linear(&self.weight_in(kind)?, bias)?)
    }

    /// The weights in `kind`, their scale applied.
    pub fn weight_in(&self, kind: Kind) -> Result<Tensor> {
        let weight = cast(&self.weight, kind)?;
        match &self.scale {
            // A copy of its own: the weights are kept in 8 bits.
            Some(scale) => Ok(weight.f_mul(&cast(scale, kind)?)?),
            None => Ok(weight),
        }
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(format!("{name}.weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visit(format!("{name}.bias"), bias);
        }
    }

    /// The same layer over what `map` makes of its tensors.
    pub fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: map(&self.weight)?,
            bias: self.bias.as_ref().map(map).transpose()?,
            scale: self.scale.as_ref().map(map).transpose()?,
        })
    }

    /// The layer of `count` outputs from `first` on, which shares their weights.
    pub fn outputs(&self, first: i64, count: i64) -> Result<Self> {
        let part = |tensor: &Tensor| tensor.f_narrow(0, first, count);
        Ok(Self {
            weight: part(&self.weight)?,
            bias: self.bias.as_ref().map(part).transpose()?,
            scale: self.scale.as_ref().map(Tensor::shallow_clone),
        })
    }
}

/// `tensor` on `device`. From the host to a GPU it goes through pinned memory and without waiting: a plain copy would
/// stop the host until all work that the device has been given is done.
pub(crate) fn to_device(tensor: &Tensor, device: tch::Device) -> Result<Tensor> {
    match (tensor.device(), device) {
        (from, to) if from == to => Ok(tensor.shallow_clone()),
        (tch::Device::Cpu, tch::Device::Cuda(_)) => {
            let pinned = tensor.f_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}

/// `tensor` in `kind`; the same tensor if it already is.
pub(crate) fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(if tensor.f_kind()? == kind { tensor.shallow_clone() } else { tensor.f_to_kind(kind)? })
}

/// LayerNorm over the last axis with scale and shift, each `[width]`.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn build(source: &mut dyn ParamSource, name: &str, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: source.take(&format!("{name}.weight"), &[width], Init::One)?,
            bias: source.take(&format!("{name}.bias"), &[width], Init::Zero)?,
            eps,
        })
    }

    /// `[.., width]` to the same, in the dtype of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let (weight, bias) = (cast(&self.weight, kind)?, cast(&self.bias, kind)?);
        Ok(x.f_layer_norm(self.weight.size(), Some(&weight), Some(&bias), self.eps, true)?)
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(format!("{name}.weight"), &mut self.weight);
        visit(format!("{name}.bias"), &mut self.bias);
    }
}

/// A convolution over `[batch, in, height, width]`; weight `[out, in, size, size]`, bias `[out]`.
#[derive(Debug)]
pub(crate) struct Conv2d {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvSizes {
    pub input: i64,
    pub output: i64,
    /// Side of the kernel, pixels.
    pub size: i64,
    pub stride: i64,
    pub padding: i64,
}

impl Conv2d {
    pub fn build(source: &mut dyn ParamSource, name: &str, sizes: ConvSizes, bias: bool) -> Result<Self> {
        let ConvSizes { input, output, size, stride, padding } = sizes;
        let deviation = ((input * size * size) as f64).sqrt().recip();
        let weight =
            source.take(&format!("{name}.weight"), &[output, input, size, size], Init::Normal(deviation))?;
        let bias = bias.then(|| source.take(&format!("{name}.bias"), &[output], Init::Zero)).transpose()?;
        Ok(Self { weight, bias, stride, padding })
    }

    /// `[batch, in, height, width]` to `[batch, out, ..]`, in the dtype of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let weight = cast(&self.weight, kind)?;
        let bias = self.bias.as_ref().map(|bias| cast(bias, kind)).transpose()?;
        Ok(x.f_conv2d(&weight, bias, [self.stride; 2], [self.padding; 2], [1, 1], 1)?)
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(format!("{name}.weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visit(format!("{name}.bias"), bias);
        }
    }
}

/// Softmax(q kᵀ · scale + mask) v over `[batch, heads, tokens, width]`, the scores in float32.
///
/// `mask` is added to the scores and broadcasts to `[batch, heads, queries, keys]`.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let mut scores = q.f_mul_scalar(scale)?.f_matmul(&k.f_transpose(-2, -1)?)?;
    if let Some(mask) = mask {
        scores = scores.f_add(mask)?;
    }
    Ok(cast(&scores.f_softmax(-1, Kind::Float)?, v.f_kind()?)?.f_matmul(v)?)
}

/// `[batch, tokens, heads · width]` to `[batch, heads, tokens, width]`.
pub(crate) fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, tokens, width) = x.size3()?;
    Ok(x.f_view([batch, tokens, heads, width / heads])?.f_transpose(1, 2)?)
}

/// The inverse of [`split_heads`].
pub(crate) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, width) = x.size4()?;
    Ok(x.f_transpose(1, 2)?.f_reshape([batch, tokens, heads * width])?)
}
