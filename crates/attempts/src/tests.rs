//! The table against sequences of events, chosen and random.

use super::*;
use crescendo_proto::v1::RankPlacement;
use proptest::prelude::*;

fn attempt(job: &str, generation: u64) -> AttemptRef {
    AttemptRef { job_id: job.into(), stage: "s".into(), generation }
}

/// Ranks 0, 1, … on the given slots of `here`.
fn start(job: &str, generation: u64, slots: &[u32]) -> StartAttempt {
    StartAttempt {
        attempt: Some(attempt(job, generation)),
        ranks: slots
            .iter()
            .zip(0..)
            .map(|(slot, rank)| RankPlacement { rank, node_id: "here".into(), device_index: *slot })
            .collect(),
        ..StartAttempt::default()
    }
}

fn table() -> AttemptTable {
    AttemptTable::new("here".into(), 2)
}

fn key(job: &str, generation: u64, rank: u32) -> RankKey {
    rank_key(&attempt(job, generation), rank)
}

fn spawned(effects: &[Effect]) -> Vec<(RankKey, u32)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Spawn { rank, slot } => Some((rank.clone(), *slot)),
            _ => None,
        })
        .collect()
}

fn reported(effects: &[Effect]) -> Vec<(AttemptPhase, String)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Report(report) => Some((report.phase(), report.reason.clone())),
            _ => None,
        })
        .collect()
}

fn well() -> RankEnd {
    RankEnd { ok: true, ..RankEnd::default() }
}

#[test]
fn starting_twice_is_starting_once() {
    let (mut table, now) = (table(), Instant::now());
    assert_eq!(spawned(&table.on_start(start("j", 1, &[0, 1]), now)).len(), 2);
    assert_eq!(table.on_start(start("j", 1, &[0, 1]), now), []);
    assert_eq!(table.running(), [attempt("j", 1)]);
}

#[test]
fn all_ranks_have_to_end_well() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0, 1]), now);
    for rank in [0, 1] {
        table.on_end(&key("j", 1, rank), well(), now);
    }
    assert_eq!(reported(&table.on_exit(&key("j", 1, 0), true, "exit code 0", now)), []);
    let effects = table.on_exit(&key("j", 1, 1), true, "exit code 0", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Succeeded, String::new())]);
    assert!(table.running().is_empty());
    // A controller that has forgotten asks again, and is told again.
    assert_eq!(reported(&table.on_start(start("j", 1, &[0, 1]), now))[0].0, AttemptPhase::Succeeded);
}

#[test]
fn an_exit_without_a_word_is_a_failure() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    let effects = table.on_exit(&key("j", 1, 0), true, "exit code 0", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Failed, "rank 0 ended: exit code 0".into())]);
}

#[test]
fn a_death_kills_the_others_before_it_is_told() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0, 1]), now);
    let effects = table.on_exit(&key("j", 1, 1), false, "killed by signal 9", now);
    assert_eq!(effects, [Effect::Signal { rank: key("j", 1, 0), signal: KillSignal::Kill }]);
    let effects = table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now);
    let Some(Effect::Report(report)) = effects.last() else { unreachable!("{effects:?}") };
    assert_eq!((report.phase(), report.failed_rank), (AttemptPhase::Failed, 1));
    assert_eq!(report.reason, "rank 1 ended: killed by signal 9");
}

/// Rank 0 and, if there is one, rank 1 step; there is another rank elsewhere.
fn stepping(slots: &[u32]) -> (AttemptTable, Instant) {
    let (mut table, now) = (table(), Instant::now());
    let mut start = start("j", 1, slots);
    start.ranks.push(RankPlacement { rank: 9, node_id: "there".into(), device_index: 0 });
    table.on_start(start, now);
    for rank in 0..slots.len() as u32 {
        table.on_hello(&key("j", 1, rank));
        let steps = RankProgress { phase: RankPhase::Forward.into(), step: 7, ..RankProgress::default() };
        table.on_progress(&key("j", 1, rank), steps);
    }
    (table, now)
}

fn peer_lost(rank: u32, reason: &str, rank_0_lost: bool) -> Effect {
    Effect::PeerLost { rank: key("j", 1, rank), reason: reason.to_owned(), rank_0_lost }
}

fn last_report(effects: &[Effect]) -> AttemptReport {
    let Some(Effect::Report(report)) = effects.last() else { unreachable!("{effects:?}") };
    (**report).clone()
}

