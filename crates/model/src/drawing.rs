//! Drawing pictures: prompts and references in, pictures out.
//!
//! ```text
//!  GenerationRequest { prompt, ─┬─ text encoder ─┐
//!                  references, ├─ codec ────────┼─▶ sampler (transformer + adapter) ─▶ codec ─▶ picture
//!                  noise }     └─ noise ────────┘
//! ```

use image::RgbImage;
use tch::{Kind, Tensor};

use crate::codec::{EncodedText, LatentCodec, TextEncoder};
use crate::config::Preset;
use crate::error::{ModelError, Result};
use crate::flux::Flux;
use crate::lora::LoraAdapter;
use crate::pictures;
use crate::randomness::SampleKey;
use crate::sampler::{Contrast, Progress, SampleRequest, sample};
use crate::schedule::{inference_schedule, schedule};
use crate::unope::Offsets;

/// One picture to draw.
#[derive(Clone, Copy, Debug)]
pub struct GenerationRequest<'a> {
    pub prompt: &'a str,
    /// Requests that are drawn together have the same number of references, of the same sizes.
    pub references: &'a [RgbImage],
    /// Where its start noise comes from: the same key gives the same picture on the same machine.
    pub noise: SampleKey,
}

/// Classifier-free guidance ([`Contrast`]) away from the empty prompt without references.
#[derive(Clone, Copy, Debug)]
pub struct FreeGuidance<'a> {
    /// 1 changes nothing; 2 to 7 are usual.
    pub scale: f64,
    /// The empty prompt, encoded: one row.
    pub empty: &'a EncodedText,
}

/// A transformer, what turns its latents into pictures, and how they are drawn.
#[derive(Clone, Copy)]
pub struct PipelineConfig<'a> {
    pub flux: &'a Flux,
    pub codec: &'a dyn LatentCodec,
    pub positions: Offsets,
    /// Euler steps.
    pub steps: i64,
    /// For networks that take one; 4 in published sampling.
    pub guidance: f64,
    /// Classifier-free guidance, for networks that are not distilled.
    pub free_guidance: Option<FreeGuidance<'a>>,
    /// Times shifted for the wrong number of tokens, as the published inference does.
    pub published_schedule: bool,
    /// Whether times keep float32. Published weights have only seen times that were rounded as the network computes.
    pub exact_times: bool,
}

impl<'a> PipelineConfig<'a> {
    /// As networks of `preset` are trained: diagonal positions, true token counts.
    pub fn for_preset(preset: Preset, flux: &'a Flux, codec: &'a dyn LatentCodec, steps: i64) -> Self {
        Self {
            flux,
            codec,
            positions: Offsets::PUBLISHED,
            steps,
            guidance: 4.0,
            free_guidance: None,
            published_schedule: false,
            exact_times: preset.has_exact_times(),
        }
    }

    /// Sides of a picture are multiples of this, pixels: one token.
    pub fn multiple(&self) -> u32 {
        u32::try_from(2 * self.codec.downscale()).unwrap_or(u32::MAX)
    }

