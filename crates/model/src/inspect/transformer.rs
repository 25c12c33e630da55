//! The transformer: every name and shape held against each preset, and against the sizes that the shapes themselves tell.

use super::{Header, Verdict, blocks_of, compare, most_common};
use crate::config::{FluxConfig, Preset};
use crate::flux::Flux;

/// Holds the header against all candidates and answers for the one with the fewest problems; of equals a preset, since its
/// axes are known and not guessed.
pub(super) fn check(header: &Header) -> Verdict {
    let presets = Preset::ALL.map(|preset| (vec![preset.name()], preset.config()));
    let explicit = derived(header).map(|config| (Vec::new(), config));
    let best = presets
        .into_iter()
        .chain(explicit)
        .filter_map(|(names, config)| {
            let layout = Flux::layout(&config).ok()?;
            Some((compare(header, &layout), names, config))
        })
        .min_by_key(|(problems, _, _)| problems.len());
    let Some((problems, presets, config)) = best else { return Verdict::default() };
    let mut verdict = Verdict { presets, problems, ..Verdict::default() };
    if verdict.presets.is_empty() {
        let axes = format!("{:?}, guessed from the head width", config.axes_dim);
        verdict.facts.insert("position axes", axes);
    }
    verdict.config = Some(config);
    verdict
}

/// The configuration that the shapes tell. Axes and theta leave no trace in a file: the published ones for a head as wide as
/// a preset's, otherwise about a quarter for the frame axis and the rest for rows and columns alike.
pub(super) fn derived(header: &Header) -> Option<FluxConfig> {
    let side = |name: &str, axis: usize| header.get(name)?.shape.get(axis).copied();
    let block_sides = |suffix: &str, axis: usize| {
        most_common(
            header
                .iter()
                .filter(|(name, _)| name.ends_with(suffix))
                .filter_map(|(_, tensor)| tensor.shape.get(axis).copied()),
        )
    };
    let hidden_size =
        most_common(["img_in.bias", "txt_in.bias", "img_in.weight"].iter().filter_map(|name| side(name, 0)))?;
    let head_dim = block_sides("query_norm.scale", 0).filter(|width| *width > 0)?;
    let depth = blocks_of(header.keys(), "double_blocks.");
    let depth_single_blocks = blocks_of(header.keys(), "single_blocks.");
    let mlp = if depth > 0 {
        block_sides(".img_mlp.0.weight", 0)?
    } else {
        block_sides(".linear1.weight", 0)?.checked_sub(hidden_size.checked_mul(3)?)?
    };
    let config = FluxConfig {
        in_channels: side("img_in.weight", 1)?,
        vec_in_dim: side("vector_in.in_layer.weight", 1)?,
        context_in_dim: side("txt_in.weight", 1)?,
        hidden_size,
        mlp_ratio: mlp as f64 / hidden_size as f64,
        num_heads: hidden_size.checked_div(head_dim)?,
        depth,
        depth_single_blocks,
        axes_dim: axes(head_dim),
        theta: 10_000.0,
        qkv_bias: depth == 0 || header.keys().any(|name| name.ends_with("_attn.qkv.bias")),
        guidance_embed: header.keys().any(|name| name.starts_with("guidance_in.")),
    };
    config.validate().ok()?;
    Some(config)
}

fn axes(head_dim: i64) -> Vec<i64> {
    let of_a_preset =
        Preset::ALL.iter().map(|preset| preset.config()).find(|config| config.head_dim() == head_dim);
    match of_a_preset {
        Some(config) => config.axes_dim,
        None => {
            // Rows and columns get the same even width, so the frame axis takes what is left.
            let row = (head_dim * 3 / 8) / 2 * 2;
            vec![head_dim - 2 * row, row, row]
        }
    }
}
