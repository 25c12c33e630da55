//! The networks around the transformer: which files they are, and loading them.

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
    /// Those of `preset` in a folder that is laid out as the published FLUX.1: `ae.safetensors`, `text_encoder`,
    /// `text_encoder_2`, `tokenizer`, `tokenizer_2`.
    pub fn in_folder(preset: Preset, folder: &Path) -> Self {
        match preset {
            Preset::Nano => Self::Nano,
            Preset::FluxDev | Preset::FluxSchnell => Self::Flux {
                autoencoder: folder.join("ae.safetensors"),
                text: FluxTextPaths::in_folder(folder),
            },
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
        let nano = EncoderFiles::in_folder(Preset::Nano, Path::new("/nowhere"));
        assert!(nano.codec(Device::Cpu).is_ok() && nano.text(Kind::Float, Device::Cpu).is_ok());
    }
}
