//! Adapters in other namings, written by our own export or by hand. What the real libraries write is held in `tests/peers`.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::lora_export::{LoraFormat, convert};
use crate::randomness::NormalStream;
use crate::weight_files::WeightFiles;
use crate::weights::{TensorMap, save};
use crate::{BlockSelection, FluxConfig, LoraAdapter};

use super::*;

fn config() -> FluxConfig {
    FluxConfig {
        hidden_size: 24,
        num_heads: 2,
        axes_dim: vec![4, 4, 4],
        depth: 1,
        depth_single_blocks: 2,
        ..FluxConfig::nano()
    }
}

fn draw(name: &str, shape: &[i64]) -> Tensor {
    NormalStream::for_weight(7, name).tensor(shape).unwrap()
}

fn adapter() -> TensorMap {
    let all = BlockSelection::all(&config());
    let shapes = LoraAdapter::layout(&config(), 3, &all).unwrap();
    shapes.iter().map(|(name, shape)| (name.clone(), draw(name, shape))).collect()
}

fn load(path: &Path) -> Result<TensorMap> {
    LoraAdapter::check_files(&config(), path)?;
    Ok(LoraAdapter::load(&config(), path, Kind::Float, Device::Cpu)?.tensors())
}

/// What the adapter of these tensors adds to the base's matrix.
fn update(tensors: &TensorMap, module: &str) -> Tensor {
    tensors[&format!("{module}.up.weight")].matmul(&tensors[&format!("{module}.down.weight")])
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

struct File {
    folder: tempfile::TempDir,
    tensors: TensorMap,
}

impl File {
    fn new(tensors: TensorMap) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), tensors }
    }

    fn load(&self) -> Result<TensorMap> {
        self.load_with(&BTreeMap::new())
    }

    fn load_with(&self, strings: &BTreeMap<String, String>) -> Result<TensorMap> {
        let path = self.folder.path().join("adapter_model.safetensors");
        save(&path, &self.tensors, strings).unwrap();
        load(&path)
    }
}

#[test]
fn what_is_exported_is_read_back_with_the_same_update() {
    for format in LoraFormat::ALL {
        let file = File::new(convert(&adapter(), "test", format, Kind::Float, 1.0).unwrap());
        assert_eq!(file.load().unwrap(), adapter(), "{format}");
        let half = File::new(convert(&adapter(), "test", format, Kind::Float, 0.5).unwrap()).load().unwrap();
        let module = "single_blocks.1.processor.qkv_lora";
        assert!(worst(&(update(&half, module) * 2.0), &update(&adapter(), module)) < 1e-5, "{format}");
        // A folder is as good as its file, and a converted file converts again.
        let found =
            LoraAdapter::load(&config(), file.folder.path(), Kind::Float, Device::Cpu).unwrap().tensors();
        let files = WeightFiles::open_adapter(file.folder.path()).unwrap();
        let again = convert(&published_tensors(&files).unwrap(), "x", format, Kind::Float, 1.0).unwrap();
        assert_eq!(found, adapter(), "{format}");
        assert_eq!(again, file.tensors, "{format}");
    }
}

/// Queries, keys and values each with their own `down`, of different ranks, values not at all, as PEFT trains them.
fn peft() -> TensorMap {
    let shapes: [(&str, [i64; 2]); 6] = [
        ("transformer_blocks.0.attn.to_q.lora_A.weight", [2, 24]),
        ("transformer_blocks.0.attn.to_q.lora_B.weight", [24, 2]),
        ("transformer_blocks.0.attn.to_k.lora_A.weight", [4, 24]),
        ("transformer_blocks.0.attn.to_k.lora_B.weight", [24, 4]),
        ("single_transformer_blocks.1.proj_out.lora_A.weight", [1, 120]),
        ("single_transformer_blocks.1.proj_out.lora_B.weight", [24, 1]),
    ];
    shapes.iter().map(|(name, shape)| (format!("base_model.model.{name}"), draw(name, shape))).collect()
}

