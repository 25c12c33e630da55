//! The time that decisions are made by. Pure: what the clocks say comes in.
//!
//! It begins as wall time and goes on as monotonic time, so that it cannot jump: whoever sets the clock of a machine ends no
//! gang and holds up no retry. How far wall time is ahead of it is kept beside it, for what people are shown.

use std::time::Duration;

use crescendo_core::ids::Timestamp;

/// Looks that lie so far apart mean that the process stood still.
const STOOD_STILL: Duration = Duration::from_secs(5);
/// Wall time that gains so much between two looks means that somebody set the clock, or that the machine slept: its monotonic
/// clock stands still meanwhile.
const SLEPT_MILLIS: i64 = 5_000;

/// What one look at it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Never goes back.
    pub now: Timestamp,
    /// Milliseconds that wall time is ahead of that.
    pub wall_ahead_millis: i64,
    /// Nobody may have looked for a while, and nothing that happened meanwhile was heard.
    pub stood_still: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    began: Timestamp,
    last: Look,
}

impl SteadyClock {
    /// Begins at this wall time.
    pub fn new(wall: Timestamp) -> Self {
        Self { began: wall, last: Look { now: wall, wall_ahead_millis: 0, stood_still: false } }
    }

    /// What it was at the last look.
    pub fn last(&self) -> Timestamp {
        self.last.now
    }

    /// What time it is, `elapsed` monotonic time after the beginning.
    pub fn look(&mut self, elapsed: Duration, wall: Timestamp) -> Look {
        let now = self.began.plus(elapsed).max(self.last.now);
        let ahead = i128::from(wall.0) - i128::from(now.0);
        let wall_ahead_millis = i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN });
        let gained = wall_ahead_millis.saturating_sub(self.last.wall_ahead_millis);
        let stood_still = now.since(self.last.now) >= STOOD_STILL || gained >= SLEPT_MILLIS;
        self.last = Look { now, wall_ahead_millis, stood_still };
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_goes_on_at_its_pace_however_wall_time_jumps() {
        let start = Timestamp(1_000_000);
        let mut clock = SteadyClock::new(start);
        let jumps = [0, -600_000, 120_000, 999_999_999, -1_000_000, i64::MIN / 2, 0];
        for (second, ahead) in jumps.into_iter().enumerate() {
            let elapsed = seconds(second as u64);
            let wall = Timestamp(start.plus(elapsed).0.saturating_add_signed(ahead));
            let look = clock.look(elapsed, wall);
            assert_eq!(look.now, start.plus(elapsed));
            assert_eq!(look.now.0.saturating_add_signed(look.wall_ahead_millis), wall.0);
        }
    }

    #[test]
    fn standing_still_is_seen_by_either_clock() {
        let start = Timestamp(1_000_000);
        let mut clock = SteadyClock::new(start);
        let mut look =
            |elapsed, wall: u64| clock.look(seconds(elapsed), Timestamp(start.0 + wall * 1000)).stood_still;
        assert!(!look(1, 1));
        assert!(look(71, 71), "the process stood still");
        assert!(!look(72, 72));
        assert!(look(73, 143), "the machine slept");
        assert!(!look(74, 144));
        assert!(!look(75, 20), "a clock that goes back is only wrong");
    }
}
