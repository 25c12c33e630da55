//! FLUX's autoencoder: pictures to latents and back.
//!
//! ```text
//!  picture ─ encoder ─ mean, log-variance ─ draw ─ (z − shift) · scale ─ latent
//!  latent ─ / scale + shift ─ decoder ─ picture
//! ```
//!
//! The tensor names and the arithmetic are those of black-forest-labs/flux `modules/autoencoder.py` (`ae.safetensors`).
//! Above a size, both ways run in overlapping tiles ([`Tiling`]).

mod config;
mod encoder_decoder;
mod layers;
mod tiling;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::AutoencoderConfig;
use encoder_decoder::{Decoder, Encoder};
use tiling::Resolutions;
pub use tiling::Tiling;

use crate::codec::LatentCodec;
use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::layers::cast;
use crate::naming::Network;
use crate::params::{Loader, ParamSource, SeededInit, check_files};
use crate::randomness::NormalStream;
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// The autoencoder.
#[derive(Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    encoder: Encoder,
    decoder: Decoder,
    tiling: Tiling,
    /// Dtype of weights and activations.
    kind: Kind,
    device: Device,
}

/// Which latent of a picture's distribution is taken. The published code always samples, in training too.
#[derive(Debug)]
pub enum LatentDraw<'a> {
    /// The most likely one.
    Mean,
    /// The mean plus this times the deviation: standard normal numbers in the shape of the latent.
    Noise(&'a Tensor),
    /// The same, with the next numbers of a stream.
    Stream(&'a mut NormalStream),
}

impl Autoencoder {
    /// Loads the network from a file, an index or a folder ([`WeightFiles::open`]) into `kind` on `device`.
    pub fn load(config: &AutoencoderConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        config.validate()?;
        let files = WeightFiles::open_as(path, Network::Autoencoder)?;
        let origin = files.origin();
        let mut loader = Loader::from_files(files, kind, device);
        let network = Self::build(config, kind, device, &mut loader)?;
        loader.finish(&origin)?;
        Ok(network)
    }

    /// Holds the headers of the files at `path` against `config`, as [`Autoencoder::load`] would, and reads no tensor.
    pub fn check_files(config: &AutoencoderConfig, path: &Path) -> Result<()> {
        check_files(path, Network::Autoencoder, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &AutoencoderConfig, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        Self::build(config, Kind::Float, Device::Cpu, &mut loader)?;
        Ok(loader.into_problems())
    }

    /// Builds the network from tensors under published names; `origin` is what errors call their source.
    pub fn from_tensors(
        config: &AutoencoderConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let mut loader = Loader::from_map(tensors, kind, device);
        let network = Self::build(config, kind, device, &mut loader)?;
        loader.finish(origin)?;
        Ok(network)
    }

    /// A fresh network, a function of `seed`.
    pub fn init(config: &AutoencoderConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(config, kind, device, &mut SeededInit::new(seed, kind, device))
    }

    pub(crate) fn build(
        config: &AutoencoderConfig,
        kind: Kind,
        device: Device,
        source: &mut dyn ParamSource,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            encoder: Encoder::build(source, config)?,
            decoder: Decoder::build(source, config)?,
            config: config.clone(),
            tiling: Tiling::default(),
            kind,
            device,
        })
    }

    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// Chooses when and how large pictures are cut into tiles.
    pub fn set_tiling(&mut self, tiling: Tiling) -> Result<()> {
        tiling.validate(self.config.downscale())?;
        self.tiling = tiling;
        Ok(())
    }

    /// Mean and log-variance of z, one after the other: `[batch, 2 · z_channels, height / downscale,
    /// width / downscale]` float32, of pictures `[batch, in_channels, height, width]` in [−1, 1] with sides that are
    /// multiples of the downscale.
    pub fn moments(&self, pixels: &Tensor) -> Result<Tensor> {
        let (channels, step) = (self.config.in_channels, self.config.downscale());
        match *pixels.size().as_slice() {
            [batch, found, height, width]
                if batch > 0
                    && found == channels
                    && height > 0
                    && width > 0
                    && height % step == 0
                    && width % step == 0 => {}
            ref other => {
                let reason = format!(
                    "shape {other:?} is not [batch, {channels}, height, width] with sides that are multiples of {step}"
                );
                return Err(ModelError::input("pixels", reason));
            }
        }
        tch::no_grad(|| {
            let pixels = cast(&pixels.f_to_device(self.device)?, self.kind)?;
            let scales = Resolutions { input: step, output: 1 };
            tiling::run(&self.tiling, &pixels, scales, &mut |tile| self.encoder.forward(tile))
        })
    }

    /// Latents `[batch, z_channels, height / downscale, width / downscale]` float32 of pictures as
    /// [`Autoencoder::moments`] takes them.
    pub fn encode_drawn(&self, pixels: &Tensor, draw: LatentDraw<'_>) -> Result<Tensor> {
        let moments = self.moments(pixels)?;
        tch::no_grad(|| {
            let z = self.config.z_channels;
            let (mean, log_variance) = (moments.f_narrow(1, 0, z)?, moments.f_narrow(1, z, z)?);
            let noise = match draw {
                LatentDraw::Mean => None,
                LatentDraw::Noise(noise) => Some(noise.shallow_clone()),
                LatentDraw::Stream(stream) => Some(stream.tensor(&mean.size())?),
            };
            let z = match noise {
                None => mean,
                Some(noise) if noise.size() == mean.size() => {
                    let noise = cast(&noise.f_to_device(self.device)?, Kind::Float)?;
                    mean.f_add(&log_variance.f_mul_scalar(0.5)?.f_exp()?.f_mul(&noise)?)?
                }
                Some(noise) => {
                    let reason = format!("shape {:?} is not the latent's {:?}", noise.size(), mean.size());
                    return Err(ModelError::input("noise", reason));
                }
            };
            let AutoencoderConfig { scale_factor, shift_factor, .. } = self.config;
            Ok(z.f_sub_scalar(shift_factor)?.f_mul_scalar(scale_factor)?)
        })
    }

    /// Pictures `[batch, out_ch, height · downscale, width · downscale]` float32 of latents
    /// `[batch, z_channels, height, width]`: around [−1, 1], not clamped.
    pub fn decode_unclamped(&self, latents: &Tensor) -> Result<Tensor> {
        let channels = self.config.z_channels;
        match *latents.size().as_slice() {
            [batch, found, height, width] if batch > 0 && found == channels && height > 0 && width > 0 => {}
            ref other => {
                return Err(ModelError::input(
                    "latents",
                    format!("shape {other:?} is not [batch, {channels}, height, width]"),
                ));
            }
        }
        tch::no_grad(|| {
            let AutoencoderConfig { scale_factor, shift_factor, .. } = self.config;
            let latents = latents.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
            let z = latents.f_div_scalar(scale_factor)?.f_add_scalar(shift_factor)?;
            let scales = Resolutions { input: 1, output: self.config.downscale() };
            tiling::run(&self.tiling, &cast(&z, self.kind)?, scales, &mut |tile| self.decoder.forward(tile))
        })
    }
}

/// Encodes to the mean: the same picture has the same latent. [`Autoencoder::encode_drawn`] samples.
impl LatentCodec for Autoencoder {
    fn latent_channels(&self) -> i64 {
        self.config.z_channels
    }

    fn downscale(&self) -> i64 {
        self.config.downscale()
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode_drawn(pixels, LatentDraw::Mean)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.decode_unclamped(latents)?.f_clamp(-1.0, 1.0)?)
    }
}

#[cfg(test)]
mod tests;
