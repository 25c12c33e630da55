//! Files that the real libraries wrote (`tests/peers/write_files.py`, `write_trainers.py`), held to what their networks give.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::clip::{Clip, ClipConfig, ClipText, ClipTextConfig};
use crate::dino::{Dino, DinoConfig};
use crate::dinov2::DinoV2;
use crate::flux::{Flux, FluxInputs, RopeTable};
use crate::inspect::{Family, inspect};
use crate::t5::{T5Config, T5Encoder};
use crate::weight_files::WeightFiles;
use crate::weights::{TensorFile, TensorMap, save};
use crate::{FluxConfig, LoraAdapter};

const CPU: Device = Device::Cpu;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/files").join(name)
}

fn expected(name: &str) -> TensorMap {
    TensorFile::open(&case(name).join("expected.safetensors")).unwrap().all().unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let off = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    assert!(off <= 2e-5 * scale, "{what}: off by {off} of {scale}");
}

fn told(path: &Path, family: Family, form: Option<&str>) {
    let found = inspect(&WeightFiles::open(path).unwrap().header());
    assert_eq!((found.family, found.form.as_deref()), (Some(family), form), "{}", path.display());
    assert!(found.fits, "{}: {:?} {:?}", path.display(), found.problems, found.obstacle);
}

fn flux_config() -> FluxConfig {
    FluxConfig {
        in_channels: 4,
        vec_in_dim: 10,
        context_in_dim: 12,
        hidden_size: 16,
        mlp_ratio: 4.0,
        num_heads: 2,
        depth: 1,
        depth_single_blocks: 2,
        axes_dim: vec![2, 2, 4],
        theta: 10_000.0,
        qkv_bias: true,
        guidance_embed: true,
    }
}

fn velocity(adapter: Option<&LoraAdapter>) -> Tensor {
    let given = expected("flux-diffusers");
    let flux = Flux::load(&flux_config(), &case("flux-diffusers"), Kind::Float, CPU).unwrap();
    let ids = Tensor::cat(&[&given["txt_ids"], &given["img_ids"]], 0).unsqueeze(0);
    let inputs = FluxInputs {
        img: &given["hidden_states"],
        refs: &[],
        txt: &given["encoder_hidden_states"],
        vec: &given["pooled_projections"],
        timesteps: &given["timestep"],
        guidance: Some(&given["guidance"]),
        rope: &RopeTable::from_ids(&ids, &flux_config()).unwrap(),
    };
    flux.forward(&inputs, adapter).unwrap()
}

#[test]
fn flux_as_diffusers_saves_it_gives_what_it_gives_there() {
    let folder = case("flux-diffusers");
    Flux::check_files(&flux_config(), &folder).unwrap();
    assert_close("velocity", &velocity(None), &expected("flux-diffusers")["out"]);
    told(&folder, Family::Transformer, Some("diffusers' names"));
    let other = FluxConfig { depth: 2, ..flux_config() };
    let error = Flux::check_files(&other, &folder).unwrap_err().to_string();
    assert!(error.contains("double_blocks.1.") && error.contains("diffusers' names"), "{error}");
}

#[test]
fn adapters_of_peft_and_diffusers_give_what_they_give_there() {
    for name in ["lora-peft", "lora-diffusers", "lora-diffusers-alpha"] {
        let folder = case(name);
        // The expected outputs lie beside, so the folder holds two files, one of them with a name that is known.
        LoraAdapter::check_files(&flux_config(), &folder).unwrap();
        let adapter = LoraAdapter::load(&flux_config(), &folder, Kind::Float, CPU).unwrap();
        assert_close(name, &velocity(Some(&adapter)), &expected(name)["out"]);
        told(&folder, Family::Lora, Some("names of diffusers and PEFT"));
    }
}

/// With the base and the inputs of `tests/peers/write_trainers.py`, whose network is the published one.
fn published_velocity(adapter: Option<&LoraAdapter>) -> Tensor {
    let given = expected("flux-published");
    let base = case("flux-published").join("flux1-dev.safetensors");
    let flux = Flux::load(&flux_config(), &base, Kind::Float, CPU).unwrap();
    let ids = Tensor::cat(&[&given["txt_ids"], &given["img_ids"]], 1);
    let inputs = FluxInputs {
        img: &given["img"],
        refs: &[],
        txt: &given["txt"],
        vec: &given["y"],
        timesteps: &given["timesteps"],
        guidance: Some(&given["guidance"]),
        rope: &RopeTable::from_ids(&ids, &flux_config()).unwrap(),
    };
    flux.forward(&inputs, adapter).unwrap()
}

