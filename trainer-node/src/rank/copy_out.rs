//! The thread that copies a snapshot while the next step runs.

use bytes::Bytes;
use crescendo_device::host_copy::HostCopy;
use crescendo_model::ModelError;
use crescendo_model::training::snapshot::{CopyToHost, FromHost, Reader};
use crescendo_node::objects::upload::Piece;
use tch::{Device, Tensor};
use tokio::sync::mpsc;

/// From a GPU.
struct FromGpu(HostCopy);

impl CopyToHost for FromGpu {
    fn copy(&mut self, source: &Tensor, target: &mut [u8]) -> crescendo_model::Result<()> {
        self.0.copy(source, target).map_err(|error| ModelError::Caller(error.into()))
    }
}

/// Passes on every chunk of a snapshot of tensors on `device`, in order. Ends early when nobody takes them any more. There
/// must be room for all of them in `copied`: how many there are at a time is the snapshot's own bound.
pub fn run(
    mut snapshot: Reader,
    device: Device,
    copied: &mpsc::Sender<Piece>,
) -> crescendo_model::Result<()> {
    let mut copier: Box<dyn CopyToHost> = match device {
        Device::Cuda(index) => {
            Box::new(FromGpu(HostCopy::new(index).map_err(|error| ModelError::Caller(error.into()))?))
        }
        _ => Box::new(FromHost),
    };
    while let Some(chunk) = snapshot.next_chunk(copier.as_mut())? {
        let is_last = chunk.is_last_of_file;
        if copied.blocking_send(Piece { bytes: Bytes::from_owner(chunk), is_last }).is_err() {
            break;
        }
    }
    Ok(())
}
