//! A trainer node: the real session and the agent's real table; ranks are played.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crescendo_node::runtime::supervise::Drain;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::{Command, NodeSession};
use crescendo_node::telemetry::log_shipping::{DEFAULT_CAPACITY, LogBuffer};
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::checker::Checker;
use crate::gang::{Gangs, Membership, Mood};
use crate::objects::Objects;
use crate::process::Process;
use crate::rng::SharedRng;
use crate::trace::Trace;
use crescendo_attempts::{AttemptTable, Effect, KillSignal, RankKey};

/// Limit of one try of a call, as the agent has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(700);
/// Limit of the ranks' end when the agent stops.
const RANKS_GRACE: Duration = Duration::from_secs(5);
/// How long ranks wait for rank 0 to save once they have lost another; it may be the one that is lost.
const SAVE_WAIT: Duration = Duration::from_secs(5);
/// Ranks that have not met within this give up.
const MEET_WITHIN: Duration = Duration::from_secs(60);

/// What is wrong with a node's ranks.
#[derive(Debug, Default)]
pub struct RankFaults {
    /// They end soon after they begin.
    pub fail_fast: AtomicBool,
    /// They do not step.
    pub hang: AtomicBool,
    /// Planted: they leave without a checkpoint when they are drained.
    pub forget: AtomicBool,
    /// Planted: one ends for no reason.
    pub die: AtomicBool,
}

/// What a trainer is made of.
#[derive(Clone)]
pub struct TrainerParts {
    pub id: String,
    /// Whose slots these are: two machines may have one name.
    pub machine: String,
    pub slots: u32,
    pub controllers: Controllers,
    pub gangs: Gangs,
    pub faults: Arc<RankFaults>,
    pub checker: Checker,
    pub objects: Objects,
    pub rng: SharedRng,
    pub trace: Trace,
    /// Asked for at a stop; and what was left at the last one, as the agent keeps it on disk.
    pub drain: Drain,
    pub stop: CancellationToken,
    pub departure: Arc<Mutex<Vec<v1::LeftAttempt>>>,
}

enum Event {
    Command(Command),
    Connected(RankKey, mpsc::Sender<Down>),
    Progress(RankKey, v1::RankProgress),
    Checkpoint(RankKey, Box<v1::Checkpoint>),
    Decided(RankKey, bool),
    End(RankKey, v1::RankEnd),
    Exited(RankKey, bool),
}

/// What a rank is told.
enum Down {
    Assigned(Box<v1::StartAttempt>),
    Stop,
    Drain,
    /// Whether the checkpoint was taken.
    Outcome(bool),
}

struct RankHandle {
    slot: u32,
    down: Option<mpsc::Sender<Down>>,
    kill: CancellationToken,
}

struct Agent {
    parts: TrainerParts,
    process: Arc<Process>,
    table: AttemptTable,
    ranks: BTreeMap<RankKey, RankHandle>,
    reports: ReportSink,
    running: Arc<Mutex<Vec<v1::AttemptRef>>>,
    events: mpsc::Sender<Event>,
    /// Of each stage the newest checkpoint that is not known to be registered.
    unregistered: BTreeMap<(String, String), v1::Checkpoint>,
}

