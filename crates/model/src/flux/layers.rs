//! The small parts that blocks are made of.

use tch::{Kind, Tensor};

use super::rope::RopeTable;
use crate::error::Result;
use crate::layers::{Linear, cast};
use crate::params::{Init, ParamSource};

/// Epsilon of every LayerNorm and of the RMS norm of queries and keys.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// Linear, SiLU, Linear.
#[derive(Debug)]
pub(crate) struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    pub fn build(source: &mut dyn ParamSource, name: &str, input: i64, hidden: i64) -> Result<Self> {
        let init = Init::Normal(0.02);
        Ok(Self {
            in_layer: Linear::build(source, &format!("{name}.in_layer"), input, hidden, true, init)?,
            out_layer: Linear::build(source, &format!("{name}.out_layer"), hidden, hidden, true, init)?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out_layer.forward(&self.in_layer.forward(x)?.f_silu()?)
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.in_layer.visit_mut(&format!("{name}.in_layer"), visit);
        self.out_layer.visit_mut(&format!("{name}.out_layer"), visit);
    }
}

/// Learned scales of the RMS norm of queries and keys, each `[head_dim]`.
#[derive(Debug)]
pub(crate) struct QkNorm {
    pub query: Tensor,
    pub key: Tensor,
}

impl QkNorm {
    pub fn build(source: &mut dyn ParamSource, name: &str, head_dim: i64) -> Result<Self> {
        Ok(Self {
            query: source.take(&format!("{name}.query_norm.scale"), &[head_dim], Init::One)?,
            key: source.take(&format!("{name}.key_norm.scale"), &[head_dim], Init::One)?,
        })
    }

    /// `[2 (query, key), 1, 1, 1, head_dim]` in float32.
    pub fn scales(&self) -> Result<Tensor> {
        let both = Tensor::f_stack(&[cast(&self.query, Kind::Float)?, cast(&self.key, Kind::Float)?], 0)?;
        Ok(both.f_reshape([2, 1, 1, 1, -1])?)
    }

    /// The same norm over what `map` makes of its tensors.
    pub fn mapped(&self, map: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { query: map(&self.query)?, key: map(&self.key)? })
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(format!("{name}.query_norm.scale"), &mut self.query);
        visit(format!("{name}.key_norm.scale"), &mut self.key);
    }
}

/// Shift, scale and gate of one sublayer, each `[batch, 1, hidden]`.
pub(crate) struct Modulation {
    pub shift: Tensor,
    /// 1 + scale.
    pub scale_plus_one: Tensor,
    pub gate: Tensor,
}

/// Splits the output of a modulation Linear, `[batch, 3·n·hidden]`, into n triples (shift, scale, gate).
pub(crate) fn modulations<const N: usize>(
    lin: &Linear,
    vec_act: &Tensor,
    hidden: i64,
) -> Result<[Modulation; N]> {
    let all = lin.forward(vec_act)?.f_unsqueeze(1)?;
    let part = |index: usize| all.f_narrow(-1, index as i64 * hidden, hidden);
    let mut out = Vec::with_capacity(N);
    for triple in 0..N {
        out.push(Modulation {
            shift: part(3 * triple)?,
            scale_plus_one: part(3 * triple + 1)?.f_add_scalar(1.0)?,
            gate: part(3 * triple + 2)?,
        });
    }
    // The vector has exactly N elements, so the conversion cannot fail.
    out.try_into().map_err(|_| crate::error::ModelError::input("modulation", "has the wrong number of parts"))
}

impl Modulation {
    /// (1 + scale) · norm(x) + shift, `[batch, tokens, hidden]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.shift.f_addcmul(&self.scale_plus_one, &layer_norm(x)?)?)
    }

    /// x + gate · update.
    pub fn residual(&self, x: &Tensor, update: &Tensor) -> Result<Tensor> {
        Ok(x.f_addcmul(&self.gate, update)?)
    }
}

