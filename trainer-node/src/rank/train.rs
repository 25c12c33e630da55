//! The training loop of one rank. Runs on the thread named `train`, the only one that computes with tensors.
//!
//! A step: agree with the other ranks that everyone has its samples; forward and backward, micro-batch by micro-batch,
//! each bucket's all-reduce starting as soon as its gradients are final; clip; AdamW. Every rank then holds the same
//! weights.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crescendo_collective::{CollectiveError, PendingReduce, ProcessGroup, ReduceOp};
use crescendo_core::marks::{LeftOut, MarkList};
use crescendo_core::spec::OnStarvation;
use crescendo_dataset::checkpoint::{ADAPTER_FILE, MODEL_FILE};
use crescendo_model::training::snapshot::{self, Hold, SnapshotLimits};
use crescendo_model::training::{Clip, MicroBatch, Update};
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::{RankPhase, RankProgress};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::RankError;
use super::batch::{Draws, SampleShape};
use super::data::{Delivery, SampleOrder};
use super::history::StepRecord;
use super::plan::RankPlan;
use super::position_log::PositionLog;
use super::positions::{LogProgress, ReplayPass};
use super::prefetch::{Prefetcher, STEPS_AHEAD, StepInput};
use super::pulse;
use super::restore::Restored;
use super::save::SaveRequest;
use super::step_profiler::{self, Phase, Step, StepProfiler};
use super::train_state::TrainState;
use super::unsaved::{self, Unsaved, Verdict};

/// Of so many steps one is a span.
const TRACED_EVERY: u64 = 100;

/// The first steps of a stage, and then one now and then.
fn is_traced(step: u64) -> bool {
    step < 3 || step.is_multiple_of(TRACED_EVERY)
}

/// Limit of one collective call: ranks enter each within moments of each other, because they agree first that all have
/// their samples; what remains is the difference in speed.
pub const COLLECTIVE_TIMEOUT: Duration = Duration::from_secs(180);
/// Limit of the leaving of a gang that drains: rank 0 saves meanwhile.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long ranks that have lost a peer leave another time to save: told to stop, they end before.
const SAVE_WAIT: Duration = Duration::from_secs(30);
/// How long it takes until one of them looks again whether rank 0 is there to save.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long the node of rank 0 may take to answer before it counts as lost with its rank.
const REACH_WAIT: Duration = Duration::from_secs(2);
/// How long a rank waits for its pairs before it tells the others that it has to wait.
const INPUT_WAIT: Duration = Duration::from_secs(1);

/// What the data client gives and says.
pub struct DataFeed {
    pub deliveries: mpsc::Receiver<Result<Delivery, RankError>>,
    /// Number of the order by which there is no next pair.
    pub starved: watch::Receiver<Option<u64>>,
}

/// Everything that the loop works with.
pub struct Training {
    pub plan: RankPlan,
    pub group: ProcessGroup,
    pub restored: Restored,
    /// What the data client waits for.
    pub data_waits_for: watch::Receiver<String>,
    /// The order of the pairs that the data client follows.
    pub order: watch::Sender<SampleOrder>,
    /// What people have marked in the pair log.
    pub marks: watch::Receiver<MarkList>,
    /// What the data client knows of that log.
    pub log: watch::Receiver<LogProgress>,
    /// Where each step's positions and pairs are noted, for tests.
    pub position_log: Option<PositionLog>,
    pub progress: watch::Sender<RankProgress>,
    pub saves: mpsc::Sender<SaveRequest>,
    pub stop: CancellationToken,
    /// Cancelled when the gang is to save a checkpoint and leave at the next step boundary.
    pub drain: CancellationToken,
    /// Cancelled when another rank of this machine is gone; the group is aborted then.
    pub peer_lost: CancellationToken,
    /// Cancelled before that if the agent knows that it is rank 0.
    pub rank_0_lost: CancellationToken,
    /// Where the process of rank 0 listens as long as it lives; none for itself.
    pub rank_0_at: Option<SocketAddr>,
    pub runtime: Handle,
}

/// Ends when every step is done and, on rank 0, the last checkpoint is registered; or at a step boundary that all ranks
/// agree on, with that step saved, when one of them drains.
pub fn run(training: Training, feed: DataFeed) -> Result<(), RankError> {
    let (inputs, starved, prefetching) = prefetch(&training, feed)?;
    let mut state = Loop {
        inputs,
        starved,
        _prefetching: prefetching,
        saving: None,
        hold: None,
        save_due: false,
        unsaved: None,
        meter: StepProfiler::new(Instant::now()),
        skipped_before: training.restored.history.skipped(),
        marks_asked: None,
        training,
    };
    let skipped = state.skipped_before;
    state.training.progress.send_modify(|progress| progress.skipped_steps = skipped);
    state.training.restored.train_step.time_passes();
    let first = state.training.restored.step;
    let steps = state.training.plan.stage.train.steps;
    for step in first..steps {
        match state.step(step).map_err(|error| state.lost_or(error)) {
            Err(RankError::Drained(reason)) => return state.checkpoint_and_leave(first, reason),
            Err(RankError::PeerLost(reason)) => {
                state.save_what_is_left(first);
                return Err(RankError::PeerLost(reason));
            }
            outcome => outcome?,
        }
    }
    state.enter(RankPhase::Leaving);
    if let Err(error) = state.training.group.leave(COLLECTIVE_TIMEOUT) {
        // The last step is done all the same.
        tracing::warn!(%error, "the ranks did not leave their group together; what was trained is saved all the same");
    }
    state.save_last()
}

