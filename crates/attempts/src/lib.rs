//! An agent's table of attempts: what runs on its node and what is to be done about it: pure. Events go in with the time, effects come out.
//!
//! An attempt here is one of:
//!
//! | state | meaning | next |
//! |---|---|---|
//! | waiting | its slots, or the ranks of its older generation, are not free yet | running, failed (too long), gone |
//! | running | its ranks live; they may have been told to save a checkpoint and leave (it drains) or to stop | ended |
//! | ended | every rank has exited; the outcome is kept for a controller that asks again | replaced by a newer generation |
//!
//! When the process of a rank dies that has stepped with others, the others have the step before, whole: those here are told, and have
//! [`RESCUE_WITHIN`] to save it and end. After any other failure they are killed.
//!
//! A slot belongs to a rank from its spawn until its process is seen to have exited, so no slot is given twice. A process that does
//! not exit although it was killed keeps its slot, and nothing else waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crescendo_core::observed::RESCUE_WITHIN;
use crescendo_proto::v1::{
    AttemptPhase, AttemptRef, AttemptReport, DrainAttempt, RankEnd, RankPhase, RankProgress, RankStatus,
    RescueAttempt, StartAttempt, StopAttempt, UpdateCurators,
};

/// From RankStop to SIGTERM.
pub const TERM_AFTER: Duration = Duration::from_secs(4);
/// From RankStop to SIGKILL.
pub const KILL_AFTER: Duration = Duration::from_secs(7);
/// From RankStop until a rank that was killed is taken for one that does not die, such as one that waits for a device or a file
/// system that is gone: its attempt counts as ended, and its slot alone is held. Less than [`SLOT_WAIT`].
pub const STUCK_AFTER: Duration = Duration::from_secs(20);
/// How long an attempt may wait for its slots.
pub const SLOT_WAIT: Duration = Duration::from_secs(30);
/// A live attempt is reported on at least this often, so that ranks which stand still are told from those that do not.
pub const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Ended attempts that are remembered at most.
const MAX_ENDED: usize = 256;

/// Job and stage.
pub type StageKey = (String, String);

/// One rank process of one generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RankKey {
    pub job_id: String,
    pub stage: String,
    pub generation: u64,
    pub rank: u32,
}

impl RankKey {
    pub fn attempt(&self) -> AttemptRef {
        AttemptRef { job_id: self.job_id.clone(), stage: self.stage.clone(), generation: self.generation }
    }

