//! Randomness as a function: what is drawn for a sample depends on (job seed, stage, position) only.
//!
//! So a resumed run, or one on another number of ranks, sees the same noise, time and text dropout for
//! each position of the pair log. Nothing here touches libtorch's global generator, except
//! [`torch_noise`], which exists to draw what the published code draws.
//!
//! A key is the first 8 bytes of SHA-256 over a domain word and the numbers; from it SplitMix64 makes a
//! stream of 64-bit words, and the Box–Muller transform in float64 makes normal numbers of those.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// SplitMix64 (Steele, Lea and Flood, 2014) from a key.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1], 53 bits.
    fn next_unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// A stream of standard normal numbers.
#[derive(Clone, Debug)]
pub struct NormalStream {
    words: SplitMix64,
    spare: Option<f64>,
}

impl NormalStream {
    fn from_key(key: u64) -> Self {
        Self { words: SplitMix64(key), spare: None }
    }

    /// The stream for the weight `name` of a network started from `seed`.
    pub fn for_weight(seed: u64, name: &str) -> Self {
        Self::from_key(key(&[b"weight", &seed.to_le_bytes(), name.as_bytes()]))
    }

    /// The stream for a word of a vocabulary.
    pub fn for_word(word: &str) -> Self {
        Self::from_key(key(&[b"word", word.as_bytes()]))
    }

    pub fn next_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * self.words.next_unit().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.words.next_unit()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// The next numbers of the stream as float32 of `shape` on the CPU.
    pub fn tensor(&mut self, shape: &[i64]) -> Result<Tensor> {
        let count = shape
            .iter()
            .try_fold(1i64, |n, d| n.checked_mul(*d).filter(|n| *n >= 0))
            .ok_or_else(|| ModelError::input("noise", format!("shape {shape:?} is not possible")))?;
        let values: Vec<f32> = (0..count).map(|_| self.next_normal() as f32).collect();
        Ok(Tensor::f_from_slice(&values)?.f_view(shape)?)
    }
}

/// The first 8 bytes of SHA-256 over the parts, each preceded by its length.
fn key(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(8).rev().fold(0u64, |word, byte| (word << 8) | u64::from(*byte))
}

/// One sample of one stage of one job: the address that its randomness is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    pub job_seed: u64,
    /// Index of the stage in the job spec, from 0.
    pub stage: u32,
    /// Position in the stage's endless sequence of samples (epoch · log length + index, say).
    pub position: u64,
}

impl SampleKey {
    /// The key of a picture that is drawn for no job, from its own seed alone.
    pub fn for_seed(seed: u64) -> Self {
        Self { job_seed: seed, stage: u32::MAX, position: 0 }
    }

    fn words(&self, purpose: &str) -> SplitMix64 {
        SplitMix64(key(&[
            purpose.as_bytes(),
            &self.job_seed.to_le_bytes(),
            &self.stage.to_le_bytes(),
            &self.position.to_le_bytes(),
        ]))
    }

    /// Standard normal noise, float32 of `shape` on the CPU.
    pub fn noise(&self, shape: &[i64]) -> Result<Tensor> {
        NormalStream { words: self.words("noise"), spare: None }.tensor(shape)
    }

    /// Whether this sample trains with the empty prompt; `probability` in [0, 1].
    pub fn drops_text(&self, probability: f64) -> bool {
        self.words("text-dropout").next_unit() <= probability
    }

    /// The sample's time.
    pub fn time(&self, times: &TimeDistribution) -> f32 {
        match times {
            TimeDistribution::Table(table) => {
                let word = self.words("time").next_u64();
                // Multiply-shift maps 64 bits evenly onto the indices.
                let index = ((u128::from(word) * table.len() as u128) >> 64) as usize;
                table.get(index).copied().unwrap_or(1.0)
            }
            TimeDistribution::LogitNormal { mean, std } => {
                let normal = NormalStream { words: self.words("time"), spare: None }.next_normal();
                (1.0 / (1.0 + (-(mean + std * normal)).exp())) as f32
            }
        }
    }
}

/// How training times are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TimeDistribution {
    /// Uniformly one entry of a table: the published recipe with the table of [`crate::schedule::training_table`].
    Table(Vec<f32>),
    /// sigmoid(mean + std · normal): for training a base from nothing (arXiv 2403.03206, section 3.1).
    LogitNormal { mean: f64, std: f64 },
}

impl TimeDistribution {
    /// The published table for square images of `resolution_px`.
    pub fn published(resolution_px: i64) -> Result<Self> {
        Self::for_tokens(crate::schedule::training_image_tokens(resolution_px))
    }

    /// The published table for a true number of target tokens.
    pub fn for_tokens(image_tokens: i64) -> Result<Self> {
        let table = crate::schedule::training_table_for_tokens(image_tokens)?;
        Ok(Self::Table(Vec::<f32>::try_from(table)?))
    }
}

/// libtorch's seeded normal numbers on the CPU, drawn directly in `kind`, as the published sampler does.
/// Draws of one process are serialised, since the seed belongs to a global generator.
pub fn torch_noise(seed: i64, shape: &[i64], kind: Kind) -> Result<Tensor> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    if shape.iter().any(|d| *d < 0) {
        return Err(ModelError::input("noise", format!("shape {shape:?} is not possible")));
    }
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Ok(Tensor::f_randn(shape, (kind, Device::Cpu))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SampleKey = SampleKey { job_seed: 7, stage: 1, position: 42 };

    #[test]
    fn draws_depend_on_every_part_of_the_key_and_nothing_else() {
        let noise = KEY.noise(&[4, 3]).unwrap();
        tch::manual_seed(1);
        assert_eq!(KEY.noise(&[4, 3]).unwrap(), noise);
        for other in [
            SampleKey { job_seed: 8, ..KEY },
            SampleKey { stage: 0, ..KEY },
            SampleKey { position: 43, ..KEY },
        ] {
            assert_ne!(other.noise(&[4, 3]).unwrap(), noise);
        }
    }

    #[test]
    fn the_stream_is_fixed_for_all_time() {
        // A change here would give every job in flight other noise after an upgrade.
        let first = KEY.noise(&[3]).unwrap();
        let values: Vec<f32> = Vec::try_from(first).unwrap();
        assert_eq!(values, [0.017543893, -1.4715959, -0.123896606]);
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = KEY.noise(&[100_000]).unwrap();
        assert!(noise.mean(Kind::Double).double_value(&[]).abs() < 0.02);
        assert!((noise.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }

    #[test]
    fn times_and_dropout_have_their_frequencies() {
        let table = TimeDistribution::for_tokens(1024).unwrap();
        let keys = |n: u64| (0..n).map(|position| SampleKey { position, ..KEY });
        let mean_of =
            |times: &TimeDistribution| keys(20_000).map(|k| f64::from(k.time(times))).sum::<f64>() / 20_000.0;
        let TimeDistribution::Table(values) = &table else { unreachable!() };
        let expected = values.iter().map(|t| f64::from(*t)).sum::<f64>() / 1000.0;
        assert!((mean_of(&table) - expected).abs() < 0.01);
        assert!((mean_of(&TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 }) - 0.5).abs() < 0.01);
        let dropped = keys(20_000).filter(|k| k.drops_text(0.1)).count();
        assert!((1800..2200).contains(&dropped), "{dropped}");
        assert!(keys(100).all(|k| !k.drops_text(0.0)) && keys(100).all(|k| k.drops_text(1.0)));
    }
}
