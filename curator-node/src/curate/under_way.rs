//! How far the units of a stage are that are under way here, and what they wait for. People are told of the oldest one.

use crate::counts::{Counted, Counts};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The units of one stage. Its clones share them.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<Mutex<Units>>);

#[derive(Debug, Default)]
struct Units {
    /// By the order in which they were begun.
    units: BTreeMap<u64, Watched>,
    begun: u64,
}

#[derive(Debug)]
struct Watched {
    unit: u64,
    counts: Counts,
    waits_for: String,
}

/// What is said of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HowFar {
    pub unit: u64,
    pub counted: Counted,
    /// Empty where it waits for nothing.
    pub waits_for: String,
}

/// A unit that is under way for as long as this lives.
#[derive(Debug)]
pub struct UnitUnderWay {
    all: UnderWay,
    place: u64,
    counts: Counts,
}

impl UnderWay {
    /// Begins with a unit, which is counted in `counts`.
    pub fn begin(&self, unit: u64, counts: Counts) -> UnitUnderWay {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = inner.begun;
        inner.begun += 1;
        inner.units.insert(place, Watched { unit, counts: counts.clone(), waits_for: String::new() });
        UnitUnderWay { all: self.clone(), place, counts }
    }

    /// The unit that was begun first of those under way.
    pub fn oldest(&self) -> Option<HowFar> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Watched { unit, counts, waits_for } = inner.units.values().next()?;
        Some(HowFar { unit: *unit, counted: counts.get(), waits_for: waits_for.clone() })
    }
}

impl UnitUnderWay {
    /// Says what it waits for; nothing if empty.
    pub fn waits_for(&self, reason: String) {
        self.change(|watched| watched.waits_for = reason);
    }

    /// From now on the unit is counted by itself: the numbers that it had are kept.
    pub fn count_apart(&mut self, counted: Counted) {
        self.counts = Counts::from(counted);
        let counts = self.counts.clone();
        self.change(|watched| watched.counts = counts);
    }

    /// Where it is counted how far the unit is.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Watched)) {
        let mut inner = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = inner.units.get_mut(&self.place) {
            change(watched);
        }
    }
}

impl Drop for UnitUnderWay {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).units.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unit_is_told_of_with_its_own_numbers() {
        let (all, drawing) = (UnderWay::default(), Counts::default());
        assert_eq!(all.oldest(), None);
        let mut first = all.begin(7, drawing.clone());
        drawing.drawn(4);
        first.count_apart(drawing.get());
        drawing.begin();
        let second = all.begin(3, drawing.clone());
        drawing.drawn(1);
        first.counts().judged(2);
        first.waits_for("the judge".to_owned());
        let told = all.oldest().expect("two are under way");
        assert_eq!((told.unit, told.counted.drawn, told.counted.judged), (7, 4, 2));
        assert_eq!(told.waits_for, "the judge");
        drop(first);
        let told = all.oldest().expect("one is under way");
        assert_eq!((told.unit, told.counted.drawn, told.waits_for.as_str()), (3, 1, ""));
        drop(second);
        assert_eq!(all.oldest(), None);
    }
}
