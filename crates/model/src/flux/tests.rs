//! Loading, initialisation and refusal of what does not fit.

use tch::{Device, Kind, Tensor};

use super::layers::time_embedding;
use crate::weights::{save, to_bytes};
use crate::{Flux, FluxConfig, ModelError};

fn config() -> FluxConfig {
    FluxConfig { depth: 1, depth_single_blocks: 1, hidden_size: 32, num_heads: 1, ..FluxConfig::nano() }
}

#[test]
fn the_time_sinusoid_is_the_correctly_rounded_one() {
    for t in [0.0f32, 0.123_456_7, 0.5, 0.999_9, 1.0, 4.0] {
        let computed = time_embedding(&Tensor::from_slice(&[t]), Kind::Float).unwrap();
        let (cosines, sines): (Vec<_>, Vec<_>) = (0..128)
            .map(|i| {
                let exponent = -(10_000f64.ln() as f32) * i as f32 / 128.0;
                let frequency = f64::from(exponent).exp() as f32;
                let (sine, cosine) = f64::from(1000.0 * t * frequency).sin_cos();
                (cosine as f32, sine as f32)
            })
            .unzip();
        let expected = Tensor::from_slice(&[cosines, sines].concat()).unsqueeze(0);
        assert_eq!(computed, expected, "at {t}");
    }
}

#[test]
fn nano_has_the_size_it_says() {
    let mut flux = Flux::init(&FluxConfig::nano(), 1, Kind::Float, Device::Cpu).unwrap();
    let millions = flux.parameter_count() as f64 / 1e6;
    assert!((6.0..6.5).contains(&millions), "{millions}");
}

#[test]
fn a_fresh_network_depends_on_its_seed_alone_and_predicts_zero() {
    let tensors = |seed| Flux::init(&config(), seed, Kind::Float, Device::Cpu).unwrap().tensors();
    let first = tensors(4);
    tch::manual_seed(9);
    assert_eq!(tensors(4), first);
    assert_ne!(tensors(5), first);
    for (name, tensor) in &first {
        let zero = name.contains("mod") || name.starts_with("final_layer") || name.ends_with("bias");
        assert_eq!(tensor.abs().max().double_value(&[]) == 0.0, zero, "{name}");
    }
}

#[test]
fn files_load_into_any_float_dtype() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    let mut tensors = Flux::init(&config(), 4, Kind::Float, Device::Cpu).unwrap().tensors();
    save(&path, &tensors, &Default::default()).unwrap();
    let mut same = Flux::load(&config(), &path, Kind::Float, Device::Cpu).unwrap();
    assert_eq!(same.tensors(), tensors);
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_kind(Kind::BFloat16);
    }
    save(&path, &tensors, &Default::default()).unwrap();
    let mut half = Flux::load(&config(), &path, Kind::BFloat16, Device::Cpu).unwrap();
    assert_eq!(half.tensors(), tensors);
    assert_eq!(half.compute_kind(), Kind::BFloat16);
    let mut widened = Flux::load(&config(), &path, Kind::Float, Device::Cpu).unwrap();
    assert!(widened.tensors().values().all(|tensor| tensor.kind() == Kind::Float));
}

#[test]
fn every_problem_of_a_weight_file_is_listed_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    let mut tensors = Flux::init(&config(), 4, Kind::Float, Device::Cpu).unwrap().tensors();
    tensors.remove("img_in.bias");
    tensors.insert("txt_in.weight".to_owned(), Tensor::zeros([32, 65], (Kind::Float, Device::Cpu)));
    tensors.insert("vector_in.in_layer.bias".to_owned(), Tensor::zeros([32], (Kind::Uint8, Device::Cpu)));
    tensors.insert("guidance_in.in_layer.bias".to_owned(), Tensor::zeros([32], (Kind::Float, Device::Cpu)));
    save(&path, &tensors, &Default::default()).unwrap();
    let error = Flux::load(&config(), &path, Kind::Float, Device::Cpu).unwrap_err();
    let ModelError::Weights { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 4);
    let text = error.to_string();
    for part in [
        "base.safetensors",
        "img_in.bias is missing",
        "txt_in.weight has shape [32, 65], expected [32, 64]",
        "vector_in.in_layer.bias has dtype U8",
        "guidance_in.in_layer.bias is unexpected",
    ] {
        assert!(text.contains(part), "{part} not in: {text}");
    }

    let whole = to_bytes(&tensors, &Default::default()).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = Flux::load(&config(), &path, Kind::Float, Device::Cpu).unwrap_err().to_string();
    assert!(cut.contains("base.safetensors") && cut.contains("cut short: tensor"), "{cut}");
}
