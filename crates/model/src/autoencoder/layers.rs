//! What both halves are made of.

use tch::Tensor;

use super::config::GROUPS;
use crate::error::Result;
use crate::layers::{Conv2d, ConvSizes};
use crate::params::{Init, ParamSource};

/// Epsilon of the norms.
const EPS: f64 = 1e-6;

/// A convolution of side 3 that keeps height and width.
pub(super) fn conv3(source: &mut dyn ParamSource, name: &str, input: i64, output: i64) -> Result<Conv2d> {
    Conv2d::build(source, name, ConvSizes { input, output, size: 3, stride: 1, padding: 1 }, true)
}

fn conv1(source: &mut dyn ParamSource, name: &str, input: i64, output: i64) -> Result<Conv2d> {
    Conv2d::build(source, name, ConvSizes { input, output, size: 1, stride: 1, padding: 0 }, true)
}

/// Norm over groups of channels, with scale and shift by channel.
#[derive(Debug)]
pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    pub fn build(source: &mut dyn ParamSource, name: &str, channels: i64) -> Result<Self> {
        Ok(Self {
            weight: source.take(&format!("{name}.weight"), &[channels], Init::One)?,
            bias: source.take(&format!("{name}.bias"), &[channels], Init::Zero)?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_group_norm(GROUPS, Some(&self.weight), Some(&self.bias), EPS, true)?)
    }

    /// The norm, then x · sigmoid(x).
    pub fn activated(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward(x)?.f_silu()?)
    }
}

/// Norm, activation, convolution, twice, and the input added.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// Brings the input to the output's channels where they differ.
    shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    pub fn build(source: &mut dyn ParamSource, name: &str, input: i64, output: i64) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::build(source, &format!("{name}.norm1"), input)?,
            conv1: conv3(source, &format!("{name}.conv1"), input, output)?,
            norm2: GroupNorm::build(source, &format!("{name}.norm2"), output)?,
            conv2: conv3(source, &format!("{name}.conv2"), output, output)?,
            shortcut: (input != output)
                .then(|| conv1(source, &format!("{name}.nin_shortcut"), input, output))
                .transpose()?,
        })
    }

    /// `[batch, input, height, width]` to `[batch, output, height, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.activated(x)?)?;
        let hidden = self.conv2.forward(&self.norm2.activated(&hidden)?)?;
        Ok(match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?.f_add(&hidden)?,
            None => x.f_add(&hidden)?,
        })
    }
}

/// Attention of one head over all positions, and the input added.
#[derive(Debug)]
struct AttentionBlock {
    norm: GroupNorm,
    query: Conv2d,
    key: Conv2d,
    value: Conv2d,
    output: Conv2d,
}

impl AttentionBlock {
    fn build(source: &mut dyn ParamSource, name: &str, channels: i64) -> Result<Self> {
        let norm = GroupNorm::build(source, &format!("{name}.norm"), channels)?;
        let mut conv = |part: &str| conv1(source, &format!("{name}.{part}"), channels, channels);
        Ok(Self { norm, query: conv("q")?, key: conv("k")?, value: conv("v")?, output: conv("proj_out")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let normed = self.norm.forward(x)?;
        // [batch, channels, height, width] -> [batch, 1, height * width, channels]
        let positions = |conv: &Conv2d| -> Result<Tensor> {
            let mapped = conv.forward(&normed)?.f_reshape([batch, 1, channels, height * width])?;
            Ok(mapped.f_transpose(2, 3)?.f_contiguous()?)
        };
        // The default scale is 1 / sqrt(channels).
        let mixed = Tensor::f_scaled_dot_product_attention(
            &positions(&self.query)?,
            &positions(&self.key)?,
            &positions(&self.value)?,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        )?;
        let mixed = mixed.f_transpose(2, 3)?.f_reshape([batch, channels, height, width])?;
        Ok(x.f_add(&self.output.forward(&mixed)?)?)
    }
}

/// The middle of either half: a residual block, attention, a residual block.
#[derive(Debug)]
pub(super) struct Middle {
    first: ResidualBlock,
    attention: AttentionBlock,
    second: ResidualBlock,
}

impl Middle {
    pub fn build(source: &mut dyn ParamSource, name: &str, channels: i64) -> Result<Self> {
        Ok(Self {
            first: ResidualBlock::build(source, &format!("{name}.block_1"), channels, channels)?,
            attention: AttentionBlock::build(source, &format!("{name}.attn_1"), channels)?,
            second: ResidualBlock::build(source, &format!("{name}.block_2"), channels, channels)?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.attention.forward(&self.first.forward(x)?)?)
    }
}
