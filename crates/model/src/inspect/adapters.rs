//! LoRA files.

use std::collections::BTreeSet;

use super::{Header, Verdict, blocks_of, compare, most_common};
use crate::config::{FluxConfig, Preset};
use crate::error::{ProblemKind, TensorProblem};
use crate::lora::{BlockSelection, LoraAdapter};
use crate::lora_names::{AdapterForm, Plan};

/// An adapter in any naming, held to what it is once it is read.
pub(super) fn check(header: &Header, form: AdapterForm) -> Verdict {
    if form == AdapterForm::Published {
        return check_published(header);
    }
    let plan = Plan::of(header);
    let published = plan.published(header);
    let mut verdict = if plan.problems.is_empty() {
        check_published(&published)
    } else {
        Verdict { problems: plan.problems, ..Verdict::default() }
    };
    // That is told of files with the published names.
    verdict.facts.remove(READ_BY_COMFYUI);
    verdict.form = Some(form.describe().to_owned());
    verdict
}

const READ_BY_COMFYUI: &str = "read by ComfyUI as it is";

/// An adapter in the published naming: rank and covered blocks from the file, then every name and shape.
fn check_published(header: &Header) -> Verdict {
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
        facts.insert(READ_BY_COMFYUI, answer.to_owned());
    }
    verdict.presets = presets.into_iter().map(Preset::name).collect();
    verdict
}
