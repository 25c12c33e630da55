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

/// Norm, attention, residual; norm, MLP with exact GELU, residual. DINOv2 scales both branches by channel.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    projection: Projection,
    output: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
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
        let (hidden, mlp) = (config.hidden_size, config.hidden_size * config.mlp_ratio);
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
        let fc1 = linear("mlp.fc1", hidden, mlp)?;
        let fc2 = linear("mlp.fc2", mlp, hidden)?;
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
            fc1,
            fc2,
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
        self.fc1.visit_mut(&full("mlp.fc1"), visit);
        self.fc2.visit_mut(&full("mlp.fc2"), visit);
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
        let wide = self.fc1.forward(&self.norm2.forward(&hidden)?)?.f_gelu("none")?;
        let mixed = self.fc2.forward(&wide)?;
        Ok(hidden.f_add(&self.scaled(1, mixed)?)?)
    }

    fn scaled(&self, branch: usize, x: Tensor) -> Result<Tensor> {
        Ok(match self.scales.as_ref().and_then(|scales| scales.get(branch)) {
            Some(scale) => x.f_mul(scale)?,
            None => x,
        })
    }
}
