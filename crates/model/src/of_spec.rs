//! What the words of a spec mean to the networks. Whoever computes for a job goes by these: trainer, curators and reports must
//! draw with the very network that is trained.

use crescendo_core::spec::{ModelPreset, ModelSpec, NetworkSizes, Positions, Precision, StageSpec};
use tch::{Device, Kind};

use crate::config::{FluxConfig, Preset};
use crate::flux::{LoadOptions, Storage};
use crate::unope::{Offsets, PositionMode};

impl From<ModelPreset> for Preset {
    fn from(preset: ModelPreset) -> Self {
        match preset {
            ModelPreset::FluxDev => Preset::FluxDev,
            ModelPreset::FluxSchnell => Preset::FluxSchnell,
            ModelPreset::Nano => Preset::Nano,
        }
    }
}

/// The network that a job spec asks for: its preset, with the spec's own sizes where it has any.
impl From<&ModelSpec> for FluxConfig {
    fn from(spec: &ModelSpec) -> Self {
        let preset = Preset::from(spec.preset).config();
        let Some(NetworkSizes { hidden_size, num_heads, axes, depth, depth_single_blocks }) = spec.sizes
        else {
            return preset;
        };
        Self {
            hidden_size: hidden_size.into(),
            num_heads: num_heads.into(),
            axes_dim: [axes.frame, axes.row, axes.column].map(i64::from).to_vec(),
            depth: depth.into(),
            depth_single_blocks: depth_single_blocks.into(),
            ..preset
        }
    }
}

impl From<Positions> for PositionMode {
    fn from(positions: Positions) -> Self {
        match positions {
            Positions::Diagonal => PositionMode::Diagonal,
            Positions::Height => PositionMode::Height,
            Positions::Width => PositionMode::Width,
            Positions::None => PositionMode::None,
            Positions::Frame => PositionMode::Frame,
        }
    }
}

/// Where the references of a stage go.
impl From<&StageSpec> for Offsets {
    fn from(stage: &StageSpec) -> Self {
        Offsets::unscaled(stage.positions.into()).scaled(stage.position_scale)
    }
}

/// How a job's frozen base is kept and computed on `device`.
pub fn base_options(precision: Precision, device: Device) -> LoadOptions {
    let storage = match precision {
        Precision::Fp8 => Storage::ScaledFloat8,
        Precision::Auto | Precision::F32 | Precision::Bf16 => Storage::Compute,
    };
    LoadOptions { storage, ..LoadOptions::resident(compute_kind(precision, device), device) }
}

/// The dtype that a job's networks compute in on `device`. `auto` is settled by the controller before anything runs; where it
/// is not, it means bfloat16 on GPUs and float32 on CPUs.
pub fn compute_kind(precision: Precision, device: Device) -> Kind {
    match (precision, device) {
        (Precision::F32, _) => Kind::Float,
        (Precision::Bf16 | Precision::Fp8, _) | (Precision::Auto, Device::Cuda(_)) => Kind::BFloat16,
        (Precision::Auto, _) => Kind::Float,
    }
}
