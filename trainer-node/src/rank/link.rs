//! A rank's session with the agent that started it.

use std::time::Duration;

use crescendo_core::marks::MarkList;
use crescendo_node::tls::Dialer;
use crescendo_proto::v1::agent_service_client::AgentServiceClient;
use crescendo_proto::v1::open_rank_session_request::Message as Up;
use crescendo_proto::v1::open_rank_session_response::Message as Down;
use crescendo_proto::v1::{
    AttemptRef, AwaitRendezvousRequest, Checkpoint, OpenRankSessionRequest, OpenRankSessionResponse,
    PublishRendezvousRequest, RankAssignment, RankCheckpoint, RankCheckpointOutcome, RankDamage, RankEnd,
    RankHello, RankProgress,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

use super::RankError;
use super::plan::mark_list;

/// Limit of reaching the agent and getting the assignment.
const ASSIGNMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the agent may stand still without the rank ending itself. Its end is another matter: the kernel then ends the
/// rank. That of the machine's other nodes is the controller's to judge, which gives a silent node up before this.
pub const AGENT_PAUSE: Duration = Duration::from_secs(120);
/// Interval of the pings by which the rank sees whether the agent still answers.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Longest time between two words to the agent.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// One wait for rank 0; repeated until [`MEETING_TIMEOUT`].
const AWAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of all ranks' start: loading base weights may take minutes, and is done before they meet.
pub const MEETING_TIMEOUT: Duration = Duration::from_secs(600);

/// Messages to the agent.
#[derive(Clone, Debug)]
pub struct Uplink {
    up: mpsc::Sender<OpenRankSessionRequest>,
}

impl Uplink {
    async fn send(&self, message: Up) -> Result<(), RankError> {
        let request = OpenRankSessionRequest { message: Some(message) };
        match tokio::time::timeout(AGENT_PAUSE, self.up.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(RankError::Retryable("the agent takes no messages".into())),
        }
    }

    pub async fn checkpoint(&self, checkpoint: Checkpoint, write_seconds: f64) -> Result<(), RankError> {
        self.send(Up::Checkpoint(RankCheckpoint { checkpoint: Some(checkpoint), write_seconds })).await
    }

    pub async fn damage(&self, path: String, reason: String) -> Result<(), RankError> {
        self.send(Up::Damage(RankDamage { path, reason })).await
    }

    pub async fn end(&self, outcome: &Result<(), RankError>) -> Result<(), RankError> {
        let end = match outcome {
            Ok(()) => RankEnd { ok: true, ..RankEnd::default() },
            Err(error) => RankEnd {
                ok: false,
                reason: error.to_string(),
                permanent: matches!(error, RankError::Permanent(_)),
                drained: matches!(error, RankError::Drained(_)),
                peer_lost: matches!(error, RankError::PeerLost(_)),
            },
        };
        self.send(Up::End(end)).await
    }

    /// Sends progress whenever it changes, and as it is once a second where it does not, until `stop`.
    pub async fn forward_progress(
        self,
        mut progress: watch::Receiver<RankProgress>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = progress.changed() => if changed.is_err() { break },
                // The process lives, even where the thread that trains stands still.
                () = tokio::time::sleep(BEAT_INTERVAL) => {}
            }
            let now = progress.borrow_and_update().clone();
            if self.send(Up::Progress(now)).await.is_err() {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
            }
        }
        // The last step counts, however short the interval was. Asked of the value: the receiver itself calls a value that
        // nobody has seen an error once the sender is gone.
        let unseen = {
            let last = progress.borrow_and_update();
            last.has_changed().then(|| last.clone())
        };
        if let Some(last) = unseen {
            let _ = self.send(Up::Progress(last)).await;
        }
    }
}

/// Connects to the agent and gets the assignment.
pub async fn open(
    dialer: &Dialer,
    agent: &str,
    attempt: AttemptRef,
    rank: u32,
) -> Result<(Uplink, Streaming<OpenRankSessionResponse>, RankAssignment), RankError> {
    let unreachable =
        |error: &dyn std::fmt::Display| RankError::Retryable(format!("agent at {agent}: {error}"));
    // The agent that started this rank, with the same certificate: see there.
    let to_own = dialer.to_own();
    let endpoint = to_own.endpoint(agent).map_err(|error| unreachable(&error))?;
    // A rank outlives a pause of its agent.
    let channel =
        to_own.connect(endpoint.http2_keep_alive_interval(PING_EVERY).keep_alive_timeout(AGENT_PAUSE));
    let (up, outgoing) = mpsc::channel(16);
    let uplink = Uplink { up };
    uplink.send(Up::Hello(RankHello { attempt: Some(attempt), rank, pid: std::process::id() })).await?;
    let opening = async {
        let mut client = AgentServiceClient::new(channel);
        let mut down = client.open_rank_session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = down.message().await?.and_then(|response| response.message);
        Ok::<_, tonic::Status>((down, first))
    };
    let (down, first) = tokio::time::timeout(ASSIGNMENT_TIMEOUT, opening)
        .await
        .map_err(|_| unreachable(&format!("no assignment within {ASSIGNMENT_TIMEOUT:?}")))?
        .map_err(|status| unreachable(&status))?;
    match first {
        Some(Down::Assignment(assignment)) => Ok((uplink, down, assignment)),
        Some(Down::Stop(stop)) => Err(RankError::Stopped(stop.reason)),
        _ => Err(unreachable(&"the first answer is not an assignment")),
    }
}

