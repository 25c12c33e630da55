use super::*;
use proptest::prelude::*;

/// A gang in lock-step, of which a rank may freeze. Times in milliseconds.
#[derive(Clone, Debug)]
struct Gang {
    /// What each rank computes for in a step.
    own: Vec<u64>,
    /// Which one freezes, when, and whether its process goes on talking.
    freeze: Option<(usize, u64, bool)>,
    /// Between a word and its being heard.
    stale: u64,
}

impl Gang {
    fn step_time(&self) -> u64 {
        self.own.iter().copied().max().unwrap_or(1)
    }

    /// Steps done, and the phase, of a rank that nothing disturbs.
    fn undisturbed(&self, rank: usize, at: u64) -> (u64, RankPhase) {
        let (step, within) = (at / self.step_time(), at % self.step_time());
        let phase = if within < self.own[rank] { RankPhase::Forward } else { RankPhase::AllReduce };
        (step, phase)
    }

    fn word(&self, rank: usize, now: u64) -> RankWord {
        let at = now.saturating_sub(self.stale);
        let (mut said_at, mut place) = (at, self.undisturbed(rank, at));
        if let Some((frozen, since, talks)) = self.freeze
            && at >= since
        {
            let (step, phase) = self.undisturbed(frozen, since);
            if rank == frozen {
                place = (step, phase);
                said_at = if talks { at } else { since };
            } else {
                // They come as far as the frozen one lets them: it has given what it had, or not.
                let reach = if phase == RankPhase::AllReduce { step + 1 } else { step };
                let last = (reach, RankPhase::AllReduce);
                place = if (place.0, place.1) > last { last } else { place };
            }
        }
        let (step, phase) = place;
        let step_time = Duration::from_millis(self.step_time());
        let own_time = Duration::from_millis(self.own[rank]);
        RankWord {
            rank: rank as u32,
            phase,
            step,
            moves: 1 + step * 2 + u64::from(phase == RankPhase::AllReduce),
            beats: 1 + said_at / 1000,
            steps_done: step,
            step_time,
            own_time,
        }
    }
}

fn node(rank: usize) -> NodeId {
    NodeId::parse(&format!("trainer-{rank}")).expect("valid")
}

/// Every two seconds each node says its word; the first hang that is found, and when.
fn watch(gang: &Gang, until: u64, mut heard: impl FnMut(usize, u64) -> bool) -> Option<(u64, Hang)> {
    let (mut views, limits) = (RankViews::default(), HangLimits::default());
    let mut heard_at = vec![0; gang.own.len()];
    for now in (0..until).step_by(500) {
        let time = Timestamp(now);
        for (rank, heard_at) in heard_at.iter_mut().enumerate() {
            if !(now + 500 * rank as u64).is_multiple_of(2000) || !heard(rank, now) {
                continue;
            }
            let gap = Duration::from_millis(now - *heard_at);
            if gap >= NODE_GAP {
                views.unheard(&node(rank), gap);
            }
            *heard_at = now;
            views.take(&node(rank), vec![gang.word(rank, now)], time);
        }
        let in_sight = heard_at.iter().all(|at| Duration::from_millis(now - at) < NODE_GAP);
        if let Some(hang) = views.hang(gang.own.len(), &limits, time).filter(|_| in_sight) {
            return Some((now, hang));
        }
    }
    None
}

/// The same; when the others are first seen to wait for nodes of which nothing is heard, and which those are.
fn watch_lost(
    gang: &Gang,
    until: u64,
    heard: impl Fn(usize, u64) -> bool,
) -> Option<(u64, BTreeSet<NodeId>)> {
    let (mut views, mut heard_at) = (RankViews::default(), vec![0; gang.own.len()]);
    for now in (0..until).step_by(500) {
        for (rank, heard_at) in heard_at.iter_mut().enumerate() {
            if (now + 500 * rank as u64).is_multiple_of(2000) && heard(rank, now) {
                *heard_at = now;
                views.take(&node(rank), vec![gang.word(rank, now)], Timestamp(now));
            }
        }
        let silent = heard_at.iter().enumerate();
        let silent = silent.filter(|(_, at)| Duration::from_millis(now - **at) >= NODE_LOST_AFTER);
        let silent: BTreeSet<NodeId> = silent.map(|(rank, _)| node(rank)).collect();
        if !silent.is_empty() && views.wait_for(&silent, Timestamp(now)) {
            return Some((now, silent));
        }
    }
    None
}