/// Starts the node's tasks within `process`.
pub fn start(parts: TrainerParts, process: &Arc<Process>, hello: v1::Hello) {
    let reports = ReportSink::default();
    let running: Arc<Mutex<Vec<v1::AttemptRef>>> = Arc::default();
    let told = running.clone();
    let left = parts.departure.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let hello = move || v1::Hello {
        left: left.clone(),
        running: told.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        ..hello.clone()
    };
    let logs = LogBuffer::new(&parts.id, DEFAULT_CAPACITY);
    let (session, mut commands) = NodeSession::new(parts.controllers.clone(), reports.clone(), logs, hello);
    let (session, stop) = (session.draining(parts.drain.clone()), parts.stop.clone());
    process.spawn(async move {
        let _ = session.run(stop).await;
    });
    let (events, inbox) = mpsc::channel(1024);
    let sender = events.clone();
    process.spawn(async move {
        while let Some(command) = commands.recv().await {
            if sender.send(Event::Command(command)).await.is_err() {
                break;
            }
        }
    });
    let table = AttemptTable::new(parts.id.clone(), parts.slots);
    let agent = Agent {
        table,
        process: process.clone(),
        ranks: BTreeMap::new(),
        reports,
        running,
        events,
        unregistered: BTreeMap::new(),
        parts,
    };
    process.spawn(agent.run(inbox));
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(TICK);
        let (asked, stop, mut leaving) = (self.parts.drain.asked(), self.parts.stop.clone(), false);
        let mut stopping: Option<Instant> = None;
        loop {
            let effects = tokio::select! {
                biased;
                () = stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now());
                    self.table.on_shutdown(Instant::now().into_std())
                }
                () = asked.cancelled(), if !leaving => {
                    leaving = true;
                    self.table.on_leaving("the node drains")
                }
                event = inbox.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                _ = tick.tick() => self.table.on_tick(Instant::now().into_std()),
            };
            for effect in effects {
                self.apply(effect);
            }
            *self.running.lock().unwrap_or_else(PoisonError::into_inner) = self.table.running();
            if leaving && self.table.is_idle() {
                self.parts.drain.finish();
            }
            if stopping.is_some_and(|since| !self.table.any_alive() || since.elapsed() >= RANKS_GRACE) {
                *self.parts.departure.lock().unwrap_or_else(PoisonError::into_inner) = self.left();
                return;
            }
        }
    }

    /// As the agent's departure has it.
    fn left(&self) -> Vec<v1::LeftAttempt> {
        let with_checkpoint = |attempt: v1::AttemptRef| {
            let saved = self.unregistered.get(&(attempt.job_id.clone(), attempt.stage.clone()));
            let checkpoint = saved.filter(|saved| saved.generation == attempt.generation).cloned();
            v1::LeftAttempt { attempt: Some(attempt), checkpoint }
        };
        self.table.left().into_iter().map(with_checkpoint).collect()
    }

    fn take(&mut self, event: Event) -> Vec<Effect> {
        let now = Instant::now().into_std();
        match event {
            Event::Command(Command::StartAttempt(start)) => self.table.on_start(*start, now),
            Event::Command(Command::StopAttempt(stop)) => self.table.on_stop(&stop, now),
            Event::Command(Command::DrainAttempt(drain)) => self.table.on_drain_attempt(drain),
            Event::Command(Command::RescueAttempt(rescue)) => self.table.on_rescue_attempt(rescue),
            Event::Command(Command::UpdateCurators(update)) => self.table.on_update_curators(update),
            Event::Command(
                Command::AssignCuration(_)
                | Command::ReleaseCuration(_)
                | Command::ReadObject(_)
                | Command::ReadStoredPairs(_)
                | Command::CollectObjects(_)
                | Command::DrawSamples(_),
            ) => Vec::new(),
            Event::Connected(rank, down) => match (self.table.on_hello(&rank), self.ranks.get_mut(&rank)) {
                (Some(effect), Some(handle)) => {
                    handle.down = Some(down);
                    vec![effect]
                }
                // Its channel closes, and it ends.
                _ => Vec::new(),
            },
            Event::Progress(rank, progress) => self.table.on_progress(&rank, progress),
            Event::Checkpoint(rank, checkpoint) => {
                let key = (rank.job_id.clone(), rank.stage.clone());
                self.unregistered.insert(key, (*checkpoint).clone());
                self.commit(rank, *checkpoint);
                Vec::new()
            }
            Event::Decided(rank, taken) => {
                self.unregistered.remove(&(rank.job_id.clone(), rank.stage.clone()));
                self.tell(&rank, Down::Outcome(taken));
                Vec::new()
            }
            Event::End(rank, end) => self.table.on_end(&rank, end, now),
            Event::Exited(rank, success) => {
                if let Some(handle) = self.ranks.remove(&rank) {
                    self.parts.checker.slot_left(&self.parts.machine, handle.slot);
                }
                let status = if success { "exit status 0" } else { "signal 9" };
                self.table.on_exit(&rank, success, status, now)
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn { rank, slot } => self.spawn(rank, slot),
            Effect::Assign { rank, start, .. } => {
                self.tell(&rank, Down::Assigned(start));
            }
            Effect::Stop { rank, .. } => {
                if !self.tell(&rank, Down::Stop) {
                    self.kill(&rank);
                }
            }
            Effect::Drain { rank, .. } => {
                self.tell(&rank, Down::Drain);
            }
            // Played ranks see by themselves that one of their gang is gone.
            Effect::UpdateCurators { .. } | Effect::PeerLost { .. } => {}
            Effect::Signal { rank, signal: KillSignal::Term | KillSignal::Kill }
            | Effect::KillHung { rank } => self.kill(&rank),
            // Played ranks die.
            Effect::Stuck { .. } => {}
            Effect::Report(report) => self.reports.put(*report),
        }
    }

    fn tell(&self, rank: &RankKey, message: Down) -> bool {
        let down = self.ranks.get(rank).and_then(|handle| handle.down.as_ref());
        down.is_some_and(|down| down.try_send(message).is_ok())
    }

    fn kill(&self, rank: &RankKey) {
        if let Some(handle) = self.ranks.get(rank) {
            handle.kill.cancel();
        }
    }

    fn spawn(&mut self, rank: RankKey, slot: u32) {
        self.parts.checker.slot_taken(&self.parts.machine, slot, &rank.job_id);
        let kill = CancellationToken::new();
        self.ranks.insert(rank.clone(), RankHandle { slot, down: None, kill: kill.clone() });
        let events = self.events.clone();
        let at = Arc::new(Mutex::new(v1::RankProgress {
            phase: v1::RankPhase::Loading.into(),
            loss: 0.5,
            ..Default::default()
        }));
        let life = Rank { key: rank.clone(), parts: self.parts.clone(), events: events.clone(), at };
        // Ranks are processes of their own: an agent that stands still does not stop them.
        self.process.spawn_ungated(async move {
            let success = tokio::select! {
                biased;
                () = kill.cancelled() => false,
                success = life.live() => success,
                never = life.beat() => match never {},
            };
            let _ = events.send(Event::Exited(rank, success)).await;
        });
    }

    fn commit(&self, rank: RankKey, checkpoint: v1::Checkpoint) {
        let (controllers, events) = (self.parts.controllers.clone(), self.events.clone());
        let stop = self.parts.stop.clone();
        self.process.spawn(async move {
            let request = v1::CommitCheckpointRequest { checkpoint: Some(checkpoint) };
            let decided = controllers
                .call_until_decided("commit checkpoint", CALL_TIMEOUT, &stop, |channel| {
                    let request = request.clone();
                    async move { CheckpointServiceClient::new(channel).commit_checkpoint(request).await }
                })
                .await;
            let taken = match decided {
                Ok(_) => true,
                Err(status) if status.code() == Code::Cancelled => return,
                Err(_) => false,
            };
            let _ = events.send(Event::Decided(rank, taken)).await;
        });
    }
}

