//! The towers on small random networks.

use tch::{Device, Kind, Tensor};

use super::*;
use crate::Activation;
use crate::params::Outline;
use crate::params::testing::Recorder;

const CPU: Device = Device::Cpu;

fn config() -> ClipConfig {
    ClipConfig {
        text_config: ClipTextConfig {
            vocab_size: 30,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            max_position_embeddings: 8,
            eos_token_id: 2,
            ..ClipTextConfig::default()
        },
        vision_config: ClipVisionConfig {
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            ..ClipVisionConfig::default()
        },
        projection_dim: 6,
    }
}

fn tensors() -> TensorMap {
    let mut recorder = Recorder::new(SeededInit::new(5, Kind::Float, CPU));
    Clip::build(&config(), &mut recorder, Kind::Float, CPU).unwrap();
    recorder.tensors
}

fn clip() -> Clip {
    Clip::init(&config(), 5, Kind::Float, CPU).unwrap()
}

fn ids(rows: &[[i64; 5]]) -> Tensor {
    Tensor::from_slice(rows.as_flattened()).view([rows.len() as i64, 5])
}

fn pixels(batch: i64) -> Tensor {
    (Tensor::arange(batch * 3 * 64, (Kind::Float, CPU)) * 0.3).sin().view([batch, 3, 8, 8])
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn the_pooled_token_follows_the_rule() {
    let states = Tensor::arange(2 * 5, (Kind::Float, CPU)).view([2, 5, 1]);
    let rows = ids(&[[28, 4, 29, 3, 29], [28, 4, 9, 3, 9]]);
    let at = |rule| Vec::<f64>::try_from(pool(&states, &rows, rule).unwrap().view([-1])).unwrap();
    assert_eq!(at(Pooling::HighestId), [2.0, 5.0]);
    assert_eq!(at(Pooling::FirstEndOfText(9)), [0.0, 7.0]);
    assert_eq!(at(Pooling::FirstEndOfText(3)), [3.0, 8.0]);
    assert!(pool(&states, &rows.narrow(1, 0, 4), Pooling::HighestId).is_err());
    assert_eq!(ClipTextConfig::large().pooling(), Pooling::HighestId);
    assert_eq!(ClipTextConfig::default().pooling(), Pooling::FirstEndOfText(49_407));
}

#[test]
fn what_follows_the_end_of_text_does_not_matter() {
    let clip = clip();
    let features = |row| clip.text_features(&ids(&[row])).unwrap();
    let padded = features([28, 4, 29, 0, 0]);
    assert_eq!(padded.size(), [1, 6]);
    assert!(worst(&padded, &features([28, 4, 29, 7, 3])) < 1e-6);
    assert!(worst(&padded, &features([28, 5, 29, 0, 0])) > 1e-4);
    assert!(worst(&padded, &features([4, 28, 29, 0, 0])) > 1e-4);
}

#[test]
fn embeds_have_length_one_and_logits_are_scaled_cosines() {
    let mut weights = tensors();
    weights.insert("logit_scale".to_owned(), Tensor::from(2f32.ln()));
    let clip = Clip::from_tensors(&config(), weights, "here", Kind::Float, CPU).unwrap();
    let image = clip.image_embeds(&pixels(2)).unwrap();
    let text = clip.text_embeds(&ids(&[[28, 4, 29, 0, 0], [28, 5, 29, 0, 0], [28, 6, 7, 29, 0]])).unwrap();
    let logits = clip.logits_per_image(&image, &text).unwrap();
    assert_eq!(logits.size(), [2, 3]);
    assert!(worst(&logits, &(image.matmul(&text.tr()) * 2.0)) < 1e-6);
    for embeds in [&image, &text] {
        let lengths = embeds.norm_scalaropt_dim(2.0, [-1i64].as_slice(), false);
        assert!(worst(&lengths, &lengths.ones_like()) < 1e-6);
    }
    assert!(clip.logits_per_image(&image.narrow(1, 0, 5), &text).is_err());
    assert!(worst(&image.narrow(0, 0, 1), &image.narrow(0, 1, 1)) > 1e-4);
}

#[test]
fn one_file_serves_both_towers_and_the_text_tower_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut both = tensors();
    for tower in ["text_model", "vision_model"] {
        let name = format!("{tower}.embeddings.position_ids");
        both.insert(name, Tensor::arange(8, (Kind::Int64, CPU)).view([1, 8]));
    }
    crate::weights::save(&path, &both, &Default::default()).unwrap();
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config()).unwrap()).unwrap();
    assert_eq!(ClipConfig::beside(&path).unwrap(), config());
    let text_config = ClipTextConfig::beside(folder.path()).unwrap();
    assert_eq!(text_config, config().text_config);
    let rows = ids(&[[28, 4, 29, 0, 0]]);
    let clip = Clip::load(&config(), folder.path(), Kind::Float, CPU).unwrap();
    let expected = clip.text().forward(&rows).unwrap().pooled;
    let text = ClipText::load(&text_config, &path, Kind::Float, CPU).unwrap();
    assert_eq!(text.forward(&rows).unwrap().pooled, expected);
    let half = ClipText::load(&text_config, &path, Kind::BFloat16, CPU).unwrap();
    let pooled = half.forward(&rows).unwrap().pooled;
    assert_eq!(pooled.kind(), Kind::BFloat16);
    let off = worst(&pooled.to_kind(Kind::Float), &expected);
    assert!(off > 0.0 && off < 0.1, "{off}");
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let mut broken = tensors();
    broken.remove("vision_model.pre_layrnorm.bias");
    broken.insert("text_projection.weight".to_owned(), Tensor::zeros([6, 15], (Kind::Float, CPU)));
    broken.insert("text_model.stray".to_owned(), Tensor::from_slice(&[1f32]));
    let error = Clip::from_tensors(&config(), broken, "here", Kind::Float, CPU).unwrap_err().to_string();
    for part in [
        "vision_model.pre_layrnorm.bias is missing",
        "text_projection.weight has shape [6, 15], expected [6, 16]",
        "text_model.stray is unexpected",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let clip = clip();
    assert!(clip.text().forward(&ids(&[[28, 4, 30, 0, 0]])).is_err());
    assert!(clip.text().forward(&Tensor::zeros([1, 9], (Kind::Int64, CPU))).is_err());
    for bad in [pixels(1).narrow(2, 0, 4), pixels(1).narrow(1, 0, 2), pixels(1).squeeze()] {
        let error = clip.image_features(&bad).unwrap_err().to_string();
        assert!(error.contains("pixels") && error.contains("[batch, 3, 8, 8]"), "{error}");
    }
}