/// What [`prefetch`] gives: a step's input, whether there is no next pair, and what ends the thread.
type Prefetching = (mpsc::Receiver<Result<StepInput, RankError>>, watch::Receiver<Option<u64>>, DropGuard);

/// Starts the thread that makes each step's input.
fn prefetch(training: &Training, feed: DataFeed) -> Result<Prefetching, RankError> {
    let plan = &training.plan;
    let (out, inputs) = mpsc::channel(STEPS_AHEAD);
    let (starved_in, starved) = watch::channel(None);
    let stop = training.stop.child_token();
    let prefetcher = Prefetcher {
        gang: plan.gang,
        micro_batch: plan.stage.train.micro_batch as usize,
        shape: SampleShape::new(&plan.config(), plan.stage.references),
        draws: Draws {
            job_seed: plan.spec.seed,
            stage_index: plan.stage_index,
            times: plan.times()?,
            text_dropout: plan.stage.train.text_dropout,
        },
        device: plan.device,
        deliveries: feed.deliveries,
        order: training.order.subscribe(),
        data_starved: feed.starved,
        starved: starved_in,
        out,
        stop: stop.clone(),
    };
    let runtime = training.runtime.clone();
    std::thread::Builder::new()
        .name("prefetch".into())
        .spawn(move || prefetcher.run(&runtime))
        .map_err(RankError::retryable)?;
    Ok((inputs, starved, stop.drop_guard()))
}

struct Loop {
    training: Training,
    /// From the prefetching thread.
    inputs: mpsc::Receiver<Result<StepInput, RankError>>,
    /// Number of the order by which there is no next pair, and all that came is made.
    starved: watch::Receiver<Option<u64>>,
    /// Ends that thread.
    _prefetching: DropGuard,
    saving: Option<SaveUnderWay>,
    /// Of the save under way, as long as its tensors are not all copied.
    hold: Option<Hold>,
    /// A save was due while another was under way.
    save_due: bool,
    /// Since the last checkpoint that was saved.
    unsaved: Option<Unsaved>,
    meter: StepProfiler,
    /// Skipped steps that the checkpoint had.
    skipped_before: u64,
    /// The step at which the gang was last asked whether it leaves out newer marks, and the version that this rank knew.
    marks_asked: Option<(u64, u64)>,
}

impl Loop {
    /// Trains step `step` (from 0).
    fn step(&mut self, step: u64) -> Result<(), RankError> {
        let began = Instant::now();
        let _span = is_traced(step).then(|| {
            tracing::info_span!(target: trace::TARGET, "step", step = trace::number(step + 1)).entered()
        });
        self.check_stop()?;
        let (StepInput { noted, micros, .. }, waited) = self.await_input(step)?;
        // The rest of that time is mostly for ranks that are behind, as at the end of the backward pass.
        self.meter.end_with(Phase::AllReduce, Phase::DataWait, waited, Instant::now());
        let loss = self.reduced_gradients(&micros)?;
        let plan = &self.training.plan;
        let operations = step_profiler::operations(&plan.config(), &micros, plan.adapter_rank());
        let train = &plan.stage.train;
        let restored = &mut self.training.restored;
        let norm = restored.train_step.params().grad_norm().map_err(RankError::retryable)?;
        let rate = train.learning_rate_at(step + 1);
        let grad_norm = number(&norm)?;
        let seconds = began.elapsed().as_secs_f64();
        self.meter.stepped(Step { samples: train.global_batch, operations, seconds });
        let at_unix_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Both are of all ranks, after the reduction: every rank decides the same, and `agree` sees to it.
        let skipped = !(loss.is_finite() && grad_norm.is_finite());
        let record = StepRecord {
            step: step + 1,
            loss,
            grad_norm,
            learning_rate: rate,
            seconds,
            at_unix_secs,
            skipped,
        };
        self.training.restored.history.push(&record);
        self.report(&record, waited.as_secs_f64());
        if self.hold.is_some() {
            // The update waits for what a checkpoint still copies.
            self.enter(RankPhase::Saving);
        }
        let held_up = if skipped {
            self.skip(&record)?;
            Duration::ZERO
        } else {
            self.update(rate, &norm)?
        };
        let restored = &mut self.training.restored;
        restored.train_step.wait_for_device().map_err(RankError::retryable)?;
        restored.step = step + 1;
        if let Some(log) = &mut self.training.position_log {
            log.note(step, &noted).map_err(RankError::retryable)?;
        }
        self.meter.end_with(Phase::Optimizer, Phase::Checkpoint, held_up, Instant::now());
        self.save_if_due()?;
        self.meter.end(Phase::Checkpoint, Instant::now());
        Ok(())
    }

