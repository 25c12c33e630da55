//! A rank: one process that trains on one device, supervised by the agent of its node and killable without harm.
//!
//! ```text
//!   agent ◀──────── link ────────┐
//!                                │ assignment, curators, stop, outcomes
//!   curators ──pairs──▶ data ──▶ prefetch ──steps──▶ training thread (libtorch) ──copies──▶ saver ──▶ object store
//!                    (credits)                         │    ▲
//!                                                      └────┘ all-reduce with the other ranks
//! ```
//!
//! The thread named `train` computes, the one named `prefetch` makes its tensors; the rest is asynchronous I/O on another.

pub mod batch;
pub mod copy_out;
pub mod data;
pub mod event_files;
pub mod fetch;
pub mod history;
pub mod hyper_parameters;
pub mod link;
pub mod plan;
pub mod position_log;
pub mod positions;
pub mod prefetch;
pub mod pulse;
pub mod restore;
pub mod run;
pub mod save;
pub mod step_profiler;
pub mod tfevents;
pub mod train;
pub mod train_state;
pub mod unsaved;

/// Why a rank ends before its last step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// Told to stop.
    #[error("stopped: {0}")]
    Stopped(String),
    /// Trying again cannot help.
    #[error("{0}")]
    Permanent(String),
    /// A node of the gang drains; what was trained is saved.
    #[error("drained: {0}")]
    Drained(String),
    /// Another rank is gone; its own node knows why.
    #[error("{0}")]
    PeerLost(String),
    /// Trying again may help.
    #[error("{0}")]
    Retryable(String),
}

impl RankError {
    pub fn permanent(error: impl std::fmt::Display) -> Self {
        Self::Permanent(error.to_string())
    }

    pub fn retryable(error: impl std::fmt::Display) -> Self {
        Self::Retryable(error.to_string())
    }
}
