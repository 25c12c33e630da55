//! DINO: the image encoder that subject likeness is scored with.
//!
//! The vision transformer of "Emerging Properties in Self-Supervised Vision Transformers" (arXiv 2104.14294), with the
//! tensor names of the checkpoints on torch.hub (`dino_vits16`). Its feature is the class token after the last norm.
//! Positions are resized by the rule of its own code, [`PositionRule::ScaleFactor`].

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{Result, TensorProblem};
use crate::header::Header;
use crate::layers::cast;
use crate::naming::Network;
use crate::params::{Loader, ParamSource, SeededInit, check_files};
use crate::vit::{Naming, Vit, unit_length};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

pub use crate::vit::{PositionRule, VitConfig as DinoConfig, normalised};

/// The network.
#[derive(Debug)]
pub struct Dino {
    vit: Vit,
    device: Device,
}

impl Dino {
    /// Loads the network from a file, an index or a folder ([`WeightFiles::open`]) into `kind` on `device`.
    pub fn load(config: &DinoConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        config.validate()?;
        let files = WeightFiles::open_as(path, Network::Dino)?;
        let origin = files.origin();
        let mut loader = Loader::from_files(files, kind, device);
        let network = Self::build(config, device, &mut loader)?;
        loader.finish(&origin)?;
        Ok(network)
    }

