//! What the ranks of a gang say of themselves, and what follows from it: that one hangs, or is slower than the others.
//!
//! Each rank says where it is ([`RankWord`]) at every change and once a second. A rank that has not moved for longer than
//! its phase may take hangs: its gang is started again, and the failure is held against the rank's node. One that moves,
//! slower than the others, is a straggler: it is named and left alone.
//!
//! | phase | may last |
//! |---|---|
//! | until the process has said its first word | [`HangLimits::start`] |
//! | loading | [`HangLimits::load`] |
//! | meeting the others | [`HangLimits::meet`] |
//! | saving, leaving | [`HangLimits::save`] |
//! | any other, in the first steps of the process | [`HangLimits::warm_up`] |
//! | any other | [`HangLimits::step`]: a multiple of the gang's median step, within bounds |
//! | any, from a process that says nothing at all | at most [`HangLimits::silent`] |
//!
//! A rank that waits for pairs moves each second. Time in which its node was not heard of is not counted, and as long as
//! a node of the gang is out of sight nothing is judged: unreachable is not failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::ids::{NodeId, Timestamp};

/// How long the phases of a rank may last, and what a straggler is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HangLimits {
    /// From the start of a process to its first word.
    pub start: Duration,
    /// Reading weights and building the network, which may have to fetch them first.
    pub load: Duration,
    /// Waiting for the other ranks' start; above the limit that ranks themselves have.
    pub meet: Duration,
    /// Saving and leaving; above the limits that ranks themselves have.
    pub save: Duration,
    /// Without a move in the first [`WARM_UP_STEPS`] steps of a process: kernels are compiled, communicators set up.
    pub warm_up: Duration,
    /// Without a move in a later step at least this is allowed,
    pub step_min: Duration,
    /// else so many times the median step of the gang,
    pub step_factor: u32,
    /// but no more than this, as long as that is twice the median: survivors give up after 180 s by themselves.
    pub step_max: Duration,
    /// Without a word of the process, whatever its phase.
    pub silent: Duration,
    /// A rank is a straggler once its own time a step was above [`STRAGGLER_PERCENT`] of its gang's median for this long.
    pub straggler_after: Duration,
}

impl Default for HangLimits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(5 * 60),
            load: Duration::from_secs(30 * 60),
            meet: Duration::from_secs(11 * 60),
            save: Duration::from_secs(30 * 60),
            warm_up: Duration::from_secs(10 * 60),
            step_min: Duration::from_secs(15),
            step_factor: 20,
            step_max: Duration::from_secs(150),
            silent: Duration::from_secs(30),
            straggler_after: Duration::from_secs(60),
        }
    }
}

/// Percent of its gang's median above which a rank is slow.
pub const STRAGGLER_PERCENT: u32 = 150;
/// Steps of a process that may take longer than those after them.
pub const WARM_UP_STEPS: u64 = 2;
/// Steps of a process from which on its times are compared with those of others.
const COMPARED_FROM: u64 = 32;
/// Words of a process come once a second, over reports every two: after this it is quiet.
const QUIET_AFTER: Duration = Duration::from_secs(6);
/// Heartbeats come every two seconds: a longer silence of a node is not held against its ranks.
pub(crate) const NODE_GAP: Duration = Duration::from_secs(5);
/// Nodes of which nothing was heard for this long, three heartbeats, are lost to their gang if that waits for them.
pub(crate) const NODE_LOST_AFTER: Duration = Duration::from_secs(6);
/// Ranks wait for each other a little in every step: they wait for such as are lost once it is this long, and two steps.
const WAITS_FOR_LOST: Duration = Duration::from_secs(3);

impl HangLimits {
    /// How long a rank may go without a move in a step, where the gang's steps take `median`.
    pub fn step(&self, median: Duration) -> Duration {
        let usual = median.saturating_mul(self.step_factor).min(self.step_max);
        usual.max(median.saturating_mul(2)).max(self.step_min)
    }

    fn bound(&self, word: &RankWord, median: Duration) -> Duration {
        if word.beats == 0 {
            return self.start;
        }
        match word.phase {
            RankPhase::Loading => self.load,
            RankPhase::Meeting => self.meet,
            RankPhase::Saving | RankPhase::Leaving => self.save,
            RankPhase::WaitingForPairs
            | RankPhase::Forward
            | RankPhase::Backward
            | RankPhase::AllReduce
            | RankPhase::Optimizer => {
                if word.steps_done < WARM_UP_STEPS {
                    self.warm_up
                } else {
                    self.step(median)
                }
            }
        }
    }
}

/// What a rank is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RankPhase {
    Loading,
    Meeting,
    WaitingForPairs,
    Forward,
    Backward,
    AllReduce,
    Optimizer,
    Saving,
    Leaving,
}

