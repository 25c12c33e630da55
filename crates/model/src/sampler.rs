//! Drawing pictures: Euler integration of the velocity from t = 1 (noise) to t = 0 (data).

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::flux::{Flux, FluxInputs, RopeTable};
use crate::lora::LoraAdapter;
use crate::packing;
use crate::unope::{Grid, Layout, Offsets};

/// What to draw. All samples of a batch have the same sizes.
#[derive(Debug)]
pub struct SampleRequest<'a> {
    /// Start latents `[batch, latent channels, height, width]`, standard normal.
    pub noise: &'a Tensor,
    /// Reference latents, each `[batch, latent channels, its height, its width]`.
    pub refs: &'a [Tensor],
    /// Text tokens `[batch, text tokens, context_in_dim]`.
    pub txt: &'a Tensor,
    /// Pooled text `[batch, vec_in_dim]`.
    pub vec: &'a Tensor,
    pub positions: Offsets,
    /// Times from 1 down to 0 ([`crate::schedule`]); one step per neighbouring pair.
    pub schedule: &'a [f64],
    /// Guidance value of guidance-distilled networks (4 by default in published sampling).
    pub guidance: f64,
    /// Guidance of networks that are not distilled; none draws from the prompt alone, in half the time.
    pub contrast: Option<Contrast<'a>>,
    /// Dtype of the time and guidance values (see [`FluxInputs::timesteps`]): bfloat16 for published
    /// weights run in bfloat16, float32 for networks trained with exact times.
    pub time_kind: Kind,
}

/// Classifier-free guidance (arXiv 2207.12598): every step goes from the velocity of another prompt, usually the empty one,
/// without references, towards that of the prompt and the references, and `scale` times as far. So both are emphasised. It
/// needs a network that was trained with text dropout.
#[derive(Clone, Copy, Debug)]
pub struct Contrast<'a> {
    /// 1 changes nothing; 2 to 7 are usual.
    pub scale: f64,
    /// Text tokens of the other prompt, shape as [`SampleRequest::txt`].
    pub txt: &'a Tensor,
    /// Its pooled text, shape as [`SampleRequest::vec`].
    pub vec: &'a Tensor,
}

/// One step as it happens.
#[derive(Debug)]
pub struct StepView<'a> {
    /// From 0.
    pub index: usize,
    /// Number of steps.
    pub total: usize,
    /// Time of this step.
    pub time: f64,
    /// Packed latents before the step.
    pub latent: &'a Tensor,
    /// What the step goes along: the network's output, guided if a [`Contrast`] is given.
    pub velocity: &'a Tensor,
}

/// Called once a step; an error ends the drawing.
pub type Progress<'a> = &'a mut dyn FnMut(&StepView<'_>) -> Result<()>;

/// Draws a batch: latents `[batch, latent channels, height, width]` in float32 on the network's device.
/// Deterministic for given inputs, number of threads and machine.
pub fn sample(
    flux: &Flux,
    adapter: Option<&LoraAdapter>,
    request: &SampleRequest<'_>,
    mut progress: Option<Progress<'_>>,
) -> Result<Tensor> {
    let device = flux.device();
    let kind = flux.compute_kind();
    let target = Grid::of_latent(request.noise)?;
    let references = request.refs.iter().map(Grid::of_latent).collect::<Result<Vec<_>>>()?;
    let &[batch, text_tokens, _] = request.txt.size().as_slice() else {
        return Err(ModelError::input(
            "txt",
            format!("shape {:?} is not [batch, tokens, width]", request.txt.size()),
        ));
    };
    if request.schedule.len() < 2 || request.schedule.iter().any(|t| !t.is_finite()) {
        return Err(ModelError::input("schedule", "needs at least two finite times"));
    }
    let on_device = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(device)?.f_to_kind(kind)?) };
    let refs = request.refs.iter().map(|reference| on_device(&packing::pack(reference)?));
    let refs = refs.collect::<Result<Vec<_>>>()?;
    let side = |txt: &Tensor, vec: &Tensor, refs, references: Vec<Grid>| -> Result<Side> {
        let layout = Layout { text_tokens, target, references, offsets: request.positions };
        Ok(Side {
            rope: RopeTable::from_layout(&layout, flux.config(), device)?,
            txt: on_device(txt)?,
            vec: on_device(vec)?,
            refs,
        })
    };
    let towards = side(request.txt, request.vec, &refs, references)?;
    let from = match &request.contrast {
        Some(contrast) if contrast.txt.size() != request.txt.size() => {
            let reason = format!("shape {:?} is not that of txt", contrast.txt.size());
            return Err(ModelError::input("contrast.txt", reason));
        }
        Some(contrast) => Some((contrast.scale, side(contrast.txt, contrast.vec, &[], Vec::new())?)),
        None => None,
    };
    let mut latent = on_device(&packing::pack(request.noise)?)?;
    let total = request.schedule.len() - 1;
    tch::no_grad(|| {
        let full = |value: f64| Tensor::f_full([batch], value, (request.time_kind, device));
        let guidance = full(request.guidance)?;
        for (index, pair) in request.schedule.windows(2).enumerate() {
            let (time, next) = (pair[0], pair[1]);
            let timesteps = full(time)?;
            let velocity_of = |side: &Side, latent: &Tensor| {
                let inputs = FluxInputs {
                    img: latent,
                    refs: side.refs,
                    txt: &side.txt,
                    vec: &side.vec,
                    timesteps: &timesteps,
                    guidance: Some(&guidance),
                    rope: &side.rope,
                };
                flux.forward(&inputs, adapter)
            };
            let mut velocity = velocity_of(&towards, &latent)?;
            if let Some((scale, side)) = &from {
                let other = velocity_of(side, &latent)?;
                velocity = other.f_lerp(&velocity, *scale)?;
            }
            if let Some(progress) = progress.as_mut() {
                progress(&StepView { index, total, time, latent: &latent, velocity: &velocity })?;
            }
            latent = latent.f_add(&velocity.f_mul_scalar(next - time)?)?;
        }
        packing::unpack(&latent.f_to_kind(Kind::Float)?, target.rows, target.columns)
    })
}