/// One played rank.
struct Rank {
    key: RankKey,
    parts: TrainerParts,
    events: mpsc::Sender<Event>,
    /// Where it is.
    at: Arc<Mutex<v1::RankProgress>>,
}

enum Over {
    Ended(v1::RankEnd),
    /// Told to stop, or not wanted.
    Stopped,
}

fn failed(reason: &str) -> Over {
    Over::Ended(v1::RankEnd { ok: false, reason: reason.to_owned(), ..Default::default() })
}

impl Rank {
    /// Whether it ended well.
    async fn live(&self) -> bool {
        let start_up = self.parts.rng.draw(|rng| rng.between(300, 2000));
        sleep(Duration::from_millis(start_up)).await;
        let (down, mut told) = mpsc::channel(32);
        let _ = self.events.send(Event::Connected(self.key.clone(), down)).await;
        let Some(Down::Assigned(start)) = told.recv().await else { return false };
        match self.work(&start, &mut told).await {
            Over::Ended(end) => {
                let ok = end.ok || end.drained;
                let _ = self.events.send(Event::End(self.key.clone(), end)).await;
                sleep(Duration::from_millis(20)).await;
                ok
            }
            Over::Stopped => false,
        }
    }

    async fn work(&self, start: &v1::StartAttempt, told: &mut mpsc::Receiver<Down>) -> Over {
        if self.parts.faults.fail_fast.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(300)).await;
            return failed("rank cannot allocate memory");
        }
        let gang = self.parts.gangs.join(start, &self.key.attempt());
        let meeting = tokio::time::timeout(MEET_WITHIN, gang.mood_other_than(Mood::Meeting));
        tokio::select! {
            biased;
            stopped = stop_of(told, &gang) => return stopped,
            met = meeting => if met.is_err() { return failed("the gang did not meet") },
        }
        if self.key.rank == 0 { self.lead(start, &gang, told).await } else { self.follow(&gang, told).await }
    }

    async fn follow(&self, gang: &Membership, told: &mut mpsc::Receiver<Down>) -> Over {
        loop {
            // It has given what it had, and waits for rank 0.
            self.enter(v1::RankPhase::AllReduce, gang.step());
            self.tell_progress().await;
            let mood = gang.mood();
            if let Some(over) = over(mood) {
                if mood == Mood::Broken && gang.step() > 0 {
                    // Rank 0 saves, and is the first to say so.
                    self.enter(v1::RankPhase::Leaving, gang.step());
                    if let Ok(stopped) = tokio::time::timeout(SAVE_WAIT, stop_of(told, gang)).await {
                        return stopped;
                    }
                }
                return over;
            }
            tokio::select! {
                biased;
                stopped = stop_of(told, gang) => return stopped,
                _ = gang.mood_other_than(mood) => {}
                () = sleep(STEP) => {}
            }
        }
    }

    /// Rank 0 sets the pace and saves.
    async fn lead(
        &self,
        start: &v1::StartAttempt,
        gang: &Membership,
        told: &mut mpsc::Receiver<Down>,
    ) -> Over {
        let Some(plan) = plan(start) else { return failed("the spec cannot be read") };
        let mut saved = gang.step();
        // One checkpoint at a time is under way to the controller; the gang does not wait for it.
        let mut under_way = false;
        self.enter(v1::RankPhase::Forward, gang.step());
        loop {
            if let Some(over) = over(gang.mood()) {
                if gang.mood() == Mood::Broken && gang.step() > saved {
                    self.enter(v1::RankPhase::Saving, gang.step());
                    if under_way && !decided(gang, told).await {
                        return Over::Stopped;
                    }
                    self.save(gang.step(), false).await;
                    if !decided(gang, told).await {
                        return Over::Stopped;
                    }
                }
                return over;
            }
            if gang.mood() == Mood::Draining || gang.step() >= plan.steps {
                let last = gang.step() >= plan.steps;
                self.enter(v1::RankPhase::Saving, gang.step());
                let forgets = !last && self.parts.faults.forget.load(Ordering::Relaxed);
                if under_way && !decided(gang, told).await {
                    return Over::Stopped;
                }
                under_way = false;
                if !forgets && (last || gang.step() > saved) {
                    self.save(gang.step(), last).await;
                    if !decided(gang, told).await {
                        return Over::Stopped;
                    }
                }
                if !last {
                    self.parts.checker.drained(&self.key.job_id, &self.key.stage, gang.step());
                }
                gang.become_(if last { Mood::Done } else { Mood::Drained });
                continue;
            }
            tokio::select! {
                biased;
                told = word_of(told, gang) => match told {
                    Word::Outcome(true) => {
                        under_way = false;
                        continue;
                    }
                    Word::Outcome(false) => return Over::Stopped,
                    Word::Over(over) => return over,
                },
                _ = gang.mood_other_than(Mood::Stepping) => continue,
                () = sleep(STEP) => {}
            }
            if self.parts.faults.die.swap(false, Ordering::Relaxed) {
                return failed("planted");
            }
            if self.parts.faults.hang.load(Ordering::Relaxed) {
                continue;
            }
            let step = gang.advance();
            self.enter(v1::RankPhase::Forward, step);
            self.tell_progress().await;
            if step.is_multiple_of(plan.every) && step < plan.steps && !under_way {
                self.save(step, false).await;
                (saved, under_way) = (step, true);
            }
        }
    }

    /// The rank goes on to a phase, with so many steps done.
    fn enter(&self, phase: v1::RankPhase, step: u64) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.phase() == phase && at.step == step {
            return;
        }
        at.steps_done += u64::from(step > at.step && at.phase() != v1::RankPhase::Loading);
        (at.step, at.moves) = (step, at.moves + 1);
        (at.step_seconds, at.own_seconds) = (STEP.as_secs_f64(), STEP.as_secs_f64());
        at.set_phase(phase);
    }

    fn place(&self) -> v1::RankProgress {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn tell_progress(&self) {
        let _ = self.events.send(Event::Progress(self.key.clone(), self.place())).await;
    }

    /// Once a second, whatever the rank does; one that nobody hears, because its agent stands still, loses words.
    async fn beat(&self) -> std::convert::Infallible {
        loop {
            sleep(Duration::from_secs(1)).await;
            let _ = self.events.try_send(Event::Progress(self.key.clone(), self.place()));
        }
    }

    /// Has a checkpoint registered; what comes of it is told.
    async fn save(&self, step: u64, last: bool) {
        sleep(Duration::from_millis(150)).await;
        let RankKey { job_id, stage, generation, .. } = self.key.clone();
        let checkpoint = v1::Checkpoint {
            path: crescendo_core::object_keys::checkpoint(&job_id, &stage, step, generation),
            job_id,
            stage,
            generation,
            step,
            files: vec![v1::CheckpointFile {
                name: "manifest.json".into(),
                size_bytes: 100,
                sha256: "b".repeat(64),
            }],
            r#final: last,
            next_position: step * 2,
            ..Default::default()
        };
        self.parts.objects.put(format!("{}/manifest.json", checkpoint.path));
        let _ = self.events.send(Event::Checkpoint(self.key.clone(), Box::new(checkpoint))).await;
        self.parts
            .trace
            .note(format_args!("{} saves {} g{generation} step {step}", self.parts.id, self.key.job_id));
    }
}

