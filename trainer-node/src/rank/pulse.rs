//! How a rank says where it is: its thread that trains enters phases, and the number of its moves grows.

use crescendo_proto::v1::{RankPhase, RankProgress};
use tokio::sync::watch;

/// Notes that the thread that trains is at `phase` now. It is told with the next word of the process.
pub fn enter(progress: &watch::Sender<RankProgress>, phase: RankPhase) {
    progress.send_modify(|progress| {
        progress.phase = phase.into();
        progress.moves += 1;
    });
}
