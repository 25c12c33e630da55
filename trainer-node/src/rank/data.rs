//! Pairs on their way from the curators to the training thread, in the order in which this rank trains on them.
//!
//! One stream at a time; when it breaks, or its curator serves the stage no more, the next curator goes on at the first pair that has not come. What is asked
//! for and what has come but is not consumed are both bounded by the credits.

use std::collections::VecDeque;
use std::time::Duration;

use crescendo_core::marks::Epochs;
use crescendo_core::spec::OnStarvation;
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::tls::Dialer;
use crescendo_proto::v1::pair_service_client::PairServiceClient;
use crescendo_proto::v1::stream_pairs_request::Message as Ask;
use crescendo_proto::v1::stream_pairs_response::Message as Answer;
use crescendo_proto::v1::{
    EncodedPair, EncodedText, FetchPairs, GrantCredits, LogStatus, OpenPairs, PairsOpened,
    StreamPairsRequest, StreamPairsResponse,
};
use crescendo_proto::{MAX_REPLY_BYTES, SILENCE_LIMIT};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::RankError;
use super::positions::{GangShape, LogOrder, LogProgress, Place, ReplayPasses};

/// Limit of opening a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A curator that sends neither pair nor news for this long, although it was asked for committed pairs, is left.
const PAIR_TIMEOUT: Duration = Duration::from_secs(60);
/// Grants nothing: said so that nothing in between takes this end for dead.
const A_WORD: Ask = Ask::Grant(GrantCredits { pairs: 0 });
/// Tries that may end in a damaged shard before the job is told.
const MAX_DAMAGED: u32 = 4;

/// What the training thread gets.
#[derive(Debug)]
pub enum Delivery {
    /// Encoding of the empty prompt; comes once, first.
    EmptyText(EncodedText),
    Pair {
        position: u64,
        pair: Box<EncodedPair>,
        /// Of the order that it was fetched by: one that has been replaced meanwhile is to be thrown away.
        order: u64,
    },
}

/// The order of the pairs, as the gang has agreed on it.
#[derive(Clone, Debug, Default)]
pub struct SampleOrder {
    /// Grows with each change.
    pub number: u64,
    pub replay_passes: ReplayPasses,
    /// What is left out of which epochs.
    pub epochs: Epochs,
    /// What is delivered from here on follows this order.
    pub first_step: u64,
}

/// What the training thread and the client tell each other beside the pairs.
pub struct Signals {
    /// From the training thread.
    pub order: watch::Receiver<SampleOrder>,
    /// What is known of the pair log.
    pub log: watch::Sender<LogProgress>,
    /// Why there is no pair; empty if there is.
    pub waiting_for: watch::Sender<String>,
    /// Number of the order by which the log has no next pair yet, if that is why.
    pub starved: watch::Sender<Option<u64>>,
}

/// What to fetch.
#[derive(Clone, Debug)]
pub struct DataPlan {
    pub job_id: String,
    pub stage: String,
    pub stage_index: u32,
    pub generation: u64,
    pub job_seed: u64,
    pub gang: GangShape,
    /// First step to train, and the step to end before.
    pub steps: std::ops::Range<u64>,
    pub on_starvation: OnStarvation,
    /// How curators are reached.
    pub dialer: Dialer,
}

impl DataPlan {
    /// Pairs that may be under way or unconsumed.
    pub fn credits(&self) -> u32 {
        self.gang.share().saturating_mul(2).clamp(8, 256)
    }
}

/// Fetches until every position of the plan is delivered; errors go to `out` too.
pub async fn run(
    plan: DataPlan,
    mut curators: watch::Receiver<Vec<String>>,
    out: mpsc::Sender<Result<Delivery, RankError>>,
    signals: Signals,
    stop: CancellationToken,
) {
    let mut client = Client::new(plan, signals);
    let outcome = tokio::select! {
        () = stop.cancelled() => return,
        outcome = client.run(&mut curators, &out) => outcome,
    };
    if let Err(error) = outcome {
        // A closed channel means that training has ended already.
        let _ = out.send(Err(error)).await;
    }
}

struct Client {
    plan: DataPlan,
    order: LogOrder,
    log: LogProgress,
    /// Positions that are not asked for on the present stream, in order.
    positions: std::iter::Peekable<Positions>,
    /// Asked for and not come: position and log index.
    asked: VecDeque<(u64, u64)>,
    /// Positions to ask for before `positions`: what a broken stream left behind.
    again: VecDeque<u64>,
    empty_text_sent: bool,
    damaged: u32,
    signals: Signals,
    /// Of the order that is followed.
    order_number: u64,
}