fn gangs() -> impl Strategy<Value = Gang> {
    // From nano to minutes a step; ranks up to 30 % apart.
    let own = (1u64..12_000, proptest::collection::vec(100u64..130, 1..6)).prop_map(|(base, percents)| {
        percents.iter().map(|percent| (base * percent / 10).max(1)).collect::<Vec<u64>>()
    });
    (own, 0u64..1200).prop_map(|(own, stale)| Gang { own, freeze: None, stale })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_gang_that_steps_never_hangs_however_nodes_fall_silent(
        gang in gangs(), silences in proptest::collection::vec((0usize..6, 0u64..300_000, 0u64..90_000), 0..6),
    ) {
        let heard = |rank, now| !silences.iter().any(|(of, from, long)| {
            *of == rank && (*from..from + long).contains(&now)
        });
        let found = watch(&gang, 400_000, heard);
        prop_assert!(found.is_none(), "{found:?}");
    }

    #[test]
    fn a_gang_that_steps_loses_no_node_however_those_fall_silent(
        gang in gangs(), silences in proptest::collection::vec((0usize..6, 0u64..300_000, 0u64..90_000), 0..6),
    ) {
        let heard = |rank, now| !silences.iter().any(|(of, from, long)| {
            *of == rank && (*from..from + long).contains(&now)
        });
        let found = watch_lost(&gang, 400_000, heard);
        prop_assert!(found.is_none(), "{found:?}");
    }

    #[test]
    fn a_node_that_vanishes_without_a_word_is_found_within_ten_seconds_and_four_steps(
        gang in gangs().prop_filter("others wait", |gang| gang.own.len() > 1),
        lost in 0usize..6, after in 4u64..40, within in 0u64..100,
    ) {
        let (lost, step) = (lost % gang.own.len(), gang.step_time());
        let since = after * step + step * within / 100;
        let gang = Gang { freeze: Some((lost, since, false)), ..gang };
        let found = watch_lost(&gang, since + 20_000 + 5 * step, |rank, now| rank != lost || now < since);
        let Some((at, nodes)) = found else { return Err(TestCaseError::fail("not found")) };
        prop_assert_eq!(nodes, BTreeSet::from([node(lost)]));
        prop_assert!(at >= since + 3000 && at <= since + 10_000 + 4 * step, "{at} after {since}");
    }

    #[test]
    fn a_rank_that_freezes_is_found_in_time_and_by_its_name(
        gang in gangs(), frozen in 0usize..6, after in 4u64..40, within in 0u64..100, talks in proptest::bool::ANY,
    ) {
        let frozen = frozen % gang.own.len();
        let step = gang.step_time();
        let since = after * step + step * within / 100;
        let gang = Gang { freeze: Some((frozen, since, talks)), ..gang };
        let limits = HangLimits::default();
        let bound = limits.step(Duration::from_millis(step));
        let bound = if talks { bound } else { bound.min(limits.silent) }.as_millis() as u64;
        let found = watch(&gang, since + bound + 60_000, |_, _| true);
        let Some((at, hang)) = found else { return Err(TestCaseError::fail("not found")) };
        // Counted from its last move, which may be almost a step before.
        prop_assert!(at + 2000 + step >= since + bound, "too soon: {at} after {since}: {hang}");
        // The survivors come to a stand up to a step later, and words take up to four seconds.
        prop_assert!(at <= since + bound + 4500, "too late: {at} after {since}: {hang}");
        match &hang.node {
            Some(found) => prop_assert_eq!((found, &hang.ranks), (&node(frozen), &vec![frozen as u32])),
            // Its last word may be a moment old and say the same as the others'.
            None => prop_assert!(talks && gang.own.len() > 1, "{hang}"),
        }
    }
}

#[test]
fn at_nano_step_times_a_hang_is_found_within_20_s_and_says_where() {
    let gang = Gang { own: vec![50, 50], freeze: Some((1, 60_010, false)), stale: 0 };
    let (at, hang) = watch(&gang, 200_000, |_, _| true).expect("found");
    assert!(at - 60_010 < 20_000, "{at}");
    assert_eq!(
        hang.to_string(),
        "rank 1 on trainer-1 hangs: 15 s in the forward pass after step 1200, where 15 s are allowed, and its process says nothing"
    );
    let alone = Gang { own: vec![50], ..gang };
    let frozen = Gang { freeze: Some((0, 60_010, true)), ..alone };
    let (at, hang) = watch(&frozen, 200_000, |_, _| true).expect("found");
    assert!(at - 60_010 < 20_000 && hang.ranks == [0] && !hang.quiet, "{at} {hang:?}");
}

