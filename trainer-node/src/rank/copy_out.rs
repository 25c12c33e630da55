//! The thread that copies a snapshot while the next step runs.

use bytes::Bytes;
use crescendo_model::training::snapshot::{Reader, copier};
use crescendo_node::objects::upload::Piece;
use tch::Device;
use tokio::sync::mpsc;

/// Passes on every chunk of a snapshot of tensors on `device`, in order. Ends early when nobody takes them any more. There
/// must be room for all of them in `copied`: how many there are at a time is the snapshot's own bound.
pub fn run(
    mut snapshot: Reader,
    device: Device,
    copied: &mpsc::Sender<Piece>,
) -> crescendo_model::Result<()> {
    let mut copier = copier(device)?;
    while let Some(chunk) = snapshot.next_chunk(copier.as_mut())? {
        let is_last = chunk.is_last_of_file;
        if copied.blocking_send(Piece { bytes: Bytes::from_owner(chunk), is_last }).is_err() {
            break;
        }
    }
    Ok(())
}
