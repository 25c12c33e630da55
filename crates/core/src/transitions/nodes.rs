//! What people ask of nodes.

use crate::error::RequestError;
use crate::ids::NodeId;
use crate::records::{NodeRecord, Record, Write};
use crate::state::ClusterState;

/// Keeps new work from a node and empties it, or gives it work again, whoever had kept it away. Asking for what is already so writes nothing.
pub fn drain_node(state: &ClusterState, id: &NodeId, drained: bool) -> Result<Vec<Write>, RequestError> {
    let record = state.node(id).ok_or_else(|| RequestError::NotFound { what: format!("node {id}") })?;
    let cordon = record.cordon.clone().filter(|_| drained);
    if record.drained == drained && record.cordon == cordon {
        return Ok(Vec::new());
    }
    Ok(vec![Write::Put(Record::Node(NodeRecord { drained, cordon, ..record.clone() }))])
}
