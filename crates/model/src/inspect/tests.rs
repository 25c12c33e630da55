//! Headers as published files have them, whole and damaged.

use std::io::Write as _;

use super::*;
use crate::config::Preset;
use crate::flux::Flux;
use crate::lora::{BlockSelection, LoraAdapter};
use crate::weight_files::WeightFiles;

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
            let found = inspect(&WeightFiles::open(path).unwrap().header());
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
fn adapters_of_other_loaders_fit_as_the_published_ones_do() {
    use crate::lora_export::{LoraFormat, convert};
    use tch::{Device, Kind};
    let config = FluxConfig::nano();
    let all = BlockSelection::all(&config);
    let mut adapter = LoraAdapter::init(&config, 4, &all, 1, Kind::Float, Device::Cpu).unwrap();
    for (format, form) in [(LoraFormat::Comfyui, "kohya"), (LoraFormat::Diffusers, "PEFT")] {
        let tensors = convert(&adapter.tensors(), "test", format, Kind::BFloat16, 1.0).unwrap();
        let shapes: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        let whole = header(shapes);
        let found = inspect(&whole);
        assert_eq!((found.family, found.facts["rank"].as_str()), (Some(Family::Lora), "4"));
        assert!(found.fits && found.form.as_ref().is_some_and(|own| own.contains(form)), "{found:?}");
        assert_eq!(found.presets, ["nano"]);

        let mut damaged = whole.clone();
        let name =
            whole.keys().find(|name| name.ends_with("down.weight") || name.contains("lora_A")).unwrap();
        damaged.remove(name);
        let found = inspect(&damaged);
        assert!(!found.fits && found.problems.len() == 1, "{found:?}");
    }
}

/// What a network would take.
fn taken(build: impl FnOnce(&mut crate::params::Outline)) -> Header {
    let mut outline = crate::params::Outline::default();
    build(&mut outline);
    header(outline.shapes)
}

#[test]
fn encoders_are_held_to_what_their_own_loaders_would_take() {
    use crate::autoencoder::{Autoencoder, AutoencoderConfig};
    use crate::clip::{Clip, ClipConfig, ClipText, ClipTextConfig};
    use crate::dino::{Dino, DinoConfig};
    use crate::dinov2::{DinoV2, DinoV2Config};
    use crate::owlv2::{Owlv2, Owlv2Config};
    use crate::t5::{T5Config, T5Encoder};
    use tch::{Device::Cpu, Kind::Float};
    let t5 = taken(|out| drop(T5Encoder::build(&T5Config::xxl(), out, Float, Cpu).unwrap()));
    let clip = taken(|out| drop(Clip::build(&ClipConfig::vit_b32(), out, Float, Cpu).unwrap()));
    let text = taken(|out| drop(ClipText::build(out, "text_model", &ClipTextConfig::large(), Cpu).unwrap()));
    let owlv2 = taken(|out| drop(Owlv2::build(&Owlv2Config::base_patch16_ensemble(), Cpu, out).unwrap()));
    let autoencoder =
        taken(|out| drop(Autoencoder::build(&AutoencoderConfig::flux(), Float, Cpu, out).unwrap()));
    let dino = taken(|out| drop(Dino::build(&DinoConfig::dino_vits16(), Cpu, out).unwrap()));
    let giant = DinoV2Config {
        hidden_size: 1536,
        num_hidden_layers: 40,
        num_attention_heads: 24,
        num_register_tokens: 4,
        use_swiglu_ffn: true,
        ..DinoV2Config::dinov2_base()
    };
    let dinov2 = taken(|out| drop(DinoV2::build(&giant, out).unwrap()));
    for (family, whole) in [
        (Family::T5, t5),
        (Family::Clip, clip),
        (Family::Clip, text),
        (Family::Owlv2, owlv2),
        (Family::Autoencoder, autoencoder),
        (Family::Dino, dino),
        (Family::Dinov2, dinov2),
    ] {
        let found = inspect(&whole);
        assert_eq!(found.family, Some(family));
        assert!(found.fits && found.form.is_none(), "{family:?}: {:?}", found.problems);
        let last = |part: &str| whole.keys().rfind(|name| name.contains(part)).unwrap().clone();
        for name in [last("norm"), last(".1.")] {
            let mut damaged = whole.clone();
            damaged.remove(&name);
            let found = inspect(&damaged);
            let expected = TensorProblem { tensor: name.clone(), kind: ProblemKind::Missing };
            assert_eq!((found.family, found.problems), (Some(family), vec![expected]));
            let mut damaged = whole.clone();
            damaged.get_mut(&name).unwrap().shape.push(9);
            let text: Vec<String> = inspect(&damaged).problems.iter().map(ToString::to_string).collect();
            assert!(text.len() == 1 && text[0].starts_with(&format!("{name} has shape [")), "{text:?}");
        }
        let mut more = whole.clone();
        more.insert("stranger.weight".to_owned(), whole.values().next().unwrap().clone());
        assert_eq!(inspect(&more).problems.len(), 1);
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
