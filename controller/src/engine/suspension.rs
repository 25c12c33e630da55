//! A store that takes no writes: a full or read-only disk, a quota. The controller goes on leading, tells what it knows, refuses what it
//! would have to write with the store's own reason, and tries again now and then: what was accepted is in the store, and waits.

use std::time::Duration;

use crescendo_core::ids::Timestamp;

/// Waits between tries.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// Writes that were refused, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspension {
    refusals: u32,
    /// Nothing is decided or written before this.
    until: Option<Timestamp>,
    cause: String,
}

impl Suspension {
    /// A write was refused; nothing of it was carried out.
    pub fn refused(&mut self, cause: String, now: Timestamp) {
        let factor = 1_u32.checked_shl(self.refusals).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(factor).min(LAST_PAUSE);
        self.refusals = self.refusals.saturating_add(1);
        (self.until, self.cause) = (Some(now.plus(pause)), cause);
    }

    /// Why nothing may be written now, if so.
    pub fn reason(&self, now: Timestamp) -> Option<&str> {
        self.until.filter(|until| now < *until).map(|_| self.cause.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_holds_up_longer_than_the_one_before_to_a_bound() {
        let mut suspension = Suspension::default();
        assert_eq!(suspension.reason(Timestamp(0)), None);
        let mut now = Timestamp(1_000_000);
        for seconds in [1, 2, 4, 8, 8, 8] {
            suspension.refused("no space".into(), now);
            let nearly = now.plus(Duration::from_millis(seconds * 1000 - 1));
            assert_eq!(suspension.reason(nearly), Some("no space"));
            now = now.plus(Duration::from_secs(seconds));
            assert_eq!(suspension.reason(now), None, "{seconds}");
        }
    }
}
