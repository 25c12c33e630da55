//! Makes the tensors of the next steps while the device trains: checks pairs, stacks them, draws their noise and, for a GPU, pins
//! their memory, on a thread of its own.
//!
//! ```text
//!   data client ──pairs──▶ prefetching thread ──a step's micro-batches──▶ training thread
//!                                  └──"there is no next pair"───────────────────┘
//! ```
//!
//! At most [`STEPS_AHEAD`] finished steps wait, and one is being made.

use crescendo_model::training::MicroBatch;
use tch::Device;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::RankError;
use super::batch::{Draws, Sample, SampleShape, Text, micro_batches};
use super::data::{Delivery, SampleOrder};
use super::positions::GangShape;

/// Steps that may be finished before they are due.
pub const STEPS_AHEAD: usize = 1;

/// What a rank trains on in one step.
#[derive(Debug)]
pub struct StepInput {
    /// Number of the order that the pairs were fetched by.
    pub order: u64,
    pub step: u64,
    /// Positions and log indices.
    pub noted: Vec<(u64, u64)>,
    /// On the CPU.
    pub micros: Vec<MicroBatch>,
}

/// What the thread works with.
#[derive(Debug)]
pub struct Prefetcher {
    pub gang: GangShape,
    pub micro_batch: usize,
    pub shape: SampleShape,
    pub draws: Draws,
    /// For which memory is pinned.
    pub device: Device,
    pub deliveries: mpsc::Receiver<Result<Delivery, RankError>>,
    /// The order of the pairs that the data client follows.
    pub order: watch::Receiver<SampleOrder>,
    /// Number of the order by which the data client has no next pair.
    pub data_starved: watch::Receiver<Option<u64>>,
    /// The same, once everything that had come before is made.
    pub starved: watch::Sender<Option<u64>>,
    pub out: mpsc::Sender<Result<StepInput, RankError>>,
    pub stop: CancellationToken,
}

/// What has come of the step that is being gathered.
struct Gathered {
    order: u64,
    step: u64,
    samples: Vec<Sample>,
    noted: Vec<(u64, u64)>,
    empty_text: Option<Text>,
}

impl Prefetcher {
    /// Until there are no more deliveries, nobody takes what is made, or `stop`. Blocks.
    pub fn run(mut self, runtime: &Handle) {
        let Err(error) = self.gather(runtime) else { return };
        // A closed channel means that training has ended already.
        let _ = runtime.block_on(self.out.send(Err(error)));
    }

    fn gather(&mut self, runtime: &Handle) -> Result<(), RankError> {
        let SampleOrder { number, first_step, .. } = *self.order.borrow_and_update();
        let mut gathered = Gathered {
            order: number,
            step: first_step,
            samples: Vec::new(),
            noted: Vec::new(),
            empty_text: None,
        };
        while let Some(delivery) = self.next_delivery(runtime) {
            self.follow(&mut gathered);
            self.take(&mut gathered, delivery?)?;
            if gathered.samples.len() == self.gang.share() as usize {
                let input = self.make(&mut gathered)?;
                let sent = runtime.block_on(async {
                    tokio::select! {
                        () = self.stop.cancelled() => false,
                        sent = self.out.send(Ok(input)) => sent.is_ok(),
                    }
                });
                if !sent {
                    break;
                }
            }
        }
        Ok(())
    }

