//! OWLv2: finds on a picture what a text names.
//!
//! ```text
//!  picture ─ vision tower ─ cells ─┬─ class head ── logits of each query ─┐
//!  queries ─ text tower ─ vectors ─┘                                      ├─ detections ─ suppress
//!                           cells ─┬─ box head + box of the cell ─ boxes ─┘
//!                                  └─ objectness head
//! ```
//!
//! The detector of "Scaling Open-Vocabulary Object Detection" (arXiv 2306.09683), with the tensor names of the
//! published Hugging Face checkpoints. Every cell of the grid of patches gives one box.

mod config;
mod detections;
mod detector;
mod heads;
mod towers;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::{Owlv2Config, Owlv2TextConfig, Owlv2VisionConfig};
pub use detections::{BoundingBox, Detection, detections, suppress};
pub use detector::{Owlv2Detector, hashed_ids};
use heads::{ClassHead, MlpHead, box_bias};
use towers::{TextTower, VisionTower};

use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::layers::cast;
use crate::naming::Network;
use crate::params::{Loader, ParamSource, SeededInit, check_files};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// Channel means and deviations that pictures in `[0, 1]` are normalised with (CLIP's, as published).
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The detector.
#[derive(Debug)]
pub struct Owlv2 {
    config: Owlv2Config,
    vision: VisionTower,
    text: TextTower,
    class_head: ClassHead,
    box_head: MlpHead,
    objectness_head: MlpHead,
    box_bias: Tensor,
}

/// Encoded queries, the same for every picture of a batch or a row for each.
#[derive(Debug)]
pub struct Owlv2Queries {
    /// Vectors of length 1, `[queries, projection_dim]` or `[batch, queries, projection_dim]`.
    pub vectors: Tensor,
    /// Which queries are more than padding, bool, `vectors` without its last axis.
    pub present: Tensor,
}

/// What a batch of pictures gives. All float32.
#[derive(Debug)]
pub struct Owlv2Output {
    /// `[batch, cells, queries]`; the lowest float32 where a query is padding.
    pub logits: Tensor,
    /// Centre x, centre y, width and height in sides of the padded square picture, `[batch, cells, 4]`.
    pub boxes: Tensor,
    /// Logit of there being any object, `[batch, cells]`.
    pub objectness: Tensor,
    /// What queries are compared with, of length 1, `[batch, cells, projection_dim]`.
    pub class_vectors: Tensor,
}

/// Tensors of published files that only the contrastive pair of towers uses, and indices that follow from the sizes.
fn of_no_use(name: &str) -> bool {
    name.ends_with(".position_ids") || ["owlv2.logit_scale", "owlv2.visual_projection.weight"].contains(&name)
}

impl Owlv2 {
    /// Loads the network from a file, an index or a folder ([`WeightFiles::open`]) into `kind` on `device`.
    pub fn load(config: &Owlv2Config, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open_as(path, Network::Owlv2)?;
        let origin = files.origin();
        Self::from_loader(config, Loader::from_files(files, kind, device), &origin, device)
    }

