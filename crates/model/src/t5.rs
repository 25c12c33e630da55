//! The encoder of T5 v1.1: the text tokens of the diffusion transformer.
//!
//! ```text
//!  ids ─ shared ─┬─ layer_norm ─ SelfAttention ─ + ─┬─ layer_norm ─ DenseReluDense ─ + ─ … ─ final_layer_norm ─▶
//!                └────────────────────────────────┘ └─────────────────────────────┘
//! ```
//!
//! The network of "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (arXiv 1910.10683)
//! in its version 1.1, under the tensor names of the published Hugging Face checkpoints. There is no attention mask:
//! padding is attended to like any token and its states are part of the output, because the diffusion transformer was
//! trained on them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::layers::{Linear, cast, join_heads, split_heads};
use crate::naming::Network;
use crate::params::{Init, Loader, ParamSource, SeededInit, check_files, none_of};
use crate::published::{check_eps, check_range, config_beside, read_config};
use crate::tokenizer::check_ids;
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// The feed-forward part of a block, by its name in published configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FeedForward {
    /// wo(gelu(wi_0 x) · wi_1 x), with the tanh form of GELU.
    #[default]
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// Sizes of an encoder, with the keys of a published `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct T5Config {
    pub vocab_size: i64,
    /// Width of a token.
    pub d_model: i64,
    /// Width of one attention head; heads · width need not be `d_model`.
    pub d_kv: i64,
    /// Width inside the feed-forward part.
    pub d_ff: i64,
    pub num_layers: i64,
    pub num_heads: i64,
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: i64,
    /// Offset in tokens from which on all offsets share a bucket.
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: i64,
    pub feed_forward_proj: FeedForward,
    pub layer_norm_epsilon: f64,
}

fn default_buckets() -> i64 {
    32
}

fn default_max_distance() -> i64 {
    128
}

impl T5Config {
    /// T5 v1.1 XXL, the text encoder of FLUX.1: 4.8 billion parameters.
    pub fn xxl() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10_240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: default_buckets(),
            relative_attention_max_distance: default_max_distance(),
            feed_forward_proj: FeedForward::GatedGelu,
            layer_norm_epsilon: 1e-6,
        }
    }

    /// Reads a published `config.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_config(path, None)?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration in the folder of `weights`; [`T5Config::xxl`] where there is none.
    pub fn beside(weights: &Path) -> Result<Self> {
        config_beside(weights).map_or_else(|| Ok(Self::xxl()), |path| Self::read(&path))
    }

    /// Checks every field; the error names the first one out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 16),
            ("d_kv", self.d_kv, 1 << 12),
            ("d_ff", self.d_ff, 1 << 18),
            ("num_layers", self.num_layers, 1 << 10),
            ("num_heads", self.num_heads, 1 << 12),
        ] {
            check_range(field, value, 1..=most)?;
        }
        check_range("relative_attention_num_buckets", self.relative_attention_num_buckets, 4..=1 << 16)?;
        // The logarithmic buckets lie between the exact ones and the largest distance.
        let exact = self.relative_attention_num_buckets / 4;
        check_range(
            "relative_attention_max_distance",
            self.relative_attention_max_distance,
            exact + 1..=1 << 24,
        )?;
        check_eps("layer_norm_epsilon", self.layer_norm_epsilon)
    }
}

/// Bucket of each offset (key position − query position), int64 of any shape on the CPU.
///
/// Half of the `buckets` are for keys after the query. Of each half, the first half stands for one offset each and the
/// rest widen logarithmically up to `max_distance`. Rounded as published (float32, transformers `modeling_t5.py`,
/// `_relative_position_bucket`), so that offsets at the edge of two buckets fall to the same side; the logarithm itself is
/// taken in float64, since the last bit of a float32 one differs between processors.
pub fn relative_buckets(offsets: &Tensor, buckets: i64, max_distance: i64) -> Result<Tensor> {
    let half = buckets / 2;
    let exact = half / 2;
    if exact < 1 || max_distance <= exact {
        let reason = format!("{buckets} buckets up to {max_distance} leave no room");
        return Err(ModelError::input("buckets", reason));
    }
    let after = offsets.f_gt(0i64)?.f_to_kind(Kind::Int64)?.f_mul_scalar(half)?;
    let distance = offsets.f_abs()?;
    let span = (max_distance as f64 / exact as f64).ln();
    let wide = distance
        // Smaller ones are not used, and the logarithm of 0 has no integer.
        .f_clamp_min(exact)?
        .f_to_kind(Kind::Double)?
        .f_div_scalar(exact)?
        .f_log()?
        .f_to_kind(Kind::Float)?
        .f_div_scalar(span)?
        .f_mul_scalar(half - exact)?
        .f_to_kind(Kind::Int64)?
        .f_add_scalar(exact)?
        .f_clamp_max(half - 1)?;
    Ok(distance.f_where_self(&distance.f_lt(exact)?, &wide)?.f_add(&after)?)
}

