//! Forms as headers have them. What the real libraries write is held in `tests/peers`.

use super::*;

fn header(tensors: &[(&str, &[i64])]) -> Header {
    let tensor = |shape: &[i64]| TensorHeader { shape: shape.to_vec(), dtype: "F32".to_owned(), bits: 32 };
    tensors.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect()
}

fn texts(view: &View) -> Vec<String> {
    view.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn queries_keys_and_values_are_joined_and_halves_swapped() {
    let own = header(&[
        ("transformer.x_embedder.weight", &[6, 4]),
        ("transformer.transformer_blocks.2.attn.to_q.weight", &[6, 6]),
        ("transformer.transformer_blocks.2.attn.to_k.weight", &[6, 6]),
        ("transformer.transformer_blocks.2.attn.to_v.weight", &[6, 6]),
        ("transformer.norm_out.linear.bias", &[12]),
        ("vae.encoder.conv_in.weight", &[2, 2]),
    ]);
    let view = View::of(&own, Network::Transformer);
    assert_eq!(view.form.as_deref(), Some("diffusers' names, under transformer.*"));
    assert!(view.problems.is_empty(), "{:?}", view.problems);
    let names: Vec<&str> = view.recipes.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["double_blocks.2.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.bias", "img_in.weight"]
    );
    assert_eq!(view.header()["double_blocks.2.img_attn.qkv.weight"].shape, [18, 6]);
    let swapped = &view.recipes["final_layer.adaLN_modulation.1.bias"];
    assert_eq!((swapped.pieces[0].part, swapped.pieces[1].part), ((1, 2), (0, 2)));
    assert_eq!(swapped.shape, [12]);
}

#[test]
fn a_missing_piece_is_named_as_the_file_spells_it() {
    let own = header(&[
        ("x_embedder.weight", &[6, 4]),
        ("transformer_blocks.0.attn.to_q.weight", &[6, 6]),
        ("transformer_blocks.0.attn.to_v.weight", &[6, 5]),
    ]);
    let view = View::of(&own, Network::Transformer);
    assert_eq!(
        texts(&view),
        [
            "transformer_blocks.0.attn.to_k.weight is missing",
            "transformer_blocks.0.attn.to_v.weight has shape [6, 5], expected [6, 6]"
        ]
    );
}

#[test]
fn scales_go_to_their_weights_and_a_weight_without_one_is_named() {
    let mut own = header(&[
        ("model.diffusion_model.img_in.weight", &[6, 4]),
        ("model.diffusion_model.img_in.scale_weight", &[]),
        ("model.diffusion_model.img_in.scale_input", &[]),
        ("model.diffusion_model.img_in.bias", &[6]),
        ("model.diffusion_model.scaled_fp8", &[2]),
    ]);
    let eight = |header: &mut Header, name: &str| header.get_mut(name).unwrap().dtype = "F8_E4M3".to_owned();
    eight(&mut own, "model.diffusion_model.img_in.weight");
    let view = View::of(&own, Network::Transformer);
    assert_eq!(view.form.as_deref(), Some("under model.diffusion_model.*, one-byte weights with scales"));
    assert_eq!(view.recipes.keys().collect::<Vec<_>>(), ["img_in.bias", "img_in.weight"]);
    let scale = view.recipes["img_in.weight"].pieces[0].scale.as_deref();
    assert_eq!(scale, Some("model.diffusion_model.img_in.scale_weight"));

    eight(&mut own, "model.diffusion_model.img_in.bias");
    own.extend(header(&[("model.diffusion_model.txt_in.weight", &[6, 4])]));
    eight(&mut own, "model.diffusion_model.txt_in.weight");
    own.get_mut("model.diffusion_model.img_in.scale_weight").unwrap().shape = vec![3, 2];
    let found = texts(&View::of(&own, Network::Transformer));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("img_in.scale_weight has shape [3, 2]"), "{found:?}");
    assert!(
        found[1].starts_with("model.diffusion_model.txt_in.") && found[1].contains("missing"),
        "{found:?}"
    );
}

#[test]
fn numbers_that_no_network_has_do_no_harm() {
    let mut own = header(&[
        ("decoder.up_blocks.999999999.resnets.0.conv1.weight", &[1, 1, 3, 3]),
        ("decoder.up_blocks.0.resnets.999999999.conv1.weight", &[1, 1, 3, 3]),
        ("decoder.conv_in.weight", &[i64::MAX, i64::MAX]),
    ]);
    own.extend(header(&[("x_embedder.weight", &[]), ("transformer_blocks.0.attn.to_q.weight", &[])]));
    own.extend(header(&[("transformer_blocks.0.attn.to_k.weight", &[i64::MAX])]));
    own.extend(header(&[("transformer_blocks.0.attn.to_v.weight", &[i64::MAX])]));
    for network in [Network::Transformer, Network::Autoencoder, Network::Clip, Network::Dino, Network::Dinov2]
    {
        let _ = View::of(&own, network).header();
    }
}
