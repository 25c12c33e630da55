//! The nodes that there are, each with what is seen of it.

use std::sync::Arc;

use crate::ids::{IdMap, NodeId};
use crate::observed::{NodeView, Observed};
use crate::records::{NodeKind, NodeRecord};
use crate::state::ClusterState;

/// Every node that is known, by id. It is the same as long as no node's record changes.
pub(crate) struct NodeList {
    records: Vec<Arc<NodeRecord>>,
    places: IdMap<NodeId, usize>,
}

impl NodeList {
    pub fn of(state: &ClusterState) -> Self {
        let records: Vec<Arc<NodeRecord>> = state.nodes_shared().cloned().collect();
        Self { places: records.iter().map(|record| record.id.clone()).zip(0..).collect(), records }
    }
}

/// A node with what is seen of it.
pub(crate) type KnownNode<'a> = (&'a NodeRecord, Option<&'a NodeView>);

/// Every node that is known, by id, with what is seen of it.
pub(crate) struct KnownNodes<'a> {
    pub trainers: Vec<KnownNode<'a>>,
    pub curators: Vec<KnownNode<'a>>,
    views: Views<'a>,
}

enum Views<'a> {
    ById(IdMap<&'a NodeId, &'a NodeView>),
    /// As the list has the nodes; and those that it has not.
    ByPlace {
        list: &'a NodeList,
        views: Vec<Option<&'a NodeView>>,
        others: IdMap<&'a NodeId, &'a NodeView>,
    },
}

impl<'a> KnownNodes<'a> {
    pub fn of(state: &'a ClusterState, seen: &'a Observed) -> Self {
        let views: IdMap<&NodeId, &NodeView> = seen.nodes.iter().collect();
        let known = state.nodes().map(|record| (record, views.get(&record.id).copied())).collect();
        Self::by_kind(known, Views::ById(views))
    }

    /// The same of nodes that are listed already.
    pub fn listed(list: &'a NodeList, seen: &'a Observed) -> Self {
        let mut views: Vec<Option<&NodeView>> = Vec::with_capacity(list.records.len());
        let (mut others, mut seen) = (IdMap::default(), seen.nodes.iter().peekable());
        for record in &list.records {
            while let Some((id, view)) = seen.next_if(|(id, _)| **id < record.id) {
                others.insert(id, view);
            }
            views.push(seen.next_if(|(id, _)| **id == record.id).map(|(_, view)| view));
        }
        others.extend(seen);
        let known = list.records.iter().map(Arc::as_ref).zip(views.iter().copied()).collect();
        Self::by_kind(known, Views::ByPlace { list, views, others })
    }

    fn by_kind(known: Vec<KnownNode<'a>>, views: Views<'a>) -> Self {
        let (trainers, curators) = known.into_iter().partition(|(record, _)| match record.kind {
            NodeKind::Trainer => true,
            NodeKind::Curator => false,
        });
        Self { trainers, curators, views }
    }

    /// What is seen of a node.
    pub fn view(&self, node: &NodeId) -> Option<&'a NodeView> {
        match &self.views {
            Views::ById(views) => views.get(node).copied(),
            Views::ByPlace { list, views, others } => match list.places.get(node) {
                Some(at) => views.get(*at).copied().flatten(),
                None => others.get(node).copied(),
            },
        }
    }
}