#[test]
fn ranks_beside_one_that_has_died_may_save_what_they_have() {
    let (mut table, now) = stepping(&[0, 1]);
    let effects = table.on_exit(&key("j", 1, 1), false, "killed by signal 9", now);
    let reason = "rank 1 ended: killed by signal 9".to_owned();
    assert_eq!(effects, [peer_lost(0, &reason, false)]);
    assert_eq!(table.running(), [attempt("j", 1)], "it is not over yet");
    let lost = RankEnd { peer_lost: true, reason: "lost".into(), ..RankEnd::default() };
    assert_eq!(table.on_end(&key("j", 1, 0), lost, now), []);
    let report = last_report(&table.on_exit(&key("j", 1, 0), false, "exit code 1", now));
    assert_eq!((report.phase(), report.reason, report.failed_rank), (AttemptPhase::Failed, reason, 1));
    assert!(!report.rank_died && !report.peer_lost, "what there was is saved, and it was this node's rank");
}

#[test]
fn ranks_that_wait_for_a_node_that_is_lost_are_told_so() {
    let lost = |generation, nodes: &[&str]| RescueAttempt {
        attempt: Some(attempt("j", generation)),
        node_ids: nodes.iter().map(|node| (*node).to_owned()).collect(),
        reason: "no word".into(),
    };
    let (mut table, now) = stepping(&[0, 1]);
    assert_eq!(table.on_rescue_attempt(lost(2, &["there"])), [], "that one is not here");
    let told = [0, 1].map(|rank| peer_lost(rank, "no word", false));
    assert_eq!(table.on_rescue_attempt(lost(1, &["there"])), told);
    let told = [0, 1].map(|rank| peer_lost(rank, "no word", true));
    assert_eq!(table.on_rescue_attempt(lost(1, &["elsewhere", "here"])), told, "rank 0 is on one of them");
    let end = RankEnd { peer_lost: true, reason: "lost".into(), ..RankEnd::default() };
    assert!(
        table.on_end(&key("j", 1, 1), end, now).iter().all(|effect| matches!(effect, Effect::Signal { .. }))
    );
    assert_eq!(table.on_rescue_attempt(lost(1, &["there"])), [], "it ends");
    table.on_exit(&key("j", 1, 1), false, "exit code 1", now);
    let report = last_report(&table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now));
    assert!(report.peer_lost && report.phase() == AttemptPhase::Failed, "{report:?}");
    assert_eq!(reported(&table.on_rescue_attempt(lost(1, &["there"]))).len(), 1, "said again");
}

#[test]
fn ranks_beside_one_that_has_died_are_not_waited_for_without_end() {
    let (mut table, now) = stepping(&[0, 1]);
    table.on_exit(&key("j", 1, 1), false, "killed by signal 9", now);
    let killed = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Signal { .. }));
    assert!(!killed(&table.on_tick(now + RESCUE_WITHIN - Duration::from_millis(1))));
    assert!(killed(&table.on_tick(now + RESCUE_WITHIN)));
    let report = last_report(&table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now));
    assert!(report.phase() == AttemptPhase::Failed && report.rank_died, "nobody here has saved: {report:?}");
    let (mut table, now) = stepping(&[0, 1]);
    table.on_exit(&key("j", 1, 1), false, "killed by signal 9", now);
    let stop = StopAttempt { attempt: Some(attempt("j", 1)), ..StopAttempt::default() };
    let effects = table.on_stop(&stop, now);
    assert!(matches!(&effects[..], [Effect::Stop { rank, .. }] if *rank == key("j", 1, 0)), "{effects:?}");
}

#[test]
fn a_rank_that_dies_alone_on_its_node_is_told_at_once_and_one_with_an_error_is_an_error() {
    let (mut table, now) = stepping(&[0]);
    let report = last_report(&table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now));
    assert!(report.phase() == AttemptPhase::Failed && report.rank_died, "{report:?}");
    let (mut table, now) = stepping(&[0, 1]);
    let wrong = RankEnd { reason: "bad weights".into(), permanent: true, ..RankEnd::default() };
    let effects = table.on_end(&key("j", 1, 1), wrong, now);
    assert_eq!(effects, [Effect::Signal { rank: key("j", 1, 0), signal: KillSignal::Kill }]);
    table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now);
    let report = last_report(&table.on_exit(&key("j", 1, 1), false, "exit code 1", now));
    assert!(report.permanent && !report.rank_died, "{report:?}");
}

