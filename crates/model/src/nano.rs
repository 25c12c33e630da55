//! Codecs of the nano preset: fixed, without weights.
//!
//! Pixels become latents by moving 2×2 pixels into channels, so that a token holds 4×4 pixels. Words become frozen
//! random vectors: enough for a base that is trained from nothing to tell them apart.

use image::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::codec::{EncodedText, LatentBytes, LatentCodec, TextEncoder};
use crate::error::{ModelError, Result};
use crate::randomness::NormalStream;

/// Space-to-depth over 2×2 pixels: `[b, 3, h, w]` to `[b, 12, h/2, w/2]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PixelCodec;

impl LatentCodec for PixelCodec {
    fn latent_channels(&self) -> i64 {
        12
    }

    fn downscale(&self) -> i64 {
        2
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        match *pixels.size().as_slice() {
            [_, 3, height, width] if height > 0 && width > 0 && height % 4 == 0 && width % 4 == 0 => {
                Ok(pixels.f_to_kind(Kind::Float)?.f_pixel_unshuffle(2)?)
            }
            _ => Err(ModelError::input(
                "pixels",
                format!(
                    "shape {:?} is not [batch, 3, height, width] with sides that are multiples of 4",
                    pixels.size()
                ),
            )),
        }
    }

    /// A curator serves nano's pairs at the speed of this.
    fn encode_picture(&self, picture: &RgbImage) -> Option<LatentBytes> {
        let (width, height) = picture.dimensions();
        if width == 0 || height == 0 || !width.is_multiple_of(4) || !height.is_multiple_of(4) {
            return None;
        }
        let (line_bytes, row_bytes) = (width as usize * 3, width as usize / 2);
        let plane_bytes = row_bytes * (height as usize / 2);
        let mut bytes = vec![0u8; 12 * plane_bytes];
        for (channel, plane) in bytes.chunks_exact_mut(plane_bytes).enumerate() {
            // Channel 4 · color + 2 · dy + dx has that colour of the pixel at (dx, dy) of each 2×2.
            let (color, dy, dx) = (channel / 4, channel / 2 % 2, channel % 2);
            let lines = picture.as_raw().chunks_exact(line_bytes).skip(dy).step_by(2);
            for (row, line) in plane.chunks_exact_mut(row_bytes).zip(lines) {
                // Two pixels side by side are six bytes.
                for (latent, pixels) in row.iter_mut().zip(line.chunks_exact(6)) {
                    *latent = pixels[3 * dx + color];
                }
            }
        }
        Some(LatentBytes { shape: [12, height / 2, width / 2], bytes })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match *latents.size().as_slice() {
            [_, 12, _, _] => Ok(latents.f_to_kind(Kind::Float)?.f_pixel_shuffle(2)?.f_clamp(-1.0, 1.0)?),
            _ => Err(ModelError::input(
                "latents",
                format!("shape {:?} is not [batch, 12, height, width]", latents.size()),
            )),
        }
    }
}

/// Frozen random word vectors with a small position term.
#[derive(Clone, Copy, Debug, Default)]
pub struct WordVectorText;

impl WordVectorText {
    /// Width of a token and of the pooled vector.
    pub const WIDTH: i64 = 64;
    /// Tokens of every prompt: longer ones are cut, shorter ones padded with zeros.
    pub const TOKENS: i64 = 24;
    /// Amplitude of the position term beside word vectors of unit variance.
    const POSITION_AMPLITUDE: f32 = 0.3;

    fn tokens(prompt: &str) -> (Vec<f32>, Vec<f32>) {
        let (width, tokens) = (Self::WIDTH as usize, Self::TOKENS as usize);
        let mut txt = vec![0f32; width * tokens];
        let mut vec = vec![0f32; width];
        let words: Vec<String> = prompt
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .take(tokens)
            .map(str::to_lowercase)
            .collect();
        for (position, (word, token)) in words.iter().zip(txt.chunks_exact_mut(width)).enumerate() {
            let mut stream = NormalStream::for_word(word);
            for (channel, (value, pooled)) in token.iter_mut().zip(&mut vec).enumerate() {
                let normal = stream.next_normal() as f32;
                *value = normal + Self::POSITION_AMPLITUDE * position_term(position, channel);
                *pooled += normal / words.len() as f32;
            }
        }
        (txt, vec)
    }
}

