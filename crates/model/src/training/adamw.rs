//! AdamW, exponential moving average, warm-up.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::flat_params::{Bucket, FlatParams, copy_of};
use crate::error::{ModelError, Result};
use crate::fused::{AdamWNumbers, AdamWVectors, Fused, Kernels};
use crate::weights::TensorMap;

/// Settings of AdamW; the defaults are the published ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled: multiplies every parameter by 1 − rate · weight_decay, each step.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    /// 1 − beta1^steps, and the root of 1 − beta2^steps.
    fn corrections(&self, steps: u64) -> (f64, f64) {
        let exponent = i32::try_from(steps).unwrap_or(i32::MAX);
        (1.0 - self.beta1.powi(exponent), (1.0 - self.beta2.powi(exponent)).sqrt())
    }

    /// Step `steps` (from 1) of one bucket as libtorch's operations.
    fn step_bucket(
        &self,
        bucket: &Bucket,
        factor: Option<&Tensor>,
        (avg, avg_sq): (&mut Tensor, &mut Tensor),
        steps: u64,
        rate: f64,
    ) -> Result<()> {
        let Self { beta1, beta2, eps, weight_decay } = *self;
        let (correction1, correction2_sqrt) = self.corrections(steps);
        let clipped = factor.map(|factor| bucket.grads().f_mul(factor)).transpose()?;
        let grad = clipped.as_ref().unwrap_or(bucket.grads());
        let mut values = bucket.values().shallow_clone();
        drop(values.f_mul_scalar_(1.0 - rate * weight_decay)?);
        drop(avg.f_mul_scalar_(beta1)?.f_add_(&grad.f_mul_scalar(1.0 - beta1)?)?);
        drop(avg_sq.f_mul_scalar_(beta2)?.f_addcmul_(grad, &grad.f_mul_scalar(1.0 - beta2)?)?);
        let mut denominator = avg_sq.f_sqrt()?;
        drop(denominator.f_div_scalar_(correction2_sqrt)?.f_add_scalar_(eps)?);
        drop(values.f_addcdiv_(&avg.f_mul_scalar(-rate / correction1)?, &denominator)?);
        if let Some(shadow) = bucket.shadow() {
            shadow.shallow_clone().f_copy_(&values)?;
        }
        Ok(())
    }
}

/// What one step does with the gradients.
#[derive(Debug)]
pub struct Update<'a> {
    pub rate: f64,
    pub clip: Option<Clip<'a>>,
    /// Follows the values: ema += (1 − decay) · (value − ema).
    pub ema: Option<&'a mut Ema>,
}

impl Update<'_> {
    /// At this rate, unclipped.
    pub fn at(rate: f64) -> Self {
        Self { rate, clip: None, ema: None }
    }
}

/// Gradients are multiplied by min(1, max_norm / (norm + 1e-6)).
#[derive(Clone, Copy, Debug)]
pub struct Clip<'a> {
    /// L2 norm of all of them, 0-dimensional float32 where they are ([`FlatParams::grad_norm`]).
    pub norm: &'a Tensor,
    pub max_norm: f64,
}

impl Clip<'_> {
    fn factor(self) -> Result<Tensor> {
        let inverse = self.norm.f_add_scalar(1e-6)?.f_reciprocal()?;
        Ok(inverse.f_mul_scalar(self.max_norm)?.f_clamp_max(1.0)?)
    }
}

/// Adam with decoupled weight decay (arXiv 1711.05101), over flat buckets.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    /// Steps taken.
    steps: u64,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    kernels: Kernels,
}

impl AdamW {
    pub fn new(config: AdamWConfig, params: &FlatParams) -> Result<Self> {
        let unit = 0.0..1.0;
        if !unit.contains(&config.beta1) || !unit.contains(&config.beta2) {
            return Err(ModelError::Config { field: "betas", reason: "must lie within [0, 1)".to_owned() });
        }
        if !(config.eps > 0.0 && config.weight_decay.is_finite() && config.weight_decay >= 0.0) {
            return Err(ModelError::Config {
                field: "optimizer",
                reason: "eps must be above 0 and weight decay at least 0".to_owned(),
            });
        }
        Ok(Self {
            config,
            steps: 0,
            exp_avg: params.zeros_like()?,
            exp_avg_sq: params.zeros_like()?,
            kernels: Kernels::default(),
        })
    }

