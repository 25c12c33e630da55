//! The one map from refusals to gRPC status codes.
//!
//! | code | what the caller should do |
//! |---|---|
//! | `INVALID_ARGUMENT` | correct the field that the message names; a spec's problems are in [`PROBLEMS_TRAILER`] |
//! | `NOT_FOUND` | name something that exists |
//! | `ALREADY_EXISTS` | use another request id |
//! | `UNAUTHENTICATED` | bring a credential that is known and has not expired |
//! | `PERMISSION_DENIED` | ask for the role, or the tenant, that the message names |
//! | `FAILED_PRECONDITION` | stop: someone newer owns it, or it is over, or something else has to be done first |
//! | `RESOURCE_EXHAUSTED` | try again after [`RETRY_AFTER_TRAILER`] milliseconds |
//! | `UNAVAILABLE` | try again, at [`LEADER_TRAILER`] if it is there |

use std::time::Duration;

use crescendo_core::RequestError;
use crescendo_core::error::Overreach;
use crescendo_core::spec::{Problem, Warning};
use prost::Message as _;
use tonic::metadata::{BinaryMetadataValue, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::v1;

/// Binary trailer with an encoded [`v1::SpecProblems`].
pub const PROBLEMS_TRAILER: &str = "crescendo-problems-bin";
/// Milliseconds after which another try makes sense.
pub const RETRY_AFTER_TRAILER: &str = "crescendo-retry-after-millis";
/// host:port of the controller that leads.
pub const LEADER_TRAILER: &str = "crescendo-leader";

/// Problems carried in a trailer; more than fit are left out, since HTTP/2 peers bound their headers.
const MAX_TRAILER_BYTES: usize = 6 * 1024;

/// Whether the same call may succeed a little later; otherwise its answer is final.
pub fn is_passing(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Cancelled
        | Code::Internal
        | Code::Unknown => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// Status of a refused request.
pub fn refused(refused: &RequestError) -> Status {
    let code = match refused {
        RequestError::NotFound { .. } => Code::NotFound,
        RequestError::StaleAttempt { .. }
        | RequestError::StaleLease { .. }
        | RequestError::TooLate { .. }
        | RequestError::InUse { .. } => Code::FailedPrecondition,
        RequestError::Invalid { .. } => Code::InvalidArgument,
        RequestError::Exists { .. } => Code::AlreadyExists,
        RequestError::Forbidden { .. } => Code::PermissionDenied,
        RequestError::Unserved { .. } => Code::Unavailable,
        RequestError::Full { what, retry_after } => return exhausted(what, *retry_after),
        RequestError::Overreach { overreaches } => {
            let problem = |found: &Overreach| Problem {
                line: 0,
                column: 0,
                path: found.field.clone(),
                message: found.message.clone(),
            };
            return bad_spec(&overreaches.iter().map(problem).collect::<Vec<_>>());
        }
    };
    Status::new(code, refused.to_string())
}

/// Too much at once: try again after `retry_after`.
pub fn exhausted(what: &str, retry_after: Duration) -> Status {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = MetadataValue::try_from(retry_after.as_millis().to_string()) {
        metadata.insert(RETRY_AFTER_TRAILER, value);
    }
    Status::with_metadata(Code::ResourceExhausted, what, metadata)
}

/// This controller does not lead; `leader` is the address of the one that does, as far as it is known.
pub fn not_leader(leader: Option<&str>) -> Status {
    let Some(leader) = leader else {
        return Status::unavailable("this controller does not lead and knows of no leader");
    };
    let mut metadata = MetadataMap::new();
    if let Ok(value) = MetadataValue::try_from(leader) {
        metadata.insert(LEADER_TRAILER, value);
    }
    Status::with_metadata(
        Code::Unavailable,
        format!("this controller does not lead; {leader} does"),
        metadata,
    )
}

/// A spec with problems: the first in the message, all (as far as they fit) in the trailer.
pub fn bad_spec(problems: &[Problem]) -> Status {
    let message = match problems {
        [] => "the spec is invalid".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more problems)", rest.len()),
    };
    let mut list = v1::SpecProblems { problems: problems.iter().map(v1::SpecProblem::from).collect() };
    while list.encoded_len() > MAX_TRAILER_BYTES && list.problems.pop().is_some() {}
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(PROBLEMS_TRAILER, BinaryMetadataValue::from_bytes(&list.encode_to_vec()));
    Status::with_metadata(Code::InvalidArgument, message, metadata)
}

/// The leader that a status names, host:port.
pub fn leader(status: &Status) -> Option<&str> {
    status.metadata().get(LEADER_TRAILER)?.to_str().ok()
}

/// After how long the caller of a refused call is to try again, if it was told.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get(RETRY_AFTER_TRAILER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// The problems that a status carries, if it is that of a bad spec.
pub fn spec_problems(status: &Status) -> Option<v1::SpecProblems> {
    let bytes = status.metadata().get_bin(PROBLEMS_TRAILER)?.to_bytes().ok()?;
    v1::SpecProblems::decode(bytes).ok()
}

impl From<&Problem> for v1::SpecProblem {
    fn from(problem: &Problem) -> Self {
        Self {
            line: problem.line,
            column: problem.column,
            path: problem.path.clone(),
            message: problem.message.clone(),
        }
    }
}

impl From<&Warning> for v1::SpecProblem {
    fn from(Warning { line, column, path, message }: &Warning) -> Self {
        Self { line: *line, column: *column, path: path.clone(), message: message.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(n: u32) -> Problem {
        Problem { line: n, column: 1, path: format!("spec.stages[{n}]"), message: "must not be so".repeat(4) }
    }

    #[test]
    fn problems_travel_in_the_trailer() {
        let status = bad_spec(&[problem(1), problem(2)]);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("line 1, column 1: spec.stages[1]"));
        let list = spec_problems(&status).expect("carried");
        assert_eq!(list.problems.iter().map(|p| p.line).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_trailer_stays_small_enough_to_be_sent() {
        let many: Vec<_> = (0..500).map(problem).collect();
        let list = spec_problems(&bad_spec(&many)).expect("carried");
        assert!(!list.problems.is_empty() && list.encoded_len() <= MAX_TRAILER_BYTES);
    }

    #[test]
    fn a_full_queue_says_when_to_try_again() {
        let status =
            refused(&RequestError::Full { what: "full".into(), retry_after: Duration::from_secs(2) });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get(RETRY_AFTER_TRAILER).expect("set").to_str().expect("text"), "2000");
        assert_eq!((retry_after(&status), leader(&status)), (Some(Duration::from_secs(2)), None));
    }

    #[test]
    fn a_standby_names_the_leader() {
        let status = not_leader(Some("10.0.0.7:7070"));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.metadata().get(LEADER_TRAILER).expect("set").to_str().expect("text"),
            "10.0.0.7:7070"
        );
    }
}