    /// The optimizer's step, and the average's; `norm` is that of the gradients. A bucket that a checkpoint still copies is
    /// waited for: for how long, in all.
    fn update(&mut self, rate: f64, norm: &Tensor) -> Result<Duration, RankError> {
        let Training { plan, restored, .. } = &mut self.training;
        let clip = Some(Clip { norm, max_norm: plan.stage.train.max_grad_norm });
        let update = Update { rate, clip, ema: restored.ema.as_mut() };
        let mut held_up = Duration::ZERO;
        let mut before = |bucket| wait_for_copy(&mut self.hold, bucket, &mut held_up);
        restored
            .optimizer
            .step_after(restored.train_step.params_mut(), update, &mut before)
            .map_err(RankError::retryable)?;
        // Every bucket was waited for.
        self.hold = None;
        Ok(held_up)
    }

    /// Leaves all that trains as it is, and fails when that was done too often in a row.
    fn skip(&mut self, record: &StepRecord) -> Result<(), RankError> {
        let StepRecord { step, loss, grad_norm, .. } = *record;
        let Training { plan, restored, .. } = &mut self.training;
        let (in_a_row, most) =
            (restored.history.skipped_in_a_row(), u64::from(plan.stage.train.max_skipped_steps));
        if in_a_row > most {
            return Err(RankError::Permanent(format!(
                "step {step}: the loss is {loss} and the gradients' norm {grad_norm}, and nothing was updated; that is {in_a_row} in a row, and spec.stages[{}].train.maxSkippedSteps is {most}",
                plan.stage_index
            )));
        }
        if plan.gang.rank == 0 {
            tracing::warn!(
                step,
                loss,
                grad_norm,
                in_a_row,
                "the step is skipped: its loss or gradients are not finite"
            );
        }
        Ok(())
    }

    /// What the step trains on, once every rank has its own; and the time for which one of them had to wait for pairs. Meeting
    /// ranks that are behind in computing is no waiting.
    fn await_input(&mut self, step: u64) -> Result<(StepInput, Duration), RankError> {
        let mut reported = false;
        let mut waited = Duration::ZERO;
        let mut ready = None;
        loop {
            let (round, waited_before) = (Instant::now(), waited);
            if ready.is_none() {
                self.enter(RankPhase::WaitingForPairs);
                ready = self.next_input(step, &mut waited)?;
            }
            let lacks_pairs = ready.is_none();
            let unsaved = self.held_for_save(step)?;
            let waits = lacks_pairs || unsaved.is_some();
            let replay_pass = self.replay_pass(step);
            let number = self.training.order.borrow().number;
            let starved = lacks_pairs && *self.starved.borrow() == Some(number);
            let marks = self.has_newer_marks(step);
            match (self.agree(waits, starved && replay_pass.is_some(), marks)?, ready.take()) {
                (Vote::Ready, Some(input)) => return Ok((input, waited)),
                (Vote::Ready, None) => {
                    return Err(RankError::Retryable("the gang goes on without this rank's pairs".into()));
                }
                (Vote::Wait, input) => (ready, waited) = (input, waited_before + round.elapsed()),
                (Vote::Drain, _) => return Err(RankError::Drained(format!("after step {step}"))),
                (Vote::Repeat, _) => {
                    self.begin_replay_pass(step, replay_pass)?;
                    continue;
                }
                (Vote::Marks, input) => {
                    // What was fetched by the former order is of no use in another.
                    ready = if self.leave_out_marks(step)? { None } else { input };
                    continue;
                }
            }
            self.check_stop()?;
            let reason = match (unsaved, self.training.data_waits_for.borrow().as_str()) {
                (Some(reason), _) => reason,
                (None, "") if lacks_pairs => "pairs from the curator".to_owned(),
                (None, "") => "another rank".to_owned(),
                (None, reason) => reason.to_owned(),
            };
            if !reported {
                tracing::info!(step = step + 1, waiting_for = reason, "waiting");
                reported = true;
            }
            self.training.progress.send_modify(|progress| progress.waiting_for = reason);
        }
    }

    /// What is made for the step, or nothing within [`INPUT_WAIT`]; adds to `waited`.
    fn next_input(&mut self, step: u64, waited: &mut Duration) -> Result<Option<StepInput>, RankError> {
        let deadline = Instant::now() + INPUT_WAIT;
        loop {
            // What is there already is not waited for.
            let input = match self.inputs.try_recv() {
                Ok(input) => Some(input),
                Err(_) => {
                    let asked = Instant::now();
                    let Training { runtime, stop, .. } = &self.training;
                    let inputs = &mut self.inputs;
                    let input = runtime.block_on(async {
                        tokio::select! {
                            () = stop.cancelled() => Err(told_to_stop()),
                            input = tokio::time::timeout_at(deadline.into(), inputs.recv()) => match input {
                                Ok(Some(input)) => Ok(Some(input)),
                                Ok(None) => Err(RankError::Retryable("the data client has ended".into())),
                                Err(_) => Ok(None),
                            },
                        }
                    })?;
                    *waited += asked.elapsed();
                    input
                }
            };
            let Some(input) = input.transpose()? else { return Ok(None) };
            // What was made before the order changed is thrown away.
            if input.order != self.training.order.borrow().number {
                continue;
            }
            if input.step == step {
                return Ok(Some(input));
            }
            return Err(RankError::Retryable(format!("pairs of step {} came at step {step}", input.step)));
        }
    }

