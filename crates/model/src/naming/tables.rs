//! The tables: prefixes under which each network lies, what tells a form, and the rules of each form.

use super::rules::How::{Convolution, Mirrored, Rows, SwapHalves};
use super::rules::{Ends, How, Rule};
use super::{Network, Tensors};

/// Where a network's tensors lie within a larger file, in the order in which they are looked for.
pub(super) fn prefixes(network: Network) -> &'static [&'static str] {
    match network {
        Network::Transformer => &["model.diffusion_model.", "diffusion_model.", "transformer.", "module."],
        Network::Autoencoder => &["first_stage_model.", "vae.", "module."],
        Network::T5 => &["text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "t5xxl.transformer."],
        Network::Clip => {
            &["text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "clip_l.transformer."]
        }
        Network::Owlv2 => &[],
        Network::Dino => &["vit.", "backbone.", "module."],
        Network::Dinov2 => &["dinov2_with_registers.", "dinov2.", "backbone.", "module."],
    }
}

/// Those of the prefixes under which a file holds several networks together.
pub(super) const OF_PIPELINES: [&str; 6] = [
    "model.diffusion_model.",
    "first_stage_model.",
    "vae.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_l.",
];

/// Whether a name, without its prefix, is one that such a network's files have.
pub(super) fn knows(network: Network, name: &str) -> bool {
    known_starts(network).iter().any(|start| name.starts_with(start))
}

fn known_starts(network: Network) -> &'static [&'static str] {
    match network {
        Network::Transformer => &[
            "double_blocks.",
            "single_blocks.",
            "img_in.",
            "txt_in.",
            "time_in.",
            "vector_in.",
            "guidance_in.",
            "final_layer.",
            "transformer_blocks.",
            "single_transformer_blocks.",
            "x_embedder.",
            "context_embedder.",
            "time_text_embed.",
            "norm_out.",
            "proj_out.",
        ],
        Network::Owlv2 => &["owlv2.", "class_head.", "box_head.", "objectness_head.", "layer_norm."],
        Network::Clip => &[
            "text_model.",
            "vision_model.",
            "visual_projection.",
            "text_projection.",
            "logit_scale",
            "embeddings.token_embedding.",
            "embeddings.position_embedding.",
            "embeddings.class_embedding",
            "embeddings.patch_embedding.",
            "encoder.layers.",
            "final_layer_norm.",
            "pre_layrnorm.",
            "post_layernorm.",
        ],
        Network::Autoencoder => &[
            "encoder.down.",
            "encoder.mid.",
            "encoder.conv_",
            "encoder.norm_out.",
            "decoder.up.",
            "decoder.mid.",
            "decoder.conv_",
            "decoder.norm_out.",
            "encoder.down_blocks.",
            "encoder.mid_block.",
            "decoder.up_blocks.",
            "decoder.mid_block.",
        ],
        Network::T5 => &[
            "shared.",
            "encoder.block.",
            "encoder.final_layer_norm.",
            "encoder.embed_tokens.",
            "decoder.block.",
            "lm_head.",
        ],
        Network::Dino | Network::Dinov2 => &[
            "embeddings.",
            "encoder.layer.",
            "layernorm.",
            "pooler.",
            "classifier.",
            "cls_token",
            "pos_embed",
            "patch_embed.",
            "blocks.",
            "norm.",
            "head.",
            "mask_token",
            "register_tokens",
        ],
    }
}

/// A prefix that published files of the network alone have.
pub(super) fn is_published_prefix(network: Network, prefix: &str) -> bool {
    matches!(
        (network, prefix),
        (Network::Dino, "vit.") | (Network::Dinov2, "dinov2." | "dinov2_with_registers.")
    )
}

/// A tensor that every file of the network has, in one of its forms.
fn telling(network: Network) -> &'static [&'static str] {
    match network {
        Network::Transformer => &["img_in.weight", "x_embedder.weight"],
        Network::Autoencoder => &["encoder.conv_in.weight", "decoder.conv_in.weight"],
        Network::T5 => &["encoder.final_layer_norm.weight"],
        Network::Clip => &[
            "text_model.final_layer_norm.weight",
            "vision_model.post_layernorm.weight",
            "embeddings.token_embedding.weight",
            "embeddings.class_embedding",
        ],
        Network::Owlv2 => &["owlv2.vision_model.post_layernorm.weight"],
        Network::Dino | Network::Dinov2 => &["cls_token", "embeddings.cls_token"],
    }
}

