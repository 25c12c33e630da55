//! What a failed try means, and how long to wait before the next. Pure.

use super::server_error::ServerError;
use std::time::{Duration, SystemTime};

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
    #[error("not connected: {reason}")]
    OutOfReach { reason: String },
    #[error("no whole answer within {after:?}")]
    Timeout { after: Duration },
    #[error("the connection broke: {reason}")]
    Cut { reason: String },
    #[error("{error}")]
    Server { error: ServerError, retry_after: Option<Duration> },
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
    #[error(
        "its answer stopped at {tokens} tokens while it was still thinking: raise maxTokens, or have it think less"
    )]
    Thought { tokens: u64 },
    #[error("its answer is empty")]
    Empty,
}

/// Tries of a question whose answer is empty: at temperature 0 the next one is most likely empty too.
const EMPTY_TRIES: u32 = 2;

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Retry,
    /// This content is not answered; other content may be.
    Refused,
    /// The answer is of no use; those to other questions may be.
    Unreadable,
    /// Nothing will be answered before somebody changes something; it may be at it.
    Denied,
    /// Nor will it be then: the model cannot do what is asked.
    Unable,
}

impl Failure {
    /// What to do after `tries` of a question, at most `most` of which are made, with or without pictures.
    pub fn verdict(&self, tries: u32, most: u32, has_pictures: bool) -> Verdict {
        match self {
            Failure::Connect { .. }
            | Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Broken { .. } => Verdict::Retry,
            Failure::Refusal { .. } => Verdict::Refused,
            Failure::OutOfReach { .. }
            | Failure::Redirect { .. }
            | Failure::Large { .. }
            | Failure::ContentType { .. } => Verdict::Denied,
            Failure::Empty if tries < EMPTY_TRIES.min(most) => Verdict::Retry,
            Failure::Empty | Failure::Thought { .. } => Verdict::Unreadable,
            Failure::Server { error, .. } if has_pictures && error.takes_no_pictures() => Verdict::Unable,
            Failure::Server { error, .. } => match error.status {
                // Too slow to send, too many, and whatever is wrong on their side.
                408 | 425 | 429 | 500..=599 => Verdict::Retry,
                // Content that the server will not have: policies, too long, too large.
                400 | 413 | 422 => Verdict::Refused,
                403 if error.moderated => Verdict::Refused,
                // Keys, money, addresses, models, methods.
                _ => Verdict::Denied,
            },
        }
    }