    /// The replay pass that the gang would go on with if `step` cannot be had. The same on all ranks: they have had the
    /// same ones so far.
    fn replay_pass(&self, step: u64) -> Option<ReplayPass> {
        let Training { plan, order, .. } = &self.training;
        match plan.stage.train.on_starvation {
            OnStarvation::Repeat => order.borrow().replay_passes.at_step(step, plan.gang.global_batch),
            OnStarvation::Wait | OnStarvation::Stop => None,
        }
    }

    /// Puts a replay pass into the order and begins `step` anew. All ranks do so at the same step, before any trains it.
    fn begin_replay_pass(&mut self, step: u64, replay_pass: Option<ReplayPass>) -> Result<(), RankError> {
        let replay_pass = replay_pass
            .ok_or_else(|| RankError::Retryable("the gang repeats what this rank has not".into()))?;
        self.training.order.send_modify(|order| {
            order.number += 1;
            order.replay_passes.push(replay_pass);
            order.first_step = step;
        });
        let replay_passes = self.training.order.borrow().replay_passes.all().len() as u64;
        self.training.progress.send_modify(|progress| progress.replay_passes = replay_passes);
        tracing::info!(
            step = step + 1,
            from = replay_pass.from,
            pairs = replay_pass.pairs,
            replay_passes,
            "no new pairs yet: going round those before once more"
        );
        Ok(())
    }

    /// Whether an epoch begins in `step` that could leave out marks which are newer than those that are left out. Asked once a step
    /// for each version.
    fn has_newer_marks(&self, step: u64) -> bool {
        let Training { plan, order, marks, log, .. } = &self.training;
        let (known, log) = (marks.borrow().version(), *log.borrow());
        let order = order.borrow();
        let (passes, epochs, batch) = (&order.replay_passes, &order.epochs, plan.gang.global_batch);
        known > epochs.version()
            && log.sealed
            && self.marks_asked != Some((step, known))
            && passes.epoch_begins_in(step, batch, epochs, log.committed).is_some()
    }

    /// Leaves out of the epoch that begins in `step`, and of those after it, what is marked by the newest version that all ranks
    /// know. All ranks do so at the same step, before any trains it. `false` if nothing changes.
    fn leave_out_marks(&mut self, step: u64) -> Result<bool, RankError> {
        let Training { plan, order, marks, log, .. } = &self.training;
        let (known, log) = (marks.borrow().clone(), *log.borrow());
        self.marks_asked = Some((step, known.version()));
        let sealed_pairs = if log.sealed { log.committed } else { 0 };
        let (version, pairs) = self.common_marks(known.version(), sealed_pairs)?;
        let mut begun = None;
        order.send_if_modified(|order| {
            let batch = plan.gang.global_batch;
            let from = order.replay_passes.epoch_begins_in(step, batch, &order.epochs, pairs);
            let Some(from) = from.filter(|_| version > order.epochs.version()) else { return false };
            let next = LeftOut { from, version, pairs, indices: known.left_out(version, pairs) };
            let left_out = next.indices.len();
            let pushed = order.epochs.push(next);
            if pushed {
                (order.number, order.first_step) = (order.number + 1, step);
                begun = Some((from, left_out));
            }
            pushed
        });
        if let Some((from, left_out)) = begun {
            tracing::info!(
                step = step + 1,
                from,
                version,
                left_out,
                pairs,
                "an epoch begins that leaves out marked pairs"
            );
        }
        Ok(begun.is_some())
    }

    /// The newest version of the marks that all ranks know, and the length of the sealed log, by those that know it.
    fn common_marks(&self, known: u64, sealed_pairs: u64) -> Result<(u64, u64), RankError> {
        if self.training.group.world() == 1 {
            return Ok((known, sealed_pairs));
        }
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let said = Tensor::f_from_slice(&[-signed(known), signed(sealed_pairs)])
            .and_then(|said| said.f_to_device(self.training.plan.device))
            .map_err(RankError::retryable)?;
        self.training.group.all_reduce(&said, ReduceOp::Maximum, COLLECTIVE_TIMEOUT).map_err(of_group)?;
        let said =
            said.f_to_device(Device::Cpu).and_then(Vec::<i64>::try_from).map_err(RankError::retryable)?;
        match *said.as_slice() {
            [least, pairs] => Ok((least.unsigned_abs(), pairs.unsigned_abs())),
            _ => Err(RankError::Retryable("what the gang knows of marks cannot be read".into())),
        }
    }

