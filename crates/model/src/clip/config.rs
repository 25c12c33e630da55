//! Sizes of the towers, with the keys and the defaults of published `config.json` files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::published::{check_eps, check_range, config_beside, read_config};
use crate::transformer::{Activation, TransformerSizes};

/// The `eos_token_id` of the first published configurations. It is not the id of their end-of-text token, so it says to
/// look for the highest id instead.
const LEGACY_EOS_TOKEN_ID: i64 = 2;

/// Which token's state is the pooled vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first of those with the highest id: end-of-text has the highest in published vocabularies.
    HighestId,
    /// The first token with this id; the very first token where there is none.
    FirstEndOfText(i64),
}

/// Sizes of a text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    pub vocab_size: i64,
    /// Width of a token.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Largest number of tokens.
    pub max_position_embeddings: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    /// Decides the token that the pooled vector is taken from; see [`ClipTextConfig::pooling`].
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    /// What a published configuration means by leaving a key out.
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

impl ClipTextConfig {
    /// The text tower of CLIP ViT-L/14, whose pooled vector FLUX.1 takes: 123 million parameters.
    pub fn large() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            eos_token_id: LEGACY_EOS_TOKEN_ID,
            ..Self::default()
        }
    }

    /// Reads a published `config.json`, of the tower alone or of both.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_config(path, Some("text_config"))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration in the folder of `weights`; [`ClipTextConfig::large`] where there is none.
    pub fn beside(weights: &Path) -> Result<Self> {
        config_beside(weights).map_or_else(|| Ok(Self::large()), |path| Self::read(&path))
    }

    /// The token that the pooled vector is taken from (transformers `modeling_clip.py`, `CLIPTextTransformer`).
    pub fn pooling(&self) -> Pooling {
        if self.eos_token_id == LEGACY_EOS_TOKEN_ID {
            Pooling::HighestId
        } else {
            Pooling::FirstEndOfText(self.eos_token_id)
        }
    }

    /// Checks every field; the error names the first one out of range.
    pub fn validate(&self) -> Result<()> {
        check_range("vocab_size", self.vocab_size, 1..=1 << 24)?;
        check_range("max_position_embeddings", self.max_position_embeddings, 1..=1 << 16)?;
        check_layers(&self.sizes(), self.num_hidden_layers)
    }

    pub(super) fn sizes(&self) -> TransformerSizes {
        TransformerSizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}

/// Sizes of a vision tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width of a token.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Height and width of a picture, pixels.
    pub image_size: i64,
    /// Height and width of a patch, pixels.
    pub patch_size: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    /// What a published configuration means by leaving a key out.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Checks every field; the error names the first one out of range.
    pub fn validate(&self) -> Result<()> {
        check_range("image_size", self.image_size, 1..=1 << 13)?;
        check_range("patch_size", self.patch_size, 1..=self.image_size)?;
        check_layers(&self.sizes(), self.num_hidden_layers)
    }

    /// Patches in each direction; a rest at the right and bottom edge is not looked at.
    pub(super) fn side(&self) -> i64 {
        self.image_size / self.patch_size
    }

    pub(super) fn sizes(&self) -> TransformerSizes {
        TransformerSizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}

/// Sizes of the two towers and of the space that they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    pub text_config: ClipTextConfig,
    pub vision_config: ClipVisionConfig,
    /// Width of the shared space.
    pub projection_dim: i64,
}

impl Default for ClipConfig {
    /// What a published configuration means by leaving a key out.
    fn default() -> Self {
        Self {
            text_config: ClipTextConfig::default(),
            vision_config: ClipVisionConfig::default(),
            projection_dim: 512,
        }
    }
}

impl ClipConfig {
    /// CLIP ViT-B/32, which the published scores are measured with: 151 million parameters.
    pub fn vit_b32() -> Self {
        let text_config = ClipTextConfig { eos_token_id: LEGACY_EOS_TOKEN_ID, ..ClipTextConfig::default() };
        Self { text_config, ..Self::default() }
    }

    /// Reads a published `config.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_config(path, None)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration in the folder of `weights`; [`ClipConfig::vit_b32`] where there is none.
    pub fn beside(weights: &Path) -> Result<Self> {
        config_beside(weights).map_or_else(|| Ok(Self::vit_b32()), |path| Self::read(&path))
    }

    /// Checks every field; the error names the first one out of range.
    pub fn validate(&self) -> Result<()> {
        self.text_config.validate()?;
        self.vision_config.validate()?;
        check_range("projection_dim", self.projection_dim, 1..=1 << 16)
    }
}

fn check_layers(sizes: &TransformerSizes, layers: i64) -> Result<()> {
    check_range("hidden_size", sizes.hidden, 1..=1 << 16)?;
    check_range("intermediate_size", sizes.intermediate, 1..=1 << 18)?;
    check_range("num_hidden_layers", layers, 1..=1 << 10)?;
    check_range("num_attention_heads", sizes.heads, 1..=1 << 12)?;
    if sizes.hidden % sizes.heads != 0 {
        return Err(ModelError::Config {
            field: "num_attention_heads",
            reason: format!("{} does not divide hidden_size {}", sizes.heads, sizes.hidden),
        });
    }
    check_eps("layer_norm_eps", sizes.eps)
}
