//! The precision that a stage computes in. Where the spec says `auto` it is settled once for a stage, by what the nodes
//! have measured of themselves, and kept: whatever comes later, the stage's attempts, ranks and curators compute alike.

pub use crate::arithmetic::{Arithmetic, PrecisionChoice, StagePrecision};
use crate::records::{NodeKind, NodeRecord};
use crate::spec::{JobSpec, ModelSpec, Precision};
use crate::state::Stage;

/// `auto` takes bf16 where it is this many times as fast as f32 on every node: a smaller gain is not worth its coarser
/// numbers, and is within what a timing of some milliseconds on a busy machine may be wrong by.
pub const CLEARLY_FASTER: f64 = 1.2;

/// How fast bf16 is on a node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speed {
    /// A GPU's own arithmetic.
    Native,
    /// Times as fast as f32.
    Factor(f64),
    /// It has not said.
    Unknown,
}

fn speed(node: &NodeRecord) -> Speed {
    if node.device == "cuda" {
        return Speed::Native;
    }
    node.arithmetic.as_ref().and_then(Arithmetic::bf16_factor).map_or(Speed::Unknown, Speed::Factor)
}

/// Settles `auto` for the nodes that may work on a stage: bf16 if it is clearly faster on each of them, f32 otherwise.
pub fn choose<'n>(nodes: impl IntoIterator<Item = &'n NodeRecord>) -> PrecisionChoice {
    let mut slowest: Option<(f64, &NodeRecord)> = None;
    let (mut unknown, mut any) = (None, None);
    for node in nodes {
        any = any.or(Some(node));
        match speed(node) {
            Speed::Native => {}
            Speed::Unknown => unknown = unknown.or(Some(node)),
            Speed::Factor(factor) => {
                if slowest.is_none_or(|(least, _)| factor < least) {
                    slowest = Some((factor, node));
                }
            }
        }
    }
    let settled = |precision, why| PrecisionChoice { precision, why };
    match (slowest, unknown, any) {
        (Some((factor, node)), _, _) if factor < CLEARLY_FASTER => {
            settled(StagePrecision::F32, format!("{} runs bf16 at {} of f32", named(node), of_f32(factor)))
        }
        (_, Some(node), _) => {
            let why = format!("{} has not said how fast it runs bf16", named(node));
            settled(StagePrecision::F32, why)
        }
        (Some((factor, node)), None, _) => {
            let why = format!("{}, the slowest in it, runs bf16 at {} of f32", named(node), of_f32(factor));
            settled(StagePrecision::Bf16, why)
        }
        (None, None, Some(_)) => settled(StagePrecision::Bf16, "every node has a GPU".to_owned()),
        (None, None, None) => settled(StagePrecision::F32, "no node was there to ask".to_owned()),
    }
}

fn named(node: &NodeRecord) -> String {
    match node.kind {
        NodeKind::Trainer => format!("node {}", node.id),
        NodeKind::Curator => format!("curator {}", node.id),
    }
}

/// `0.12`, `1.19`, `2.1`, `17`.
fn of_f32(factor: f64) -> String {
    if factor < 2.0 {
        format!("{factor:.2}")
    } else if factor < 10.0 {
        format!("{factor:.1}")
    } else {
        format!("{factor:.0}")
    }
}

/// What a stage of the job computes in: as the spec says, or as it was settled; `None` where that is still open.
pub fn of_stage(spec: &JobSpec, stage: &Stage) -> Option<StagePrecision> {
    match spec.model.precision {
        Precision::F32 => Some(StagePrecision::F32),
        Precision::Bf16 | Precision::Fp8 => Some(StagePrecision::Bf16),
        Precision::Auto => stage.precision_choice().map(|settled| settled.precision),
    }
}

/// The spec for whoever works on a stage: with the precision that was settled in place of `auto`. `None` if the job's own
/// spec says it all.
pub fn spec_of_stage(spec: &JobSpec, stage: &Stage) -> Option<JobSpec> {
    if spec.model.precision != Precision::Auto {
        return None;
    }
    let precision = stage.precision_choice()?.precision.into();
    Some(JobSpec { model: ModelSpec { precision, ..spec.model.clone() }, ..spec.clone() })
}

/// Whether a node computes in bf16 clearly slower than in f32.
pub fn bf16_crawls_on(node: &NodeRecord) -> bool {
    match speed(node) {
        Speed::Factor(factor) => factor * CLEARLY_FASTER < 1.0,
        Speed::Native | Speed::Unknown => false,
    }
}

/// What a spec that asks for bf16 should know of the nodes: one line, if it is clearly slower than f32 on some.
pub fn crawls<'n>(spec: &JobSpec, nodes: impl IntoIterator<Item = &'n NodeRecord>) -> Option<String> {
    if !spec.model.precision.flows_in_bf16() {
        return None;
    }
    Some(format!("bf16 runs at {}; precision: auto would take f32", slow(nodes)?))
}

