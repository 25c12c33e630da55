//! DINOv2: the image encoder of the similarity filter and of scoring.
//!
//! The vision transformer of "DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193), with the
//! tensor names of the published Hugging Face checkpoints, at any size. Pictures of another size than the one it was
//! trained at get their position embeddings resized by bicubic interpolation to an explicitly given grid, without
//! antialiasing. (Older library versions passed a scale factor instead, which shifts the grid a little; that rule is
//! not used here.)

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::randomness::NormalStream;
use crate::weights::{TensorFile, TensorMap};

/// Channel means and deviations that pictures in `[0, 1]` are normalised with (ImageNet's, as published).
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Key of the configuration among a weight file's strings.
const CONFIG_KEY: &str = "dinov2_config";

/// Sizes of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoV2Config {
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Width of the hidden layer of each block, in `hidden_size`s.
    pub mlp_ratio: i64,
    /// Height and width that the stored position embeddings are for, pixels.
    pub image_size: i64,
    pub patch_size: i64,
    pub layer_norm_eps: f64,
}

impl DinoV2Config {
    /// For panels of 32x32 pixels: 64 patches, 0.34 million parameters.
    pub fn nano() -> DinoV2Config {
        DinoV2Config {
            hidden_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            mlp_ratio: 4,
            image_size: 32,
            patch_size: 4,
            layer_norm_eps: 1e-6,
        }
    }

    fn validate(&self) -> Result<()> {
        let bad = |field: &'static str, reason: String| Err(ModelError::Config { field, reason });
        let ranges = [
            ("hidden_size", self.hidden_size, 8192),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 256),
            ("mlp_ratio", self.mlp_ratio, 16),
            ("image_size", self.image_size, 8192),
            ("patch_size", self.patch_size, 1024),
        ];
        for (field, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return bad(field, format!("{value} is not in 1 to {most}"));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return bad(
                "num_attention_heads",
                format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size),
            );
        }
        if self.image_size % self.patch_size != 0 {
            return bad(
                "patch_size",
                format!("{} does not divide image_size {}", self.patch_size, self.image_size),
            );
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return bad("layer_norm_eps", format!("{} is not between 0 and 1", self.layer_norm_eps));
        }
        Ok(())
    }

    /// Every tensor by published name, with its shape.
    fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        let (hidden, mlp) = (self.hidden_size, self.hidden_size * self.mlp_ratio);
        let side = self.image_size / self.patch_size;
        let mut shapes = BTreeMap::from([
            ("embeddings.cls_token".to_owned(), vec![1, 1, hidden]),
            ("embeddings.position_embeddings".to_owned(), vec![1, side * side + 1, hidden]),
            (
                "embeddings.patch_embeddings.projection.weight".to_owned(),
                vec![hidden, 3, self.patch_size, self.patch_size],
            ),
            ("embeddings.patch_embeddings.projection.bias".to_owned(), vec![hidden]),
            ("layernorm.weight".to_owned(), vec![hidden]),
            ("layernorm.bias".to_owned(), vec![hidden]),
        ]);
        for layer in 0..self.num_hidden_layers {
            let mut add =
                |name: &str, shape: Vec<i64>| shapes.insert(format!("encoder.layer.{layer}.{name}"), shape);
            for part in [
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
                "attention.output.dense",
            ] {
                add(&format!("{part}.weight"), vec![hidden, hidden]);
                add(&format!("{part}.bias"), vec![hidden]);
            }
            add("mlp.fc1.weight", vec![mlp, hidden]);
            add("mlp.fc1.bias", vec![mlp]);
            add("mlp.fc2.weight", vec![hidden, mlp]);
            add("mlp.fc2.bias", vec![hidden]);
            for norm in ["norm1", "norm2"] {
                add(&format!("{norm}.weight"), vec![hidden]);
                add(&format!("{norm}.bias"), vec![hidden]);
            }
            add("layer_scale1.lambda1", vec![hidden]);
            add("layer_scale2.lambda1", vec![hidden]);
        }
        shapes
    }
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct DinoV2Output {
    /// All tokens after the last norm, `[batch, 1 + patches, hidden]`; the class token is first.
    pub last_hidden_state: Tensor,
    /// The class token of it, `[batch, hidden]`.
    pub pooled: Tensor,
}

