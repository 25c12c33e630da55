//! Random numbers and ids that decide nothing: jitter of waits, names of processes. One place, so that a simulation can
//! have them all from its seed.

/// A number, uniform over all of `u64`.
pub fn number() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(number) = seeded::number() {
        return number;
    }
    uuid::Uuid::new_v4().as_u64_pair().1
}

/// An id that nothing else has, as a UUID is written.
pub fn id() -> String {
    let (high, low) = (number(), number());
    uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
        .into_uuid()
        .to_string()
}

#[cfg(feature = "testing")]
pub use seeded::seed_thread;

#[cfg(feature = "testing")]
mod seeded {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// From now on this thread's numbers follow from `seed`; with `None` they come from the system again.
    pub fn seed_thread(seed: Option<u64>) {
        STATE.set(seed);
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    pub(super) fn number() -> Option<u64> {
        let state = STATE.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(Some(state));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ (mixed >> 31))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_uuids() {
        let (one, two) = (id(), id());
        assert_ne!(one, two);
        assert_eq!(uuid::Uuid::parse_str(&one).map(|id| id.get_version_num()), Ok(4));
    }
}
