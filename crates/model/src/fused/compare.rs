//! Each pass of a device's kernels beside the eager operations: how far apart they are, and how long each takes.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::{Fused, HeadNorm, Heads, Kernels, ModulationColumns, StreamPlace};
use crate::error::{ModelError, Result};
use crate::flux::{NORM_EPS, RopeTable};
use crate::unope::{Grid, Layout, Offsets};
use crate::{FluxConfig, randomness::NormalStream};

/// Rounds that are timed; the median counts.
const ROUNDS: usize = 9;

/// One pass.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub name: &'static str,
    /// Largest difference, relative to the largest value of the eager result.
    pub error: f64,
    pub fused: Duration,
    pub eager: Duration,
}

/// Sizes of one stream.
#[derive(Clone, Copy, Debug)]
pub struct PassSizes {
    pub batch: i64,
    /// Tokens along one side of a square picture.
    pub side: i64,
}

/// What a pass leaves.
type Outcome = Result<Vec<Tensor>>;

/// Compares every pass in `kind` on `device` for a network of this configuration. An error if the device has no kernels.
pub fn compare(config: &FluxConfig, sizes: PassSizes, kind: Kind, device: Device) -> Result<Vec<Comparison>> {
    let fused = Fused::choose(Kernels::Fused, device, kind);
    if matches!(fused, Fused::Eager) {
        let reason = super::unavailable(device).unwrap_or_else(|| format!("{kind:?} on {device:?} has none"));
        return Err(ModelError::input("kernels", reason));
    }
    let inputs = Inputs::new(config, sizes, kind, device)?;
    let passes: [(&'static str, &dyn Fn(Fused) -> Outcome); 8] = [
        ("norm, modulate", &|fused| inputs.norm_modulate(fused)),
        ("norm, modulate: backward", &|fused| inputs.norm_modulate_backward(fused)),
        ("gated residual", &|fused| {
            Ok(vec![fused.gated_residual(&inputs.x, &inputs.modulation, &inputs.update)?])
        }),
        ("gated residual: backward", &|fused| {
            let out = inputs.update.f_empty_like()?;
            fused.gate_backward(&inputs.grad, &inputs.modulation, &out)?;
            Ok(vec![out])
        }),
        ("split, norm, rotate", &|fused| inputs.split_heads(fused)),
        ("split, norm, rotate: backward", &|fused| inputs.split_heads_backward(fused)),
        ("GELU", &|fused| inputs.gelu(fused)),
        ("GELU: backward", &|fused| inputs.gelu_backward(fused)),
    ];
    passes.into_iter().map(|(name, pass)| one(name, pass, fused, device)).collect()
}

fn one(
    name: &'static str,
    pass: &dyn Fn(Fused) -> Outcome,
    fused: Fused,
    device: Device,
) -> Result<Comparison> {
    tch::no_grad(|| {
        let (found, expected) = (pass(fused)?, pass(Fused::Eager)?);
        let mut error = 0f64;
        for (found, expected) in found.iter().zip(&expected) {
            let wide = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
            let (found, expected) = (wide(found)?, wide(expected)?);
            let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
            let off = found.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
            // A comparison that meets a number that is none must not pass for the best.
            let relative = off / largest;
            error = if relative.is_nan() { f64::INFINITY } else { error.max(relative) };
        }
        let time = |fused: Fused| -> Result<Duration> {
            let mut times = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                crescendo_device::choice::wait(device);
                let began = Instant::now();
                pass(fused)?;
                crescendo_device::choice::wait(device);
                times.push(began.elapsed());
            }
            times.sort();
            Ok(times.get(ROUNDS / 2).copied().unwrap_or_default())
        };
        Ok(Comparison { name, error, fused: time(fused)?, eager: time(Fused::Eager)? })
    })
}

/// Activations of one stream, and gradients of them.
struct Inputs {
    x: Tensor,
    grad: Tensor,
    residual: Tensor,
    update: Tensor,
    modulation: ModulationColumns,
    qkv: Tensor,
    heads: Heads,
    place: StreamPlace,
    query_scale: Tensor,
    key_scale: Tensor,
    rope: RopeTable,
    mlp: Tensor,
    grad_mlp: Tensor,
}

