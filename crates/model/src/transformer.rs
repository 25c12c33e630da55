//! The pre-norm transformer layer of the CLIP family, under Hugging Face's names.
//!
//! ```text
//!  x ─┬─ layer_norm1 ─ self_attn ─ + ─┬─ layer_norm2 ─ mlp.fc1 ─ activation ─ mlp.fc2 ─ + ─▶
//!     └────────────────────────────┘  └───────────────────────────────────────────────┘
//! ```

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::layers::{LayerNorm, Linear, cast, join_heads, split_heads};
use crate::params::{Init, ParamSource};

/// The function between the two matrices of an MLP, by the names in published configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// x · sigmoid(1.702 x).
    #[default]
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// x · Φ(x), with the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation of it.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
}

impl Activation {
    /// Element-wise, in the dtype of `x`.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
            Self::Gelu => x.f_gelu("none")?,
            Self::GeluTanh => x.f_gelu("tanh")?,
        })
    }
}

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerSizes {
    /// Width of a token.
    pub hidden: i64,
    /// Width inside the MLP.
    pub intermediate: i64,
    /// Divides `hidden`.
    pub heads: i64,
    /// Epsilon of the two norms.
    pub eps: f64,
    pub activation: Activation,
}

/// One layer.
#[derive(Debug)]
pub(crate) struct TransformerLayer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    activation: Activation,
}

impl TransformerLayer {
    /// Takes `<name>.self_attn.q_proj.weight` and so on.
    pub fn build(source: &mut dyn ParamSource, name: &str, sizes: &TransformerSizes) -> Result<Self> {
        let TransformerSizes { hidden, intermediate, heads, eps, activation } = *sizes;
        let mut linear = |part: &str, input: i64, output: i64| {
            Linear::build(source, &format!("{name}.{part}"), input, output, true, Init::Xavier)
        };
        let query = linear("self_attn.q_proj", hidden, hidden)?;
        let key = linear("self_attn.k_proj", hidden, hidden)?;
        let value = linear("self_attn.v_proj", hidden, hidden)?;
        let output = linear("self_attn.out_proj", hidden, hidden)?;
        let fc1 = linear("mlp.fc1", hidden, intermediate)?;
        let fc2 = linear("mlp.fc2", intermediate, hidden)?;
        let norm1 = LayerNorm::build(source, &format!("{name}.layer_norm1"), hidden, eps)?;
        let norm2 = LayerNorm::build(source, &format!("{name}.layer_norm2"), hidden, eps)?;
        Ok(Self { norm1, query, key, value, output, norm2, fc1, fc2, heads, activation })
    }

    /// `[batch, tokens, hidden]` to the same. `mask` is added to the attention scores and broadcasts to
    /// `[batch, heads, tokens, tokens]`; see [`attention_mask`].
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let heads = |linear: &Linear| split_heads(&linear.forward(&normed)?, self.heads);
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        let mask = mask.map(|mask| cast(mask, x.f_kind()?)).transpose()?;
        // The default scale is 1 / sqrt(width of a head).
        let mixed = Tensor::f_scaled_dot_product_attention(
            &query,
            &key,
            &value,
            mask.as_ref(),
            0.0,
            false,
            None,
            false,
        )?;
        let x = x.f_add(&self.output.forward(&join_heads(&mixed)?)?)?;
        let wide = self.activation.apply(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok(x.f_add(&self.fc2.forward(&wide)?)?)
    }
}

/// Score of a key that a query may not see: far below any real score, but finite, so that a query which sees nothing
/// gets a mean instead of NaN. Held by float32 and bfloat16.
const MASKED: f64 = -1e30;

