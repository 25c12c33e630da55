//! Networks around the transformer: the tensors that each must have, and layers that must be alike.

use std::collections::{BTreeMap, BTreeSet};

use super::{Family, Header, Verdict, is_float, most_common};
use crate::error::{ProblemKind, TensorProblem};
use crate::params::FLOAT_DTYPES;

/// `name` without the prefix that a vision transformer has inside of a larger one.
pub(super) fn bare(name: &str) -> &str {
    name.strip_prefix("dinov2.").or(name.strip_prefix("vit.")).unwrap_or(name)
}

const CLIP_TEXT: [&str; 4] = [
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.final_layer_norm.weight",
    "text_model.final_layer_norm.bias",
];
// `pre_layrnorm` is how it is published.
const CLIP_VISION: [&str; 7] = [
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.pre_layrnorm.weight",
    "vision_model.pre_layrnorm.bias",
    "vision_model.post_layernorm.weight",
    "vision_model.post_layernorm.bias",
];
const VISION: [&str; 6] = [
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.projection.bias",
    "layernorm.weight",
    "layernorm.bias",
];
const OWLV2: [&str; 14] = [
    "owlv2.text_model.embeddings.token_embedding.weight",
    "owlv2.text_model.embeddings.position_embedding.weight",
    "owlv2.text_projection.weight",
    "owlv2.vision_model.embeddings.class_embedding",
    "owlv2.vision_model.embeddings.patch_embedding.weight",
    "owlv2.vision_model.embeddings.position_embedding.weight",
    "class_head.dense0.weight",
    "class_head.logit_shift.weight",
    "class_head.logit_scale.weight",
    "box_head.dense0.weight",
    "box_head.dense1.weight",
    "box_head.dense2.weight",
    "layer_norm.weight",
    "layer_norm.bias",
];
const AUTOENCODER: [&str; 16] = [
    "encoder.conv_in.weight",
    "encoder.conv_in.bias",
    "encoder.mid.block_1.conv1.weight",
    "encoder.mid.attn_1.q.weight",
    "encoder.norm_out.weight",
    "encoder.norm_out.bias",
    "encoder.conv_out.weight",
    "encoder.conv_out.bias",
    "decoder.conv_in.weight",
    "decoder.conv_in.bias",
    "decoder.mid.block_1.conv1.weight",
    "decoder.mid.attn_1.q.weight",
    "decoder.norm_out.weight",
    "decoder.norm_out.bias",
    "decoder.conv_out.weight",
    "decoder.conv_out.bias",
];

/// Facts that a shape tells: name of the fact, tensor, axis.
type Telling = (&'static str, &'static str, usize);

fn tellings(family: Family) -> &'static [Telling] {
    match family {
        Family::T5 => &[
            ("vocabulary", "shared.weight", 0),
            ("width", "encoder.final_layer_norm.weight", 0),
            ("MLP width", "encoder.block.0.layer.1.DenseReluDense.wo.weight", 1),
            ("attention width", "encoder.block.0.layer.0.SelfAttention.q.weight", 0),
        ],
        Family::Clip => &[
            ("vocabulary", "text_model.embeddings.token_embedding.weight", 0),
            ("text width", "text_model.final_layer_norm.weight", 0),
            ("text positions", "text_model.embeddings.position_embedding.weight", 0),
            ("vision width", "vision_model.post_layernorm.weight", 0),
            ("patch", "vision_model.embeddings.patch_embedding.weight", 2),
            ("projection", "visual_projection.weight", 0),
        ],
        Family::Owlv2 => &[
            ("text width", "owlv2.text_model.final_layer_norm.weight", 0),
            ("vision width", "layer_norm.weight", 0),
            ("patch", "owlv2.vision_model.embeddings.patch_embedding.weight", 2),
        ],
        Family::Dino | Family::Dinov2 => &[
            ("width", "layernorm.weight", 0),
            ("patch", "embeddings.patch_embeddings.projection.weight", 2),
            ("positions", "embeddings.position_embeddings", 1),
        ],
        Family::Autoencoder => {
            &[("latent channels", "decoder.conv_in.weight", 1), ("base width", "encoder.conv_in.weight", 0)]
        }
        _ => &[],
    }
}

