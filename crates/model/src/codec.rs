//! What a network's images and prompts are made of: seams between the transformer and its encoders.

use tch::Tensor;

use crate::error::Result;

/// Pictures to latents and back.
pub trait LatentCodec {
    /// Channels of a latent.
    fn latent_channels(&self) -> i64;

    /// Pixels per latent pixel, in each direction.
    fn downscale(&self) -> i64;

    /// `[batch, 3, height, width]` float in [−1, 1] to `[batch, channels, height / downscale, width / downscale]`
    /// float32. Height and width must be multiples of 2 · downscale, so that the latent packs into tokens.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor>;

    /// The inverse, clamped to [−1, 1].
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

/// Prompts, encoded.
#[derive(Debug)]
pub struct EncodedText {
    /// Tokens `[batch, tokens, width]` float32.
    pub txt: Tensor,
    /// Pooled vector `[batch, width]` float32.
    pub vec: Tensor,
}

/// Prompts to what the transformer takes.
pub trait TextEncoder {
    /// Encodes prompts; the empty prompt is what text dropout trains with.
    fn encode(&self, prompts: &[&str]) -> Result<EncodedText>;
}
