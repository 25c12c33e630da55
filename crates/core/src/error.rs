//! Why a request is refused.

use std::time::Duration;

use crate::ids::{AttemptRef, InvalidId};

/// A field of a spec that names what its tenant may not have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overreach {
    /// E.g. `spec.stages[0].data.path`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A request that changes nothing. Each variant is one thing that a caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Name something that exists.
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// Stop: someone newer owns it.
    #[error("{attempt} is not the newest of its stage")]
    StaleAttempt { attempt: AttemptRef },
    /// Stop: the unit belongs to another lease.
    #[error("lease {lease_generation} of unit {unit} is over")]
    StaleLease { unit: u64, lease_generation: u64 },
    /// Nothing can be done any more.
    #[error("{what}")]
    TooLate { what: String },
    /// Do first what it names.
    #[error("{what}")]
    InUse { what: String },
    /// Correct the field.
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    /// Correct the fields of the spec, or ask for the right to them.
    #[error("{}", first_of(.overreaches))]
    Overreach { overreaches: Vec<Overreach> },
    /// Ask for the right to do it.
    #[error("{what}")]
    Forbidden { what: String },
    /// Use another request id.
    #[error("{what}")]
    Exists { what: String },
    /// Try again once what it needs is there.
    #[error("{what}")]
    Unserved { what: String },
    /// Try again later.
    #[error("{what}")]
    Full { what: String, retry_after: Duration },
}

fn first_of(overreaches: &[Overreach]) -> String {
    overreaches.first().map_or_else(String::new, |first| format!("{}: {}", first.field, first.message))
}

impl RequestError {
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }

    /// An id in `field` that is not one.
    pub fn bad_id(field: &'static str, error: &InvalidId) -> Self {
        Self::invalid(field, error.to_string())
    }
}