    /// Holds the headers of the files at `path` against `config`, as [`Dino::load`] would, and reads no tensor.
    pub fn check_files(config: &DinoConfig, path: &Path) -> Result<()> {
        check_files(path, Network::Dino, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &DinoConfig, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        Self::build(config, Device::Cpu, &mut loader)?;
        Ok(loader.into_problems())
    }

    /// Builds the network from tensors under published names; `origin` is what errors call their source.
    pub fn from_tensors(
        config: &DinoConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let mut loader = Loader::from_map(tensors, kind, device);
        let network = Self::build(config, device, &mut loader)?;
        loader.finish(origin)?;
        Ok(network)
    }

    /// A fresh network, a function of `seed`.
    pub fn init(config: &DinoConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(config, device, &mut SeededInit::new(seed, kind, device))
    }

    pub(crate) fn build(config: &DinoConfig, device: Device, source: &mut dyn ParamSource) -> Result<Self> {
        Ok(Self { vit: Vit::build(config, Naming::TorchHub, source)?, device })
    }

    pub fn config(&self) -> &DinoConfig {
        self.vit.config()
    }

    /// Weights by published name, sharing storage with the network.
    pub fn tensors(&mut self) -> TensorMap {
        let mut map = TensorMap::new();
        self.vit.visit_mut(&mut |name, tensor| {
            map.insert(name, tensor.shallow_clone());
        });
        map
    }

    /// Class tokens `[batch, hidden]`, float32, of normalised pictures `[batch, 3, height, width]` with sides that are
    /// multiples of the patch size. Records no gradients.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| {
            let pixels = pixels.f_to_device(self.device)?;
            let tokens = self.vit.forward(&pixels, PositionRule::ScaleFactor)?;
            cast(&tokens.f_select(1, 0)?, Kind::Float)
        })
    }

    /// Describes pictures `[batch, 3, height, width]` in `[0, 1]` by vectors of length 1, `[batch, hidden]` float32:
    /// their dot products are cosine similarities.
    pub fn describe(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = normalised(&pixels.f_to_device(self.device)?.f_to_kind(Kind::Float)?)?;
        unit_length(&self.forward(&pixels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dinov2::DinoV2;
    use crate::params::Outline;

    fn small() -> DinoConfig {
        DinoConfig { image_size: 32, patch_size: 8, ..DinoConfig::nano() }
    }

    fn picture(height: i64, width: i64) -> Tensor {
        (Tensor::arange(2 * 3 * height * width, (Kind::Float, Device::Cpu)) * 0.01)
            .sin()
            .view([2, 3, height, width])
    }

    #[test]
    fn the_preset_has_the_published_names_and_number_of_weights() {
        let mut shapes = Outline::default();
        Dino::build(&DinoConfig::dino_vits16(), Device::Cpu, &mut shapes).unwrap();
        assert_eq!(shapes.parameters(), 21_665_664);
        for (name, shape) in [
            ("cls_token", vec![1, 1, 384]),
            ("pos_embed", vec![1, 197, 384]),
            ("patch_embed.proj.weight", vec![384, 3, 16, 16]),
            ("blocks.11.attn.qkv.weight", vec![1152, 384]),
            ("blocks.0.attn.proj.bias", vec![384]),
            ("blocks.3.mlp.fc2.weight", vec![384, 1536]),
            ("norm.weight", vec![384]),
        ] {
            assert_eq!(shapes.by_name().get(name).copied(), Some(shape.as_slice()), "{name}");
        }
    }

    /// DINOv2's block with unit scales and its query, key and value stacked is DINO's: the network whose numbers are
    /// held to the reference implementation vouches for this one.
    #[test]
    fn stacked_matrices_give_what_separate_ones_give() {
        let mut dino = Dino::init(&small(), 4, Kind::Float, Device::Cpu).unwrap();
        let mut tensors = TensorMap::new();
        for (name, tensor) in dino.tensors() {
            let name = name
                .replace("cls_token", "embeddings.cls_token")
                .replace("pos_embed", "embeddings.position_embeddings")
                .replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
                .replace("blocks.", "encoder.layer.")
                .replace("attn.proj", "attention.output.dense");
            let name = if name.starts_with("norm.") { name.replace("norm.", "layernorm.") } else { name };
            if let Some((block, kind)) = name.split_once("attn.qkv") {
                for (part, rows) in ["query", "key", "value"].iter().zip(tensor.chunk(3, 0)) {
                    tensors.insert(format!("{block}attention.attention.{part}{kind}"), rows);
                }
            } else {
                tensors.insert(name, tensor);
            }
        }
        for layer in 0..small().num_hidden_layers {
            for scale in ["layer_scale1", "layer_scale2"] {
                let ones = Tensor::ones([small().hidden_size], (Kind::Float, Device::Cpu));
                tensors.insert(format!("encoder.layer.{layer}.{scale}.lambda1"), ones);
            }
        }
        let mut twin = DinoV2::from_tensors(small(), tensors, "twin", Device::Cpu).unwrap();
        twin.set_position_rule(PositionRule::ScaleFactor);
        for (height, width) in [(32, 32), (40, 24)] {
            let pixels = picture(height, width);
            let (a, b) = (dino.forward(&pixels).unwrap(), twin.forward(&pixels).unwrap().pooled);
            assert!((&a - &b).abs().max().double_value(&[]) < 1e-5);
        }
        twin.set_position_rule(PositionRule::ExplicitSize);
        let pixels = picture(40, 24);
        let (a, b) = (dino.forward(&pixels).unwrap(), twin.forward(&pixels).unwrap().pooled);
        assert!((&a - &b).abs().max().double_value(&[]) > 1e-5, "the rule for positions is not used");
    }

    #[test]
    fn files_load_and_what_does_not_fit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dino.safetensors");
        let mut tensors = Dino::init(&small(), 4, Kind::Float, Device::Cpu).unwrap().tensors();
        crate::weights::save(&path, &tensors, &Default::default()).unwrap();
        let mut loaded = Dino::load(&small(), &path, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(loaded.tensors(), tensors);
        let half = Dino::load(&small(), &path, Kind::BFloat16, Device::Cpu).unwrap();
        let pixels = picture(32, 48).abs();
        let likeness = (half.describe(&pixels).unwrap() * loaded.describe(&pixels).unwrap())
            .sum_dim_intlist([1i64].as_slice(), false, None)
            .min()
            .double_value(&[]);
        assert!(likeness > 0.999, "{likeness}");
        assert!(loaded.forward(&picture(30, 32)).is_err());

        tensors.remove("norm.bias");
        tensors.insert("head.weight".to_owned(), Tensor::from_slice(&[1f32]));
        let error = Dino::from_tensors(&small(), tensors, "x", Kind::Float, Device::Cpu).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("norm.bias is missing") && text.contains("head.weight is unexpected"),
            "{text}"
        );
    }
}
