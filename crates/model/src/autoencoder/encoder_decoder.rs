//! Encoder and decoder.

use tch::Tensor;

use super::config::AutoencoderConfig;
use super::layers::{GroupNorm, Middle, ResidualBlock, conv3};
use crate::error::Result;
use crate::layers::{Conv2d, ConvSizes};
use crate::params::ParamSource;

/// Residual blocks at one resolution, and the convolution that leads to the next one.
#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    resample: Option<Conv2d>,
}

impl Level {
    fn blocks(&self, mut x: Tensor) -> Result<Tensor> {
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}

/// `count` blocks named `<name>.block.0` and so on; the first one changes the channels.
fn blocks(
    source: &mut dyn ParamSource,
    name: &str,
    count: i64,
    input: i64,
    output: i64,
) -> Result<Vec<ResidualBlock>> {
    (0..count)
        .map(|i| {
            let input = if i == 0 { input } else { output };
            ResidualBlock::build(source, &format!("{name}.block.{i}"), input, output)
        })
        .collect()
}

/// Pictures to the mean and log-variance of their latents.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    /// From full resolution down.
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub fn build(source: &mut dyn ParamSource, config: &AutoencoderConfig) -> Result<Self> {
        let widths = config.widths();
        let conv_in = conv3(source, "encoder.conv_in", config.in_channels, config.ch)?;
        let mut input = config.ch;
        let mut levels = Vec::with_capacity(widths.len());
        for (i, width) in widths.iter().enumerate() {
            let name = format!("encoder.down.{i}");
            let blocks = blocks(source, &name, config.num_res_blocks, input, *width)?;
            input = *width;
            let sizes = ConvSizes { input, output: input, size: 3, stride: 2, padding: 0 };
            let resample = (i + 1 < widths.len())
                .then(|| Conv2d::build(source, &format!("{name}.downsample.conv"), sizes, true))
                .transpose()?;
            levels.push(Level { blocks, resample });
        }
        Ok(Self {
            conv_in,
            levels,
            middle: Middle::build(source, "encoder.mid", input)?,
            norm_out: GroupNorm::build(source, "encoder.norm_out", input)?,
            conv_out: conv3(source, "encoder.conv_out", input, 2 * config.z_channels)?,
        })
    }

    /// `[batch, in_channels, height, width]` to `[batch, 2 · z_channels, height / downscale, width / downscale]`.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pixels)?;
        for level in &self.levels {
            x = level.blocks(x)?;
            if let Some(conv) = &level.resample {
                // One column of zeros at the right and one row at the bottom.
                x = conv.forward(&x.f_constant_pad_nd([0, 1, 0, 1])?)?;
            }
        }
        let x = self.middle.forward(&x)?;
        self.conv_out.forward(&self.norm_out.activated(&x)?)
    }
}

/// Latents to pictures.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    /// From the lowest resolution up, which is against the order of their names.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn build(source: &mut dyn ParamSource, config: &AutoencoderConfig) -> Result<Self> {
        let widths = config.widths();
        let mut input = widths.last().copied().unwrap_or(config.ch);
        let conv_in = conv3(source, "decoder.conv_in", config.z_channels, input)?;
        let middle = Middle::build(source, "decoder.mid", input)?;
        let mut levels = Vec::with_capacity(widths.len());
        for (i, width) in widths.iter().enumerate().rev() {
            let name = format!("decoder.up.{i}");
            let blocks = blocks(source, &name, config.num_res_blocks + 1, input, *width)?;
            input = *width;
            let resample =
                (i > 0).then(|| conv3(source, &format!("{name}.upsample.conv"), input, input)).transpose()?;
            levels.push(Level { blocks, resample });
        }
        Ok(Self {
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::build(source, "decoder.norm_out", input)?,
            conv_out: conv3(source, "decoder.conv_out", input, config.out_ch)?,
        })
    }

    /// `[batch, z_channels, height, width]` to `[batch, out_ch, height · downscale, width · downscale]`.
    pub fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(z)?)?;
        for level in &self.levels {
            x = level.blocks(x)?;
            if let Some(conv) = &level.resample {
                let (_, _, height, width) = x.size4()?;
                x = conv.forward(&x.f_upsample_nearest2d([2 * height, 2 * width], None, None)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.activated(&x)?)
    }
}