    /// None when there will be none any more.
    fn next_delivery(&mut self, runtime: &Handle) -> Option<Result<Delivery, RankError>> {
        loop {
            // Asked before it is looked: what was sent before the client had no more has come by then.
            let starved = *self.data_starved.borrow_and_update();
            match self.deliveries.try_recv() {
                Ok(delivery) => {
                    self.starved.send_if_modified(|now| now.take().is_some());
                    return Some(delivery);
                }
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            self.starved.send_if_modified(|now| std::mem::replace(now, starved) != starved);
            let (deliveries, stop, data_starved) = (&mut self.deliveries, &self.stop, &mut self.data_starved);
            let next = runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => Some(None),
                    delivery = deliveries.recv() => Some(delivery),
                    // A client that has ended sends nothing more: the channel tells.
                    Ok(()) = data_starved.changed() => None,
                }
            });
            if let Some(delivery) = next {
                self.starved.send_if_modified(|now| now.take().is_some());
                return delivery;
            }
        }
    }

    /// Begins anew where the order has changed.
    fn follow(&mut self, gathered: &mut Gathered) {
        let SampleOrder { number, first_step, .. } = *self.order.borrow_and_update();
        if number != gathered.order {
            (gathered.order, gathered.step) = (number, first_step);
            gathered.samples.clear();
            gathered.noted.clear();
        }
    }

    fn take(&self, gathered: &mut Gathered, delivery: Delivery) -> Result<(), RankError> {
        match delivery {
            Delivery::EmptyText(text) => {
                let text = Text::new(&text, &self.shape)
                    .map_err(|reason| RankError::Permanent(format!("empty prompt: {reason}")))?;
                gathered.empty_text = Some(text);
            }
            // What was under way when the order changed.
            Delivery::Pair { order, .. } if order != gathered.order => {}
            Delivery::Pair { position, pair, .. } => {
                let mut sample = Sample::new(position, &pair, &self.shape)?;
                let due = self.gang.positions(gathered.step).nth(gathered.samples.len());
                if due != Some(position) {
                    return Err(RankError::Retryable(format!("position {position} came out of order")));
                }
                if self.draws.drops_text(position)
                    && let Some(empty) = &gathered.empty_text
                {
                    sample.drop_text(empty);
                }
                gathered.samples.push(sample);
                gathered.noted.push((position, pair.index));
            }
        }
        Ok(())
    }

    fn make(&self, gathered: &mut Gathered) -> Result<StepInput, RankError> {
        let samples = std::mem::take(&mut gathered.samples);
        let micros = micro_batches(&samples, self.micro_batch, self.gang.global_batch, &self.draws)?;
        let micros = match self.device {
            Device::Cpu => micros,
            device => micros
                .iter()
                .map(|micro| micro.pinned(device))
                .collect::<Result<_, _>>()
                .map_err(RankError::retryable)?,
        };
        let input = StepInput {
            order: gathered.order,
            step: gathered.step,
            noted: std::mem::take(&mut gathered.noted),
            micros,
        };
        gathered.step += 1;
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crescendo_model::randomness::TimeDistribution;
    use crescendo_proto::v1::{EncodedPair, EncodedText};

    use super::super::batch::to_wire;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct World {
        runtime: tokio::runtime::Runtime,
        deliveries: mpsc::Sender<Result<Delivery, RankError>>,
        order: watch::Sender<SampleOrder>,
        data_starved: watch::Sender<Option<u64>>,
        starved: watch::Receiver<Option<u64>>,
        made: mpsc::Receiver<Result<StepInput, RankError>>,
        thread: std::thread::JoinHandle<()>,
    }

    /// One rank, two pairs a step, from step 3 on.
    fn world() -> World {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (deliveries, deliveries_out) = mpsc::channel(16);
        let (order, order_out) = watch::channel(SampleOrder { first_step: 3, ..SampleOrder::default() });
        let (data_starved, data_starved_out) = watch::channel(None);
        let (starved_in, starved) = watch::channel(None);
        let (out, made) = mpsc::channel(STEPS_AHEAD);
        let prefetcher = Prefetcher {
            gang: GangShape::new(0, 1, 2).unwrap(),
            micro_batch: 2,
            shape: SampleShape { latent_channels: 2, text_width: 3, pooled_width: 4, references: 0 },
            draws: Draws {
                job_seed: 1,
                stage_index: 0,
                times: TimeDistribution::LogitNormal { mean: 0.0, std: 1.0 },
                text_dropout: 0.0,
            },
            device: Device::Cpu,
            deliveries: deliveries_out,
            order: order_out,
            data_starved: data_starved_out,
            starved: starved_in,
            out,
            stop: CancellationToken::new(),
        };
        let handle = runtime.handle().clone();
        let thread = std::thread::spawn(move || prefetcher.run(&handle));
        World { runtime, deliveries, order, data_starved, starved, made, thread }
    }

    fn pair(position: u64, order: u64) -> Delivery {
        let pair = EncodedPair {
            index: 100 + position,
            target: Some(to_wire(&[0.5; 8], &[2, 2, 2])),
            text: Some(EncodedText {
                tokens: Some(to_wire(&[0.0; 3], &[1, 3])),
                pooled: Some(to_wire(&[0.0; 4], &[4])),
            }),
            ..EncodedPair::default()
        };
        Delivery::Pair { position, pair: Box::new(pair), order }
    }

    impl World {
        fn deliver(&self, position: u64, order: u64) {
            self.deliveries.blocking_send(Ok(pair(position, order))).unwrap();
        }

        fn next(&mut self) -> Option<Result<StepInput, RankError>> {
            let next = async { tokio::time::timeout(PATIENCE, self.made.recv()).await };
            self.runtime.block_on(next).expect("in time")
        }

        /// Waits until the thread has said of this order that it has no next pair.
        fn await_starved(&mut self, order: Option<u64>) {
            let said = self.starved.wait_for(|said| *said == order);
            let said = async { tokio::time::timeout(PATIENCE, said).await.map(|said| said.map(|_| ())) };
            self.runtime.block_on(said).expect("in time").expect("the thread runs");
        }
    }

    #[test]
    fn steps_are_made_in_order_and_the_end_is_told() {
        let mut world = world();
        (6..10).for_each(|position| world.deliver(position, 0));
        for step in 3..5 {
            let input = world.next().unwrap().unwrap();
            assert_eq!((input.order, input.step), (0, step));
            assert_eq!(input.noted, [(2 * step, 100 + 2 * step), (2 * step + 1, 101 + 2 * step)]);
            assert_eq!(input.micros.iter().map(MicroBatch::samples).sum::<i64>(), 2);
        }
        world.deliveries = mpsc::channel(1).0;
        assert!(world.next().is_none());
        world.thread.join().unwrap();
    }

    #[test]
    fn a_new_order_begins_at_its_first_step() {
        let mut world = world();
        // Half a step by the old order, which nothing comes of.
        world.deliver(6, 0);
        world.data_starved.send_replace(Some(0));
        world.await_starved(Some(0));
        world.order.send_modify(|order| order.number = 1);
        world.deliver(7, 0);
        world.deliver(6, 1);
        world.deliver(7, 1);
        let input = world.next().unwrap().unwrap();
        assert_eq!((input.order, input.step, input.noted.len()), (1, 3, 2));
    }

    #[test]
    fn starved_is_said_only_once_all_that_came_is_made() {
        let mut world = world();
        world.data_starved.send_replace(Some(0));
        world.await_starved(Some(0));
        // What comes after all is no longer missing.
        world.data_starved.send_replace(None);
        world.deliver(6, 0);
        world.await_starved(None);
    }

    #[test]
    fn what_comes_out_of_order_ends_it() {
        let mut world = world();
        world.deliver(7, 0);
        let error = world.next().unwrap().unwrap_err();
        assert_eq!(error, RankError::Retryable("position 7 came out of order".into()));
        world.thread.join().unwrap();
    }
}
