//! Files as people bring them, made from the fixtures: what a form holds must be what is loaded.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::clip::{ClipText, ClipTextConfig};
use crate::flux::Flux;
use crate::inspect::{Family, inspect};
use crate::weight_files::WeightFiles;
use crate::weights::{TensorFile, TensorMap, save};
use crate::{FluxConfig, LoraAdapter};

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Tensors of a fixture under `prefix`, without it.
fn tensors(name: &str, prefix: &str) -> TensorMap {
    let file = TensorFile::open(&fixture(&format!("{name}.safetensors"))).unwrap();
    let own = |name: &String| Some((name.strip_prefix(prefix)?.to_owned(), file.tensor(name).unwrap()));
    file.names().iter().filter_map(own).collect()
}

/// The configuration that stands beside a fixture.
fn config<C: serde::de::DeserializeOwned>(name: &str) -> C {
    let text = std::fs::read(fixture(&format!("{name}.json"))).unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    serde_json::from_value(value["config"].take()).unwrap()
}

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(tensors: &TensorMap) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save(&path, tensors, &Default::default()).unwrap();
        Self { _folder: folder, path }
    }

    fn flux(&self) -> TensorMap {
        let config: FluxConfig = config("flux_tiny");
        Flux::check_files(&config, &self.path).unwrap();
        Flux::load(&config, &self.path, Kind::Float, CPU).unwrap().tensors()
    }

    fn told(&self, family: Family, form: &str) {
        let found = inspect(&WeightFiles::open(&self.path).unwrap().header());
        assert_eq!((found.family, found.form.as_deref()), (Some(family), Some(form)));
        assert!(found.fits, "{:?}", found.problems);
    }
}