    /// Whether the fused pass is used where there is one.
    pub fn set_kernels(&mut self, kernels: Kernels) {
        self.kernels = kernels;
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Both moments of each bucket.
    pub(super) fn moments(&self) -> (&[Tensor], &[Tensor]) {
        (&self.exp_avg, &self.exp_avg_sq)
    }

    /// One step with the gradients that the buckets hold, which are only read.
    pub fn step(&mut self, params: &mut FlatParams, update: Update<'_>) -> Result<()> {
        self.step_after(params, update, &mut |_| Ok(()))
    }

    /// The same, with `before` called for each bucket before anything of that one changes. An error of it ends the step
    /// halfway.
    pub fn step_after(
        &mut self,
        params: &mut FlatParams,
        mut update: Update<'_>,
        before: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        self.steps += 1;
        let factor = update.clip.map(|clip| clip.factor()).transpose()?;
        let factor = factor.as_ref();
        let numbers = self.numbers(&update);
        let fused = Fused::choose(self.kernels, params.device(), Kind::Float);
        tch::no_grad(|| {
            let moments = self.exp_avg.iter_mut().zip(&mut self.exp_avg_sq);
            for (index, (bucket, (avg, avg_sq))) in params.buckets().iter().zip(moments).enumerate() {
                before(index)?;
                let vectors = AdamWVectors {
                    values: bucket.values(),
                    grads: bucket.grads(),
                    factor,
                    moments: avg,
                    squares: avg_sq,
                    average: update.ema.as_ref().and_then(|ema| ema.values.get(index)),
                    shadow: bucket.shadow(),
                };
                if !fused.adamw(&vectors, numbers)? {
                    self.config.step_bucket(bucket, factor, (avg, avg_sq), self.steps, update.rate)?;
                    if let Some(ema) = &mut update.ema {
                        ema.follow(index, bucket)?;
                    }
                }
                bucket.refresh_copies()?;
            }
            Ok(())
        })
    }

    fn numbers(&self, update: &Update<'_>) -> AdamWNumbers {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let (correction1, correction2_sqrt) = self.config.corrections(self.steps);
        AdamWNumbers {
            decay: (1.0 - update.rate * weight_decay) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rate: (update.rate / correction1) as f32,
            correction2: correction2_sqrt as f32,
            eps: eps as f32,
            average_rate: update.ema.as_ref().map_or(0.0, |ema| 1.0 - ema.decay) as f32,
        }
    }

    /// Copies of both moments as `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`.
    pub fn export(&self, params: &FlatParams) -> Result<TensorMap> {
        let mut map = params.copy_flat(self.exp_avg.iter(), "exp_avg.")?;
        map.extend(params.copy_flat(self.exp_avg_sq.iter(), "exp_avg_sq.")?);
        Ok(map)
    }

    /// Restores what [`AdamW::export`] gave, after `steps` steps.
    pub fn import(
        &mut self,
        params: &FlatParams,
        tensors: &TensorMap,
        steps: u64,
        origin: &str,
    ) -> Result<()> {
        params.check_flat(tensors, "exp_avg.", origin)?;
        params.fill_flat(&self.exp_avg_sq, tensors, "exp_avg_sq.", origin)?;
        params.fill_flat(&self.exp_avg, tensors, "exp_avg.", origin)?;
        self.steps = steps;
        Ok(())
    }
}

/// Exponential moving average of the parameters, started at their values when it was made.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    values: Vec<Tensor>,
}

impl Ema {
    pub fn new(decay: f64, params: &FlatParams) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(ModelError::Config {
                field: "ema",
                reason: format!("decay {decay} is not within [0, 1]"),
            });
        }
        let values = params.buckets().iter().map(|bucket| copy_of(bucket.values())).collect::<Result<_>>()?;
        Ok(Self { decay, values })
    }

    fn follow(&mut self, index: usize, bucket: &Bucket) -> Result<()> {
        if let Some(average) = self.values.get_mut(index) {
            drop(average.f_lerp_(bucket.values(), 1.0 - self.decay)?);
        }
        Ok(())
    }

    /// The averages of each bucket.
    pub(super) fn averages(&self) -> &[Tensor] {
        &self.values
    }

    /// Copies of the averages by parameter name.
    pub fn export(&self, params: &FlatParams) -> Result<TensorMap> {
        params.copy_flat(self.values.iter(), "")
    }

    /// Restores what [`Ema::export`] gave.
    pub fn import(&mut self, params: &FlatParams, tensors: &TensorMap, origin: &str) -> Result<()> {
        params.fill_flat(&self.values, tensors, "", origin)
    }
}