/// x / rms(x) · weight, without a mean and without a bias; the mean square in float32.
#[derive(Debug)]
struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn build(source: &mut dyn ParamSource, name: &str, config: &T5Config) -> Result<Self> {
        let weight = source.take(&format!("{name}.weight"), &[config.d_model], Init::One)?;
        Ok(Self { weight, eps: config.layer_norm_epsilon })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let wide = cast(x, Kind::Float)?;
        let mean_square = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
        let normed = wide.f_mul(&mean_square.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(cast(&normed, kind)?.f_mul(&cast(&self.weight, kind)?)?)
    }
}

/// Self-attention and feed-forward, each on a normed residual stream. No linear map has a bias.
#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: RmsNorm,
    gate: Linear,
    wide: Linear,
    narrow: Linear,
    heads: i64,
}

impl Block {
    fn build(source: &mut dyn ParamSource, index: i64, config: &T5Config) -> Result<Self> {
        let (model, inner, hidden) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let name = |part: &str| format!("encoder.block.{index}.layer.{part}");
        let attention_norm = RmsNorm::build(source, &name("0.layer_norm"), config)?;
        let feed_forward_norm = RmsNorm::build(source, &name("1.layer_norm"), config)?;
        let mut linear = |part: &str, input: i64, output: i64, variance: i64| {
            let deviation = Init::Normal((variance as f64).sqrt().recip());
            Linear::build(source, &name(part), input, output, false, deviation)
        };
        Ok(Self {
            attention_norm,
            feed_forward_norm,
            // Scores are not divided by the root of the head width; the weights of the queries are.
            query: linear("0.SelfAttention.q", model, inner, model * config.d_kv)?,
            key: linear("0.SelfAttention.k", model, inner, model)?,
            value: linear("0.SelfAttention.v", model, inner, model)?,
            output: linear("0.SelfAttention.o", inner, model, inner)?,
            gate: linear("1.DenseReluDense.wi_0", model, hidden, model)?,
            wide: linear("1.DenseReluDense.wi_1", model, hidden, model)?,
            narrow: linear("1.DenseReluDense.wo", hidden, model, hidden)?,
            heads: config.num_heads,
        })
    }

    /// `[batch, tokens, d_model]` to the same; `bias` `[1, heads, tokens, tokens]` is added to the scores.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let heads = |linear: &Linear| split_heads(&linear.forward(&normed)?, self.heads);
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        let mixed = Tensor::f_scaled_dot_product_attention(
            &query,
            &key,
            &value,
            Some(bias),
            0.0,
            false,
            Some(1.0),
            false,
        )?;
        let x = x.f_add(&self.output.forward(&join_heads(&mixed)?)?)?;
        let normed = self.feed_forward_norm.forward(&x)?;
        let gate = self.gate.forward(&normed)?.f_gelu("tanh")?;
        Ok(x.f_add(&self.narrow.forward(&gate.f_mul(&self.wide.forward(&normed)?)?)?)?)
    }
}

/// The encoder. Weights and activations are of one dtype on one device.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    /// `[vocab_size, d_model]`.
    tokens: Tensor,
    /// Bias by bucket and head, `[buckets, heads]`: block 0 holds it, all blocks use it.
    position_bias: Tensor,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    kind: Kind,
    device: Device,
}

/// Receives the residual stream before each block by name: `hidden0`, `hidden1`, ….
pub type Trace<'a> = &'a mut dyn FnMut(&str, &Tensor);

const SHARED: &str = "shared.weight";
const EMBEDDED: &str = "encoder.embed_tokens.weight";

/// Tensors of published files that the encoder does not use: the other half of a whole T5, and the second copy of the
/// token table.
fn of_no_use(name: &str) -> bool {
    name.starts_with("decoder.") || name.starts_with("lm_head.") || name == EMBEDDED
}

