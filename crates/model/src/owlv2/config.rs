//! Sizes of the detector.

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::transformer::{Activation, TransformerSizes};

/// Sizes of the text tower; a field that a published configuration leaves out has the value given here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owlv2TextConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Most tokens of a query.
    pub max_position_embeddings: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

impl Default for Owlv2TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 16,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// Sizes of the vision tower; a field that a published configuration leaves out has the value given here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owlv2VisionConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Side of the square pictures, pixels.
    pub image_size: i64,
    pub patch_size: i64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

impl Default for Owlv2VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 768,
            patch_size: 16,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// Sizes of an OWLv2 network, as in a published `config.json`, whose further fields are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owlv2Config {
    #[serde(default)]
    pub text_config: Owlv2TextConfig,
    #[serde(default)]
    pub vision_config: Owlv2VisionConfig,
    /// Width of a projected query; equal to the text tower's, because queries meet the class head unprojected.
    #[serde(default = "default_projection_dim")]
    pub projection_dim: i64,
}

fn default_projection_dim() -> i64 {
    512
}

impl Owlv2Config {
    /// `owlv2-base-patch16-ensemble`: pictures of 960 pixels, 155 million parameters.
    pub fn base_patch16_ensemble() -> Self {
        Self {
            text_config: Owlv2TextConfig::default(),
            vision_config: Owlv2VisionConfig { image_size: 960, ..Owlv2VisionConfig::default() },
            projection_dim: 512,
        }
    }

    /// Fails with the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let bad = |field: &'static str, reason: String| Err(ModelError::Config { field, reason });
        let ranges = [
            ("text_config.vocab_size", text.vocab_size, 1 << 24),
            ("text_config.hidden_size", text.hidden_size, 8192),
            ("text_config.intermediate_size", text.intermediate_size, 65_536),
            ("text_config.num_hidden_layers", text.num_hidden_layers, 256),
            ("text_config.num_attention_heads", text.num_attention_heads, 256),
            ("text_config.max_position_embeddings", text.max_position_embeddings, 8192),
            ("vision_config.hidden_size", vision.hidden_size, 8192),
            ("vision_config.intermediate_size", vision.intermediate_size, 65_536),
            ("vision_config.num_hidden_layers", vision.num_hidden_layers, 256),
            ("vision_config.num_attention_heads", vision.num_attention_heads, 256),
            ("vision_config.image_size", vision.image_size, 4096),
            ("vision_config.patch_size", vision.patch_size, 1024),
            ("projection_dim", self.projection_dim, 8192),
        ];
        for (field, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return bad(field, format!("{value} is not in 1 to {most}"));
            }
        }
        for (field, heads, hidden) in [
            ("text_config.num_attention_heads", text.num_attention_heads, text.hidden_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads, vision.hidden_size),
        ] {
            if hidden % heads != 0 {
                return bad(field, format!("{heads} does not divide hidden_size {hidden}"));
            }
        }
        for (field, eps) in [
            ("text_config.layer_norm_eps", text.layer_norm_eps),
            ("vision_config.layer_norm_eps", vision.layer_norm_eps),
        ] {
            if !(eps > 0.0 && eps < 1.0) {
                return bad(field, format!("{eps} is not between 0 and 1"));
            }
        }
        if vision.patch_size > vision.image_size {
            return bad(
                "vision_config.patch_size",
                format!("{} is more than image_size {}", vision.patch_size, vision.image_size),
            );
        }
        if self.projection_dim != text.hidden_size {
            return bad(
                "projection_dim",
                format!("{} is not the text tower's width {}", self.projection_dim, text.hidden_size),
            );
        }
        Ok(())
    }

    /// Rows, and columns, of the grid of patches.
    pub fn grid_side(&self) -> i64 {
        self.vision_config.image_size / self.vision_config.patch_size
    }
}

impl Owlv2TextConfig {
    pub(super) fn layer(&self) -> TransformerSizes {
        TransformerSizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}

impl Owlv2VisionConfig {
    pub(super) fn layer(&self) -> TransformerSizes {
        TransformerSizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}
