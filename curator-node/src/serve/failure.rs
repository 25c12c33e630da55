//! Why something cannot be sent to the person who waits for it.

use crescendo_proto::v1::SendFailure;

/// Another try may fare better.
pub fn passing(reason: String) -> SendFailure {
    SendFailure { reason, passing: true }
}

pub fn lasting(reason: String) -> SendFailure {
    SendFailure { reason, passing: false }
}