/// Sinusoids of geometric wavelengths, sine in even channels and cosine in odd ones.
fn position_term(position: usize, channel: usize) -> f32 {
    let wavelength = 100f64.powf((channel / 2) as f64 / (WordVectorText::WIDTH / 2) as f64);
    let angle = position as f64 / wavelength;
    (if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
}

impl TextEncoder for WordVectorText {
    /// `[batch, 24, 64]` tokens and `[batch, 64]` mean word vectors, on the CPU. A word is a run of letters
    /// and digits, lower-cased; the empty prompt is all zeros.
    fn encode(&self, prompts: &[&str]) -> Result<EncodedText> {
        let (mut txt, mut vec) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let (tokens, pooled) = Self::tokens(prompt);
            txt.extend(tokens);
            vec.extend(pooled);
        }
        let batch = prompts.len() as i64;
        let tensor = |values: &[f32], shape: &[i64]| -> Result<Tensor> {
            if values.is_empty() {
                return Ok(Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?);
            }
            Ok(Tensor::f_from_slice(values)?.f_view(shape)?)
        };
        Ok(EncodedText {
            txt: tensor(&txt, &[batch, Self::TOKENS, Self::WIDTH])?,
            vec: tensor(&vec, &[batch, Self::WIDTH])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{BYTE_OFFSET, BYTE_SCALE};

    #[test]
    fn pixels_come_back_and_are_clamped() {
        let pixels =
            Tensor::arange(2 * 3 * 8 * 4, (Kind::Float, Device::Cpu)).view([2, 3, 8, 4]) / 96.0 - 1.0;
        let latents = PixelCodec.encode(&pixels).unwrap();
        assert_eq!(latents.size(), [2, 12, 4, 2]);
        assert_eq!(PixelCodec.decode(&latents).unwrap(), pixels);
        assert!(PixelCodec.decode(&(latents * 9.0)).unwrap().abs().max().double_value(&[]) <= 1.0);
        assert!(PixelCodec.encode(&pixels.narrow(2, 0, 6)).is_err());
    }

    #[test]
    fn a_picture_is_encoded_without_tensors_to_the_same_bits() {
        let picture =
            RgbImage::from_fn(12, 8, |x, y| image::Rgb([(x * 21) as u8, (y * 36) as u8, (x * y * 3) as u8]));
        let bytes = Tensor::from_slice(picture.as_raw()).view([8, 12, 3]).permute([2, 0, 1]).unsqueeze(0);
        let pixels = bytes.to_kind(Kind::Float) * f64::from(BYTE_SCALE) + f64::from(BYTE_OFFSET);
        let expected: Vec<f32> = Vec::try_from(PixelCodec.encode(&pixels).unwrap().reshape([-1])).unwrap();
        let LatentBytes { shape, bytes } = PixelCodec.encode_picture(&picture).unwrap();
        assert_eq!(shape, [12, 4, 6]);
        let values: Vec<f32> = bytes.iter().map(|byte| f32::from(*byte) * BYTE_SCALE + BYTE_OFFSET).collect();
        assert_eq!(values, expected);
        assert_eq!(PixelCodec.encode_picture(&RgbImage::new(6, 8)), None);
        assert_eq!(PixelCodec.encode_picture(&RgbImage::new(0, 0)), None);
    }

    #[test]
    fn words_decide_and_the_empty_prompt_is_zero() {
        let encode = |prompt: &str| WordVectorText.encode(&[prompt]).unwrap();
        let apple = encode("A red APPLE");
        assert_eq!(apple.txt.size(), [1, 24, 64]);
        assert_eq!(apple.vec, encode("a red, apple.").vec);
        assert_ne!(apple.vec, encode("a green apple").vec);
        assert_ne!(apple.txt, encode("red a apple").txt);
        let empty = encode("");
        assert_eq!(empty.txt.abs().max().double_value(&[]), 0.0);
        assert_eq!(empty.vec.abs().max().double_value(&[]), 0.0);
        assert_eq!(WordVectorText.encode(&[]).unwrap().txt.size(), [0, 24, 64]);
        // Word vectors have unit variance.
        assert!((apple.txt.get(0).get(0).std(true).double_value(&[]) - 1.0).abs() < 0.4);
        let long = "word ".repeat(100);
        assert_eq!(encode(&long).txt.size(), [1, 24, 64]);
    }
}
