//! The gRPC services: what comes in is checked, the engine is asked, its answer goes out.

mod callers;
mod checkpoints;
mod curation;
mod jobs;
mod log_reader;
mod nodes;
mod objects;
mod queues;
mod quiet;
mod review;
mod samples;
mod views;

pub use callers::Callers;
pub use checkpoints::Checkpoints;
pub use curation::Curation;
pub use jobs::Jobs;
pub use nodes::Nodes;
pub use objects::Objects;
pub use queues::QueueStandings;
pub use review::Review;
pub use samples::Samples;
pub use views::{Sight, Views};

use crescendo_core::error::RequestError;
use crescendo_core::ids::{InvalidId, JobId, NodeId, StageRef};
use crescendo_proto::{convert, status};
use tonic::Status;

fn job_id(text: &str) -> Result<JobId, Status> {
    checked(convert::id("job_id", text, JobId::parse))
}

fn node_id(text: &str) -> Result<NodeId, Status> {
    checked(convert::id("node_id", text, NodeId::parse))
}

fn stage_ref(job: &str, stage: &str) -> Result<StageRef, Status> {
    checked(convert::stage(job, stage))
}

fn checked<T>(result: Result<T, RequestError>) -> Result<T, Status> {
    result.map_err(|refused| status::refused(&refused))
}

fn checked_id<T>(field: &'static str, result: Result<T, InvalidId>) -> Result<T, Status> {
    checked(result.map_err(|error| RequestError::bad_id(field, &error)))
}