/// The network. Tensors are float32 on one device.
#[derive(Debug)]
pub struct DinoV2 {
    config: DinoV2Config,
    weights: TensorMap,
    device: Device,
}

impl DinoV2 {
    /// Reads a weight file. Sizes come from its strings, or, for a file without them, from the tensors' shapes with
    /// 64 channels a head and square pictures, which holds for every published size.
    pub fn load(path: &Path, device: Device) -> Result<DinoV2> {
        let file = TensorFile::open(path)?;
        let config = match file.strings().get(CONFIG_KEY) {
            Some(text) => serde_json::from_str(text).map_err(|e| ModelError::File {
                path: path.to_owned(),
                reason: format!("{CONFIG_KEY}: {e}"),
            })?,
            None => config_from_shapes(&file)?,
        };
        DinoV2::from_tensors(config, file.all()?, &path.display().to_string(), device)
    }

    /// Takes tensors by published name; every one that is missing, unexpected or misshapen is listed. `origin` names
    /// them in errors. `embeddings.mask_token`, which only training of the published models uses, is left out.
    pub fn from_tensors(
        config: DinoV2Config,
        mut tensors: TensorMap,
        origin: &str,
        device: Device,
    ) -> Result<DinoV2> {
        config.validate()?;
        tensors.remove("embeddings.mask_token");
        let shapes = config.shapes();
        let mut problems = Vec::new();
        for (name, expected) in &shapes {
            let kind = match tensors.get(name) {
                None => ProblemKind::Missing,
                Some(tensor) if tensor.size() != *expected => {
                    ProblemKind::Shape { found: tensor.size(), expected: expected.clone() }
                }
                Some(_) => continue,
            };
            problems.push(TensorProblem { tensor: name.clone(), kind });
        }
        for name in tensors.keys().filter(|name| !shapes.contains_key(*name)) {
            problems.push(TensorProblem { tensor: name.clone(), kind: ProblemKind::Unexpected });
        }
        if !problems.is_empty() {
            return Err(ModelError::Weights { origin: origin.to_owned(), problems });
        }
        let mut weights = TensorMap::new();
        for (name, tensor) in tensors {
            weights.insert(name, tensor.f_detach()?.f_to_device(device)?.f_to_kind(Kind::Float)?);
        }
        Ok(DinoV2 { config, weights, device })
    }

    /// Fresh weights, a function of `seed`: normal with deviation 1/sqrt(inputs), 0.02 for the embeddings; biases zero,
    /// norms one, layer scales 0.1.
    pub fn fresh(config: DinoV2Config, seed: u64) -> Result<DinoV2> {
        config.validate()?;
        let mut weights = TensorMap::new();
        for (name, shape) in config.shapes() {
            let count = shape.iter().product::<i64>() as usize;
            let fan_in = shape.iter().skip(1).product::<i64>() as f32;
            let values: Vec<f32> = if name.ends_with("bias") {
                vec![0.0; count]
            } else if name.contains("norm") {
                vec![1.0; count]
            } else if name.contains("layer_scale") {
                vec![0.1; count]
            } else {
                let deviation = if name.contains("projection") || name.contains("encoder") {
                    fan_in.sqrt().recip()
                } else {
                    0.02
                };
                let mut stream = NormalStream::for_word(&format!("dinov2 {seed} {name}"));
                (0..count).map(|_| stream.next_normal() as f32 * deviation).collect()
            };
            weights.insert(name, Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?);
        }
        Ok(DinoV2 { config, weights, device: Device::Cpu })
    }

    pub fn config(&self) -> &DinoV2Config {
        &self.config
    }

    /// All tensors by published name: the leaves to train, or to save.
    pub fn weights(&self) -> &TensorMap {
        &self.weights
    }

