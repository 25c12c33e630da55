//! Priority classes: which jobs may take the place of which.
//!
//! A class is a band of priorities, from its own upwards to the next class's. Priorities order jobs inside a class; only a job
//! of a higher class takes slots from one that was placed in its turn. Without classes none does.

use std::collections::BTreeMap;

/// A band of priorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityClass {
    pub name: String,
    /// Its jobs may take the slots of jobs of lower classes.
    pub preempts: bool,
    /// Its jobs may lose their slots to jobs of higher classes.
    pub preemptible: bool,
}

/// The classes of a cluster, by the lowest priority of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriorityClasses {
    by_lowest: BTreeMap<i32, PriorityClass>,
}

impl PriorityClasses {
    /// Of classes with the lowest priority of each.
    pub fn new(by_lowest: BTreeMap<i32, PriorityClass>) -> Self {
        Self { by_lowest }
    }

    /// The class of a job of this priority, with its lowest priority; none below the lowest class.
    pub fn of(&self, priority: i32) -> Option<(i32, &PriorityClass)> {
        self.by_lowest.range(..=priority).next_back().map(|(lowest, class)| (*lowest, class))
    }

    /// Whether a job of this priority may lose its slots.
    pub fn is_preemptible(&self, priority: i32) -> bool {
        self.of(priority).is_none_or(|(_, class)| class.preemptible)
    }

    /// Whether a job of this priority may have the slots of any other.
    pub fn preempts(&self, priority: i32) -> bool {
        self.of(priority).is_some_and(|(_, class)| class.preempts)
    }

    /// Whether a job of priority `taker` may have the slots of a running one of priority `holder`. One below every class holds
    /// its slots against nobody.
    pub fn may_preempt(&self, taker: i32, holder: i32) -> bool {
        let Some((lowest, _)) = self.of(taker).filter(|(_, class)| class.preempts) else { return false };
        self.of(holder).is_none_or(|(of_holder, held)| of_holder < lowest && held.preemptible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> PriorityClasses {
        let class = |name: &str, preempts, preemptible| PriorityClass {
            name: name.to_owned(),
            preempts,
            preemptible,
        };
        PriorityClasses::new(BTreeMap::from([
            (-10, class("idle", false, true)),
            (0, class("normal", true, true)),
            (100, class("fixed", true, false)),
            (200, class("urgent", true, true)),
        ]))
    }

    #[test]
    fn only_a_higher_class_takes_slots() {
        let classes = classes();
        for (taker, holder, may) in [
            (0, -10, true),
            (99, 0, false),
            (100, 99, true),
            (250, 120, false),
            (250, 0, true),
            (250, -1000, true),
            (-5, -1000, false),
            (-1000, -2000, false),
            (0, 200, false),
        ] {
            assert_eq!(classes.may_preempt(taker, holder), may, "{taker} of {holder}");
        }
        assert!(!PriorityClasses::default().may_preempt(1000, 0), "without classes nobody loses a slot");
    }

    #[test]
    fn a_priority_is_of_the_class_below_it() {
        let classes = classes();
        let name = |priority| classes.of(priority).map(|(_, class)| class.name.as_str());
        assert_eq!(
            [name(-11), name(-10), name(99), name(100)],
            [None, Some("idle"), Some("normal"), Some("fixed")]
        );
    }
}
