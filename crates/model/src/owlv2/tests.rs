//! Presets, refusal of what does not fit, and what a picture's padding and a query's place change.

use super::*;
use crate::params::Outline;

fn small() -> Owlv2Config {
    serde_json::from_value(serde_json::json!({
        "text_config": {
            "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 8,
        },
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 20, "patch_size": 5, "hidden_act": "quick_gelu",
        },
        "projection_dim": 16, "model_type": "owlv2",
    }))
    .unwrap()
}

fn network() -> Owlv2 {
    Owlv2::init(&small(), 6, Kind::Float, Device::Cpu).unwrap()
}

fn pixels(batch: i64) -> Tensor {
    (Tensor::arange(batch * 3 * 400, (Kind::Float, Device::Cpu)) * 0.3).sin().view([batch, 3, 20, 20])
}

fn ids(rows: &[[i64; 5]]) -> Tensor {
    Tensor::from_slice(rows.as_flattened()).view([rows.len() as i64, 5])
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn the_preset_asks_for_the_published_names() {
    let mut shapes = Outline::default();
    Owlv2::build(&Owlv2Config::base_patch16_ensemble(), Device::Cpu, &mut shapes).unwrap();
    for (name, shape) in [
        ("owlv2.vision_model.embeddings.position_embedding.weight", vec![3601, 768]),
        ("owlv2.vision_model.embeddings.patch_embedding.weight", vec![768, 3, 16, 16]),
        ("owlv2.vision_model.encoder.layers.11.self_attn.q_proj.weight", vec![768, 768]),
        ("owlv2.vision_model.pre_layernorm.weight", vec![768]),
        ("owlv2.text_model.embeddings.token_embedding.weight", vec![49_408, 512]),
        ("owlv2.text_model.embeddings.position_embedding.weight", vec![16, 512]),
        ("owlv2.text_model.encoder.layers.11.mlp.fc1.weight", vec![2048, 512]),
        ("owlv2.text_projection.weight", vec![512, 512]),
        ("class_head.dense0.weight", vec![512, 768]),
        ("class_head.logit_scale.weight", vec![1, 768]),
        ("box_head.dense2.weight", vec![4, 768]),
        ("objectness_head.dense2.weight", vec![1, 768]),
        ("layer_norm.weight", vec![768]),
    ] {
        assert_eq!(shapes.by_name().get(name).copied(), Some(shape.as_slice()), "{name}");
    }
    assert!((154_000_000..156_000_000).contains(&shapes.parameters()), "{}", shapes.parameters());
}

#[test]
fn a_query_gives_the_same_alone_and_among_others_however_it_is_padded() {
    let network = network();
    let several =
        network.encode_queries(&ids(&[[48, 7, 9, 49, 0], [0, 0, 0, 0, 0], [48, 3, 49, 0, 0]]), None).unwrap();
    let alone = network.encode_queries(&ids(&[[48, 3, 49, 0, 0]]).narrow(1, 0, 3), None).unwrap();
    let both = network.detect(&pixels(2), &several).unwrap();
    let one = network.detect(&pixels(2).narrow(0, 1, 1), &alone).unwrap();
    assert_eq!(both.logits.size(), [2, 16, 3]);
    assert!(worst(&both.logits.narrow(0, 1, 1).narrow(2, 2, 1), &one.logits) < 1e-5);
    assert!(worst(&both.boxes.narrow(0, 1, 1), &one.boxes) < 1e-6);
    let padding = both.logits.select(2, 1);
    assert_eq!(padding.max().double_value(&[]), f64::from(f32::MIN));
    let per_picture = Owlv2Queries {
        vectors: several.vectors.unsqueeze(0).repeat([2, 1, 1]),
        present: several.present.unsqueeze(0).repeat([2, 1]),
    };
    assert_eq!(network.detect(&pixels(2), &per_picture).unwrap().logits, both.logits);
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let network = network();
    let good = network.encode_queries(&ids(&[[48, 3, 49, 0, 0]]), None).unwrap();
    let named = |outcome: Result<()>, name: &str| {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, ModelError::Input { name: found, .. } if found == name), "{error}");
    };
    let encode = |ids: &Tensor, mask: Option<&Tensor>| network.encode_queries(ids, mask).map(drop);
    named(encode(&ids(&[[48, 50, 49, 0, 0]]), None), "input_ids");
    named(encode(&ids(&[[48, -1, 49, 0, 0]]), None), "input_ids");
    named(encode(&Tensor::zeros([1, 9], (Kind::Int64, Device::Cpu)), None), "input_ids");
    named(encode(&Tensor::zeros([0, 3], (Kind::Int64, Device::Cpu)), None), "input_ids");
    named(encode(&Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)), None), "input_ids");
    named(encode(&ids(&[[48, 3, 49, 0, 0]]), Some(&Tensor::from_slice(&[1i64]))), "attention_mask");
    named(network.detect(&pixels(1).narrow(3, 0, 15), &good).map(drop), "pixels");
    named(network.read(&Tensor::zeros([1, 3, 24], (Kind::Float, Device::Cpu)), &good).map(drop), "cells");
    let wrong = Owlv2Queries { vectors: good.vectors.narrow(1, 0, 8), present: good.present };
    named(network.detect(&pixels(1), &wrong).map(drop), "queries");
    let mut config = small();
    config.projection_dim = 8;
    let error = config.validate().unwrap_err().to_string();
    assert!(error.starts_with("projection_dim"), "{error}");
}

#[test]
fn pictures_are_padded_at_the_right_and_the_bottom() {
    let picture = Tensor::full([3, 10, 20], 1.0, (Kind::Float, Device::Cpu));
    let found = prepared(&picture, 20, 0.5).unwrap();
    assert_eq!(found.size(), [1, 3, 20, 20]);
    let expected = |value: f32, channel: usize| (value - MEAN[channel]) / DEVIATION[channel];
    for channel in 0..3 {
        for (row, value) in [(0, 1.0), (9, 1.0), (10, 0.5), (19, 0.5)] {
            let at = found.double_value(&[0, channel as i64, row, 7]) as f32;
            assert!((at - expected(value, channel)).abs() < 1e-5, "{channel} {row}: {at}");
        }
    }
    assert_eq!(prepared(&picture, 8, 0.0).unwrap().size(), [1, 3, 8, 8]);
    assert_eq!(prepared(&picture.narrow(1, 0, 1), 8, 0.0).unwrap().size(), [1, 3, 8, 8]);
    assert!(prepared(&picture.narrow(0, 0, 1), 8, 0.0).is_err());
}
