//! What a weight file is, told from the names, shapes and dtypes in its header alone.
//!
//! ```text
//!   header ─▶ family: whose names are these?
//!               ├─ transformer, adapter: exact: every name and shape that a preset, or explicit sizes, would have
//!               └─ encoders: the tensors that each must have, and layers that must be alike
//! ```

mod adapters;
mod encoders;
mod transformer;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::FluxConfig;
use crate::error::{ProblemKind, Result, TensorProblem};
use crate::params::FLOAT_DTYPES;
use crate::weight_files::WeightFiles;

/// One tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    pub shape: Vec<i64>,
    /// As safetensors spells it: `BF16`, `F32`, ….
    pub dtype: String,
    /// Bits of one element.
    pub bits: usize,
}

/// Tensors by name.
pub type Header = BTreeMap<String, TensorHeader>;

/// The header of an opened set of files.
pub fn header_of(files: &WeightFiles) -> Header {
    let tensor = |name: &str| {
        let (shape, dtype) = files.info(name)?;
        let header = TensorHeader { shape, dtype: dtype.to_string(), bits: dtype.bitsize() };
        Some((name.to_owned(), header))
    };
    files.names().filter_map(tensor).collect()
}

/// What sort of network a set of names belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// FLUX transformer under the published names.
    Transformer,
    /// Its names within a file that holds a whole pipeline.
    WholePipeline,
    /// FLUX transformer under diffusers' names.
    DiffusersTransformer,
    /// LoRA in the published naming.
    Lora,
    ComfyuiLora,
    DiffusersLora,
    /// FLUX autoencoder under the published names.
    Autoencoder,
    DiffusersAutoencoder,
    T5,
    Clip,
    Owlv2,
    Dino,
    Dinov2,
    /// DINO under the names of its first release.
    OriginalDino,
}

impl Family {
    /// The most telling first: a name counts for the first family that knows it.
    const ALL: [Self; 14] = [
        Self::Lora,
        Self::ComfyuiLora,
        Self::DiffusersLora,
        Self::Transformer,
        Self::WholePipeline,
        Self::DiffusersTransformer,
        Self::Owlv2,
        Self::Clip,
        Self::DiffusersAutoencoder,
        Self::Autoencoder,
        Self::T5,
        Self::Dinov2,
        Self::Dino,
        Self::OriginalDino,
    ];

