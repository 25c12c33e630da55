//! DINOv2: the image encoder of the similarity filter and of scoring.
//!
//! The vision transformer of "DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193), with the
//! tensor names of the published Hugging Face checkpoints, at any size. Pictures of another size than the one it was
//! trained at get their position embeddings resized, by [`PositionRule::ExplicitSize`] unless
//! [`DinoV2::set_position_rule`] says otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::naming::Network;
use crate::params::{Init, Loader, ParamSource, check_files};
use crate::published::{config_beside, read_config};
use crate::randomness::NormalStream;
use crate::vit::{Naming, Vit, unit_length};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

pub use crate::vit::{PositionRule, VitConfig as DinoV2Config, normalised};

/// Key of the configuration among a weight file's strings.
const CONFIG_KEY: &str = "dinov2_config";

/// What a forward pass gives.
#[derive(Debug)]
pub struct DinoV2Output {
    /// All tokens after the last norm, `[batch, 1 + registers + patches, hidden]`; the class token is first.
    pub last_hidden_state: Tensor,
    /// The class token of it, `[batch, hidden]`.
    pub pooled: Tensor,
}

/// The network. Tensors are float32 on one device.
#[derive(Debug)]
pub struct DinoV2 {
    vit: Vit,
    /// The tensors of `vit`, sharing its storage.
    weights: TensorMap,
    device: Device,
    rule: PositionRule,
}

impl DinoV2 {
    /// Reads a weight file, an index of several or a folder ([`WeightFiles::open_as`]), one tensor at a time. Sizes come from
    /// the file's strings, from a `config.json` beside it, or, for a file without either, from the tensors' shapes with 64
    /// channels a head and square pictures, which holds for every published size.
    pub fn load(path: &Path, device: Device) -> Result<DinoV2> {
        let files = WeightFiles::open_as(path, Network::Dinov2)?;
        let (config, origin) = (config_of(&files)?, files.origin());
        Self::from_loader(&config, Loader::from_files(files, Kind::Float, device), &origin, device)
    }

    /// Holds the headers of the files at `path` against the sizes that [`DinoV2::load`] finds, and reads no tensor.
    pub fn check_files(path: &Path) -> Result<()> {
        let config = config_of(&WeightFiles::open_as(path, Network::Dinov2)?)?;
        check_files(path, Network::Dinov2, |header| Self::problems(&config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &DinoV2Config, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        loader.ignore(of_no_use);
        Self::build(config, &mut loader)?;
        Ok(loader.into_problems())
    }

    /// Takes tensors by published name; every one that is missing, unexpected or misshapen is listed. `origin` names
    /// them in errors. `embeddings.mask_token`, which only training of the published models uses, is left out.
    pub fn from_tensors(
        config: DinoV2Config,
        tensors: TensorMap,
        origin: &str,
        device: Device,
    ) -> Result<DinoV2> {
        Self::from_loader(&config, Loader::from_map(tensors, Kind::Float, device), origin, device)
    }

    fn from_loader(
        config: &DinoV2Config,
        mut loader: Loader,
        origin: &str,
        device: Device,
    ) -> Result<DinoV2> {
        loader.ignore(of_no_use);
        let vit = Self::build(config, &mut loader)?;
        loader.finish(origin)?;
        Ok(Self::around(vit, device))
    }

    /// Fresh weights, a function of `seed`: normal with deviation 1/sqrt(inputs), 0.02 for the embeddings; biases zero,
    /// norms one, layer scales 0.1.
    pub fn fresh(config: DinoV2Config, seed: u64) -> Result<DinoV2> {
        let vit = Self::build(&config, &mut FreshWeights { seed })?;
        Ok(Self::around(vit, Device::Cpu))
    }

    pub(crate) fn build(config: &DinoV2Config, source: &mut dyn ParamSource) -> Result<Vit> {
        Vit::build(config, Naming::HuggingFace, source)
    }

    fn around(mut vit: Vit, device: Device) -> DinoV2 {
        let mut weights = TensorMap::new();
        vit.visit_mut(&mut |name, tensor| {
            weights.insert(name, tensor.shallow_clone());
        });
        let registers = vit.config().num_register_tokens > 0;
        let rule = if registers { PositionRule::Antialiased } else { PositionRule::ExplicitSize };
        DinoV2 { vit, weights, device, rule }
    }

    pub fn config(&self) -> &DinoV2Config {
        self.vit.config()
    }

    /// All tensors by published name: the leaves to train, or to save.
    pub fn weights(&self) -> &TensorMap {
        &self.weights
    }

    /// Chooses how positions are resized.
    pub fn set_position_rule(&mut self, rule: PositionRule) {
        self.rule = rule;
    }

    /// Strings for a weight file of this network, beside `others`.
    pub fn file_strings(&self, others: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut strings = others.clone();
        let config = serde_json::to_string(self.config()).unwrap_or_default();
        strings.insert(CONFIG_KEY.to_owned(), config);
        strings.insert("format".to_owned(), "pt".to_owned());
        strings
    }

    /// Runs normalised pictures `[batch, 3, height, width]`, float32, sides multiples of the patch size.
    pub fn forward(&self, pixels: &Tensor) -> Result<DinoV2Output> {
        let last_hidden_state = self.vit.forward(pixels, self.rule)?;
        let pooled = last_hidden_state.f_select(1, 0)?;
        Ok(DinoV2Output { last_hidden_state, pooled })
    }

    /// Describes pictures `[batch, 3, height, width]` in `[0, 1]` by vectors of length 1, `[batch, hidden]`: their
    /// dot products are cosine similarities.
    pub fn describe(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = normalised(&pixels.f_to_device(self.device)?.f_to_kind(Kind::Float)?)?;
        unit_length(&self.forward(&pixels)?.pooled)
    }

    /// Tokens that enter the first block, `[batch, 1 + registers + patches, hidden]`: class token and patches, positions
    /// added, registers between them.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vit.embed(pixels, self.rule)
    }

    /// Position embeddings for a grid of patches, `[1, 1 + rows * columns, hidden]`.
    pub fn positions(&self, rows: i64, columns: i64) -> Result<Tensor> {
        self.vit.positions(rows, columns, self.rule)
    }
}

/// What only training of the published models uses.
fn of_no_use(name: &str) -> bool {
    name == "embeddings.mask_token"
}

/// Draws the weights of [`DinoV2::fresh`] by name.
struct FreshWeights {
    seed: u64,
}

impl ParamSource for FreshWeights {
    fn take(&mut self, name: &str, shape: &[i64], _init: Init) -> Result<Tensor> {
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
            let mut stream = NormalStream::for_word(&format!("dinov2 {} {name}", self.seed));
            (0..count).map(|_| stream.next_normal() as f32 * deviation).collect()
        };
        Ok(Tensor::f_from_slice(&values)?.f_view(shape)?)
    }
}

