//! Jobs that give up their slots and get them back: pauses and preemptions, step by step in the played cluster.

use crescendo_core::decide::{Change, PendingReason};
use crescendo_core::ids::JobId;
use crescendo_core::state::Job;

use crate::world::{Act, TRAINERS, World};

/// Three trainers of two slots each, and two curators.
fn cluster() -> World {
    let mut world = World::new();
    (0..5).for_each(|node| world.act(Act::StartNode { node }));
    world
}

/// Submits a job whose gang has exactly `1 << gpus` ranks, as request `request`, and makes its pairs.
fn submit(world: &mut World, request: u8, gpus: u8, priority: u8) -> JobId {
    let before: Vec<JobId> = world.state.jobs().map(|job| job.record.id.clone()).collect();
    world.act(Act::Submit { request, gpus, min_gpus: gpus, stages: 0, priority });
    let new = world.state.jobs().map(|job| job.record.id.clone()).find(|id| !before.contains(id));
    for _ in 0..4 {
        world.act(Act::Lease { job: request, node: 3 });
        world.act(Act::CommitUnit { pick: 0, pairs: 4 });
    }
    new.expect("a job is made")
}

fn obey(world: &mut World) {
    (0..TRAINERS as u8).for_each(|node| world.act(Act::Obey { node }));
}

fn job<'a>(world: &'a World, id: &JobId) -> &'a Job {
    world.state.job(id).expect("it is there")
}

/// Slots that the job holds.
fn holds(world: &World, id: &JobId) -> usize {
    let attempts = job(world, id).stages.iter().filter_map(|stage| stage.active_attempt());
    attempts.map(|attempt| attempt.ranks.len()).sum()
}

