//! What a failed try means, and how long to wait before the next. Pure.

use std::time::Duration;

/// Wait after the first failure, at most; it doubles.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait that we choose.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest wait that a server may ask for; longer ones are cut to it.
pub const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Why a try gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no connection: {reason}")]
    Connect { reason: String },
    #[error("no whole answer within {after:?}")]
    Timeout { after: Duration },
    #[error("the connection broke: {reason}")]
    Cut { reason: String },
    #[error("status {status}: {excerpt}")]
    Status { status: u16, excerpt: String, retry_after: Option<Duration> },
    #[error("it redirects (status {status}), which is not followed")]
    Redirect { status: u16 },
    #[error("its answer is larger than {most} bytes")]
    Large { most: usize },
    #[error("its answer is {found}, not application/json")]
    ContentType { found: String },
    #[error("{reason}")]
    Broken { reason: String },
    #[error("{reason}")]
    Refusal { reason: String },
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Retry,
    /// This content is not answered; other content may be.
    Refused,
    /// Nothing will be answered before somebody changes something.
    Denied,
}

impl Failure {
    pub fn verdict(&self) -> Verdict {
        match self {
            Failure::Connect { .. }
            | Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Broken { .. } => Verdict::Retry,
            Failure::Refusal { .. } => Verdict::Refused,
            Failure::Redirect { .. } | Failure::Large { .. } | Failure::ContentType { .. } => Verdict::Denied,
            Failure::Status { status, .. } => match status {
                // Too slow to send, too many, and whatever is wrong on their side.
                408 | 425 | 429 | 500..=599 => Verdict::Retry,
                // Content that the server will not have: policies, too long, too large.
                400 | 413 | 422 => Verdict::Refused,
                // Keys, addresses, methods.
                _ => Verdict::Denied,
            },
        }
    }

    /// The wait that the server asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Status { retry_after, .. } => *retry_after,
            Failure::Connect { .. }
            | Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Redirect { .. }
            | Failure::Large { .. }
            | Failure::ContentType { .. }
            | Failure::Broken { .. }
            | Failure::Refusal { .. } => None,
        }
    }

    /// Whether the model may have worked on it, so that it is on the bill.
    pub fn may_have_cost(&self) -> bool {
        match self {
            Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Large { .. }
            | Failure::Broken { .. }
            | Failure::Refusal { .. } => true,
            Failure::Connect { .. }
            | Failure::Status { .. }
            | Failure::Redirect { .. }
            | Failure::ContentType { .. } => false,
        }
    }
}

/// The wait after `failures` failed tries (from 1): full jitter, uniform between nothing and the doubled wait, so
/// that those who failed together do not come back together; on top of what the server asked for. `random` is uniform
/// over all of `u64`.
pub fn delay(failures: u32, retry_after: Option<Duration>, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let most = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let jitter = most.mul_f64(random as f64 / u64::MAX as f64);
    match retry_after {
        None => jitter,
        Some(asked) => asked.min(LONGEST_ASKED) + jitter.min(FIRST),
    }
}

/// `Retry-After` in whole or decimal seconds; a date says nothing here, because it needs both clocks to agree.
pub fn retry_after(header: &str) -> Option<Duration> {
    let seconds: f64 = header.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|asked| asked.min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_status_has_its_meaning() {
        let verdict =
            |status| Failure::Status { status, excerpt: String::new(), retry_after: None }.verdict();
        for status in [408, 429, 500, 502, 503, 529] {
            assert_eq!(verdict(status), Verdict::Retry, "{status}");
        }
        for status in [400, 413, 422] {
            assert_eq!(verdict(status), Verdict::Refused, "{status}");
        }
        for status in [401, 403, 404, 405, 410, 418] {
            assert_eq!(verdict(status), Verdict::Denied, "{status}");
        }
        assert_eq!(Failure::Timeout { after: Duration::ZERO }.verdict(), Verdict::Retry);
        assert_eq!(Failure::Large { most: 1 }.verdict(), Verdict::Denied);
        assert_eq!(Failure::Redirect { status: 302 }.verdict(), Verdict::Denied);
    }

    #[test]
    fn a_server_may_ask_for_a_wait_within_bounds() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(retry_after("999999999"), Some(LONGEST_ASKED));
        for nonsense in ["-1", "NaN", "inf", "", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(retry_after(nonsense), None, "{nonsense}");
        }
        assert_eq!(delay(1, Some(Duration::from_secs(7)), 0), Duration::from_secs(7));
        assert_eq!(delay(9, Some(Duration::from_secs(700)), 0), LONGEST_ASKED);
    }

    proptest! {
        #[test]
        fn waits_are_bounded_and_may_be_nothing(failures in 1..u32::MAX, random: u64, asked in proptest::option::of(0..1_000_000u64)) {
            let wait = delay(failures, asked.map(Duration::from_secs), random);
            prop_assert!(wait <= LONGEST_ASKED + FIRST);
            prop_assert_eq!(delay(failures, None, 0), Duration::ZERO);
            if let Some(asked) = asked {
                prop_assert!(wait >= Duration::from_secs(asked).min(LONGEST_ASKED));
            }
        }
    }
}