impl RankPhase {
    /// It cannot go on without the others.
    fn waits_for_peers(self) -> bool {
        matches!(self, RankPhase::Meeting | RankPhase::AllReduce | RankPhase::Leaving)
    }
}

impl fmt::Display for RankPhase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            RankPhase::Loading => "loading",
            RankPhase::Meeting => "meeting the others",
            RankPhase::WaitingForPairs => "waiting for pairs",
            RankPhase::Forward => "the forward pass",
            RankPhase::Backward => "the backward pass",
            RankPhase::AllReduce => "the all-reduce",
            RankPhase::Optimizer => "the optimizer's step",
            RankPhase::Saving => "saving",
            RankPhase::Leaving => "leaving",
        })
    }
}

/// What a rank says of itself, through its agent.
#[derive(Clone, Debug, PartialEq)]
pub struct RankWord {
    pub rank: u32,
    pub phase: RankPhase,
    /// Steps of the stage that are done.
    pub step: u64,
    /// Grows whenever the thread that trains goes on.
    pub moves: u64,
    /// Words of the process so far; 0 if it has only been started.
    pub beats: u64,
    /// Steps that this process has done.
    pub steps_done: u64,
    /// Median of its last steps, without waiting for pairs and without saving.
    pub step_time: Duration,
    /// The part of that in which it computed itself, so that it did not wait for others.
    pub own_time: Duration,
}

/// A rank as it was last heard of.
#[derive(Clone, Debug, PartialEq)]
pub struct RankView {
    pub word: RankWord,
    pub node: NodeId,
    /// When it was heard to have moved.
    pub moved_at: Timestamp,
    /// When its process was heard to have said something.
    pub beat_at: Timestamp,
    /// Since when it is slower than its gang.
    slow_since: Option<Timestamp>,
}

/// The ranks of one attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankViews {
    ranks: BTreeMap<u32, RankView>,
}

/// A gang that does not go on, and because of which rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    /// The ranks that are to be ended at once: the one that hangs, or all if none is behind the others.
    pub ranks: Vec<u32>,
    /// Where the one that hangs is; `None` if none is behind the others.
    pub node: Option<NodeId>,
    pub phase: RankPhase,
    /// The last step that was done.
    pub step: u64,
    /// Without a move.
    pub still: Duration,
    /// Its process says nothing either.
    pub quiet: bool,
    /// What was allowed.
    pub bound: Duration,
}

impl fmt::Display for Hang {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hang { ranks, node, phase, step, still, quiet, bound } = self;
        match (node, ranks.first()) {
            (Some(node), Some(rank)) => write!(formatter, "rank {rank} on {node} hangs")?,
            _ => formatter.write_str("the gang hangs, no rank behind the others")?,
        }
        let (still, bound) = (still.as_secs(), bound.as_secs());
        write!(formatter, ": {still} s in {phase} after step {step}, where {bound} s are allowed")?;
        if *quiet { formatter.write_str(", and its process says nothing") } else { Ok(()) }
    }
}

/// A rank that is slower than its gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Straggler {
    pub rank: u32,
    pub node: NodeId,
    /// What it computes for in a step.
    pub own_time: Duration,
    /// The gang's median of the same.
    pub median: Duration,
    pub since: Timestamp,
}

impl fmt::Display for Straggler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Straggler { rank, node, own_time, median, since: _ } = self;
        let (own, median) = (own_time.as_secs_f64(), median.as_secs_f64());
        write!(
            formatter,
            "rank {rank} on {node} computes {own:.3} s a step, its gang's median is {median:.3} s"
        )
    }
}

impl RankViews {
    /// Takes over what a node says of the gang's ranks there. One that it does not name has ended.
    pub(crate) fn take(&mut self, node: &NodeId, words: Vec<RankWord>, now: Timestamp) {
        self.ranks.retain(|rank, view| view.node != *node || words.iter().any(|word| word.rank == *rank));
        for word in words {
            match self.ranks.get_mut(&word.rank) {
                Some(view) => {
                    // A word that is older than the last one says nothing.
                    if (word.moves, word.beats) < (view.word.moves, view.word.beats) {
                        continue;
                    }
                    if word.moves != view.word.moves || word.phase != view.word.phase {
                        view.moved_at = now;
                    }
                    if word.beats != view.word.beats {
                        view.beat_at = now;
                    }
                    view.word = word;
                }
                None => {
                    let (node, rank) = (node.clone(), word.rank);
                    let view = RankView { word, node, moved_at: now, beat_at: now, slow_since: None };
                    self.ranks.insert(rank, view);
                }
            }
        }
        self.compare(now);
    }

    pub(crate) fn has_any_on(&self, node: &NodeId) -> bool {
        self.ranks.values().any(|view| view.node == *node)
    }

    /// Nothing of the node was heard for so long: that is not held against its ranks.
    pub(crate) fn unheard(&mut self, node: &NodeId, gap: Duration) {
        for view in self.ranks.values_mut().filter(|view| view.node == *node) {
            view.times_mut().for_each(|at| *at = at.plus(gap));
        }
    }