#[test]
fn a_failure_waits_for_its_damaged_checkpoint_to_be_marked() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    table.on_damage(&key("j", 1, 0));
    let end = RankEnd { reason: "damaged".into(), ..RankEnd::default() };
    table.on_end(&key("j", 1, 0), end, now);
    assert_eq!(table.on_exit(&key("j", 1, 0), false, "exit code 1", now), []);
    assert_eq!(reported(&table.on_marked(&key("j", 1, 0))), [(AttemptPhase::Failed, "damaged".into())]);
}

#[test]
fn a_newer_generation_waits_until_the_older_is_gone() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    let effects = table.on_start(start("j", 2, &[0]), now);
    assert!(matches!(&effects[..], [Effect::Stop { rank, .. }] if *rank == key("j", 1, 0)), "{effects:?}");
    assert_eq!(table.on_start(start("j", 1, &[0]), now), [], "an older one is ignored");
    let effects = table.on_exit(&key("j", 1, 0), false, "killed", now);
    assert_eq!(spawned(&effects), [(key("j", 2, 0), 0)]);
    assert_eq!(table.on_exit(&key("j", 1, 0), false, "late", now), [], "an older exit changes nothing");
}

#[test]
fn a_rank_that_does_not_stop_is_made_to() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    table.on_stop(
        &StopAttempt { attempt: Some(attempt("j", 1)), reason: "cancelled".into(), hung_ranks: Vec::new() },
        now,
    );
    assert_eq!(table.on_hello(&key("j", 1, 0)), None, "too late to begin");
    let signal = |signal| [Effect::Signal { rank: key("j", 1, 0), signal }];
    assert_eq!(table.on_tick(now + TERM_AFTER), signal(KillSignal::Term));
    assert_eq!(table.on_tick(now + TERM_AFTER), []);
    assert_eq!(table.on_tick(now + KILL_AFTER), signal(KillSignal::Kill));
    let effects = table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Stopped, "cancelled".into())]);
}

#[test]
fn slots_that_stay_taken_fail_the_attempt() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("a", 1, &[0]), now);
    assert_eq!(table.on_start(start("b", 1, &[0]), now), []);
    let effects = table.on_tick(now + SLOT_WAIT);
    assert!(reported(&effects).iter().any(|(phase, _)| *phase == AttemptPhase::Failed), "{effects:?}");
    assert_eq!(table.running(), [attempt("a", 1)]);
}

#[test]
fn what_cannot_be_meant_for_this_node_fails() {
    for (slots, expected) in
        [(&[][..], "no rank is placed"), (&[0, 0], "named twice"), (&[2], "slot 2 does not exist")]
    {
        let effects = table().on_start(start("j", 1, slots), Instant::now());
        assert!(
            matches!(&reported(&effects)[..], [(AttemptPhase::Failed, reason)] if reason.contains(expected)),
            "{effects:?}"
        );
    }
}

fn parted() -> RankEnd {
    RankEnd { drained: true, reason: "drained: after step 7".into(), ..RankEnd::default() }
}

fn drain(job: &str, generation: u64) -> DrainAttempt {
    DrainAttempt { attempt: Some(attempt(job, generation)), reason: "node x is drained".into() }
}

#[test]
fn a_node_that_leaves_has_its_ranks_part_and_starts_nothing() {
    let (mut table, now) = (table(), Instant::now());
    assert!(table.is_idle());
    table.on_start(start("j", 1, &[0, 1]), now);
    table.on_hello(&key("j", 1, 0));
    table.on_hello(&key("j", 1, 1));
    let wanted = [0, 1].map(|rank| Effect::Drain { rank: key("j", 1, rank), reason: "leaves".into() });
    assert_eq!(table.on_leaving("leaves"), wanted);
    // Saying it again tells nobody twice.
    assert_eq!(table.on_drain_attempt(drain("j", 1)), []);
    for rank in [0, 1] {
        assert!(!table.is_idle());
        table.on_end(&key("j", 1, rank), parted(), now);
        let effects = table.on_exit(&key("j", 1, rank), false, "exit code 1", now);
        let told = if rank == 1 { vec![(AttemptPhase::Drained, "leaves".to_owned())] } else { Vec::new() };
        assert_eq!(reported(&effects), told);
    }
    assert!(table.is_idle());
    let effects = table.on_start(start("k", 1, &[0]), now);
    assert_eq!(spawned(&effects), []);
    assert_eq!(reported(&effects), [(AttemptPhase::Drained, "leaves".into())]);
    assert!(table.is_idle());
}