/// The positions of one rank over its steps.
struct Positions {
    gang: GangShape,
    steps: std::ops::Range<u64>,
    current: std::ops::Range<u64>,
}

impl Iterator for Positions {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            if let Some(position) = self.current.next() {
                return Some(position);
            }
            self.current = self.gang.positions(self.steps.next()?);
        }
    }
}

impl Client {
    fn new(plan: DataPlan, mut signals: Signals) -> Self {
        let positions = Positions { gang: plan.gang, steps: plan.steps.clone(), current: 0..0 };
        let SampleOrder { number, replay_passes, epochs, .. } = signals.order.borrow_and_update().clone();
        Self {
            order: LogOrder::new(plan.job_seed, plan.stage_index, replay_passes, epochs),
            order_number: number,
            positions: positions.peekable(),
            plan,
            log: LogProgress::default(),
            asked: VecDeque::new(),
            again: VecDeque::new(),
            empty_text_sent: false,
            damaged: 0,
            signals,
        }
    }

    fn done(&mut self) -> bool {
        self.empty_text_sent
            && self.asked.is_empty()
            && self.again.is_empty()
            && self.positions.peek().is_none()
    }

    async fn run(
        &mut self,
        curators: &mut watch::Receiver<Vec<String>>,
        out: &mpsc::Sender<Result<Delivery, RankError>>,
    ) -> Result<(), RankError> {
        let (mut failures, mut choice) = (0u32, self.plan.gang.rank as usize);
        loop {
            if self.done() {
                self.say(String::new());
                // Another rank may have to wait yet, and the gang go back to an earlier pair.
                if self.signals.order.changed().await.is_err() {
                    return Ok(());
                }
                self.follow_order();
                continue;
            }
            let addresses = curators.borrow_and_update().clone();
            if addresses.is_empty() {
                self.say("a curator that serves the stage".into());
                if curators.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let address = &addresses[choice % addresses.len()];
            let delivered_before = self.first_missing();
            let status = match self.serve(address, curators, out).await {
                Ok(()) => continue,
                Err(StreamEnd::Fatal(error)) => return Err(error),
                Err(StreamEnd::Moved) => {
                    tracing::info!(
                        curator = address,
                        "the curator is not to be asked any more, going to the next"
                    );
                    self.ask_again();
                    continue;
                }
                Err(StreamEnd::Reordered) => {
                    self.follow_order();
                    continue;
                }
                Err(StreamEnd::Broken(status)) => status,
            };
            self.ask_again();
            if status.code() == Code::DataLoss {
                self.damaged += 1;
                if self.damaged >= MAX_DAMAGED {
                    return Err(RankError::Permanent(format!("pair log: {}", status.message())));
                }
            }
            failures = if self.first_missing() == delivered_before { failures.saturating_add(1) } else { 1 };
            choice += 1;
            let wait = Backoff::default().delay(failures, random());
            if failures <= 3 || failures.is_power_of_two() {
                tracing::warn!(curator = address, %status, failures, ?wait, "pair stream broke, going to the next curator");
            }
            self.say(format!("a curator ({address}: {})", status.message()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = curators.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// What a stream left behind is asked for on the next one.
    fn ask_again(&mut self) {
        while let Some((position, _)) = self.asked.pop_back() {
            self.again.push_front(position);
        }
    }

    /// Begins again where the training thread says, by its order.
    fn follow_order(&mut self) {
        let SampleOrder { number, replay_passes, epochs, first_step } =
            self.signals.order.borrow_and_update().clone();
        (self.order_number, self.order.replay_passes, self.order.epochs) = (number, replay_passes, epochs);
        self.asked.clear();
        self.again.clear();
        let steps = first_step..self.plan.steps.end;
        self.positions = Positions { gang: self.plan.gang, steps, current: 0..0 }.peekable();
        self.signals.starved.send_replace(None);
    }

    fn first_missing(&mut self) -> Option<u64> {
        self.asked
            .front()
            .map(|(position, _)| *position)
            .or_else(|| self.again.front().copied())
            .or_else(|| self.positions.peek().copied())
    }

    fn say(&self, text: String) {
        self.signals.waiting_for.send_if_modified(|now| {
            let changed = *now != text;
            *now = text;
            changed
        });
    }

    /// Opens a stream of pairs.
    async fn open(
        &self,
        address: &str,
        credits: u32,
    ) -> Result<(mpsc::Sender<StreamPairsRequest>, Streaming<StreamPairsResponse>, PairsOpened), StreamEnd>
    {
        let channel = self.plan.dialer.channel(address).map_err(|error| broken(error.to_string()))?;
        let mut client = PairServiceClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        // Room for every message that may be under way: at most one Fetch and one Grant a credit.
        let (asks, requests) = mpsc::channel(2 * credits as usize + 16);
        ask(
            &asks,
            Ask::Open(OpenPairs {
                job_id: self.plan.job_id.clone(),
                stage: self.plan.stage.clone(),
                generation: self.plan.generation,
                rank: self.plan.gang.rank,
                credits,
                takes_bytes: true,
            }),
        )?;
        let opening = async {
            let mut answers = client.stream_pairs(ReceiverStream::new(requests)).await?.into_inner();
            match answers.message().await?.and_then(|answer| answer.message) {
                Some(Answer::Opened(opened)) => Ok((answers, opened)),
                _ => Err(Status::internal("the first answer is not PairsOpened")),
            }
        };
        let (answers, opened) = tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .map_err(|_| broken(format!("no answer within {OPEN_TIMEOUT:?}")))?
            .map_err(StreamEnd::Broken)?;
        Ok((asks, answers, opened))
    }

    /// [`Client::take`]; a step may take longer than anything in between waits for a word.
    async fn take_aloud(
        &mut self,
        pair: EncodedPair,
        out: &mpsc::Sender<Result<Delivery, RankError>>,
        asks: &mpsc::Sender<StreamPairsRequest>,
        word: &mut Interval,
    ) -> Result<(), StreamEnd> {
        let mut taking = std::pin::pin!(self.take(pair, out));
        loop {
            tokio::select! {
                taken = &mut taking => return taken,
                _ = word.tick() => ask(asks, A_WORD)?,
            }
        }
    }

    /// Passes on a pair, which must be the next that was asked for.
    async fn take(
        &mut self,
        pair: EncodedPair,
        out: &mpsc::Sender<Result<Delivery, RankError>>,
    ) -> Result<(), StreamEnd> {
        let Some((position, index)) = self.asked.front().copied() else {
            return Err(broken(format!("pair {} was not asked for", pair.index)));
        };
        if pair.index != index {
            return Err(broken(format!("pair {} came instead of {index}", pair.index)));
        }
        self.say(String::new());
        let order = self.order_number;
        deliver(out, Delivery::Pair { position, pair: Box::new(pair), order }).await?;
        self.asked.pop_front();
        self.damaged = 0;
        Ok(())
    }

    /// One stream. `Ok` when all is delivered.
    async fn serve(
        &mut self,
        address: &str,
        curators: &mut watch::Receiver<Vec<String>>,
        out: &mpsc::Sender<Result<Delivery, RankError>>,
    ) -> Result<(), StreamEnd> {
        let credits = self.plan.credits();
        let (asks, mut answers, opened) = self.open(address, credits).await?;
        tracing::info!(curator = address, "pair stream is open");
        if let Some(status) = &opened.status {
            self.learn(status);
        }
        if !self.empty_text_sent {
            let text = opened.empty_text.ok_or_else(|| broken("PairsOpened has no empty text".into()))?;
            deliver(out, Delivery::EmptyText(text)).await?;
            self.empty_text_sent = true;
        }
        let mut word = interval_at(Instant::now() + SILENCE_LIMIT, SILENCE_LIMIT);
        // When the stream last went on, as far as it has anything to do.
        let (mut moved, mut nothing_asked) = (Instant::now(), true);
        loop {
            self.ask_ahead(&asks, credits)?;
            if self.done() {
                return Ok(());
            }
            if std::mem::replace(&mut nothing_asked, self.asked.is_empty()) {
                moved = Instant::now();
            }
            let answer = tokio::select! {
                _ = word.tick() => {
                    ask(&asks, A_WORD)?;
                    continue;
                }
                changed = self.signals.order.changed() => match changed {
                    Ok(()) => return Err(StreamEnd::Reordered),
                    Err(_) => return Err(StreamEnd::Fatal(RankError::Stopped("training has ended".into()))),
                },
                changed = curators.changed() => {
                    let now = curators.borrow_and_update();
                    // With none named, the one at hand is as good as any.
                    if changed.is_ok() && !now.is_empty() && !now.iter().any(|named| named == address) {
                        return Err(StreamEnd::Moved);
                    }
                    if changed.is_err() {
                        return Err(StreamEnd::Fatal(RankError::Stopped("training has ended".into())));
                    }
                    continue;
                }
                answer = answers.message() => answer,
                // With nothing asked for only a status can come, and curation may take any time; keep-alive notices a
                // dead peer.
                () = tokio::time::sleep_until(moved + PAIR_TIMEOUT), if !nothing_asked => {
                    return Err(broken(format!("no pair within {PAIR_TIMEOUT:?}")));
                }
            };
            match answer.map_err(StreamEnd::Broken)?.and_then(|answer| answer.message) {
                Some(Answer::Pair(pair)) => {
                    self.take_aloud(pair, out, &asks, &mut word).await?;
                    moved = Instant::now();
                    ask(&asks, Ask::Grant(GrantCredits { pairs: 1 }))?;
                }
                // One that says nothing new is only there to be heard.
                Some(Answer::Status(status)) => {
                    let before = self.log;
                    self.learn(&status);
                    if self.log != before {
                        moved = Instant::now();
                    }
                }
                Some(Answer::Opened(_)) => {}
                None => return Err(broken("the curator ended the stream".into())),
            }
        }
    }

    /// A curator that lags behind another takes nothing back.
    fn learn(&mut self, status: &LogStatus) {
        self.log.committed = self.log.committed.max(status.committed);
        self.log.sealed |= status.sealed;
        let log = self.log;
        self.signals.log.send_if_modified(|known| std::mem::replace(known, log) != log);
    }

    /// Asks for as many pairs as there are credits and committed pairs, neighbours in one message.
    fn ask_ahead(&mut self, asks: &mpsc::Sender<StreamPairsRequest>, credits: u32) -> Result<(), StreamEnd> {
        let mut range: Option<FetchPairs> = None;
        while self.asked.len() < credits as usize {
            let Some(position) = self.again.front().copied().or_else(|| self.positions.peek().copied())
            else {
                break;
            };
            let index = match self.order.place(position, self.log) {
                Place::At(index) => index,
                Place::Empty => {
                    return Err(StreamEnd::Fatal(RankError::Permanent(
                        "the stage's pair log is sealed without a single pair".into(),
                    )));
                }
                Place::NotYet => {
                    if self.asked.is_empty() {
                        self.starved(position)?;
                    }
                    break;
                }
            };
            if self.again.pop_front().is_none() {
                self.positions.next();
            }
            self.asked.push_back((position, index));
            self.signals.starved.send_if_modified(|starved| starved.take().is_some());
            match &mut range {
                Some(open) if open.first_index + u64::from(open.count) == index => open.count += 1,
                _ => {
                    if let Some(full) = range.replace(FetchPairs { first_index: index, count: 1 }) {
                        ask(asks, Ask::Fetch(full))?;
                    }
                }
            }
        }
        range.map_or(Ok(()), |range| ask(asks, Ask::Fetch(range)))
    }

    fn starved(&self, position: u64) -> Result<(), StreamEnd> {
        let text = format!("pair {position} of the log, which has {} so far", self.log.committed);
        match self.plan.on_starvation {
            OnStarvation::Wait => {
                self.say(text);
                Ok(())
            }
            // The gang decides together: see `train`.
            OnStarvation::Repeat => {
                self.say(text);
                self.signals.starved.send_replace(Some(self.order_number));
                Ok(())
            }
            OnStarvation::Stop => Err(StreamEnd::Fatal(RankError::Permanent(format!(
                "training has to wait for {text}, and onStarvation is stop"
            )))),
        }
    }
}

enum StreamEnd {
    /// Another curator, or the same one later, may do better.
    Broken(Status),
    /// The curators have changed, and this one is not among them any more.
    Moved,
    /// The training thread wants another order.
    Reordered,
    Fatal(RankError),
}

fn broken(reason: String) -> StreamEnd {
    StreamEnd::Broken(Status::unavailable(reason))
}

fn ask(asks: &mpsc::Sender<StreamPairsRequest>, message: Ask) -> Result<(), StreamEnd> {
    asks.try_send(StreamPairsRequest { message: Some(message) })
        .map_err(|_| broken("the curator reads no requests".into()))
}

async fn deliver(
    out: &mpsc::Sender<Result<Delivery, RankError>>,
    delivery: Delivery,
) -> Result<(), StreamEnd> {
    out.send(Ok(delivery))
        .await
        .map_err(|_| StreamEnd::Fatal(RankError::Stopped("training has ended".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(committed: u64, sealed: bool, on_starvation: OnStarvation) -> Client {
        let plan = DataPlan {
            job_id: "job".into(),
            stage: "one".into(),
            stage_index: 0,
            generation: 1,
            job_seed: 1,
            gang: GangShape::new(1, 2, 8).unwrap(),
            steps: 0..3,
            on_starvation,
            dialer: Dialer::plain(),
        };
        let signals = Signals {
            order: watch::channel(SampleOrder::default()).1,
            log: watch::channel(LogProgress::default()).0,
            waiting_for: watch::channel(String::new()).0,
            starved: watch::channel(None).0,
        };
        let mut client = Client::new(plan, signals);
        client.log = LogProgress { committed, sealed };
        client
    }

    fn asked(client: &mut Client) -> Vec<(u64, u32)> {
        let (asks, mut requests) = mpsc::channel(64);
        assert!(client.ask_ahead(&asks, 8).is_ok());
        drop(asks);
        let mut ranges = Vec::new();
        while let Ok(request) = requests.try_recv() {
            if let Some(Ask::Fetch(fetch)) = request.message {
                ranges.push((fetch.first_index, fetch.count));
            }
        }
        ranges
    }

    #[test]
    fn asks_for_its_own_positions_within_the_credits() {
        let mut client = client(100, false, OnStarvation::Wait);
        assert_eq!(asked(&mut client), [(4, 4), (12, 4)]);
        assert_eq!(asked(&mut client), []);
        client.asked.clear();
        assert_eq!(asked(&mut client), [(20, 4)]);
        client.asked.clear();
        client.empty_text_sent = true;
        assert!(client.done());
    }

    #[test]
    fn waits_for_pairs_that_are_not_committed() {
        let mut client = client(6, false, OnStarvation::Wait);
        assert_eq!(asked(&mut client), [(4, 2)]);
        client.asked.clear();
        assert_eq!(asked(&mut client), []);
        assert_eq!(*client.signals.waiting_for.borrow(), "pair 6 of the log, which has 6 so far");
        client.learn(&LogStatus { committed: 8, sealed: true });
        client.learn(&LogStatus { committed: 5, sealed: false });
        assert_eq!(asked(&mut client).first(), Some(&(6, 2)));
        assert_eq!(client.asked.len(), 8, "a sealed log is read again from the start");
    }

    #[test]
    fn a_new_order_is_followed_from_its_first_step() {
        let mut client = client(10, false, OnStarvation::Repeat);
        let (orders, order) = watch::channel(SampleOrder::default());
        client.signals.order = order;
        // Step 0 has 4 to 7; of step 1, 12 to 15, there is nothing yet.
        assert_eq!(asked(&mut client), [(4, 4)]);
        assert_eq!(*client.signals.starved.borrow(), None, "four are on their way");
        client.asked.clear();
        assert_eq!(asked(&mut client), []);
        assert_eq!(*client.signals.starved.borrow(), Some(0));
        let mut replay_passes = ReplayPasses::default();
        replay_passes.push(replay_passes.at_step(1, 8).expect("eight pairs were read"));
        let epochs = Epochs::default();
        orders.send_replace(SampleOrder { number: 1, replay_passes, epochs, first_step: 1 });
        client.follow_order();
        assert_eq!(*client.signals.starved.borrow(), None);
        asked(&mut client);
        let positions: Vec<u64> = client.asked.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions, [12, 13, 14, 15]);
        assert!(client.asked.iter().all(|(_, index)| *index < 8), "{:?}", client.asked);
    }

    #[test]
    fn starvation_ends_the_job_if_it_is_told_to() {
        let mut client = client(4, false, OnStarvation::Stop);
        let (asks, _requests) = mpsc::channel(64);
        let Err(StreamEnd::Fatal(RankError::Permanent(reason))) = client.ask_ahead(&asks, 8) else {
            unreachable!("a starved client must end")
        };
        assert!(reason.contains("pair 4 of the log"), "{reason}");
    }
}
