//! What happens to an agent.

use crescendo_node::session::Command;
use crescendo_proto::v1::open_rank_session_request::Message as Up;
use crescendo_proto::v1::{OpenRankSessionResponse, RankCheckpointOutcome};
use tokio::sync::mpsc;
use tonic::Status;

use crescendo_attempts::RankKey;

/// Messages to a rank; the session ends when it is dropped.
pub type RankSender = mpsc::Sender<Result<OpenRankSessionResponse, Status>>;

/// What happens.
#[derive(Debug)]
pub enum Event {
    Command(Command),
    RankConnected { rank: RankKey, pid: u32, down: RankSender },
    RankMessage { rank: RankKey, message: Box<Up> },
    RankDisconnected { rank: RankKey },
    RankExited { rank: RankKey, success: bool, status: String },
    CommitDecided { rank: RankKey, outcome: RankCheckpointOutcome },
    MarkDecided { rank: RankKey },
}
