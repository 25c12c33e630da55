//! Which blocks keep their activations for the backward pass, and which are computed again.

use tch::Kind;

use crate::config::FluxConfig;
use crate::flux::StepTokens;

/// Whether blocks are computed again in the backward pass. Gradients are the same whatever is chosen; a block that is
/// computed again costs its forward pass a second time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Every block keeps its activations.
    #[default]
    None,
    /// Every block keeps its inputs only.
    All,
    /// As many blocks keep their activations as fit beside what a step needs anyway.
    Budget {
        /// Device memory for activations: what is free once weights, adapter, gradients and moments are there.
        bytes: u64,
    },
}

/// What decides the size of a step's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationShape {
    pub tokens: StepTokens,
    /// Dtype that activations flow in.
    pub compute: Kind,
    /// Rank and dtype of the adapter's arithmetic; none if every weight trains.
    pub adapter: Option<(i64, Kind)>,
    /// Whether a kept block also keeps a copy of its weights: those that are cast or brought for each use.
    pub weights_are_copied: bool,
    /// Whether attention keeps its probabilities; the fused kernel does not.
    pub keeps_probabilities: bool,
}

/// The two sorts of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Double,
    Single,
}

fn size(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn width_bytes(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// Bytes of one token of the residual stream.
fn stream_bytes(config: &FluxConfig, shape: &ActivationShape) -> u64 {
    size(config.hidden_size) * width_bytes(shape.compute)
}

/// Bytes that a block keeps from its forward to its backward pass, beside its inputs.
///
/// Counted from what autograd saves of the operations in `flux/blocks.rs`; an estimate, because the allocator rounds up.
fn kept_bytes(config: &FluxConfig, shape: &ActivationShape, sort: Sort) -> u64 {
    let (hidden, mlp) = (size(config.hidden_size), size(config.mlp_hidden()));
    let element = width_bytes(shape.compute);
    let tokens = shape.tokens;
    let all = tokens.batch * (tokens.text + tokens.target + tokens.references);

    // Joined queries, keys and values; queries and keys in float32 before their norm; both after it; the result.
    let attention = 3 * hidden * element + 2 * hidden * 4 + 2 * hidden * element + hidden * element;
    let own = match sort {
        // The sum after attention, and the MLP before its GELU.
        Sort::Double => (hidden + mlp) * element,
        // The first product as a whole, of which the GELU needs a part.
        Sort::Single => (3 * hidden + mlp) * element,
    };
    let trained = match (shape.adapter, sort) {
        // Inputs of the two adapters (where cast, a copy) and their narrow middles.
        (Some((rank, kind)), Sort::Double) => {
            let input = if kind == shape.compute { hidden } else { 2 * hidden };
            (input + 2 * size(rank)) * width_bytes(kind)
        }
        (Some((rank, kind)), Sort::Single) => (2 * hidden + mlp + 2 * size(rank)) * width_bytes(kind),
        // Inputs of every product, the norms' results and the gated updates; a norm of the weights' own gradients.
        (None, Sort::Double) => (6 * hidden + mlp) * element,
        (None, Sort::Single) => (4 * hidden + mlp) * element,
    };
    let probabilities = if shape.keeps_probabilities {
        let per_sample = tokens.text + tokens.target + tokens.references;
        all * per_sample * size(config.num_heads) * element
    } else {
        0
    };
    let weights = if shape.weights_are_copied {
        let linear = match sort {
            Sort::Double => 2 * (10 * hidden * hidden + 2 * hidden * mlp),
            Sort::Single => 3 * hidden * hidden + hidden * (3 * hidden + mlp) + (hidden + mlp) * hidden,
        };
        linear * element
    } else {
        0
    };
    all * (attention + own + trained) + probabilities + weights
}

/// For each block, double blocks first, whether it keeps its activations.
///
/// The last blocks are the first to keep theirs: the backward pass frees them before it computes an earlier block again, so
/// the two never add up. The budget must hold every block's inputs and, twice, the block at work (its activations and their
/// gradients); the rest is given out. A budget too small even for that keeps nothing.
pub fn plan_kept_blocks(config: &FluxConfig, shape: &ActivationShape, recompute: Recompute) -> Vec<bool> {
    let count = |blocks: i64| usize::try_from(blocks).unwrap_or(0);
    let (double, single) = (count(config.depth), count(config.depth_single_blocks));
    let blocks = double + single;
    let bytes = match recompute {
        Recompute::None => return vec![true; blocks],
        Recompute::All => return vec![false; blocks],
        Recompute::Budget { bytes } => bytes,
    };
    let tokens = shape.tokens;
    let all = tokens.batch * (tokens.text + tokens.target + tokens.references);
    let inputs = blocks as u64 * all * stream_bytes(config, shape);
    let cost =
        |index: usize| kept_bytes(config, shape, if index < double { Sort::Double } else { Sort::Single });
    let at_work = (0..blocks).map(cost).max().unwrap_or(0);
    let mut left = bytes.saturating_sub(inputs).saturating_sub(2 * at_work);
    let mut kept = vec![false; blocks];
    for (index, keep) in kept.iter_mut().enumerate().rev() {
        let Some(rest) = left.checked_sub(cost(index)) else { break };
        (*keep, left) = (true, rest);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// 512 × 512 with `references` references of the same size, as published training has it.
    fn shape(references: u64) -> ActivationShape {
        ActivationShape {
            tokens: StepTokens { batch: 1, text: 512, target: 1024, references: 1024 * references },
            compute: Kind::BFloat16,
            adapter: Some((512, Kind::BFloat16)),
            weights_are_copied: false,
            keeps_probabilities: false,
        }
    }

    fn kept(shape: &ActivationShape, bytes: u64) -> usize {
        let plan = plan_kept_blocks(&FluxConfig::flux_dev(), shape, Recompute::Budget { bytes });
        assert_eq!(plan.len(), 57);
        let kept = plan.iter().filter(|keep| **keep).count();
        // Always the last ones.
        assert!(plan.iter().rev().take(kept).all(|keep| *keep));
        kept
    }

    #[test]
    fn more_memory_keeps_more_blocks_from_none_to_all() {
        let counts: Vec<usize> = (0..=40).map(|gb| kept(&shape(1), gb * GB)).collect();
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!((counts[0], counts[40]), (0, 57));
        assert!(counts.iter().any(|count| (1..57).contains(count)), "{counts:?}");
        assert_eq!(kept(&shape(1), u64::MAX), 57);
    }

    #[test]
    fn what_weighs_more_keeps_fewer_blocks() {
        let least = |shape: &ActivationShape| (0..400).find(|gb| kept(shape, gb * GB) == 57);
        let one = least(&shape(1));
        assert!((15..30).contains(&one.unwrap()), "{one:?}");
        let heavier = [
            shape(2),
            ActivationShape { compute: Kind::Float, adapter: Some((512, Kind::Float)), ..shape(1) },
            ActivationShape { adapter: Some((512, Kind::Float)), ..shape(1) },
            ActivationShape { adapter: None, ..shape(1) },
            ActivationShape { weights_are_copied: true, ..shape(1) },
            ActivationShape { keeps_probabilities: true, ..shape(1) },
        ];
        for shape in heavier {
            assert!(least(&shape) > one, "{shape:?}");
        }
    }

    #[test]
    fn none_and_all_ask_nobody() {
        let config = FluxConfig::nano();
        assert_eq!(plan_kept_blocks(&config, &shape(1), Recompute::None), [true; 8]);
        assert_eq!(plan_kept_blocks(&config, &shape(1), Recompute::All), [false; 8]);
    }
}