    /// Strings for a weight file of this network, beside `others`.
    pub fn file_strings(&self, others: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut strings = others.clone();
        let config = serde_json::to_string(&self.config).unwrap_or_default();
        strings.insert(CONFIG_KEY.to_owned(), config);
        strings.insert("format".to_owned(), "pt".to_owned());
        strings
    }

    /// Runs normalised pictures `[batch, 3, height, width]`, float32, sides multiples of the patch size.
    pub fn forward(&self, pixels: &Tensor) -> Result<DinoV2Output> {
        let patch = self.config.patch_size;
        let (rows, columns) = match *pixels.size().as_slice() {
            [_, 3, height, width]
                if height >= patch && width >= patch && height % patch == 0 && width % patch == 0 =>
            {
                (height / patch, width / patch)
            }
            _ => {
                let reason = format!(
                    "shape {:?} is not [batch, 3, height, width] with sides that are multiples of {patch}",
                    pixels.size()
                );
                return Err(ModelError::input("pixels", reason));
            }
        };
        let mut hidden = self.embed_patches(pixels, rows, columns)?;
        for layer in 0..self.config.num_hidden_layers {
            hidden = self.block(layer, &hidden)?;
        }
        let last_hidden_state = self.norm("layernorm", &hidden)?;
        let pooled = last_hidden_state.f_select(1, 0)?;
        Ok(DinoV2Output { last_hidden_state, pooled })
    }

    /// Describes pictures `[batch, 3, height, width]` in `[0, 1]` by vectors of length 1, `[batch, hidden]`: their
    /// dot products are cosine similarities.
    pub fn describe(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = normalised(&pixels.f_to_device(self.device)?.f_to_kind(Kind::Float)?)?;
        let pooled = self.forward(&pixels)?.pooled;
        let length = pooled.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?.f_clamp_min(1e-12)?;
        Ok(pooled.f_div(&length)?)
    }

    /// Tokens that enter the first block: class token and patches, positions added.
    fn embed_patches(&self, pixels: &Tensor, rows: i64, columns: i64) -> Result<Tensor> {
        let batch = pixels.size().first().copied().unwrap_or(0);
        let (hidden, patch) = (self.config.hidden_size, self.config.patch_size);
        let patches = pixels
            .f_conv2d(
                self.weight("embeddings.patch_embeddings.projection.weight")?,
                Some(self.weight("embeddings.patch_embeddings.projection.bias")?),
                [patch, patch],
                [0, 0],
                [1, 1],
                1,
            )?
            // [batch, hidden, rows, columns] -> [batch, rows * columns, hidden]
            .f_flatten(2, 3)?
            .f_transpose(1, 2)?;
        let class = self.weight("embeddings.cls_token")?.f_expand([batch, 1, hidden], false)?;
        Ok(Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions(rows, columns)?)?)
    }

    /// Position embeddings for a grid, `[1, 1 + rows * columns, hidden]`.
    fn positions(&self, rows: i64, columns: i64) -> Result<Tensor> {
        let stored = self.weight("embeddings.position_embeddings")?;
        let side = self.config.image_size / self.config.patch_size;
        if rows == side && columns == side {
            return Ok(stored.shallow_clone());
        }
        let class = stored.f_narrow(1, 0, 1)?;
        let grid = stored
            .f_narrow(1, 1, side * side)?
            .f_view([1, side, side, self.config.hidden_size])?
            .f_permute([0, 3, 1, 2])?
            .f_upsample_bicubic2d([rows, columns], false, None, None)?
            .f_permute([0, 2, 3, 1])?
            .f_reshape([1, rows * columns, self.config.hidden_size])?;
        Ok(Tensor::f_cat(&[class, grid], 1)?)
    }

    fn block(&self, layer: i64, hidden: &Tensor) -> Result<Tensor> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let attended = self.attention(layer, &self.norm(&name("norm1"), hidden)?)?;
        let hidden = hidden.f_add(&attended.f_mul(self.weight(&name("layer_scale1.lambda1"))?)?)?;
        let wide = self.linear(&name("mlp.fc1"), &self.norm(&name("norm2"), &hidden)?)?.f_gelu("none")?;
        let mixed = self.linear(&name("mlp.fc2"), &wide)?;
        Ok(hidden.f_add(&mixed.f_mul(self.weight(&name("layer_scale2.lambda1"))?)?)?)
    }

    fn attention(&self, layer: i64, tokens: &Tensor) -> Result<Tensor> {
        let (heads, width) =
            (self.config.num_attention_heads, self.config.hidden_size / self.config.num_attention_heads);
        let [batch, count] = [0, 1].map(|axis| tokens.size().get(axis).copied().unwrap_or(0));
        // [batch, tokens, hidden] -> [batch, heads, tokens, width]
        let project = |part: &str| -> Result<Tensor> {
            let projected =
                self.linear(&format!("encoder.layer.{layer}.attention.attention.{part}"), tokens)?;
            Ok(projected.f_view([batch, count, heads, width])?.f_transpose(1, 2)?)
        };
        let scale = (width as f64).sqrt().recip();
        let scores = project("query")?.f_mul_scalar(scale)?.f_matmul(&project("key")?.f_transpose(2, 3)?)?;
        let mixed = scores.f_softmax(-1, None)?.f_matmul(&project("value")?)?;
        let joined = mixed.f_transpose(1, 2)?.f_reshape([batch, count, heads * width])?;
        self.linear(&format!("encoder.layer.{layer}.attention.output.dense"), &joined)
    }

    fn linear(&self, name: &str, input: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?);
        Ok(input.f_linear(weight, Some(bias))?)
    }

    fn norm(&self, name: &str, input: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight(&format!("{name}.weight"))?, self.weight(&format!("{name}.bias"))?);
        let eps = self.config.layer_norm_eps;
        Ok(input.f_layer_norm([self.config.hidden_size], Some(weight), Some(bias), eps, true)?)
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights.get(name).ok_or_else(|| ModelError::input(name, "this tensor is not in the network"))
    }
}

