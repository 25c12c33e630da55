//! One block of a vision transformer.

use tch::Tensor;

use super::{Naming, VitConfig};
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, attention, join_heads, split_heads};
use crate::params::{Init, ParamSource};

/// Query, key and value: three matrices, or their rows in one.
#[derive(Debug)]
enum Projection {
    Separate { query: Linear, key: Linear, value: Linear },
    Fused(Linear),
}

impl Projection {
    /// `[batch, tokens, hidden]` to query, key and value of the same shape.
    fn forward(&self, tokens: &Tensor) -> Result<[Tensor; 3]> {
        Ok(match self {
            Self::Separate { query, key, value } => {
                [query.forward(tokens)?, key.forward(tokens)?, value.forward(tokens)?]
            }
            Self::Fused(linear) => {
                let all = linear.forward(tokens)?;
                let width = all.size3()?.2 / 3;
                let part = |index: i64| all.f_narrow(2, index * width, width)?.f_contiguous();
                [part(0)?, part(1)?, part(2)?]
            }
        })
    }
}

/// The hidden layer.
#[derive(Debug)]
enum Mlp {
    /// Exact GELU between two matrices.
    Plain { fc1: Linear, fc2: Linear },
    /// silu(a) · b between two matrices, the first of which gives a and b.
    Gated { weights_in: Linear, weights_out: Linear },
}

impl Mlp {
    fn build(config: &VitConfig, name: &str, source: &mut dyn ParamSource) -> Result<Self> {
        let (hidden, width) = (config.hidden_size, config.mlp_width());
        let mut linear = |part: &str, input: i64, output: i64| {
            Linear::build(source, &format!("{name}.{part}"), input, output, true, Init::Xavier)
        };
        Ok(if config.use_swiglu_ffn {
            Self::Gated {
                weights_in: linear(GATED[0], hidden, 2 * width)?,
                weights_out: linear(GATED[1], width, hidden)?,
            }
        } else {
            Self::Plain { fc1: linear(PLAIN[0], hidden, width)?, fc2: linear(PLAIN[1], width, hidden)? }
        })
    }

    /// `[batch, tokens, hidden]` to the same.
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { fc1, fc2 } => fc2.forward(&fc1.forward(tokens)?.f_gelu("none")?),
            Self::Gated { weights_in, weights_out } => {
                let both = weights_in.forward(tokens)?;
                let width = both.size3()?.2 / 2;
                let (gate, value) = (both.f_narrow(2, 0, width)?, both.f_narrow(2, width, width)?);
                weights_out.forward(&gate.f_silu()?.f_mul(&value)?)
            }
        }
    }

    fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        let (parts, layers) = match self {
            Self::Plain { fc1, fc2 } => (PLAIN, [fc1, fc2]),
            Self::Gated { weights_in, weights_out } => (GATED, [weights_in, weights_out]),
        };
        for (part, linear) in parts.into_iter().zip(layers) {
            linear.visit_mut(&format!("{name}.{part}"), visit);
        }
    }
}

const PLAIN: [&str; 2] = ["mlp.fc1", "mlp.fc2"];
const GATED: [&str; 2] = ["mlp.weights_in", "mlp.weights_out"];

/// Norm, attention, residual; norm, hidden layer, residual. DINOv2 scales both branches by channel.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    projection: Projection,
    output: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Scales of the two branches, each `[hidden]`.
    scales: Option<[Tensor; 2]>,
    heads: i64,
}

const SCALES: [&str; 2] = ["layer_scale1.lambda1", "layer_scale2.lambda1"];
const SEPARATE: [&str; 3] =
    ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
const FUSED: &str = "attn.qkv";

fn output_name(separate: bool) -> &'static str {
    if separate { "attention.output.dense" } else { "attn.proj" }
}

impl Block {
    pub fn build(
        config: &VitConfig,
        naming: Naming,
        name: &str,
        source: &mut dyn ParamSource,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let separate = naming == Naming::HuggingFace;
        let full = |part: &str| format!("{name}.{part}");
        let mut linear = |part: &str, input: i64, output: i64| {
            Linear::build(source, &full(part), input, output, true, Init::Xavier)
        };
        let projection = if separate {
            let [query, key, value] = SEPARATE;
            Projection::Separate {
                query: linear(query, hidden, hidden)?,
                key: linear(key, hidden, hidden)?,
                value: linear(value, hidden, hidden)?,
            }
        } else {
            Projection::Fused(linear(FUSED, hidden, 3 * hidden)?)
        };
        let output = linear(output_name(separate), hidden, hidden)?;
        let mlp = Mlp::build(config, name, source)?;
        let scales = if separate {
            let [first, second] = SCALES;
            Some([
                source.take(&full(first), &[hidden], Init::One)?,
                source.take(&full(second), &[hidden], Init::One)?,
            ])
        } else {
            None
        };
        let eps = config.layer_norm_eps;
        Ok(Self {
            norm1: LayerNorm::build(source, &full("norm1"), hidden, eps)?,
            projection,
            output,
            norm2: LayerNorm::build(source, &full("norm2"), hidden, eps)?,
            mlp,
            scales,
            heads: config.num_attention_heads,
        })
    }

    pub fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        let full = |part: &str| format!("{name}.{part}");
        let separate = match &mut self.projection {
            Projection::Separate { query, key, value } => {
                for (part, linear) in SEPARATE.into_iter().zip([query, key, value]) {
                    linear.visit_mut(&full(part), visit);
                }
                true
            }
            Projection::Fused(linear) => {
                linear.visit_mut(&full(FUSED), visit);
                false
            }
        };
        self.output.visit_mut(&full(output_name(separate)), visit);
        self.norm1.visit_mut(&full("norm1"), visit);
        self.norm2.visit_mut(&full("norm2"), visit);
        self.mlp.visit_mut(name, visit);
        for (part, scale) in SCALES.into_iter().zip(self.scales.iter_mut().flatten()) {
            visit(full(part), scale);
        }
    }

    /// `[batch, tokens, hidden]` to the same.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let [query, key, value] = self.projection.forward(&self.norm1.forward(hidden)?)?;
        let heads = |x: &Tensor| split_heads(x, self.heads);
        let query = heads(&query)?;
        let scale = (query.size4()?.3 as f64).sqrt().recip();
        let mixed = attention(&query, &heads(&key)?, &heads(&value)?, scale, None)?;
        let attended = self.output.forward(&join_heads(&mixed)?)?;
        let hidden = hidden.f_add(&self.scaled(0, attended)?)?;
        let mixed = self.mlp.forward(&self.norm2.forward(&hidden)?)?;
        Ok(hidden.f_add(&self.scaled(1, mixed)?)?)
    }

    fn scaled(&self, branch: usize, x: Tensor) -> Result<Tensor> {
        Ok(match self.scales.as_ref().and_then(|scales| scales.get(branch)) {
            Some(scale) => x.f_mul(scale)?,
            None => x,
        })
    }
}
