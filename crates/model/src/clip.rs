//! CLIP: the pooled text vector of the diffusion transformer, and the features that pictures are scored with.
//!
//! ```text
//!  ids ── text_model ── pooled ── text_projection ──┐
//!             │                                     ├─ cosine · exp(logit_scale)
//!             ▼ FLUX.1's vector                     │
//!  pixels ─ vision_model ─ class ─ visual_projection┘
//! ```
//!
//! The networks of "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), under the
//! tensor names of the published Hugging Face checkpoints. They are not trained here: no gradient is kept.

mod config;
#[cfg(test)]
mod tests;
mod text;
mod vision;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig, Pooling};
pub use text::{ClipText, ClipTextOutput, pool};
pub use vision::{ClipVision, ClipVisionOutput};

use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::layers::{Linear, cast};
use crate::naming::Network;
use crate::params::{Init, Loader, ParamSource, SeededInit, check_files};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// Both towers with their projections into one space.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    text: ClipText,
    vision: ClipVision,
    text_projection: Linear,
    visual_projection: Linear,
    /// Logarithm of what cosines are multiplied with, 0-dimensional.
    logit_scale: Tensor,
}

/// Indices that follow from the sizes, which older published files carry.
fn of_no_use(name: &str) -> bool {
    name.ends_with(".embeddings.position_ids")
}

impl Clip {
    /// Loads the network from a safetensors file, an index of several or a folder ([`WeightFiles::open`]) into `kind` on
    /// `device`, one tensor at a time.
    pub fn load(config: &ClipConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open_as(path, Network::Clip)?;
        let origin = files.origin();
        Self::from_loader(config, Loader::from_files(files, kind, device), &origin, kind, device)
    }

    /// Holds the headers of the files at `path` against `config`, as [`Clip::load`] would, and reads no tensor.
    pub fn check_files(config: &ClipConfig, path: &Path) -> Result<()> {
        check_files(path, Network::Clip, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &ClipConfig, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        loader.ignore(of_no_use);
        Self::build(config, &mut loader, Kind::Float, Device::Cpu)?;
        Ok(loader.into_problems())
    }

    /// Takes tensors under published names; every one that does not fit is listed. `origin` names them in errors.
    pub fn from_tensors(
        config: &ClipConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        Self::from_loader(config, Loader::from_map(tensors, kind, device), origin, kind, device)
    }

    /// A fresh network, a function of `seed`.
    pub fn init(config: &ClipConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(config, &mut SeededInit::new(seed, kind, device), kind, device)
    }

    fn from_loader(
        config: &ClipConfig,
        mut loader: Loader,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        loader.ignore(of_no_use);
        let network = Self::build(config, &mut loader, kind, device)?;
        loader.finish(origin)?;
        Ok(network)
    }

    pub(crate) fn build(
        config: &ClipConfig,
        source: &mut dyn ParamSource,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let (text, vision) = (&config.text_config, &config.vision_config);
        let mut projection = |name: &str, width: i64| {
            Linear::build(source, name, width, config.projection_dim, false, Init::Xavier)
        };
        Ok(Self {
            text_projection: projection("text_projection", text.hidden_size)?,
            visual_projection: projection("visual_projection", vision.hidden_size)?,
            logit_scale: source.take("logit_scale", &[], Init::Zero)?,
            text: ClipText::build(source, "text_model", text, device)?,
            vision: ClipVision::build(source, "vision_model", vision, kind, device)?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The text tower.
    pub fn text(&self) -> &ClipText {
        &self.text
    }

    /// The vision tower.
    pub fn vision(&self) -> &ClipVision {
        &self.vision
    }

    /// Features of prompts by their token ids ([`ClipText::forward`]), `[batch, projection_dim]`, not normalised.
    pub fn text_features(&self, ids: &Tensor) -> Result<Tensor> {
        let pooled = self.text.forward(ids)?.pooled;
        tch::no_grad(|| self.text_projection.forward(&pooled))
    }

    /// Features of normalised pictures ([`ClipVision::forward`]), `[batch, projection_dim]`, not normalised.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let pooled = self.vision.forward(pixels)?.pooled;
        tch::no_grad(|| self.visual_projection.forward(&pooled))
    }

    /// [`Clip::text_features`] at length 1, float32: dot products are cosines.
    pub fn text_embeds(&self, ids: &Tensor) -> Result<Tensor> {
        unit_length(&self.text_features(ids)?)
    }

    /// [`Clip::image_features`] at length 1, float32: dot products are cosines.
    pub fn image_embeds(&self, pixels: &Tensor) -> Result<Tensor> {
        unit_length(&self.image_features(pixels)?)
    }

    /// exp(logit_scale) times the cosine of each picture with each prompt, `[images, texts]`, of two sets of features of
    /// length 1, `[images, projection_dim]` and `[texts, projection_dim]`.
    pub fn logits_per_image(&self, image_embeds: &Tensor, text_embeds: &Tensor) -> Result<Tensor> {
        let width = self.config.projection_dim;
        for (name, features) in [("image_embeds", image_embeds), ("text_embeds", text_embeds)] {
            match *features.size().as_slice() {
                [_, found] if found == width => {}
                ref other => {
                    let reason = format!("shape {other:?} is not [batch, {width}]");
                    return Err(ModelError::input(name, reason));
                }
            }
        }
        tch::no_grad(|| {
            let scale = cast(&self.logit_scale.f_exp()?, image_embeds.f_kind()?)?;
            Ok(image_embeds.f_matmul(&text_embeds.f_transpose(0, 1)?)?.f_mul(&scale)?)
        })
    }
}

/// Rows divided by their length, float32. A row of zeros stays one.
fn unit_length(features: &Tensor) -> Result<Tensor> {
    let features = cast(features, Kind::Float)?;
    let length = features.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?.f_clamp_min(1e-12)?;
    Ok(features.f_div(&length)?)
}
