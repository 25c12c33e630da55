//! The loss on samples that nothing trains on, at times and with noise of one's own choice.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::flux::{Flux, FluxInputs, RopeTable};
use crate::layers::to_device;
use crate::lora::LoraAdapter;
use crate::packing;
use crate::training::{MicroBatch, NoisedTarget};
use crate::unope::Offsets;

/// How the network is asked, as it was trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AskedAs {
    pub positions: Offsets,
    /// Guidance value for guidance-distilled networks.
    pub guidance: f64,
    /// Dtype of times and guidance (see [`FluxInputs::timesteps`]).
    pub time_kind: Kind,
}

/// Mean of (prediction − velocity)² of each sample of the batch, as training has it for all of them. Deterministic for given inputs,
/// number of threads and machine.
pub fn losses(
    flux: &Flux,
    adapter: Option<&LoraAdapter>,
    batch: &MicroBatch,
    how: AskedAs,
) -> Result<Vec<f64>> {
    let device = flux.device();
    tch::no_grad(|| {
        let NoisedTarget { x_t, velocity } = batch.noised(device)?;
        let refs: Vec<Tensor> = batch
            .refs
            .iter()
            .map(|reference| to_device(&packing::pack(reference)?, device))
            .collect::<Result<_>>()?;
        let rope = RopeTable::from_layout(&batch.layout(how.positions)?, flux.config(), device)?;
        let (txt, vec) = (to_device(&batch.txt, device)?, to_device(&batch.vec, device)?);
        let timesteps = to_device(&batch.times, device)?.f_to_kind(how.time_kind)?;
        let guidance = Tensor::f_full([batch.samples()], how.guidance, (how.time_kind, device))?;
        let inputs = FluxInputs {
            img: &x_t,
            refs: &refs,
            txt: &txt,
            vec: &vec,
            timesteps: &timesteps,
            guidance: Some(&guidance),
            rope: &rope,
        };
        let predicted = flux.forward(&inputs, adapter)?.f_to_kind(Kind::Float)?;
        let squares = predicted.f_sub(&velocity)?.f_square()?;
        let each = squares.f_mean_dim([1i64, 2].as_slice(), false, Kind::Double)?;
        Ok(Vec::<f64>::try_from(each)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockSelection;
    use crate::config::FluxConfig;
    use crate::randomness::NormalStream;
    use crate::training::{TrainOptions, TrainStep};
    use tch::Device;

    #[test]
    fn the_mean_over_samples_is_the_loss_of_training() {
        let config = FluxConfig::nano();
        let mut weights = Flux::init(&config, 3, Kind::Float, Device::Cpu).unwrap().tensors();
        for (name, tensor) in &mut weights {
            *tensor = &*tensor + NormalStream::for_weight(1, name).tensor(&tensor.size()).unwrap() * 0.05;
        }
        let flux = || {
            let weights =
                weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
            Flux::from_tensors(&config, weights, "test", Kind::Float, Device::Cpu).unwrap()
        };
        let adapter = || {
            LoraAdapter::init(&config, 4, &BlockSelection::all(&config), 7, Kind::Float, Device::Cpu).unwrap()
        };
        let draw = |name: &str, shape: &[i64]| NormalStream::for_weight(9, name).tensor(shape).unwrap();
        let channels = config.latent_channels();
        let batch = MicroBatch {
            latents: draw("latents", &[3, channels, 4, 6]),
            refs: vec![draw("reference", &[3, channels, 4, 4])],
            txt: draw("txt", &[3, 5, config.context_in_dim]),
            vec: draw("vec", &[3, config.vec_in_dim]),
            noise: draw("noise", &[3, 6, channels * 4]),
            times: Tensor::from_slice(&[0.1f32, 0.5, 0.9]),
            weight: 1.0,
        };
        let how = AskedAs { positions: Offsets::PUBLISHED, guidance: 1.0, time_kind: Kind::Float };
        let of_each = losses(&flux(), Some(&adapter()), &batch, how).unwrap();
        let mut step = TrainStep::for_adapter(flux(), adapter(), TrainOptions::default()).unwrap();
        let trained = step.gradients(&[batch], None).unwrap()[0].loss.double_value(&[]);
        let mean = of_each.iter().sum::<f64>() / 3.0;
        assert!((mean - trained).abs() < 1e-5 * trained, "{mean} is not {trained}");
        assert!(of_each[0] != of_each[1] && of_each[1] != of_each[2]);
    }
}