/// Checks one of the networks that are recognised by their names.
pub(super) fn check(header: &Header, family: Family) -> Verdict {
    let mut verdict = Verdict::default();
    let bare_names: BTreeMap<&str, &str> = header.keys().map(|name| (bare(name), name.as_str())).collect();
    let present = |name: &str| bare_names.contains_key(name);
    let mut need: Vec<&str> = Vec::new();
    match family {
        Family::T5 => {
            if !present("encoder.embed_tokens.weight") {
                need.push("shared.weight");
            }
            need.extend([
                "encoder.final_layer_norm.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ]);
        }
        Family::Clip => {
            let has = |part: &str| header.keys().any(|name| name.starts_with(part));
            if has("text_model.") {
                need.extend(CLIP_TEXT);
            }
            if has("vision_model.") {
                need.extend(CLIP_VISION);
            }
        }
        Family::Owlv2 => need.extend(OWLV2),
        Family::Dino | Family::Dinov2 => need.extend(VISION),
        Family::Autoencoder => need.extend(AUTOENCODER),
        _ => {}
    }
    let missing = need.into_iter().filter(|name| !present(name));
    verdict
        .problems
        .extend(missing.map(|name| TensorProblem { tensor: name.to_owned(), kind: ProblemKind::Missing }));
    unlike_layers(header, &mut verdict);
    for (name, tensor) in header {
        // Position ids are whole numbers and of no use.
        if !is_float(&tensor.dtype) && !name.ends_with("position_ids") {
            let (found, expected) = (tensor.dtype.clone(), FLOAT_DTYPES.to_owned());
            let kind = ProblemKind::Dtype { found, expected };
            verdict.problems.push(TensorProblem { tensor: name.clone(), kind });
        }
    }
    for (fact, name, axis) in tellings(family) {
        let tensor = bare_names.get(name).and_then(|name| header.get(*name));
        if let Some(side) = tensor.and_then(|tensor| tensor.shape.get(*axis)) {
            verdict.facts.insert(fact, side.to_string());
        }
    }
    verdict
}

/// Words before the number of a layer.
const LAYERS: [&str; 4] = ["block", "blocks", "layer", "layers"];

/// Prefix, number and rest of a name within a stack of layers.
fn layer_of(name: &str) -> Option<(&str, u32, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if LAYERS.contains(&part)
            && let Some(rest) = name.get(end + 1..)
            && let Some((number, rest)) = rest.split_once('.')
            && let Ok(number) = number.parse()
        {
            return Some((name.get(..end)?, number, rest));
        }
        start = end + 1;
    }
    None
}

/// In a stack every layer has the same tensors of the same shapes: what most layers have decides. Only what stands in the
/// first layer alone (T5's position bias) may be there once.
fn unlike_layers(header: &Header, verdict: &mut Verdict) {
    type Tensors<'a> = BTreeMap<&'a str, BTreeMap<u32, &'a Vec<i64>>>;
    let mut stacks: BTreeMap<&str, Tensors<'_>> = BTreeMap::new();
    for (name, tensor) in header {
        // The autoencoder's stages differ on purpose.
        let in_autoencoder =
            name.starts_with("encoder.down") || name.starts_with("decoder.up") || name.contains(".mid");
        if let Some((prefix, number, rest)) = layer_of(name).filter(|_| !in_autoencoder) {
            stacks.entry(prefix).or_default().entry(rest).or_default().insert(number, &tensor.shape);
        }
    }
    for (prefix, tensors) in stacks {
        let numbers: BTreeSet<u32> = tensors.values().flat_map(BTreeMap::keys).copied().collect();
        // A number that is skipped is a layer that is gone.
        let count = numbers.last().map_or(0, |last| last + 1);
        let count = count.min(numbers.len() as u32 * 2);
        verdict.facts.insert(
            match prefix {
                prefix if prefix.contains("text_model") => "text layers",
                prefix if prefix.contains("vision_model") => "vision layers",
                _ => "layers",
            },
            count.to_string(),
        );
        let mut note = |number: u32, rest: &str, kind| {
            let tensor = format!("{prefix}.{number}.{rest}");
            verdict.problems.push(TensorProblem { tensor, kind });
        };
        for (rest, shapes) in tensors {
            if shapes.len() * 2 <= numbers.len() {
                let strange = shapes.keys().filter(|number| **number > 0);
                strange.for_each(|number| note(*number, rest, ProblemKind::Unexpected));
                continue;
            }
            let Some(expected) = most_common(shapes.values().copied()) else { continue };
            for number in 0..count {
                match shapes.get(&number) {
                    None => note(number, rest, ProblemKind::Missing),
                    Some(found) if *found != expected => {
                        let (found, expected) = (found.to_vec(), expected.clone());
                        note(number, rest, ProblemKind::Shape { found, expected });
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