#[test]
fn presets_have_the_published_sizes() {
    let mut count = Outline::default();
    ClipText::build(&mut count, "text_model", &ClipTextConfig::large(), CPU).unwrap();
    assert_eq!((count.shapes.len(), count.parameters()), (196, 123_060_480));
    let mut count = Outline::default();
    Clip::build(&ClipConfig::vit_b32(), &mut count, Kind::Float, CPU).unwrap();
    assert_eq!((count.shapes.len(), count.parameters()), (398, 151_277_313));
}

#[test]
fn bad_fields_are_named() {
    let text = |text_config| ClipConfig { text_config, ..config() };
    let vision = |vision_config| ClipConfig { vision_config, ..config() };
    let (t, v) = (config().text_config, config().vision_config);
    for (expected, config) in [
        ("vocab_size", text(ClipTextConfig { vocab_size: 0, ..t.clone() })),
        ("num_attention_heads", text(ClipTextConfig { num_attention_heads: 3, ..t.clone() })),
        ("layer_norm_eps", text(ClipTextConfig { layer_norm_eps: 0.0, ..t })),
        ("patch_size", vision(ClipVisionConfig { patch_size: 9, ..v.clone() })),
        ("num_hidden_layers", vision(ClipVisionConfig { num_hidden_layers: -1, ..v })),
        ("projection_dim", ClipConfig { projection_dim: 0, ..config() }),
    ] {
        match Clip::init(&config, 1, Kind::Float, CPU) {
            Err(ModelError::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let act: ClipTextConfig = serde_json::from_str(r#"{"hidden_act": "gelu", "dropout": 0.1}"#).unwrap();
    assert_eq!(act, ClipTextConfig { hidden_act: Activation::Gelu, ..ClipTextConfig::default() });
}