impl Inputs {
    fn new(
        config: &FluxConfig,
        PassSizes { batch, side }: PassSizes,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let (hidden, heads, head_width) = (config.hidden_size, config.num_heads, config.head_dim());
        let tokens = side * side;
        let draw = |name: &str, shape: &[i64], kind: Kind| -> Result<Tensor> {
            let length: i64 = shape.iter().product();
            // Repeated where it is long: what is compared is arithmetic, and drawing takes longer.
            let drawn = NormalStream::for_weight(7, name).tensor(&[length.min(1 << 20)])?;
            let times = (length + (1 << 20) - 1) >> 20;
            let drawn = drawn.f_repeat([times])?.f_narrow(0, 0, length)?;
            Ok(drawn.f_view(shape)?.f_to_kind(kind)?.f_to_device(device)?)
        };
        let of_heads = |name| draw(name, &[batch, heads, tokens, head_width], kind);
        let layout = Layout {
            text_tokens: 0,
            target: Grid { rows: side, columns: side },
            references: Vec::new(),
            offsets: Offsets::PUBLISHED,
        };
        Ok(Self {
            x: draw("x", &[batch, tokens, hidden], kind)?,
            grad: draw("grad", &[batch, tokens, hidden], kind)?,
            residual: draw("residual", &[batch, tokens, hidden], kind)?,
            update: draw("update", &[batch * tokens, hidden], kind)?,
            modulation: ModulationColumns::new(&draw("modulation", &[batch, 3 * hidden], kind)?, 0, hidden),
            qkv: draw("qkv", &[batch * tokens, 3 * hidden], kind)?,
            heads: Heads { query: of_heads("query")?, key: of_heads("key")?, value: of_heads("value")? },
            place: StreamPlace { batch, tokens, first_token: 0, all_tokens: tokens, heads, head_width },
            query_scale: draw("query scale", &[head_width], Kind::Float)?,
            key_scale: draw("key scale", &[head_width], Kind::Float)?,
            rope: RopeTable::from_layout(&layout, config, device)?,
            mlp: draw("mlp", &[batch * tokens, config.mlp_hidden()], kind)?,
            grad_mlp: draw("grad mlp", &[batch * tokens, config.mlp_hidden()], kind)?,
        })
    }

    fn norm(&self) -> HeadNorm<'_> {
        HeadNorm {
            query_scale: &self.query_scale,
            key_scale: &self.key_scale,
            rope: &self.rope,
            eps: NORM_EPS,
        }
    }

    fn norm_modulate(&self, fused: Fused) -> Outcome {
        Ok(vec![fused.norm_modulate(&self.x, &self.modulation, NORM_EPS)?.0])
    }

    fn norm_modulate_backward(&self, fused: Fused) -> Outcome {
        let (_, stats) = fused.norm_modulate(&self.x, &self.modulation, NORM_EPS)?;
        let Self { grad, x, modulation, residual, .. } = self;
        Ok(vec![fused.norm_modulate_backward(grad, x, modulation, &stats, residual)?])
    }

    fn split_heads(&self, fused: Fused) -> Outcome {
        let empty = || self.heads.query.f_empty_like();
        let out = Heads { query: empty()?, key: empty()?, value: empty()? };
        fused.split_heads(&self.qkv, &self.place, &self.norm(), &out)?;
        Ok(vec![out.query, out.key, out.value])
    }

    fn split_heads_backward(&self, fused: Fused) -> Outcome {
        let out = self.qkv.f_empty_like()?;
        fused.split_heads_backward(&self.heads, &self.qkv, &self.place, &self.norm(), &out)?;
        Ok(vec![out])
    }

    fn gelu(&self, fused: Fused) -> Outcome {
        let out = self.mlp.f_empty_like()?;
        fused.gelu(&self.mlp, &out)?;
        Ok(vec![out])
    }

    fn gelu_backward(&self, fused: Fused) -> Outcome {
        let out = self.mlp.f_empty_like()?;
        fused.gelu_backward(&self.grad_mlp, &self.mlp, &out)?;
        Ok(vec![out])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_is_compared() {
        tch::set_num_threads(1);
        for (kind, limit) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            let sizes = PassSizes { batch: 2, side: 3 };
            let found = compare(&FluxConfig::nano(), sizes, kind, Device::Cpu).expect("the CPU has kernels");
            assert_eq!(found.len(), 8);
            for Comparison { name, error, .. } in found {
                assert!((0.0..limit).contains(&error), "{name}: {error:e}");
            }
        }
        let double = compare(&FluxConfig::nano(), PassSizes { batch: 1, side: 2 }, Kind::Double, Device::Cpu);
        assert!(double.unwrap_err().to_string().contains("has none"));
    }
}
