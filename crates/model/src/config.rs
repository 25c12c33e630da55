//! Sizes of the diffusion transformer, and the named presets.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::error::{ModelError, Result};

/// Sizes of one FLUX-style diffusion transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FluxConfig {
    /// Channels of one packed token: 4 × latent channels (2×2 latent pixels a token).
    pub in_channels: i64,
    /// Width of the pooled text vector.
    pub vec_in_dim: i64,
    /// Width of one text token.
    pub context_in_dim: i64,
    pub hidden_size: i64,
    /// Width of the MLPs as a multiple of `hidden_size`.
    pub mlp_ratio: f64,
    pub num_heads: i64,
    /// Number of double-stream blocks.
    pub depth: i64,
    /// Number of single-stream blocks.
    pub depth_single_blocks: i64,
    /// Channels of one head given to each position axis (frame, row, column); their sum is the head width.
    pub axes_dim: Vec<i64>,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Whether the q/k/v projections of the double blocks have a bias.
    pub qkv_bias: bool,
    /// Whether the network takes a guidance value beside the time (guidance-distilled models).
    pub guidance_embed: bool,
}

/// Upper bound of every size: far above any published model, low enough that products fit in `i64`.
const LARGEST_SIZE: i64 = 1 << 20;
/// Upper bound of the number of blocks of one sort.
const LARGEST_DEPTH: i64 = 4096;

impl FluxConfig {
    /// FLUX.1-dev: 12 billion parameters, guidance-distilled.
    pub fn flux_dev() -> Self {
        Self {
            in_channels: 64,
            vec_in_dim: 768,
            context_in_dim: 4096,
            hidden_size: 3072,
            mlp_ratio: 4.0,
            num_heads: 24,
            depth: 19,
            depth_single_blocks: 38,
            axes_dim: vec![16, 56, 56],
            theta: 10_000.0,
            qkv_bias: true,
            guidance_embed: true,
        }
    }

    /// FLUX.1-schnell: as dev, without the guidance input.
    pub fn flux_schnell() -> Self {
        Self { guidance_embed: false, ..Self::flux_dev() }
    }

    /// About 6.2 million parameters over pixels ([`crate::nano`]): trains on two CPU cores.
    pub fn nano() -> Self {
        Self {
            in_channels: 48,
            vec_in_dim: 64,
            context_in_dim: 64,
            hidden_size: 192,
            mlp_ratio: 4.0,
            num_heads: 6,
            depth: 2,
            depth_single_blocks: 6,
            axes_dim: vec![8, 12, 12],
            theta: 10_000.0,
            qkv_bias: true,
            guidance_embed: false,
        }
    }

    /// Width of one attention head. Meaningful for a validated configuration.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_heads
    }

    /// Width of the MLPs, truncated as the published code does.
    pub fn mlp_hidden(&self) -> i64 {
        (self.hidden_size as f64 * self.mlp_ratio) as i64
    }

    /// Channels of the latent image that is packed into tokens.
    pub fn latent_channels(&self) -> i64 {
        self.in_channels / 4
    }

    /// Checks every field; the error names the first one out of range.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("vec_in_dim", self.vec_in_dim),
            ("context_in_dim", self.context_in_dim),
            ("hidden_size", self.hidden_size),
            ("num_heads", self.num_heads),
        ];
        for (field, size) in sizes {
            if !(1..=LARGEST_SIZE).contains(&size) {
                return Err(out_of_range(field, format!("{size} is not within 1..={LARGEST_SIZE}")));
            }
        }
        if self.in_channels % 4 != 0 {
            return Err(out_of_range("in_channels", format!("{} is not a multiple of 4", self.in_channels)));
        }
        for (field, depth) in [("depth", self.depth), ("depth_single_blocks", self.depth_single_blocks)] {
            if !(0..=LARGEST_DEPTH).contains(&depth) {
                return Err(out_of_range(field, format!("{depth} is not within 0..={LARGEST_DEPTH}")));
            }
        }
        if !(self.mlp_ratio.is_finite() && self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0)
            || self.mlp_hidden() < 1
        {
            return Err(out_of_range("mlp_ratio", format!("{} is not within (0, 64]", self.mlp_ratio)));
        }
        if self.hidden_size % self.num_heads != 0 {
            return Err(out_of_range(
                "num_heads",
                format!("{} does not divide hidden_size {}", self.num_heads, self.hidden_size),
            ));
        }
        if self.axes_dim.len() != 3 || self.axes_dim.iter().any(|d| *d < 2 || d % 2 != 0 || *d > LARGEST_SIZE)
        {
            return Err(out_of_range(
                "axes_dim",
                format!("{:?} is not three even numbers of at least 2", self.axes_dim),
            ));
        }
        let axes_sum: i64 = self.axes_dim.iter().sum();
        if axes_sum != self.head_dim() {
            return Err(out_of_range(
                "axes_dim",
                format!("{:?} sums to {axes_sum}, the head width is {}", self.axes_dim, self.head_dim()),
            ));
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(out_of_range("theta", format!("{} is not above 1", self.theta)));
        }
        Ok(())
    }
}

