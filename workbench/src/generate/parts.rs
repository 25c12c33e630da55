//! The networks of a drawing: which files they are, and loading them one after the other.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use crescendo_dataset::pictures::reference::{self, FLUX_MULTIPLE};
use crescendo_device::DeviceChoice;
use crescendo_model::codec::{LatentCodec, TextEncoder};
use crescendo_model::encoder_files::{EncoderFiles, autoencoder_in, transformer_in};
use crescendo_model::flux_text::FluxTextPaths;
use crescendo_model::tch::{Device, Kind};
use crescendo_model::{Flux, FluxConfig, Preset};

/// Where the networks are.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// The network: flux-dev, flux-schnell or nano
    #[arg(long, default_value = "flux-dev")]
    preset: Preset,
    /// Folder laid out as the published FLUX.1: flux1-dev.safetensors or diffusers' transformer, ae.safetensors or its vae,
    /// text_encoder, text_encoder_2, tokenizer, tokenizer_2
    #[arg(long, env = "CRESCENDO_MODEL_DIR", value_name = "DIR")]
    model_dir: Option<PathBuf>,
    /// Transformer, under its published names, diffusers' or ComfyUI's: a safetensors file, an index of several, or a folder [default: the one in --model-dir]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Autoencoder, under its published names or diffusers' [default: ae.safetensors or vae in --model-dir]
    #[arg(long, value_name = "FILE")]
    autoencoder: Option<PathBuf>,
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    device: DeviceChoice,
    /// Dtype of the arithmetic [default: bf16 on GPUs, f32 on CPUs]
    #[arg(long, value_enum)]
    dtype: Option<DtypeChoice>,
    /// Keep the transformer's weights as 8-bit floats (e4m3): half the memory of bf16, a little less exact
    #[arg(long)]
    pub fp8: bool,
    /// Keep the transformer's blocks in host memory and bring each to the device when it is needed: slower, for small GPUs
    #[arg(long)]
    pub offload: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DtypeChoice {
    Bf16,
    F32,
}

/// The files of a drawing, and how to compute with them.
#[derive(Debug)]
pub struct Parts {
    pub preset: Preset,
    pub config: FluxConfig,
    pub weights: PathBuf,
    pub kind: Kind,
    pub device: Device,
    encoders: EncoderFiles,
}

impl ModelArgs {
    /// Finds the files.
    pub fn parts(&self) -> Result<Parts> {
        let gpus = self.device.gpus()?;
        if let Some(error) = &gpus.passed_over {
            eprintln!("warning: drawing on the CPU: {error}");
        }
        let device = gpus.first();
        let kind = match (self.dtype, device) {
            (Some(DtypeChoice::Bf16), _) | (None, Device::Cuda(_)) => Kind::BFloat16,
            (Some(DtypeChoice::F32), _) | (None, _) => Kind::Float,
        };
        let folder = self.model_dir.as_deref();
        let weights = self.weights.clone().or_else(|| Some(transformer_in(self.preset, folder?)));
        let weights = weights.context("where is the transformer? Give --weights FILE or --model-dir DIR")?;
        let encoders = if self.preset == Preset::Nano {
            EncoderFiles::Nano
        } else {
            let autoencoder = self.autoencoder.clone().or_else(|| Some(autoencoder_in(folder?)));
            let text = folder.context("where are the text encoders? Give --model-dir DIR")?;
            EncoderFiles::Flux {
                autoencoder: autoencoder
                    .context("where is the autoencoder? Give --autoencoder FILE or --model-dir DIR")?,
                text: FluxTextPaths::in_folder(text),
            }
        };
        Ok(Parts { preset: self.preset, config: self.preset.config(), weights, kind, device, encoders })
    }
}

impl Parts {
    /// Fails if loading any of the networks would: their headers are looked at, no tensor is read.
    pub fn check(&self) -> Result<()> {
        Flux::check_files(&self.config, &self.weights).context("the transformer")?;
        self.encoders.check().context("the encoders")
    }

    /// The text encoders. Large: to be dropped before the transformer is loaded.
    pub fn text(&self) -> Result<Box<dyn TextEncoder>> {
        self.encoders.text(self.kind, self.device).context("load the text encoders")
    }

    /// What turns pictures into latents and back; float32, as published.
    pub fn codec(&self) -> Result<Box<dyn LatentCodec>> {
        self.encoders.codec(self.device).context("load the autoencoder")
    }

    /// Side of a picture unless it is given, pixels.
    pub fn side(&self) -> u32 {
        if self.preset == Preset::Nano { 32 } else { 512 }
    }

    /// Sides of a picture and of its references are multiples of this, pixels: one token.
    pub fn multiple(&self) -> u32 {
        if self.preset == Preset::Nano { 4 } else { FLUX_MULTIPLE }
    }

    /// Long side of the references unless it is given, pixels.
    pub fn reference_size(&self, references: usize) -> u32 {
        if self.preset == Preset::Nano { 32 } else { reference::long_side(references) }
    }
}
