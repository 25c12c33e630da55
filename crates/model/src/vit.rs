//! The vision transformer that DINO and DINOv2 share.
//!
//! ```text
//!  pixels ─ patches ─┐
//!                    ├─ + positions ─ blocks ─ norm ─ tokens; the class token is first
//!  class token ──────┘
//! ```
//!
//! The two differ in the names of their tensors, in how a block keeps its query, key and value matrices, in DINOv2's
//! scales on each residual branch, and in the rule by which positions are resized. DINOv2 has registers, tokens of no place
//! between the class token and the patches, in its later checkpoints, and gated hidden layers in its largest.

mod block;
mod config;
mod positions;

use tch::{Kind, Tensor};

use block::Block;
pub use config::VitConfig;
pub use positions::PositionRule;

use crate::error::{ModelError, Result};
use crate::layers::{Conv2d, ConvSizes, LayerNorm, cast};
use crate::params::{Init, ParamSource};

/// Channel means and deviations that pictures in `[0, 1]` are normalised with (ImageNet's, as published).
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Pictures `[batch, 3, height, width]` in `[0, 1]`, normalised as the networks want them.
pub fn normalised(pixels: &Tensor) -> Result<Tensor> {
    let channels = |values: [f32; 3]| -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&values)?.f_view([1, 3, 1, 1])?.f_to_device(pixels.device())?)
    };
    Ok(pixels.f_sub(&channels(MEAN)?)?.f_div(&channels(DEVIATION)?)?)
}

/// Vectors `[batch, width]` divided by their lengths.
pub(crate) fn unit_length(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?.f_clamp_min(1e-12)?;
    Ok(vectors.f_div(&length)?)
}

/// DINOv2's alone, so it has one name.
const REGISTERS: &str = "embeddings.register_tokens";

/// How a published network spells its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// DINOv2 as in Hugging Face's checkpoints: separate query, key and value, and a scale on each branch.
    HuggingFace,
    /// DINO as torch.hub has it: one matrix for query, key and value, no scales.
    TorchHub,
}

impl Naming {
    fn class_token(self) -> &'static str {
        match self {
            Self::HuggingFace => "embeddings.cls_token",
            Self::TorchHub => "cls_token",
        }
    }

    fn positions(self) -> &'static str {
        match self {
            Self::HuggingFace => "embeddings.position_embeddings",
            Self::TorchHub => "pos_embed",
        }
    }

    fn patches(self) -> &'static str {
        match self {
            Self::HuggingFace => "embeddings.patch_embeddings.projection",
            Self::TorchHub => "patch_embed.proj",
        }
    }

    fn block(self, layer: usize) -> String {
        match self {
            Self::HuggingFace => format!("encoder.layer.{layer}"),
            Self::TorchHub => format!("blocks.{layer}"),
        }
    }

    fn norm(self) -> &'static str {
        match self {
            Self::HuggingFace => "layernorm",
            Self::TorchHub => "norm",
        }
    }
}

/// The network, in the dtype that its weights were loaded in.
#[derive(Debug)]
pub(crate) struct Vit {
    config: VitConfig,
    naming: Naming,
    class_token: Tensor,
    /// `[1, registers, hidden]`.
    registers: Option<Tensor>,
    positions: Tensor,
    patches: Conv2d,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Vit {
    pub fn build(config: &VitConfig, naming: Naming, source: &mut dyn ParamSource) -> Result<Self> {
        config.validate()?;
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let sizes = ConvSizes { input: 3, output: hidden, size: patch, stride: patch, padding: 0 };
        let cells = config.grid_side() * config.grid_side();
        Ok(Self {
            class_token: source.take(naming.class_token(), &[1, 1, hidden], Init::Normal(0.02))?,
            registers: (config.num_register_tokens > 0)
                .then(|| source.take(REGISTERS, &[1, config.num_register_tokens, hidden], Init::Normal(0.02)))
                .transpose()?,
            positions: source.take(naming.positions(), &[1, cells + 1, hidden], Init::Normal(0.02))?,
            patches: Conv2d::build(source, naming.patches(), sizes, true)?,
            blocks: (0..config.num_hidden_layers as usize)
                .map(|layer| Block::build(config, naming, &naming.block(layer), source))
                .collect::<Result<_>>()?,
            norm: LayerNorm::build(source, naming.norm(), hidden, config.layer_norm_eps)?,
            config: config.clone(),
            naming,
        })
    }

    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    pub fn kind(&self) -> Kind {
        self.class_token.kind()
    }

    /// Calls `visit` with the published name and the tensor of every weight.
    pub fn visit_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(self.naming.class_token().to_owned(), &mut self.class_token);
        if let Some(registers) = &mut self.registers {
            visit(REGISTERS.to_owned(), registers);
        }
        visit(self.naming.positions().to_owned(), &mut self.positions);
        self.patches.visit_mut(self.naming.patches(), visit);
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            block.visit_mut(&self.naming.block(layer), visit);
        }
        self.norm.visit_mut(self.naming.norm(), visit);
    }

    /// All tokens after the last norm, `[batch, 1 + registers + patches, hidden]`, of normalised pictures
    /// `[batch, 3, height, width]` whose sides are multiples of the patch size, in the dtype of the weights.
    pub fn forward(&self, pixels: &Tensor, rule: PositionRule) -> Result<Tensor> {
        let mut hidden = self.embed(pixels, rule)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden)?;
        }
        self.norm.forward(&hidden)
    }

    /// Tokens that enter the first block: class token and patches, positions added, registers between them; shapes as in [`Vit::forward`].
    pub fn embed(&self, pixels: &Tensor, rule: PositionRule) -> Result<Tensor> {
        let patch = self.config.patch_size;
        let (batch, rows, columns) = match *pixels.size().as_slice() {
            [batch, 3, height, width]
                if height >= patch && width >= patch && height % patch == 0 && width % patch == 0 =>
            {
                (batch, height / patch, width / patch)
            }
            _ => {
                let reason = format!(
                    "shape {:?} is not [batch, 3, height, width] with sides that are multiples of {patch}",
                    pixels.size()
                );
                return Err(ModelError::input("pixels", reason));
            }
        };
        // [batch, hidden, rows, columns] -> [batch, rows * columns, hidden]
        let patches =
            self.patches.forward(&cast(pixels, self.kind())?)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let class = self.class_token.f_expand([batch, 1, self.config.hidden_size], false)?;
        let tokens = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions(rows, columns, rule)?)?;
        let Some(registers) = &self.registers else { return Ok(tokens) };
        let registers = registers.f_expand([batch, -1, self.config.hidden_size], false)?;
        let (class, patches) = (tokens.f_narrow(1, 0, 1)?, tokens.f_narrow(1, 1, rows * columns)?);
        Ok(Tensor::f_cat(&[class, registers, patches], 1)?)
    }

    /// Position embeddings for a grid, `[1, 1 + rows * columns, hidden]`.
    pub fn positions(&self, rows: i64, columns: i64, rule: PositionRule) -> Result<Tensor> {
        positions::resized(&self.positions, self.config.grid_side(), rows, columns, rule)
    }
}