    fn stage_key(&self) -> StageKey {
        (self.job_id.clone(), self.stage.clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillSignal {
    Term,
    Kill,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start the process of a rank.
    Spawn {
        rank: RankKey,
        slot: u32,
    },
    /// Tell a rank what to do, over its session.
    Assign {
        rank: RankKey,
        start: Box<StartAttempt>,
        slot: u32,
    },
    /// Tell a rank to stop; if it has no session, its process gets SIGKILL.
    Stop {
        rank: RankKey,
        reason: String,
    },
    /// Tell a rank to save a checkpoint and leave with its gang.
    Drain {
        rank: RankKey,
        reason: String,
    },
    /// Tell a rank that another one of its gang is gone.
    PeerLost {
        rank: RankKey,
        reason: String,
        rank_0_lost: bool,
    },
    UpdateCurators {
        rank: RankKey,
        update: UpdateCurators,
    },
    Signal {
        rank: RankKey,
        signal: KillSignal,
    },
    /// Note where a rank that hangs stands, then kill it.
    KillHung {
        rank: RankKey,
    },
    /// The rank was killed and does not die: its slot is held until it does. To be told before what follows.
    Stuck {
        rank: RankKey,
        slot: u32,
    },
    Report(Box<AttemptReport>),
}

#[derive(Clone, Debug)]
struct Failure {
    rank: Option<u32>,
    reason: String,
    permanent: bool,
    /// Another rank of the gang, on another node, was gone before.
    peer_lost: bool,
    /// A process is gone that had stepped with others.
    died: bool,
}

impl Failure {
    /// Of the node, which trying again may mend.
    fn retryable(rank: Option<u32>, reason: String) -> Self {
        Self { rank, reason, permanent: false, peer_lost: false, died: false }
    }
}

#[derive(Clone, Debug)]
struct LocalRank {
    slot: u32,
    /// It was told what to do.
    assigned: bool,
    end: Option<RankEnd>,
    exited: bool,
    /// It was killed and does not die.
    stuck: bool,
    signals: u8,
    /// What it said last of where it is.
    status: RankStatus,
}

impl LocalRank {
    /// It has neither exited nor said that it will.
    fn works(&self) -> bool {
        self.lives() && self.end.is_none()
    }

    /// It is waited for.
    fn lives(&self) -> bool {
        !self.exited && !self.stuck
    }
}

#[derive(Clone, Debug)]
struct Attempt {
    start: StartAttempt,
    generation: u64,
    ranks: BTreeMap<u32, LocalRank>,
    phase: AttemptPhase,
    progress: RankProgress,
    /// Ranks were told to stop, since when and why.
    stopping: Option<(Instant, String)>,
    /// Ranks are to save a checkpoint and leave, and why.
    draining: Option<String>,
    failure: Option<Failure>,
    /// Since when its ranks may save what is left, because another one has died.
    rescue: Option<Instant>,
    /// It lived when the node was told to stop.
    leaves: bool,
    /// Damaged checkpoints that the controller has not taken note of: the outcome waits for them.
    marks_pending: u32,
    /// When it was last reported on.
    reported: Option<Instant>,
    /// Order of the last change.
    changed: u64,
}

impl Attempt {
    fn lives(&self) -> bool {
        self.ranks.values().any(LocalRank::lives)
    }

    /// Whether its ranks have met others, and step.
    fn steps_together(&self) -> bool {
        self.phase == AttemptPhase::Running && self.start.ranks.len() > 1
    }

    fn ended(&self) -> bool {
        matches!(
            self.phase,
            AttemptPhase::Succeeded | AttemptPhase::Failed | AttemptPhase::Stopped | AttemptPhase::Drained
        )
    }
}

#[derive(Clone, Debug)]
struct Waiting {
    start: StartAttempt,
    attempt: AttemptRef,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct AttemptTable {
    node_id: String,
    slots: u32,
    attempts: BTreeMap<StageKey, Attempt>,
    waiting: BTreeMap<StageKey, Waiting>,
    /// Slots of ranks that do not die.
    stuck: BTreeMap<u32, RankKey>,
    /// The node is about to leave, and why: nothing is started any more.
    leaving: Option<String>,
    /// What was not started for that.
    turned_away: Vec<AttemptRef>,
    changes: u64,
}

fn key_of(attempt: &AttemptRef) -> StageKey {
    (attempt.job_id.clone(), attempt.stage.clone())
}

impl AttemptTable {
    pub fn new(node_id: String, slots: u32) -> Self {
        Self {
            node_id,
            slots,
            attempts: BTreeMap::new(),
            waiting: BTreeMap::new(),
            stuck: BTreeMap::new(),
            leaving: None,
            turned_away: Vec::new(),
            changes: 0,
        }
    }

    /// Attempts that run or wait here.
    pub fn running(&self) -> Vec<AttemptRef> {
        let live =
            self.attempts.values().filter(|attempt| !attempt.ended()).filter_map(|a| a.start.attempt.clone());
        let mut running: Vec<AttemptRef> =
            live.chain(self.waiting.values().map(|w| w.attempt.clone())).collect();
        running.sort_by(|a, b| (&a.job_id, &a.stage, a.generation).cmp(&(&b.job_id, &b.stage, b.generation)));
        running
    }

    /// Slots that are held by ranks that were killed and do not die.
    pub fn stuck(&self) -> impl Iterator<Item = u32> {
        self.stuck.keys().copied()
    }

    /// Whether any rank process lives that can be expected to end.
    pub fn any_alive(&self) -> bool {
        self.attempts.values().any(Attempt::lives)
    }

    /// Nothing runs or waits here, and every outcome is told.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.attempts.values().all(|attempt| attempt.ended() && !attempt.lives())
    }

    /// What has left, or leaves, with the node's stop and not by itself: of its end no controller may have heard.
    pub fn left(&self) -> Vec<AttemptRef> {
        // Ranks that fail while their node leaves do so because others have left.
        let of_table = self
            .attempts
            .values()
            .filter(|attempt| attempt.leaves && attempt.phase != AttemptPhase::Succeeded);
        of_table
            .filter_map(|attempt| attempt.start.attempt.clone())
            .chain(self.turned_away.iter().cloned())
            .collect()
    }

    pub fn on_start(&mut self, start: StartAttempt, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(attempt) = start.attempt.clone() else { return effects };
        let key = key_of(&attempt);
        if self.waiting.get(&key).is_some_and(|waiting| waiting.attempt.generation >= attempt.generation) {
            return effects;
        }
        if let Some(known) = self.attempts.get_mut(&key) {
            if known.generation > attempt.generation {
                return effects;
            }
            if known.generation == attempt.generation {
                // A repetition: only the curators may be news. An outcome is told again.
                if known.ended() {
                    effects.push(Effect::Report(Box::new(report(known))));
                } else if known.start.curator_addresses != start.curator_addresses
                    || known.start.pair_marks != start.pair_marks
                {
                    let update = UpdateCurators {
                        attempt: Some(attempt),
                        curator_addresses: start.curator_addresses.clone(),
                        pair_marks: start.pair_marks.clone(),
                    };
                    effects.extend(self.on_update_curators(update));
                }
                return effects;
            }
            stop_ranks(known, "a newer generation starts", now, &mut effects);
        }
        if let Err(reason) = self.check(&start) {
            let generation = attempt.generation;
            let failure = Failure::retryable(None, reason);
            self.keep_ended(key, start, generation, failure, &mut effects);
            return effects;
        }
        if let Some(reason) = self.leaving.clone() {
            self.turned_away.push(attempt.clone());
            effects.push(drained_before_start(attempt, reason));
            return effects;
        }
        self.waiting.insert(key, Waiting { start, attempt, until: now + SLOT_WAIT });
        self.start_waiting(&mut effects);
        effects
    }

    /// What cannot be started here, and why: it has failed, through no fault of the job's.
    pub fn on_refused(&mut self, start: StartAttempt, reason: String) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(attempt) = start.attempt.clone() else { return effects };
        let key = key_of(&attempt);
        match self.attempts.get(&key) {
            // A repetition, or an older one.
            Some(known) if known.generation >= attempt.generation => effects.extend(
                (known.generation == attempt.generation && known.ended())
                    .then(|| Effect::Report(Box::new(report(known)))),
            ),
            Some(_) | None => {
                let failure = Failure::retryable(None, reason);
                self.keep_ended(key, start, attempt.generation, failure, &mut effects);
            }
        }
        effects
    }

    pub fn on_stop(&mut self, stop: &StopAttempt, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(attempt) = &stop.attempt else { return effects };
        let key = key_of(attempt);
        if self.waiting.get(&key).is_some_and(|waiting| waiting.attempt.generation <= attempt.generation) {
            self.waiting.remove(&key);
        }
        match self.attempts.get_mut(&key) {
            Some(known) if known.generation <= attempt.generation => {
                if known.ended() {
                    // Whoever says stop has seen the outcome, or does not want it any more.
                    if known.phase == AttemptPhase::Failed {
                        known.phase = AttemptPhase::Stopped;
                    }
                    effects.push(Effect::Report(Box::new(report(known))));
                } else {
                    stop_ranks(known, &stop.reason, now, &mut effects);
                    kill_hung(known, &stop.hung_ranks, &mut effects);
                }
            }
            Some(_) => {}
            None => effects.push(Effect::Report(Box::new(AttemptReport {
                attempt: Some(attempt.clone()),
                phase: AttemptPhase::Stopped.into(),
                failed_rank: -1,
                reason: "nothing of it runs here".into(),
                ..AttemptReport::default()
            }))),
        }
        effects
    }

    /// The attempt is to end, with all that it has trained saved.
    pub fn on_drain_attempt(&mut self, drain: DrainAttempt) -> Vec<Effect> {
        let Some(attempt) = drain.attempt else { return Vec::new() };
        let key = key_of(&attempt);
        if self.waiting.get(&key).is_some_and(|waiting| waiting.attempt.generation == attempt.generation) {
            self.waiting.remove(&key);
            return vec![drained_before_start(attempt, drain.reason)];
        }
        let mut effects = Vec::new();
        match self.attempts.get_mut(&key).filter(|known| known.generation == attempt.generation) {
            Some(known) if known.ended() => effects.push(Effect::Report(Box::new(report(known)))),
            Some(known) => drain_ranks(known, &drain.reason, &mut effects),
            None => {}
        }
        effects
    }

    /// A node of the gang is lost, and the ranks here wait for it: they are to save what was done before, and end.
    pub fn on_rescue_attempt(&mut self, rescue: RescueAttempt) -> Vec<Effect> {
        let Some(attempt) = rescue.attempt else { return Vec::new() };
        let known = self.attempts.get(&key_of(&attempt));
        let Some(known) = known.filter(|known| known.generation == attempt.generation) else {
            return Vec::new();
        };
        if known.ended() {
            return vec![Effect::Report(Box::new(report(known)))];
        }
        if known.stopping.is_some() {
            return Vec::new();
        }
        let first = known.start.ranks.iter().find(|placed| placed.rank == 0);
        let rank_0_lost = first.is_some_and(|placed| rescue.node_ids.contains(&placed.node_id));
        peer_lost(known, &rescue.reason, rank_0_lost).collect()
    }

    /// The node is about to leave: every attempt is to save a checkpoint and leave, and none is started any more.
    pub fn on_leaving(&mut self, reason: &str) -> Vec<Effect> {
        self.leaving = Some(reason.to_owned());
        let mut effects = Vec::new();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            self.turned_away.push(waiting.attempt.clone());
            effects.push(drained_before_start(waiting.attempt, reason.to_owned()));
        }
        for attempt in self.attempts.values_mut().filter(|attempt| attempt.lives()) {
            attempt.leaves = true;
            drain_ranks(attempt, reason, &mut effects);
        }
        effects
    }

    pub fn on_update_curators(&mut self, update: UpdateCurators) -> Vec<Effect> {
        let Some(attempt) = &update.attempt else { return Vec::new() };
        if let Some(waiting) = self.waiting.get_mut(&key_of(attempt))
            && waiting.attempt.generation == attempt.generation
        {
            waiting.start.curator_addresses.clone_from(&update.curator_addresses);
            waiting.start.pair_marks.clone_from(&update.pair_marks);
        }
        let Some(known) = self.attempts.get_mut(&key_of(attempt)) else { return Vec::new() };
        if known.generation != attempt.generation || known.ended() {
            return Vec::new();
        }
        known.start.curator_addresses.clone_from(&update.curator_addresses);
        known.start.pair_marks.clone_from(&update.pair_marks);
        let live = known.ranks.iter().filter(|(_, rank)| !rank.exited);
        live.map(|(rank, _)| Effect::UpdateCurators {
            rank: rank_key(attempt, *rank),
            update: update.clone(),
        })
        .collect()
    }

    /// A rank has opened its session. `None`: no such rank is expected, so it must end.
    pub fn on_hello(&mut self, rank: &RankKey) -> Option<Effect> {
        let attempt = self.current(rank)?;
        let draining = attempt.draining.clone();
        let local = attempt.ranks.get_mut(&rank.rank).filter(|local| !local.exited)?;
        if let Some(reason) = draining {
            // It has nothing to save: it may end before it has begun.
            return attempt.stopping.is_none().then(|| Effect::Stop { rank: rank.clone(), reason });
        }
        if attempt.stopping.is_some() {
            return None;
        }
        local.assigned = true;
        Some(Effect::Assign { rank: rank.clone(), start: Box::new(attempt.start.clone()), slot: local.slot })
    }

    pub fn on_progress(&mut self, rank: &RankKey, progress: RankProgress) -> Vec<Effect> {
        let Some(attempt) = self.current(rank) else { return Vec::new() };
        if attempt.ended() || attempt.stopping.is_some() {
            return Vec::new();
        }
        if let Some(local) = attempt.ranks.get_mut(&rank.rank) {
            local.status = RankStatus {
                rank: rank.rank,
                phase: progress.phase,
                step: progress.step,
                moves: progress.moves,
                beats: local.status.beats.saturating_add(1),
                steps_done: progress.steps_done,
                step_seconds: progress.step_seconds,
                own_seconds: progress.own_seconds,
            };
        }
        if matches!(progress.phase(), RankPhase::Loading | RankPhase::Meeting) {
            return Vec::new();
        }
        let leads = rank.rank == 0;
        let news = leads || attempt.phase == AttemptPhase::Starting;
        attempt.phase = AttemptPhase::Running;
        if leads {
            attempt.progress = progress;
        }
        if news { vec![Effect::Report(Box::new(report(attempt)))] } else { Vec::new() }
    }

    /// A rank says how it ended; its process will exit.
    pub fn on_end(&mut self, rank: &RankKey, end: RankEnd, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(attempt) = self.current(rank) else { return effects };
        if let Some(local) = attempt.ranks.get_mut(&rank.rank) {
            local.end = Some(end.clone());
        }
        if !end.ok && !end.drained && attempt.stopping.is_none() {
            fail(
                attempt,
                Failure {
                    rank: Some(rank.rank),
                    reason: end.reason,
                    permanent: end.permanent,
                    peer_lost: end.peer_lost,
                    died: false,
                },
                now,
                &mut effects,
            );
        }
        effects
    }

    /// A rank's process is gone. `status` says how, in words.
    pub fn on_exit(&mut self, rank: &RankKey, success: bool, status: &str, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let held = self.stuck.len();
        self.stuck.retain(|_, stuck| stuck != rank);
        if self.stuck.len() < held {
            self.start_waiting(&mut effects);
        }
        let Some(attempt) = self.current(rank) else { return effects };
        let Some(local) = attempt.ranks.get_mut(&rank.rank) else { return effects };
        local.exited = true;
        let unassigned = !local.assigned && attempt.draining.is_some();
        let done = unassigned || local.end.as_ref().is_some_and(|end| end.drained || (end.ok && success));
        let without_a_word = local.end.is_none();
        if !done && attempt.stopping.is_none() {
            let reason = format!("rank {} ended: {status}", rank.rank);
            let failure = Failure::retryable(Some(rank.rank), reason);
            if without_a_word && attempt.steps_together() {
                rescue(attempt, Failure { died: true, ..failure }, now, &mut effects);
            } else {
                fail(attempt, failure, now, &mut effects);
            }
        }
        self.conclude(&rank.stage_key(), &mut effects);
        self.start_waiting(&mut effects);
        effects
    }

    /// A rank found a damaged checkpoint: its attempt's outcome is told once the controller has marked it.
    pub fn on_damage(&mut self, rank: &RankKey) {
        if let Some(attempt) = self.current(rank) {
            attempt.marks_pending += 1;
        }
    }

    pub fn on_marked(&mut self, rank: &RankKey) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(attempt) = self.current(rank) {
            attempt.marks_pending = attempt.marks_pending.saturating_sub(1);
            self.conclude(&rank.stage_key(), &mut effects);
        }
        effects
    }

