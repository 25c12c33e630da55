//! How much arithmetic a forward pass and a training step are: the floor that a measured time is held against.

use crate::config::FluxConfig;

/// Tokens of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTokens {
    /// Samples.
    pub batch: u64,
    /// Text tokens of one sample.
    pub text: u64,
    /// Target tokens of one sample.
    pub target: u64,
    /// Reference tokens of one sample, all references together.
    pub references: u64,
}

impl StepTokens {
    fn image(&self) -> u64 {
        self.target + self.references
    }

    fn all(&self) -> u64 {
        self.text + self.image()
    }
}

/// A configuration's sizes, each at least 0.
struct Sizes {
    hidden: u64,
    mlp: u64,
    double: u64,
    single: u64,
}

impl Sizes {
    fn of(config: &FluxConfig) -> Self {
        let size = |value: i64| u64::try_from(value).unwrap_or(0);
        Self {
            hidden: size(config.hidden_size),
            mlp: size(config.mlp_hidden()),
            double: size(config.depth),
            single: size(config.depth_single_blocks),
        }
    }

    /// Products of scores and of values: 2 · tokens² · hidden multiply-adds a block.
    fn attention_flops(&self, tokens: &StepTokens) -> u64 {
        (self.double + self.single) * 4 * tokens.batch * tokens.all().pow(2) * self.hidden
    }
}

/// Floating-point operations of one forward pass of the base: a multiply-add is two, and only matrix products count.
pub fn forward_flops(config: &FluxConfig, tokens: &StepTokens) -> u64 {
    let sizes = Sizes::of(config);
    sizes.attention_flops(tokens) + linear_flops(config, tokens)
}

fn linear_flops(config: &FluxConfig, tokens: &StepTokens) -> u64 {
    let Sizes { hidden, mlp, double, single } = Sizes::of(config);
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    let embedders = 256 + size(config.vec_in_dim) + if config.guidance_embed { 256 } else { 0 };
    let embedder_count = if config.guidance_embed { 3 } else { 2 };
    // Weights that every sample passes once: time, guidance and pooled text, and all modulations.
    let per_sample = embedders * hidden
        + embedder_count * hidden * hidden
        + double * 12 * hidden * hidden
        + single * 3 * hidden * hidden
        + 2 * hidden * hidden;
    let double_token = double * (4 * hidden * hidden + 2 * hidden * mlp);
    let single_token = single * (hidden * (3 * hidden + mlp) + (hidden + mlp) * hidden);
    let in_channels = size(config.in_channels);
    let per_batch = per_sample
        + tokens.text * size(config.context_in_dim) * hidden
        + tokens.image() * in_channels * hidden
        + tokens.all() * (double_token + single_token)
        + tokens.target * hidden * in_channels;
    2 * tokens.batch * per_batch
}

fn adapter_flops(config: &FluxConfig, tokens: &StepTokens, rank: u64) -> u64 {
    let Sizes { hidden, mlp, double, single } = Sizes::of(config);
    let double_token = double * rank * (4 * hidden + 2 * hidden);
    let single_token = single * rank * (4 * hidden + (hidden + mlp) + hidden);
    2 * tokens.batch * tokens.all() * (double_token + single_token)
}

/// Least arithmetic of a training step: forward once, and backward without computing anything a second time.
///
/// With an adapter of `rank` the frozen base passes gradients on (as much as its forward pass) but has none of its own; what
/// trains costs three forward passes, and so does attention. Without a rank everything trains.
pub fn step_flops(config: &FluxConfig, tokens: &StepTokens, rank: Option<u64>) -> u64 {
    let attention = Sizes::of(config).attention_flops(tokens);
    let linear = linear_flops(config, tokens);
    match rank {
        Some(rank) => 2 * linear + 3 * (attention + adapter_flops(config, tokens, rank)),
        None => 3 * (linear + attention),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockSelection, Flux, LoraAdapter, Preset};

    const TOKENS: StepTokens = StepTokens { batch: 3, text: 7, target: 16, references: 8 };

    /// The same count from the names and shapes of the weights.
    fn counted(layout: &[(String, Vec<i64>)]) -> u64 {
        let (text, image, target) = (7, 24, 16);
        let once = |(name, shape): &(String, Vec<i64>)| {
            let [rows, columns] = shape.as_slice() else { return 0 };
            let tokens = match name.as_str() {
                name if name.contains("mod") || name.contains("layer.weight") => 1,
                "final_layer.linear.weight" => target,
                "img_in.weight" => image,
                "txt_in.weight" => text,
                name if name.contains(".img_") || name.contains("lora1") => image,
                name if name.contains(".txt_") || name.contains("lora2") => text,
                _ => text + image,
            };
            (2 * 3 * rows * columns * tokens) as u64
        };
        layout.iter().map(once).sum()
    }

    #[test]
    fn counts_agree_with_the_weights() {
        for preset in Preset::ALL {
            let config = preset.config();
            let linear = counted(&Flux::layout(&config).unwrap());
            let blocks = (config.depth + config.depth_single_blocks) as u64;
            let attention = blocks * 4 * 3 * 31 * 31 * config.hidden_size as u64;
            assert_eq!(forward_flops(&config, &TOKENS), linear + attention, "{preset:?}");
            let adapter = counted(&LoraAdapter::layout(&config, 16, &BlockSelection::all(&config)).unwrap());
            assert_eq!(
                step_flops(&config, &TOKENS, Some(16)),
                2 * linear + 3 * (attention + adapter),
                "{preset:?}"
            );
            assert_eq!(step_flops(&config, &TOKENS, None), 3 * (linear + attention));
        }
    }
}