/// Waits until it is decided on a checkpoint: whether it was taken.
async fn decided(gang: &Membership, told: &mut mpsc::Receiver<Down>) -> bool {
    loop {
        match told.recv().await {
            Some(Down::Outcome(taken)) => return taken,
            Some(Down::Drain) => gang.become_(Mood::Draining),
            Some(Down::Stop | Down::Assigned(_)) | None => return false,
        }
    }
}

fn over(mood: Mood) -> Option<Over> {
    match mood {
        Mood::Meeting | Mood::Stepping | Mood::Draining => None,
        Mood::Drained => {
            let reason = "a node of the gang drains".to_owned();
            Some(Over::Ended(v1::RankEnd { drained: true, reason, ..Default::default() }))
        }
        Mood::Done => Some(Over::Ended(v1::RankEnd { ok: true, ..Default::default() })),
        Mood::Broken => {
            let reason = "a rank of the gang is gone".to_owned();
            Some(Over::Ended(v1::RankEnd { peer_lost: true, reason, ..Default::default() }))
        }
    }
}

/// What a rank that steps is told.
enum Word {
    Over(Over),
    /// Whether its checkpoint was taken.
    Outcome(bool),
}

/// Resolves once the rank is told to stop; who waits for no checkpoint is told of none.
async fn stop_of(told: &mut mpsc::Receiver<Down>, gang: &Membership) -> Over {
    loop {
        if let Word::Over(over) = word_of(told, gang).await {
            return over;
        }
    }
}

/// The next word to the rank; a drain is passed on to the gang.
async fn word_of(told: &mut mpsc::Receiver<Down>, gang: &Membership) -> Word {
    loop {
        match told.recv().await {
            Some(Down::Drain) if gang.mood() == Mood::Meeting => {
                let reason = "the node drains".to_owned();
                return Word::Over(Over::Ended(v1::RankEnd { drained: true, reason, ..Default::default() }));
            }
            Some(Down::Drain) => gang.become_(Mood::Draining),
            Some(Down::Outcome(taken)) => return Word::Outcome(taken),
            Some(Down::Stop | Down::Assigned(_)) | None => return Word::Over(Over::Stopped),
        }
    }
}

struct Plan {
    steps: u64,
    every: u64,
}

fn plan(start: &v1::StartAttempt) -> Option<Plan> {
    let spec: crescendo_core::spec::JobSpec = serde_json::from_slice(&start.resolved_spec_json).ok()?;
    let stage = spec.stages.get(usize::try_from(start.stage_index).ok()?)?;
    Some(Plan { steps: stage.train.steps, every: spec.checkpoints.every.max(1) })
}
