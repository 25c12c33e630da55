//! The recent changes, kept in memory for watches.

use std::collections::VecDeque;

use crate::types::Revision;
use crate::watch::WatchEvent;

/// Changes handed to one watch at a time; a revision is never cut in two.
const CHUNK_EVENTS: usize = 256;

/// A bounded run of changes that reaches up to now, in revision order. Keys are full keys.
#[derive(Debug)]
pub(crate) struct History {
    /// Every change after this revision is here.
    floor: Revision,
    /// The last revision that was published.
    latest: Revision,
    changes: VecDeque<WatchEvent>,
    bytes: usize,
    limits: HistoryLimits,
}

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    pub events: usize,
    pub bytes: usize,
}

/// What a watch gets that has seen everything up to some revision.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The changes since then are not all here: read everything anew.
    Gone,
    /// The matching changes up to and including `reached`, with full keys.
    Changes { events: Vec<WatchEvent>, reached: Revision },
}

impl History {
    pub fn new(now: Revision, limits: HistoryLimits) -> Self {
        Self { floor: now, latest: now, changes: VecDeque::new(), bytes: 0, limits }
    }

    /// Adds the changes of one or several revisions, in order.
    pub fn publish(&mut self, changes: impl IntoIterator<Item = WatchEvent>, latest: Revision) {
        for change in changes {
            self.bytes += size_bytes(&change);
            self.changes.push_back(change);
        }
        self.latest = latest;
        while self.changes.len() > self.limits.events || self.bytes > self.limits.bytes {
            let Some(oldest) = self.changes.front().map(WatchEvent::revision) else {
                break;
            };
            self.forget(oldest);
        }
    }

    /// Drops every change up to and including `revision`.
    pub fn forget(&mut self, revision: Revision) {
        while let Some(change) = self.changes.front()
            && change.revision() <= revision
        {
            self.bytes -= size_bytes(change);
            self.changes.pop_front();
        }
        self.floor = self.floor.max(revision.min(self.latest));
    }

    /// Whether changes after `revision` are not all here.
    #[cfg(feature = "testing")]
    pub fn is_gone(&self, revision: Revision) -> bool {
        revision < self.floor
    }

    pub fn since(&self, after: Revision, full_prefix: &str) -> Since {
        if after < self.floor {
            return Since::Gone;
        }
        let start = self.changes.partition_point(|change| change.revision() <= after);
        let mut events = Vec::new();
        let mut reached = after;
        for change in self.changes.range(start..) {
            if events.len() >= CHUNK_EVENTS && change.revision() > reached {
                return Since::Changes { events, reached };
            }
            reached = change.revision();
            if key(change).starts_with(full_prefix) {
                events.push(change.clone());
            }
        }
        Since::Changes { events, reached: self.latest.max(after) }
    }
}

fn key(change: &WatchEvent) -> &str {
    match change {
        WatchEvent::Put(record) => &record.key,
        WatchEvent::Delete { key, .. } => key,
        WatchEvent::Resync { .. } => "",
    }
}

fn size_bytes(change: &WatchEvent) -> usize {
    let value_bytes = match change {
        WatchEvent::Put(record) => record.value.len(),
        WatchEvent::Delete { .. } | WatchEvent::Resync { .. } => 0,
    };
    size_of::<WatchEvent>() + key(change).len() + value_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Versioned;

    const WIDE: HistoryLimits = HistoryLimits { events: 1000, bytes: 1 << 20 };

    fn put(key: &str, revision: u64) -> WatchEvent {
        WatchEvent::Put(Versioned {
            key: key.to_owned(),
            value: "v".into(),
            mod_revision: Revision(revision),
            lease: None,
        })
    }

    fn revisions(since: Since) -> Vec<u64> {
        match since {
            Since::Changes { events, .. } => events.iter().map(|event| event.revision().0).collect(),
            Since::Gone => panic!("history is gone"),
        }
    }

    #[test]
    fn a_watch_sees_what_came_after_it_and_matches() {
        let mut history = History::new(Revision(10), WIDE);
        history.publish([put("/a/1", 11), put("/b/1", 12), put("/a/2", 13)], Revision(13));
        assert_eq!(revisions(history.since(Revision(10), "/a/")), [11, 13]);
        assert_eq!(revisions(history.since(Revision(11), "/a/")), [13]);
        assert_eq!(
            history.since(Revision(13), "/a/"),
            Since::Changes { events: vec![], reached: Revision(13) }
        );
        assert_eq!(history.since(Revision(9), "/a/"), Since::Gone);
    }

    #[test]
    fn the_oldest_revisions_go_first_and_whole() {
        let mut history = History::new(Revision(0), HistoryLimits { events: 3, bytes: 1 << 20 });
        history.publish([put("/a", 1), put("/b", 1), put("/c", 2), put("/d", 3)], Revision(3));
        assert_eq!(history.since(Revision(0), "/"), Since::Gone);
        assert_eq!(revisions(history.since(Revision(1), "/")), [2, 3]);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut history =
            History::new(Revision(0), HistoryLimits { events: 1000, bytes: 2 * size_bytes(&put("/a", 1)) });
        history.publish((1..=5).map(|revision| put("/a", revision)), Revision(5));
        assert_eq!(revisions(history.since(Revision(3), "/")), [4, 5]);
        assert_eq!(history.since(Revision(2), "/"), Since::Gone);
    }

    #[test]
    fn a_chunk_ends_between_revisions() {
        let mut history = History::new(Revision(0), WIDE);
        let changes = (1..=100).flat_map(|revision| (0..3).map(move |n| put(&format!("/{n}"), revision)));
        history.publish(changes, Revision(100));
        let Since::Changes { events, reached } = history.since(Revision(0), "/") else { panic!("gone") };
        assert_eq!(reached, Revision(86));
        assert_eq!(events.len(), 86 * 3);
        assert_eq!(revisions(history.since(reached, "/")).len(), 14 * 3);
    }
}
