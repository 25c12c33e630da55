//! Kind `denoise`: the sampling loop with references, in float32 and bfloat16.

use crescendo_model::packing;
use crescendo_model::sampler::{SampleRequest, published_noise, sample};
use crescendo_model::schedule::inference_schedule;
use crescendo_model::tch::{Kind, Tensor};
use crescendo_model::unope::Offsets;
use crescendo_model::weights::TensorMap;
use crescendo_model::{Flux, LoraAdapter};
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;

#[derive(Deserialize)]
struct Sampling {
    width: i64,
    height: i64,
    num_steps: i64,
    guidance: f64,
    n_refs: usize,
    seed: i64,
}

/// How one of the runs treats numbers.
struct Run {
    name: &'static str,
    compute: Kind,
    /// Weights and inputs are rounded to bfloat16 first.
    rounded: bool,
    time: Kind,
}

const RUNS: [Run; 3] = [
    Run { name: "lora", compute: Kind::Float, rounded: false, time: Kind::Float },
    Run { name: "bf16", compute: Kind::BFloat16, rounded: true, time: Kind::BFloat16 },
    // The float32 run that a bfloat16 one is judged against has its roundings of inputs and times.
    Run { name: "yardstick", compute: Kind::Float, rounded: true, time: Kind::BFloat16 },
];

impl Run {
    fn cast(&self, tensor: &Tensor) -> anyhow::Result<Tensor> {
        let rounded = if self.rounded { tensor.f_to_kind(Kind::BFloat16)? } else { tensor.shallow_clone() };
        Ok(rounded.f_to_kind(self.compute)?)
    }

    fn cast_all(&self, tensors: TensorMap) -> anyhow::Result<TensorMap> {
        tensors.into_iter().map(|(name, tensor)| Ok((name, self.cast(&tensor)?))).collect()
    }
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config = fixture.config()?;
    let sampling: Sampling = fixture.part("sampling")?;
    let expected = fixture.expected();
    for run in RUNS {
        let prefix = format!("out.{}.", run.name);
        if !expected.iter().any(|name| name.starts_with(&prefix)) {
            continue;
        }
        let weights = run.cast_all(fixture.group("model.")?)?;
        let flux = Flux::from_tensors(&config, weights, &fixture.name, run.compute, fixture.device)?;
        let lora = run.cast_all(fixture.group("lora.")?)?;
        let adapter = LoraAdapter::from_tensors(&config, lora, &fixture.name, run.compute, fixture.device)?;
        let refs = (0..sampling.n_refs)
            .map(|i| run.cast(&fixture.tensor(&format!("in.ref{i}"))?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let schedule = inference_schedule(sampling.num_steps, sampling.width, sampling.height)?;
        checks.compare(&format!("{prefix}timesteps"), &Tensor::f_from_slice(&schedule)?)?;
        let request = SampleRequest {
            noise: &run.cast(&fixture.tensor("in.noise")?)?,
            refs: &refs,
            txt: &run.cast(&fixture.tensor("in.txt")?)?,
            vec: &run.cast(&fixture.tensor("in.vec")?)?,
            positions: Offsets::PUBLISHED,
            schedule: &schedule,
            guidance: sampling.guidance,
            contrast: None,
            time_kind: run.time,
        };
        let mut seen = Vec::new();
        let latent = sample(
            &flux,
            Some(&adapter),
            &request,
            Some(&mut |step| {
                seen.push((step.time, step.latent.shallow_clone(), step.velocity.shallow_clone()));
                Ok(())
            }),
        )?;
        for (i, (time, latent, velocity)) in seen.iter().enumerate() {
            let times = Tensor::f_full(
                [latent.size().first().copied().unwrap_or(1)],
                *time,
                (run.time, fixture.device),
            )?;
            checks.compare(&format!("{prefix}t{i}"), &times)?;
            checks.compare(&format!("{prefix}latent{i}"), latent)?;
            checks.compare(&format!("{prefix}velocity{i}"), velocity)?;
        }
        checks.compare(&format!("{prefix}latent{}", seen.len()), &packing::pack(&latent)?)?;
        checks.compare(&format!("{prefix}final"), &latent)?;
    }
    let noise =
        |seed, height, width, kind| published_noise(seed, config.latent_channels(), height, width, kind);
    checks.compare(
        "out.noise_from_seed.f32",
        &noise(sampling.seed, sampling.height, sampling.width, Kind::Float)?,
    )?;
    checks.compare(
        "out.noise_from_seed.bf16",
        &noise(sampling.seed, sampling.height, sampling.width, Kind::BFloat16)?,
    )?;
    if let Some([height, width]) = fixture.optional_part::<[i64; 2]>("odd_noise")? {
        checks.compare(
            "out.noise_from_seed.odd_size",
            &noise(sampling.seed + 1, height, width, Kind::Float)?,
        )?;
    }
    Ok(())
}
