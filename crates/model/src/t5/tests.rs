//! The encoder on small random networks.

use std::collections::BTreeMap;

use super::*;
use crate::params::Outline;
use crate::params::testing::Recorder;

const CPU: Device = Device::Cpu;

fn config() -> T5Config {
    T5Config {
        vocab_size: 20,
        d_model: 16,
        d_kv: 3,
        d_ff: 24,
        num_layers: 2,
        num_heads: 4,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 20,
        feed_forward_proj: FeedForward::GatedGelu,
        layer_norm_epsilon: 1e-6,
    }
}

fn tensors() -> TensorMap {
    let mut recorder = Recorder::new(SeededInit::new(7, Kind::Float, CPU));
    T5Encoder::build(&config(), &mut recorder, Kind::Float, CPU).unwrap();
    recorder.tensors
}

fn load(tensors: TensorMap) -> Result<T5Encoder> {
    T5Encoder::from_tensors(&config(), tensors, "here", Kind::Float, CPU)
}

fn ids(rows: &[[i64; 6]]) -> Tensor {
    Tensor::from_slice(rows.as_flattened()).view([rows.len() as i64, 6])
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn buckets_are_exact_near_by_and_saturate_far_away() {
    let offsets = Tensor::from_slice(&[0i64, -1, 1, -7, 7, -8, 8, -127, 127, -128, 128, -4000, 4000]);
    let found = Vec::<i64>::try_from(relative_buckets(&offsets, 32, 128).unwrap()).unwrap();
    assert_eq!(found, [0, 1, 17, 7, 23, 8, 24, 15, 31, 15, 31, 15, 31]);
    assert!(relative_buckets(&offsets, 3, 128).is_err());
    assert!(relative_buckets(&offsets, 32, 8).is_err());
}

#[test]
fn padding_is_attended_to_and_position_matters() {
    let network = T5Encoder::init(&config(), 7, Kind::Float, CPU).unwrap();
    let encode = |row| network.forward(&ids(&[row])).unwrap();
    let padded = encode([5, 6, 1, 0, 0, 0]);
    assert_eq!(padded.size(), [1, 6, 16]);
    let other = encode([5, 6, 1, 9, 0, 0]);
    assert!(worst(&padded.narrow(1, 0, 3), &other.narrow(1, 0, 3)) > 1e-4);
    // The same token at two places differs by the position bias alone.
    let same = encode([5, 6, 5, 6, 5, 6]);
    assert!(worst(&same.select(1, 0), &same.select(1, 2)) > 1e-4);
    let both = network.forward(&ids(&[[5, 6, 1, 0, 0, 0], [5, 6, 1, 9, 0, 0]])).unwrap();
    assert!(worst(&both, &Tensor::cat(&[padded, other], 0)) < 1e-5);
}

#[test]
fn the_token_table_has_either_name_and_a_decoder_is_left_out() {
    let expected = load(tensors()).unwrap().forward(&ids(&[[1, 2, 3, 4, 5, 6]])).unwrap();
    let mut both = tensors();
    both.insert(EMBEDDED.to_owned(), both[SHARED].shallow_clone());
    both.insert("decoder.block.0.layer.0.layer_norm.weight".to_owned(), Tensor::from_slice(&[1f32]));
    both.insert("lm_head.weight".to_owned(), Tensor::from_slice(&[1f32]));
    let mut renamed = tensors();
    let table = renamed.remove(SHARED).unwrap();
    renamed.insert(EMBEDDED.to_owned(), table);
    for form in [both, renamed] {
        assert_eq!(load(form).unwrap().forward(&ids(&[[1, 2, 3, 4, 5, 6]])).unwrap(), expected);
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let mut broken = tensors();
    broken.remove(SHARED);
    broken.remove("encoder.block.1.layer.1.DenseReluDense.wi_1.weight");
    broken.insert("encoder.final_layer_norm.weight".to_owned(), Tensor::from_slice(&[1f32]));
    broken.insert("encoder.block.2.layer.0.layer_norm.weight".to_owned(), Tensor::from_slice(&[1f32]));
    let error = load(broken).unwrap_err().to_string();
    for part in [
        "here does not fit",
        "shared.weight is missing",
        "wi_1.weight is missing",
        "final_layer_norm.weight has shape [1], expected [16]",
        "encoder.block.2.layer.0.layer_norm.weight is unexpected",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_file_loads_in_bfloat16_near_its_float_results() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    crate::weights::save(&path, &tensors(), &BTreeMap::new()).unwrap();
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config()).unwrap()).unwrap();
    assert_eq!(T5Config::beside(folder.path()).unwrap(), config());
    let run = |kind| {
        let network = T5Encoder::load(&config(), folder.path(), kind, CPU).unwrap();
        network.forward(&ids(&[[1, 2, 3, 4, 5, 6]])).unwrap()
    };
    let (float, half) = (run(Kind::Float), run(Kind::BFloat16));
    assert_eq!(half.kind(), Kind::BFloat16);
    let off = (&half.to_kind(Kind::Float) - &float).norm().double_value(&[]) / float.norm().double_value(&[]);
    assert!(off > 0.0 && off < 0.05, "{off}");
}

#[test]
fn ids_that_do_not_fit_are_errors() {
    let network = T5Encoder::init(&config(), 7, Kind::Float, CPU).unwrap();
    for bad in [
        ids(&[[1, 2, 3, 4, 5, 20]]),
        ids(&[[1, 2, 3, 4, 5, -1]]),
        ids(&[[1, 2, 3, 4, 5, 6]]).to_kind(Kind::Float),
        Tensor::zeros([6], (Kind::Int64, CPU)),
        Tensor::zeros([1, 0], (Kind::Int64, CPU)),
    ] {
        let error = network.forward(&bad).unwrap_err();
        assert!(matches!(&error, ModelError::Input { name, .. } if name == "ids"), "{error}");
    }
}

#[test]
fn xxl_has_the_published_size_and_bad_fields_are_named() {
    let mut count = Outline::default();
    T5Encoder::build(&T5Config::xxl(), &mut count, Kind::BFloat16, CPU).unwrap();
    assert_eq!((count.shapes.len(), count.parameters()), (219, 4_762_310_656));
    for (expected, config) in [
        ("d_kv", T5Config { d_kv: 0, ..config() }),
        ("num_layers", T5Config { num_layers: 1 << 40, ..config() }),
        ("relative_attention_num_buckets", T5Config { relative_attention_num_buckets: 3, ..config() }),
        ("relative_attention_max_distance", T5Config { relative_attention_max_distance: 2, ..config() }),
        ("layer_norm_epsilon", T5Config { layer_norm_epsilon: f64::NAN, ..config() }),
    ] {
        match T5Encoder::init(&config, 1, Kind::Float, CPU) {
            Err(ModelError::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn other_feed_forward_parts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let mut value = serde_json::to_value(config()).unwrap();
    value["feed_forward_proj"] = "relu".into();
    std::fs::write(&path, value.to_string()).unwrap();
    let error = T5Config::read(&path).unwrap_err().to_string();
    assert!(error.contains("relu") && error.contains("gated-gelu"), "{error}");
}