impl T5Encoder {
    /// Loads the network from a safetensors file, an index of several or a folder ([`WeightFiles::open`]) into `kind` on
    /// `device`, one tensor at a time. A whole T5 will do: its decoder is left out.
    pub fn load(config: &T5Config, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open_as(path, Network::T5)?;
        let origin = files.origin();
        // Before ten gigabytes are read.
        none_of(Self::problems(config, files.header())?, &origin)?;
        Self::from_loader(config, Loader::from_files(files, kind, device), &origin, kind, device)
    }

    /// Holds the headers of the files at `path` against `config`, as [`T5Encoder::load`] would, and reads no tensor.
    pub fn check_files(config: &T5Config, path: &Path) -> Result<()> {
        check_files(path, Network::T5, |header| Self::problems(config, header))
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &T5Config, header: Header) -> Result<Vec<TensorProblem>> {
        let mut loader = Loader::from_header(header);
        loader.ignore(of_no_use);
        Self::build(config, &mut loader, Kind::Float, Device::Cpu)?;
        Ok(loader.into_problems())
    }

    /// Takes tensors under published names; every one that does not fit is listed. `origin` names them in errors.
    pub fn from_tensors(
        config: &T5Config,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        Self::from_loader(config, Loader::from_map(tensors, kind, device), origin, kind, device)
    }

    /// A fresh network, a function of `seed`, with the variances that T5 starts training from.
    pub fn init(config: &T5Config, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::build(config, &mut SeededInit::new(seed, kind, device), kind, device)
    }

    fn from_loader(
        config: &T5Config,
        mut loader: Loader,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        loader.ignore(of_no_use);
        let network = Self::build(config, &mut loader, kind, device)?;
        loader.finish(origin)?;
        Ok(network)
    }

    pub(crate) fn build(
        config: &T5Config,
        source: &mut dyn ParamSource,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        // Published files hold the token table under either name or under both.
        let table = if !source.has(SHARED) && source.has(EMBEDDED) { EMBEDDED } else { SHARED };
        let heads = config.num_heads;
        Ok(Self {
            config: config.clone(),
            tokens: source.take(table, &[config.vocab_size, config.d_model], Init::Normal(1.0))?,
            position_bias: source.take(
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                &[config.relative_attention_num_buckets, heads],
                Init::Normal((config.d_model as f64).sqrt().recip()),
            )?,
            blocks: (0..config.num_layers)
                .map(|index| Block::build(source, index, config))
                .collect::<Result<_>>()?,
            final_norm: RmsNorm::build(source, "encoder.final_layer_norm", config)?,
            kind,
            device,
        })
    }

    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Encodes token ids, int64 `[batch, tokens]` on any device, to `[batch, tokens, d_model]` in the network's dtype on
    /// its device.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_traced(ids, None)
    }

    /// As [`T5Encoder::forward`]; `trace` sees the values inside.
    pub fn forward_traced(&self, ids: &Tensor, mut trace: Option<Trace<'_>>) -> Result<Tensor> {
        let (_, tokens) = check_ids(ids, self.config.vocab_size)?;
        tch::no_grad(|| {
            let ids = ids.f_to_device(self.device)?;
            let bias = self.bias(tokens)?;
            let mut x = Tensor::f_embedding(&self.tokens, &ids, -1, false, false)?;
            for (index, block) in self.blocks.iter().enumerate() {
                if let Some(trace) = trace.as_mut() {
                    trace(&format!("hidden{index}"), &x);
                }
                x = block.forward(&x, &bias)?;
            }
            self.final_norm.forward(&x)
        })
    }

    /// What is added to the scores of `tokens` queries and keys, `[1, heads, tokens, tokens]`.
    fn bias(&self, tokens: i64) -> Result<Tensor> {
        let count = (Kind::Int64, Device::Cpu);
        let offsets = Tensor::f_arange_start(1 - tokens, tokens, count)?;
        let buckets = relative_buckets(
            &offsets,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )?;
        let positions = Tensor::f_arange(tokens, count)?;
        // [query, key]: the place of key − query among the offsets
        let places = positions.f_view([1, tokens])?.f_sub(&positions.f_view([tokens, 1])?)?;
        let places = places.f_add_scalar(tokens - 1)?.f_flatten(0, 1)?;
        let chosen = buckets.f_index_select(0, &places)?.f_to_device(self.device)?;
        let bias = self.position_bias.f_index_select(0, &chosen)?;
        // [query · key, heads] -> [1, heads, query, key]
        let bias = bias.f_view([1, tokens, tokens, self.config.num_heads])?.f_permute([0, 3, 1, 2])?;
        cast(&bias.f_contiguous()?, self.kind)
    }
}

#[cfg(test)]
mod tests;
