//! Pairs that people have marked bad, and what becomes of the order of a stage's pairs.
//!
//! ```text
//!  marks      +7          +3 -7                     versions 1, 2, 3
//!  epoch      0 ─────────┬ 1 ─────────┬ 2 ─────────
//!  leaves out  nothing     7 (v. 1)     3 (v. 3)
//! ```
//!
//! A list of marks only grows: how many changes there were is its version, and every version can be had again. Which version an
//! epoch leaves out is settled before any of its pairs is trained, and stands in every checkpoint from then on: what lies before
//! never changes, and a run that goes on from a checkpoint reads every position as it was read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{StageRef, Timestamp};

/// Changes of the marks of one log at most.
pub const MAX_MARK_CHANGES: usize = 1024;
/// Characters of a reason at most.
pub const MAX_MARK_REASON_CHARS: usize = 120;
/// Marks that one call sets or takes back at most.
pub const MAX_MARKS_AT_ONCE: usize = 100;

/// Somebody has marked a pair bad, or has taken that back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkChange {
    pub at: Timestamp,
    /// The name that this person had logged in by.
    pub by: String,
    /// Of the pair in the log.
    pub index: u64,
    /// Marked; else taken back.
    pub bad: bool,
    /// One line, may be empty.
    pub reason: String,
}

/// The marks of a stage's log; there is no record of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarksRecord {
    /// The stage in whose log the pairs are.
    pub stage: StageRef,
    /// The oldest first; at most [`MAX_MARK_CHANGES`]. None is ever taken out.
    pub changes: Vec<MarkChange>,
}

impl MarksRecord {
    pub fn version(&self) -> u64 {
        self.changes.len() as u64
    }

    /// The pairs that are marked now, by index, each with its mark.
    pub fn marked(&self) -> BTreeMap<u64, &MarkChange> {
        let mut marked = BTreeMap::new();
        for change in &self.changes {
            if change.bad {
                marked.insert(change.index, change);
            } else {
                marked.remove(&change.index);
            }
        }
        marked
    }
}

/// The changes of a list of marks as training needs them: indices, and whether each was marked or taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkList(pub Vec<(u64, bool)>);

impl MarkList {
    pub fn of(record: &MarksRecord) -> Self {
        Self(record.changes.iter().map(|change| (change.index, change.bad)).collect())
    }

    pub fn version(&self) -> u64 {
        self.0.len() as u64
    }

    /// What an epoch of a log with `pairs` pairs leaves out by this version, ascending. Where nothing would be left, nothing is left
    /// out.
    pub fn left_out(&self, version: u64, pairs: u64) -> Vec<u64> {
        let changes = self.0.iter().take(usize::try_from(version).unwrap_or(usize::MAX));
        let mut marked = std::collections::BTreeSet::new();
        for (index, bad) in changes.filter(|(index, _)| *index < pairs) {
            if *bad {
                marked.insert(*index);
            } else {
                marked.remove(index);
            }
        }
        if marked.len() as u64 >= pairs { Vec::new() } else { marked.into_iter().collect() }
    }
}

/// From which epoch on which pairs are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeftOut {
    /// First position of the epoch, with those of replay passes left out of the count.
    pub from: u64,
    /// Version of the list of marks.
    pub version: u64,
    /// Pairs of the sealed log.
    pub pairs: u64,
    /// Indices of those that are left out, ascending.
    pub indices: Vec<u64>,
}

impl LeftOut {
    /// Pairs of an epoch.
    fn kept(&self) -> u64 {
        self.pairs - self.indices.len() as u64
    }

    /// The n-th pair of those that are kept, by index.
    fn nth_kept(&self, n: u64) -> u64 {
        let mut index = n;
        for left_out in &self.indices {
            if *left_out > index {
                break;
            }
            index += 1;
        }
        index
    }
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("marks from position {from} on (version {version}) do not follow from those before them")]
pub struct BadLeftOut {
    from: u64,
    version: u64,
}

/// A position of the order without replay passes, past the first time through a sealed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochPlace {
    /// From 1 on.
    pub epoch: u64,
    /// Which of the epoch's.
    pub offset: u64,
    /// Pairs of the epoch.
    pub length: u64,
}

/// The epochs of a stage: all of the log, or what marks leave of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs(Vec<LeftOut>);

