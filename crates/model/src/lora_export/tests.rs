//! What other loaders would make of a converted adapter.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::flux::{Flux, FluxInputs, RopeTable};
use crate::randomness::NormalStream;
use crate::unope::{Grid, Layout, Offsets};
use crate::{BlockSelection, FluxConfig, LoraAdapter};

fn config() -> FluxConfig {
    tch::set_num_threads(1);
    FluxConfig {
        hidden_size: 32,
        num_heads: 1,
        mlp_ratio: 2.0,
        depth: 2,
        depth_single_blocks: 3,
        ..FluxConfig::nano()
    }
}

fn noisy(tensors: TensorMap, amount: f64) -> TensorMap {
    let draw = |name: &str, shape: &[i64]| NormalStream::for_weight(6, name).tensor(shape).unwrap();
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            let noise = draw(&name, &tensor.size()) * amount;
            (name, tensor + noise)
        })
        .collect()
}

fn base() -> TensorMap {
    noisy(Flux::init(&config(), 1, Kind::Float, Device::Cpu).unwrap().tensors(), 0.05)
}

fn adapter() -> TensorMap {
    let all = BlockSelection::all(&config());
    noisy(LoraAdapter::init(&config(), 5, &all, 3, Kind::Float, Device::Cpu).unwrap().tensors(), 0.2)
}

fn run(base: TensorMap, adapter: Option<TensorMap>) -> Tensor {
    let config = config();
    let flux = Flux::from_tensors(&config, base, "base", Kind::Float, Device::Cpu).unwrap();
    let adapter = adapter
        .map(|map| LoraAdapter::from_tensors(&config, map, "adapter", Kind::Float, Device::Cpu).unwrap());
    let draw = |name: &str, shape: &[i64]| NormalStream::for_weight(8, name).tensor(shape).unwrap();
    let layout = Layout {
        text_tokens: 3,
        target: Grid { rows: 2, columns: 2 },
        references: vec![Grid { rows: 1, columns: 2 }],
        offsets: Offsets::PUBLISHED,
    };
    let inputs = FluxInputs {
        img: &draw("img", &[1, 4, 48]),
        refs: &[draw("ref", &[1, 2, 48])],
        txt: &draw("txt", &[1, 3, 64]),
        vec: &draw("vec", &[1, 64]),
        timesteps: &Tensor::from_slice(&[0.6f32]),
        guidance: None,
        rope: &RopeTable::from_layout(&layout, &config, Device::Cpu).unwrap(),
    };
    flux.forward(&inputs, adapter.as_ref()).unwrap()
}

/// Where a converted pair's product goes: name of the base's matrix and its first row.
fn comfyui_target(key: &str, base: &TensorMap) -> (String, i64) {
    let flat = key.strip_prefix("lora_unet_").unwrap();
    let name = base
        .keys()
        .find(|name| name.strip_suffix(".weight").is_some_and(|module| module.replace('.', "_") == flat));
    (name.unwrap_or_else(|| panic!("{key} is unknown")).clone(), 0)
}

fn diffusers_target(key: &str) -> (String, i64) {
    let hidden = config().hidden_size;
    let (sort, rest) = key.strip_prefix("transformer.").unwrap().split_once('.').unwrap();
    let (index, module) = rest.split_once('.').unwrap();
    let (name, part) = match (sort, module) {
        ("transformer_blocks", "attn.to_q") => ("img_attn.qkv", 0),
        ("transformer_blocks", "attn.to_k") => ("img_attn.qkv", 1),
        ("transformer_blocks", "attn.to_v") => ("img_attn.qkv", 2),
        ("transformer_blocks", "attn.add_q_proj") => ("txt_attn.qkv", 0),
        ("transformer_blocks", "attn.add_k_proj") => ("txt_attn.qkv", 1),
        ("transformer_blocks", "attn.add_v_proj") => ("txt_attn.qkv", 2),
        ("transformer_blocks", "attn.to_out.0") => ("img_attn.proj", 0),
        ("transformer_blocks", "attn.to_add_out") => ("txt_attn.proj", 0),
        ("single_transformer_blocks", "attn.to_q") => ("linear1", 0),
        ("single_transformer_blocks", "attn.to_k") => ("linear1", 1),
        ("single_transformer_blocks", "attn.to_v") => ("linear1", 2),
        ("single_transformer_blocks", "proj_out") => ("linear2", 0),
        _ => panic!("{key} is unknown"),
    };
    let blocks = if sort == "transformer_blocks" { "double_blocks" } else { "single_blocks" };
    (format!("{blocks}.{index}.{name}.weight"), part * hidden)
}

