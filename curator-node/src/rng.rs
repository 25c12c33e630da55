//! Random draws that are a function of what they are for.

use sha2::{Digest, Sha256};

/// A stream of random numbers whose start depends on a purpose and numbers alone (SplitMix64 from a SHA-256 seed).
///
/// The same arguments give the same stream on every machine and in every run, so a unit of work can be done again, by
/// anyone, with the same result.
#[derive(Clone, Debug)]
pub struct SeededRng {
    state: u64,
}

impl SeededRng {
    /// Starts the stream of `purpose` for `numbers` (a job seed, a stage, a unit, …).
    pub fn new(purpose: &str, numbers: &[u64]) -> SeededRng {
        let mut hash = Sha256::new();
        hash.update((purpose.len() as u64).to_le_bytes());
        hash.update(purpose.as_bytes());
        for number in numbers {
            hash.update(number.to_le_bytes());
        }
        SeededRng { state: first_u64(&hash.finalize()) }
    }

    /// Uniform over all 64-bit values.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..count`; 0 if `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next_u64()) * count as u128) >> 64) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Any of `items`; none if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Reorders `items` at random (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn first_u64(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_arguments_same_stream_and_others_another() {
        let mut a = SeededRng::new("scene", &[1, 2]);
        let mut b = SeededRng::new("scene", &[1, 2]);
        let mut c = SeededRng::new("scene", &[2, 1]);
        let first: Vec<u64> = (0..8).map(|_| a.next_u64()).collect();
        assert_eq!(first, (0..8).map(|_| b.next_u64()).collect::<Vec<_>>());
        assert_ne!(first, (0..8).map(|_| c.next_u64()).collect::<Vec<_>>());
    }

    #[test]
    fn draws_cover_their_range() {
        let mut draw = SeededRng::new("range", &[]);
        let mut seen = [0u32; 5];
        for _ in 0..1000 {
            seen[draw.below(5)] += 1;
            let x = draw.range(-2.0, 3.0);
            assert!((-2.0..3.0).contains(&x));
        }
        assert!(seen.iter().all(|n| *n > 150), "{seen:?}");
        assert_eq!(draw.below(0), 0);
        assert!(draw.pick::<u8>(&[]).is_none());
    }
}