#[test]
fn what_rightly_takes_long_has_its_own_bound() {
    let limits = HangLimits::default();
    let word = |phase, beats, steps_done| RankWord {
        rank: 0,
        phase,
        step: 7,
        moves: 1,
        beats,
        steps_done,
        step_time: Duration::from_millis(50),
        own_time: Duration::from_millis(50),
    };
    let cases = [
        (word(RankPhase::Loading, 0, 0), limits.start),
        (word(RankPhase::Loading, 1, 0), limits.load),
        (word(RankPhase::Meeting, 1, 0), limits.meet),
        (word(RankPhase::Forward, 1, 1), limits.warm_up),
        (word(RankPhase::Saving, 1, 9), limits.save),
        (word(RankPhase::Leaving, 1, 9), limits.save),
        (word(RankPhase::WaitingForPairs, 1, 9), limits.step_min),
        (word(RankPhase::Optimizer, 1, 9), limits.step_min),
    ];
    for (word, bound) in cases {
        for silent in [false, true] {
            // A process that says nothing gets no more than that takes, but for its start.
            let allowed = if silent && word.beats > 0 { bound.min(limits.silent) } else { bound };
            let mut views = RankViews::default();
            let mut beats = word.beats;
            let mut found = None;
            for second in 0..=bound.as_secs() + 1 {
                beats += u64::from(!silent && beats > 0);
                let now = Timestamp(second * 1000);
                views.take(&node(0), vec![RankWord { beats, ..word.clone() }], now);
                found = found.or(views.hang(1, &limits, now).map(|_| Duration::from_secs(second)));
            }
            assert_eq!(found, Some(allowed), "{word:?} silent {silent}");
        }
    }
    // Steps of minutes have more than survivors wait by themselves.
    assert_eq!(limits.step(Duration::from_secs(1)), Duration::from_secs(20));
    assert_eq!(limits.step(Duration::from_secs(20)), Duration::from_secs(150));
    assert_eq!(limits.step(Duration::from_secs(300)), Duration::from_secs(600));
}

#[test]
fn ranks_that_have_ended_are_not_taken_for_quiet_ones() {
    let (limits, gang) = (HangLimits::default(), Gang { own: vec![50, 50], freeze: None, stale: 0 });
    let mut views = RankViews::default();
    let word = |rank, second: u64| RankWord { phase: RankPhase::Saving, ..gang.word(rank, second * 1000) };
    views.take(&node(0), vec![word(0, 0)], Timestamp(0));
    views.take(&node(1), vec![word(1, 0)], Timestamp(0));
    for second in 1..600 {
        // The other has left; this one waits for its last checkpoint to be registered.
        let now = Timestamp(second * 1000);
        views.take(&node(0), vec![RankWord { moves: 1, ..word(0, second) }], now);
        if second == 1 {
            views.take(&node(1), Vec::new(), now);
        }
        assert_eq!(views.hang(2, &limits, now), None, "after {second} s");
    }
}

#[test]
fn a_straggler_is_named_once_it_has_been_slow_for_a_while_and_no_longer_than_it_is() {
    let limits = HangLimits::default();
    let mut views = RankViews::default();
    let mut slow = |own: [u64; 3], steps_done: u64, second: u64| {
        for (rank, own) in own.into_iter().enumerate() {
            let gang = Gang { own: vec![own; 3], freeze: None, stale: 0 };
            let word = RankWord { steps_done, ..gang.word(rank, second * 1000) };
            views.take(&node(rank), vec![word], Timestamp(second * 1000));
        }
        views.stragglers(&limits, Timestamp(second * 1000))
    };
    assert!(slow([100, 300, 110], 10, 0).is_empty(), "too few steps to compare");
    assert!(slow([100, 300, 110], 40, 1).is_empty());
    assert!(slow([100, 300, 110], 90, 60).is_empty());
    let named = slow([100, 300, 110], 91, 61);
    assert_eq!(named.len(), 1);
    assert_eq!(
        named[0].to_string(),
        "rank 1 on trainer-1 computes 0.300 s a step, its gang's median is 0.110 s"
    );
    assert!(slow([100, 160, 110], 92, 62).is_empty(), "within half as much again");
    assert!(slow([100, 300, 110], 93, 63).is_empty(), "it begins anew");
}
