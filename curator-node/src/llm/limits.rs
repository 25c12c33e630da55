//! Requests and tokens a minute, as buckets that fill at a steady rate. Pure: time is an argument.
//!
//! The limits of a spec are those of a job. Each of its curators keeps to an equal part of them, as large as the number of
//! curators allows that the controller tells.

use std::time::Duration;

/// Longest wait that is worth waiting for.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// A bucket holds what flows in within this time, so that no minute sees noticeably more than its rate.
const BURST: Duration = Duration::from_secs(1);

/// One bucket. Its level may fall below nothing: then those who come next wait until it is back at nothing, in their
/// order.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    per_sec: f64,
    most: f64,
    level: f64,
    /// When `level` was right, since whatever time is counted from.
    at: Duration,
}

impl Bucket {
    /// A full bucket at time zero.
    pub fn new(per_minute: f64) -> Bucket {
        let per_sec = per_minute.max(1e-3) / 60.0;
        let most = (per_sec * BURST.as_secs_f64()).max(1.0);
        Bucket { per_sec, most, level: most, at: Duration::ZERO }
    }

    /// Lets in what has come since it was last looked at.
    fn fill(&mut self, now: Duration) {
        // A clock that goes back fills nothing.
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * self.per_sec).min(self.most);
    }

    /// Goes on at another rate from `now`.
    fn set_rate(&mut self, per_minute: f64, now: Duration) {
        self.fill(now);
        let Bucket { per_sec, most, .. } = Bucket::new(per_minute);
        (self.per_sec, self.most, self.level) = (per_sec, most, self.level.min(most));
    }

    /// Time from `now` until `amount` may pass.
    fn wait(&mut self, amount: f64, now: Duration) -> Duration {
        self.fill(now);
        let missing = (amount - self.level).max(0.0);
        Duration::try_from_secs_f64(missing / self.per_sec).unwrap_or(Duration::MAX)
    }

    fn take(&mut self, amount: f64) {
        self.level -= amount;
    }
}

/// Both limits of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    requests_per_minute: f64,
    tokens_per_minute: f64,
    /// Curators that the rates are divided among.
    curators: u32,
    requests: Bucket,
    tokens: Bucket,
}

impl Limits {
    pub fn new(requests_per_minute: u32, tokens_per_minute: u64) -> Limits {
        let (requests_per_minute, tokens_per_minute) =
            (f64::from(requests_per_minute), tokens_per_minute as f64);
        Limits {
            requests_per_minute,
            tokens_per_minute,
            curators: 1,
            requests: Bucket::new(requests_per_minute),
            tokens: Bucket::new(tokens_per_minute),
        }
    }

    /// Keeps to one curator's part from `now` on.
    pub fn divide(&mut self, curators: u32, now: Duration) {
        let curators = curators.max(1);
        if curators != self.curators {
            self.curators = curators;
            self.requests.set_rate(self.requests_per_minute / f64::from(curators), now);
            self.tokens.set_rate(self.tokens_per_minute / f64::from(curators), now);
        }
    }

    /// Takes one request of `tokens` tokens and says how long from `now` it has to wait; takes nothing where that is
    /// too long.
    pub fn reserve(&mut self, tokens: u64, now: Duration) -> Result<Duration, Duration> {
        let tokens = tokens as f64;
        let wait = self.requests.wait(1.0, now).max(self.tokens.wait(tokens, now));
        if wait > LONGEST_WAIT {
            return Err(wait);
        }
        self.requests.take(1.0);
        self.tokens.take(tokens);
        Ok(wait)
    }

    /// Puts right what was taken for a request once it is known what it took.
    pub fn correct(&mut self, taken: u64, used: u64) {
        self.tokens.level = (self.tokens.level + taken as f64 - used as f64).min(self.tokens.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_spread_over_the_minute() {
        let mut limits = Limits::new(120, 1_000_000_000);
        let now = Duration::from_secs(5);
        let waits: Vec<Duration> = (0..5).map(|_| limits.reserve(10, now).expect("not too long")).collect();
        assert_eq!(waits, [0, 0, 500, 1000, 1500].map(Duration::from_millis));
        // A second later two of them have gone.
        assert_eq!(limits.reserve(10, now + Duration::from_secs(1)), Ok(Duration::from_secs(1)));
    }

    #[test]
    fn tokens_count_and_are_put_right() {
        let mut limits = Limits::new(1_000_000, 6000);
        assert_eq!(limits.reserve(100, Duration::ZERO), Ok(Duration::ZERO));
        assert_eq!(limits.reserve(1000, Duration::ZERO), Ok(Duration::from_secs(10)));
        limits.correct(1000, 400);
        assert_eq!(limits.reserve(100, Duration::ZERO), Ok(Duration::from_secs(5)));
        // What can never be waited for takes nothing.
        assert!(limits.reserve(10_000_000, Duration::ZERO).is_err());
        assert_eq!(limits.reserve(0, Duration::ZERO), Ok(Duration::from_secs(5)));
    }

    #[test]
    fn curators_share_the_rate() {
        let mut limits = Limits::new(120, 1_000_000_000);
        limits.divide(2, Duration::ZERO);
        let waits: Vec<Duration> =
            (0..3).map(|_| limits.reserve(10, Duration::ZERO).expect("not too long")).collect();
        assert_eq!(waits, [0, 1000, 2000].map(Duration::from_millis));
        // The other one has gone: what is owed comes in twice as fast.
        limits.divide(1, Duration::ZERO);
        assert_eq!(limits.reserve(10, Duration::ZERO), Ok(Duration::from_millis(1500)));
        limits.divide(0, Duration::ZERO);
        assert_eq!(limits.reserve(10, Duration::ZERO), Ok(Duration::from_secs(2)));
    }

    proptest! {
        /// Whatever comes when: up to any moment no more has passed than flowed in and the bucket held.
        #[test]
        fn no_more_passes_than_the_rate_allows(
            per_minute in 1..10_000u32,
            steps in proptest::collection::vec((0..3000u64, 1..500u64), 1..60),
        ) {
            let rate = f64::from(per_minute) / 60.0;
            let tokens_rate = 100.0 * rate;
            let mut limits = Limits::new(per_minute, u64::from(per_minute) * 100);
            let (mut now, mut passed) = (Duration::ZERO, Vec::new());
            for (millis, tokens) in steps {
                now += Duration::from_millis(millis);
                if let Ok(wait) = limits.reserve(tokens, now) {
                    prop_assert!(wait <= LONGEST_WAIT);
                    passed.push(((now + wait).as_secs_f64(), tokens));
                }
            }
            for (at, _) in &passed {
                let before: Vec<_> = passed.iter().filter(|(other, _)| other <= at).collect();
                let tokens: u64 = before.iter().map(|(_, tokens)| tokens).sum();
                prop_assert!(before.len() as f64 <= rate * at + rate.max(1.0) + 1e-3);
                prop_assert!(tokens as f64 <= tokens_rate * at + tokens_rate.max(1.0) + 1e-3);
            }
        }
    }
}
