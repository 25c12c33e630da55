//! How long jobs have waited for what they wait for. Pure: time is an argument.

use std::time::Duration;

use crescendo_core::decide::{PendingReason, Waits};
use crescendo_core::ids::{IdMap, JobId, Timestamp};

/// Since when each waiting job has waited for the same reason.
#[derive(Clone, Debug, Default)]
pub struct WaitClock {
    since: IdMap<JobId, (&'static str, Timestamp)>,
}

/// Those that wait for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub jobs: usize,
    /// Of the job that has waited longest.
    pub oldest: Duration,
}

impl WaitClock {
    /// Takes over what was decided at `now`. A job that goes on, or waits for something else, begins anew.
    pub fn update(&mut self, waits: &Waits, now: Timestamp) {
        self.since.retain(|job, (reason, _)| waits.get(job).is_some_and(|wait| wait.label() == *reason));
        for (job, _) in waits.iter() {
            self.follow(job, waits, now);
        }
    }

    /// Takes over what was decided at `now` of one job.
    pub fn follow(&mut self, job: &JobId, waits: &Waits, now: Timestamp) {
        let reason = waits.get(job).map(PendingReason::label);
        let known = self.since.get(job).map(|(reason, _)| *reason);
        match reason {
            Some(reason) if known != Some(reason) => {
                self.since.insert(job.clone(), (reason, now));
            }
            Some(_) => {}
            None => {
                self.since.remove(job);
            }
        }
    }

    /// The jobs that wait for `reason`.
    pub fn waiting(&self, reason: &str, now: Timestamp) -> Waiting {
        let times = self.since.values().filter(|(label, _)| *label == reason).map(|(_, since)| *since);
        times.fold(Waiting::default(), |found, since| Waiting {
            jobs: found.jobs + 1,
            oldest: found.oldest.max(now.since(since)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> JobId {
        JobId::parse(name).expect("valid")
    }

    fn slots(free: u32) -> PendingReason {
        PendingReason::Slots { wanted: 4, free, total: 8 }
    }

    #[test]
    fn a_wait_lasts_as_long_as_its_reason() {
        let mut clock = WaitClock::default();
        let mut waits: Waits = [(job("a"), slots(0))].into_iter().collect();
        clock.update(&waits, Timestamp(1_000));
        waits.insert(job("b"), slots(1));
        // Other numbers, the same reason.
        waits.insert(job("a"), slots(2));
        clock.update(&waits, Timestamp(4_000));
        let expected = Waiting { jobs: 2, oldest: Duration::from_secs(6) };
        assert_eq!(clock.waiting("slots", Timestamp(7_000)), expected);
        assert_eq!(clock.waiting("pairs", Timestamp(7_000)), Waiting::default());

        waits.insert(job("a"), PendingReason::NoTrainer);
        clock.update(&waits, Timestamp(8_000));
        assert_eq!(clock.waiting("no_trainer", Timestamp(9_000)).oldest, Duration::from_secs(1));
        assert_eq!(clock.waiting("slots", Timestamp(9_000)).oldest, Duration::from_secs(5));

        waits.remove(&job("b"));
        clock.follow(&job("b"), &waits, Timestamp(9_000));
        waits.insert(job("b"), slots(0));
        clock.follow(&job("b"), &waits, Timestamp(10_000));
        clock.follow(&job("a"), &waits, Timestamp(10_000));
        let again = Waiting { jobs: 1, oldest: Duration::ZERO };
        assert_eq!(clock.waiting("slots", Timestamp(10_000)), again, "it went on in between");
    }
}
