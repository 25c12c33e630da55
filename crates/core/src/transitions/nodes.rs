//! What people ask of nodes.

use crate::error::RequestError;
use crate::ids::NodeId;
use crate::records::{NodeRecord, Record, Write};
use crate::state::ClusterState;

/// Keeps new work from a node and empties it, or gives it work again. Asking for what is already so writes nothing.
pub fn drain_node(state: &ClusterState, id: &NodeId, drained: bool) -> Result<Vec<Write>, RequestError> {
    let record = state.node(id).ok_or_else(|| RequestError::NotFound { what: format!("node {id}") })?;
    if record.drained == drained {
        return Ok(Vec::new());
    }
    Ok(vec![Write::Put(Record::Node(NodeRecord { drained, ..record.clone() }))])
}