#[test]
fn parts_of_different_ranks_become_one_pair_and_alpha_scales_it() {
    let mut file = File::new(peft());
    let of = |name: &str| peft()[&format!("base_model.model.{name}.weight")].shallow_clone();
    let product = |module: &str| of(&format!("{module}.lora_B")).matmul(&of(&format!("{module}.lora_A")));
    let (q, k) = (product("transformer_blocks.0.attn.to_q"), product("transformer_blocks.0.attn.to_k"));
    let proj = product("single_transformer_blocks.1.proj_out");
    let check = |found: TensorMap, scale: [f64; 3]| {
        // Every pair has the rank of the widest: 2 + 4.
        assert!(found.iter().all(|(name, tensor)| name.contains(".up.") || tensor.size()[0] == 6));
        let qkv = update(&found, "double_blocks.0.processor.qkv_lora1");
        assert!(worst(&qkv.narrow(0, 0, 24), &(&q * scale[0])) < 1e-5);
        assert!(worst(&qkv.narrow(0, 24, 24), &(&k * scale[1])) < 1e-5);
        assert_eq!(qkv.narrow(0, 48, 24).abs().max().double_value(&[]), 0.0);
        assert!(worst(&update(&found, "single_blocks.1.processor.proj_lora"), &(&proj * scale[2])) < 1e-5);
        assert_eq!(update(&found, "double_blocks.0.processor.proj_lora2").abs().max().double_value(&[]), 0.0);
        assert!(!found.contains_key("single_blocks.0.processor.proj_lora.up.weight"));
    };
    check(file.load().unwrap(), [1.0; 3]);

    let described =
        |text: &str| std::fs::write(file.folder.path().join("adapter_config.json"), text).unwrap();
    described(r#"{"r": 2, "lora_alpha": 8, "rank_pattern": {"to_k": 4}}"#);
    check(file.load().unwrap(), [4.0, 2.0, 8.0]);
    described(r#"{"r": 2, "lora_alpha": 8, "use_rslora": true}"#);
    check(file.load().unwrap(), [8.0 / 2f64.sqrt(), 4.0, 8.0]);
    for refused in [r#"{"use_dora": true}"#, r#"{"alpha_pattern": {"to_q": 2}}"#] {
        described(refused);
        let error = load(&file.folder.path().join("adapter_model.safetensors")).err();
        let error =
            LoraAdapter::load(&config(), file.folder.path(), Kind::Float, Device::Cpu).err().or(error);
        assert!(error.unwrap().to_string().contains("not read"));
    }
    std::fs::remove_file(file.folder.path().join("adapter_config.json")).unwrap();
    let strings = BTreeMap::from([(
        "lora_adapter_metadata".to_owned(),
        r#"{"transformer.r": 2, "transformer.lora_alpha": 4, "text_encoder.lora_alpha": 9}"#.to_owned(),
    )]);
    check(file.load_with(&strings).unwrap(), [2.0, 1.0, 4.0]);
    file.tensors
        .insert("base_model.model.transformer_blocks.0.attn.to_q.alpha".to_owned(), Tensor::from(6.0f32));
    check(file.load().unwrap(), [3.0, 1.0, 1.0]);
}

#[test]
fn what_an_adapter_here_cannot_hold_is_refused_by_name() {
    let kohya = || convert(&adapter(), "test", LoraFormat::Comfyui, Kind::Float, 1.0).unwrap();
    let reason = |tensors: TensorMap| File::new(tensors).load().unwrap_err().to_string();
    let mut mlp = kohya();
    for (half, shape) in [("lora_down", [3, 24]), ("lora_up", [96, 3])] {
        mlp.insert(format!("lora_unet_double_blocks_0_img_mlp_0.{half}.weight"), draw(half, &shape));
    }
    let text = reason(mlp);
    assert!(text.contains("img_mlp_0.lora_down.weight is unexpected") && text.contains("kohya"), "{text}");
    let mut rows = kohya();
    let up = rows.get_mut("lora_unet_single_blocks_0_linear1.lora_up.weight").unwrap();
    *up = up.ones_like();
    let text = reason(rows);
    assert!(text.contains("single_blocks.0") && text.contains("MLP"), "{text}");
    let mut half = kohya();
    half.remove("lora_unet_single_blocks_1_linear2.lora_up.weight");
    let text = reason(half);
    assert!(text.contains("single_blocks_1_linear2: its up half is missing"), "{text}");
    let mut encoder = kohya();
    encoder.insert("lora_te1_text_model_encoder.lora_down.weight".to_owned(), draw("x", &[3, 4]));
    assert!(reason(encoder).contains("lora_te1_text_model_encoder"));
    let mut infinite = kohya();
    infinite.insert("lora_unet_single_blocks_1_linear2.alpha".to_owned(), Tensor::from(f32::INFINITY));
    assert!(reason(infinite).contains("linear2.alpha"));
    let mut wide = kohya();
    wide.insert("lora_unet_single_blocks_1_linear2.lora_down.weight".to_owned(), draw("y", &[3, 50]));
    let text = reason(wide);
    assert!(text.contains("1_linear2.lora_down.weight has shape [3, 50], expected [3, 120]"), "{text}");
}

#[test]
fn what_a_file_makes_grow_is_bounded() {
    // A rank of one tensor and a width of another: together more than any memory.
    let wide = 1 << 14;
    let shapes: [(&str, [i64; 2]); 4] = [
        ("transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight", [wide, 1]),
        ("transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight", [1, wide]),
        ("transformer.transformer_blocks.1.attn.to_out.0.lora_A.weight", [1, wide]),
        ("transformer.transformer_blocks.1.attn.to_out.0.lora_B.weight", [wide, 1]),
    ];
    let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let tensors = shapes.iter().map(|(name, shape)| ((*name).to_owned(), zeros(*shape))).collect();
    let text = File::new(tensors).load().unwrap_err().to_string();
    assert!(text.contains("to_out.0.lora_A.weight has shape [16384, 1], expected [16384, "), "{text}");
    // Of one width; many blocks of rank 1 beside one of a high rank.
    let mut tensors = TensorMap::new();
    for block in 0..400 {
        let rank = if block == 0 { 512 } else { 1 };
        let module = format!("transformer.transformer_blocks.{block}.attn.to_out.0");
        tensors.insert(format!("{module}.lora_A.weight"), zeros([rank, 8]));
        tensors.insert(format!("{module}.lora_B.weight"), zeros([8, rank]));
    }
    let file = File::new(tensors);
    let path = file.folder.path().join("adapter_model.safetensors");
    save(&path, &file.tensors, &BTreeMap::new()).unwrap();
    let error = published_tensors(&WeightFiles::open_adapter(&path).unwrap()).unwrap_err().to_string();
    assert!(error.contains("too far apart"), "{error}");
}

#[test]
fn modules_are_told_in_both_spellings() {
    for (module, expected) in [
        ("double_blocks_3_img_attn_qkv", Some((Site::DoubleImageQkv, 3, Rows::All))),
        ("double_blocks.3.txt_attn.proj", Some((Site::DoubleTextProj, 3, Rows::All))),
        ("transformer_blocks_2_attn_add_k_proj", Some((Site::DoubleTextQkv, 2, Rows::Third(1)))),
        ("transformer_blocks.2.attn.to_out.0", Some((Site::DoubleImageProj, 2, Rows::All))),
        ("single_transformer_blocks.2.attn.to_v", Some((Site::SingleQkv, 2, Rows::Third(2)))),
        ("single_transformer_blocks_11_proj_out", Some((Site::SingleProj, 11, Rows::All))),
        ("transformer_blocks.2.attn.to_out", None),
        ("transformer_blocks.2.ff.net.0.proj", None),
        ("double_blocks.x.img_attn.qkv", None),
    ] {
        assert_eq!(site_of(module), expected, "{module}");
    }
}
