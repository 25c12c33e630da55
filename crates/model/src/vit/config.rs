//! Sizes of a vision transformer.

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Sizes of a DINO or DINOv2 network; the fields are those of published configurations, further ones are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VitConfig {
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Width of the hidden layer of each block, in `hidden_size`s.
    pub mlp_ratio: i64,
    /// Height and width that the stored position embeddings are for, pixels.
    pub image_size: i64,
    pub patch_size: i64,
    pub layer_norm_eps: f64,
    /// Tokens of no place beside the class token (arXiv 2309.16588); 0 for DINO and the first DINOv2.
    #[serde(default, skip_serializing_if = "is_default")]
    pub num_register_tokens: i64,
    /// Whether blocks have a gated hidden layer, as the largest DINOv2 does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub use_swiglu_ffn: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VitConfig {
    /// DINOv2 for panels of 32x32 pixels: 64 patches, 0.34 million parameters.
    pub fn nano() -> Self {
        Self {
            hidden_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            mlp_ratio: 4,
            image_size: 32,
            patch_size: 4,
            layer_norm_eps: 1e-6,
            num_register_tokens: 0,
            use_swiglu_ffn: false,
        }
    }

    /// DINOv2 ViT-S/14, 22 million parameters.
    pub fn dinov2_small() -> Self {
        Self::dinov2(384, 12, 6)
    }

    /// DINOv2 ViT-B/14, 87 million parameters.
    pub fn dinov2_base() -> Self {
        Self::dinov2(768, 12, 12)
    }

    /// DINOv2 ViT-L/14, 304 million parameters.
    pub fn dinov2_large() -> Self {
        Self::dinov2(1024, 24, 16)
    }

    fn dinov2(hidden_size: i64, num_hidden_layers: i64, num_attention_heads: i64) -> Self {
        Self {
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            mlp_ratio: 4,
            image_size: 518,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            num_register_tokens: 0,
            use_swiglu_ffn: false,
        }
    }

    /// DINO ViT-S/16, 22 million parameters: the scores of subject likeness are defined with it.
    pub fn dino_vits16() -> Self {
        Self {
            hidden_size: 384,
            num_hidden_layers: 12,
            num_attention_heads: 6,
            mlp_ratio: 4,
            image_size: 224,
            patch_size: 16,
            layer_norm_eps: 1e-6,
            num_register_tokens: 0,
            use_swiglu_ffn: false,
        }
    }

    /// Fails with the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &'static str, reason: String| Err(ModelError::Config { field, reason });
        let ranges = [
            ("hidden_size", self.hidden_size, 8192),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 256),
            ("mlp_ratio", self.mlp_ratio, 16),
            ("image_size", self.image_size, 8192),
            ("patch_size", self.patch_size, 1024),
        ];
        for (field, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return bad(field, format!("{value} is not in 1 to {most}"));
            }
        }
        if !(0..=1024).contains(&self.num_register_tokens) {
            return bad("num_register_tokens", format!("{} is not in 0 to 1024", self.num_register_tokens));
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return bad(
                "num_attention_heads",
                format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size),
            );
        }
        if self.image_size % self.patch_size != 0 {
            return bad(
                "patch_size",
                format!("{} does not divide image_size {}", self.patch_size, self.image_size),
            );
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return bad("layer_norm_eps", format!("{} is not between 0 and 1", self.layer_norm_eps));
        }
        Ok(())
    }

    /// Width of a block's hidden layer; of each of its two halves where it is gated (two thirds, up to a multiple of 8).
    pub(crate) fn mlp_width(&self) -> i64 {
        let plain = self.hidden_size.saturating_mul(self.mlp_ratio);
        if self.use_swiglu_ffn { (plain * 2 / 3 + 7) / 8 * 8 } else { plain }
    }

    /// Rows, and columns, of the stored grid of positions.
    pub(crate) fn grid_side(&self) -> i64 {
        self.image_size / self.patch_size
    }
}
