//! Sizes of the autoencoder.

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Channels of a group of the norms.
pub(super) const GROUPS: i64 = 32;

/// Sizes, by the names of the published code (black-forest-labs/flux `modules/autoencoder.py`); further fields are
/// passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderConfig {
    /// Channels of a picture that goes in.
    pub in_channels: i64,
    /// Channels at full resolution; a multiple of 32.
    pub ch: i64,
    /// Channels of a picture that comes out.
    pub out_ch: i64,
    /// Channels of each level in `ch`s; each level after the first has half the resolution of the one before.
    pub ch_mult: Vec<i64>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub num_res_blocks: i64,
    /// Channels of a latent.
    pub z_channels: i64,
    /// A latent is (z − shift) · scale.
    pub scale_factor: f64,
    pub shift_factor: f64,
}

impl AutoencoderConfig {
    /// FLUX.1's autoencoder: 84 million parameters, 8 pixels to a latent pixel.
    pub fn flux() -> Self {
        Self {
            in_channels: 3,
            ch: 128,
            out_ch: 3,
            ch_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            z_channels: 16,
            scale_factor: 0.3611,
            shift_factor: 0.1159,
        }
    }

    /// Fails with the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &'static str, reason: String| Err(ModelError::Config { field, reason });
        let ranges = [
            ("in_channels", self.in_channels, 64),
            ("ch", self.ch, 4096),
            ("out_ch", self.out_ch, 64),
            ("num_res_blocks", self.num_res_blocks, 64),
            ("z_channels", self.z_channels, 1024),
            ("ch_mult", self.ch_mult.len() as i64, 8),
        ];
        for (field, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return bad(field, format!("{value} is not in 1 to {most}"));
            }
        }
        if let Some(multiple) = self.ch_mult.iter().find(|multiple| !(1..=64).contains(*multiple)) {
            return bad("ch_mult", format!("{multiple} is not in 1 to 64"));
        }
        if self.ch % GROUPS != 0 {
            return bad("ch", format!("{} is not a multiple of {GROUPS}", self.ch));
        }
        if !(self.scale_factor.is_finite() && self.scale_factor != 0.0) {
            return bad("scale_factor", format!("{} cannot be divided by", self.scale_factor));
        }
        if !self.shift_factor.is_finite() {
            return bad("shift_factor", format!("{} is not finite", self.shift_factor));
        }
        Ok(())
    }

    /// Channels of each level.
    pub(super) fn widths(&self) -> Vec<i64> {
        self.ch_mult.iter().map(|multiple| self.ch * multiple).collect()
    }

    /// Pixels per latent pixel, in each direction.
    pub fn downscale(&self) -> i64 {
        1 << (self.ch_mult.len().saturating_sub(1))
    }
}
