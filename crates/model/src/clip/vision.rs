//! The vision tower.

use tch::{Device, Kind, Tensor};

use super::ClipVisionConfig;
use crate::error::{ModelError, Result};
use crate::layers::{Conv2d, ConvSizes, LayerNorm, cast};
use crate::params::{Init, ParamSource};
use crate::transformer::TransformerLayer;

/// What the vision tower gives, in its dtype.
#[derive(Debug)]
pub struct ClipVisionOutput {
    /// All tokens before the last norm, `[batch, 1 + patches, hidden]`; the class token is first.
    pub last_hidden_state: Tensor,
    /// The class token after it, `[batch, hidden]`; not projected.
    pub pooled: Tensor,
}

/// The vision tower.
#[derive(Debug)]
pub struct ClipVision {
    config: ClipVisionConfig,
    /// `[hidden]`.
    class: Tensor,
    patches: Conv2d,
    /// `[1 + patches, hidden]`.
    positions: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<TransformerLayer>,
    post_norm: LayerNorm,
    kind: Kind,
    device: Device,
}

impl ClipVision {
    /// Takes `<name>.embeddings.class_embedding` and so on.
    pub(crate) fn build(
        source: &mut dyn ParamSource,
        name: &str,
        config: &ClipVisionConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let (hidden, eps, side) = (config.hidden_size, config.layer_norm_eps, config.side());
        let part = |part: &str| format!("{name}.{part}");
        let patch = ConvSizes {
            input: 3,
            output: hidden,
            size: config.patch_size,
            stride: config.patch_size,
            padding: 0,
        };
        Ok(Self {
            config: config.clone(),
            class: source.take(&part("embeddings.class_embedding"), &[hidden], Init::Normal(0.02))?,
            patches: Conv2d::build(source, &part("embeddings.patch_embedding"), patch, false)?,
            positions: source.take(
                &part("embeddings.position_embedding.weight"),
                &[1 + side * side, hidden],
                Init::Normal(0.02),
            )?,
            // Spelled so in every published file.
            pre_norm: LayerNorm::build(source, &part("pre_layrnorm"), hidden, eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| {
                    TransformerLayer::build(source, &part(&format!("encoder.layers.{i}")), &config.sizes())
                })
                .collect::<Result<_>>()?,
            post_norm: LayerNorm::build(source, &part("post_layernorm"), hidden, eps)?,
            kind,
            device,
        })
    }

    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Runs normalised pictures `[batch, 3, image_size, image_size]`, any float dtype, on any device.
    pub fn forward(&self, pixels: &Tensor) -> Result<ClipVisionOutput> {
        let side = self.config.image_size;
        let batch = match *pixels.size().as_slice() {
            [batch, 3, height, width] if batch > 0 && height == side && width == side => batch,
            ref other => {
                let reason = format!("shape {other:?} is not [batch, 3, {side}, {side}]");
                return Err(ModelError::input("pixels", reason));
            }
        };
        tch::no_grad(|| {
            let pixels = cast(&pixels.f_to_device(self.device)?, self.kind)?;
            // [batch, hidden, rows, columns] -> [batch, rows · columns, hidden]
            let patches = self.patches.forward(&pixels)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
            let class = self.class.f_expand([batch, 1, self.config.hidden_size], false)?;
            let mut x = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions)?;
            x = self.pre_norm.forward(&x)?;
            for layer in &self.layers {
                x = layer.forward(&x, None)?;
            }
            let pooled = self.post_norm.forward(&x.f_select(1, 0)?)?;
            Ok(ClipVisionOutput { last_hidden_state: x, pooled })
        })
    }
}
