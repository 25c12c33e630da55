//! Who reads files out of the object store for people.

use std::collections::{BTreeMap, BTreeSet};

use crescendo_core::decide::{Limits, choose_reader};
use crescendo_core::ids::{Incarnation, NodeId, Timestamp};
use crescendo_core::observed::Observed;
use crescendo_core::records::{NodeKind, NodeRecord, Record, Write};
use crescendo_core::state::ClusterState;

const NOW: Timestamp = Timestamp(1_000_000);

fn id(name: &str) -> NodeId {
    NodeId::parse(name).expect("valid")
}

struct World {
    state: ClusterState,
    seen: Observed,
}

impl World {
    fn new() -> World {
        World { state: ClusterState::default(), seen: Observed::new(NOW) }
    }

    fn add(&mut self, name: &str, kind: NodeKind, drained: bool) {
        let incarnation = Incarnation::parse("first").expect("valid");
        let record = NodeRecord {
            id: id(name),
            incarnation: incarnation.clone(),
            kind,
            slots: 0,
            device: "cpu".into(),
            address: "127.0.0.1:9".into(),
            labels: BTreeMap::new(),
            version: String::new(),
            drained,
            cordon: None,
            arithmetic: None,
            device_memory_bytes: None,
        };
        self.state.apply(Write::Put(Record::Node(record))).expect("a node stands alone");
        self.seen.hello(id(name), incarnation, BTreeSet::new(), BTreeSet::new(), NOW);
    }

    fn reader(&self, last: Option<&str>, now: Timestamp) -> Option<String> {
        let last = last.map(id);
        choose_reader(&self.state, &self.seen, &Limits::default(), last.as_ref(), now)
            .map(|id| id.to_string())
    }
}

#[test]
fn reads_go_round_the_curators() {
    let mut world = World::new();
    assert_eq!(world.reader(None, NOW), None);
    world.add("t-1", NodeKind::Trainer, false);
    assert_eq!(world.reader(None, NOW), None, "a trainer reads nothing for people");
    ["c-1", "c-2", "c-3"].into_iter().for_each(|name| world.add(name, NodeKind::Curator, false));
    let mut last = None;
    let mut chosen = Vec::new();
    for _ in 0..4 {
        last = world.reader(last.as_deref(), NOW);
        chosen.extend(last.clone());
    }
    assert_eq!(chosen, ["c-1", "c-2", "c-3", "c-1"]);
    assert_eq!(world.reader(Some("c-0"), NOW).as_deref(), Some("c-1"), "one that has gone leaves its place");
    assert_eq!(world.reader(Some("c-9"), NOW).as_deref(), Some("c-1"));
}

#[test]
fn one_that_leaves_reads_only_where_no_other_can() {
    let mut world = World::new();
    ["c-1", "c-2"].into_iter().for_each(|name| world.add(name, NodeKind::Curator, false));
    world.add("c-3", NodeKind::Curator, true);
    world.seen.drains(&id("c-1"));
    assert_eq!(world.reader(None, NOW).as_deref(), Some("c-2"));
    assert_eq!(world.reader(Some("c-2"), NOW).as_deref(), Some("c-2"));
    world.seen.disconnected(&id("c-2"));
    assert_eq!(world.reader(None, NOW).as_deref(), Some("c-1"));
    assert_eq!(world.reader(Some("c-1"), NOW).as_deref(), Some("c-3"));
    let later = Timestamp(NOW.0 + 60_000);
    assert_eq!(world.reader(None, later), None, "none of them was heard of lately");
}