/// Adds every pair's product to the rows that it is for, as a loader that fuses adapters does.
fn fused(converted: &TensorMap, format: LoraFormat) -> TensorMap {
    let mut weights = base();
    let (down_end, up_end) = match format {
        LoraFormat::Comfyui => (".lora_down.weight", ".lora_up.weight"),
        _ => (".lora_A.weight", ".lora_B.weight"),
    };
    let mut read = 0;
    for (name, down) in converted {
        let Some(key) = name.strip_suffix(down_end) else { continue };
        let up = &converted[&format!("{key}{up_end}")];
        let (target, row) = match format {
            LoraFormat::Comfyui => comfyui_target(key, &weights),
            _ => diffusers_target(key),
        };
        let mut update = up.matmul(down);
        read += 2;
        if format == LoraFormat::Comfyui {
            let alpha = converted[&format!("{key}.alpha")].double_value(&[]);
            update *= alpha / down.size()[0] as f64;
            read += 1;
            // ComfyUI adds whole matrices.
            assert_eq!(update.size(), weights[&target].size(), "{key}");
        }
        let weight = weights.get_mut(&target).unwrap();
        *weight = weight.copy();
        let mut rows = weight.narrow(0, row, update.size()[0]);
        drop(rows.f_add_(&update).unwrap());
    }
    assert_eq!(read, converted.len());
    weights
}

