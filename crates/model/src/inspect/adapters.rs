//! LoRA files.

use std::collections::BTreeSet;

use super::{Header, Verdict, blocks_of, compare, most_common};
use crate::config::{FluxConfig, Preset};
use crate::error::{ProblemKind, TensorProblem};
use crate::lora::{BlockSelection, LoraAdapter};

/// An adapter in the published naming: rank and covered blocks from the file, then every name and shape.
pub(super) fn check_published(header: &Header) -> Verdict {
    let mut verdict = Verdict::default();
    let side = |suffix: &str, axis: usize| {
        most_common(
            header
                .iter()
                .filter(|(name, _)| name.ends_with(suffix))
                .filter_map(|(_, tensor)| tensor.shape.get(axis).copied()),
        )
    };
    let (Some(rank), Some(hidden)) =
        (side(".down.weight", 0), side(".proj_lora1.up.weight", 0).or(side(".proj_lora.up.weight", 0)))
    else {
        verdict.problems = header
            .keys()
            .map(|name| TensorProblem { tensor: name.clone(), kind: ProblemKind::Unexpected })
            .collect();
        return verdict;
    };
    let covered = |sort: &str, depth: i64| -> BTreeSet<i64> {
        let present = |block: &i64| {
            let prefix = format!("{sort}.{block}.");
            header.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
        };
        (0..depth).filter(present).collect()
    };
    let mlp = side(".proj_lora.down.weight", 1).and_then(|input| input.checked_sub(hidden));
    let single_depth = blocks_of(header.keys(), "single_blocks.");
    let double_depth = blocks_of(header.keys(), "double_blocks.");
    // A preset that the widths and blocks fit; otherwise the sizes that the file tells.
    let fits = |config: &FluxConfig| {
        config.hidden_size == hidden
            && mlp.is_none_or(|mlp| config.mlp_hidden() == mlp)
            && double_depth <= config.depth
            && single_depth <= config.depth_single_blocks
    };
    let presets: Vec<Preset> = Preset::ALL.into_iter().filter(|preset| fits(&preset.config())).collect();
    let config = presets.first().map(|preset| preset.config()).unwrap_or_else(|| {
        let ratio = mlp.map_or(4.0, |mlp| mlp as f64 / hidden.max(1) as f64);
        // Heads make no difference to an adapter: one that every even width admits.
        let row = hidden / 3 / 2 * 2;
        FluxConfig {
            hidden_size: hidden,
            mlp_ratio: ratio,
            num_heads: 1,
            axes_dim: vec![hidden - 2 * row, row, row],
            depth: double_depth,
            depth_single_blocks: single_depth,
            ..FluxConfig::flux_dev()
        }
    });
    let blocks = BlockSelection {
        double: covered("double_blocks", config.depth),
        single: covered("single_blocks", config.depth_single_blocks),
    };
    verdict.problems = match LoraAdapter::layout(&config, rank, &blocks) {
        Ok(layout) => compare(header, &layout),
        Err(_) => header
            .keys()
            .map(|name| TensorProblem { tensor: name.clone(), kind: ProblemKind::Unexpected })
            .collect(),
    };
    let facts = &mut verdict.facts;
    facts.insert("rank", rank.to_string());
    facts.insert("width", hidden.to_string());
    facts.insert("double blocks", format!("{} of {}", blocks.double.len(), config.depth));
    facts.insert("single blocks", format!("{} of {}", blocks.single.len(), config.depth_single_blocks));
    if presets.contains(&Preset::FluxDev) {
        let probes = [
            "single_blocks.37.processor.qkv_lora.up.weight",
            "double_blocks.18.processor.qkv_lora2.up.weight",
        ];
        let found = probes.iter().all(|name| header.contains_key(*name));
        let answer = if found { "yes" } else { "no: it looks for double block 18 and single block 37" };
        facts.insert("read by ComfyUI as it is", answer.to_owned());
    }
    verdict.presets = presets.into_iter().map(Preset::name).collect();
    verdict
}

/// An adapter of pairs under another loader's names: each `down` needs its `up`, of the same rank.
pub(super) fn check_pairs(header: &Header, down_end: &str, up_end: &str) -> Verdict {
    let mut verdict = Verdict::default();
    let mut note = |tensor: String, kind| verdict.problems.push(TensorProblem { tensor, kind });
    let mut ranks = Vec::new();
    for (name, tensor) in header {
        let (stem, other_end, is_down) = match (name.strip_suffix(down_end), name.strip_suffix(up_end)) {
            (Some(stem), _) => (stem, up_end, true),
            (_, Some(stem)) => (stem, down_end, false),
            _ if name.ends_with(".alpha") || name.ends_with(".dora_scale") => continue,
            _ => {
                note(name.clone(), ProblemKind::Unexpected);
                continue;
            }
        };
        let other = format!("{stem}{other_end}");
        match header.get(&other) {
            None => note(other, ProblemKind::Missing),
            Some(up) if is_down => match (tensor.shape.as_slice(), up.shape.as_slice()) {
                ([rank, ..], [rows, columns, ..]) if rank != columns => {
                    let (found, expected) = (up.shape.clone(), vec![*rows, *rank]);
                    note(other, ProblemKind::Shape { found, expected });
                }
                ([rank, ..], _) => ranks.push(*rank),
                _ => {}
            },
            Some(_) => {}
        }
    }
    let pairs = ranks.len();
    verdict.facts.insert("updated matrices", pairs.to_string());
    if let Some(rank) = most_common(ranks.into_iter()) {
        verdict.facts.insert("rank", rank.to_string());
    }
    verdict
}