/// Whether these names, without their prefix, are such a network's.
pub(super) fn is_of<'a>(network: Network, mut names: impl Iterator<Item = &'a str>) -> bool {
    let telling = telling(network);
    names.any(|name| telling.contains(&name))
}

/// Takes out what lies beside a network in its own published files and is of no use: heads, and what training alone needs.
pub(super) fn leave_out(network: Network, tensors: &mut Tensors) {
    let of_no_use = |name: &str| match network {
        Network::Dino | Network::Dinov2 => {
            ["head.", "classifier.", "pooler."].iter().any(|head| name.starts_with(head))
                || ["mask_token", "embeddings.mask_token"].contains(&name)
        }
        _ => false,
    };
    tensors.retain(|name, _| !of_no_use(name));
}

/// The rules for a file whose names, without their prefix, these are; with the form's name where it is not the published
/// one. The published names need no rules.
pub(super) fn rules_for<'a>(
    network: Network,
    names: impl Iterator<Item = &'a str>,
) -> (Option<&'static str>, &'static [Rule]) {
    let names: Vec<&str> = names.collect();
    let begins = |with: &str| names.iter().any(|name| name.starts_with(with));
    match network {
        Network::Transformer if begins("transformer_blocks.") || begins("single_transformer_blocks.") => {
            (Some("diffusers' names"), TRANSFORMER)
        }
        Network::Autoencoder if begins("encoder.down_blocks.") || begins("decoder.up_blocks.") => {
            (Some("diffusers' names"), AUTOENCODER)
        }
        Network::Clip if begins("embeddings.token_embedding.") && !begins("text_model.") => {
            (Some("without text_model."), CLIP_TEXT)
        }
        Network::Clip if begins("embeddings.class_embedding") && !begins("vision_model.") => {
            (Some("without vision_model."), CLIP_VISION)
        }
        Network::Dino if begins("embeddings.cls_token") => (Some("names of transformers' ViTModel"), DINO),
        Network::Dinov2 if begins("blocks.") => (Some("names of torch.hub"), DINOV2),
        _ => (None, &[]),
    }
}

const fn rule(theirs: &'static [&'static str], ours: &'static [&'static str], ends: Ends, how: How) -> Rule {
    Rule { theirs, ours, ends, how }
}

