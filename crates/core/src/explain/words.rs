//! Numbers as people read them.

use std::fmt::Display;
use std::time::Duration;

/// `1 slot`, `3 slots`.
pub(super) fn count(n: impl Display, what: &str) -> String {
    let n = n.to_string();
    let plural = if n == "1" { "" } else { "s" };
    format!("{n} {what}{plural}")
}

/// At most the two largest units, e.g. `3h 20m`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// Seconds as a span; `None` if they are no time, or more than a hundred years.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    (seconds.is_finite() && (0.0..3.2e9).contains(&seconds)).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let text = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(
            [text(0), text(61), text(3600), text(200_000)],
            ["0s", "1m 1s", "1h 0m", "2d 7h"].map(str::to_owned)
        );
    }

    #[test]
    fn what_is_no_time_is_none() {
        assert_eq!([f64::NAN, f64::INFINITY, -1.0, 1e300].map(seconds), [None; 4]);
        assert_eq!(seconds(1.5), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([count(1u32, "slot"), count(0usize, "slot")], ["1 slot", "0 slots"].map(str::to_owned));
    }
}