fn prefixed(tensors: TensorMap, prefix: &str) -> TensorMap {
    tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

#[test]
fn a_transformer_is_taken_out_of_comfyui_s_files() {
    let flux = || tensors("flux_tiny", "model.");
    let mut file = prefixed(flux(), "model.diffusion_model.");
    let alone = File::new(&file);
    assert_eq!(alone.flux(), flux());
    alone.told(Family::Transformer, "under model.diffusion_model.*");
    file.extend(prefixed(tensors("ae_tiny", "model."), "vae."));
    file.extend(prefixed(tensors("clip_text_tiny", "model."), "text_encoders.clip_l.transformer."));
    let whole = File::new(&file);
    assert_eq!(whole.flux(), flux());
    whole.told(Family::WholePipeline, "under model.diffusion_model.*");
    let config: ClipTextConfig = config("clip_text_tiny");
    ClipText::check_files(&config, &whole.path).unwrap();
    ClipText::load(&config, &whole.path, Kind::Float, CPU).unwrap();
    crate::autoencoder::Autoencoder::check_files(&self::config("ae_tiny"), &whole.path).unwrap();
}

#[test]
fn clip_without_its_prefix_is_the_same() {
    let bare = tensors("clip_text_tiny", "model.text_model.");
    let file = File::new(&bare);
    let config: ClipTextConfig = config("clip_text_tiny");
    ClipText::check_files(&config, &file.path).unwrap();
    let ids = Tensor::from_slice(&[3i64, 5, 1]).view([1, 3]);
    let run = |tower: ClipText| tower.forward(&ids).unwrap().last_hidden_state;
    let published =
        ClipText::from_tensors(&config, tensors("clip_text_tiny", "model."), "", Kind::Float, CPU);
    assert_eq!(run(ClipText::load(&config, &file.path, Kind::Float, CPU).unwrap()), run(published.unwrap()));
    file.told(Family::Clip, "without text_model.");
}

#[test]
fn one_byte_weights_are_multiplied_with_their_scales_in_either_spelling() {
    for spelling in [".scale_weight", ".weight_scale"] {
        let (mut file, mut expected) = (TensorMap::new(), TensorMap::new());
        for (number, (name, tensor)) in tensors("flux_tiny", "model.").into_iter().enumerate() {
            let Some(module) = name.strip_suffix(".weight").filter(|_| tensor.dim() == 2) else {
                expected.insert(name.clone(), tensor.shallow_clone());
                file.insert(name, tensor);
                continue;
            };
            // By row now and then.
            let largest =
                if number % 3 == 0 { tensor.abs().amax([1i64].as_slice(), true) } else { tensor.abs().max() };
            let scale = (largest / 448.0).clamp_min(1e-12);
            let codes = (&tensor / &scale).to_kind(Kind::Float8e4m3fn);
            expected.insert(name.clone(), codes.to_kind(Kind::Float) * &scale);
            file.insert(format!("{module}{spelling}"), scale);
            if spelling == ".weight_scale" {
                let quantised = Tensor::from_slice(br#"{"format": "float8_e4m3fn"}"#);
                file.insert(format!("{module}.comfy_quant"), quantised);
            } else {
                file.insert(format!("{module}.scale_input"), Tensor::from(1.0f32));
            }
            file.insert(name, codes);
        }
        if spelling == ".scale_weight" {
            file.insert("scaled_fp8".to_owned(), Tensor::zeros([2], (Kind::Float8e4m3fn, CPU)));
        }
        let scaled = File::new(&file);
        assert_eq!(scaled.flux(), expected, "{spelling}");
        scaled.told(Family::Transformer, "one-byte weights with scales");
        let half = |map: &TensorMap| -> f64 {
            let original = tensors("flux_tiny", "model.");
            let off =
                |(name, tensor): (&String, &Tensor)| (tensor - &original[name]).norm().double_value(&[]);
            map.iter().map(off).fold(0.0, f64::max)
        };
        assert!(half(&expected) < 1.0, "the scales are of use");

        file.remove(&format!("img_in{spelling}"));
        let error = Flux::check_files(&config("flux_tiny"), &File::new(&file).path).unwrap_err().to_string();
        assert!(error.contains(&format!("img_in{spelling} is missing")), "{error}");
        file.insert(format!("img_in{spelling}"), Tensor::ones([3, 7], (Kind::Float, CPU)));
        let error = Flux::check_files(&config("flux_tiny"), &File::new(&file).path).unwrap_err().to_string();
        assert!(error.contains(&format!("img_in{spelling} has shape [3, 7]")), "{error}");
    }
}

#[test]
fn an_adapter_under_other_names_is_the_very_same() {
    let published = tensors("flux_tiny", "lora.");
    let mut peft = TensorMap::new();
    for (name, tensor) in &published {
        let parts: Vec<&str> = name.split('.').collect();
        let [sort, index, _, module, half, _] = parts.as_slice() else { panic!("{name}") };
        let block = if *sort == "double_blocks" { "transformer_blocks" } else { "single_transformer_blocks" };
        let names: Vec<String> = match *module {
            "qkv_lora1" | "qkv_lora" => ["q", "k", "v"].map(|part| format!("attn.to_{part}")).to_vec(),
            "qkv_lora2" => ["q", "k", "v"].map(|part| format!("attn.add_{part}_proj")).to_vec(),
            "proj_lora1" => vec!["attn.to_out.0".to_owned()],
            "proj_lora2" => vec!["attn.to_add_out".to_owned()],
            _ => vec!["proj_out".to_owned()],
        };
        let rows = tensor.size()[0] / names.len() as i64;
        for (part, name) in (0i64..).zip(&names) {
            let (matrix, own) = match *half {
                "down" => ("lora_A", tensor.shallow_clone()),
                _ => ("lora_B", tensor.narrow(0, part * rows, rows).contiguous()),
            };
            peft.insert(format!("transformer.{block}.{index}.{name}.{matrix}.weight"), own);
        }
    }
    let file = File::new(&peft);
    let config: FluxConfig = config("flux_tiny");
    LoraAdapter::check_files(&config, &file.path).unwrap();
    let mut adapter = LoraAdapter::load(&config, &file.path, Kind::Float, CPU).unwrap();
    assert_eq!(adapter.tensors(), published);
    file.told(Family::Lora, "names of diffusers and PEFT");
}
