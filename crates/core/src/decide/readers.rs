//! Which curator reads a file out of the object store for a person.

use crate::decide::{DecideContext, Limits};
use crate::ids::{NodeId, Timestamp};
use crate::observed::Observed;
use crate::records::NodeKind;
use crate::state::ClusterState;

/// The next curator in the order of their names after `last`, the one that was chosen before: so the reads go round. One
/// that is about to leave, or was drained, reads only where no other is in sight; `None` where there is none at all.
pub fn choose_reader(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    last: Option<&NodeId>,
    now: Timestamp,
) -> Option<NodeId> {
    let nodes = DecideContext::new(state, seen, limits, now);
    let ids = |open: bool| -> Vec<&NodeId> {
        let reachable = nodes.reachable(NodeKind::Curator);
        reachable
            .filter(|(record, view)| !open || !record.drained && !view.draining)
            .map(|(record, _)| &record.id)
            .collect()
    };
    let open = ids(true);
    let among = if open.is_empty() { ids(false) } else { open };
    let after = among.iter().filter(|id| last.is_none_or(|last| **id > last)).min();
    after.or(among.iter().min()).map(|id| (*id).clone())
}
