//! The networks in a folder: which files they are, whether they fit, and loading those around the transformer.

use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use crate::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::codec::{LatentCodec, TextEncoder};
use crate::config::Preset;
use crate::error::Result;
use crate::flux_text::{FluxText, FluxTextPaths};
use crate::nano::{PixelCodec, WordVectorText};

/// Where the encoders of a preset lie. Nano's pictures and words need no files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncoderFiles {
    Nano,
    Flux { autoencoder: PathBuf, text: FluxTextPaths },
}

impl EncoderFiles {
    /// Those of `preset` in a folder that is laid out as the published FLUX.1: `ae.safetensors` or diffusers' `vae`,
    /// `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2`. They are looked for beside diffusers' `transformer` too.
    pub fn in_folder(preset: Preset, folder: &Path) -> Self {
        match preset {
            Preset::Nano => Self::Nano,
            Preset::FluxDev | Preset::FluxSchnell => {
                let folder = pipeline_of(folder);
                Self::Flux { autoencoder: autoencoder_in(folder), text: FluxTextPaths::in_folder(folder) }
            }
        }
    }

    /// Fails if loading would: paths, headers and tokenizers are looked at, no tensor is read.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Nano => Ok(()),
            Self::Flux { autoencoder, text } => {
                Autoencoder::check_files(&AutoencoderConfig::flux(), autoencoder)?;
                FluxText::check_files(text)
            }
        }
    }

    /// The text encoders, computing in `kind`. Those of FLUX take 10 GB in bfloat16.
    pub fn text(&self, kind: Kind, device: Device) -> Result<Box<dyn TextEncoder>> {
        Ok(match self {
            Self::Nano => Box::new(WordVectorText),
            Self::Flux { text, .. } => Box::new(FluxText::load(text, kind, device)?),
        })
    }

    /// What turns pictures into latents and back; float32, as published.
    pub fn codec(&self, device: Device) -> Result<Box<dyn LatentCodec>> {
        Ok(match self {
            Self::Nano => Box::new(PixelCodec),
            Self::Flux { autoencoder, .. } => {
                Box::new(Autoencoder::load(&AutoencoderConfig::flux(), autoencoder, Kind::Float, device)?)
            }
        })
    }
}

/// The folder of a pipeline, of which `folder` may be the transformer's.
fn pipeline_of(folder: &Path) -> &Path {
    let transformer = folder.file_name().is_some_and(|name| name == TRANSFORMER_FOLDER);
    folder.parent().filter(|parent| transformer && parent.join("text_encoder").is_dir()).unwrap_or(folder)
}

/// diffusers' name of the transformer's folder in a pipeline.
const TRANSFORMER_FOLDER: &str = "transformer";

/// The autoencoder in a pipeline's folder, as published or as diffusers has it.
pub fn autoencoder_in(folder: &Path) -> PathBuf {
    let (published, diffusers) = (folder.join("ae.safetensors"), folder.join("vae"));
    if !published.exists() && diffusers.is_dir() { diffusers } else { published }
}

/// The transformer of `preset` in a pipeline's folder, as published or as diffusers has it.
pub fn transformer_in(preset: Preset, folder: &Path) -> PathBuf {
    let published = folder.join(match preset {
        Preset::FluxDev => "flux1-dev.safetensors",
        Preset::FluxSchnell => "flux1-schnell.safetensors",
        Preset::Nano => "base.safetensors",
    });
    let diffusers = folder.join(TRANSFORMER_FOLDER);
    if !published.exists() && diffusers.is_dir() { diffusers } else { published }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let files = EncoderFiles::in_folder(Preset::FluxDev, Path::new("/nowhere"));
        let codec = files.codec(Device::Cpu).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(codec.contains("/nowhere/ae.safetensors"), "{codec}");
        let text =
            files.text(Kind::Float, Device::Cpu).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("/nowhere/"), "{text}");
        let missing = files.check().unwrap_err().to_string();
        assert!(missing.contains("/nowhere/ae.safetensors"), "{missing}");
        let nano = EncoderFiles::in_folder(Preset::Nano, Path::new("/nowhere"));
        assert!(nano.codec(Device::Cpu).is_ok() && nano.text(Kind::Float, Device::Cpu).is_ok());
        nano.check().unwrap();
    }

    #[test]
    fn a_pipeline_is_found_as_published_and_as_diffusers_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["transformer", "vae", "text_encoder"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        assert_eq!(transformer_in(Preset::FluxDev, root), root.join("transformer"));
        assert_eq!(autoencoder_in(root), root.join("vae"));
        let found = EncoderFiles::in_folder(Preset::FluxDev, root);
        assert_eq!(EncoderFiles::in_folder(Preset::FluxDev, &root.join("transformer")), found);
        for name in ["flux1-dev.safetensors", "ae.safetensors"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        assert_eq!(transformer_in(Preset::FluxDev, root), root.join("flux1-dev.safetensors"));
        assert_eq!(autoencoder_in(root), root.join("ae.safetensors"));
    }
}
