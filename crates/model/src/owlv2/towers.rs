//! The two towers: pictures to a grid of features, queries to vectors.

use tch::{Kind, Tensor};

use super::config::{Owlv2TextConfig, Owlv2VisionConfig};
use crate::error::{ModelError, Result};
use crate::layers::{Conv2d, ConvSizes, LayerNorm, Linear, cast};
use crate::params::{Init, ParamSource};
use crate::transformer::{TransformerLayer, TransformerSizes, attention_mask};

fn layers(
    source: &mut dyn ParamSource,
    name: &str,
    count: i64,
    sizes: &TransformerSizes,
) -> Result<Vec<TransformerLayer>> {
    (0..count)
        .map(|i| TransformerLayer::build(source, &format!("{name}.encoder.layers.{i}"), sizes))
        .collect()
}

/// Patches to features, one for each cell of the grid.
#[derive(Debug)]
pub(super) struct VisionTower {
    class_token: Tensor,
    patches: Conv2d,
    positions: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<TransformerLayer>,
    post_norm: LayerNorm,
    /// The norm of the merged features; stored beside the tower.
    merged_norm: LayerNorm,
    image_size: i64,
}

impl VisionTower {
    pub fn build(source: &mut dyn ParamSource, config: &Owlv2VisionConfig) -> Result<Self> {
        let name = |part: &str| format!("owlv2.vision_model.{part}");
        let (hidden, patch, eps) = (config.hidden_size, config.patch_size, config.layer_norm_eps);
        let side = config.image_size / patch;
        let sizes = ConvSizes { input: 3, output: hidden, size: patch, stride: patch, padding: 0 };
        let small = Init::Normal(0.02);
        Ok(Self {
            class_token: source.take(&name("embeddings.class_embedding"), &[hidden], small)?,
            patches: Conv2d::build(source, &name("embeddings.patch_embedding"), sizes, false)?,
            positions: source.take(
                &name("embeddings.position_embedding.weight"),
                &[side * side + 1, hidden],
                small,
            )?,
            pre_norm: LayerNorm::build(source, &name("pre_layernorm"), hidden, eps)?,
            layers: layers(source, "owlv2.vision_model", config.num_hidden_layers, &config.layer())?,
            post_norm: LayerNorm::build(source, &name("post_layernorm"), hidden, eps)?,
            merged_norm: LayerNorm::build(source, "layer_norm", hidden, eps)?,
            image_size: config.image_size,
        })
    }

    /// Normalised pictures `[batch, 3, image_size, image_size]` to `[batch, cells, hidden]`, cells row by row.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let batch = match *pixels.size().as_slice() {
            [batch, 3, height, width]
                if batch > 0 && height == self.image_size && width == self.image_size =>
            {
                batch
            }
            ref other => {
                let side = self.image_size;
                return Err(ModelError::input(
                    "pixels",
                    format!("shape {other:?} is not [batch, 3, {side}, {side}]"),
                ));
            }
        };
        let pixels = cast(&pixels.f_to_device(self.positions.device())?, self.positions.kind())?;
        // [batch, hidden, rows, columns] -> [batch, cells, hidden]
        let patches = self.patches.forward(&pixels)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let class = self.class_token.f_view([1, 1, -1])?.f_expand([batch, 1, -1], false)?;
        let mut x = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions)?;
        x = self.pre_norm.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, None)?;
        }
        x = self.post_norm.forward(&x)?;
        let cells = x.size3()?.1 - 1;
        let merged = x.f_narrow(1, 1, cells)?.f_mul(&x.f_narrow(1, 0, 1)?)?;
        self.merged_norm.forward(&merged)
    }
}

/// Token ids to a vector for each query.
#[derive(Debug)]
pub(super) struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<TransformerLayer>,
    final_norm: LayerNorm,
    projection: Linear,
}

impl TextTower {
    pub fn build(
        source: &mut dyn ParamSource,
        config: &Owlv2TextConfig,
        projection_dim: i64,
    ) -> Result<Self> {
        let name = |part: &str| format!("owlv2.text_model.{part}");
        let hidden = config.hidden_size;
        let small = Init::Normal(0.02);
        let tokens = name("embeddings.token_embedding.weight");
        let positions = name("embeddings.position_embedding.weight");
        Ok(Self {
            tokens: source.take(&tokens, &[config.vocab_size, hidden], small)?,
            positions: source.take(&positions, &[config.max_position_embeddings, hidden], small)?,
            layers: layers(source, "owlv2.text_model", config.num_hidden_layers, &config.layer())?,
            final_norm: LayerNorm::build(source, &name("final_layer_norm"), hidden, config.layer_norm_eps)?,
            projection: Linear::build(
                source,
                "owlv2.text_projection",
                hidden,
                projection_dim,
                false,
                Init::Xavier,
            )?,
        })
    }

    /// Token ids `[queries, tokens]` int64, 0 for padding, and which of them are there (`[queries, tokens]`, 0 for
    /// padding), to vectors of length 1, `[queries, projection_dim]`, in the dtype of the weights.
    pub fn forward(&self, ids: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let (vocabulary, most) = (self.tokens.size2()?.0, self.positions.size2()?.0);
        let tokens = match *ids.size().as_slice() {
            [queries, tokens] if queries > 0 && (1..=most).contains(&tokens) => tokens,
            ref other => {
                return Err(ModelError::input(
                    "input_ids",
                    format!("shape {other:?} is not [queries, 1 to {most} tokens]"),
                ));
            }
        };
        if ids.f_kind()? != Kind::Int64 {
            return Err(ModelError::input("input_ids", format!("dtype {:?} is not Int64", ids.f_kind()?)));
        }
        // On a GPU an index out of range would end the process's use of the device.
        for id in [ids.f_min()?, ids.f_max()?] {
            let id = id.f_int64_value(&[])?;
            if !(0..vocabulary).contains(&id) {
                return Err(ModelError::input(
                    "input_ids",
                    format!("token {id} is not in a vocabulary of {vocabulary}"),
                ));
            }
        }
        if attended.size() != ids.size() {
            return Err(ModelError::input(
                "attention_mask",
                format!("shape {:?} is not {:?}", attended.size(), ids.size()),
            ));
        }
        let device = self.tokens.device();
        let ids = ids.f_to_device(device)?;
        let mut x = Tensor::f_embedding(&self.tokens, &ids, -1, false, false)?
            .f_add(&self.positions.f_narrow(0, 0, tokens)?)?;
        let mask = attention_mask(tokens, true, Some(attended), device)?;
        for layer in &self.layers {
            x = layer.forward(&x, Some(&mask))?;
        }
        x = self.final_norm.forward(&x)?;
        // The end-of-text token has the highest id; its place, of width hidden: [queries, 1, hidden].
        let (queries, hidden) = (x.size3()?.0, x.size3()?.2);
        let end = ids.f_argmax(1, false)?.f_view([queries, 1, 1])?.f_expand([queries, 1, hidden], false)?;
        let pooled = x.f_gather(1, &end, false)?.f_squeeze_dim(1)?;
        let projected = self.projection.forward(&pooled)?;
        let length = projected.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?;
        Ok(projected.f_div(&length)?)
    }
}
