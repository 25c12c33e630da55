//! What a network's images and prompts are made of: seams between the transformer and its encoders.

use image::RgbImage;
use tch::Tensor;

use crate::error::Result;

/// What picture bytes are multiplied with on their way to a codec, and what is added then: 0 to 255 become −1 to 1.
pub const BYTE_SCALE: f32 = 1.0 / 127.5;
pub const BYTE_OFFSET: f32 = -1.0;

/// Latents that are a picture's own bytes in another order: each stands for byte · [`BYTE_SCALE`] + [`BYTE_OFFSET`] in float32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatentBytes {
    /// Channels, height, width.
    pub shape: [u32; 3],
    pub bytes: Vec<u8>,
}

/// Pictures to latents and back.
pub trait LatentCodec {
    /// Channels of a latent.
    fn latent_channels(&self) -> i64;

    /// Pixels per latent pixel, in each direction.
    fn downscale(&self) -> i64;

    /// `[batch, 3, height, width]` float in [−1, 1] to `[batch, channels, height / downscale, width / downscale]`
    /// float32. Height and width must be multiples of 2 · downscale, so that the latent packs into tokens.
    fn encode(&self, pixels: &Tensor) -> Result<Tensor>;

    /// What [`LatentCodec::encode`] gives of a picture, bit for bit, from a codec that computes nothing. None otherwise, and
    /// of a picture that does not fit.
    fn encode_picture(&self, _picture: &RgbImage) -> Option<LatentBytes> {
        None
    }

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
