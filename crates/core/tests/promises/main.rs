//! The promises that rest on the core alone, under whatever happens in whatever order: submitting twice is submitting
//! once, terminal stays terminal, a stale owner changes nothing, no slot is given twice and a gang is whole or not there,
//! and once everything works every job ends.

mod kept;
mod places;
mod world;

use proptest::prelude::*;
use world::{Act, World};

pub fn acts() -> impl Strategy<Value = Act> {
    let n = any::<u8>;
    prop_oneof![
        3 => (n(), n(), n(), n(), n()).prop_map(|(request, gpus, min_gpus, stages, priority)| Act::Submit {
            request, gpus, min_gpus, stages, priority,
        }),
        1 => (n(), any::<bool>()).prop_map(|(job, curates)| Act::Pause { job, curates }),
        2 => n().prop_map(|job| Act::Resume { job }),
        1 => n().prop_map(|job| Act::Cancel { job }),
        6 => n().prop_map(|node| Act::StartNode { node }),
        1 => n().prop_map(|node| Act::KillNode { node }),
        2 => n().prop_map(|node| Act::Leave { node }),
        2 => n().prop_map(|node| Act::Part { node }),
        1 => (n(), any::<bool>()).prop_map(|(node, undo)| Act::DrainNode { node, undo }),
        1 => n().prop_map(|node| Act::Disconnect { node }),
        3 => n().prop_map(|node| Act::Reconnect { node }),
        12 => n().prop_map(|node| Act::Obey { node }),
        4 => n().prop_map(|node| Act::Tell { node }),
        2 => n().prop_map(|node| Act::RankFails { node }),
        2 => n().prop_map(|job| Act::Step { job }),
        6 => (n(), prop::bool::weighted(0.2)).prop_map(|(job, last)| Act::Checkpoint { job, last }),
        1 => n().prop_map(|job| Act::Damage { job }),
        2 => n().prop_map(|job| Act::StaleCheckpoint { job }),
        8 => (n(), n()).prop_map(|(job, node)| Act::Lease { job, node }),
        10 => (n(), n()).prop_map(|(pick, pairs)| Act::CommitUnit { pick, pairs }),
        2 => (0u8..70).prop_map(|seconds| Act::Wait { seconds }),
        1 => n().prop_map(|seconds| Act::StandStill { seconds }),
        1 => Just(Act::RestartController),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_whatever_happens(acts in prop::collection::vec(acts(), 1..150)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.heal();
    }
}

/// A quiet run, so that the test above cannot pass by never getting anywhere.
#[test]
fn two_jobs_of_two_stages_get_to_their_ends() {
    let mut world = World::new();
    for request in 0..2 {
        world.act(Act::Submit { request, gpus: 2, min_gpus: 2, stages: 1, priority: 0 });
    }
    world.heal();
    assert!(world.state.jobs().all(|job| job.record.state.name() == "succeeded"));
    assert_eq!(world.state.jobs().count(), 2);
}
