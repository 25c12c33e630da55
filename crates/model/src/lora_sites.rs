//! The projections that an adapter updates, and what each naming calls them. [`crate::lora_names`] reads by this table,
//! [`crate::lora_export`] writes by it.

/// A projection of one sort of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    DoubleImageQkv,
    DoubleImageProj,
    DoubleTextQkv,
    DoubleTextProj,
    SingleQkv,
    SingleProj,
}

impl Site {
    pub const ALL: [Self; 6] = [
        Self::DoubleImageQkv,
        Self::DoubleImageProj,
        Self::DoubleTextQkv,
        Self::DoubleTextProj,
        Self::SingleQkv,
        Self::SingleProj,
    ];

    /// Sort of block and name of the pair in the published layout.
    pub fn published(self) -> (&'static str, &'static str) {
        match self {
            Self::DoubleImageQkv => ("double_blocks", "qkv_lora1"),
            Self::DoubleImageProj => ("double_blocks", "proj_lora1"),
            Self::DoubleTextQkv => ("double_blocks", "qkv_lora2"),
            Self::DoubleTextProj => ("double_blocks", "proj_lora2"),
            Self::SingleQkv => ("single_blocks", "qkv_lora"),
            Self::SingleProj => ("single_blocks", "proj_lora"),
        }
    }

    /// The base's matrix, `{}` for the block, under the base's published names. kohya and ComfyUI write `_` for its dots. That of
    /// `SingleQkv` has rows for the MLP below those of queries, keys and values.
    pub fn base(self) -> &'static str {
        match self {
            Self::DoubleImageQkv => "double_blocks.{}.img_attn.qkv",
            Self::DoubleImageProj => "double_blocks.{}.img_attn.proj",
            Self::DoubleTextQkv => "double_blocks.{}.txt_attn.qkv",
            Self::DoubleTextProj => "double_blocks.{}.txt_attn.proj",
            Self::SingleQkv => "single_blocks.{}.linear1",
            Self::SingleProj => "single_blocks.{}.linear2",
        }
    }

    /// The matrices that hold its rows in diffusers, in order.
    pub fn diffusers(self) -> &'static [&'static str] {
        match self {
            Self::DoubleImageQkv => &[
                "transformer_blocks.{}.attn.to_q",
                "transformer_blocks.{}.attn.to_k",
                "transformer_blocks.{}.attn.to_v",
            ],
            Self::DoubleImageProj => &["transformer_blocks.{}.attn.to_out.0"],
            Self::DoubleTextQkv => &[
                "transformer_blocks.{}.attn.add_q_proj",
                "transformer_blocks.{}.attn.add_k_proj",
                "transformer_blocks.{}.attn.add_v_proj",
            ],
            Self::DoubleTextProj => &["transformer_blocks.{}.attn.to_add_out"],
            Self::SingleQkv => &[
                "single_transformer_blocks.{}.attn.to_q",
                "single_transformer_blocks.{}.attn.to_k",
                "single_transformer_blocks.{}.attn.to_v",
            ],
            Self::SingleProj => &["single_transformer_blocks.{}.proj_out"],
        }
    }

    /// Name of a pair in the published layout, without its ends.
    pub fn published_module(self, block: i64) -> String {
        let (sort, pair) = self.published();
        format!("{sort}.{block}.processor.{pair}")
    }

    /// Whether it belongs to a single block.
    pub fn is_single(self) -> bool {
        matches!(self, Self::SingleQkv | Self::SingleProj)
    }
}
