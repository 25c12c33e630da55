//! The training loop of one rank. Runs on the thread named `train`, the only one that computes with tensors.
//!
//! A step: agree with the other ranks that everyone has its samples; forward and backward, micro-batch by micro-batch,
//! each bucket's all-reduce starting as soon as its gradients are final; clip; AdamW. Every rank then holds the same
//! weights.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crescendo_collective::{CollectiveError, PendingReduce, ProcessGroup, ReduceOp};
use crescendo_core::spec::OnStarvation;
use crescendo_dataset::checkpoint::{ADAPTER_FILE, MODEL_FILE};
use crescendo_model::training::MicroBatch;
use crescendo_model::training::snapshot::{self, Hold, SnapshotLimits};
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::RankProgress;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::RankError;
use super::batch::{Draws, Sample, SampleShape, Text, micro_batches};
use super::data::{Delivery, SampleOrder};
use super::history::StepRecord;
use super::plan::RankPlan;
use super::position_log::PositionLog;
use super::positions::ReplayPass;
use super::restore::Restored;
use super::save::SaveRequest;
use super::step_profiler::{self, Phase, Step, StepProfiler};
use super::train_state::TrainState;

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
/// Tries to save a step that nothing comes after.
const SAVE_TRIES: u32 = 6;
/// How long a rank waits for its samples before it tells the others that it has to wait.
const SAMPLES_WAIT: Duration = Duration::from_secs(1);

/// Everything that the loop works with.
pub struct Training {
    pub plan: RankPlan,
    pub group: ProcessGroup,
    pub restored: Restored,
    pub deliveries: mpsc::Receiver<Result<Delivery, RankError>>,
    /// What the data client waits for.
    pub data_waits_for: watch::Receiver<String>,
    /// Number of the order by which the data client has no next pair.
    pub data_starved: watch::Receiver<Option<u64>>,
    /// The order of the pairs that the data client follows.
    pub order: watch::Sender<SampleOrder>,
    /// Where each step's positions and pairs are noted, for tests.
    pub position_log: Option<PositionLog>,
    pub progress: watch::Sender<RankProgress>,
    pub saves: mpsc::Sender<SaveRequest>,
    pub stop: CancellationToken,
    /// Cancelled when the gang is to save a checkpoint and leave at the next step boundary.
    pub drain: CancellationToken,
    pub runtime: Handle,
}

/// Ends when every step is done and, on rank 0, the last checkpoint is registered; or at a step boundary that all ranks
/// agree on, with that step saved, when one of them drains.
pub fn run(training: Training) -> Result<(), RankError> {
    let plan = &training.plan;
    let draws = Draws {
        job_seed: plan.spec.seed,
        stage_index: plan.stage_index,
        times: plan.times()?,
        text_dropout: plan.stage.train.text_dropout,
    };
    let mut state = Loop {
        shape: SampleShape::new(&plan.config(), plan.stage.references),
        draws,
        ready: Vec::new(),
        empty_text: None,
        noted: Vec::new(),
        saving: None,
        hold: None,
        save_due: false,
        meter: StepProfiler::new(Instant::now()),
        skipped_before: training.restored.history.skipped(),
        training,
    };
    let skipped = state.skipped_before;
    state.training.progress.send_modify(|progress| progress.skipped_steps = skipped);
    state.training.restored.train_step.time_passes();
    let first = state.training.restored.step;
    let steps = state.training.plan.stage.train.steps;
    for step in first..steps {
        match state.step(step) {
            Err(RankError::Drained(reason)) => return state.checkpoint_and_leave(first, reason),
            outcome => outcome?,
        }
    }
    if let Err(error) = state.training.group.leave(COLLECTIVE_TIMEOUT) {
        // The last step is done all the same.
        tracing::warn!(%error, "the ranks did not leave their group together; what was trained is saved all the same");
    }
    state.save_last()
}

struct Loop {
    training: Training,
    shape: SampleShape,
    draws: Draws,
    /// Samples of the next step that have come.
    ready: Vec<Sample>,
    empty_text: Option<Text>,
    /// Positions and log indices of `ready`.
    noted: Vec<(u64, u64)>,
    /// Step of the save under way, and its outcome.
    saving: Option<(u64, Saving)>,
    /// Of the save under way, as long as its tensors are not all copied.
    hold: Option<Hold>,
    /// A save was due while another was under way.
    save_due: bool,
    meter: StepProfiler,
    /// Skipped steps that the checkpoint had.
    skipped_before: u64,
}

