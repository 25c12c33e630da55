//! How much arithmetic a forward pass and a training step are: the floor that a measured time is held against.

pub use crescendo_core::network::StepTokens;

use crescendo_core::network::Network;

use crate::config::FluxConfig;

/// A configuration's sizes, each at least 0.
impl From<&FluxConfig> for Network {
    fn from(config: &FluxConfig) -> Self {
        let size = |value: i64| u64::try_from(value).unwrap_or(0);
        Self {
            in_channels: size(config.in_channels),
            vec_in: size(config.vec_in_dim),
            context_in: size(config.context_in_dim),
            hidden: size(config.hidden_size),
            mlp: size(config.mlp_hidden()),
            heads: size(config.num_heads),
            double: size(config.depth),
            single: size(config.depth_single_blocks),
            guidance: config.guidance_embed,
        }
    }
}

/// Floating-point operations of one forward pass of the base: a multiply-add is two, and only matrix products count.
pub fn forward_flops(config: &FluxConfig, tokens: &StepTokens) -> u64 {
    Network::from(config).forward_flops(tokens)
}

/// Least arithmetic of a training step: [`Network::step_flops`].
pub fn step_flops(config: &FluxConfig, tokens: &StepTokens, rank: Option<u64>) -> u64 {
    Network::from(config).step_flops(tokens, rank)
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
    fn sizes_are_those_of_the_preset_and_parameters_those_of_the_weights() {
        use crescendo_core::spec::{AxisSizes, ModelPreset, ModelSpec, NetworkSizes, Precision};
        let axes = AxisSizes { frame: 2, row: 4, column: 2 };
        let small = NetworkSizes { hidden_size: 24, num_heads: 3, axes, depth: 1, depth_single_blocks: 2 };
        for preset in [ModelPreset::FluxDev, ModelPreset::FluxSchnell, ModelPreset::Nano] {
            for sizes in [None, Some(small)] {
                let precision = Precision::Auto;
                let spec = ModelSpec { preset, sizes, weights: None, encoders: None, precision };
                let (config, network) = (FluxConfig::from(&spec), Network::of(&spec));
                assert_eq!(Network::from(&config), network, "{spec:?}");
                let sum = |layout: Vec<(String, Vec<i64>)>| -> i64 {
                    layout.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
                };
                assert_eq!(sum(Flux::layout(&config).unwrap()) as u64, network.parameters(), "{spec:?}");
                let blocks = BlockSelection::all(&config);
                let adapter = sum(LoraAdapter::layout(&config, 8, &blocks).unwrap());
                assert_eq!(adapter as u64, network.adapter_parameters(8), "{spec:?}");
            }
        }
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