    /// Draws a picture of `width` x `height` pixels for each noise. `text` has a row for each, and so has each of `refs`
    /// (latents `[batch, channels, height, width]`). `progress` is told of each step.
    pub fn draw(
        &self,
        adapter: Option<&LoraAdapter>,
        (width, height): (u32, u32),
        noise: &[SampleKey],
        text: &EncodedText,
        refs: &[Tensor],
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<RgbImage>> {
        let multiple = self.multiple().max(1);
        if width == 0 || height == 0 || width % multiple != 0 || height % multiple != 0 {
            let reason = format!("{width}x{height} pixels are not multiples of {multiple}");
            return Err(ModelError::input("size", reason));
        }
        let downscale = self.codec.downscale();
        let (rows, columns) = (i64::from(height) / downscale, i64::from(width) / downscale);
        let shape = [self.codec.latent_channels(), rows, columns];
        let each = noise.iter().map(|key| key.noise(&shape)).collect::<Result<Vec<_>>>()?;
        if each.is_empty() {
            return Ok(Vec::new());
        }
        let times = if self.published_schedule {
            inference_schedule(self.steps, i64::from(width), i64::from(height))?
        } else {
            schedule(self.steps, rows * columns / 4, true)?
        };
        let rows = |tensor: &Tensor, like: &Tensor| tensor.f_expand(like.size(), false);
        let empty = match self.free_guidance {
            Some(FreeGuidance { empty, .. }) => {
                Some((rows(&empty.txt, &text.txt)?, rows(&empty.vec, &text.vec)?))
            }
            None => None,
        };
        let contrast = self.free_guidance.zip(empty.as_ref()).map(|(free, (txt, vec))| Contrast {
            scale: free.scale,
            txt,
            vec,
        });
        let request = SampleRequest {
            noise: &Tensor::f_stack(&each, 0)?,
            refs,
            txt: &text.txt,
            vec: &text.vec,
            positions: self.positions,
            schedule: &times,
            guidance: self.guidance,
            contrast,
            time_kind: if self.exact_times { Kind::Float } else { self.flux.compute_kind() },
        };
        let latents = sample(self.flux, adapter, &request, progress)?;
        let mut drawn = Vec::with_capacity(noise.len());
        // One at a time: the autoencoder takes more memory for a batch than the transformer did.
        for n in 0..noise.len() as i64 {
            let pixels = self.codec.decode(&latents.f_narrow(0, n, 1)?)?;
            drawn.push(pictures::from_model_output(&pixels.f_select(0, 0)?)?);
        }
        Ok(drawn)
    }

    /// Encodes what the requests name and draws them, `batch` at a time, in their order.
    pub fn draw_requests(
        &self,
        text: &dyn TextEncoder,
        adapter: Option<&LoraAdapter>,
        size: (u32, u32),
        batch: usize,
        requests: &[GenerationRequest<'_>],
    ) -> Result<Vec<RgbImage>> {
        let references = requests.first().map_or(0, |request| request.references.len());
        if requests.iter().any(|request| request.references.len() != references) {
            return Err(ModelError::input("requests", "have different numbers of references"));
        }
        let mut drawn = Vec::with_capacity(requests.len());
        for few in requests.chunks(batch.max(1)) {
            let prompts: Vec<&str> = few.iter().map(|request| request.prompt).collect();
            let encoded = tch::no_grad(|| text.encode(&prompts))?;
            let mut refs = Vec::with_capacity(references);
            for n in 0..references {
                let of_each: Vec<&RgbImage> =
                    few.iter().filter_map(|request| request.references.get(n)).collect();
                let pixels = pictures::to_model_input(&of_each)?;
                refs.push(tch::no_grad(|| self.codec.encode(&pixels))?);
            }
            let noise: Vec<SampleKey> = few.iter().map(|request| request.noise).collect();
            drawn.extend(self.draw(adapter, size, &noise, &encoded, &refs, None)?);
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FluxConfig;
    use crate::nano::{PixelCodec, WordVectorText};
    use tch::Device;

    fn key(position: u64) -> SampleKey {
        SampleKey { job_seed: 5, stage: 0, position }
    }

    fn reference(shade: u8) -> RgbImage {
        RgbImage::from_fn(8, 8, |x, y| image::Rgb([shade, (x * 30) as u8, (y * 30) as u8]))
    }

    /// As [`Flux::init`] leaves it the network's output is zero; this one's is not.
    fn network() -> Flux {
        let mut flux = Flux::init(&FluxConfig::nano(), 3, Kind::Float, Device::Cpu).expect("fresh weights");
        for (name, mut tensor) in flux.tensors() {
            if name.starts_with("final_layer") || name.contains("_mod") || name.contains("modulation") {
                let noise = crate::randomness::NormalStream::for_weight(1, &name)
                    .tensor(&tensor.size())
                    .expect("noise");
                tch::no_grad(|| tensor.copy_(&(noise * 0.05)));
            }
        }
        flux
    }

    #[test]
    fn a_request_does_not_depend_on_its_batch_and_does_on_all_its_parts() {
        let flux = network();
        let config = PipelineConfig::for_preset(Preset::Nano, &flux, &PixelCodec, 2);
        let pictures = [reference(10), reference(200)];
        let request = |prompt: &'static str, picture: usize, position: u64| GenerationRequest {
            prompt,
            references: std::slice::from_ref(&pictures[picture]),
            noise: key(position),
        };
        let requests =
            [request("a cup", 0, 1), request("a dog", 0, 1), request("a cup", 1, 1), request("a cup", 0, 2)];
        let draw = |batch: usize, requests: &[GenerationRequest<'_>]| {
            config.draw_requests(&WordVectorText, None, (16, 8), batch, requests).expect("draw")
        };
        let all = draw(4, &requests);
        assert_eq!(all[0].dimensions(), (16, 8));
        for (n, one) in requests.iter().enumerate() {
            let alone = draw(1, std::slice::from_ref(one));
            let apart = alone[0].as_raw().iter().zip(all[n].as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart <= Some(1), "request {n} differs by {apart:?}");
        }
        for other in 1..4 {
            assert_ne!(all[0], all[other], "request {other}");
        }
        assert!(draw(4, &[]).is_empty());
    }

    #[test]
    fn sizes_and_references_that_do_not_fit_are_refused() {
        let flux = network();
        let config = PipelineConfig::for_preset(Preset::Nano, &flux, &PixelCodec, 2);
        let bare = GenerationRequest { prompt: "a cup", references: &[], noise: key(1) };
        let pictures = [reference(1)];
        let with = GenerationRequest { references: &pictures, ..bare };
        let refused = |size, requests: &[GenerationRequest<'_>]| {
            config.draw_requests(&WordVectorText, None, size, 4, requests).expect_err("refused").to_string()
        };
        assert!(refused((16, 10), &[bare]).contains("16x10"));
        assert!(refused((0, 8), &[bare]).contains("0x8"));
        assert!(refused((16, 8), &[bare, with]).contains("numbers of references"));
    }
}
