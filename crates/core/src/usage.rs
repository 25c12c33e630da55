//! What tenants have used: for accounts by month, and for fair share, in which use of long ago counts less.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Tenant, Timestamp};

/// Months that are kept of a tenant, the newest.
pub const MAX_MONTHS: usize = 60;
/// An attempt counts no longer than this, whatever a clock has said.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(366 * 24 * 3600);
const DAY_MILLIS: u64 = 24 * 3600 * 1000;

/// A month of UTC. Shown as `2026-11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
}

/// What a tenant's attempts that have ended used. An attempt counts from when it was placed until it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    pub tenant: Tenant,
    /// Slot-milliseconds as of `at`; what was used a half-life before it counts half.
    pub decayed_millis: u64,
    /// When an attempt last ended.
    pub at: Timestamp,
    /// Slot-milliseconds of each month by kind of device.
    pub months: BTreeMap<Month, BTreeMap<String, u64>>,
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Month {
    /// Of a time since 1970.
    pub fn of(at: Timestamp) -> Month {
        // Years begin in March here, so that a leap day is the last of its year; eras have 400 years.
        let days = at.0 / DAY_MILLIS + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let since_march = (5 * of_year + 2) / 153;
        let month = if since_march < 10 { since_march + 3 } else { since_march - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        Month { year: u32::try_from(year).unwrap_or(u32::MAX), month: u32::try_from(month).unwrap_or(1) }
    }

    /// Where the month after it begins.
    fn end(self) -> Timestamp {
        let next = if self.month == 12 {
            Month { year: self.year.saturating_add(1), month: 1 }
        } else {
            Month { month: self.month + 1, ..self }
        };
        next.start()
    }

    fn start(self) -> Timestamp {
        let year = u64::from(self.year) - u64::from(self.month <= 2);
        let since_march = u64::from(if self.month > 2 { self.month - 3 } else { self.month + 9 });
        let (era, of_era) = (year / 400, year % 400);
        let of_year = (153 * since_march + 2) / 5;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
        Timestamp(days.saturating_sub(719_468).saturating_mul(DAY_MILLIS))
    }
}

/// What is left of a use after some time.
fn left(half_life: Duration, time: Duration) -> f64 {
    (-time.as_secs_f64() / half_life.as_secs_f64().max(1.0)).exp2()
}

/// Slot-milliseconds of `slots` from `since` until `until`, as they count at `until`.
#[allow(clippy::cast_precision_loss)] // an estimate
fn decayed(half_life: Duration, slots: usize, since: Timestamp, until: Timestamp) -> f64 {
    let time = until.since(since).min(LONGEST_ATTEMPT);
    let mean_life_millis = half_life.as_secs_f64().max(1.0) * 1000.0 / std::f64::consts::LN_2;
    slots as f64 * mean_life_millis * (1.0 - left(half_life, time))
}

/// Slot-milliseconds that a tenant has used by `now`, with the slots that it holds and since when; what was used a half-life ago
/// counts half.
#[allow(clippy::cast_precision_loss)] // an estimate
pub fn used(
    record: Option<&UsageRecord>,
    held: impl Iterator<Item = (usize, Timestamp)>,
    half_life: Duration,
    now: Timestamp,
) -> f64 {
    let ended =
        record.map_or(0.0, |record| record.decayed_millis as f64 * left(half_life, now.since(record.at)));
    let running = held.map(|(slots, since)| decayed(half_life, slots, since, now));
    ended + running.sum::<f64>()
}

impl UsageRecord {
    pub(crate) fn new(tenant: Tenant, at: Timestamp) -> Self {
        Self { tenant, decayed_millis: 0, at, months: BTreeMap::new() }
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an estimate
    pub(crate) fn add(
        &mut self,
        device: &str,
        slots: usize,
        since: Timestamp,
        until: Timestamp,
        half_life: Duration,
    ) {
        let since = since.max(Timestamp(until.0.saturating_sub(millis(LONGEST_ATTEMPT))));
        let before = self.decayed_millis as f64 * left(half_life, until.since(self.at));
        self.decayed_millis = (before + decayed(half_life, slots, since, until)) as u64;
        self.at = self.at.max(until);
        let mut from = since;
        while from < until {
            let month = Month::of(from);
            let to = until.min(month.end());
            let used = (to.0 - from.0).saturating_mul(slots as u64);
            let sum = self.months.entry(month).or_default().entry(device.to_owned()).or_insert(0);
            *sum = sum.saturating_add(used);
            from = to;
        }
        while self.months.len() > MAX_MONTHS {
            self.months.pop_first();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn tenant() -> Tenant {
        Tenant::parse("research").expect("valid")
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        // Seconds as `date -u -d … +%s` gives them.
        for (seconds, shown) in [
            (0, "1970-01"),
            (951_782_400, "2000-02"),
            (951_868_800, "2000-03"),
            (1_709_251_199, "2024-02"),
            (1_709_251_200, "2024-03"),
            (1_798_761_599, "2026-12"),
            (1_798_761_600, "2027-01"),
        ] {
            assert_eq!(Month::of(Timestamp(seconds * 1000)).to_string(), shown, "{seconds}");
        }
        let mut month = Month { year: 1970, month: 1 };
        for _ in 0..4000 {
            let end = month.end();
            assert_eq!(Month::of(Timestamp(end.0 - 1)), month);
            let next = Month::of(end);
            assert!(next > month && next.start() == end);
            month = next;
        }
    }

    #[test]
    fn a_use_is_counted_in_the_months_that_it_was_in() {
        let december = Month { year: 2026, month: 12 };
        let end = december.end();
        let mut record = UsageRecord::new(tenant(), end);
        record.add("cuda", 8, Timestamp(end.0 - HOUR), Timestamp(end.0 + 2 * HOUR), DEFAULT);
        record.add("cuda", 1, end, Timestamp(end.0 + HOUR), DEFAULT);
        let of = |month: Month| record.months[&month]["cuda"];
        assert_eq!([of(december), of(Month::of(end))], [8 * HOUR, 17 * HOUR]);
    }

    const DEFAULT: Duration = Duration::from_secs(3600);

    #[test]
    fn a_use_of_one_half_life_ago_counts_half() {
        let begin = Timestamp(1000 * HOUR);
        let mut record = UsageRecord::new(tenant(), begin);
        record.add("cpu", 2, begin, begin.plus(Duration::from_secs(60)), DEFAULT);
        let now = begin.plus(Duration::from_secs(60));
        let at = |later: Duration| used(Some(&record), std::iter::empty(), DEFAULT, now.plus(later));
        assert!((at(Duration::ZERO) - 120_000.0).abs() < 1000.0, "{}", at(Duration::ZERO));
        assert!((at(DEFAULT) * 2.0 - at(Duration::ZERO)).abs() < 1.0);
        // A clock that goes back takes nothing away, and one that jumps adds no more than a year.
        let before = record.decayed_millis;
        record.add("cpu", 2, begin, Timestamp(0), DEFAULT);
        assert_eq!(record.decayed_millis, before);
        record.add("cpu", 1, Timestamp(0), Timestamp(u64::MAX / 2), DEFAULT);
        assert_eq!(
            record.months.values().map(|month| month["cpu"]).sum::<u64>(),
            120_000 + millis(LONGEST_ATTEMPT)
        );
    }
}