fn out_of_range(field: &'static str, reason: String) -> ModelError {
    ModelError::Config { field, reason }
}

/// A configuration known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    FluxDev,
    FluxSchnell,
    Nano,
}

impl Preset {
    pub const ALL: [Self; 3] = [Self::FluxDev, Self::FluxSchnell, Self::Nano];

    /// The name as a job spec spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FluxDev => "flux-dev",
            Self::FluxSchnell => "flux-schnell",
            Self::Nano => "nano",
        }
    }

    /// Whether times keep float32 whatever the network computes in. Published weights have only seen times that were
    /// rounded as the network computes, in training and in sampling; `nano` knows exact ones.
    pub fn has_exact_times(self) -> bool {
        self == Self::Nano
    }

    /// Dtype of time and guidance for a network that computes in `compute`: the same for training and for sampling.
    pub fn time_kind(self, compute: Kind) -> Kind {
        if self.has_exact_times() { Kind::Float } else { compute }
    }

    pub fn config(self) -> FluxConfig {
        match self {
            Self::FluxDev => FluxConfig::flux_dev(),
            Self::FluxSchnell => FluxConfig::flux_schnell(),
            Self::Nano => FluxConfig::nano(),
        }
    }
}

impl FromStr for Preset {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            out_of_range("preset", format!("{name:?} is not one of {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_found_by_name() {
        for preset in Preset::ALL {
            preset.config().validate().unwrap();
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
        }
        assert!("flux".parse::<Preset>().unwrap_err().to_string().contains("nano"));
    }

    #[test]
    fn published_networks_have_times_in_their_own_dtype() {
        for (preset, exact) in [(Preset::FluxDev, false), (Preset::FluxSchnell, false), (Preset::Nano, true)]
        {
            let kind = preset.time_kind(Kind::BFloat16);
            assert_eq!(kind, if exact { Kind::Float } else { Kind::BFloat16 }, "{}", preset.name());
            assert_eq!(preset.time_kind(Kind::Float), Kind::Float);
        }
    }

    #[test]
    fn a_spec_s_own_sizes_take_the_place_of_the_presets() {
        let yaml = |sizes: &str| {
            let model = format!("model: {{preset: nano, weights: base.safetensors{sizes}}}");
            format!(
                "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: a}}\nspec:\n  {model}\n  \
                 stages: [{{data: {{source: compose, subjects: s}}}}]\n"
            )
        };
        let config = |sizes: &str| {
            let spec = crescendo_core::spec::parse(yaml(sizes).as_bytes()).unwrap();
            FluxConfig::from(&spec.model)
        };
        assert_eq!(config(""), FluxConfig::nano());
        let own = config(
            ", sizes: {hiddenSize: 96, numHeads: 4, axes: {frame: 4, row: 10, column: 10}, depth: 1, depthSingleBlocks: 3}",
        );
        own.validate().unwrap();
        let expected = FluxConfig {
            hidden_size: 96,
            num_heads: 4,
            axes_dim: vec![4, 10, 10],
            depth: 1,
            depth_single_blocks: 3,
            ..FluxConfig::nano()
        };
        assert_eq!(own, expected);
    }

    #[test]
    fn each_bad_field_is_named() {
        let nano = FluxConfig::nano;
        let cases = [
            ("in_channels", FluxConfig { in_channels: 50, ..nano() }),
            ("hidden_size", FluxConfig { hidden_size: 0, ..nano() }),
            ("num_heads", FluxConfig { num_heads: 7, ..nano() }),
            ("axes_dim", FluxConfig { axes_dim: vec![8, 12], ..nano() }),
            ("axes_dim", FluxConfig { axes_dim: vec![8, 12, 14], ..nano() }),
            ("mlp_ratio", FluxConfig { mlp_ratio: f64::NAN, ..nano() }),
            ("theta", FluxConfig { theta: 0.0, ..nano() }),
            ("depth", FluxConfig { depth: -1, ..nano() }),
        ];
        for (expected, config) in cases {
            match config.validate() {
                Err(ModelError::Config { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