#[test]
fn adapters_of_kohya_and_xlabs_give_what_they_give_there() {
    assert_close("base", &published_velocity(None), &expected("flux-published")["out"]);
    for (name, file, form) in [
        ("lora-kohya", "kohya.safetensors", Some("names of kohya and ComfyUI")),
        // Without alpha, and with a block that was not chosen to be trained.
        ("lora-xlabs", "lora.safetensors", None),
        ("lora-xlabs-double", "lora.safetensors", None),
    ] {
        let path = case(name).join(file);
        LoraAdapter::check_files(&flux_config(), &path).unwrap();
        let adapter = LoraAdapter::load(&flux_config(), &path, Kind::Float, CPU).unwrap();
        assert_close(name, &published_velocity(Some(&adapter)), &expected(name)["out"]);
        told(&path, Family::Lora, form);
    }
}

#[test]
fn what_kohya_trains_by_default_is_refused_by_the_names_that_are_not_covered() {
    let path = case("lora-kohya-all").join("kohya.safetensors");
    let refusals = [
        LoraAdapter::check_files(&flux_config(), &path).unwrap_err().to_string(),
        LoraAdapter::load(&flux_config(), &path, Kind::Float, CPU).unwrap_err().to_string(),
    ];
    for refusal in refusals {
        for module in ["img_mlp_0", "txt_mod_lin"] {
            let name = format!("lora_unet_double_blocks_0_{module}.lora_down.weight is unexpected");
            assert!(refusal.contains(&name), "{name}: {refusal}");
        }
        // What is covered is not complained of.
        assert!(!refusal.contains("img_attn_qkv") && refusal.contains("kohya"), "{refusal}");
    }
}

#[test]
fn the_autoencoder_as_diffusers_saves_it_gives_what_it_gives_there() {
    let config = AutoencoderConfig {
        ch: 32,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 2,
        // Those of the configuration, not of the network.
        scale_factor: 1.0,
        shift_factor: 0.0,
        ..AutoencoderConfig::flux()
    };
    let folder = case("vae-diffusers");
    Autoencoder::check_files(&config, &folder).unwrap();
    let network = Autoencoder::load(&config, &folder, Kind::Float, CPU).unwrap();
    let expected = expected("vae-diffusers");
    assert_close("moments", &network.moments(&expected["pixels"]).unwrap(), &expected["moments"]);
    assert_close("decoded", &network.decode_unclamped(&expected["latents"]).unwrap(), &expected["decoded"]);
    told(&folder.join("vae"), Family::Autoencoder, Some("diffusers' names"));

    // Older files spell the attention otherwise.
    let files = WeightFiles::open(&folder.join("vae")).unwrap();
    let old = |name: &str| {
        let parts = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        parts.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    };
    let tensors: TensorMap = files.names().map(|name| (old(name), files.tensor(name).unwrap())).collect();
    let old = tempfile::tempdir().unwrap();
    save(&old.path().join("diffusion_pytorch_model.safetensors"), &tensors, &Default::default()).unwrap();
    let again = Autoencoder::load(&config, old.path(), Kind::Float, CPU).unwrap();
    assert_eq!(again.moments(&expected["pixels"]).unwrap(), network.moments(&expected["pixels"]).unwrap());
}

#[test]
fn clip_as_transformers_saves_it_gives_what_it_gives_there() {
    let folder = case("clip-text");
    let config = ClipTextConfig::beside(&folder).unwrap();
    ClipText::check_files(&config, &folder).unwrap();
    let tower = ClipText::load(&config, &folder, Kind::Float, CPU).unwrap();
    let text = expected("clip-text");
    let found = tower.forward(&text["ids"]).unwrap();
    assert_close("states", &found.last_hidden_state, &text["last_hidden_state"]);
    assert_close("pooled", &found.pooled, &text["pooled"]);
    told(&folder, Family::Clip, Some("without text_model."));

    let folder = case("clip-both");
    let config = ClipConfig::beside(&folder).unwrap();
    Clip::check_files(&config, &folder).unwrap();
    let clip = Clip::load(&config, &folder, Kind::Float, CPU).unwrap();
    let both = expected("clip-both");
    assert_close("texts", &clip.text_embeds(&both["ids"]).unwrap(), &both["text_embeds"]);
    assert_close("pictures", &clip.image_embeds(&both["pixels"]).unwrap(), &both["image_embeds"]);
    told(&folder, Family::Clip, None);

    let vision = inspect(&WeightFiles::open(&case("clip-vision")).unwrap().header());
    assert_eq!(vision.family, Some(Family::Clip));
    assert!(!vision.fits && vision.obstacle.is_some_and(|reason| reason.contains("alone")));
}

