//! Times of the flow: t = 1 is pure noise, t = 0 is data.
//!
//! Larger images need more of their steps at high noise, so an even grid is shifted by an amount that
//! grows with the number of image tokens. Published code counts those tokens in two ways; both are here
//! because published weights were trained and are sampled with them.
//!
//! The arithmetic is libtorch's float32 on the CPU, so that a schedule has the same last bits as the
//! published one; values are handed out as `f64`.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Shift at 256 tokens.
pub const BASE_SHIFT: f64 = 0.5;
/// Shift at 4096 tokens.
pub const MAX_SHIFT: f64 = 1.15;
/// Entries of the training table: t from exactly 1 (index 0) to exactly 0 (index 999).
pub const TRAIN_TABLE_LEN: i64 = 1000;
/// Upper bound of sampling steps: far beyond any use, and a bound on what a request can cost.
const MOST_STEPS: i64 = 10_000;

/// mu for a number of image tokens: the straight line through (256, `base_shift`) and
/// (4096, `max_shift`), not clamped.
pub fn mu(image_tokens: i64, base_shift: f64, max_shift: f64) -> f64 {
    let slope = (max_shift - base_shift) / (4096.0 - 256.0);
    let intercept = base_shift - slope * 256.0;
    slope * image_tokens as f64 + intercept
}

/// e^mu / (e^mu + (1/t − 1)^sigma), element-wise on a float32 tensor in [0, 1].
pub fn time_shift(mu: f64, sigma: f64, t: &Tensor) -> Result<Tensor> {
    let exp_mu = mu.exp();
    let base = t.f_reciprocal()?.f_sub_scalar(1.0)?.f_pow_tensor_scalar(sigma)?;
    Ok(base.f_add_scalar(exp_mu)?.f_reciprocal()?.f_mul_scalar(exp_mu)?)
}

/// `steps + 1` times from 1 to 0, shifted for `image_tokens` unless `shift` is false: float32 `[steps + 1]`.
pub fn schedule_tensor(
    steps: i64,
    image_tokens: i64,
    base_shift: f64,
    max_shift: f64,
    shift: bool,
) -> Result<Tensor> {
    if !(1..=MOST_STEPS).contains(&steps) {
        return Err(ModelError::Config {
            field: "steps",
            reason: format!("{steps} is not within 1..={MOST_STEPS}"),
        });
    }
    let even = Tensor::f_linspace(1.0, 0.0, steps + 1, (Kind::Float, Device::Cpu))?;
    if shift { time_shift(mu(image_tokens, base_shift, max_shift), 1.0, &even) } else { Ok(even) }
}

/// [`schedule_tensor`] with the usual shifts, as numbers; every one is exactly representable in float32.
pub fn schedule(steps: i64, image_tokens: i64, shift: bool) -> Result<Vec<f64>> {
    to_f64(&schedule_tensor(steps, image_tokens, BASE_SHIFT, MAX_SHIFT, shift)?)
}

/// Tokens as published inference counts them for an image of `width_px` × `height_px`: 64 times too few.
pub fn inference_image_tokens(width_px: i64, height_px: i64) -> i64 {
    (width_px / 8) * (height_px / 8) / 256
}

/// Tokens as published training counts them for a square image: the true number.
pub fn training_image_tokens(resolution_px: i64) -> i64 {
    (resolution_px / 8) * (resolution_px / 8) / 4
}

/// The published sampling schedule for an image of `width_px` × `height_px`.
pub fn inference_schedule(steps: i64, width_px: i64, height_px: i64) -> Result<Vec<f64>> {
    schedule(steps, inference_image_tokens(width_px, height_px), true)
}

/// The published training table for square images of `resolution_px`: float32 `[1000]` on the CPU.
pub fn training_table(resolution_px: i64) -> Result<Tensor> {
    training_table_for_tokens(training_image_tokens(resolution_px))
}

/// The training table for a number of image tokens (autoencoders other than the 8× one): float32 `[1000]`.
pub fn training_table_for_tokens(image_tokens: i64) -> Result<Tensor> {
    schedule_tensor(TRAIN_TABLE_LEN - 1, image_tokens, BASE_SHIFT, MAX_SHIFT, true)
}

/// The values of a one-dimensional tensor as `f64`.
pub fn to_f64(values: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(values.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_exact_and_times_fall() {
        for shift in [false, true] {
            let times = schedule(25, 1024, shift).unwrap();
            assert_eq!(times.len(), 26);
            assert_eq!((times[0], times[25]), (1.0, 0.0));
            assert!(times.windows(2).all(|pair| pair[0] > pair[1]));
        }
    }

    #[test]
    fn both_token_counts_are_kept() {
        assert_eq!(training_image_tokens(512), 1024);
        assert_eq!(inference_image_tokens(512, 512), 16);
        assert!((mu(1024, BASE_SHIFT, MAX_SHIFT) - 0.63).abs() < 1e-12);
    }

    #[test]
    fn step_counts_out_of_range_are_refused() {
        for steps in [-1, 0, 10_001] {
            assert!(schedule(steps, 16, true).is_err());
        }
    }
}
