//! Kind `metrics`: CLIP-I, CLIP-T and DINO similarities from pixels to score.

use std::collections::BTreeMap;

use crescendo_model::clip::{Clip, ClipConfig, ClipTextConfig, ClipVisionConfig};
use crescendo_model::dinov2::{DinoV2, DinoV2Config};
use crescendo_model::pictures::processor::ImageProcessor;
use crescendo_model::score::cosines;
use crescendo_model::tch::{Kind, Tensor};
use image::RgbImage;
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;
use super::picture_tensors as pictures;

#[derive(Deserialize)]
struct Config {
    clip: Towers,
    dino: DinoV2Config,
    clip_size: u32,
    dino_size: u32,
    dino_crop: u32,
}

#[derive(Deserialize)]
struct Towers {
    text: ClipTextConfig,
    vision: ClipVisionConfig,
    proj: i64,
}

/// How far a similarity may be off if the pictures were resized here.
#[derive(Deserialize)]
struct OwnResampler {
    #[serde(rename = "tol_when_using_own_resampler")]
    max_abs: Option<f64>,
}

struct Similarities {
    clip_i: Tensor,
    clip_t: Tensor,
    dino: Tensor,
    clip_image: Tensor,
    dino_image: Tensor,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: Config = fixture.part("config")?;
    let clip_config = ClipConfig {
        text_config: config.clip.text,
        vision_config: config.clip.vision,
        projection_dim: config.clip.proj,
    };
    let clip =
        Clip::from_tensors(&clip_config, fixture.group("clip.")?, "clip.*", Kind::Float, fixture.device)?;
    let dino = DinoV2::from_tensors(config.dino, fixture.group("dino.")?, "dino.*", fixture.device)?;
    let images = (0..)
        .map(|i| format!("in.image{i}"))
        .take_while(|name| fixture.has(name))
        .map(|name| pictures::rgb(fixture, &name))
        .collect::<anyhow::Result<Vec<RgbImage>>>()?;
    let images: Vec<&RgbImage> = images.iter().collect();
    let clip_pixels = ImageProcessor::clip(config.clip_size).process(&images)?;
    let dino_pixels = ImageProcessor::dino(config.dino_size, config.dino_crop).process(&images)?;
    checks.compare("out.clip_pixels", &clip_pixels)?;
    checks.compare("out.dino_pixels", &dino_pixels)?;

    let text = clip.text_features(&fixture.tensor("in.input_ids")?)?;
    checks.compare("out.clip_text_features", &text)?;
    let similarities = |clip_pixels: &Tensor, dino_pixels: &Tensor| -> anyhow::Result<Similarities> {
        let clip_image = clip.image_features(clip_pixels)?;
        let dino_image = dino.forward(dino_pixels)?.pooled;
        Ok(Similarities {
            clip_i: cosines(&clip_image, &clip_image)?,
            clip_t: cosines(&clip_image, &text)?,
            dino: cosines(&dino_image, &dino_image)?,
            clip_image,
            dino_image,
        })
    };
    // The tight tolerances are for the stored pixels, the wide ones for pixels that were resized here.
    let stored = similarities(&fixture.tensor("out.clip_pixels")?, &fixture.tensor("out.dino_pixels")?)?;
    checks.compare("out.clip_image_features", &stored.clip_image)?;
    checks.compare("out.dino_features", &stored.dino_image)?;
    checks.compare("out.clip_i", &stored.clip_i)?;
    checks.compare("out.clip_t", &stored.clip_t)?;
    checks.compare("out.dino", &stored.dino)?;

    let own = similarities(&clip_pixels, &dino_pixels)?;
    let tolerances: BTreeMap<String, OwnResampler> = fixture.part("tensors")?;
    for (name, actual) in [("out.clip_i", &own.clip_i), ("out.clip_t", &own.clip_t), ("out.dino", &own.dino)]
    {
        let Some(limit) = tolerances.get(name).and_then(|tolerance| tolerance.max_abs) else { continue };
        let error = actual.f_sub(&fixture.tensor(name)?)?.f_abs()?.f_max()?.f_double_value(&[])?;
        checks
            .require(&format!("{name}.own_pixels"), error <= limit, || format!("{error:.1e} > {limit:.1e}"));
    }
    Ok(())
}