    /// The wait that the server asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Server { retry_after, .. } => *retry_after,
            Failure::Connect { .. }
            | Failure::OutOfReach { .. }
            | Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Redirect { .. }
            | Failure::Large { .. }
            | Failure::ContentType { .. }
            | Failure::Broken { .. }
            | Failure::Refusal { .. }
            | Failure::Thought { .. }
            | Failure::Empty => None,
        }
    }

    /// Tokens of an answer that are on the bill, if the model may have worked on it; what was answered nobody knows, unless
    /// it is told.
    pub fn cost(&self) -> Option<u64> {
        match self {
            Failure::Timeout { .. }
            | Failure::Cut { .. }
            | Failure::Large { .. }
            | Failure::Broken { .. }
            | Failure::Empty
            | Failure::Refusal { .. } => Some(0),
            Failure::Thought { tokens } => Some(*tokens),
            Failure::Connect { .. }
            | Failure::OutOfReach { .. }
            | Failure::Server { .. }
            | Failure::Redirect { .. }
            | Failure::ContentType { .. } => None,
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

/// The headers of a response that say when to come back.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitHeaders<'a> {
    /// `Retry-After-Ms`: milliseconds; looked at first, since it is the finer one.
    pub retry_after_ms: Option<&'a str>,
    /// `Retry-After`: whole or decimal seconds, or a date.
    pub retry_after: Option<&'a str>,
    /// `Date`: the server's clock, from which its dates are counted.
    pub date: Option<&'a str>,
}

/// The wait that a server asks for, cut to [`LONGEST_ASKED`]. `now` is our clock, for a server that does not tell its own.
pub fn asked_wait(headers: WaitHeaders<'_>, now: SystemTime) -> Option<Duration> {
    let seconds = |text: &str, per_second: f64| {
        let number: f64 = text.trim().parse().ok()?;
        Duration::try_from_secs_f64(number / per_second).ok()
    };
    let until = |text: &str| {
        let at = httpdate::parse_http_date(text.trim()).ok()?;
        let now = headers.date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()).unwrap_or(now);
        // A date that has passed asks for no wait.
        Some(at.duration_since(now).unwrap_or_default())
    };
    let finer = headers.retry_after_ms.and_then(|text| seconds(text, 1000.0));
    let asked =
        finer.or_else(|| headers.retry_after.and_then(|text| seconds(text, 1.0).or_else(|| until(text))));
    asked.map(|asked| asked.min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server(status: u16, message: &str) -> Failure {
        let error = ServerError { status, message: message.into(), ..ServerError::default() };
        Failure::Server { error, retry_after: None }
    }

    #[test]
    fn each_status_has_its_meaning() {
        let verdict = |failure: &Failure| failure.verdict(1, 5, true);
        for status in [408, 429, 500, 502, 503, 529] {
            assert_eq!(verdict(&server(status, "")), Verdict::Retry, "{status}");
        }
        for status in [400, 413, 422] {
            assert_eq!(verdict(&server(status, "")), Verdict::Refused, "{status}");
        }
        for status in [401, 402, 403, 404, 405, 410, 418] {
            assert_eq!(verdict(&server(status, "")), Verdict::Denied, "{status}");
        }
        let error = ServerError { status: 403, moderated: true, ..ServerError::default() };
        assert_eq!(verdict(&Failure::Server { error, retry_after: None }), Verdict::Refused);
        assert_eq!(verdict(&Failure::Timeout { after: Duration::ZERO }), Verdict::Retry);
        assert_eq!(verdict(&Failure::Large { most: 1 }), Verdict::Denied);
        assert_eq!(verdict(&Failure::Redirect { status: 302 }), Verdict::Denied);
        assert_eq!(verdict(&Failure::Thought { tokens: 9 }), Verdict::Unreadable);
    }

    #[test]
    fn pictures_that_are_not_taken_end_it_where_some_were_sent() {
        let failure = server(500, "image input is not supported");
        assert_eq!(failure.verdict(1, 5, true), Verdict::Unable);
        assert_eq!(failure.verdict(1, 5, false), Verdict::Retry);
    }

    #[test]
    fn an_empty_answer_is_asked_for_once_more() {
        let tries: Vec<Verdict> = (1..4).map(|tries| Failure::Empty.verdict(tries, 5, false)).collect();
        assert_eq!(tries, [Verdict::Retry, Verdict::Unreadable, Verdict::Unreadable]);
        assert_eq!(Failure::Empty.verdict(1, 1, false), Verdict::Unreadable);
    }

    #[test]
    fn a_server_may_ask_for_a_wait_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680);
        let after = |text| asked_wait(WaitHeaders { retry_after: Some(text), ..WaitHeaders::default() }, now);
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(after("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(after("999999999"), Some(LONGEST_ASKED));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(9));
        assert_eq!(after(&date), Some(Duration::from_secs(9)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["-1", "NaN", "inf", "", "soon", "Wed, 99 Oct 2026 07:28:00 GMT"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
        // The server's clock counts where it tells it.
        let theirs = httpdate::fmt_http_date(now + Duration::from_secs(5));
        let both = WaitHeaders { retry_after: Some(&date), date: Some(&theirs), ..WaitHeaders::default() };
        assert_eq!(asked_wait(both, now), Some(Duration::from_secs(4)));
        let finer = WaitHeaders { retry_after_ms: Some("1500"), retry_after: Some("2"), date: None };
        assert_eq!(asked_wait(finer, now), Some(Duration::from_millis(1500)));
        assert_eq!(asked_wait(WaitHeaders::default(), now), None);
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