impl Epochs {
    /// Takes over what a checkpoint has.
    pub fn checked(all: Vec<LeftOut>) -> Result<Self, BadLeftOut> {
        let mut checked = Self::default();
        for next in all {
            let bad = BadLeftOut { from: next.from, version: next.version };
            if !checked.push(next) {
                return Err(bad);
            }
        }
        Ok(checked)
    }

    pub fn all(&self) -> &[LeftOut] {
        &self.0
    }

    /// The version of the marks that is left out by now; 0 before any.
    pub fn version(&self) -> u64 {
        self.0.last().map_or(0, |last| last.version)
    }

    /// Leaves out `next` from where it says on, which must be where an epoch begins, the last one that is known or a later one.
    /// What lies before stays as it is. `false`, and nothing is changed, if it does not follow.
    #[must_use]
    pub fn push(&mut self, next: LeftOut) -> bool {
        let LeftOut { from, version, pairs, indices } = &next;
        let in_order = indices.is_sorted_by(|left, right| left < right);
        let within = indices.last().is_none_or(|last| last < pairs) && (indices.len() as u64) < *pairs;
        let follows = self
            .0
            .last()
            .is_none_or(|last| last.from <= *from && last.version < *version && last.pairs == *pairs);
        if !(in_order && within && follows && *version > 0 && self.begins(*from, *pairs)) {
            return false;
        }
        // Changed once more before anything of it was trained.
        if self.0.last().is_some_and(|last| last.from == *from) {
            self.0.pop();
        }
        self.0.push(next);
        true
    }

    /// Whether an epoch but the first begins at this position of a log with `pairs` pairs.
    pub fn begins(&self, position: u64, pairs: u64) -> bool {
        position > 0 && self.at(position, pairs).is_some_and(|place| place.offset == 0)
    }

    /// Where a position lies; none on the first time through the log, which is read as it is, and of a log without a pair.
    pub fn at(&self, position: u64, pairs: u64) -> Option<EpochPlace> {
        if pairs == 0 || position < pairs {
            return None;
        }
        // Epochs before the segment, where it begins, and how long each of its epochs is.
        let (mut epoch, mut from, mut length) = (0, 0, pairs);
        for next in self.0.iter().take_while(|next| next.from <= position) {
            epoch += (next.from - from) / length;
            (from, length) = (next.from, next.kept());
        }
        let since = position - from;
        Some(EpochPlace { epoch: epoch + since / length, offset: since % length, length })
    }

