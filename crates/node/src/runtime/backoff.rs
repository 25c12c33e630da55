//! How long to wait before the next try: exponential, with jitter, so that those who lost the same peer at the same
//! moment do not come back at the same moment.

use std::time::Duration;

/// Bounds of the wait. Pure: the caller counts the failures and draws the random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub limit: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), limit: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row (from 1). `random` is uniform over all of `u64`; the result lies
    /// between half the exponential value and the whole of it.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.limit);
        whole.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64)).min(self.limit)
    }
}

/// A random number for [`Backoff::delay`].
pub fn random() -> u64 {
    crate::runtime::random::number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_within_bounds() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(1, u64::MAX), Duration::from_millis(100));
        assert_eq!(backoff.delay(1, 0), Duration::from_millis(50));
        assert_eq!(backoff.delay(3, u64::MAX), Duration::from_millis(400));
        for failures in [7, 21, u32::MAX] {
            assert_eq!(backoff.delay(failures, u64::MAX), Duration::from_secs(5));
            assert_eq!(backoff.delay(failures, 0), Duration::from_millis(2500));
        }
    }
}