/// Where messages of the agent go.
pub struct Downlink {
    pub curators: watch::Sender<Vec<String>>,
    pub marks: watch::Sender<MarkList>,
    pub outcomes: mpsc::Sender<RankCheckpointOutcome>,
    /// Cancelled when the gang is to save a checkpoint and leave.
    pub drain: CancellationToken,
    /// Cancelled when another rank of the gang is gone.
    pub peer_lost: CancellationToken,
    /// Cancelled before that if it is rank 0.
    pub rank_0_lost: CancellationToken,
}

impl Downlink {
    /// Hands on what comes until the agent says stop or is gone; returns why training has to end.
    pub async fn run(self, mut down: Streaming<OpenRankSessionResponse>) -> RankError {
        loop {
            match down.message().await {
                Ok(Some(response)) => match response.message {
                    Some(Down::UpdateCurators(update)) => {
                        self.curators.send_replace(update.curator_addresses);
                        take_marks(&self.marks, mark_list(update.pair_marks));
                    }
                    Some(Down::CheckpointOutcome(outcome)) => {
                        if self.outcomes.send(outcome).await.is_err() {
                            tracing::warn!(
                                "the answer about a checkpoint is ignored: its save has ended already"
                            );
                        }
                    }
                    Some(Down::Drain(drain)) => {
                        tracing::info!(
                            reason = drain.reason,
                            "the node drains: a checkpoint is saved, then the gang leaves"
                        );
                        self.drain.cancel();
                    }
                    Some(Down::PeerLost(lost)) => {
                        tracing::info!(reason = lost.reason, "another rank of the gang is gone");
                        if lost.rank_0_lost {
                            self.rank_0_lost.cancel();
                        }
                        self.peer_lost.cancel();
                    }
                    Some(Down::Stop(stop)) => return RankError::Stopped(stop.reason),
                    Some(Down::Assignment(_)) | None => {}
                },
                Ok(None) => return RankError::Retryable("the agent closed the session".into()),
                Err(status) => {
                    return RankError::Retryable(format!("the agent's session broke: {}", status.message()));
                }
            }
        }
    }
}

/// Takes a list of marks if it says more than the one before: a list only grows.
pub fn take_marks(marks: &watch::Sender<MarkList>, told: MarkList) {
    marks.send_if_modified(|known| {
        let newer = told.version() > known.version();
        if newer {
            *known = told;
        }
        newer
    });
}

/// Rank 0 tells its agent what the others need to meet it.
pub async fn publish_rendezvous(
    dialer: &Dialer,
    agent: &str,
    attempt: &AttemptRef,
    token: Vec<u8>,
) -> Result<(), RankError> {
    let channel = dialer.channel(agent).map_err(RankError::permanent)?;
    let request = PublishRendezvousRequest { attempt: Some(attempt.clone()), token };
    let call = async { AgentServiceClient::new(channel).publish_rendezvous(request).await };
    match tokio::time::timeout(AWAIT_TIMEOUT, call).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => {
            Err(RankError::Retryable(format!("cannot publish the rendezvous: {}", status.message())))
        }
        Err(_) => Err(RankError::Retryable("cannot publish the rendezvous: no answer".into())),
    }
}

/// The other ranks wait for rank 0's word at the agent of its node.
pub async fn await_rendezvous(
    dialer: &Dialer,
    agent: &str,
    attempt: &AttemptRef,
) -> Result<Vec<u8>, RankError> {
    let channel = dialer.channel(agent).map_err(RankError::permanent)?;
    let waiting = async {
        loop {
            let request = AwaitRendezvousRequest {
                attempt: Some(attempt.clone()),
                timeout_millis: AWAIT_TIMEOUT.as_millis() as u32,
            };
            match AgentServiceClient::new(channel.clone()).await_rendezvous(request).await {
                Ok(response) => return Ok(response.into_inner().token),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return Err(RankError::Retryable(format!("rendezvous: {}", status.message())));
                }
                Err(status) => {
                    tracing::info!(agent, reason = status.message(), "rank 0 cannot be met yet");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    };
    tokio::time::timeout(MEETING_TIMEOUT, waiting)
        .await
        .map_err(|_| RankError::Retryable(format!("rank 0 was not there within {MEETING_TIMEOUT:?}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_step_is_sent_although_its_sender_is_gone() {
        let (up, mut sent) = mpsc::channel(16);
        let (progress, reported) = watch::channel(RankProgress::default());
        let stop = CancellationToken::new();
        let mut forwarding = tokio::task::JoinSet::new();
        forwarding.spawn(Uplink { up }.forward_progress(reported, stop.clone()));
        for step in 1..=2 {
            progress.send_replace(RankProgress { step, ..Default::default() });
            // Less than the interval: the second is still to be sent when its sender goes.
            tokio::time::sleep(PROGRESS_INTERVAL / 4).await;
        }
        drop(progress);
        stop.cancel();
        forwarding.join_next().await.unwrap().unwrap();
        let mut steps = Vec::new();
        while let Some(OpenRankSessionRequest { message: Some(Up::Progress(progress)) }) = sent.recv().await {
            steps.push(progress.step);
        }
        assert_eq!(steps, [1, 2]);
    }
}
