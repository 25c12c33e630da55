//! Headers as published files have them, whole and damaged.

use std::io::Write as _;

use super::*;
use crate::config::Preset;
use crate::flux::Flux;
use crate::lora::{BlockSelection, LoraAdapter};

fn header(layout: Vec<(String, Vec<i64>)>) -> Header {
    layout
        .into_iter()
        .map(|(name, shape)| (name, TensorHeader { shape, dtype: "BF16".to_owned(), bits: 16 }))
        .collect()
}

fn network(config: &FluxConfig) -> Header {
    header(Flux::layout(config).unwrap())
}

/// A file with this header and room for its tensors, of which no byte is written.
fn sparse_file(path: &std::path::Path, header: &Header) {
    let mut offset = 0;
    let entries: serde_json::Map<_, _> = header
        .iter()
        .map(|(name, tensor)| {
            let end = offset + elements(&tensor.shape) * 2;
            let entry =
                serde_json::json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end] });
            offset = end;
            (name.clone(), entry)
        })
        .collect();
    let text = serde_json::Value::Object(entries).to_string();
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(8 + text.len() as u64 + offset).unwrap();
}

#[test]
fn files_of_each_preset_are_told_by_their_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (preset, parameters) in [
        (Preset::FluxDev, Some(11_901_408_320)),
        (Preset::FluxSchnell, Some(11_891_178_560)),
        (Preset::Nano, None),
    ] {
        sparse_file(&path, &network(&preset.config()));
        for path in [path.as_path(), folder.path()] {
            let found = inspect(&header_of(&WeightFiles::open(path).unwrap()));
            assert!(found.fits, "{found:?}");
            assert_eq!(
                (found.family, found.presets.as_slice()),
                (Some(Family::Transformer), [preset.name()].as_slice())
            );
            assert_eq!(found.config, Some(preset.config()));
            assert!(parameters.is_none_or(|published| published == found.parameters), "{found:?}");
            assert_eq!(found.bytes, 2 * found.parameters);
            assert_eq!(found.dtypes["BF16"].tensors, found.tensors);
        }
    }
}

#[test]
fn one_tensor_that_is_wrong_is_named() {
    for preset in Preset::ALL {
        let whole = network(&preset.config());
        for name in
            ["img_in.weight", "double_blocks.1.img_attn.qkv.weight", "single_blocks.4.norm.key_norm.scale"]
        {
            let mut damaged = whole.clone();
            damaged.remove(name).unwrap();
            let missing = vec![format!("{name} is missing")];
            let texts = |header: &Header| {
                let found = inspect(header);
                assert!(!found.fits);
                assert_eq!(found.presets, [preset.name()]);
                found.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
            };
            assert_eq!(texts(&damaged), missing);

            damaged.insert(format!("x.{name}"), whole[name].clone());
            assert_eq!(texts(&damaged), [missing[0].clone(), format!("x.{name} is unexpected")]);

            let mut damaged = whole.clone();
            damaged.get_mut(name).unwrap().shape.push(3);
            let text = texts(&damaged);
            assert!(text.len() == 1 && text[0].starts_with(&format!("{name} has shape [")), "{text:?}");

            let mut damaged = whole.clone();
            damaged.get_mut(name).unwrap().dtype = "I64".to_owned();
            assert_eq!(texts(&damaged), [format!("{name} has dtype I64, expected {FLOAT_DTYPES}")]);
        }
    }
}

#[test]
fn explicit_sizes_are_read_from_the_shapes() {
    let configs = [
        FluxConfig { depth: 3, depth_single_blocks: 0, ..FluxConfig::nano() },
        FluxConfig { depth: 0, mlp_ratio: 3.0, guidance_embed: true, ..FluxConfig::nano() },
        FluxConfig {
            hidden_size: 48,
            num_heads: 3,
            axes_dim: vec![4, 6, 6],
            qkv_bias: false,
            ..FluxConfig::nano()
        },
    ];
    for config in configs {
        let found = inspect(&network(&config));
        assert!(found.fits && found.presets.is_empty(), "{found:?}");
        assert_eq!(found.config, Some(config));
        assert!(found.facts.contains_key("position axes"));
    }
}

