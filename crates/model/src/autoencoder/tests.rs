//! The preset, draws, tiles against the whole, and refusal of what does not fit.

use super::*;
use crate::params::Outline;

fn small() -> AutoencoderConfig {
    AutoencoderConfig { ch: 32, ch_mult: vec![1, 2], num_res_blocks: 1, ..AutoencoderConfig::flux() }
}

fn network() -> Autoencoder {
    Autoencoder::init(&small(), 8, Kind::Float, Device::Cpu).unwrap()
}

/// Noise has the same statistics in every tile.
fn noise(shape: &[i64]) -> Tensor {
    NormalStream::for_word("picture").tensor(shape).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn rms(x: &Tensor) -> f64 {
    x.square().mean(Kind::Float).sqrt().double_value(&[])
}

#[test]
fn the_preset_has_the_published_names_and_number_of_weights() {
    let mut shapes = Outline::default();
    let network =
        Autoencoder::build(&AutoencoderConfig::flux(), Kind::Float, Device::Cpu, &mut shapes).unwrap();
    assert_eq!(shapes.parameters(), 83_819_683);
    assert_eq!((network.downscale(), network.latent_channels()), (8, 16));
    for (name, shape) in [
        ("encoder.down.0.block.0.norm1.weight", vec![128]),
        ("encoder.down.2.block.0.nin_shortcut.weight", vec![512, 256, 1, 1]),
        ("encoder.down.2.downsample.conv.weight", vec![512, 512, 3, 3]),
        ("encoder.conv_out.weight", vec![32, 512, 3, 3]),
        ("decoder.mid.attn_1.q.weight", vec![512, 512, 1, 1]),
        ("decoder.up.0.block.2.conv2.weight", vec![128, 128, 3, 3]),
        ("decoder.up.1.block.0.nin_shortcut.bias", vec![256]),
        ("decoder.up.3.upsample.conv.bias", vec![512]),
        ("decoder.conv_in.weight", vec![512, 16, 3, 3]),
        ("decoder.conv_out.weight", vec![3, 128, 3, 3]),
    ] {
        assert_eq!(shapes.by_name().get(name).copied(), Some(shape.as_slice()), "{name}");
    }
    for absent in ["encoder.down.3.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"] {
        assert!(!shapes.by_name().contains_key(absent), "{absent}");
    }
}

#[test]
fn a_draw_is_the_mean_plus_deviations_and_a_stream_repeats() {
    let network = network();
    let pixels = noise(&[1, 3, 16, 24]);
    let mean = network.encode(&pixels).unwrap();
    let zero = network.encode_drawn(&pixels, LatentDraw::Noise(&mean.zeros_like())).unwrap();
    assert_eq!(zero, mean);
    let drawn = |word: &str| {
        let mut stream = NormalStream::for_word(word);
        network.encode_drawn(&pixels, LatentDraw::Stream(&mut stream)).unwrap()
    };
    assert_eq!(drawn("a"), drawn("a"));
    assert_ne!(drawn("a"), drawn("b"));
    let deviation =
        (network.moments(&pixels).unwrap().narrow(1, 16, 16) * 0.5).exp() * network.config().scale_factor;
    let given = NormalStream::for_word("a").tensor(&mean.size()).unwrap();
    assert!(worst(&drawn("a"), &(&mean + deviation * given)) < 1e-6);
}

#[test]
fn pictures_up_to_the_limit_are_done_in_one_piece() {
    let mut network = network();
    let (pixels, latents) = (noise(&[1, 3, 32, 48]), noise(&[1, 16, 16, 24]));
    let whole = (network.encode(&pixels).unwrap(), network.decode(&latents).unwrap());
    network.set_tiling(Tiling { limit_px: 48, tile_px: 16, overlap_px: 8 }).unwrap();
    assert_eq!((network.encode(&pixels).unwrap(), network.decode(&latents).unwrap()), whole);
    network.set_tiling(Tiling { limit_px: 47, tile_px: 16, overlap_px: 8 }).unwrap();
    assert_ne!(network.decode(&latents).unwrap(), whole.1);
}

#[test]
fn a_tiled_picture_is_close_to_the_whole_one_and_has_no_seams() {
    let mut network = network();
    let (pixels, latents) = (noise(&[1, 3, 144, 176]), noise(&[1, 16, 72, 88]));
    let whole = (network.encode(&pixels).unwrap(), network.decode_unclamped(&latents).unwrap());
    network.set_tiling(Tiling { limit_px: 96, tile_px: 96, overlap_px: 32 }).unwrap();
    let tiled = (network.encode(&pixels).unwrap(), network.decode_unclamped(&latents).unwrap());
    for (what, whole, tiled) in [("encoded", &whole.0, &tiled.0), ("decoded", &whole.1, &tiled.1)] {
        assert_eq!(tiled.size(), whole.size());
        let difference = tiled - whole;
        let relative = rms(&difference) / rms(&(whole - whole.mean(Kind::Float)));
        assert!(relative < 0.1, "{what}: {relative}");
        // A seam is a step of the difference from one row, or column, to the next.
        let scale = rms(&(whole - whole.mean(Kind::Float)));
        for axis in [2, 3] {
            let length = difference.size()[axis as usize] - 1;
            let step = difference.narrow(axis, 1, length) - difference.narrow(axis, 0, length);
            let other = 5 - axis;
            let by_line = step.square().mean_dim([0i64, 1, other].as_slice(), false, Kind::Float).sqrt();
            let largest = by_line.max().double_value(&[]) / scale;
            assert!(largest < 0.15, "{what}: a step of {largest} along axis {axis}");
        }
    }
}

#[test]
fn sizes_are_exact_for_every_multiple_of_16() {
    let mut network = network();
    network.set_tiling(Tiling { limit_px: 32, tile_px: 32, overlap_px: 8 }).unwrap();
    for (height, width) in [(16, 48), (48, 16), (64, 80), (112, 32)] {
        let latents =
            network.encode(&Tensor::zeros([1, 3, height, width], (Kind::Float, Device::Cpu))).unwrap();
        assert_eq!(latents.size(), [1, 16, height / 2, width / 2]);
        let pixels = network.decode(&latents).unwrap();
        assert_eq!(pixels.size(), [1, 3, height, width]);
        assert!(pixels.abs().max().double_value(&[]) <= 1.0);
    }
}

#[test]
fn bfloat16_weights_give_nearly_the_same_as_float32() {
    let half = Autoencoder::init(&small(), 8, Kind::BFloat16, Device::Cpu).unwrap();
    let pixels = noise(&[1, 3, 16, 16]);
    let (a, b) = (half.encode(&pixels).unwrap(), network().encode(&pixels).unwrap());
    assert_eq!(a.kind(), Kind::Float);
    assert!(rms(&(&a - &b)) < 0.05 * rms(&b), "{}", rms(&(&a - &b)) / rms(&b));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let network = network();
    let named = |outcome: Result<Tensor>, name: &str| {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, ModelError::Input { name: found, .. } if found == name), "{error}");
    };
    for shape in [&[1, 3, 15, 16][..], &[1, 4, 16, 16], &[3, 16, 16], &[1, 3, 0, 16], &[0, 3, 16, 16]] {
        named(network.encode(&Tensor::zeros(shape, (Kind::Float, Device::Cpu))), "pixels");
    }
    named(network.decode(&noise(&[1, 15, 8, 8])), "latents");
    let pixels = noise(&[1, 3, 16, 16]);
    named(network.encode_drawn(&pixels, LatentDraw::Noise(&noise(&[1, 16, 8, 7]))), "noise");

    for (config, field) in [
        (AutoencoderConfig { ch: 48, ..small() }, "ch"),
        (AutoencoderConfig { ch_mult: Vec::new(), ..small() }, "ch_mult"),
        (AutoencoderConfig { ch_mult: vec![1, 0], ..small() }, "ch_mult"),
        (AutoencoderConfig { scale_factor: 0.0, ..small() }, "scale_factor"),
        (AutoencoderConfig { shift_factor: f64::NAN, ..small() }, "shift_factor"),
    ] {
        let error = Autoencoder::init(&config, 1, Kind::Float, Device::Cpu).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}
