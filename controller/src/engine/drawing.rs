//! Pictures of checkpoints that curators draw at this moment.

use crescendo_core::ids::{Incarnation, NodeId, Timestamp};
use crescendo_core::sampling::SamplingRef;

/// Pictures that a curator draws.
#[derive(Clone)]
pub(super) struct Drawing {
    pub sampling: SamplingRef,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub heard_at: Timestamp,
    pub done: u32,
    pub of: u32,
}