#[test]
fn ranks_that_hear_of_a_drain_elsewhere_have_not_failed() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    table.on_hello(&key("j", 1, 0));
    assert_eq!(table.on_end(&key("j", 1, 0), parted(), now), []);
    let effects = table.on_exit(&key("j", 1, 0), false, "exit code 1", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Drained, "drained: after step 7".into())]);
    // A controller that has forgotten is told again.
    assert_eq!(reported(&table.on_drain_attempt(drain("j", 1)))[0].0, AttemptPhase::Drained);
}

#[test]
fn a_rank_that_has_not_begun_ends_without_a_word() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    assert_eq!(table.on_drain_attempt(drain("j", 1)), [], "nobody is there to be told");
    let stop = Effect::Stop { rank: key("j", 1, 0), reason: "node x is drained".into() };
    assert_eq!(table.on_hello(&key("j", 1, 0)), Some(stop));
    let effects = table.on_exit(&key("j", 1, 0), false, "exit code 1", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Drained, "node x is drained".into())]);
}

#[test]
fn a_rank_that_dies_while_it_parts_is_a_failure() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    table.on_hello(&key("j", 1, 0));
    table.on_leaving("leaves");
    let effects = table.on_exit(&key("j", 1, 0), false, "killed by signal 9", now);
    assert_eq!(reported(&effects), [(AttemptPhase::Failed, "rank 0 ended: killed by signal 9".into())]);
}

#[test]
fn what_leaves_with_its_node_is_known_at_its_next_start() {
    let (mut table, now) = (table(), Instant::now());
    for (job, slot) in [("done", 0), ("saves", 0), ("broken", 1)] {
        table.on_start(start(job, 1, &[slot]), now);
        table.on_hello(&key(job, 1, 0));
        if job == "done" {
            table.on_end(&key(job, 1, 0), well(), now);
            table.on_exit(&key(job, 1, 0), true, "exit code 0", now);
        }
    }
    table.on_start(start("waits", 3, &[0]), now);
    assert_eq!(table.left(), []);
    table.on_leaving("leaves");
    // Its gang has lost the ranks of other nodes that leave.
    table.on_exit(&key("broken", 1, 0), false, "exit code 1", now);
    assert_eq!(table.left(), [attempt("broken", 1), attempt("saves", 1), attempt("waits", 3)]);
    table.on_end(&key("saves", 1, 0), parted(), now);
    table.on_exit(&key("saves", 1, 0), false, "exit code 1", now);
    table.on_shutdown(now);
    assert_eq!(table.left(), [attempt("broken", 1), attempt("saves", 1), attempt("waits", 3)]);
}