    /// The index in the log of the n-th of the pairs that are kept where `position` lies, in the order of the log.
    pub fn nth_kept(&self, position: u64, n: u64) -> u64 {
        let begun = self.0.partition_point(|next| next.from <= position);
        begun.checked_sub(1).and_then(|last| self.0.get(last)).map_or(n, |left_out| left_out.nth_kept(n))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn left_out(from: u64, version: u64, pairs: u64, indices: &[u64]) -> LeftOut {
        LeftOut { from, version, pairs, indices: indices.to_vec() }
    }

    #[test]
    fn each_version_of_a_list_can_be_had_again() {
        let list = MarkList(vec![(7, true), (3, true), (7, false), (9, true)]);
        let of = |version| list.left_out(version, 10);
        assert!(of(0).is_empty());
        assert_eq!(of(1), [7]);
        assert_eq!(of(2), [3, 7]);
        assert_eq!(of(3), [3]);
        assert_eq!(of(99), [3, 9]);
        assert_eq!(list.left_out(4, 9), [3], "what the stage does not read is not left out of it");
        let all = MarkList(vec![(0, true), (1, true)]);
        assert!(all.left_out(2, 2).is_empty(), "something is left to train on");
    }

    #[test]
    fn epochs_are_as_long_as_what_is_left() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.at(9, 10), None);
        assert_eq!(epochs.at(25, 10), Some(EpochPlace { epoch: 2, offset: 5, length: 10 }));
        assert!(epochs.push(left_out(20, 1, 10, &[0, 4])));
        // Epoch 2 has 20 to 27, epoch 3 28 to 35.
        assert_eq!(epochs.at(19, 10), Some(EpochPlace { epoch: 1, offset: 9, length: 10 }));
        assert_eq!(epochs.at(27, 10), Some(EpochPlace { epoch: 2, offset: 7, length: 8 }));
        assert_eq!(epochs.at(28, 10), Some(EpochPlace { epoch: 3, offset: 0, length: 8 }));
        let kept: Vec<u64> = (0..8).map(|n| epochs.nth_kept(20, n)).collect();
        assert_eq!(kept, [1, 2, 3, 5, 6, 7, 8, 9]);
        assert!(epochs.push(left_out(36, 3, 10, &[])));
        assert_eq!(epochs.at(45, 10), Some(EpochPlace { epoch: 4, offset: 9, length: 10 }));
        assert_eq!(epochs.at(46, 10), Some(EpochPlace { epoch: 5, offset: 0, length: 10 }));
        assert_eq!(Epochs::checked(epochs.all().to_vec()).as_ref(), Ok(&epochs));
        // Once more before it is trained.
        assert!(epochs.push(left_out(36, 4, 10, &[1])));
        assert_eq!(epochs.all().len(), 2);
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let refused = |before: &[LeftOut], next: LeftOut| {
            let all = before.iter().cloned().chain([next]).collect();
            Epochs::checked(all).is_err()
        };
        let first = left_out(20, 2, 10, &[1]);
        assert!(!refused(&[], first.clone()));
        for bad in [
            left_out(0, 1, 10, &[1]),
            left_out(15, 1, 10, &[1]),
            left_out(20, 0, 10, &[1]),
            left_out(20, 1, 10, &[1, 1]),
            left_out(20, 1, 10, &[10]),
            left_out(2, 1, 2, &[0, 1]),
            left_out(20, 1, 0, &[]),
        ] {
            assert!(refused(&[], bad.clone()), "{bad:?}");
        }
        for bad in [
            left_out(30, 3, 10, &[]),
            left_out(29, 2, 10, &[]),
            left_out(29, 3, 9, &[]),
            left_out(10, 3, 10, &[]),
        ] {
            assert!(refused(std::slice::from_ref(&first), bad.clone()), "{bad:?}");
        }
        assert!(!refused(&[first], left_out(29, 3, 10, &[])));
    }

    proptest! {
        /// Whatever is marked when: an epoch has each pair once that is not left out of it, no other, and what lies before a change is
        /// as it was without it.
        #[test]
        fn every_epoch_has_what_is_left_and_nothing_before_it_moves(
            pairs in 1u64..9,
            changes in prop::collection::vec((0u64..10, any::<bool>()), 0..12),
            skips in prop::collection::vec((0u64..4, 0usize..4), 1..5),
        ) {
            let list = MarkList(changes);
            let read = |epochs: &Epochs, position: u64| match epochs.at(position, pairs) {
                None => (0, position),
                Some(EpochPlace { epoch, offset, .. }) => (epoch, epochs.nth_kept(position, offset)),
            };
            let mut epochs = Epochs::default();
            // First position of each epoch, and what is left out of it.
            let mut expected: Vec<(u64, BTreeSet<u64>)> = vec![(0, BTreeSet::new())];
            let (mut version, mut next) = (0, pairs);
            for (unchanged, more) in skips {
                for _ in 0..unchanged {
                    let last = expected.last().expect("the first").1.clone();
                    expected.push((next, last.clone()));
                    // The first time through is the whole log, whatever is left out later.
                    next += pairs - last.len() as u64;
                }
                let newer = (version + more as u64).min(list.version());
                if newer > version {
                    version = newer;
                    let indices = list.left_out(version, pairs);
                    let before: Vec<(u64, u64)> = (0..next).map(|position| read(&epochs, position)).collect();
                    let pushed = epochs.push(LeftOut { from: next, version, pairs, indices: indices.clone() });
                    prop_assert!(pushed, "an epoch begins at {}", next);
                    let after: Vec<(u64, u64)> = (0..next).map(|position| read(&epochs, position)).collect();
                    prop_assert_eq!(before, after);
                    expected.push((next, indices.iter().copied().collect()));
                    next += pairs - indices.len() as u64;
                }
            }
            for (number, (first, gone)) in expected.iter().enumerate() {
                let end = expected.get(number + 1).map_or(next, |(end, _)| *end);
                let places: Vec<(u64, u64)> = (*first..end).map(|position| read(&epochs, position)).collect();
                prop_assert!(places.iter().all(|(epoch, _)| *epoch == number as u64), "{:?}", places);
                let seen: BTreeSet<u64> = places.iter().map(|(_, index)| *index).collect();
                prop_assert_eq!(places.len(), seen.len());
                prop_assert_eq!(&seen, &(0..pairs).filter(|index| !gone.contains(index)).collect::<BTreeSet<u64>>());
            }
            let again = Epochs::checked(epochs.all().to_vec());
            prop_assert_eq!(again, Ok(epochs));
        }
    }
}