/// What one evaluation of the network is conditioned on, on its device.
struct Side<'a> {
    rope: RopeTable,
    txt: Tensor,
    vec: Tensor,
    refs: &'a [Tensor],
}

/// Start noise as the published sampler draws it for an image of `width_px` × `height_px`: libtorch's CPU
/// generator seeded with `seed`, drawn directly in `kind`, `[1, channels, 2·⌈height/16⌉, 2·⌈width/16⌉]`.
pub fn published_noise(
    seed: i64,
    channels: i64,
    height_px: i64,
    width_px: i64,
    kind: Kind,
) -> Result<Tensor> {
    let side = |px: i64| px.max(0).saturating_add(15) / 16 * 2;
    crate::randomness::torch_noise(seed, &[1, channels, side(height_px), side(width_px)], kind)
}

/// Start noise of a batch from a seed each, independent of libtorch's generators: float32
/// `[seeds, channels, height, width]` on the CPU.
pub fn seeded_noise(seeds: &[u64], channels: i64, height: i64, width: i64) -> Result<Tensor> {
    let each = seeds
        .iter()
        .map(|seed| {
            let key = crate::randomness::SampleKey::for_seed(*seed);
            key.noise(&[channels, height, width])
        })
        .collect::<Result<Vec<_>>>()?;
    if each.is_empty() {
        return Ok(Tensor::f_zeros([0, channels, height, width], (Kind::Float, Device::Cpu))?);
    }
    Ok(Tensor::f_stack(&each, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FluxConfig, randomness::NormalStream};

    /// A small network of which no weight is zero.
    fn network() -> Flux {
        let config = FluxConfig {
            depth: 1,
            depth_single_blocks: 1,
            hidden_size: 32,
            num_heads: 1,
            ..FluxConfig::nano()
        };
        let mut weights = Flux::init(&config, 1, Kind::Float, Device::Cpu).unwrap().tensors();
        for (name, tensor) in &mut weights {
            *tensor = &*tensor + NormalStream::for_weight(2, name).tensor(&tensor.size()).unwrap() * 0.05;
        }
        Flux::from_tensors(&config, weights, "test", Kind::Float, Device::Cpu).unwrap()
    }

    struct Inputs {
        noise: Tensor,
        refs: Vec<Tensor>,
        txt: Tensor,
        vec: Tensor,
    }

    fn inputs(seeds: &[u64]) -> Inputs {
        let draw = |salt: u64, channels, height, width| {
            let salted: Vec<u64> = seeds.iter().map(|seed| seed * 10 + salt).collect();
            seeded_noise(&salted, channels, height, width).unwrap()
        };
        Inputs {
            noise: draw(0, 12, 4, 6),
            refs: vec![draw(1, 12, 4, 4), draw(2, 12, 2, 6)],
            txt: draw(3, 1, 5, 64).squeeze_dim(1),
            vec: draw(4, 1, 1, 64).view([-1, 64]),
        }
    }

    fn draw(flux: &Flux, inputs: &Inputs, progress: Option<Progress<'_>>) -> Result<Tensor> {
        let request = SampleRequest {
            noise: &inputs.noise,
            refs: &inputs.refs,
            txt: &inputs.txt,
            vec: &inputs.vec,
            positions: Offsets::PUBLISHED,
            schedule: &[1.0, 0.6, 0.2, 0.0],
            guidance: 4.0,
            contrast: None,
            time_kind: Kind::Float,
        };
        sample(flux, None, &request, progress)
    }

    #[test]
    fn a_batch_draws_what_each_sample_draws_alone() {
        let flux = network();
        let mut steps = Vec::new();
        let both = draw(
            &flux,
            &inputs(&[1, 2]),
            Some(&mut |step| {
                steps.push((step.index, step.total, step.time));
                Ok(())
            }),
        )
        .unwrap();
        assert_eq!(both.size(), [2, 12, 4, 6]);
        assert_eq!(steps, [(0, 3, 1.0), (1, 3, 0.6), (2, 3, 0.2)]);
        for (row, seed) in [1, 2].into_iter().enumerate() {
            let alone = draw(&flux, &inputs(&[seed]), None).unwrap().get(0);
            assert!((both.get(row as i64) - alone).abs().max().double_value(&[]) < 1e-4);
        }
        assert_eq!(draw(&flux, &inputs(&[1, 2]), None).unwrap(), both);
        let other = draw(&flux, &inputs(&[3, 4]), None).unwrap();
        assert!((other - both).abs().max().double_value(&[]) > 0.1);
    }

    #[test]
    fn guidance_goes_from_neither_prompt_nor_references_through_both() {
        let flux = network();
        let guided = |inputs: &Inputs, scale: Option<f64>| {
            let (txt, vec) = (inputs.txt.zeros_like(), inputs.vec.zeros_like());
            let request = SampleRequest {
                noise: &inputs.noise,
                refs: &inputs.refs,
                txt: &inputs.txt,
                vec: &inputs.vec,
                positions: Offsets::PUBLISHED,
                // One step, so that the outcome is linear in the velocity.
                schedule: &[1.0, 0.0],
                guidance: 4.0,
                contrast: scale.map(|scale| Contrast { scale, txt: &txt, vec: &vec }),
                time_kind: Kind::Float,
            };
            sample(&flux, None, &request, None).unwrap()
        };
        let differ = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        let ours = inputs(&[1, 2]);
        let plain = guided(&ours, None);
        assert_eq!(guided(&ours, Some(1.0)), plain);
        let [far, farther] = [2.0, 3.0].map(|scale| guided(&ours, Some(scale)) - &plain);
        assert!(differ(&far, &far.zeros_like()) > 0.01);
        assert!(differ(&farther, &(&far * 2.0)) < 1e-3);
        // What it goes from does not depend on the prompt or the references.
        let others = Inputs { noise: ours.noise.copy(), ..inputs(&[3, 4]) };
        assert_eq!(guided(&ours, Some(0.0)), guided(&others, Some(0.0)));
    }

    #[test]
    fn the_caller_can_stop_and_bad_inputs_are_named() {
        let flux = network();
        let mut steps = 0;
        let stopped = draw(
            &flux,
            &inputs(&[1]),
            Some(&mut |_| {
                steps += 1;
                Err(ModelError::Caller("cancelled".into()))
            }),
        );
        assert!(matches!(stopped, Err(ModelError::Caller(_))));
        assert_eq!(steps, 1);
        let good = || inputs(&[1]);
        for (name, bad) in [
            ("txt", Inputs { txt: inputs(&[1, 2]).txt, ..good() }),
            ("vec", Inputs { vec: Tensor::zeros([1, 9], (Kind::Float, Device::Cpu)), ..good() }),
            ("ref1", Inputs { refs: vec![good().refs.remove(0), inputs(&[1, 2]).refs.remove(1)], ..good() }),
            ("latent", Inputs { noise: Tensor::zeros([12, 3, 6], (Kind::Float, Device::Cpu)), ..good() }),
        ] {
            let text = draw(&flux, &bad, None).unwrap_err().to_string();
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