    /// What the gang does next: the largest of all ranks' votes, the same on all. On the way they see that they have skipped
    /// the same number of steps: ranks of unlike processors might round a norm to either side of what is finite.
    fn agree(&self, waits: bool, starved: bool, marks: bool) -> Result<Vote, RankError> {
        let mine = match (self.training.drain.is_cancelled(), marks, starved, waits) {
            (true, _, _, _) => Vote::Drain,
            (false, true, _, _) => Vote::Marks,
            (false, false, true, _) => Vote::Repeat,
            (false, false, false, true) => Vote::Wait,
            (false, false, false, false) => Vote::Ready,
        };
        if self.training.group.world() == 1 {
            return Ok(mine);
        }
        self.enter(RankPhase::AllReduce);
        let skipped = i64::try_from(self.training.restored.history.skipped()).unwrap_or(i64::MAX);
        let votes = Tensor::f_from_slice(&[mine as i64, skipped, -skipped])
            .and_then(|votes| votes.f_to_device(self.training.plan.device))
            .map_err(RankError::retryable)?;
        self.training.group.all_reduce(&votes, ReduceOp::Maximum, COLLECTIVE_TIMEOUT).map_err(of_group)?;
        let votes = votes.f_to_device(Device::Cpu).and_then(Vec::<i64>::try_from);
        let most = agreed(&votes.map_err(RankError::retryable)?)?;
        Vote::ALL
            .into_iter()
            .find(|vote| *vote as i64 == most)
            .ok_or_else(|| RankError::Retryable(format!("the gang voted for {most}, which is no vote")))
    }

    /// Leaves the gradients of the global batch in the buckets; returns its mean loss. Both are sums over the ranks: the
    /// weights of the micro-batches make means of them.
    fn reduced_gradients(&mut self, micros: &[MicroBatch]) -> Result<f64, RankError> {
        let group = self.training.group.clone();
        let alone = group.world() == 1;
        self.enter(RankPhase::Forward);
        let progress = self.training.progress.clone();
        let mut pending: Vec<PendingReduce> = Vec::new();
        let mut failure: Option<CollectiveError> = None;
        let outcomes = self.training.restored.train_step.gradients(
            micros,
            Some(&mut |_, gradients: &Tensor| {
                pulse::enter(&progress, RankPhase::Backward);
                if alone {
                    return Ok(());
                }
                match group.all_reduce_async(gradients, ReduceOp::Sum, COLLECTIVE_TIMEOUT) {
                    Ok(reduce) => {
                        pending.push(reduce);
                        Ok(())
                    }
                    Err(error) => {
                        failure = Some(error.clone());
                        Err(error.into())
                    }
                }
            }),
        );
        if let Some(error) = failure {
            return Err(of_group(error));
        }
        let outcomes = outcomes.map_err(RankError::retryable)?;
        let backward = self.training.restored.train_step.take_pass_times().backward;
        self.meter.end_with(Phase::Forward, Phase::Backward, backward, Instant::now());
        let loss =
            weighted_loss(micros, outcomes.iter().map(|outcome| &outcome.loss), self.training.plan.device)
                .map_err(RankError::retryable)?;
        if !alone {
            self.enter(RankPhase::AllReduce);
            pending.push(group.all_reduce_async(&loss, ReduceOp::Sum, COLLECTIVE_TIMEOUT).map_err(of_group)?);
        }
        for reduce in pending {
            reduce.wait(COLLECTIVE_TIMEOUT).map_err(of_group)?;
        }
        let loss = number(&loss)?;
        self.meter.end(Phase::AllReduce, Instant::now());
        Ok(loss)
    }

    fn report(&self, record: &StepRecord, waited_seconds: f64) {
        let skipped = self.training.restored.history.skipped();
        let median = self.meter.median_step();
        self.training.progress.send_modify(|progress| {
            *progress = RankProgress {
                // The loss is there; what comes next is its update.
                phase: RankPhase::Optimizer.into(),
                moves: progress.moves + 1,
                step_seconds: median.whole,
                own_seconds: median.own,
                step: record.step,
                loss: record.loss,
                grad_norm: record.grad_norm,
                learning_rate: record.learning_rate,
                samples_per_sec: self.meter.samples_per_sec(),
                data_wait_fraction: (waited_seconds / record.seconds.max(1e-9)).clamp(0.0, 1.0),
                waiting_for: String::new(),
                replay_passes: self.training.order.borrow().replay_passes.all().len() as u64,
                phases: Some(self.meter.phases()),
                steps_done: self.meter.steps(),
                operations_per_sec: self.meter.operations_per_sec(),
                skipped_steps: skipped,
                skipped_steps_done: skipped - self.skipped_before,
                failed_saves: progress.failed_saves,
            }
        });
        tracing::debug!(step = record.step, loss = record.loss, grad_norm = record.grad_norm, "step");
    }

    /// Says where this rank is.
    fn enter(&self, phase: RankPhase) {
        pulse::enter(&self.training.progress, phase);
    }

