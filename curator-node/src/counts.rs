//! How far the unit in the making has come, for those who wait for it. Nothing depends on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Candidates of a unit so far. Its clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    drawn: AtomicU64,
    filtered: AtomicU64,
    judged: AtomicU64,
    accepted: AtomicU64,
}

/// The numbers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Made by the source, or turned down by it.
    pub drawn: u64,
    /// Looked at by the similarity filter.
    pub filtered: u64,
    /// Looked at by the judge.
    pub judged: u64,
    pub accepted: u64,
}

impl Counts {
    /// Counts that go on from `counted`, apart from any others.
    pub fn from(counted: Counted) -> Counts {
        let Counted { drawn, filtered, judged, accepted } = counted;
        Counts(Arc::new(Counters {
            drawn: drawn.into(),
            filtered: filtered.into(),
            judged: judged.into(),
            accepted: accepted.into(),
        }))
    }

    /// A unit begins.
    pub fn begin(&self) {
        let Counters { drawn, filtered, judged, accepted } = &*self.0;
        [drawn, filtered, judged, accepted].iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    pub fn drawn(&self, candidates: usize) {
        self.0.drawn.fetch_add(candidates as u64, Ordering::Relaxed);
    }

    /// The source gives its candidates: those that it has not counted one by one are counted now.
    pub fn drawn_in_all(&self, candidates: usize) {
        self.0.drawn.store(candidates as u64, Ordering::Relaxed);
    }

    pub fn filtered(&self, candidates: usize) {
        self.0.filtered.fetch_add(candidates as u64, Ordering::Relaxed);
    }

    pub fn judged(&self, candidates: usize) {
        self.0.judged.fetch_add(candidates as u64, Ordering::Relaxed);
    }

    pub fn accepted(&self, candidates: usize) {
        self.0.accepted.fetch_add(candidates as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> Counted {
        let Counters { drawn, filtered, judged, accepted } = &*self.0;
        Counted {
            drawn: drawn.load(Ordering::Relaxed),
            filtered: filtered.load(Ordering::Relaxed),
            judged: judged.load(Ordering::Relaxed),
            accepted: accepted.load(Ordering::Relaxed),
        }
    }
}