    /// Time has passed: ranks that do not stop get signals, attempts that wait too long fail.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        for attempt in self.attempts.values_mut() {
            let due = attempt.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY);
            if due && attempt.lives() && attempt.stopping.is_none() {
                attempt.reported = Some(now);
                effects.push(Effect::Report(Box::new(report(attempt))));
            }
            if attempt.rescue.is_some_and(|since| now.saturating_duration_since(since) >= RESCUE_WITHIN) {
                attempt.rescue = None;
                kill_others(attempt, None, now, &mut effects);
            }
            let Some((since, _)) = &attempt.stopping else { continue };
            let waited = now.saturating_duration_since(*since);
            let Some(reference) = attempt.start.attempt.clone() else { continue };
            for (rank, local) in attempt.ranks.iter_mut().filter(|(_, local)| local.lives()) {
                let signal = match local.signals {
                    0 if waited >= TERM_AFTER => KillSignal::Term,
                    1 if waited >= KILL_AFTER => KillSignal::Kill,
                    _ => continue,
                };
                local.signals += 1;
                effects.push(Effect::Signal { rank: rank_key(&reference, *rank), signal });
            }
        }
        self.give_up_stuck(now, &mut effects);
        let late: Vec<StageKey> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now >= waiting.until)
            .map(|(key, _)| key.clone())
            .collect();
        for key in late {
            if let Some(waiting) = self.waiting.remove(&key) {
                let reason = format!("its slots on {} were not free within {SLOT_WAIT:?}", self.node_id);
                let failure = Failure::retryable(None, reason);
                self.keep_ended(key, waiting.start, waiting.attempt.generation, failure, &mut effects);
            }
        }
        effects
    }

    /// Ends attempts whose last ranks were killed and do not die.
    fn give_up_stuck(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut given_up = Vec::new();
        for (key, attempt) in &mut self.attempts {
            let Some((since, _)) = &attempt.stopping else { continue };
            if now.saturating_duration_since(*since) < STUCK_AFTER {
                continue;
            }
            let Some(reference) = attempt.start.attempt.clone() else { continue };
            for (rank, local) in attempt.ranks.iter_mut().filter(|(_, local)| local.lives()) {
                if local.signals < 2 {
                    continue;
                }
                local.stuck = true;
                let rank = rank_key(&reference, *rank);
                self.stuck.insert(local.slot, rank.clone());
                effects.push(Effect::Stuck { rank, slot: local.slot });
                given_up.push(key.clone());
            }
        }
        for key in &given_up {
            self.conclude(key, effects);
        }
        if !given_up.is_empty() {
            self.start_waiting(effects);
        }
    }

    /// The process is to end: every rank is told to stop.
    pub fn on_shutdown(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.turned_away
            .extend(std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.attempt));
        for attempt in self.attempts.values_mut().filter(|attempt| attempt.lives()) {
            attempt.leaves = true;
            stop_ranks(attempt, "the node stops", now, &mut effects);
        }
        effects
    }

    fn current(&mut self, rank: &RankKey) -> Option<&mut Attempt> {
        self.attempts.get_mut(&rank.stage_key()).filter(|attempt| attempt.generation == rank.generation)
    }

    /// Local ranks and their slots; an error if the assignment cannot be meant for this node.
    fn check(&self, start: &StartAttempt) -> Result<BTreeMap<u32, u32>, String> {
        let local: Vec<_> =
            start.ranks.iter().filter(|placement| placement.node_id == self.node_id).collect();
        let ranks: BTreeMap<u32, u32> =
            local.iter().map(|placed| (placed.rank, placed.device_index)).collect();
        let slots: BTreeSet<u32> = ranks.values().copied().collect();
        if ranks.is_empty() {
            return Err(format!("no rank is placed on {}", self.node_id));
        }
        if ranks.len() != local.len() || slots.len() != ranks.len() {
            return Err("a rank or a slot is named twice".into());
        }
        match slots.last() {
            Some(last) if *last >= self.slots => {
                Err(format!("slot {last} does not exist: {} has {}", self.node_id, self.slots))
            }
            _ => Ok(ranks),
        }
    }

    fn slots_taken(&self) -> BTreeSet<u32> {
        let ranks = self.attempts.values().flat_map(|attempt| attempt.ranks.values());
        let taken = ranks.filter(|rank| !rank.exited).map(|rank| rank.slot);
        // Also of attempts that a newer one has replaced since.
        taken.chain(self.stuck.keys().copied()).collect()
    }

    /// Starts every waiting attempt whose slots are free and whose older ranks are gone.
    fn start_waiting(&mut self, effects: &mut Vec<Effect>) {
        let keys: Vec<StageKey> = self.waiting.keys().cloned().collect();
        for key in keys {
            let taken = self.slots_taken();
            if self.attempts.get(&key).is_some_and(Attempt::lives) {
                continue;
            }
            let Some(ranks) = self.waiting.get(&key).and_then(|waiting| self.check(&waiting.start).ok())
            else {
                continue;
            };
            if ranks.values().any(|slot| taken.contains(slot)) {
                continue;
            }
            let Some(waiting) = self.waiting.remove(&key) else { continue };
            let ranks: BTreeMap<u32, LocalRank> = ranks
                .into_iter()
                .map(|(rank, slot)| {
                    // It is at the very beginning, until it says otherwise.
                    let status =
                        RankStatus { rank, phase: RankPhase::Loading.into(), ..RankStatus::default() };
                    let local = LocalRank {
                        slot,
                        assigned: false,
                        end: None,
                        exited: false,
                        stuck: false,
                        signals: 0,
                        status,
                    };
                    (rank, local)
                })
                .collect();
            for (rank, local) in &ranks {
                effects.push(Effect::Spawn { rank: rank_key(&waiting.attempt, *rank), slot: local.slot });
            }
            self.changes += 1;
            let attempt = Attempt {
                generation: waiting.attempt.generation,
                progress: RankProgress {
                    step: waiting.start.resume_from.as_ref().map_or(0, |checkpoint| checkpoint.step),
                    ..RankProgress::default()
                },
                start: waiting.start,
                ranks,
                phase: AttemptPhase::Starting,
                stopping: None,
                draining: None,
                leaves: false,
                failure: None,
                rescue: None,
                marks_pending: 0,
                reported: None,
                changed: self.changes,
            };
            effects.push(Effect::Report(Box::new(report(&attempt))));
            self.attempts.insert(key, attempt);
        }
    }

    /// Tells the outcome once every rank has exited.
    fn conclude(&mut self, key: &StageKey, effects: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        if attempt.ended() || attempt.lives() || attempt.marks_pending > 0 {
            return;
        }
        attempt.phase = match (&attempt.failure, &attempt.stopping) {
            (Some(_), _) => AttemptPhase::Failed,
            (None, Some(_)) => AttemptPhase::Stopped,
            (None, None)
                if attempt.ranks.values().all(|rank| rank.end.as_ref().is_some_and(|end| end.ok)) =>
            {
                AttemptPhase::Succeeded
            }
            (None, None) => AttemptPhase::Drained,
        };
        self.changes += 1;
        attempt.changed = self.changes;
        effects.push(Effect::Report(Box::new(report(attempt))));
        self.forget_oldest();
    }

    fn keep_ended(
        &mut self,
        key: StageKey,
        start: StartAttempt,
        generation: u64,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        self.changes += 1;
        let attempt = Attempt {
            start,
            generation,
            ranks: BTreeMap::new(),
            phase: AttemptPhase::Failed,
            progress: RankProgress::default(),
            stopping: None,
            draining: None,
            leaves: false,
            failure: Some(failure),
            rescue: None,
            marks_pending: 0,
            reported: None,
            changed: self.changes,
        };
        effects.push(Effect::Report(Box::new(report(&attempt))));
        // Ranks of an older generation that still live keep their place: their slots are taken until they exit.
        if !self.attempts.get(&key).is_some_and(Attempt::lives) {
            self.attempts.insert(key, attempt);
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let ended = self.attempts.iter().filter(|(_, attempt)| attempt.ended());
        if ended.clone().count() > MAX_ENDED
            && let Some(oldest) = ended.min_by_key(|(_, attempt)| attempt.changed).map(|(key, _)| key.clone())
        {
            self.attempts.remove(&oldest);
        }
    }
}