    fn check_stop(&self) -> Result<(), RankError> {
        if self.training.stop.is_cancelled() { Err(told_to_stop()) } else { Ok(()) }
    }

    /// Starts a save when one is due and none is under way; notices the outcome of the one before.
    fn save_if_due(&mut self) -> Result<(), RankError> {
        let plan = &self.training.plan;
        let step = self.training.restored.step;
        if plan.gang.rank != 0 || step == plan.stage.train.steps {
            return Ok(());
        }
        self.save_due |= step.is_multiple_of(plan.spec.checkpoints.every.max(1));
        if let Some(under_way) = &mut self.saving {
            match under_way.outcome.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
                Ok(outcome) => self.settle_save(outcome)?,
                Err(oneshot::error::TryRecvError::Closed) => self.settle_save(Err(saver_ended()))?,
            }
        }
        self.save_due |= self.unsaved.as_ref().is_some_and(|unsaved| unsaved.is_due(Instant::now()));
        if self.save_due {
            self.enter(RankPhase::Saving);
            let (outcome, hold) = self.start_save(false)?;
            (self.saving, self.hold) =
                (Some(SaveUnderWay { step, began: Instant::now(), outcome }), Some(hold));
            self.save_due = false;
        }
        Ok(())
    }

    /// Takes the outcome of the save that was under way. One that failed is logged where it failed, and tried again.
    fn settle_save(&mut self, outcome: Result<(), RankError>) -> Result<(), RankError> {
        let saved = self.saving.take();
        match outcome {
            Ok(()) => self.unsaved = None,
            Err(RankError::Stopped(reason)) => return Err(RankError::Stopped(reason)),
            Err(error) => {
                let step = saved.map_or(self.training.restored.step, |saved| saved.step);
                let before = self.unsaved.take();
                self.unsaved = Some(Unsaved::after(before, step, error.to_string(), Instant::now()));
                self.training.progress.send_modify(|progress| progress.failed_saves += 1);
            }
        }
        Ok(())
    }

    /// Why the gang may not go on before a checkpoint is saved, if so. Meanwhile it is tried, for [`INPUT_WAIT`] at most.
    fn held_for_save(&mut self, step: u64) -> Result<Option<String>, RankError> {
        let plan = &self.training.plan;
        let (every, last) = (plan.spec.checkpoints.every.max(1), step == plan.stage.train.steps);
        if plan.gang.rank != 0 || last {
            return Ok(None);
        }
        let deadline = Instant::now() + INPUT_WAIT;
        loop {
            let now = Instant::now();
            let stuck = self.saving.as_ref().filter(|saving| saving.is_stuck(step, every, now));
            let verdict = match (&mut self.unsaved, stuck) {
                (Some(unsaved), _) => unsaved.at_step(step, every, now),
                (None, Some(saving)) => unsaved::of_slow(saving.step, now.duration_since(saving.began)),
                (None, None) => Verdict::GoOn,
            };
            let reason = match verdict {
                Verdict::GoOn => return Ok(None),
                Verdict::GiveUp(reason) => return Err(RankError::Retryable(reason)),
                Verdict::Hold(reason) => reason,
            };
            self.save_if_due()?;
            match &mut self.saving {
                Some(saving) => {
                    let outcome = &mut saving.outcome;
                    let outcome = self.training.runtime.block_on(async {
                        tokio::select! {
                            () = self.training.stop.cancelled() => Some(Err(told_to_stop())),
                            outcome = tokio::time::timeout_at(deadline.into(), outcome) => {
                                outcome.ok().map(|outcome| outcome.unwrap_or_else(|_| Err(saver_ended())))
                            }
                        }
                    });
                    match outcome {
                        Some(outcome) => self.settle_save(outcome)?,
                        None => return Ok(Some(reason)),
                    }
                }
                None => {
                    self.pause(deadline.saturating_duration_since(now));
                    return Ok(Some(reason));
                }
            }
        }
    }

    /// Waits, unless it is to stop.
    fn pause(&self, wait: Duration) {
        self.training.runtime.block_on(async {
            tokio::select! {
                () = self.training.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        });
    }

    /// Saves the step that is done, unless it is saved already, and ends once every rank knows that it is.
    fn checkpoint_and_leave(mut self, first: u64, reason: String) -> Result<(), RankError> {
        let step = self.training.restored.step;
        self.enter(RankPhase::Leaving);
        if self.training.plan.gang.rank == 0 && step > first {
            self.save_step()?;
        }
        self.training.group.leave(LEAVE_TIMEOUT).map_err(of_group)?;
        Err(RankError::Drained(reason))
    }

    /// Saves the step that is done, unless it is saved already; nothing comes after it.
    fn save_step(&mut self) -> Result<(), RankError> {
        self.enter(RankPhase::Saving);
        self.training.progress.send_modify(|now| now.waiting_for = "a checkpoint, to go on elsewhere".into());
        let saved = match self.saving.take() {
            None => false,
            Some(saving) => match self.await_save(saving.outcome) {
                Err(RankError::Stopped(reason)) => return Err(RankError::Stopped(reason)),
                outcome => outcome.is_ok() && saving.step == self.training.restored.step,
            },
        };
        if saved { Ok(()) } else { self.save_now(false) }
    }

    /// Another rank is gone, and the step that was done before is still whole here as on every other: saves it, if that is for
    /// this rank to do, and else leaves time for it. So a gang that has lost a node loses one step at most.
    fn save_what_is_left(&mut self, first: u64) {
        let plan = &self.training.plan;
        let step = self.training.restored.step;
        if step <= first {
            return;
        }
        // The first rank that says that it has lost a peer ends the attempt, and with it what another saves.
        self.enter(RankPhase::Leaving);
        if !plan.may_save() {
            self.pause(SAVE_WAIT);
            return;
        }
        if plan.gang.rank != 0 && self.does_rank_0_stay() {
            return;
        }
        match self.save_step() {
            Ok(()) => tracing::info!(step, "a rank is lost, and what was trained before is saved"),
            Err(error) => tracing::warn!(step, %error, "a rank is lost, and what was trained is not saved"),
        }
    }

    /// An aborted group is one that has lost a rank, where that is why it was aborted.
    fn lost_or(&self, error: RankError) -> RankError {
        let Training { peer_lost, stop, .. } = &self.training;
        match error {
            RankError::Stopped(_) if peer_lost.is_cancelled() && !stop.is_cancelled() => {
                RankError::PeerLost("another rank of the gang is gone".into())
            }
            error => error,
        }
    }

    /// Waits for as long as the process of rank 0 is there: then rank 0 saves, or says why it cannot. Whether that is until this rank is
    /// told to stop, or has waited for long enough. The connections of a process that is killed end before it takes no new ones,
    /// so that it is looked for again.
    fn does_rank_0_stay(&self) -> bool {
        let until = Instant::now() + SAVE_WAIT;
        // A machine that stands still takes connections all the same.
        while !self.training.rank_0_lost.is_cancelled() && self.is_rank_0_in_reach() {
            if self.training.stop.is_cancelled() || Instant::now() >= until {
                return true;
            }
            self.pause(LOOK_AGAIN);
        }
        false
    }

    /// Whether the process of rank 0 takes connections.
    fn is_rank_0_in_reach(&self) -> bool {
        let Training { rank_0_at, runtime, stop, .. } = &self.training;
        let Some(rank_0_at) = *rank_0_at else { return true };
        let connect = tokio::net::TcpStream::connect(rank_0_at);
        runtime.block_on(async {
            tokio::select! {
                () = stop.cancelled() => true,
                connected = tokio::time::timeout(REACH_WAIT, connect) => matches!(connected, Ok(Ok(_))),
            }
        })
    }

    fn save_last(&mut self) -> Result<(), RankError> {
        self.enter(RankPhase::Saving);
        if self.training.plan.gang.rank != 0 {
            return Ok(());
        }
        self.training.progress.send_modify(|now| {
            now.waiting_for = "the last checkpoint to be registered".into();
            now.phases = Some(self.meter.phases());
        });
        if let Some(saving) = self.saving.take()
            && let Err(RankError::Stopped(reason)) = self.await_save(saving.outcome)
        {
            return Err(RankError::Stopped(reason));
        }
        self.save_now(true)
    }

    /// Saves a step that nothing comes after. Its tensors stay as they are: what fails is tried again.
    fn save_now(&self, last: bool) -> Result<(), RankError> {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            self.enter(RankPhase::Saving);
            // Nothing changes while this waits; the hold only has to be there.
            let (saving, _hold) = self.start_save(last)?;
            let error = match self.await_save(saving) {
                Err(error @ RankError::Retryable(_)) => error,
                outcome => return outcome,
            };
            failures += 1;
            let Some(wait) = unsaved::again(failures, began, Instant::now()) else { return Err(error) };
            self.training.progress.send_modify(|progress| {
                progress.failed_saves += 1;
                progress.waiting_for = format!("a checkpoint to be saved ({failures} tries failed): {error}");
            });
            self.pause(wait);
            self.check_stop()?;
        }
    }

    fn await_save(&self, saving: Saving) -> Result<(), RankError> {
        self.training.runtime.block_on(async {
            tokio::select! {
                () = self.training.stop.cancelled() => Err(told_to_stop()),
                outcome = saving => outcome.unwrap_or_else(|_| Err(saver_ended())),
            }
        })
    }

    /// Hands what trains, as it is now, to the saver. It may not change but through the hold.
    fn start_save(&self, last: bool) -> Result<(Saving, Hold), RankError> {
        let Training { plan, restored, .. } = &self.training;
        let params = restored.train_step.params();
        let trained = if restored.train_step.adapter().is_some() { ADAPTER_FILE } else { MODEL_FILE };
        let free_bytes = match plan.device {
            Device::Cpu => 0,
            _ => crescendo_device::cuda::memory().map_err(RankError::retryable)?.free_bytes,
        };
        let bytes = snapshot::snapshot_bytes(params, restored.ema.as_ref());
        let limits = SnapshotLimits::new(bytes, plan.device, free_bytes);
        let (hold, snapshot) =
            snapshot::take(params, &restored.optimizer, restored.ema.as_ref(), trained, limits)
                .map_err(RankError::retryable)?;
        let (done, outcome) = oneshot::channel();
        let request = SaveRequest {
            state: TrainState {
                stage: plan.stage.name.clone(),
                stage_index: plan.stage_index,
                seed: plan.spec.seed,
                generation: plan.attempt.generation,
                step: restored.step,
                next_position: restored.step * u64::from(plan.gang.global_batch),
                optimizer_steps: restored.optimizer.steps(),
                replay_passes: self.training.order.borrow().replay_passes.all().to_vec(),
                left_out: self.training.order.borrow().epochs.all().to_vec(),
            },
            snapshot,
            device: plan.device,
            history: restored.history.to_bytes(),
            last,
            done,
        };
        // There is room: the one before is done.
        self.training
            .saves
            .try_send(request)
            .map_err(|_| RankError::Retryable("the saver takes no requests".into()))?;
        Ok((outcome, hold))
    }
}

