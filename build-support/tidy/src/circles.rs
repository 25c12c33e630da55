//! Circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

/// The nodes that reach each other, in groups of at least two.
pub fn circles<N: Ord + Clone>(graph: &BTreeMap<N, BTreeSet<N>>) -> Vec<BTreeSet<N>> {
    let reach: BTreeMap<&N, BTreeSet<&N>> = graph.keys().map(|node| (node, reached(graph, node))).collect();
    let mut found: Vec<BTreeSet<N>> = Vec::new();
    for (node, reaches) in &reach {
        if !reaches.contains(node) || found.iter().any(|circle| circle.contains(*node)) {
            continue;
        }
        let mutual =
            reaches.iter().filter(|other| reach.get(**other).is_some_and(|back| back.contains(node)));
        found.push(mutual.map(|other| (*other).clone()).collect());
    }
    found
}

/// What is reached from a node over at least one edge.
fn reached<'g, N: Ord>(graph: &'g BTreeMap<N, BTreeSet<N>>, from: &N) -> BTreeSet<&'g N> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&N> = graph.get(from).into_iter().flatten().collect();
    while let Some(node) = next.pop() {
        if found.insert(node) {
            next.extend(graph.get(node).into_iter().flatten());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_lines_are_not() {
        let graph = |edges: &[(u8, u8)]| {
            let mut graph: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
            for (from, to) in edges {
                graph.entry(*from).or_default().insert(*to);
            }
            graph
        };
        assert!(circles(&graph(&[(1, 2), (2, 3), (1, 3)])).is_empty());
        let found = circles(&graph(&[(1, 2), (2, 3), (3, 1), (3, 4), (5, 6), (6, 5)]));
        assert_eq!(found, [BTreeSet::from([1, 2, 3]), BTreeSet::from([5, 6])]);
    }
}