#[test]
fn adapters_are_told_with_rank_and_blocks() {
    for preset in [Preset::FluxDev, Preset::Nano] {
        let config = preset.config();
        let all = BlockSelection::all(&config);
        let whole = header(LoraAdapter::layout(&config, 16, &all).unwrap());
        let found = inspect(&whole);
        assert!(found.fits, "{found:?}");
        assert_eq!(found.family, Some(Family::Lora));
        assert!(found.presets.contains(&preset.name()));
        assert_eq!((found.facts["rank"].as_str(), found.tensors), ("16", whole.len() as u64));

        let mut damaged = whole.clone();
        let name = "double_blocks.0.processor.qkv_lora2.up.weight";
        damaged.remove(name);
        let found = inspect(&damaged);
        assert_eq!(found.problems, [TensorProblem { tensor: name.to_owned(), kind: ProblemKind::Missing }]);
        damaged.retain(|name, _| name.starts_with("single_blocks.1."));
        let found = inspect(&damaged);
        assert!(found.fits, "{found:?}");
        assert_eq!(found.facts["double blocks"], format!("0 of {}", config.depth));
    }
    let other = FluxConfig { hidden_size: 96, num_heads: 3, ..FluxConfig::nano() };
    let layout = LoraAdapter::layout(&other, 4, &BlockSelection::all(&other)).unwrap();
    let found = inspect(&header(layout));
    assert!(found.fits && found.presets.is_empty(), "{found:?}");
}

#[test]
fn adapters_of_other_loaders_are_recognised() {
    use crate::lora_export::{LoraFormat, convert};
    use tch::{Device, Kind};
    let config = FluxConfig::nano();
    let all = BlockSelection::all(&config);
    let mut adapter = LoraAdapter::init(&config, 4, &all, 1, Kind::Float, Device::Cpu).unwrap();
    for (format, family) in
        [(LoraFormat::Comfyui, Family::ComfyuiLora), (LoraFormat::Diffusers, Family::DiffusersLora)]
    {
        let tensors = convert(&adapter.tensors(), "test", format, Kind::BFloat16, 1.0).unwrap();
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        let found = inspect(&header(shapes));
        assert_eq!((found.family, found.facts["rank"].as_str()), (Some(family), "4"));
        assert!(found.problems.is_empty() && !found.fits && found.obstacle.is_some(), "{found:?}");
    }
}

/// Names and shapes of a small network, `{}` standing for the number of a layer.
fn stack(fixed: &[&str], layered: &[&str]) -> Header {
    let layers = layered.iter().flat_map(|name| (0..3).map(|layer| name.replace("{}", &layer.to_string())));
    let names = fixed.iter().map(|name| (*name).to_owned()).chain(layers);
    header(names.map(|name| (name, vec![8, 8])).collect())
}

#[test]
fn encoders_are_told_by_their_names_and_their_layers_held_against_each_other() {
    let t5 = [
        "shared.weight",
        "encoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ];
    let clip = [
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.final_layer_norm.weight",
        "text_model.final_layer_norm.bias",
    ];
    let vision = [
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias",
        "layernorm.weight",
        "layernorm.bias",
    ];
    let cases = [
        (
            Family::T5,
            stack(
                &t5,
                &[
                    "encoder.block.{}.layer.0.SelfAttention.q.weight",
                    "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
                ],
            ),
        ),
        (Family::Clip, stack(&clip, &["text_model.encoder.layers.{}.self_attn.q_proj.weight"])),
        (Family::Dino, stack(&vision, &["encoder.layer.{}.attention.output.dense.weight"])),
        (Family::Dinov2, stack(&vision, &["encoder.layer.{}.layer_scale1.lambda1"])),
    ];
    for (family, whole) in cases {
        let found = inspect(&whole);
        assert_eq!(found.family, Some(family));
        assert!(found.fits, "{found:?}");
        let layered = whole.keys().rfind(|name| name.contains(".1.")).unwrap().clone();
        let fixed = whole.keys().find(|name| name.contains("norm.weight")).unwrap().clone();
        for name in [&layered, &fixed] {
            let mut damaged = whole.clone();
            damaged.remove(name);
            let found = inspect(&damaged);
            let expected = TensorProblem { tensor: name.clone(), kind: ProblemKind::Missing };
            assert_eq!((found.family, found.problems), (Some(family), vec![expected]));
        }
        let mut damaged = whole.clone();
        damaged.get_mut(&layered).unwrap().shape = vec![8, 9];
        let text = inspect(&damaged).problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text, [format!("{layered} has shape [8, 9], expected [8, 8]")]);
    }
}

#[test]
fn strangers_fit_nothing() {
    let strange = header(vec![("a.b".to_owned(), vec![2]), ("lm_head.weight".to_owned(), vec![3, 4])]);
    for header in [strange, Header::new()] {
        let found = inspect(&header);
        assert!(!found.fits && found.family.is_none() && found.problems.is_empty());
    }
    let mut absurd = network(&FluxConfig::nano());
    absurd.insert("double_blocks.9999999999.x".to_owned(), absurd["img_in.bias"].clone());
    assert!(!inspect(&absurd).fits);
}