    pub fn describe(self) -> &'static str {
        match self {
            Self::Transformer => "FLUX transformer",
            Self::WholePipeline => "whole pipeline in one file (ComfyUI)",
            Self::DiffusersTransformer => "FLUX transformer under diffusers' names",
            Self::Lora => "UNO LoRA",
            Self::ComfyuiLora => "LoRA under ComfyUI's names",
            Self::DiffusersLora => "LoRA under diffusers' names",
            Self::Autoencoder => "FLUX autoencoder",
            Self::DiffusersAutoencoder => "autoencoder under diffusers' names",
            Self::T5 => "T5 encoder",
            Self::Clip => "CLIP",
            Self::Owlv2 => "OWLv2 detector",
            Self::Dino => "DINO",
            Self::Dinov2 => "DINOv2",
            Self::OriginalDino => "DINO under the names of its first release",
        }
    }

    /// Why a file of this family cannot be loaded as it is.
    fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::WholePipeline => Some("only files of one network can be loaded"),
            Self::DiffusersTransformer => Some("the transformer is loaded under its published names"),
            Self::DiffusersAutoencoder => Some("the autoencoder is loaded under its published names"),
            Self::OriginalDino => Some("DINO is loaded under the names of transformers"),
            Self::ComfyuiLora | Self::DiffusersLora => Some("adapters are loaded in the published naming"),
            _ => None,
        }
    }

    fn knows(self, name: &str) -> bool {
        let begins = |with: &[&str]| with.iter().any(|prefix| name.starts_with(prefix));
        let bare = encoders::bare(name);
        let bare_begins = |with: &[&str]| with.iter().any(|prefix| bare.starts_with(prefix));
        match self {
            Self::Lora => name.contains(".processor.") && name.contains("_lora"),
            Self::ComfyuiLora => begins(&["lora_unet_", "lora_te"]),
            Self::DiffusersLora => name.contains(".lora_A.") || name.contains(".lora_B."),
            Self::Transformer => begins(&[
                "double_blocks.",
                "single_blocks.",
                "img_in.",
                "txt_in.",
                "time_in.",
                "vector_in.",
                "guidance_in.",
                "final_layer.",
            ]),
            Self::WholePipeline => {
                begins(&["model.diffusion_model.", "text_encoders.", "vae.", "first_stage_model."])
            }
            Self::DiffusersTransformer => begins(&[
                "transformer_blocks.",
                "single_transformer_blocks.",
                "x_embedder.",
                "context_embedder.",
                "time_text_embed.",
                "norm_out.",
                "proj_out.",
            ]),
            Self::Owlv2 => begins(&["owlv2.", "class_head.", "box_head.", "objectness_head.", "layer_norm."]),
            Self::Clip => begins(&[
                "text_model.",
                "vision_model.",
                "visual_projection.",
                "text_projection.",
                "logit_scale",
            ]),
            Self::DiffusersAutoencoder => begins(&[
                "encoder.down_blocks.",
                "encoder.mid_block.",
                "decoder.up_blocks.",
                "decoder.mid_block.",
            ]),
            Self::Autoencoder => begins(&[
                "encoder.down.",
                "encoder.mid.",
                "encoder.conv_",
                "encoder.norm_out.",
                "decoder.up.",
                "decoder.mid.",
                "decoder.conv_",
                "decoder.norm_out.",
            ]),
            Self::T5 => {
                begins(&["shared.", "encoder.block.", "encoder.final_layer_norm.", "encoder.embed_tokens."])
            }
            // The two share most names; layer scales are DINOv2's alone, and decide below.
            Self::Dinov2 => bare_begins(&["embeddings.", "encoder.layer.", "layernorm."]),
            Self::Dino => bare_begins(&["embeddings.", "encoder.layer.", "layernorm.", "pooler."]),
            Self::OriginalDino => {
                begins(&["cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "head."])
            }
        }
    }

    /// The family that knows most names, if that is more than half of them.
    fn of(header: &Header) -> Option<Self> {
        let count = |family: Self| header.keys().filter(|name| family.knows(name)).count();
        // `max_by_key` takes the last of equals, so the most telling comes last.
        let (known, family) = Self::ALL
            .into_iter()
            .rev()
            .map(|family| (count(family), family))
            .max_by_key(|(known, _)| *known)?;
        if known * 2 <= header.len() {
            return None;
        }
        match family {
            Self::Dinov2 | Self::Dino => {
                let scales = header.keys().any(|name| name.contains(".layer_scale"));
                Some(if scales { Self::Dinov2 } else { Self::Dino })
            }
            family => Some(family),
        }
    }
}

/// Tensors and elements of one dtype.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DtypeCount {
    pub tensors: u64,
    pub parameters: u64,
}

/// What a header says.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// None if the names are nobody's that is known here.
    pub family: Option<Family>,
    /// Whether a network can be loaded from it.
    pub fits: bool,
    /// Presets that it fits, or is nearest to.
    pub presets: Vec<&'static str>,
    /// Sizes of the transformer that it fits, or is nearest to.
    pub config: Option<FluxConfig>,
    /// What else the shapes tell, for people: rank, layers, widths.
    pub facts: BTreeMap<&'static str, String>,
    /// Why a file in good order still cannot be loaded.
    pub obstacle: Option<&'static str>,
    /// Every tensor that is missing, unexpected, misshapen or of a dtype that is no float.
    #[serde(serialize_with = "as_text")]
    pub problems: Vec<TensorProblem>,
    pub tensors: u64,
    pub parameters: u64,
    /// Size of the tensors, without the header.
    pub bytes: u64,
    pub dtypes: BTreeMap<String, DtypeCount>,
}

