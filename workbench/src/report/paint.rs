//! Draws evaluation cases with a network, with or without an adapter.

use anyhow::{Context as _, Result, ensure};
use crescendo_model::codec::{LatentCodec, TextEncoder};
use crescendo_model::sampler::{SampleRequest, sample, seeded_noise};
use crescendo_model::schedule::schedule;
use crescendo_model::tch::{Kind, Tensor};
use crescendo_model::unope::PositionMode;
use crescendo_model::{Flux, LoraAdapter};
use image::RgbImage;

/// Cases that go through the network together.
const BATCH: usize = 38;

/// One picture to draw.
pub struct Sketch<'a> {
    pub prompt: &'a str,
    /// All sketches that are drawn together have the same number and sizes of references.
    pub references: &'a [RgbImage],
    /// Start noise; the same seed gives the same picture.
    pub seed: u64,
}

/// A network and what its pictures and prompts are made of.
pub struct Painter<'a> {
    pub flux: &'a Flux,
    pub codec: &'a dyn LatentCodec,
    pub text: &'a dyn TextEncoder,
    pub positions: PositionMode,
    /// Euler steps.
    pub steps: i64,
    /// Height and width of a picture, pixels.
    pub side: u32,
}

impl Painter<'_> {
    /// Draws every sketch, in order; `adapter` absent draws with the base alone.
    pub fn draw(&self, adapter: Option<&LoraAdapter>, sketches: &[Sketch]) -> Result<Vec<RgbImage>> {
        let mut pictures = Vec::with_capacity(sketches.len());
        for batch in sketches.chunks(BATCH) {
            pictures.extend(self.draw_batch(adapter, batch)?);
        }
        Ok(pictures)
    }

    fn draw_batch(&self, adapter: Option<&LoraAdapter>, sketches: &[Sketch]) -> Result<Vec<RgbImage>> {
        let references = sketches.first().map_or(0, |sketch| sketch.references.len());
        ensure!(
            sketches.iter().all(|sketch| sketch.references.len() == references),
            "sketches of one batch have different numbers of references"
        );
        let latent_side = i64::from(self.side) / self.codec.downscale();
        let seeds: Vec<u64> = sketches.iter().map(|sketch| sketch.seed).collect();
        let noise = seeded_noise(&seeds, self.codec.latent_channels(), latent_side, latent_side)?;
        let refs: Vec<Tensor> = (0..references)
            .map(|n| {
                let pictures: Vec<&RgbImage> = sketches.iter().map(|sketch| &sketch.references[n]).collect();
                Ok(self.codec.encode(&to_tensor(&pictures)?)?)
            })
            .collect::<Result<_>>()
            .context("encode references")?;
        let prompts: Vec<&str> = sketches.iter().map(|sketch| sketch.prompt).collect();
        let text = self.text.encode(&prompts).context("encode prompts")?;
        let times = schedule(self.steps, latent_side * latent_side / 4, true).context("make the schedule")?;
        let request = SampleRequest {
            noise: &noise,
            refs: &refs,
            txt: &text.txt,
            vec: &text.vec,
            positions: self.positions,
            schedule: &times,
            guidance: 1.0,
            time_kind: Kind::Float,
        };
        let latents = sample(self.flux, adapter, &request, None).context("draw")?;
        to_pictures(&self.codec.decode(&latents)?)
    }
}

/// Pictures of one size to `[n, 3, height, width]` float32 in [−1, 1].
pub fn to_tensor(pictures: &[&RgbImage]) -> Result<Tensor> {
    let (width, height) = pictures.first().context("no pictures")?.dimensions();
    ensure!(pictures.iter().all(|p| p.dimensions() == (width, height)), "pictures differ in size");
    let bytes: Vec<u8> = pictures.iter().flat_map(|p| p.as_raw().iter().copied()).collect();
    let shape = [i64::try_from(pictures.len())?, i64::from(height), i64::from(width), 3];
    let pixels = Tensor::f_from_slice(&bytes)?.f_view(shape)?; // n, height, width, channel
    Ok(pixels
        .f_permute([0, 3, 1, 2])?
        .f_to_kind(Kind::Float)?
        .f_div_scalar(127.5)?
        .f_sub_scalar(1.0)?
        .f_contiguous()?)
}

/// `[n, 3, height, width]` float in [−1, 1] to pictures, rounded.
fn to_pictures(pixels: &Tensor) -> Result<Vec<RgbImage>> {
    let (n, _, height, width) = pixels.size4()?;
    let bytes = pixels
        .f_add_scalar(1.0)?
        .f_mul_scalar(127.5)?
        .f_round()?
        .f_clamp(0.0, 255.0)?
        .f_to_kind(Kind::Uint8)?
        .f_permute([0, 2, 3, 1])? // n, height, width, channel
        .f_contiguous()?
        .f_view([n, height * width * 3])?;
    (0..n)
        .map(|i| {
            let row: Vec<u8> = Vec::<u8>::try_from(bytes.f_get(i)?)?;
            RgbImage::from_raw(u32::try_from(width)?, u32::try_from(height)?, row)
                .context("picture has another size")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_survive_the_way_through_tensors() {
        let picture = RgbImage::from_fn(4, 2, |x, y| image::Rgb([(x * 60) as u8, (y * 200) as u8, 255]));
        let tensor = to_tensor(&[&picture, &picture]).unwrap();
        assert_eq!(tensor.size(), [2, 3, 2, 4]);
        assert_eq!(to_pictures(&tensor).unwrap(), vec![picture.clone(), picture]);
    }
}