fn drained_before_start(attempt: AttemptRef, reason: String) -> Effect {
    Effect::Report(Box::new(AttemptReport {
        attempt: Some(attempt),
        phase: AttemptPhase::Drained.into(),
        failed_rank: -1,
        reason,
        ..AttemptReport::default()
    }))
}

fn rank_key(attempt: &AttemptRef, rank: u32) -> RankKey {
    RankKey {
        job_id: attempt.job_id.clone(),
        stage: attempt.stage.clone(),
        generation: attempt.generation,
        rank,
    }
}

/// Tells the live ranks to stop, once.
fn stop_ranks(attempt: &mut Attempt, reason: &str, now: Instant, effects: &mut Vec<Effect>) {
    if attempt.stopping.is_some() {
        return;
    }
    attempt.stopping = Some((now, reason.to_owned()));
    let Some(reference) = attempt.start.attempt.clone() else { return };
    for (rank, _) in attempt.ranks.iter().filter(|(_, local)| !local.exited) {
        effects.push(Effect::Stop { rank: rank_key(&reference, *rank), reason: reason.to_owned() });
    }
}

/// Kills the ranks that hang: they hear nothing. How they stand is noted first.
fn kill_hung(attempt: &mut Attempt, hung: &[u32], effects: &mut Vec<Effect>) {
    let Some(reference) = attempt.start.attempt.clone() else { return };
    for (rank, local) in attempt.ranks.iter_mut() {
        if hung.contains(rank) && !local.exited && local.signals < 2 {
            local.signals = 2;
            effects.push(Effect::KillHung { rank: rank_key(&reference, *rank) });
        }
    }
}