impl Loop {
    /// Trains step `step` (from 0).
    fn step(&mut self, step: u64) -> Result<(), RankError> {
        let began = Instant::now();
        let _span = is_traced(step).then(|| {
            tracing::info_span!(target: trace::TARGET, "step", step = trace::number(step + 1)).entered()
        });
        self.check_stop()?;
        let waited = self.await_samples(step)?;
        // The rest of that time is mostly for ranks that are behind, as at the end of the backward pass.
        self.meter.end_with(Phase::AllReduce, Phase::DataWait, waited, Instant::now());
        let samples = std::mem::take(&mut self.ready);
        let noted = std::mem::take(&mut self.noted);
        let train = &self.training.plan.stage.train;
        let (micro_batch, global_batch) = (train.micro_batch as usize, train.global_batch);
        let micros =
            micro_batches(&samples, micro_batch, global_batch, &self.draws, self.training.plan.device)?;
        let loss = self.reduced_gradients(&micros)?;
        let plan = &self.training.plan;
        let operations = step_profiler::operations(&plan.config(), &micros, plan.adapter_rank());
        let train = &plan.stage.train;
        let restored = &mut self.training.restored;
        let norm =
            restored.train_step.params_mut().clip(Some(train.max_grad_norm)).map_err(RankError::retryable)?;
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
        let held_up = if skipped {
            self.skip(&record)?;
            Duration::ZERO
        } else {
            self.update(rate)?
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

    /// The optimizer's step, and the average's. A bucket that a checkpoint still copies is waited for: for how long, in all.
    fn update(&mut self, rate: f64) -> Result<Duration, RankError> {
        let restored = &mut self.training.restored;
        let mut held_up = Duration::ZERO;
        let mut before = |bucket| wait_for_copy(&mut self.hold, bucket, &mut held_up);
        restored
            .optimizer
            .step_after(restored.train_step.params_mut(), rate, &mut before)
            .map_err(RankError::retryable)?;
        // Every bucket was waited for.
        self.hold = None;
        if let Some(ema) = &mut restored.ema {
            ema.update(restored.train_step.params()).map_err(RankError::retryable)?;
        }
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
        restored.train_step.params_mut().zero_grads().map_err(RankError::retryable)
    }

    /// Fills `ready` with the step's samples, and returns once every rank has its own: the time for which one of them had to
    /// wait for pairs. Making tensors of what has come is not waiting, nor is meeting ranks that are behind in computing.
    fn await_samples(&mut self, step: u64) -> Result<Duration, RankError> {
        let mut positions = self.training.plan.gang.positions(step);
        let needed = self.training.plan.gang.per_rank() as usize;
        let mut reported = false;
        let mut waited = Duration::ZERO;
        loop {
            let (round, waited_before) = (Instant::now(), waited);
            while self.ready.len() < needed {
                match self.next_delivery(&mut waited)? {
                    Some(Delivery::EmptyText(text)) => {
                        let text = Text::new(&text, &self.shape)
                            .map_err(|reason| RankError::Permanent(format!("empty prompt: {reason}")))?;
                        self.empty_text = Some(text);
                    }
                    // What was under way when the order changed.
                    Some(Delivery::Pair { order, .. }) if order != self.training.order.borrow().number => {}
                    Some(Delivery::Pair { position, pair, .. }) => {
                        let mut sample = Sample::new(position, &pair, &self.shape)?;
                        if positions.next() != Some(sample.position()) {
                            return Err(RankError::Retryable(format!(
                                "position {position} came out of order"
                            )));
                        }
                        if self.draws.drops_text(position)
                            && let Some(empty) = &self.empty_text
                        {
                            sample.drop_text(empty);
                        }
                        self.ready.push(sample);
                        self.noted.push((position, pair.index));
                    }
                    None => break,
                }
            }
            let waits = self.ready.len() < needed;
            let replay_pass = self.replay_pass(step);
            let number = self.training.order.borrow().number;
            let starved = waits && *self.training.data_starved.borrow() == Some(number);
            match self.agree(waits, starved && replay_pass.is_some())? {
                Vote::Ready => return Ok(waited),
                Vote::Wait => waited = waited_before + round.elapsed(),
                Vote::Drain => return Err(RankError::Drained(format!("after step {step}"))),
                Vote::Repeat => {
                    self.begin_replay_pass(step, replay_pass)?;
                    positions = self.training.plan.gang.positions(step);
                    continue;
                }
            }
            self.check_stop()?;
            let reason = match self.training.data_waits_for.borrow().as_str() {
                "" if waits => "pairs from the curator".to_owned(),
                "" => "the data of another rank".to_owned(),
                reason => reason.to_owned(),
            };
            if !reported {
                tracing::info!(step = step + 1, waiting_for = reason, "waiting");
                reported = true;
            }
            self.training.progress.send_modify(|progress| progress.waiting_for = reason);
        }
    }

    /// The next delivery, or nothing within [`SAMPLES_WAIT`]; adds to `waited`.
    fn next_delivery(&mut self, waited: &mut Duration) -> Result<Option<Delivery>, RankError> {
        let Training { runtime, deliveries, stop, .. } = &mut self.training;
        // What has come already is not waited for.
        if let Ok(delivery) = deliveries.try_recv() {
            return delivery.map(Some);
        }
        let asked = Instant::now();
        let delivery = runtime.block_on(async {
            tokio::select! {
                () = stop.cancelled() => Err(told_to_stop()),
                delivery = tokio::time::timeout(SAMPLES_WAIT, deliveries.recv()) => match delivery {
                    Ok(Some(delivery)) => delivery.map(Some),
                    Ok(None) => Err(RankError::Retryable("the data client has ended".into())),
                    Err(_) => Ok(None),
                },
            }
        });
        *waited += asked.elapsed();
        delivery
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
        self.ready.clear();
        self.noted.clear();
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

    /// What the gang does next: the largest of all ranks' votes, the same on all. On the way they see that they have skipped
    /// the same number of steps: ranks of unlike processors might round a norm to either side of what is finite.
    fn agree(&self, waits: bool, starved: bool) -> Result<Vote, RankError> {
        let mine = match (self.training.drain.is_cancelled(), starved, waits) {
            (true, _, _) => Vote::Drain,
            (false, true, _) => Vote::Repeat,
            (false, false, true) => Vote::Wait,
            (false, false, false) => Vote::Ready,
        };
        if self.training.group.world() == 1 {
            return Ok(mine);
        }
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
        let mut pending: Vec<PendingReduce> = Vec::new();
        let mut failure: Option<CollectiveError> = None;
        let outcomes = self.training.restored.train_step.gradients(
            micros,
            Some(&mut |_, gradients: &Tensor| {
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
        self.training.progress.send_replace(RankProgress {
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
        });
        tracing::debug!(step = record.step, loss = record.loss, grad_norm = record.grad_norm, "step");
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
        if let Some((_, saving)) = &mut self.saving {
            match saving.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
                Ok(Err(RankError::Stopped(reason))) => return Err(RankError::Stopped(reason)),
                // A save that failed is logged where it failed; the next one is another try.
                Ok(_) | Err(oneshot::error::TryRecvError::Closed) => self.saving = None,
            }
        }
        if self.save_due {
            let (saving, hold) = self.start_save(false)?;
            (self.saving, self.hold) = (Some((step, saving)), Some(hold));
            self.save_due = false;
        }
        Ok(())
    }

    /// Saves the step that is done, unless it is saved already, and ends once every rank knows that it is.
    fn checkpoint_and_leave(mut self, first: u64, reason: String) -> Result<(), RankError> {
        let step = self.training.restored.step;
        if self.training.plan.gang.rank == 0 && step > first {
            self.training
                .progress
                .send_modify(|now| now.waiting_for = "a checkpoint, to go on elsewhere".into());
            let saved = match self.saving.take() {
                None => false,
                Some((of, saving)) => match self.await_save(saving) {
                    Err(RankError::Stopped(reason)) => return Err(RankError::Stopped(reason)),
                    outcome => outcome.is_ok() && of == step,
                },
            };
            if !saved {
                self.save_now(false)?;
            }
        }
        self.training.group.leave(LEAVE_TIMEOUT).map_err(of_group)?;
        Err(RankError::Drained(reason))
    }

    fn save_last(&mut self) -> Result<(), RankError> {
        if self.training.plan.gang.rank != 0 {
            return Ok(());
        }
        self.training.progress.send_modify(|now| {
            now.waiting_for = "the last checkpoint to be registered".into();
            now.phases = Some(self.meter.phases());
        });
        if let Some((_, saving)) = self.saving.take()
            && let Err(RankError::Stopped(reason)) = self.await_save(saving)
        {
            return Err(RankError::Stopped(reason));
        }
        self.save_now(true)
    }

    /// Saves a step that nothing comes after. Its tensors stay as they are: what fails is tried again.
    fn save_now(&self, last: bool) -> Result<(), RankError> {
        let mut failures = 0;
        loop {
            // Nothing changes while this waits; the hold only has to be there.
            let (saving, _hold) = self.start_save(last)?;
            match self.await_save(saving) {
                Err(RankError::Retryable(reason)) if failures + 1 < SAVE_TRIES => {
                    failures += 1;
                    tracing::warn!(failures, reason, "saving again");
                    let delay = Backoff::default().delay(failures, random());
                    self.training.runtime.block_on(async {
                        tokio::select! {
                            () = self.training.stop.cancelled() => {}
                            () = tokio::time::sleep(delay) => {}
                        }
                    });
                    self.check_stop()?;
                }
                outcome => return outcome,
            }
        }
    }

    fn await_save(&self, saving: Saving) -> Result<(), RankError> {
        self.training.runtime.block_on(async {
            tokio::select! {
                () = self.training.stop.cancelled() => Err(told_to_stop()),
                outcome = saving => outcome.unwrap_or_else(|_| Err(RankError::Retryable("the saver has ended".into()))),
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
}

impl Vote {
    const ALL: [Vote; 4] = [Vote::Ready, Vote::Wait, Vote::Repeat, Vote::Drain];
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
