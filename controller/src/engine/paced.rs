//! Work that takes longer the larger the cluster is, done over and over: it is given a share of the engine's time.

use std::time::Duration;

use tokio::time::Instant;

/// When something is due again.
#[derive(Debug)]
pub(super) struct Paced {
    /// Of what it takes, how much the rest gets before it is done again.
    rest: u32,
    longest: Duration,
    due: Instant,
    last: Instant,
}

impl Paced {
    /// Done again after `rest` times what it took, and after `longest` at most.
    pub fn new(rest: u32, longest: Duration) -> Self {
        let now = Instant::now();
        Self { rest, longest, due: now, last: now }
    }

    pub fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    /// How long ago it was done.
    pub fn elapsed(&self) -> Duration {
        self.last.elapsed()
    }

    /// Takes note that it was done since `began`.
    pub fn done(&mut self, began: Instant) {
        self.last = Instant::now();
        let took = self.last.duration_since(began);
        self.due = self.last + took.saturating_mul(self.rest).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_done_less_often() {
        let mut paced = Paced::new(3, Duration::from_secs(1));
        assert!(paced.is_due());
        let took = |millis| tokio::time::advance(Duration::from_millis(millis));
        let began = Instant::now();
        paced.done(began);
        assert!(paced.is_due(), "what takes no time is always due");
        took(10).await;
        paced.done(began);
        took(29).await;
        assert!(!paced.is_due());
        took(1).await;
        assert!(paced.is_due());
        took(2_000).await;
        paced.done(began);
        took(999).await;
        assert!(!paced.is_due());
        took(1).await;
        assert!(paced.is_due(), "and after a second at most");
    }
}
