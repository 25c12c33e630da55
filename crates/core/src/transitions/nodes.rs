//! What people ask of nodes.

use crate::error::RequestError;
use crate::ids::NodeId;
use crate::records::{NodeRecord, Record, RecordKey, Write};
use crate::state::ClusterState;

/// Forgets a node that is gone for good, so that it is not listed, waited for or counted any more. One that is connected
/// would only introduce itself again; one that still has ranks of a gang by the records is waited for until those are lost.
pub fn forget_node(state: &ClusterState, id: &NodeId, connected: bool) -> Result<Vec<Write>, RequestError> {
    let record = state.node(id).ok_or_else(|| RequestError::NotFound { what: format!("node {id}") })?;
    if connected {
        return Err(RequestError::TooLate { what: format!("node {id} is connected: stop it first") });
    }
    let attempts = state.open_jobs().flat_map(|job| &job.stages).filter_map(|stage| stage.active_attempt());
    if let Some(attempt) = attempts.into_iter().find(|attempt| attempt.runs_on(id)) {
        let what = format!(
            "{} still runs on node {id}, as far as is known: wait until its ranks are lost, or cancel the job",
            attempt.attempt
        );
        return Err(RequestError::TooLate { what });
    }
    Ok(vec![Write::Delete(RecordKey::Node(record.id.clone()))])
}

/// Keeps new work from a node and empties it, or gives it work again, whoever had kept it away. Asking for what is already so writes nothing.
pub fn drain_node(state: &ClusterState, id: &NodeId, drained: bool) -> Result<Vec<Write>, RequestError> {
    let record = state.node(id).ok_or_else(|| RequestError::NotFound { what: format!("node {id}") })?;
    let cordon = record.cordon.clone().filter(|_| drained);
    if record.drained == drained && record.cordon == cordon {
        return Ok(Vec::new());
    }
    Ok(vec![Write::Put(Record::Node(NodeRecord { drained, cordon, ..record.clone() }))])
}