#[derive(Clone, Debug)]
enum Step {
    Start { job: u8, generation: u64, slots: Vec<u32> },
    Stop { job: u8, generation: u64 },
    Drain { job: u8, generation: u64 },
    Hello { nth: usize },
    Part { nth: usize },
    Leave,
    Exit { nth: usize, success: bool },
    End { nth: usize, ok: bool },
    Tick { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let slots = proptest::collection::vec(0u32..3, 1..3);
    prop_oneof![
        (0u8..3, 1u64..4, slots).prop_map(|(job, generation, slots)| Step::Start { job, generation, slots }),
        (0u8..3, 1u64..4).prop_map(|(job, generation)| Step::Stop { job, generation }),
        (0u8..3, 1u64..4).prop_map(|(job, generation)| Step::Drain { job, generation }),
        (0usize..4).prop_map(|nth| Step::Hello { nth }),
        (0usize..4).prop_map(|nth| Step::Part { nth }),
        Just(Step::Leave),
        (0usize..4, any::<bool>()).prop_map(|(nth, success)| Step::Exit { nth, success }),
        (0usize..4, any::<bool>()).prop_map(|(nth, ok)| Step::End { nth, ok }),
        (0u64..40).prop_map(|seconds| Step::Tick { seconds }),
    ]
}

proptest! {
    /// Whatever comes, no slot has two processes, and no stage has processes of two generations.
    #[test]
    fn no_slot_is_given_twice(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut table, mut now) = (table(), Instant::now());
        let mut alive: Vec<(RankKey, u32)> = Vec::new();
        let mut left = false;
        for step in steps {
            let effects = match step {
                Step::Start { job, generation, slots } => table.on_start(start(&job.to_string(), generation, &slots), now),
                Step::Stop { job, generation } => {
                    let attempt = Some(attempt(&job.to_string(), generation));
                    table.on_stop(&StopAttempt { attempt, ..StopAttempt::default() }, now)
                }
                Step::Exit { nth, success } if nth < alive.len() => {
                    let (rank, _) = alive.remove(nth);
                    table.on_exit(&rank, success, "", now)
                }
                Step::End { nth, ok } if nth < alive.len() => {
                    let end = RankEnd { ok, ..RankEnd::default() };
                    table.on_end(&alive[nth].0, end, now)
                }
                Step::Drain { job, generation } => table.on_drain_attempt(drain(&job.to_string(), generation)),
                Step::Hello { nth } if nth < alive.len() => table.on_hello(&alive[nth].0).into_iter().collect(),
                Step::Part { nth } if nth < alive.len() => table.on_end(&alive[nth].0, parted(), now),
                Step::Leave => {
                    left = true;
                    table.on_leaving("leaves")
                }
                Step::Exit { .. } | Step::End { .. } | Step::Hello { .. } | Step::Part { .. } => Vec::new(),
                Step::Tick { seconds } => {
                    now += Duration::from_secs(seconds);
                    table.on_tick(now)
                }
            };
            for (rank, slot) in spawned(&effects) {
                for (other, taken) in &alive {
                    prop_assert_ne!(slot, *taken, "slot of {:?} given to {:?}", other, rank);
                    let is_stuck = table.stuck().any(|slot| slot == *taken);
                    prop_assert!(is_stuck || other.job_id != rank.job_id || other.generation == rank.generation);
                }
                prop_assert!(slot < 2);
                prop_assert!(!left, "{rank:?} was started on a node that leaves");
                alive.push((rank, slot));
            }
            // Those that were killed and are not dead yet keep their slots, whatever else is forgotten of them.
            let stuck: Vec<u32> = table.stuck().collect();
            prop_assert!(stuck.iter().all(|slot| alive.iter().any(|(_, taken)| taken == slot)));
            prop_assert_eq!(table.any_alive(), alive.len() > stuck.len());
        }
    }
}

#[test]
fn a_rank_that_does_not_die_costs_its_slot_and_not_its_node() {
    let (mut table, begun) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0, 1]), begun);
    let stop = StopAttempt { attempt: Some(attempt("j", 1)), reason: "enough".into(), ..Default::default() };
    table.on_stop(&stop, begun);
    table.on_tick(begun + TERM_AFTER);
    table.on_tick(begun + KILL_AFTER);
    table.on_exit(&key("j", 1, 0), false, "killed by signal 9", begun + KILL_AFTER);
    assert_eq!(table.on_tick(begun + STUCK_AFTER - Duration::from_millis(1)), []);
    // Another of its stage waits for the node, on the slot that is free.
    let now = begun + STUCK_AFTER;
    assert_eq!(spawned(&table.on_start(start("j", 2, &[0]), now)), []);
    let effects = table.on_tick(now);
    let at = |wanted: &dyn Fn(&Effect) -> bool| effects.iter().position(wanted);
    let stuck = at(&|effect| *effect == Effect::Stuck { rank: key("j", 1, 1), slot: 1 });
    let told =
        at(&|effect| matches!(effect, Effect::Report(report) if report.phase() == AttemptPhase::Stopped));
    assert!(stuck.is_some() && stuck < told, "{effects:?}");
    assert_eq!(spawned(&effects), [(key("j", 2, 0), 0)]);
    assert_eq!(table.stuck().collect::<Vec<_>>(), [1]);
    assert_eq!(table.running(), [attempt("j", 2)]);
    // Its slot is given to nobody, and who wants it is told in time.
    assert_eq!(spawned(&table.on_start(start("other", 1, &[1]), now)), []);
    let late = table.on_tick(now + SLOT_WAIT);
    assert!(
        reported(&late).iter().any(|(phase, why)| *phase == AttemptPhase::Failed && why.contains("not free"))
    );
    table.on_start(start("third", 1, &[1]), now + SLOT_WAIT);
    // It is gone at last, long after its attempt.
    let freed = table.on_exit(&key("j", 1, 1), false, "killed by signal 9", now + SLOT_WAIT);
    assert_eq!(spawned(&freed), [(key("third", 1, 0), 1)]);
    assert_eq!(table.stuck().count(), 0);
}