/// The outcome of a save, to come.
type Saving = oneshot::Receiver<Result<(), RankError>>;

/// A save beside the steps.
struct SaveUnderWay {
    /// Steps done, which it saves.
    step: u64,
    began: Instant,
    outcome: Saving,
}

impl SaveUnderWay {
    /// Whether it takes so long that it must be taken for one that fails, and the next is due.
    fn is_stuck(&self, step: u64, every: u64, now: Instant) -> bool {
        now.duration_since(self.began) >= unsaved::SLOWEST_SAVE && step.saturating_sub(self.step) >= every
    }
}

fn saver_ended() -> RankError {
    RankError::Retryable("the saver has ended".into())
}

/// Returns once the copying of a save is past the bucket, or there is none; adds to `held_up`.
fn wait_for_copy(
    hold: &mut Option<Hold>,
    bucket: usize,
    held_up: &mut Duration,
) -> crescendo_model::Result<()> {
    let Some(hold) = hold else { return Ok(()) };
    let held = hold.before_change(bucket)?;
    *held_up += held.waited;
    if held.lifted {
        tracing::warn!("the object store takes a checkpoint too slowly: more of it is kept in memory");
    }
    Ok(())
}

/// What a rank wants the gang to do next. The gang does the largest of its ranks' votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    /// It has its samples.
    Ready,
    Wait,
    /// Its next pair is not made yet, and the stage repeats meanwhile.
    Repeat,
    /// Its node drains.
    Drain,
    /// It knows of marks that the epoch which begins could leave out. The others may know of them or not: they say so, and then vote
    /// again. Ranks that know of none never meet this.
    Marks,
}