/// Additive attention mask, float32: a query sees itself and earlier tokens where `causal`, and of those only the ones
/// that `keep` `[batch, tokens]` (any number, 0 for padding) does not hide. `[1, 1, tokens, tokens]` without `keep`,
/// `[batch, 1, tokens, tokens]` with it.
pub(crate) fn attention_mask(
    tokens: i64,
    causal: bool,
    keep: Option<&Tensor>,
    device: Device,
) -> Result<Tensor> {
    let mut visible = Tensor::f_ones([1, 1, tokens, tokens], (Kind::Bool, device))?;
    if causal {
        visible = visible.f_tril(0)?;
    }
    if let Some(keep) = keep {
        let batch = match *keep.size().as_slice() {
            [batch, count] if count == tokens => batch,
            ref other => {
                let reason = format!("shape {other:?} is not [batch, {tokens}]");
                return Err(ModelError::input("attention_mask", reason));
            }
        };
        let keep = keep.f_to_device(device)?.f_ne(0.0)?.f_view([batch, 1, 1, tokens])?;
        visible = visible.f_logical_and(&keep)?;
    }
    let scores = Tensor::f_zeros(visible.size(), (Kind::Float, device))?;
    Ok(scores.f_masked_fill(&visible.f_logical_not()?, MASKED)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeededInit;

    fn layer() -> TransformerLayer {
        let sizes = TransformerSizes {
            hidden: 8,
            intermediate: 12,
            heads: 2,
            eps: 1e-5,
            activation: Activation::QuickGelu,
        };
        let mut source = SeededInit::new(3, Kind::Float, Device::Cpu);
        TransformerLayer::build(&mut source, "layers.0", &sizes).unwrap()
    }

    fn tokens() -> Tensor {
        (Tensor::arange(2 * 5 * 8, (Kind::Float, Device::Cpu)) * 0.7).sin().view([2, 5, 8])
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn a_causal_layer_sees_no_later_token() {
        let (layer, x) = (layer(), tokens());
        let mask = attention_mask(5, true, None, Device::Cpu).unwrap();
        let whole = layer.forward(&x, Some(&mask)).unwrap();
        let mask = attention_mask(3, true, None, Device::Cpu).unwrap();
        let start = layer.forward(&x.narrow(1, 0, 3), Some(&mask)).unwrap();
        assert!(worst(&whole.narrow(1, 0, 3), &start) < 1e-6);
        assert!(worst(&whole, &layer.forward(&x, None).unwrap()) > 1e-3);
    }

    #[test]
    fn padding_is_not_seen_and_a_row_of_padding_gives_no_nan() {
        let (layer, x) = (layer(), tokens());
        let keep = Tensor::from_slice(&[1i64, 1, 1, 0, 0, 0, 0, 0, 0, 0]).view([2, 5]);
        let mask = attention_mask(5, false, Some(&keep), Device::Cpu).unwrap();
        let masked = layer.forward(&x, Some(&mask)).unwrap();
        let alone = layer.forward(&x.narrow(0, 0, 1).narrow(1, 0, 3), None).unwrap();
        assert!(worst(&masked.narrow(0, 0, 1).narrow(1, 0, 3), &alone) < 1e-6);
        assert_eq!(masked.isfinite().all().int64_value(&[]), 1);
        let short = Tensor::from_slice(&[1i64, 1]).view([1, 2]);
        assert!(attention_mask(5, true, Some(&short), Device::Cpu).is_err());
    }

    #[test]
    fn activations_are_the_named_functions() {
        let x = Tensor::from_slice(&[-1.5f32, 0.5]);
        for (name, expected) in [
            ("quick_gelu", [-0.108_337_8, 0.350_388_6]),
            ("gelu", [-0.100_210_79, 0.345_731_24]),
            ("gelu_new", [-0.100_428_43, 0.345_714_03]),
        ] {
            let activation: Activation = serde_json::from_str(&format!("{name:?}")).unwrap();
            let found = activation.apply(&x).unwrap();
            assert!(worst(&found, &Tensor::from_slice(&expected)) < 1e-6, "{name}: {found:?}");
        }
    }
}