/// Pictures `[batch, 3, height, width]` in `[0, 1]`, normalised as the network wants them.
pub fn normalised(pixels: &Tensor) -> Result<Tensor> {
    let channels = |values: [f32; 3]| -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&values)?.f_view([1, 3, 1, 1])?.f_to_device(pixels.device())?)
    };
    Ok(pixels.f_sub(&channels(MEAN)?)?.f_div(&channels(DEVIATION)?)?)
}

fn config_from_shapes(file: &TensorFile) -> Result<DinoV2Config> {
    let shape = |name: &str, axes: usize| -> Result<Vec<i64>> {
        match file.info(name) {
            Some((shape, _)) if shape.len() == axes => Ok(shape),
            Some((shape, _)) => Err(ModelError::File {
                path: file.path().to_owned(),
                reason: format!("tensor {name} has shape {shape:?}, which no network has"),
            }),
            None => Err(ModelError::File {
                path: file.path().to_owned(),
                reason: format!("tensor {name} is missing"),
            }),
        }
    };
    let projection = shape("embeddings.patch_embeddings.projection.weight", 4)?;
    let positions = shape("embeddings.position_embeddings", 3)?;
    let fc1 = shape("encoder.layer.0.mlp.fc1.weight", 2)?;
    let layers = file
        .names()
        .iter()
        .filter_map(|name| name.strip_prefix("encoder.layer.")?.split('.').next()?.parse::<i64>().ok())
        .max()
        .map_or(0, |last| last.saturating_add(1));
    let (hidden, patch) = (projection[0], projection[2]);
    let side = ((positions[1].max(1) - 1) as f64).sqrt().round() as i64;
    Ok(DinoV2Config {
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: (hidden / 64).max(1),
        mlp_ratio: fc1[0] / hidden.max(1),
        image_size: side.saturating_mul(patch),
        patch_size: patch,
        layer_norm_eps: 1e-6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/dinov2_tiny.safetensors")
    }

    fn fixture_network() -> (DinoV2, TensorFile) {
        let file = TensorFile::open(&fixture()).expect("the fixture is there");
        let config = DinoV2Config {
            hidden_size: 48,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            mlp_ratio: 4,
            image_size: 56,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        };
        let tensors = file
            .names()
            .iter()
            .filter_map(|name| Some((name.strip_prefix("model.")?.to_owned(), file.tensor(name).ok()?)))
            .collect();
        let network =
            DinoV2::from_tensors(config, tensors, "fixture", Device::Cpu).expect("the fixture fits");
        (network, file)
    }

    fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(found.size(), expected.size(), "{what}");
        let worst = (found - expected).abs().max().double_value(&[]);
        assert!(worst <= tolerance, "{what}: off by {worst}, {tolerance} allowed");
    }

    #[test]
    fn outputs_are_the_reference_implementations_at_every_size() {
        let _guard = tch::no_grad_guard();
        let (network, file) = fixture_network();
        for (rows, columns) in [(56, 56), (84, 84), (70, 98), (28, 42)] {
            let tensor = |name: String| file.tensor(&name).expect("the fixture has it");
            let output =
                network.forward(&tensor(format!("in.pixel_values_{rows}x{columns}"))).expect("forward");
            let positions = network.positions(rows / 14, columns / 14).expect("positions");
            let size = format!("{rows}x{columns}");
            assert_close(&size, &positions, &tensor(format!("mid.{size}.position_embeddings")), 5e-6);
            assert_close(
                &size,
                &output.last_hidden_state,
                &tensor(format!("out.{size}.last_hidden_state")),
                5e-5,
            );
            assert_close(&size, &output.pooled, &tensor(format!("out.{size}.pooled")), 2e-5);
        }
    }

    #[test]
    fn a_saved_network_is_loaded_back() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("encoder.safetensors");
        let network = DinoV2::fresh(DinoV2Config::nano(), 5).expect("fresh weights");
        crate::weights::save(&path, network.weights(), &network.file_strings(&BTreeMap::new()))
            .expect("save");
        let loaded = DinoV2::load(&path, Device::Cpu).expect("load");
        assert_eq!(loaded.config(), network.config());
        let pictures =
            Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).view([2, 3, 32, 32]) / 6144.0;
        let (a, b) =
            (network.describe(&pictures).expect("describe"), loaded.describe(&pictures).expect("describe"));
        assert_eq!(a, b);
        assert_close(
            "length",
            &(&a * &a).sum_dim_intlist([1i64].as_slice(), false, None),
            &Tensor::from_slice(&[1f32, 1.0]),
            1e-5,
        );
        assert!(loaded.describe(&Tensor::zeros([1, 3, 30, 32], (Kind::Float, Device::Cpu))).is_err());
    }

    #[test]
    fn published_sizes_are_read_off_the_shapes() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("encoder.safetensors");
        let config = DinoV2Config {
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            mlp_ratio: 4,
            image_size: 42,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        };
        let network = DinoV2::fresh(config.clone(), 1).expect("fresh weights");
        crate::weights::save(&path, network.weights(), &BTreeMap::new()).expect("save");
        assert_eq!(DinoV2::load(&path, Device::Cpu).expect("load").config(), &config);
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_named() {
        let network = DinoV2::fresh(DinoV2Config::nano(), 5).expect("fresh weights");
        let mut tensors: TensorMap =
            network.weights().iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        tensors.remove("layernorm.bias");
        tensors.insert("layernorm.weight".to_owned(), Tensor::from_slice(&[1f32]));
        tensors.insert("stray".to_owned(), Tensor::from_slice(&[1f32]));
        let error = DinoV2::from_tensors(DinoV2Config::nano(), tensors, "x", Device::Cpu)
            .expect_err("it does not fit");
        let text = error.to_string();
        for name in ["layernorm.bias is missing", "layernorm.weight has shape [1]", "stray is unexpected"] {
            assert!(text.contains(name), "{text}");
        }
    }
}
