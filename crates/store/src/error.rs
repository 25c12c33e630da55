//! What can go wrong, sorted by what the caller does about it.

use std::path::PathBuf;

/// The cause kept below a [`StoreError`].
pub type BoxedCause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error of the store. The variants differ in what a caller does next, not in what went wrong below.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition on `key` did not hold; nothing was applied. Read again, decide again.
    #[error("record {key:?} is not in the expected state")]
    Conflict {
        /// The first key, in the order of the preconditions, whose precondition failed.
        key: String,
    },
    /// The leadership that the transaction leaned on is gone; nothing was applied. Stop leading.
    #[error("leadership of {name:?} is held by somebody else or by nobody")]
    NotLeader {
        /// The name campaigned for.
        name: String,
    },
    /// The campaign's time was up before the leadership became free. Campaign again, or stand by.
    #[error("leadership of {name:?} did not become free in time (leader: {})", leader.as_deref().unwrap_or("none"))]
    NotElected {
        /// The name campaigned for.
        name: String,
        /// The identity of the leader last seen.
        leader: Option<String>,
    },
    /// A put named a lease that does not exist (any more); nothing was applied. Get a new lease.
    #[error("lease {lease} does not exist")]
    LeaseNotFound {
        /// The lease's number.
        lease: u64,
    },
    /// The store keeps this revision no more, so that nothing can be read at it. Begin anew at the present one.
    #[error("revision {revision} is compacted")]
    Compacted {
        /// The revision that was to be read.
        revision: u64,
    },
    /// Surely not applied: refused before it was carried out, or never sent. Trying again is safe.
    #[error("store call was not applied")]
    NotApplied(#[source] BoxedCause),
    /// Perhaps applied: sent, but no answer came. Drop what is in memory, read again, decide again.
    #[error("outcome of the store call is unknown")]
    Unknown(#[source] BoxedCause),
    /// A key, value or transaction is over a limit; nothing was applied. Trying again cannot help.
    #[error("{what} is {size}, over the limit of {limit}")]
    TooLarge {
        /// What is too large, with its unit, such as `value of "jobs/a" in bytes`.
        what: String,
        /// Its size.
        size: usize,
        /// The limit, in the same unit.
        limit: usize,
    },
    /// The request itself is wrong (an empty key, a key written twice); nothing was applied.
    #[error("invalid store request: {0}")]
    Invalid(String),
    /// The store refuses this client (credentials, a wrong address, a server without this call); nothing was applied.
    #[error("store refused the call")]
    Refused(#[source] BoxedCause),
    /// What is stored cannot be read. A person has to look.
    #[error("store holds unreadable data: {0}")]
    Corrupt(String),
    /// The embedded store's folder is open in another process.
    #[error("store {} is already open in another process", path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The embedded store could not be opened.
    #[error("cannot open store {}", path.display())]
    Open {
        /// The file or folder that was not to be had.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxedCause,
    },
    /// The store was closed by [`crate::Store::close`]; nothing was applied.
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call, sent again as it is, may succeed and cannot do harm.
    ///
    /// False for [`StoreError::Conflict`] and [`StoreError::Unknown`]: those want a fresh read and a fresh decision first.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotApplied(_) | Self::NotElected { .. } => true,
            Self::Conflict { .. }
            | Self::NotLeader { .. }
            | Self::Compacted { .. }
            | Self::LeaseNotFound { .. }
            | Self::Unknown(_)
            | Self::TooLarge { .. }
            | Self::Invalid(_)
            | Self::Refused(_)
            | Self::Corrupt(_)
            | Self::InUse { .. }
            | Self::Open { .. }
            | Self::Closed => false,
        }
    }

    /// Whether the call surely changed nothing. False only for [`StoreError::Unknown`].
    pub fn is_surely_not_applied(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_surely_changed_nothing_is_sent_again_as_it_is() {
        let unknown = StoreError::Unknown("connection lost".into());
        assert!(!unknown.is_retryable());
        assert!(!unknown.is_surely_not_applied());
        let conflict = StoreError::Conflict { key: "jobs/a".into() };
        assert!(!conflict.is_retryable());
        assert!(conflict.is_surely_not_applied());
        assert!(StoreError::NotApplied("refused".into()).is_retryable());
    }
}