/// Tells the live ranks to save a checkpoint and leave, once. One that has not been assigned yet is told to stop when it asks.
fn drain_ranks(attempt: &mut Attempt, reason: &str, effects: &mut Vec<Effect>) {
    if attempt.draining.is_some() || attempt.stopping.is_some() {
        return;
    }
    attempt.draining = Some(reason.to_owned());
    let Some(reference) = attempt.start.attempt.clone() else { return };
    for (rank, _) in attempt.ranks.iter().filter(|(_, local)| !local.exited && local.assigned) {
        effects.push(Effect::Drain { rank: rank_key(&reference, *rank), reason: reason.to_owned() });
    }
}

/// Notes the first failure; the other ranks here are of no use any more and are killed. The one that failed exits by
/// itself, or after the grace.
fn fail(attempt: &mut Attempt, failure: Failure, now: Instant, effects: &mut Vec<Effect>) {
    let failed = failure.rank;
    attempt.failure.get_or_insert(failure);
    kill_others(attempt, failed, now, effects);
}

/// Notes the first failure, and lets the other ranks here save what was done before it.
fn rescue(attempt: &mut Attempt, failure: Failure, now: Instant, effects: &mut Vec<Effect>) {
    let (reason, rank_0_lost) = (failure.reason.clone(), failure.rank == Some(0));
    attempt.failure.get_or_insert(failure);
    attempt.rescue.get_or_insert(now);
    effects.extend(peer_lost(attempt, &reason, rank_0_lost));
}

