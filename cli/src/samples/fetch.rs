//! The pictures of one step, as they were registered.

use std::time::Duration;

use crescendo_dataset::digest::sha256_hex;
use crescendo_proto::v1::read_samples_response::Message;
use crescendo_proto::v1::{ReadSamplesRequest, Sampling};

use crate::connect::{self, Controller, brief};
use crate::failure::Failure;
use crate::show::words;

/// Limit of the wait for the next piece: more than the controller's own, whose reasons say more.
const PIECE_DEADLINE: Duration = Duration::from_secs(90);

/// The tar, held to the registry.
pub async fn fetch(
    controller: &Controller,
    within: Duration,
    sampling: &Sampling,
) -> Result<Vec<u8>, Failure> {
    let Sampling { job_id, stage, step, .. } = sampling.clone();
    let Some(file) = &sampling.file else {
        return Err(Failure::other(format!("step {step} of stage {stage} has no pictures")));
    };
    let request = ReadSamplesRequest { job_id, stage, step };
    let opening = controller.call(within, |channel| {
        let request = request.clone();
        async move { connect::samples(channel).read_samples(request).await }
    });
    let mut pieces = opening.await.map_err(|status| controller.failure(&status))?;
    let broken_off = |why: &str| {
        Failure::other(format!(
            "samples of step {step} do not come whole: {}; try again",
            words::one_line(why)
        ))
    };
    let mut tar = Vec::new();
    loop {
        let piece = tokio::time::timeout(PIECE_DEADLINE, pieces.message()).await;
        let piece = piece.map_err(|_| broken_off("nothing has come for a while"))?;
        let Some(piece) = piece.map_err(|status| broken_off(&brief(&status)))? else { break };
        let Some(Message::Chunk(chunk)) = piece.message else { continue };
        tar.extend_from_slice(&chunk);
        if tar.len() as u64 > file.size_bytes {
            break;
        }
    }
    if tar.len() as u64 != file.size_bytes || sha256_hex(&tar) != file.sha256 {
        return Err(broken_off("they are not what was registered"));
    }
    Ok(tar)
}