#[test]
fn a_whole_t5_gives_what_its_encoder_gives_there() {
    let folder = case("t5-whole");
    let config = T5Config::beside(&folder).unwrap();
    T5Encoder::check_files(&config, &folder).unwrap();
    let network = T5Encoder::load(&config, &folder, Kind::Float, CPU).unwrap();
    let expected = expected("t5-whole");
    assert_close("states", &network.forward(&expected["ids"]).unwrap(), &expected["last_hidden_state"]);
    told(&folder, Family::T5, None);
}

#[test]
fn dino_of_transformers_gives_what_it_gives_there() {
    let config = DinoConfig {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        mlp_ratio: 4,
        image_size: 28,
        patch_size: 14,
        ..DinoConfig::dino_vits16()
    };
    let folder = case("dino-transformers");
    Dino::check_files(&config, &folder).unwrap();
    let network = Dino::load(&config, &folder, Kind::Float, CPU).unwrap();
    let expected = expected("dino-transformers");
    let found = network.forward(&expected["pixels"]).unwrap();
    assert_close("class token", &found, &expected["last_hidden_state"].select(1, 0));
    told(&folder, Family::Dino, Some("names of transformers' ViTModel"));
}

#[test]
fn every_dinov2_gives_what_it_gives_there_at_another_size() {
    for name in ["dinov2", "dinov2-swiglu", "dinov2-registers", "dinov2-classifier"] {
        let folder = case(name);
        DinoV2::check_files(&folder).unwrap();
        let network = DinoV2::load(&folder, CPU).unwrap();
        let expected = expected(name);
        let found = network.forward(&expected["pixels"]).unwrap().last_hidden_state;
        assert_close(name, &found, &expected["last_hidden_state"]);
        told(&folder, Family::Dinov2, None);
    }
}

/// torch.hub's names for what transformers calls otherwise: queries, keys and values in one matrix.
fn hub(files: &WeightFiles) -> TensorMap {
    let mut tensors = TensorMap::new();
    for name in files.names() {
        let tensor = files.tensor(name).unwrap();
        let renamed = [
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.mask_token", "mask_token"),
            ("embeddings.register_tokens", "register_tokens"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("encoder.layer.", "blocks."),
            ("attention.output.dense", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("mlp.weights_in", "mlp.w12"),
            ("mlp.weights_out", "mlp.w3"),
            ("layernorm.", "norm."),
        ];
        let hub = renamed.iter().fold(name.to_owned(), |name, (theirs, hub)| name.replace(theirs, hub));
        let Some((block, rest)) = hub.split_once("attention.attention.query") else {
            if !hub.contains("attention.attention.") {
                tensors.insert(hub, tensor);
            }
            continue;
        };
        let part = |part: &str| files.tensor(&name.replace("query", part)).unwrap();
        tensors
            .insert(format!("{block}attn.qkv{rest}"), Tensor::cat(&[tensor, part("key"), part("value")], 0));
    }
    tensors
}

#[test]
fn dinov2_under_the_names_of_torch_hub_is_the_same() {
    for name in ["dinov2", "dinov2-swiglu", "dinov2-registers"] {
        let folder = tempfile::tempdir().unwrap();
        let tensors = hub(&WeightFiles::open(&case(name)).unwrap());
        save(&folder.path().join("model.safetensors"), &tensors, &Default::default()).unwrap();
        // Heads leave no trace in a file, and these are narrower than 64 channels.
        std::fs::copy(case(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let network = DinoV2::load(folder.path(), CPU).unwrap();
        let expected = expected(name);
        let found = network.forward(&expected["pixels"]).unwrap().last_hidden_state;
        assert_close(name, &found, &expected["last_hidden_state"]);
        told(folder.path(), Family::Dinov2, Some("names of torch.hub"));
    }
}
