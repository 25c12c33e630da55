//! Products of 8-bit floats (e4m3) that are scaled to their range: a tensor is stored as round(x / scale), where the scale takes
//! its largest value to the dtype's.
//!
//! ```text
//!   weights, once     W ≈ scale_w · W₈
//!   activations, each time     x ≈ scale_x · x₈     y = scale_x · scale_w · (x₈ W₈ᵀ) + b, summed in float32
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Largest number of e4m3.
const LARGEST: f64 = 448.0;
/// Sides of a product must be multiples of this, for libtorch's kernel.
const ALIGN: i64 = 16;

/// `x` in 8 bits `[same shape]`, and what it is to be multiplied by, 0-dimensional float32. Nothing waits for the device.
pub(crate) fn quantize(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let largest = x.f_abs()?.f_max()?.f_to_kind(Kind::Float)?;
    // Of a tensor of zeros too there is a scale.
    let scale = largest.f_div_scalar(LARGEST)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    let scaled = x.f_to_kind(Kind::Float)?.f_div(&scale)?.f_clamp(-LARGEST, LARGEST)?;
    Ok((scaled.f_to_kind(Kind::Float8e4m3fn)?, scale))
}

/// Whether the device multiplies `x` with such `weight` `[out, in]` in 8 bits.
pub(crate) fn multiplies(x: &Tensor, weight: &Tensor) -> bool {
    let fits = weight.size().iter().all(|side| side % ALIGN == 0) && x.kind() == Kind::BFloat16;
    match x.device() {
        // From Ada and Hopper on.
        Device::Cuda(index) => fits && capability(index).is_some_and(|it| it >= (8, 9)),
        _ => false,
    }
}

/// Of GPU `index`, asked for once a process.
fn capability(index: usize) -> Option<(i32, i32)> {
    type Known = BTreeMap<usize, Option<(i32, i32)>>;
    static KNOWN: Mutex<Known> = Mutex::new(Known::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(index).or_insert_with(|| crescendo_device::cuda::compute_capability(index).ok())
}

/// x Wᵀ + b for `x` `[.., in]` and the bias in its dtype; `scale` is that of `weight`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, scale: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (mut shape, inputs) = (x.size(), weight.size2()?.1);
    let rows = x.f_reshape([-1, inputs])?;
    let (rows, rows_scale) = quantize(&rows)?;
    let out = rows.f_internal_scaled_mm(
        &weight.f_transpose(0, 1)?,
        &rows_scale,
        scale,
        bias,
        None::<&Tensor>,
        x.f_kind()?,
        true,
    )?;
    if let Some(last) = shape.last_mut() {
        *last = out.size2()?.1;
    }
    Ok(out.f_view(shape.as_slice())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Linear;
    use crate::randomness::NormalStream;

    fn drawn(name: &str, shape: &[i64]) -> Tensor {
        NormalStream::for_weight(3, name).tensor(shape).unwrap()
    }

    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        let off = (found.to_kind(Kind::Float) - expected).norm().double_value(&[]);
        off / expected.norm().double_value(&[])
    }

    #[test]
    fn values_come_back_within_the_dtypes_rounding() {
        for size in [1e-6, 1.0, 1e6] {
            let x = drawn("x", &[64, 32]) * size;
            let (small, scale) = quantize(&x).unwrap();
            assert_eq!(small.kind(), Kind::Float8e4m3fn);
            let error = error(&(small.to_kind(Kind::Float) * &scale), &x);
            assert!((1e-3..0.04).contains(&error), "{size}: {error}");
        }
        let (zeros, scale) = quantize(&Tensor::zeros([2, 2], (Kind::Float, Device::Cpu))).unwrap();
        assert!(zeros.to_kind(Kind::Float).abs().max().double_value(&[]) == 0.0);
        assert!(scale.double_value(&[]) > 0.0);
    }

    /// Libtorch has this product for processors too, where it is only good for holding the call to what it stands for.
    #[test]
    fn a_product_in_8_bits_is_that_of_the_rounded_tensors() {
        let (x, weight) = (drawn("x", &[2, 16, 32]).to_kind(Kind::BFloat16), drawn("weight", &[48, 32]));
        let bias = drawn("bias", &[48]).to_kind(Kind::BFloat16);
        let (small, scale) = quantize(&weight).unwrap();
        let found = linear(&x, &small, &scale, Some(&bias)).unwrap();
        assert_eq!((found.size(), found.kind()), (vec![2, 16, 48], Kind::BFloat16));
        let (rounded, rounded_scale) = quantize(&x).unwrap();
        let wide = |tensor: &Tensor, scale: &Tensor| tensor.to_kind(Kind::Float) * scale;
        let expected =
            wide(&rounded, &rounded_scale).linear(&wide(&small, &scale), Some(&bias.to_kind(Kind::Float)));
        assert!(error(&found, &expected) < 5e-3, "{}", error(&found, &expected));
    }

    #[test]
    fn where_there_is_no_such_product_the_weights_are_widened() {
        let (x, weight) = (drawn("x", &[4, 32]), drawn("weight", &[48, 32]));
        let (small, scale) = quantize(&weight).unwrap();
        let layer = Linear { weight: small, bias: None, scale: Some(scale) };
        assert!(!multiplies(&x, &layer.weight));
        let expected = x.linear(&weight, None::<&Tensor>);
        let off = error(&layer.forward(&x).unwrap(), &expected);
        assert!((1e-3..0.04).contains(&off), "{off}");
        // Some of its outputs are those outputs.
        let part = layer.outputs(8, 16).unwrap().forward(&x).unwrap();
        assert!(error(&part, &layer.forward(&x).unwrap().narrow(1, 8, 16)) < 1e-6);
    }
}