    /// Every time that is kept.
    pub(crate) fn times_mut(&mut self) -> impl Iterator<Item = &mut Timestamp> {
        self.ranks.values_mut().flat_map(RankView::times_mut)
    }

    pub fn get(&self, rank: u32) -> Option<&RankView> {
        self.ranks.get(&rank)
    }

    /// Median of the ranks' step times; zero if none has done a step.
    pub fn median_step(&self) -> Duration {
        let done = self.ranks.values().filter(|view| view.word.steps_done > 0);
        lower_median(done.map(|view| view.word.step_time))
    }

    /// The rank that the others wait for, if any is behind: the one that is quiet, then the one at the earliest step, then
    /// one that does not itself wait for the others.
    pub fn last(&self, now: Timestamp) -> Option<&RankView> {
        self.ranks.values().min_by_key(|view| view.place(now))
    }

    /// Whether and where a gang of `size` ranks hangs. `None` as long as not all of them are known, and once
    /// one has ended: what becomes of the others is told by their nodes.
    pub fn hang(&self, size: usize, limits: &HangLimits, now: Timestamp) -> Option<Hang> {
        if self.ranks.len() < size {
            return None;
        }
        let last = self.last(now)?;
        let quiet = last.is_quiet(now);
        let mut bound = limits.bound(&last.word, self.median_step());
        let mut still = now.since(last.moved_at);
        let unheard = now.since(last.beat_at);
        if last.word.beats > 0 && unheard >= limits.silent && still < bound {
            (bound, still) = (limits.silent, unheard);
        }
        if still < bound {
            return None;
        }
        let place = last.place(now);
        let alike = self.ranks.values().all(|view| view.place(now) == place);
        let none_behind = size > 1 && alike && last.word.phase.waits_for_peers();
        let ranks = if none_behind { self.ranks.keys().copied().collect() } else { vec![last.word.rank] };
        let node = (!none_behind).then(|| last.node.clone());
        let RankWord { phase, step, .. } = last.word;
        Some(Hang { ranks, node, phase, step, still, quiet, bound })
    }

    /// Whether all that the ranks on other nodes do is to wait for those on these. In their first steps they may wait long.
    pub(crate) fn wait_for(&self, nodes: &BTreeSet<NodeId>, now: Timestamp) -> bool {
        let bound = WAITS_FOR_LOST.max(self.median_step().saturating_mul(2));
        let mut others = self.ranks.values().filter(|view| !nodes.contains(&view.node)).peekable();
        let waits = |view: &RankView| {
            view.word.phase == RankPhase::AllReduce
                && view.word.steps_done >= WARM_UP_STEPS
                && now.since(view.moved_at) >= bound
                && !view.is_quiet(now)
        };
        others.peek().is_some() && others.all(waits)
    }

    /// Ranks that have been slower than their gang for a while.
    pub fn stragglers(&self, limits: &HangLimits, now: Timestamp) -> Vec<Straggler> {
        let median = self.median_own();
        let slow = self.ranks.values().filter_map(|view| {
            let since = view.slow_since.filter(|since| now.since(*since) >= limits.straggler_after)?;
            let (node, own_time) = (view.node.clone(), view.word.own_time);
            Some(Straggler { rank: view.word.rank, node, own_time, median, since })
        });
        slow.collect()
    }

    /// Median of what the ranks compute for in a step; of two ranks the faster one's.
    fn median_own(&self) -> Duration {
        let done = self.ranks.values().filter(|view| view.word.steps_done >= COMPARED_FROM);
        lower_median(done.map(|view| view.word.own_time))
    }

    fn compare(&mut self, now: Timestamp) {
        let median = self.median_own();
        let limit = median.saturating_mul(STRAGGLER_PERCENT).checked_div(100).unwrap_or_default();
        let compared = self.ranks.len() > 1 && !median.is_zero();
        for view in self.ranks.values_mut() {
            let slow = compared && view.word.steps_done >= COMPARED_FROM && view.word.own_time > limit;
            view.slow_since = if slow { view.slow_since.or(Some(now)) } else { None };
        }
    }
}

impl RankView {
    fn times_mut(&mut self) -> impl Iterator<Item = &mut Timestamp> {
        [&mut self.moved_at, &mut self.beat_at].into_iter().chain(&mut self.slow_since)
    }

    fn is_quiet(&self, now: Timestamp) -> bool {
        now.since(self.beat_at) >= QUIET_AFTER
    }

    /// Least for the rank that is behind.
    fn place(&self, now: Timestamp) -> (bool, u64, bool) {
        (!self.is_quiet(now), self.word.step, self.word.phase.waits_for_peers())
    }
}

/// The middle one, or the smaller of the two in the middle; zero of none.
fn lower_median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