/// LayerNorm over the last axis without affine parameters.
pub(crate) fn layer_norm(x: &Tensor) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or(0);
    Ok(x.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, NORM_EPS, true)?)
}

/// Attention over all tokens.
///
/// `qkv`: `[batch, tokens, 3 · heads · head_dim]`, channels ordered (q|k|v) × head × head_dim.
/// `scales`: query and key norm scales, float32, broadcastable to `[2, batch, heads, tokens, head_dim]`.
/// Result `[batch, tokens, heads · head_dim]` in the dtype of `qkv`.
pub(crate) fn attend(qkv: &Tensor, scales: &Tensor, rope: &RopeTable, heads: i64) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.size3()?;
    let head_dim = width / (3 * heads);
    let kind = qkv.f_kind()?;
    // [batch, tokens, 3, heads, head_dim] -> [3, batch, heads, tokens, head_dim], contiguous: one copy here
    // saves one in every product below.
    let qkv = qkv.f_view([batch, tokens, 3, heads, head_dim])?.f_permute([2, 0, 3, 1, 4])?.f_contiguous()?;
    let value = qkv.f_select(0, 2)?;
    let qk = cast(&qkv.f_narrow(0, 0, 2)?, Kind::Float)?;
    let inverse_rms =
        qk.f_square()?.f_mean_dim(&[-1i64][..], true, None)?.f_add_scalar(NORM_EPS)?.f_rsqrt()?;
    let qk = rope.rotate(&qk.f_mul(&inverse_rms)?.f_mul(scales)?)?;
    let qk = cast(&qk, kind)?;
    let (query, key) = (qk.f_select(0, 0)?, qk.f_select(0, 1)?);
    let attended = if qkv.device() == tch::Device::Cpu {
        // Plain products are faster than the fused kernel on the CPU at these sizes.
        let scores =
            query.f_mul_scalar(1.0 / (head_dim as f64).sqrt())?.f_matmul(&key.f_transpose(-2, -1)?)?;
        scores.f_softmax(-1, None)?.f_matmul(&value)?
    } else {
        fused_attention(&query, &key, &value)?
    };
    Ok(attended.f_transpose(1, 2)?.f_reshape([batch, tokens, heads * head_dim])?)
}

/// Softmax(q kᵀ / √width) v by libtorch's own kernel, which keeps no scores: `[batch, heads, tokens, width]` each.
pub(crate) fn fused_attention(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_scaled_dot_product_attention(query, key, value, None::<&Tensor>, 0.0, false, None, false)?)
}

/// The 256-wide sinusoid of `t` (`[batch]`): 1000 · t in t's own dtype, angles in float32, laid out
/// [cos | sin], rounded to t's dtype and handed out in `compute`.
///
/// Exponentials, cosines and sines are computed in float64 and rounded to float32 once: the last bit of a float32 `exp`
/// differs between processors (in 5 to 9 of the 128 frequencies between MKL's kernels), and 1000 · guidance times that bit
/// is up to 2e-4 of an angle. So the result is the same on every processor and device.
pub(crate) fn time_embedding(t: &Tensor, compute: Kind) -> Result<Tensor> {
    const HALF: i64 = 128;
    let kind = t.f_kind()?;
    // Exponents in float32 as published: a product and a quotient round alike everywhere.
    let exponents = Tensor::f_arange(HALF, (Kind::Float, t.device()))?
        .f_mul_scalar(-(10_000f64.ln()))?
        .f_div_scalar(HALF as f64)?;
    let frequencies = cast(&exponents, Kind::Double)?.f_exp()?;
    let scaled = t.f_mul_scalar(1000.0)?;
    let angles = cast(&scaled, Kind::Float)?
        .f_unsqueeze(1)?
        .f_mul(&cast(&frequencies, Kind::Float)?.f_unsqueeze(0)?)?;
    let angles = cast(&angles, Kind::Double)?;
    let embedding = cast(&Tensor::f_cat(&[angles.f_cos()?, angles.f_sin()?], -1)?, Kind::Float)?;
    cast(&cast(&embedding, kind)?, compute)
}
