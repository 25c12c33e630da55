//! A random order of `0..count` that takes no memory.

use crate::rng::SeededRng;

/// Rounds of the Feistel network; four are the usual least for a permutation that shows no pattern.
const ROUNDS: usize = 4;

/// Maps `index`, below `count`, to its place in an order that depends on `purpose` and `key` alone: a balanced
/// Feistel network over the next larger square of a power of two, walked until it comes back below `count`. Every
/// place is taken once.
pub fn place(index: u64, count: u64, purpose: &str, key: &[u64]) -> u64 {
    if count < 2 {
        return 0;
    }
    let bits = (64 - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << bits) - 1;
    let mut draw = SeededRng::new(purpose, key);
    let keys: [u64; ROUNDS] = std::array::from_fn(|_| draw.next_u64());
    let mut value = index % count;
    loop {
        let (mut left, mut right) = (value >> bits, value & mask);
        for key in keys {
            (left, right) = (right, left ^ (mixed(right ^ key) & mask));
        }
        value = (left << bits) | right;
        // The square has less than four times as many places, so a few steps do.
        if value < count {
            return value;
        }
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_place_is_taken_once(count in 1u64..3000, key in any::<u64>()) {
            let mut places: Vec<u64> = (0..count).map(|index| place(index, count, "test", &[key])).collect();
            places.sort_unstable();
            prop_assert_eq!(places, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_largest_counts_are_ordered_too() {
        for count in [u64::MAX >> 1, (1 << 40) + 1] {
            assert!(place(count - 1, count, "test", &[1]) < count);
        }
        assert_ne!(place(5, 1 << 40, "test", &[1]), place(5, 1 << 40, "test", &[2]));
    }
}
