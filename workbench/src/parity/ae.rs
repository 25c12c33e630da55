//! Kind `ae`: the image autoencoder, encoding to the mean and to a given draw, and decoding.

use anyhow::Context;
use crescendo_model::autoencoder::{Autoencoder, AutoencoderConfig, LatentDraw};
use crescendo_model::tch::{Kind, Tensor};

use super::compare::Checks;
use super::fixture::Fixture;

/// Most of the bytes of a picture that may differ: one on the boundary between two may fall either way.
const DIFFERING_BYTES: f64 = 1e-3;

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: AutoencoderConfig = fixture.part("config")?;
    let weights = fixture.group("model.")?;
    let network = Autoencoder::from_tensors(&config, weights, &fixture.name, Kind::Float, fixture.device)?;
    for i in (0..).take_while(|i| fixture.has(&format!("in.image{i}.u8"))) {
        let out = |part: &str| format!("out.image{i}.{part}");
        // [height, width, 3] -> [1, 3, height, width]
        let bytes = fixture.tensor(&format!("in.image{i}.u8"))?.f_permute([2, 0, 1])?.f_unsqueeze(0)?;
        let pixels =
            bytes.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
        checks.compare(&out("pixels"), &pixels)?;
        checks.compare(&out("moments"), &network.moments(&pixels)?)?;
        let noise = fixture.tensor(&format!("in.image{i}.eps"))?;
        for (name, draw) in [("mean", LatentDraw::Mean), ("sample", LatentDraw::Noise(&noise))] {
            let latent = network.encode_drawn(&pixels, draw)?;
            checks.compare(&out(&format!("z_{name}")), &latent)?;
            let decoded = network.decode_unclamped(&latent)?;
            checks.compare(&out(&format!("decoded_{name}")), &decoded)?;
            let name = out(&format!("decoded_{name}_u8"));
            if fixture.has(&name) {
                let bytes = truncated(&decoded)?;
                checks.compare(&name, &bytes)?;
                let stored = fixture.tensor(&name)?;
                let differing = if stored.size() == bytes.size() {
                    stored.f_ne_tensor(&bytes)?.f_mean(Kind::Double)?.f_double_value(&[])?
                } else {
                    1.0
                };
                checks.require(&name, differing <= DIFFERING_BYTES, || {
                    format!("{:.3} % of the bytes differ", 100.0 * differing)
                });
            }
        }
    }
    if fixture.has("in.free.z") {
        checks.compare("out.free.decoded", &network.decode_unclamped(&fixture.tensor("in.free.z")?)?)?;
    }
    Ok(())
}

/// `[1, 3, height, width]` in [−1, 1] to bytes `[height, width, 3]` as published: clamped, and truncated.
fn truncated(pixels: &Tensor) -> anyhow::Result<Tensor> {
    let bytes = pixels.f_clamp(-1.0, 1.0)?.f_add_scalar(1.0)?.f_mul_scalar(127.5)?.f_to_kind(Kind::Uint8)?;
    bytes.f_squeeze_dim(0)?.f_permute([1, 2, 0]).context("turn a picture to rows of pixels")
}