/// The sizes of a file: those that it or its `config.json` states, or those that its shapes tell.
fn config_of(files: &WeightFiles) -> Result<DinoV2Config> {
    if let Some(text) = files.string(CONFIG_KEY) {
        let reason = |error| format!("{CONFIG_KEY}: {error}");
        return serde_json::from_str(&text)
            .map_err(|error| ModelError::File { path: files.path().to_owned(), reason: reason(error) });
    }
    /// Whose configuration a `config.json` is.
    #[derive(serde::Deserialize)]
    struct Kind {
        #[serde(default)]
        model_type: String,
    }
    if let Some(path) = config_beside(files.path())
        && read_config::<Kind>(&path, None)?.model_type.starts_with("dinov2")
    {
        return read_config(&path, None);
    }
    config_from_shapes(&files.header())
        .map_err(|reason| ModelError::File { path: files.path().to_owned(), reason })
}

/// The sizes that shapes tell: 64 channels a head, square pictures.
pub(crate) fn config_from_shapes(header: &Header) -> Result<DinoV2Config, String> {
    let shape = |name: &str, axes: usize| match header.get(name).map(|tensor| tensor.shape.clone()) {
        Some(shape) if shape.len() == axes => Ok(shape),
        Some(shape) => Err(format!("tensor {name} has shape {shape:?}, which no network has")),
        None => Err(format!("tensor {name} is missing")),
    };
    let projection = shape("embeddings.patch_embeddings.projection.weight", 4)?;
    let positions = shape("embeddings.position_embeddings", 3)?;
    let registers = shape("embeddings.register_tokens", 3).map_or(0, |shape| shape[1]);
    let (hidden, patch) = (projection[0], projection[2]);
    let use_swiglu_ffn = header.contains_key("encoder.layer.0.mlp.weights_out.weight");
    let mlp_ratio = if use_swiglu_ffn {
        let width = shape("encoder.layer.0.mlp.weights_out.weight", 2)?[1];
        // Two thirds of it, up to a multiple of 8, is the width: 4 is what every published size has.
        (width.saturating_mul(3) / hidden.max(1).saturating_mul(2)).max(1)
    } else {
        shape("encoder.layer.0.mlp.fc1.weight", 2)?[0] / hidden.max(1)
    };
    let number = |name: &String| name.strip_prefix("encoder.layer.")?.split('.').next()?.parse::<i64>().ok();
    let layers = header.keys().filter_map(number).max().map_or(0, |last| last.saturating_add(1));
    let side = ((positions[1].max(1) - 1) as f64).sqrt().round() as i64;
    Ok(DinoV2Config {
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: (hidden / 64).max(1),
        mlp_ratio,
        image_size: side.saturating_mul(patch),
        patch_size: patch,
        layer_norm_eps: 1e-6,
        num_register_tokens: registers,
        use_swiglu_ffn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Outline;
    use crate::weights::TensorFile;

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
            num_register_tokens: 0,
            use_swiglu_ffn: false,
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
            num_register_tokens: 0,
            use_swiglu_ffn: false,
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

    #[test]
    fn presets_have_the_published_number_of_weights() {
        for (config, published) in [
            (DinoV2Config::dinov2_small(), 22_056_576),
            (DinoV2Config::dinov2_base(), 86_580_480),
            (DinoV2Config::dinov2_large(), 304_368_640),
        ] {
            let mut shapes = Outline::default();
            DinoV2::build(&config, &mut shapes).expect("build");
            // Published files also hold the mask token.
            assert_eq!(shapes.parameters() + config.hidden_size, published);
        }
    }

    #[test]
    fn fresh_weights_are_a_function_of_the_seed_that_stays() {
        let network = DinoV2::fresh(DinoV2Config::nano(), 5).expect("fresh weights");
        for (name, expected) in [
            ("embeddings.cls_token", -0.155066),
            ("encoder.layer.1.mlp.fc2.weight", -1.783093),
            ("encoder.layer.2.layer_scale1.lambda1", 9.6),
        ] {
            let sum = network.weights().get(name).map(|t| t.sum(Kind::Float).double_value(&[]));
            assert!(sum.is_some_and(|sum| (sum - expected).abs() < 1e-3), "{name}: {sum:?}");
        }
    }
}
