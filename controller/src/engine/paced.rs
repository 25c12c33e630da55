//! Work that takes longer the larger the cluster is, done over and over: it is given a share of the engine's time.

use std::time::Duration;

use tokio::time::Instant;

/// When something was done last, and how long it took.
#[derive(Debug)]
pub(super) struct Paced {
    took: Duration,
    /// None before it was ever done.
    last: Option<Instant>,
}

/// How often something is done: not before all else has had `rest` times what it took, but after `longest` at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub rest: u32,
    pub shortest: Duration,
    pub longest: Duration,
}

impl Paced {
    pub fn new() -> Self {
        Self { took: Duration::ZERO, last: None }
    }

    /// How long it took last.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// When it is due again; at once if it was never done.
    pub fn due(&self, pace: Pace) -> Instant {
        let rest = self.took.saturating_mul(pace.rest).min(pace.longest).max(pace.shortest);
        self.last.map_or_else(Instant::now, |last| last + rest)
    }

    pub fn is_due(&self, pace: Pace) -> bool {
        self.due(pace) <= Instant::now()
    }

    /// Takes note that it was done since `began`.
    pub fn done(&mut self, began: Instant) {
        let now = Instant::now();
        (self.took, self.last) = (now.duration_since(began), Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_done_less_often() {
        let millis = Duration::from_millis;
        let often = Pace { rest: 3, shortest: Duration::ZERO, longest: millis(1_000) };
        let seldom = Pace { rest: 20, shortest: millis(250), longest: millis(2_000) };
        let mut paced = Paced::new();
        assert!(paced.is_due(often) && paced.is_due(seldom), "it was never done");
        paced.done(Instant::now());
        assert!(paced.is_due(often), "what takes no time is always due");
        for (took, rests) in [(0, [0, 250]), (10, [30, 250]), (40, [120, 800]), (500, [1_000, 2_000])] {
            let began = Instant::now();
            tokio::time::advance(millis(took)).await;
            paced.done(began);
            for (pace, rest) in [often, seldom].into_iter().zip(rests) {
                assert_eq!(paced.due(pace), Instant::now() + millis(rest), "{took} ms, {pace:?}");
            }
        }
    }
}