    /// Holds the headers of the files at `path` against `config`, as [`Owlv2::load`] would, and reads no tensor.
    pub fn check_files(config: &Owlv2Config, path: &Path) -> Result<()> {
        check_files(path, Network::Owlv2, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &Owlv2Config, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        loader.ignore(of_no_use);
        Self::build(config, Device::Cpu, &mut loader)?;
        Ok(loader.into_problems())
    }

    /// Builds the network from tensors under published names; `origin` is what errors call their source.
    pub fn from_tensors(
        config: &Owlv2Config,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        Self::from_loader(config, Loader::from_map(tensors, kind, device), origin, device)
    }

    fn from_loader(config: &Owlv2Config, mut loader: Loader, origin: &str, device: Device) -> Result<Self> {
        config.validate()?;
        loader.ignore(of_no_use);
        let network = Self::build(config, device, &mut loader)?;
        loader.finish(origin)?;
        Ok(network)
    }

    /// A fresh network, a function of `seed`.
    pub fn init(config: &Owlv2Config, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(config, device, &mut SeededInit::new(seed, kind, device))
    }

    pub(crate) fn build(config: &Owlv2Config, device: Device, source: &mut dyn ParamSource) -> Result<Self> {
        config.validate()?;
        let hidden = config.vision_config.hidden_size;
        Ok(Self {
            vision: VisionTower::build(source, &config.vision_config)?,
            text: TextTower::build(source, &config.text_config, config.projection_dim)?,
            class_head: ClassHead::build(source, hidden, config.projection_dim)?,
            box_head: MlpHead::build(source, "box_head", hidden, 4)?,
            objectness_head: MlpHead::build(source, "objectness_head", hidden, 1)?,
            box_bias: box_bias(config.grid_side(), device)?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Owlv2Config {
        &self.config
    }

    /// The box that each cell starts from, logits of centre x, centre y, width and height, `[cells, 4]` float32.
    pub fn box_bias(&self) -> &Tensor {
        &self.box_bias
    }

    /// Encodes queries: token ids `[queries, tokens]` int64 with start and end of text, 0 for padding; `attended`, of
    /// the same shape, is 0 where a token is padding (`None`: where its id is 0). A query whose first id is 0 is padding.
    pub fn encode_queries(&self, ids: &Tensor, attended: Option<&Tensor>) -> Result<Owlv2Queries> {
        tch::no_grad(|| {
            let present = ids.f_ne(0.0)?;
            let vectors = self.text.forward(ids, attended.unwrap_or(&present))?;
            let present = present.f_select(1, 0)?.f_to_device(vectors.device())?;
            Ok(Owlv2Queries { vectors, present })
        })
    }

    /// Features of normalised pictures `[batch, 3, image_size, image_size]`: `[batch, cells, hidden]` in the dtype of
    /// the weights, cells row by row. One pass serves any number of [`Owlv2::read`]s.
    pub fn encode_pictures(&self, pixels: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.vision.forward(pixels))
    }

    /// Reads the heads off the features of pictures.
    pub fn read(&self, cells: &Tensor, queries: &Owlv2Queries) -> Result<Owlv2Output> {
        let (hidden, count) = (self.config.vision_config.hidden_size, self.box_bias.size2()?.0);
        let batch = match *cells.size().as_slice() {
            [batch, cells, width] if cells == count && width == hidden => batch,
            ref other => {
                return Err(ModelError::input(
                    "cells",
                    format!("shape {other:?} is not [batch, {count}, {hidden}]"),
                ));
            }
        };
        tch::no_grad(|| {
            let width = self.config.projection_dim;
            let (vectors, present) = match (
                queries.vectors.size().as_slice(),
                queries.present.size().as_slice(),
            ) {
                (&[n, w], &[m]) if n == m && w == width => (
                    queries.vectors.f_unsqueeze(0)?.f_expand([batch, n, w], false)?,
                    queries.present.f_unsqueeze(0)?.f_expand([batch, n], false)?,
                ),
                (&[b, n, w], &[c, m]) if b == batch && c == batch && n == m && w == width => {
                    (queries.vectors.shallow_clone(), queries.present.shallow_clone())
                }
                _ => {
                    let reason = format!(
                        "vectors {:?} and presence {:?} do not fit a batch of {batch} and a width of {width}",
                        queries.vectors.size(),
                        queries.present.size()
                    );
                    return Err(ModelError::input("queries", reason));
                }
            };
            let (logits, class_vectors) = self.class_head.forward(cells, &vectors, &present)?;
            let boxes = cast(&self.box_head.forward(cells)?, Kind::Float)?.f_add(&self.box_bias)?;
            let objectness = self.objectness_head.forward(cells)?.f_squeeze_dim(-1)?;
            Ok(Owlv2Output {
                logits,
                boxes: boxes.f_sigmoid()?,
                objectness: cast(&objectness, Kind::Float)?,
                class_vectors: cast(&class_vectors, Kind::Float)?,
            })
        })
    }

    /// Pictures and queries to output: [`Owlv2::encode_pictures`] and [`Owlv2::read`].
    pub fn detect(&self, pixels: &Tensor, queries: &Owlv2Queries) -> Result<Owlv2Output> {
        self.read(&self.encode_pictures(pixels)?, queries)
    }
}

/// One picture `[3, height, width]` in `[0, 1]` as the network wants it, `[1, 3, side, side]` float32: padded with
/// `padding` at the right and the bottom to a square, resized bilinearly with antialiasing, normalised.
///
/// The published processors differ in the padding: 0.5 in older versions, 0 in newer ones.
pub fn prepared(picture: &Tensor, side: i64, padding: f64) -> Result<Tensor> {
    let (height, width) = match *picture.size().as_slice() {
        [3, height, width] if height > 0 && width > 0 => (height, width),
        ref other => {
            return Err(ModelError::input("picture", format!("shape {other:?} is not [3, height, width]")));
        }
    };
    if side < 1 {
        return Err(ModelError::input("side", format!("{side} is not a size")));
    }
    let square = height.max(width);
    let padded = picture.f_unsqueeze(0)?.f_to_kind(Kind::Float)?.f_pad(
        [0, square - width, 0, square - height],
        "constant",
        padding,
    )?;
    let resized = if square == side {
        padded
    } else {
        padded.f_internal_upsample_bilinear2d_aa([side, side], false, None, None)?
    };
    let channels = |values: [f32; 3]| -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&values)?.f_view([1, 3, 1, 1])?.f_to_device(picture.device())?)
    };
    Ok(resized.f_sub(&channels(MEAN)?)?.f_div(&channels(DEVIATION)?)?)
}

#[cfg(test)]
mod tests;