/// The same of a stage that settled on bf16 and is worked on by these nodes, some of which may have come since.
pub fn crawls_as_chosen<'n>(
    stage: &Stage,
    nodes: impl IntoIterator<Item = &'n NodeRecord>,
) -> Option<String> {
    let settled = stage.precision_choice().filter(|settled| settled.precision == StagePrecision::Bf16);
    settled?;
    Some(format!("bf16, as the stage was settled, runs at {}, and works on it", slow(nodes)?))
}

/// The slowest of the nodes on which bf16 crawls, and how many there are.
fn slow<'n>(nodes: impl IntoIterator<Item = &'n NodeRecord>) -> Option<String> {
    let mut slow: Vec<(f64, &NodeRecord)> = nodes
        .into_iter()
        .filter(|node| bf16_crawls_on(node))
        .filter_map(|node| Some((node.arithmetic.as_ref()?.bf16_factor()?, node)))
        .collect();
    slow.sort_by(|(left, a), (right, b)| left.total_cmp(right).then(a.id.cmp(&b.id)));
    let (factor, node) = slow.first()?;
    let others = match slow.len() - 1 {
        0 => String::new(),
        1 => " and slower than f32 on another node".to_owned(),
        n => format!(" and slower than f32 on {n} other nodes"),
    };
    Some(format!("{} of f32 on {}{others}", of_f32(*factor), node.id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::ids::{Incarnation, NodeId};

    /// A node that runs bf16 at this many hundredths of f32's speed; none: it has not said.
    fn node(id: &str, device: &str, hundredths: Option<u64>) -> NodeRecord {
        NodeRecord {
            id: NodeId::parse(id).expect("valid"),
            incarnation: Incarnation::parse("i").expect("valid"),
            kind: if id.starts_with('c') { NodeKind::Curator } else { NodeKind::Trainer },
            slots: 1,
            device: device.into(),
            address: "h:1".into(),
            labels: BTreeMap::new(),
            version: String::new(),
            drained: false,
            cordon: None,
            device_memory_bytes: None,
            arithmetic: hundredths.map(|hundredths| Arithmetic {
                f32_time: Duration::from_micros(hundredths),
                bf16_time: Duration::from_micros(100),
                ..Arithmetic::default()
            }),
        }
    }

    fn settled(nodes: &[NodeRecord]) -> (StagePrecision, String) {
        let PrecisionChoice { precision, why } = choose(nodes);
        (precision, why)
    }

    #[test]
    fn bf16_is_taken_only_where_every_node_is_clearly_faster_in_it() {
        use StagePrecision::{Bf16, F32};
        let fast = node("t-1", "cpu", Some(210));
        let cases = [
            (vec![fast.clone()], Bf16, "node t-1, the slowest in it, runs bf16 at 2.1 of f32"),
            (vec![fast.clone(), node("t-2", "cpu", Some(12))], F32, "node t-2 runs bf16 at 0.12 of f32"),
            (vec![node("c-1", "cpu", Some(60)), fast.clone()], F32, "curator c-1 runs bf16 at 0.60 of f32"),
            (vec![node("t-2", "cpu", Some(119))], F32, "node t-2 runs bf16 at 1.19 of f32"),
            (
                vec![node("t-2", "cpu", Some(120))],
                Bf16,
                "node t-2, the slowest in it, runs bf16 at 1.20 of f32",
            ),
            (
                vec![fast.clone(), node("t-2", "cpu", None)],
                F32,
                "node t-2 has not said how fast it runs bf16",
            ),
            (vec![node("t-3", "cuda", None)], Bf16, "every node has a GPU"),
            (
                vec![node("t-3", "cuda", None), node("c-1", "cpu", Some(10))],
                F32,
                "curator c-1 runs bf16 at 0.10 of f32",
            ),
            (Vec::new(), F32, "no node was there to ask"),
        ];
        for (nodes, precision, why) in cases {
            assert_eq!(settled(&nodes), (precision, why.to_owned()));
        }
    }

    #[test]
    fn a_spec_that_asks_for_bf16_is_warned_where_it_crawls() {
        let yaml = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: b, precision: bf16}\n  stages: [{data: {source: compose, subjects: lib, pairs: 8}}]\n";
        let spec = crate::spec::parse(yaml.as_bytes()).expect("the spec is right");
        let fast = node("t-1", "cpu", Some(95));
        assert_eq!(crawls(&spec, [&fast]), None, "not clearly slower");
        let slow = node("trainer-0", "cpu", Some(12));
        assert_eq!(
            crawls(&spec, [&fast, &slow]).as_deref(),
            Some("bf16 runs at 0.12 of f32 on trainer-0; precision: auto would take f32")
        );
        let third = node("t-2", "cpu", Some(50));
        let all = crawls(&spec, [&third, &slow]).expect("a warning");
        assert!(all.contains("on trainer-0 and slower than f32 on another node;"), "{all}");
        let spec = JobSpec { model: ModelSpec { precision: Precision::Auto, ..spec.model.clone() }, ..spec };
        assert_eq!(crawls(&spec, [&slow]), None);
    }
}
