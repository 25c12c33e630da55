//! What can go wrong in a collective call, sorted by what the caller does next.

use std::time::Duration;

/// Why a collective call did not do its work.
///
/// After any of them but [`InvalidArgument`](Self::InvalidArgument) and [`BackendMissing`](Self::BackendMissing) the group
/// is broken: its connections are closed, so that the other ranks learn of it at once, and each later call returns the
/// first error again. The way on is a new group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// Some rank did not take part in time.
    #[error("{operation} not finished within {limit:?}: {detail}")]
    Timeout { operation: &'static str, limit: Duration, detail: String },
    /// A connection to a rank was closed or reset: its process has ended, its machine is gone, or it aborted the group.
    #[error("{operation} failed, a peer is lost: {detail}")]
    PeerLost { operation: &'static str, detail: String },
    /// [`ProcessGroup::abort`](crate::ProcessGroup::abort) was called in this process.
    #[error("the process group was aborted")]
    Aborted,
    /// The call itself is wrong: kind, layout, device, rank. Nothing was sent, and the group goes on.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The library behind this backend is not on this machine, or does not load.
    #[error("backend missing: {0}")]
    BackendMissing(String),
    /// Anything else that the library behind the backend reports.
    #[error("{operation} failed: {detail}")]
    Backend { operation: &'static str, detail: String },
}

impl CollectiveError {
    /// Whether a rank went away, as told by its connection.
    pub fn is_peer_lost(&self) -> bool {
        matches!(self, Self::PeerLost { .. })
    }

    /// Whether the time was up first.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// Whether this process aborted the group itself.
    pub fn is_aborted(&self) -> bool {
        matches!(self, Self::Aborted)
    }

    /// Whether the group can be used no more.
    pub fn breaks_group(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::PeerLost { .. } | Self::Aborted | Self::Backend { .. } => true,
            Self::InvalidArgument(_) | Self::BackendMissing(_) => false,
        }
    }

    /// Of a failed tensor operation on this side, such as memory that could not be had.
    pub(crate) fn of_tensor(operation: &'static str) -> impl Fn(tch::TchError) -> Self {
        move |error| {
            let text = error.to_string();
            let detail = text.lines().next().unwrap_or_default().to_owned();
            Self::Backend { operation, detail }
        }
    }
}

pub type Result<T> = std::result::Result<T, CollectiveError>;
