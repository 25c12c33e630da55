//! Calls a second of each caller: one token bucket each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crescendo_core::quotas::CallRate;

/// Callers whose buckets are kept.
const MAX_BUCKETS: usize = 16_384;

/// The buckets of all callers, by tenant and name. Bounded: a bucket that is full again is as good as none.
#[derive(Default)]
pub struct Buckets {
    buckets: Mutex<BTreeMap<(String, String), Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Calls that may come at once, as of `at`.
    calls: f64,
    at: Instant,
    rate: CallRate,
}

impl Bucket {
    fn full(rate: CallRate, now: Instant) -> Self {
        Self { calls: f64::from(rate.burst.max(1)), at: now, rate }
    }

    fn filled(self, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(self.rate.per_sec);
        let calls = (self.calls + gained).min(f64::from(self.rate.burst.max(1)));
        Self { calls, at: now, ..self }
    }

    fn is_full(self, now: Instant) -> bool {
        self.filled(now).calls >= f64::from(self.rate.burst.max(1))
    }

    /// Takes one call, or says after what time there is one.
    fn take(&mut self) -> Result<(), Duration> {
        if self.calls >= 1.0 {
            self.calls -= 1.0;
            return Ok(());
        }
        let wait = (1.0 - self.calls) / f64::from(self.rate.per_sec.max(1));
        Err(Duration::from_secs_f64(wait.clamp(0.001, 1.0)))
    }
}

impl Buckets {
    /// Counts one call; an error says when the next may come.
    pub fn take(&self, tenant: &str, name: &str, rate: CallRate, now: Instant) -> Result<(), Duration> {
        // A panic elsewhere leaves nothing half done here.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.to_owned(), name.to_owned());
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= MAX_BUCKETS {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(key).or_insert_with(|| Bucket::full(rate, now));
        if bucket.rate != rate {
            let calls = bucket.filled(now).calls.min(f64::from(rate.burst.max(1)));
            *bucket = Bucket { calls, at: now, rate };
        }
        *bucket = bucket.filled(now);
        bucket.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: CallRate = CallRate { per_sec: 2, burst: 3 };

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        let take = |millis| buckets.take("a", "ci", RATE, start + Duration::from_millis(millis));
        assert_eq!([take(0), take(0), take(0)], [Ok(()); 3]);
        assert_eq!(take(0), Err(Duration::from_millis(500)));
        assert_eq!(take(250), Err(Duration::from_millis(250)));
        assert_eq!((take(500), take(500).is_err()), (Ok(()), true));
        // A clock that stands still or a long pause gives no more than the burst.
        let later = 1_000_000;
        assert_eq!([take(later), take(later), take(later)], [Ok(()); 3]);
        assert!(take(later).is_err());
    }

    #[test]
    fn callers_do_not_share_and_a_new_rate_holds_at_once() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        for _ in 0..3 {
            assert!(buckets.take("a", "ci", RATE, now).is_ok());
        }
        assert!(buckets.take("a", "other", RATE, now).is_ok());
        assert!(buckets.take("b", "ci", RATE, now).is_ok());
        let faster = CallRate { per_sec: 100, burst: 100 };
        assert!(buckets.take("a", "ci", faster, now).is_err(), "the bucket is as empty as before");
        assert!(buckets.take("a", "ci", faster, now + Duration::from_millis(10)).is_ok());
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        for n in 0..MAX_BUCKETS {
            assert!(buckets.take("a", &n.to_string(), RATE, now).is_ok());
        }
        assert!(buckets.take("a", "one more", RATE, now).is_err());
        assert!(buckets.take("a", "7", RATE, now).is_ok(), "one that is known goes on");
        assert!(buckets.take("a", "one more", RATE, now + Duration::from_secs(1)).is_ok());
        assert!(buckets.buckets.lock().expect("not poisoned").len() < 10);
    }
}