fn preempted(world: &World) -> Vec<(&JobId, &JobId)> {
    let told = world.changes.iter().filter_map(|change| match change {
        Change::JobPreempted { job, by, .. } => Some((job, by)),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_paused_job_saves_first_and_goes_on_from_there() {
    let mut world = cluster();
    let id = submit(&mut world, 0, 1, 0);
    obey(&mut world);
    world.act(Act::Step { job: 0 });
    assert_eq!((job(&world, &id).record.state.name(), holds(&world, &id)), ("running", 2));
    world.act(Act::Pause { job: 0, curates: false });
    assert_eq!(
        (job(&world, &id).record.state.name(), holds(&world, &id)),
        ("paused", 2),
        "until it has saved"
    );
    assert!(world.waits[&id].to_string().ends_with("2 ranks save and leave"), "{}", world.waits[&id]);
    obey(&mut world);
    assert_eq!(holds(&world, &id), 0);
    assert_eq!(world.waits[&id].to_string(), "is paused: a test");
    let saved = job(&world, &id).stages[0].newest_checkpoint().cloned().expect("saved");
    world.act(Act::Wait { seconds: 60 });
    assert_eq!(holds(&world, &id), 0);
    world.act(Act::Resume { job: 0 });
    let attempt = job(&world, &id).stages[0].active_attempt().expect("it goes on");
    assert_eq!(attempt.resume_from.as_ref(), Some(&saved));
    assert_eq!(attempt.failures_in_a_row, 0, "a pause is no failure");
}

#[test]
fn ranks_that_do_not_save_are_stopped_after_a_while() {
    let mut world = cluster();
    let id = submit(&mut world, 0, 1, 0);
    obey(&mut world);
    world.act(Act::Pause { job: 0, curates: false });
    world.act(Act::Wait { seconds: 200 });
    assert_eq!(holds(&world, &id), 2);
    world.act(Act::Wait { seconds: 101 });
    assert_eq!(holds(&world, &id), 0);
    let ended = world.changes.iter().find_map(|change| match change {
        Change::AttemptEnded { reason, .. } => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(ended, Some("the job is paused, and its ranks have not saved within 301 s"));
}

#[test]
fn a_controller_that_stood_still_listens_before_it_stops_ranks() {
    let mut world = cluster();
    let id = submit(&mut world, 0, 1, 0);
    obey(&mut world);
    world.act(Act::Pause { job: 0, curates: false });
    world.act(Act::StandStill { seconds: 200 });
    world.act(Act::StandStill { seconds: 200 });
    assert_eq!(holds(&world, &id), 2, "their reports may be on the way");
    obey(&mut world);
    assert_eq!(holds(&world, &id), 0);
    assert!(job(&world, &id).stages[0].newest_checkpoint().is_some());
}

#[test]
fn a_job_of_a_higher_class_takes_the_place_that_costs_least() {
    let mut world = cluster();
    let large = submit(&mut world, 0, 2, 0);
    let small = submit(&mut world, 1, 1, 1);
    obey(&mut world);
    assert_eq!((holds(&world, &large), holds(&world, &small)), (4, 2));
    let urgent = submit(&mut world, 2, 1, 2);
    assert_eq!(preempted(&world), [(&small, &urgent)], "two ranks are enough");
    assert_eq!(world.waits[&urgent], PendingReason::MakingRoom { wanted: 2, jobs: 1 });
    assert_eq!(holds(&world, &small), 2, "until it has saved");
    obey(&mut world);
    assert_eq!((holds(&world, &large), holds(&world, &small), holds(&world, &urgent)), (4, 0, 2));
    assert!(job(&world, &small).stages[0].newest_checkpoint().is_some());
    obey(&mut world);
    world.act(Act::Checkpoint { job: 2, last: true });
    assert_eq!(job(&world, &urgent).record.state.name(), "succeeded");
    world.act(Act::Wait { seconds: 30 });
    obey(&mut world);
    let attempt = job(&world, &small).stages[0].active_attempt().expect("it goes on by itself");
    assert!(attempt.resume_from.is_some() && attempt.failures_in_a_row == 0);
    assert_eq!(preempted(&world).len(), 1, "nobody takes it back");
}

#[test]
fn nobody_leaves_for_a_job_that_would_not_fit_even_so() {
    let mut world = cluster();
    let fixed = submit(&mut world, 0, 2, 3);
    let small = submit(&mut world, 1, 1, 0);
    obey(&mut world);
    assert_eq!((holds(&world, &fixed), holds(&world, &small)), (4, 2));
    let urgent = submit(&mut world, 2, 2, 2);
    assert!(preempted(&world).is_empty(), "the four slots of the fixed class stay its own");
    assert_eq!(world.waits[&urgent], PendingReason::Slots { wanted: 4, free: 0, total: 6 });
}

#[test]
fn inside_a_class_nobody_leaves() {
    let mut world = cluster();
    let first = submit(&mut world, 0, 2, 0);
    let second = submit(&mut world, 1, 1, 0);
    obey(&mut world);
    assert_eq!(holds(&world, &first) + holds(&world, &second), 6);
    submit(&mut world, 2, 1, 1);
    assert!(preempted(&world).is_empty());
}

#[test]
fn a_small_job_goes_ahead_of_one_that_does_not_fit_and_leaves_when_it_does() {
    let mut world = cluster();
    let first = submit(&mut world, 0, 1, 0);
    obey(&mut world);
    let large = submit(&mut world, 1, 2, 0);
    assert_eq!(holds(&world, &large), 4, "two and four are six");
    obey(&mut world);
    // Four wait for two to end; one that wants two goes ahead into nothing, since none are free.
    world.act(Act::Checkpoint { job: 0, last: true });
    assert_eq!(job(&world, &first).record.state.name(), "succeeded");
    world.act(Act::Wait { seconds: 30 });
    obey(&mut world);
    let waits = submit(&mut world, 2, 2, 0);
    assert!(matches!(world.waits[&waits], PendingReason::Slots { wanted: 4, free: 2, total: 6 }));
    let small = submit(&mut world, 3, 1, 0);
    assert_eq!(holds(&world, &small), 2, "it goes ahead");
    obey(&mut world);
    assert!(preempted(&world).is_empty(), "it need not leave before that helps");
    world.act(Act::Checkpoint { job: 1, last: true });
    world.act(Act::Wait { seconds: 30 });
    obey(&mut world);
    assert_eq!((holds(&world, &waits), holds(&world, &small)), (4, 2), "both fit, and nobody leaves");
    assert!(preempted(&world).is_empty());
}

#[test]
fn one_that_went_ahead_makes_room() {
    let mut world = cluster();
    let first = submit(&mut world, 0, 2, 0);
    obey(&mut world);
    // Two are free, and the next one wants four.
    let waits = submit(&mut world, 1, 2, 0);
    let small = submit(&mut world, 2, 1, 0);
    obey(&mut world);
    assert_eq!((holds(&world, &first), holds(&world, &small)), (4, 2));
    // A node leaves, so that the four fit only without the small one.
    world.act(Act::DrainNode { node: 0, undo: false });
    (0..3).for_each(|_| obey(&mut world));
    world.act(Act::Wait { seconds: 30 });
    world.act(Act::Cancel { job: 0 });
    (0..3).for_each(|_| obey(&mut world));
    assert_eq!(preempted(&world), [(&small, &waits)]);
    assert_eq!((holds(&world, &waits), holds(&world, &small)), (4, 0));
}