fn as_text<S: serde::Serializer>(problems: &[TensorProblem], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(ToString::to_string))
}

/// What one family's check found out.
#[derive(Default)]
struct Verdict {
    presets: Vec<&'static str>,
    config: Option<FluxConfig>,
    facts: BTreeMap<&'static str, String>,
    problems: Vec<TensorProblem>,
}

/// Tells what a header belongs to, and everything that is wrong with it.
pub fn inspect(header: &Header) -> Inspection {
    let family = Family::of(header);
    let verdict = match family {
        None => Verdict::default(),
        Some(Family::Transformer) => transformer::check(header),
        Some(Family::Lora) => adapters::check_published(header),
        Some(Family::ComfyuiLora) => adapters::check_pairs(header, ".lora_down.weight", ".lora_up.weight"),
        Some(Family::DiffusersLora) => adapters::check_pairs(header, ".lora_A.weight", ".lora_B.weight"),
        Some(family) => encoders::check(header, family),
    };
    let obstacle = family.and_then(Family::obstacle);
    let mut dtypes: BTreeMap<String, DtypeCount> = BTreeMap::new();
    let (mut parameters, mut bytes) = (0u64, 0u64);
    for tensor in header.values() {
        let elements = elements(&tensor.shape);
        let count = dtypes.entry(tensor.dtype.clone()).or_default();
        count.tensors += 1;
        count.parameters = count.parameters.saturating_add(elements);
        parameters = parameters.saturating_add(elements);
        bytes = bytes.saturating_add(elements.saturating_mul(tensor.bits as u64).div_ceil(8));
    }
    Inspection {
        family,
        fits: family.is_some() && obstacle.is_none() && verdict.problems.is_empty(),
        presets: verdict.presets,
        config: verdict.config,
        facts: verdict.facts,
        obstacle,
        problems: verdict.problems,
        tensors: header.len() as u64,
        parameters,
        bytes,
        dtypes,
    }
}

fn elements(shape: &[i64]) -> u64 {
    shape.iter().fold(1u64, |product, side| product.saturating_mul(u64::try_from(*side).unwrap_or(0)))
}

/// Everything in which a header differs from a layout, by name.
fn compare(header: &Header, layout: &[(String, Vec<i64>)]) -> Vec<TensorProblem> {
    let mut problems = Vec::new();
    let mut note = |tensor: &str, kind| problems.push(TensorProblem { tensor: tensor.to_owned(), kind });
    let wanted: BTreeMap<&str, &Vec<i64>> =
        layout.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    for (name, expected) in &wanted {
        match header.get(*name) {
            None => note(name, ProblemKind::Missing),
            Some(tensor) if tensor.shape != **expected => {
                let (found, expected) = (tensor.shape.clone(), expected.to_vec());
                note(name, ProblemKind::Shape { found, expected });
            }
            Some(_) => {}
        }
    }
    for (name, tensor) in header {
        if !wanted.contains_key(name.as_str()) {
            note(name, ProblemKind::Unexpected);
        } else if !is_float(&tensor.dtype) {
            let (found, expected) = (tensor.dtype.clone(), FLOAT_DTYPES.to_owned());
            note(name, ProblemKind::Dtype { found, expected });
        }
    }
    problems
}

fn is_float(dtype: &str) -> bool {
    matches!(dtype, "F32" | "BF16" | "F16" | "F64" | "F8_E4M3")
}

/// The value that most of `values` have.
fn most_common<T: Ord + Clone>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// One more than the largest number that follows `prefix` in a name.
fn blocks_of<'a>(names: impl Iterator<Item = &'a String>, prefix: &str) -> i64 {
    let index = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
    names.filter_map(index).max().map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests;
