//! Networks around the transformer: sizes from the shapes, and then what their own loaders would find wrong.

use super::{Header, Verdict, blocks_of, most_common};
use crate::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::clip::{Clip, ClipConfig, ClipText, ClipTextConfig, ClipVisionConfig};
use crate::dino::{Dino, DinoConfig};
use crate::dinov2::{self, DinoV2, DinoV2Config};
use crate::error::{Result, TensorProblem};
use crate::owlv2::{Owlv2, Owlv2Config, Owlv2TextConfig, Owlv2VisionConfig};
use crate::t5::{T5Config, T5Encoder};

/// What a header's shapes tell.
struct Shapes<'a>(&'a Header);

impl Shapes<'_> {
    fn side(&self, name: &str, axis: usize) -> Option<i64> {
        self.0.get(name)?.shape.get(axis).copied()
    }

    /// The side that most tensors of a stack have: one that is damaged does not decide.
    fn most(&self, stack: &str, end: &str, axis: usize) -> Option<i64> {
        let own = self.0.iter().filter(|(name, _)| name.starts_with(stack) && name.ends_with(end));
        most_common(own.filter_map(|(_, tensor)| tensor.shape.get(axis).copied()))
    }

    fn layers(&self, stack: &str) -> i64 {
        blocks_of(self.0.keys(), stack)
    }

    fn has(&self, prefix: &str) -> bool {
        self.0.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

/// Heads of 64 channels, which every published size has; they leave no trace in a file.
fn heads(hidden: i64) -> i64 {
    if hidden % 64 == 0 { (hidden / 64).max(1) } else { 1 }
}

/// Side of the square pictures that stored positions, the class token's included, are for.
fn image_size(positions: i64, patch: i64) -> i64 {
    let side = ((positions.max(1) - 1) as f64).sqrt().round() as i64;
    side.saturating_mul(patch)
}

/// The problems under the sizes that the shapes tell, or under the published ones where those tell none.
fn verdict<C: Clone>(
    derived: Option<C>,
    published: C,
    header: &Header,
    problems: impl Fn(&C, Header) -> Result<Vec<TensorProblem>>,
) -> (C, Vec<TensorProblem>) {
    for config in derived.into_iter().chain([published.clone()]) {
        if let Ok(problems) = problems(&config, header.clone()) {
            return (config, problems);
        }
    }
    (published, Vec::new())
}

fn with_facts(problems: Vec<TensorProblem>, facts: &[(&'static str, i64)]) -> Verdict {
    let facts = facts.iter().map(|(fact, value)| (*fact, value.to_string())).collect();
    Verdict { problems, facts, ..Verdict::default() }
}

pub(super) fn check_t5(header: &Header) -> Verdict {
    let shapes = Shapes(header);
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let derive = || {
        let inner = shapes.most("encoder.block.", "SelfAttention.q.weight", 0)?;
        let num_heads = shapes.side(bias, 1).unwrap_or_else(|| heads(inner));
        Some(T5Config {
            vocab_size: shapes.side("shared.weight", 0).or(shapes.side("encoder.embed_tokens.weight", 0))?,
            d_model: shapes.most("encoder.block.", "layer_norm.weight", 0)?,
            d_kv: inner.checked_div(num_heads)?,
            d_ff: shapes.most("encoder.block.", "DenseReluDense.wo.weight", 1)?,
            num_layers: shapes.layers("encoder.block."),
            num_heads,
            relative_attention_num_buckets: shapes.side(bias, 0).unwrap_or(32),
            ..T5Config::xxl()
        })
    };
    let (config, problems) = verdict(derive(), T5Config::xxl(), header, T5Encoder::problems);
    with_facts(
        problems,
        &[
            ("vocabulary", config.vocab_size),
            ("width", config.d_model),
            ("MLP width", config.d_ff),
            ("layers", config.num_layers),
            ("heads", config.num_heads),
        ],
    )
}

fn clip_text(shapes: &Shapes<'_>) -> Option<ClipTextConfig> {
    let hidden = shapes.most("text_model.encoder.layers.", "layer_norm1.weight", 0)?;
    Some(ClipTextConfig {
        vocab_size: shapes.side("text_model.embeddings.token_embedding.weight", 0)?,
        max_position_embeddings: shapes.side("text_model.embeddings.position_embedding.weight", 0)?,
        hidden_size: hidden,
        intermediate_size: shapes.most("text_model.encoder.layers.", "mlp.fc1.weight", 0)?,
        num_hidden_layers: shapes.layers("text_model.encoder.layers."),
        num_attention_heads: heads(hidden),
        ..ClipTextConfig::large()
    })
}

fn clip_vision(shapes: &Shapes<'_>) -> Option<ClipVisionConfig> {
    let hidden = shapes.most("vision_model.encoder.layers.", "layer_norm1.weight", 0)?;
    let patch_size = shapes.side("vision_model.embeddings.patch_embedding.weight", 2)?;
    Some(ClipVisionConfig {
        hidden_size: hidden,
        intermediate_size: shapes.most("vision_model.encoder.layers.", "mlp.fc1.weight", 0)?,
        num_hidden_layers: shapes.layers("vision_model.encoder.layers."),
        num_attention_heads: heads(hidden),
        patch_size,
        image_size: image_size(
            shapes.side("vision_model.embeddings.position_embedding.weight", 0)?,
            patch_size,
        ),
        ..ClipVisionConfig::default()
    })
}

/// Both towers, or that of the text alone.
pub(super) fn check_clip(header: &Header) -> Verdict {
    let shapes = Shapes(header);
    let text_facts = |text: &ClipTextConfig| {
        [
            ("vocabulary", text.vocab_size),
            ("text width", text.hidden_size),
            ("text layers", text.num_hidden_layers),
            ("text positions", text.max_position_embeddings),
        ]
    };
    if !shapes.has("vision_model.") {
        let (text, problems) =
            verdict(clip_text(&shapes), ClipTextConfig::large(), header, ClipText::problems);
        return with_facts(problems, &text_facts(&text));
    }
    if !shapes.has("text_model.") {
        let facts = clip_vision(&shapes).map(|vision| {
            [("vision width", vision.hidden_size), ("vision layers", vision.num_hidden_layers)]
        });
        let obstacle =
            Some("it is CLIP's vision tower alone, and networks here take both towers or that of the text");
        return Verdict { obstacle, ..with_facts(Vec::new(), &facts.unwrap_or_default()) };
    }
    let derive = || {
        Some(ClipConfig {
            text_config: clip_text(&shapes)?,
            vision_config: clip_vision(&shapes)?,
            projection_dim: shapes
                .side("text_projection.weight", 0)
                .or_else(|| shapes.side("visual_projection.weight", 0))
                .unwrap_or(512),
        })
    };
    let (config, problems) = verdict(derive(), ClipConfig::vit_b32(), header, Clip::problems);
    let ClipConfig { text_config, vision_config, projection_dim } = &config;
    let vision = [
        ("vision width", vision_config.hidden_size),
        ("vision layers", vision_config.num_hidden_layers),
        ("picture", vision_config.image_size),
        ("patch", vision_config.patch_size),
        ("projection", *projection_dim),
    ];
    with_facts(problems, &[text_facts(text_config).as_slice(), &vision].concat())
}

pub(super) fn check_owlv2(header: &Header) -> Verdict {
    let shapes = Shapes(header);
    let derive = || {
        let (text, vision) = ("owlv2.text_model.encoder.layers.", "owlv2.vision_model.encoder.layers.");
        let text_hidden = shapes.most(text, "layer_norm1.weight", 0)?;
        let hidden = shapes.most(vision, "layer_norm1.weight", 0)?;
        let patch_size = shapes.side("owlv2.vision_model.embeddings.patch_embedding.weight", 2)?;
        let positions = shapes.side("owlv2.vision_model.embeddings.position_embedding.weight", 0)?;
        Some(Owlv2Config {
            text_config: Owlv2TextConfig {
                vocab_size: shapes.side("owlv2.text_model.embeddings.token_embedding.weight", 0)?,
                hidden_size: text_hidden,
                intermediate_size: shapes.most(text, "mlp.fc1.weight", 0)?,
                num_hidden_layers: shapes.layers(text),
                num_attention_heads: heads(text_hidden),
                max_position_embeddings: shapes
                    .side("owlv2.text_model.embeddings.position_embedding.weight", 0)?,
                ..Owlv2TextConfig::default()
            },
            vision_config: Owlv2VisionConfig {
                hidden_size: hidden,
                intermediate_size: shapes.most(vision, "mlp.fc1.weight", 0)?,
                num_hidden_layers: shapes.layers(vision),
                num_attention_heads: heads(hidden),
                patch_size,
                image_size: image_size(positions, patch_size),
                ..Owlv2VisionConfig::default()
            },
            projection_dim: text_hidden,
        })
    };
    let (config, problems) = verdict(derive(), Owlv2Config::base_patch16_ensemble(), header, Owlv2::problems);
    with_facts(
        problems,
        &[
            ("text width", config.text_config.hidden_size),
            ("vision width", config.vision_config.hidden_size),
            ("picture", config.vision_config.image_size),
            ("patch", config.vision_config.patch_size),
        ],
    )
}

pub(super) fn check_autoencoder(header: &Header) -> Verdict {
    let shapes = Shapes(header);
    let derive = || {
        let ch = shapes.side("encoder.conv_in.weight", 0)?;
        let width = |level: i64| shapes.side(&format!("encoder.down.{level}.block.0.conv2.weight"), 0);
        let levels = shapes.layers("encoder.down.").min(8);
        Some(AutoencoderConfig {
            in_channels: shapes.side("encoder.conv_in.weight", 1)?,
            ch,
            out_ch: shapes.side("decoder.conv_out.weight", 0)?,
            ch_mult: (0..levels).map(|level| width(level)?.checked_div(ch)).collect::<Option<_>>()?,
            num_res_blocks: shapes.layers("encoder.down.0.block."),
            z_channels: shapes.side("decoder.conv_in.weight", 1)?,
            ..AutoencoderConfig::flux()
        })
    };
    let (config, problems) = verdict(derive(), AutoencoderConfig::flux(), header, Autoencoder::problems);
    with_facts(
        problems,
        &[
            ("latent channels", config.z_channels),
            ("base width", config.ch),
            ("resolutions", config.ch_mult.len() as i64),
        ],
    )
}

fn vision_facts(config: &DinoConfig) -> [(&'static str, i64); 5] {
    [
        ("width", config.hidden_size),
        ("layers", config.num_hidden_layers),
        ("picture", config.image_size),
        ("patch", config.patch_size),
        ("registers", config.num_register_tokens),
    ]
}

pub(super) fn check_dino(header: &Header) -> Verdict {
    let shapes = Shapes(header);
    let derive = || {
        let hidden = shapes.most("blocks.", "norm1.weight", 0)?;
        let patch_size = shapes.side("patch_embed.proj.weight", 2)?;
        Some(DinoConfig {
            hidden_size: hidden,
            num_hidden_layers: shapes.layers("blocks."),
            num_attention_heads: heads(hidden),
            mlp_ratio: shapes.most("blocks.", "mlp.fc1.weight", 0)?.checked_div(hidden)?,
            image_size: image_size(shapes.side("pos_embed", 1)?, patch_size),
            patch_size,
            ..DinoConfig::dino_vits16()
        })
    };
    let (config, problems) = verdict(derive(), DinoConfig::dino_vits16(), header, Dino::problems);
    with_facts(problems, &vision_facts(&config))
}

pub(super) fn check_dinov2(header: &Header) -> Verdict {
    let derived = dinov2::config_from_shapes(header).ok();
    let (config, problems) = verdict(derived, DinoV2Config::dinov2_base(), header, DinoV2::problems);
    with_facts(problems, &vision_facts(&config))
}