/// Tells the ranks that work that one of their gang is gone.
fn peer_lost<'a>(
    attempt: &'a Attempt,
    reason: &'a str,
    rank_0_lost: bool,
) -> impl Iterator<Item = Effect> + 'a {
    let working = attempt.ranks.iter().filter(|(_, local)| local.works());
    let told = working.filter_map(|(rank, _)| Some(rank_key(attempt.start.attempt.as_ref()?, *rank)));
    told.map(move |rank| Effect::PeerLost { rank, reason: reason.to_owned(), rank_0_lost })
}

/// Kills the ranks that live, but for the one that failed.
fn kill_others(attempt: &mut Attempt, failed: Option<u32>, now: Instant, effects: &mut Vec<Effect>) {
    attempt.stopping = Some((now, "another rank failed".into()));
    let Some(reference) = attempt.start.attempt.clone() else { return };
    for (rank, local) in attempt.ranks.iter_mut() {
        if !local.exited && failed != Some(*rank) {
            local.signals = 2;
            effects.push(Effect::Signal { rank: rank_key(&reference, *rank), signal: KillSignal::Kill });
        }
    }
}

fn report(attempt: &Attempt) -> AttemptReport {
    let progress = &attempt.progress;
    let (reason, failed_rank, permanent) = match (&attempt.phase, &attempt.failure, &attempt.stopping) {
        (AttemptPhase::Failed, Some(failure), _) => (
            failure.reason.clone(),
            failure.rank.and_then(|rank| i32::try_from(rank).ok()).unwrap_or(-1),
            failure.permanent,
        ),
        (AttemptPhase::Stopped, _, Some((_, reason))) => (reason.clone(), -1, false),
        (AttemptPhase::Drained, _, _) => (drain_reason(attempt), -1, false),
        _ => (progress.waiting_for.clone(), -1, false),
    };
    AttemptReport {
        attempt: attempt.start.attempt.clone(),
        phase: attempt.phase.into(),
        step: progress.step,
        loss: progress.loss,
        grad_norm: progress.grad_norm,
        learning_rate: progress.learning_rate,
        samples_per_sec: progress.samples_per_sec,
        data_wait_fraction: progress.data_wait_fraction,
        reason,
        failed_rank,
        permanent,
        peer_lost: attempt.phase == AttemptPhase::Failed
            && attempt.failure.as_ref().is_some_and(|failure| failure.peer_lost),
        rank_died: attempt.phase == AttemptPhase::Failed && died_unsaved(attempt),
        replay_passes: progress.replay_passes,
        skipped_steps: progress.skipped_steps,
        ranks: attempt.ranks.values().filter(|rank| rank.works()).map(|rank| rank.status).collect(),
    }
}

/// Whether a rank has died and none here has said that it lost a peer, which it says after it has saved.
fn died_unsaved(attempt: &Attempt) -> bool {
    let lost = |rank: &LocalRank| rank.end.as_ref().is_some_and(|end| end.peer_lost);
    attempt.failure.as_ref().is_some_and(|failure| failure.died) && !attempt.ranks.values().any(lost)
}

/// Why the gang was drained: as told, or as its ranks heard of each other.
fn drain_reason(attempt: &Attempt) -> String {
    let told = attempt.draining.clone();
    let heard = || attempt.ranks.values().find_map(|rank| Some(rank.end.as_ref()?.reason.clone()));
    told.or_else(heard).unwrap_or_else(|| "a node of the gang drains".to_owned())
}

#[cfg(test)]
mod tests;