/// A module that has another name and nothing else.
const fn same(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Rule {
    rule(theirs, ours, Ends::Layer, Rows)
}

const fn scale(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Rule {
    rule(theirs, ours, Ends::Scale, Rows)
}

/// diffusers `FluxTransformer2DModel` (its own conversion: `scripts/convert_flux_to_diffusers.py`).
const TRANSFORMER: &[Rule] = &[
    same(&["x_embedder"], &["img_in"]),
    same(&["context_embedder"], &["txt_in"]),
    same(&["time_text_embed.timestep_embedder.linear_1"], &["time_in.in_layer"]),
    same(&["time_text_embed.timestep_embedder.linear_2"], &["time_in.out_layer"]),
    same(&["time_text_embed.text_embedder.linear_1"], &["vector_in.in_layer"]),
    same(&["time_text_embed.text_embedder.linear_2"], &["vector_in.out_layer"]),
    same(&["time_text_embed.guidance_embedder.linear_1"], &["guidance_in.in_layer"]),
    same(&["time_text_embed.guidance_embedder.linear_2"], &["guidance_in.out_layer"]),
    // Theirs is scale, shift; the published one shift, scale.
    rule(&["norm_out.linear"], &["final_layer.adaLN_modulation.1"], Ends::Layer, SwapHalves),
    same(&["proj_out"], &["final_layer.linear"]),
    same(&["transformer_blocks.{}.norm1.linear"], &["double_blocks.{}.img_mod.lin"]),
    same(&["transformer_blocks.{}.norm1_context.linear"], &["double_blocks.{}.txt_mod.lin"]),
    same(
        &[
            "transformer_blocks.{}.attn.to_q",
            "transformer_blocks.{}.attn.to_k",
            "transformer_blocks.{}.attn.to_v",
        ],
        &["double_blocks.{}.img_attn.qkv"],
    ),
    same(
        &[
            "transformer_blocks.{}.attn.add_q_proj",
            "transformer_blocks.{}.attn.add_k_proj",
            "transformer_blocks.{}.attn.add_v_proj",
        ],
        &["double_blocks.{}.txt_attn.qkv"],
    ),
    scale(&["transformer_blocks.{}.attn.norm_q"], &["double_blocks.{}.img_attn.norm.query_norm"]),
    scale(&["transformer_blocks.{}.attn.norm_k"], &["double_blocks.{}.img_attn.norm.key_norm"]),
    scale(&["transformer_blocks.{}.attn.norm_added_q"], &["double_blocks.{}.txt_attn.norm.query_norm"]),
    scale(&["transformer_blocks.{}.attn.norm_added_k"], &["double_blocks.{}.txt_attn.norm.key_norm"]),
    same(&["transformer_blocks.{}.attn.to_out.0"], &["double_blocks.{}.img_attn.proj"]),
    same(&["transformer_blocks.{}.attn.to_add_out"], &["double_blocks.{}.txt_attn.proj"]),
    same(&["transformer_blocks.{}.ff.net.0.proj"], &["double_blocks.{}.img_mlp.0"]),
    same(&["transformer_blocks.{}.ff.net.2"], &["double_blocks.{}.img_mlp.2"]),
    same(&["transformer_blocks.{}.ff_context.net.0.proj"], &["double_blocks.{}.txt_mlp.0"]),
    same(&["transformer_blocks.{}.ff_context.net.2"], &["double_blocks.{}.txt_mlp.2"]),
    same(&["single_transformer_blocks.{}.norm.linear"], &["single_blocks.{}.modulation.lin"]),
    same(
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ],
        &["single_blocks.{}.linear1"],
    ),
    scale(&["single_transformer_blocks.{}.attn.norm_q"], &["single_blocks.{}.norm.query_norm"]),
    scale(&["single_transformer_blocks.{}.attn.norm_k"], &["single_blocks.{}.norm.key_norm"]),
    same(&["single_transformer_blocks.{}.proj_out"], &["single_blocks.{}.linear2"]),
];

const fn convolution(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Rule {
    rule(theirs, ours, Ends::Layer, Convolution)
}

/// The decoder's stages are named from the lowest resolution up there, from the highest down here.
const fn mirrored(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Rule {
    rule(theirs, ours, Ends::Layer, Mirrored)
}

/// diffusers `AutoencoderKL` (its own conversion: `loaders/single_file_utils.py`); older files spell its attention `query`,
/// `key`, `value`, `proj_attn`.
const AUTOENCODER: &[Rule] = &[
    same(&["encoder.conv_norm_out"], &["encoder.norm_out"]),
    same(&["encoder.mid_block.resnets.0.norm1"], &["encoder.mid.block_1.norm1"]),
    same(&["encoder.mid_block.resnets.0.conv1"], &["encoder.mid.block_1.conv1"]),
    same(&["encoder.mid_block.resnets.0.norm2"], &["encoder.mid.block_1.norm2"]),
    same(&["encoder.mid_block.resnets.0.conv2"], &["encoder.mid.block_1.conv2"]),
    same(&["encoder.mid_block.resnets.1.norm1"], &["encoder.mid.block_2.norm1"]),
    same(&["encoder.mid_block.resnets.1.conv1"], &["encoder.mid.block_2.conv1"]),
    same(&["encoder.mid_block.resnets.1.norm2"], &["encoder.mid.block_2.norm2"]),
    same(&["encoder.mid_block.resnets.1.conv2"], &["encoder.mid.block_2.conv2"]),
    same(&["encoder.mid_block.attentions.0.group_norm"], &["encoder.mid.attn_1.norm"]),
    convolution(&["encoder.mid_block.attentions.0.to_q"], &["encoder.mid.attn_1.q"]),
    convolution(&["encoder.mid_block.attentions.0.query"], &["encoder.mid.attn_1.q"]),
    convolution(&["encoder.mid_block.attentions.0.to_k"], &["encoder.mid.attn_1.k"]),
    convolution(&["encoder.mid_block.attentions.0.key"], &["encoder.mid.attn_1.k"]),
    convolution(&["encoder.mid_block.attentions.0.to_v"], &["encoder.mid.attn_1.v"]),
    convolution(&["encoder.mid_block.attentions.0.value"], &["encoder.mid.attn_1.v"]),
    convolution(&["encoder.mid_block.attentions.0.to_out.0"], &["encoder.mid.attn_1.proj_out"]),
    convolution(&["encoder.mid_block.attentions.0.proj_attn"], &["encoder.mid.attn_1.proj_out"]),
    same(&["decoder.conv_norm_out"], &["decoder.norm_out"]),
    same(&["decoder.mid_block.resnets.0.norm1"], &["decoder.mid.block_1.norm1"]),
    same(&["decoder.mid_block.resnets.0.conv1"], &["decoder.mid.block_1.conv1"]),
    same(&["decoder.mid_block.resnets.0.norm2"], &["decoder.mid.block_1.norm2"]),
    same(&["decoder.mid_block.resnets.0.conv2"], &["decoder.mid.block_1.conv2"]),
    same(&["decoder.mid_block.resnets.1.norm1"], &["decoder.mid.block_2.norm1"]),
    same(&["decoder.mid_block.resnets.1.conv1"], &["decoder.mid.block_2.conv1"]),
    same(&["decoder.mid_block.resnets.1.norm2"], &["decoder.mid.block_2.norm2"]),
    same(&["decoder.mid_block.resnets.1.conv2"], &["decoder.mid.block_2.conv2"]),
    same(&["decoder.mid_block.attentions.0.group_norm"], &["decoder.mid.attn_1.norm"]),
    convolution(&["decoder.mid_block.attentions.0.to_q"], &["decoder.mid.attn_1.q"]),
    convolution(&["decoder.mid_block.attentions.0.query"], &["decoder.mid.attn_1.q"]),
    convolution(&["decoder.mid_block.attentions.0.to_k"], &["decoder.mid.attn_1.k"]),
    convolution(&["decoder.mid_block.attentions.0.key"], &["decoder.mid.attn_1.k"]),
    convolution(&["decoder.mid_block.attentions.0.to_v"], &["decoder.mid.attn_1.v"]),
    convolution(&["decoder.mid_block.attentions.0.value"], &["decoder.mid.attn_1.v"]),
    convolution(&["decoder.mid_block.attentions.0.to_out.0"], &["decoder.mid.attn_1.proj_out"]),
    convolution(&["decoder.mid_block.attentions.0.proj_attn"], &["decoder.mid.attn_1.proj_out"]),
    same(&["encoder.down_blocks.{}.resnets.{}.norm1"], &["encoder.down.{}.block.{}.norm1"]),
    same(&["encoder.down_blocks.{}.resnets.{}.conv1"], &["encoder.down.{}.block.{}.conv1"]),
    same(&["encoder.down_blocks.{}.resnets.{}.norm2"], &["encoder.down.{}.block.{}.norm2"]),
    same(&["encoder.down_blocks.{}.resnets.{}.conv2"], &["encoder.down.{}.block.{}.conv2"]),
    same(&["encoder.down_blocks.{}.resnets.{}.conv_shortcut"], &["encoder.down.{}.block.{}.nin_shortcut"]),
    same(&["encoder.down_blocks.{}.downsamplers.0.conv"], &["encoder.down.{}.downsample.conv"]),
    mirrored(&["decoder.up_blocks.{}.resnets.{}.norm1"], &["decoder.up.{}.block.{}.norm1"]),
    mirrored(&["decoder.up_blocks.{}.resnets.{}.conv1"], &["decoder.up.{}.block.{}.conv1"]),
    mirrored(&["decoder.up_blocks.{}.resnets.{}.norm2"], &["decoder.up.{}.block.{}.norm2"]),
    mirrored(&["decoder.up_blocks.{}.resnets.{}.conv2"], &["decoder.up.{}.block.{}.conv2"]),
    mirrored(&["decoder.up_blocks.{}.resnets.{}.conv_shortcut"], &["decoder.up.{}.block.{}.nin_shortcut"]),
    mirrored(&["decoder.up_blocks.{}.upsamplers.0.conv"], &["decoder.up.{}.upsample.conv"]),
];

/// One tower as transformers 5 saves it.
const CLIP_TEXT: &[Rule] = &[
    whole(&["embeddings.token_embedding.weight"], &["text_model.embeddings.token_embedding.weight"]),
    whole(&["embeddings.position_embedding.weight"], &["text_model.embeddings.position_embedding.weight"]),
    whole(&["embeddings.position_ids"], &["text_model.embeddings.position_ids"]),
    same(&["final_layer_norm"], &["text_model.final_layer_norm"]),
    same(&["encoder.layers.{}.self_attn.q_proj"], &["text_model.encoder.layers.{}.self_attn.q_proj"]),
    same(&["encoder.layers.{}.self_attn.k_proj"], &["text_model.encoder.layers.{}.self_attn.k_proj"]),
    same(&["encoder.layers.{}.self_attn.v_proj"], &["text_model.encoder.layers.{}.self_attn.v_proj"]),
    same(&["encoder.layers.{}.self_attn.out_proj"], &["text_model.encoder.layers.{}.self_attn.out_proj"]),
    same(&["encoder.layers.{}.layer_norm1"], &["text_model.encoder.layers.{}.layer_norm1"]),
    same(&["encoder.layers.{}.layer_norm2"], &["text_model.encoder.layers.{}.layer_norm2"]),
    same(&["encoder.layers.{}.mlp.fc1"], &["text_model.encoder.layers.{}.mlp.fc1"]),
    same(&["encoder.layers.{}.mlp.fc2"], &["text_model.encoder.layers.{}.mlp.fc2"]),
];

const CLIP_VISION: &[Rule] = &[
    whole(&["embeddings.class_embedding"], &["vision_model.embeddings.class_embedding"]),
    whole(&["embeddings.position_embedding.weight"], &["vision_model.embeddings.position_embedding.weight"]),
    whole(&["embeddings.position_ids"], &["vision_model.embeddings.position_ids"]),
    same(&["embeddings.patch_embedding"], &["vision_model.embeddings.patch_embedding"]),
    same(&["pre_layrnorm"], &["vision_model.pre_layrnorm"]),
    same(&["post_layernorm"], &["vision_model.post_layernorm"]),
    same(&["encoder.layers.{}.self_attn.q_proj"], &["vision_model.encoder.layers.{}.self_attn.q_proj"]),
    same(&["encoder.layers.{}.self_attn.k_proj"], &["vision_model.encoder.layers.{}.self_attn.k_proj"]),
    same(&["encoder.layers.{}.self_attn.v_proj"], &["vision_model.encoder.layers.{}.self_attn.v_proj"]),
    same(&["encoder.layers.{}.self_attn.out_proj"], &["vision_model.encoder.layers.{}.self_attn.out_proj"]),
    same(&["encoder.layers.{}.layer_norm1"], &["vision_model.encoder.layers.{}.layer_norm1"]),
    same(&["encoder.layers.{}.layer_norm2"], &["vision_model.encoder.layers.{}.layer_norm2"]),
    same(&["encoder.layers.{}.mlp.fc1"], &["vision_model.encoder.layers.{}.mlp.fc1"]),
    same(&["encoder.layers.{}.mlp.fc2"], &["vision_model.encoder.layers.{}.mlp.fc2"]),
];

/// A tensor that is no module's.
const fn whole(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Rule {
    rule(theirs, ours, Ends::None, Rows)
}

/// transformers' `ViTModel`, under which DINO is published on Hugging Face; ours are torch.hub's.
const DINO: &[Rule] = &[
    whole(&["embeddings.cls_token"], &["cls_token"]),
    whole(&["embeddings.position_embeddings"], &["pos_embed"]),
    same(&["embeddings.patch_embeddings.projection"], &["patch_embed.proj"]),
    same(&["encoder.layer.{}.layernorm_before"], &["blocks.{}.norm1"]),
    same(&["encoder.layer.{}.layernorm_after"], &["blocks.{}.norm2"]),
    same(
        &[
            "encoder.layer.{}.attention.attention.query",
            "encoder.layer.{}.attention.attention.key",
            "encoder.layer.{}.attention.attention.value",
        ],
        &["blocks.{}.attn.qkv"],
    ),
    same(&["encoder.layer.{}.attention.output.dense"], &["blocks.{}.attn.proj"]),
    same(&["encoder.layer.{}.intermediate.dense"], &["blocks.{}.mlp.fc1"]),
    same(&["encoder.layer.{}.output.dense"], &["blocks.{}.mlp.fc2"]),
    same(&["layernorm"], &["norm"]),
];

/// DINOv2 of torch.hub; ours are Hugging Face's.
const DINOV2: &[Rule] = &[
    whole(&["cls_token"], &["embeddings.cls_token"]),
    whole(&["pos_embed"], &["embeddings.position_embeddings"]),
    whole(&["register_tokens"], &["embeddings.register_tokens"]),
    same(&["patch_embed.proj"], &["embeddings.patch_embeddings.projection"]),
    same(&["blocks.{}.norm1"], &["encoder.layer.{}.norm1"]),
    same(&["blocks.{}.norm2"], &["encoder.layer.{}.norm2"]),
    same(
        &["blocks.{}.attn.qkv"],
        &[
            "encoder.layer.{}.attention.attention.query",
            "encoder.layer.{}.attention.attention.key",
            "encoder.layer.{}.attention.attention.value",
        ],
    ),
    same(&["blocks.{}.attn.proj"], &["encoder.layer.{}.attention.output.dense"]),
    whole(&["blocks.{}.ls1.gamma"], &["encoder.layer.{}.layer_scale1.lambda1"]),
    whole(&["blocks.{}.ls2.gamma"], &["encoder.layer.{}.layer_scale2.lambda1"]),
    same(&["blocks.{}.mlp.fc1"], &["encoder.layer.{}.mlp.fc1"]),
    same(&["blocks.{}.mlp.fc2"], &["encoder.layer.{}.mlp.fc2"]),
    same(&["blocks.{}.mlp.w12"], &["encoder.layer.{}.mlp.weights_in"]),
    same(&["blocks.{}.mlp.w3"], &["encoder.layer.{}.mlp.weights_out"]),
    same(&["norm"], &["layernorm"]),
];
