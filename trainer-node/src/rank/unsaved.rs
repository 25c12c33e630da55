//! What becomes of a gang whose checkpoints cannot be saved: it goes on for as many steps as lie between two checkpoints, then
//! stands still until one is saved. So a death costs twice that many at most, however long there is no room.

use std::time::{Duration, Instant};

use crescendo_node::runtime::backoff::{Backoff, random};

/// Waits between tries.
const PAUSES: Backoff = Backoff { first: Duration::from_secs(1), limit: Duration::from_secs(30) };
/// A gang that stands still for longer ends: another node may be able to save.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// A save that takes longer than this is taken for one that fails.
pub const SLOWEST_SAVE: Duration = Duration::from_secs(600);

/// Tries to save that have failed, one after the other.
#[derive(Clone, Debug)]
pub struct Unsaved {
    /// Steps that were done at the first of them.
    first_step: u64,
    failures: u32,
    /// Of the last.
    reason: String,
    next_try: Instant,
    /// Since when the gang stands still.
    held_since: Option<Instant>,
}

/// What a gang does at a step boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// It stands still; why.
    Hold(String),
    /// It has stood still for too long; why.
    GiveUp(String),
}

impl Unsaved {
    /// One more try has failed, with `step` steps done.
    pub fn after(before: Option<Self>, step: u64, reason: String, now: Instant) -> Self {
        let failures = before.as_ref().map_or(0, |before| before.failures).saturating_add(1);
        Self {
            first_step: before.as_ref().map_or(step, |before| before.first_step),
            failures,
            reason,
            next_try: now + PAUSES.delay(failures, random()),
            held_since: before.and_then(|before| before.held_since),
        }
    }

    /// Whether it is time for the next try.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next_try
    }

    /// Whether a gang that has done `step` steps and saves every `every` goes on.
    pub fn at_step(&mut self, step: u64, every: u64, now: Instant) -> Verdict {
        if step.saturating_sub(self.first_step) < every {
            return Verdict::GoOn;
        }
        let held = now.saturating_duration_since(*self.held_since.get_or_insert(now));
        let Self { first_step, failures, reason, .. } = self;
        if held < PATIENCE {
            return Verdict::Hold(format!("a checkpoint to be saved ({failures} tries failed): {reason}"));
        }
        let minutes = held.as_secs() / 60;
        Verdict::GiveUp(format!(
            "no checkpoint could be saved since step {first_step}, and none for {minutes} min of standing still: {reason}"
        ))
    }
}

/// The same, if the save of `step` has been under way for longer than [`SLOWEST_SAVE`] and the next is due.
pub fn of_slow(step: u64, took: Duration) -> Verdict {
    let seconds = took.as_secs();
    if took < SLOWEST_SAVE + PATIENCE {
        return Verdict::Hold(format!(
            "the checkpoint of step {step}, which has been under way for {seconds} s"
        ));
    }
    Verdict::GiveUp(format!("the checkpoint of step {step} is not saved after {seconds} s"))
}

/// The wait before a step that nothing comes after is saved again, or none if that was tried for too long.
pub fn again(failures: u32, since: Instant, now: Instant) -> Option<Duration> {
    (now.saturating_duration_since(since) < PATIENCE).then(|| PAUSES.delay(failures, random()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gang_goes_on_for_one_interval_then_holds_and_at_last_gives_up() {
        let now = Instant::now();
        let mut unsaved = Unsaved::after(None, 500, "no space".into(), now);
        assert_eq!(unsaved.at_step(999, 500, now), Verdict::GoOn);
        assert!(!unsaved.is_due(now));
        assert!(unsaved.is_due(now + Duration::from_secs(1)));
        // Later failures move neither the bound nor the time of standing still.
        assert!(matches!(unsaved.at_step(1000, 500, now), Verdict::Hold(why) if why.contains("no space")));
        let mut unsaved = Unsaved::after(Some(unsaved), 1000, "still none".into(), now);
        let nearly = now + PATIENCE - Duration::from_millis(1);
        assert!(matches!(unsaved.at_step(1000, 500, nearly), Verdict::Hold(why) if why.contains("2 tries")));
        let late = now + PATIENCE;
        assert!(matches!(unsaved.at_step(1000, 500, late), Verdict::GiveUp(why) if why.contains("step 500")));
    }

    #[test]
    fn a_save_that_does_not_end_is_not_waited_for_without_end() {
        let limit = SLOWEST_SAVE + PATIENCE;
        assert!(matches!(of_slow(7, SLOWEST_SAVE), Verdict::Hold(why) if why.contains("step 7")));
        assert!(matches!(of_slow(7, limit - Duration::from_secs(1)), Verdict::Hold(_)));
        assert!(matches!(of_slow(7, limit), Verdict::GiveUp(why) if why.contains("step 7")));
    }

    #[test]
    fn the_last_step_is_saved_again_for_as_long() {
        let now = Instant::now();
        assert!(again(1, now, now).is_some_and(|wait| wait <= Duration::from_secs(1)));
        assert!(again(40, now, now + PATIENCE - Duration::from_secs(1)).is_some());
        assert_eq!(again(40, now, now + PATIENCE), None);
    }
}