fn assert_close(ours: &Tensor, expected: &Tensor) {
    let error = (ours - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(error <= 1e-5 * scale, "{error:e} of {scale:e}");
}

#[test]
fn other_loaders_get_the_same_forward_pass() {
    let with_adapter = run(base(), Some(adapter()));
    let without = run(base(), None);
    assert!((&with_adapter - &without).abs().max().double_value(&[]) > 0.01, "the adapter does nothing");
    for format in [LoraFormat::Comfyui, LoraFormat::Diffusers] {
        let converted = convert(&adapter(), "test", format, Kind::Float, 1.0).unwrap();
        assert_close(&run(fused(&converted, format), None), &with_adapter);
    }
}

#[test]
fn a_weight_scales_the_effect_once() {
    let mut scaled =
        LoraAdapter::from_tensors(&config(), adapter(), "test", Kind::Float, Device::Cpu).unwrap();
    scaled.scale_effect(0.7).unwrap();
    let expected = run(base(), Some(scaled.tensors()));
    let published = convert(&adapter(), "test", LoraFormat::Published, Kind::Float, 0.7).unwrap();
    assert_close(&run(base(), Some(published)), &expected);
    for format in [LoraFormat::Comfyui, LoraFormat::Diffusers] {
        let converted = convert(&adapter(), "test", format, Kind::Float, 0.7).unwrap();
        assert_close(&run(fused(&converted, format), None), &expected);
    }
    // 0.7 of the update itself, and not 0.49.
    let name = "single_blocks.1.processor.qkv_lora";
    let product =
        |map: &TensorMap| map[&format!("{name}.up.weight")].matmul(&map[&format!("{name}.down.weight")]);
    assert_close(&product(&scaled.tensors()), &(product(&adapter()) * 0.7));
}

#[test]
fn a_published_adapter_survives_conversion_as_it_is() {
    let mut same = convert(&adapter(), "test", LoraFormat::Published, Kind::Float, 1.0).unwrap();
    assert_eq!(same, adapter());
    same = convert(&adapter(), "test", LoraFormat::Published, Kind::BFloat16, 1.0).unwrap();
    for (name, tensor) in adapter() {
        assert_eq!(same[&name], tensor.to_kind(Kind::BFloat16), "{name}");
    }
}

/// A loader that knows the published names and shapes, and nothing else: it is written from the published key list.
/// Returns what is missing, what is unexpected and what is misshapen.
fn strict(
    keys: &BTreeMap<String, Vec<i64>>,
    (double, single): (i64, i64),
    (hidden, mlp): (i64, i64),
) -> (i64, Vec<String>) {
    let rank = keys.iter().find(|(key, _)| key.ends_with(".down.weight")).map_or(0, |(_, shape)| shape[0]);
    let mut wanted: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for block in 0..double {
        for stream in [1, 2] {
            let at = |pair: &str| format!("double_blocks.{block}.processor.{pair}_lora{stream}");
            wanted.insert(at("qkv") + ".down.weight", vec![rank, hidden]);
            wanted.insert(at("qkv") + ".up.weight", vec![3 * hidden, rank]);
            wanted.insert(at("proj") + ".down.weight", vec![rank, hidden]);
            wanted.insert(at("proj") + ".up.weight", vec![hidden, rank]);
        }
    }
    for block in 0..single {
        let at = |pair: &str| format!("single_blocks.{block}.processor.{pair}_lora");
        wanted.insert(at("qkv") + ".down.weight", vec![rank, hidden]);
        wanted.insert(at("qkv") + ".up.weight", vec![3 * hidden, rank]);
        wanted.insert(at("proj") + ".down.weight", vec![rank, hidden + mlp]);
        wanted.insert(at("proj") + ".up.weight", vec![hidden, rank]);
    }
    let names: BTreeSet<&String> = keys.keys().chain(wanted.keys()).collect();
    let wrong = names.into_iter().filter(|name| keys.get(*name) != wanted.get(*name));
    (rank, wrong.cloned().collect())
}

#[test]
fn a_strict_loader_finds_no_missing_and_no_unexpected_key() {
    let full = FluxConfig::flux_dev();
    let layout = LoraAdapter::layout(&full, 512, &BlockSelection::all(&full)).unwrap();
    let keys: BTreeMap<String, Vec<i64>> = layout.into_iter().collect();
    assert_eq!(keys.len(), 304);
    assert_eq!(keys.values().map(|shape| shape.iter().product::<i64>()).sum::<i64>(), 956_301_312);
    assert_eq!(strict(&keys, (19, 38), (3072, 12_288)), (512, Vec::new()));

    // A file that was written, read by the same loader.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dit_lora.safetensors");
    let mut adapter =
        LoraAdapter::from_tensors(&config(), adapter(), "test", Kind::Float, Device::Cpu).unwrap();
    adapter.save(&path).unwrap();
    let file = crate::weights::TensorFile::open(&path).unwrap();
    let mut keys: BTreeMap<String, Vec<i64>> =
        file.names().into_iter().map(|name| (name.clone(), file.info(&name).unwrap().0)).collect();
    assert_eq!(strict(&keys, (2, 3), (32, 64)), (5, Vec::new()));
    let shape = keys.remove("double_blocks.1.processor.proj_lora2.up.weight").unwrap();
    keys.insert("module.double_blocks.1.processor.proj_lora2.up.weight".to_owned(), shape);
    assert_eq!(strict(&keys, (2, 3), (32, 64)).1.len(), 2);
}

#[test]
fn what_is_no_adapter_is_listed_by_name() {
    let mut tensors = adapter();
    let up = tensors.remove("double_blocks.0.processor.qkv_lora1.up.weight").unwrap();
    tensors.insert("double_blocks.0.processor.qkv_lora3.up.weight".to_owned(), up);
    tensors.insert(
        "single_blocks.0.processor.qkv_lora.up.weight".to_owned(),
        Tensor::zeros([96, 4], (Kind::Float, Device::Cpu)),
    );
    for format in LoraFormat::ALL {
        let error = convert(&tensors, "x.safetensors", format, Kind::Float, 1.0).unwrap_err().to_string();
        for part in [
            "x.safetensors",
            "double_blocks.0.processor.qkv_lora1.up.weight is missing",
            "double_blocks.0.processor.qkv_lora3.up.weight is unexpected",
            "single_blocks.0.processor.qkv_lora.up.weight has shape [96, 4], expected [96, 5]",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(convert(&TensorMap::new(), "x", format, Kind::Float, 1.0).is_err());
        assert!(convert(&adapter(), "x", format, Kind::Float, f64::NAN).is_err());
    }
}