#[test]
fn what_cannot_be_started_has_failed_and_what_runs_goes_on() {
    let (mut table, now) = (table(), Instant::now());
    let refused = table.on_refused(start("j", 1, &[0]), "not mounted".into());
    assert_eq!(reported(&refused), [(AttemptPhase::Failed, "not mounted".into())]);
    let Some(Effect::Report(report)) = refused.first() else { unreachable!("{refused:?}") };
    assert!(!report.permanent, "it is no fault of the job's");
    assert_eq!(spawned(&table.on_start(start("j", 2, &[0]), now)), [(key("j", 2, 0), 0)]);
    assert_eq!(table.on_refused(start("j", 2, &[0]), "not mounted".into()), [], "it runs");
    assert_eq!(table.running(), [attempt("j", 2)]);
}

#[test]
fn a_node_stops_without_waiting_for_a_rank_that_does_not_die() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0]), now);
    table.on_shutdown(now);
    table.on_tick(now + TERM_AFTER);
    table.on_tick(now + KILL_AFTER);
    assert!(table.any_alive());
    let effects = table.on_tick(now + STUCK_AFTER);
    assert!(matches!(&effects[..], [Effect::Stuck { .. }, Effect::Report(_)]), "{effects:?}");
    assert!(!table.any_alive() && table.is_idle());
}

#[test]
fn a_rank_that_hangs_is_noted_and_killed_at_once_and_the_others_are_told() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0, 1]), now);
    for rank in 0..2 {
        table.on_hello(&key("j", 1, rank));
    }
    let stop =
        StopAttempt { attempt: Some(attempt("j", 1)), reason: "rank 1 hangs".into(), hung_ranks: vec![1] };
    let effects = table.on_stop(&stop, now);
    let killed = Effect::KillHung { rank: key("j", 1, 1) };
    assert!(effects.contains(&killed), "{effects:?}");
    let told = Effect::Stop { rank: key("j", 1, 0), reason: "rank 1 hangs".into() };
    assert!(effects.contains(&told), "{effects:?}");
    // The command may come again; it is killed once.
    assert!(!table.on_stop(&stop, now).contains(&killed));
    let signals = table.on_tick(now + KILL_AFTER);
    assert!(!signals.iter().any(|effect| matches!(effect, Effect::Signal { rank, .. } if rank.rank == 1)));
}

#[test]
fn a_report_says_where_every_rank_is_and_comes_while_nothing_changes() {
    let (mut table, now) = (table(), Instant::now());
    table.on_start(start("j", 1, &[0, 1]), now);
    let reports = |effects: Vec<Effect>| -> Vec<AttemptReport> {
        effects
            .into_iter()
            .filter_map(|effect| if let Effect::Report(report) = effect { Some(*report) } else { None })
            .collect()
    };
    table.on_tick(now);
    assert!(reports(table.on_tick(now + REPORT_EVERY / 2)).is_empty());
    let loading = reports(table.on_tick(now + REPORT_EVERY));
    assert_eq!(loading[0].phase(), AttemptPhase::Starting);
    assert!(loading[0].ranks.iter().all(|rank| rank.beats == 0 && rank.phase() == RankPhase::Loading));

    let word =
        |phase: RankPhase, moves| RankProgress { phase: phase.into(), moves, step: 7, ..Default::default() };
    // Its weights are still read: the attempt only starts.
    assert!(table.on_progress(&key("j", 1, 1), word(RankPhase::Loading, 1)).is_empty());
    table.on_progress(&key("j", 1, 0), word(RankPhase::Forward, 5));
    table.on_progress(&key("j", 1, 1), word(RankPhase::AllReduce, 6));
    let running = reports(table.on_tick(now + REPORT_EVERY * 2));
    assert_eq!((running.len(), running[0].phase()), (1, AttemptPhase::Running));
    let said: Vec<_> =
        running[0].ranks.iter().map(|rank| (rank.rank, rank.phase(), rank.moves, rank.beats)).collect();
    assert_eq!(said, [(0, RankPhase::Forward, 5, 1), (1, RankPhase::AllReduce, 6, 2)]);
    // One that has ended stands nowhere any more.
    table.on_end(&key("j", 1, 1), well(), now);
    let running = reports(table.on_tick(now + REPORT_EVERY * 3));
    assert_eq!(running[0].ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [0]);
}