impl Vote {
    const ALL: [Vote; 5] = [Vote::Ready, Vote::Wait, Vote::Repeat, Vote::Drain, Vote::Marks];
}

/// The gang's vote, from the largest of all ranks' votes, counts of skipped steps, and the same counts below zero.
fn agreed(sent: &[i64]) -> Result<i64, RankError> {
    match *sent {
        [vote, most, least] if most == least.saturating_neg() => Ok(vote),
        [_, most, least] => Err(RankError::Retryable(format!(
            "some ranks have skipped {most} steps and others {}: their weights differ",
            least.saturating_neg()
        ))),
        _ => Err(RankError::Retryable("the votes of the gang cannot be read".into())),
    }
}

fn told_to_stop() -> RankError {
    RankError::Stopped("told to stop".into())
}

/// What a failure of the group means for this rank.
pub fn of_group(error: CollectiveError) -> RankError {
    let text = error.to_string();
    if error.is_aborted() {
        RankError::Stopped(text)
    } else if error.is_peer_lost() {
        RankError::PeerLost(text)
    } else {
        RankError::Retryable(text)
    }
}

/// Σ weight · loss, one element of float32 on `device`.
fn weighted_loss<'a>(
    micros: &[MicroBatch],
    losses: impl Iterator<Item = &'a Tensor>,
    device: Device,
) -> Result<Tensor, tch::TchError> {
    tch::no_grad(|| {
        let mut sum = Tensor::f_zeros([1], (Kind::Float, device))?;
        for (micro, loss) in micros.iter().zip(losses) {
            sum = sum.f_add(&loss.f_mul_scalar(micro.weight)?)?;
        }
        Ok(sum)
    })
}

fn number(tensor: &Tensor) -> Result<f64, RankError> {
    tensor.f_double_value(&vec![0; tensor.dim()]).map_err(RankError::retryable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_have_skipped_other_steps_part_before_they_vote() {
        assert_eq!(agreed(&[2, 5, -5]), Ok(2));
        let Err(RankError::Retryable(reason)) = agreed(&[2, 5, -4]) else {
            unreachable!("one rank has skipped five steps and another four")
        };
        assert_eq!(reason, "some ranks have skipped 5 steps and others 4: their weights differ");
        assert!(agreed(&[2]).is_err());
    }
}
