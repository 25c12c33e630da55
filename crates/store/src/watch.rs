//! The stream of changes that [`crate::Store::watch`] returns.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use crate::types::{Revision, Versioned};

/// One thing that happened to the records under a watched prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// These are all the records, as of `revision`: replace what is known. Comes first when a watch starts from
    /// nothing, and later when the changes in between are not to be had any more.
    Resync {
        /// Every record under the prefix, in key order.
        items: Vec<Versioned>,
        /// The revision that they show.
        revision: Revision,
    },
    /// A record was created or replaced, at its `mod_revision`.
    Put(Versioned),
    /// A record was removed.
    Delete {
        /// Its key, without the store's prefix.
        key: String,
        /// When.
        revision: Revision,
    },
}

impl WatchEvent {
    /// The revision that a reader of this event has reached.
    ///
    /// One transaction may be several events of the same revision, so a watch is resumed from the revision *before*
    /// the last event unless it is known to be complete.
    pub fn revision(&self) -> Revision {
        match self {
            WatchEvent::Resync { revision, .. } | WatchEvent::Delete { revision, .. } => *revision,
            WatchEvent::Put(record) => record.mod_revision,
        }
    }
}

/// A stream of [`WatchEvent`]s in revision order, without gaps: what cannot be delivered one by one (the history is
/// gone, or this reader was too slow) is delivered as one [`WatchEvent::Resync`].
///
/// It reconnects by itself and ends only when its store is closed. Dropping it ends it. The buffer is bounded; a slow
/// reader holds nobody else up.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
}

impl Watch {
    pub(crate) fn new(events: mpsc::Receiver<WatchEvent>) -> Self {
        Self { events }
    }

    /// Waits for the next event; `None` when the store is closed. May be dropped without losing an event.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

impl Stream for Watch {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.events.poll_recv(context)
    }
}
