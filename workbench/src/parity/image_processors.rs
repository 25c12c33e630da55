//! Kind `image_preproc_clip_dino`: what CLIP and DINO look at, by both resamplers.

use std::collections::BTreeMap;

use crescendo_model::pictures::processor::{ImageProcessor, Resampler};
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;
use super::picture_tensors as pictures;

#[derive(Deserialize)]
struct Config {
    clip_mean: [f64; 3],
    clip_std: [f64; 3],
    dino_mean: [f64; 3],
    dino_std: [f64; 3],
}

#[derive(Deserialize)]
struct Sizes {
    clip_size: u32,
    dino_size: u32,
    dino_crop: u32,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: Config = fixture.part("config")?;
    let images: BTreeMap<String, Sizes> = fixture.part("images")?;
    for (name, sizes) in &images {
        let picture = pictures::rgb(fixture, &format!("in.{name}"))?;
        let clip = ImageProcessor {
            mean: config.clip_mean,
            deviation: config.clip_std,
            ..ImageProcessor::clip(sizes.clip_size)
        };
        let dino = ImageProcessor {
            mean: config.dino_mean,
            deviation: config.dino_std,
            ..ImageProcessor::dino(sizes.dino_size, sizes.dino_crop)
        };
        for (network, processor) in [("clip", clip), ("dino", dino)] {
            let prefix = format!("out.{name}.{network}");
            let cut = pictures::tensor(&processor.pixels(&picture)?)?.f_permute([2, 0, 1])?;
            pictures::compare(fixture, checks, &format!("{prefix}.pillow_u8"), &cut)?;
            checks
                .compare(&format!("{prefix}.pillow"), &processor.process(&[&picture])?.f_squeeze_dim(0)?)?;
            let torch = ImageProcessor { resampler: Resampler::Torch, ..processor };
            checks.compare(&format!("{prefix}.tensor"), &torch.process(&[&picture])?.f_squeeze_dim(0)?)?;
        }
    }
    Ok(())
}
