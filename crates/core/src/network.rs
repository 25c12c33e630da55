//! Sizes of the diffusion transformers that jobs train, and what follows from them: parameters, and the arithmetic of a step.

use crate::spec::{ModelPreset, ModelSpec};

/// A FLUX-style diffusion transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Channels of a token of a picture.
    pub in_channels: u64,
    /// Width of the pooled text vector.
    pub vec_in: u64,
    /// Width of a text token.
    pub context_in: u64,
    pub hidden: u64,
    /// Width of the MLPs.
    pub mlp: u64,
    pub heads: u64,
    /// Double-stream blocks.
    pub double: u64,
    /// Single-stream blocks.
    pub single: u64,
    /// Whether it takes a guidance value beside the time.
    pub guidance: bool,
}

/// Tokens of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTokens {
    /// Samples.
    pub batch: u64,
    /// Text tokens of one sample.
    pub text: u64,
    /// Target tokens of one sample.
    pub target: u64,
    /// Reference tokens of one sample, all references together.
    pub references: u64,
}

/// Width of the sinusoids that time and guidance are embedded as.
const SINUSOIDS: u64 = 256;

impl StepTokens {
    fn image(&self) -> u64 {
        self.target + self.references
    }

    pub fn all(&self) -> u64 {
        self.text + self.image()
    }
}

impl Network {
    /// The network that a spec asks for.
    pub fn of(model: &ModelSpec) -> Self {
        let flux = Self {
            in_channels: 64,
            vec_in: 768,
            context_in: 4096,
            hidden: 3072,
            mlp: 4 * 3072,
            heads: 24,
            double: 19,
            single: 38,
            guidance: true,
        };
        let preset = match model.preset {
            ModelPreset::FluxDev => flux,
            ModelPreset::FluxSchnell => Self { guidance: false, ..flux },
            ModelPreset::Nano => Self {
                in_channels: 48,
                vec_in: 64,
                context_in: 64,
                hidden: 192,
                mlp: 4 * 192,
                heads: 6,
                double: 2,
                single: 6,
                guidance: false,
            },
        };
        match &model.sizes {
            None => preset,
            Some(sizes) => Self {
                hidden: sizes.hidden_size.into(),
                mlp: 4 * u64::from(sizes.hidden_size),
                heads: sizes.num_heads.into(),
                double: sizes.depth.into(),
                single: sizes.depth_single_blocks.into(),
                ..preset
            },
        }
    }

    /// Widths of the stream and of the MLPs, and numbers of blocks: a spec may say sizes whose products need more than 64 bits.
    fn wide(&self) -> [u128; 4] {
        [self.hidden, self.mlp, self.double, self.single].map(u128::from)
    }

    /// Weights and biases; `u64::MAX` stands for more.
    pub fn parameters(&self) -> u64 {
        let [hidden, mlp, double, single] = self.wide();
        let linear = |rows: u128, columns: u128| rows * columns + columns;
        let embedder = |width: u64| linear(width.into(), hidden) + linear(hidden, hidden);
        let head = 2 * hidden / u128::from(self.heads.max(1));
        let stream = linear(hidden, 6 * hidden)
            + linear(hidden, 3 * hidden)
            + head
            + linear(hidden, hidden)
            + linear(hidden, mlp)
            + linear(mlp, hidden);
        let block = linear(hidden, 3 * hidden + mlp)
            + linear(hidden + mlp, hidden)
            + head
            + linear(hidden, 3 * hidden);
        let guidance = if self.guidance { embedder(SINUSOIDS) } else { 0 };
        narrow(
            linear(self.in_channels.into(), hidden)
                + linear(self.context_in.into(), hidden)
                + embedder(SINUSOIDS)
                + embedder(self.vec_in)
                + guidance
                + double * 2 * stream
                + single * block
                + linear(hidden, self.in_channels.into())
                + linear(hidden, 2 * hidden),
        )
    }

    /// Weights of a LoRA on every attention projection; `u64::MAX` stands for more.
    pub fn adapter_parameters(&self, rank: u64) -> u64 {
        let [hidden, mlp, double, single] = self.wide();
        let double = double * 2 * (4 * hidden + 2 * hidden);
        let single = single * (4 * hidden + (hidden + mlp) + hidden);
        narrow(u128::from(rank) * (double + single))
    }

    /// Products of scores and of values: 2 · tokens² · hidden multiply-adds a block.
    fn attention_flops(&self, tokens: &StepTokens) -> u128 {
        let [hidden, _, double, single] = self.wide();
        (double + single) * 4 * u128::from(tokens.batch) * u128::from(tokens.all()).pow(2) * hidden
    }

    fn linear_flops(&self, tokens: &StepTokens) -> u128 {
        let [hidden, mlp, double, single] = self.wide();
        let in_channels = u128::from(self.in_channels);
        let embedders = SINUSOIDS + self.vec_in + if self.guidance { SINUSOIDS } else { 0 };
        let embedder_count = if self.guidance { 3 } else { 2 };
        // Weights that every sample passes once: time, guidance and pooled text, and all modulations.
        let per_sample = u128::from(embedders) * hidden
            + embedder_count * hidden * hidden
            + double * 12 * hidden * hidden
            + single * 3 * hidden * hidden
            + 2 * hidden * hidden;
        let double_token = double * (4 * hidden * hidden + 2 * hidden * mlp);
        let single_token = single * (hidden * (3 * hidden + mlp) + (hidden + mlp) * hidden);
        let per_batch = per_sample
            + u128::from(tokens.text) * u128::from(self.context_in) * hidden
            + u128::from(tokens.image()) * in_channels * hidden
            + u128::from(tokens.all()) * (double_token + single_token)
            + u128::from(tokens.target) * hidden * in_channels;
        2 * u128::from(tokens.batch) * per_batch
    }

    fn adapter_flops(&self, tokens: &StepTokens, rank: u64) -> u128 {
        let [hidden, mlp, double, single] = self.wide();
        let rank = u128::from(rank);
        let double_token = double * rank * (4 * hidden + 2 * hidden);
        let single_token = single * rank * (4 * hidden + (hidden + mlp) + hidden);
        2 * u128::from(tokens.batch) * u128::from(tokens.all()) * (double_token + single_token)
    }

    /// Floating-point operations of one forward pass of the base: a multiply-add is two, and only matrix products count.
    pub fn forward_flops(&self, tokens: &StepTokens) -> u64 {
        narrow(self.attention_flops(tokens) + self.linear_flops(tokens))
    }

    /// Least arithmetic of a training step: forward once, and backward without computing anything a second time.
    ///
    /// With an adapter of `rank` the frozen base passes gradients on (as much as its forward pass) but has none of its own;
    /// what trains costs three forward passes, and so does attention. Without a rank everything trains.
    pub fn step_flops(&self, tokens: &StepTokens, rank: Option<u64>) -> u64 {
        let (attention, linear) = (self.attention_flops(tokens), self.linear_flops(tokens));
        narrow(match rank {
            Some(rank) => 2 * linear + 3 * (attention + self.adapter_flops(tokens, rank)),
            None => 3 * (linear + attention),
        })
    }
}

fn narrow(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
