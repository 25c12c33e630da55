//! From a GPU's memory to the host's, beside what the GPU computes.
//!
//! ```text
//!   libtorch's stream   ── kernels of a step ─────────────────────────────
//!   our stream          ── copy ─▶ pinned slot 0 ── copy ─▶ pinned slot 1 ──
//!   this thread                                  slot 0 ─▶ target ─ ...
//! ```
//!
//! Copies from a GPU run beside kernels only if they go to pinned memory and on another stream. Pinned memory is slow to get and
//! cannot be swapped out: two small slots are enough to keep the copies going.

#![allow(unsafe_code, reason = "calls the NVIDIA driver")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use tch::{Device, Tensor};

use crate::cuda::DeviceError;

/// Bytes of a slot: a copy takes a fraction of a millisecond, which is long beside its start.
const SLOT_BYTES: usize = 8 << 20;
const SLOTS: usize = 2;
/// Between two looks at a copy.
const POLL: Duration = Duration::from_micros(50);
/// Limit of one slot's copy.
const COPY_DEADLINE: Duration = Duration::from_secs(60);

/// Copies from one GPU. Belongs on a thread of its own: every call waits for its copies.
pub struct HostCopy {
    index: usize,
    /// Before the stream and the context, which it needs to go.
    slots: Vec<Slot>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Pinned memory.
struct Slot {
    memory: std::ptr::NonNull<u8>,
    /// A copy may still write to it.
    busy: bool,
}

// SAFETY: plain memory that this alone points to.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Result<Self, DriverError> {
        // SAFETY: the thread has a context. No flags: memory that is fast to read.
        let memory = unsafe { result::malloc_host(SLOT_BYTES, 0) }?;
        std::ptr::NonNull::new(memory.cast())
            .map(|memory| Self { memory, busy: false })
            .ok_or(DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What the GPU may still write to is left to it.
        if !self.busy {
            // SAFETY: from `malloc_host`, and nobody uses it. A failure costs the memory and nothing else.
            let _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
        }
    }
}

impl HostCopy {
    /// For GPU `index`, which libtorch computes on already.
    pub fn new(index: usize) -> Result<Self, DeviceError> {
        // SAFETY: only looks whether the library loads; cudarc's other calls would panic where it does not.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        // cudarc panics on a driver that is too old to have one of its functions.
        catch_unwind(AssertUnwindSafe(|| {
            let context = CudaContext::new(index)?;
            context.bind_to_thread()?;
            let stream = context.new_stream()?;
            let slots = (0..SLOTS).map(|_| Slot::new()).collect::<Result<_, _>>()?;
            Ok(Self { index, slots, stream, context })
        }))
        .map_err(|_| DeviceError::Driver("the NVIDIA driver is older than CUDA 13".to_owned()))?
        .map_err(|error: DriverError| failed(index, &error))
    }

    /// Copies all of `source`, contiguous on this GPU, to `target`, which has as many bytes. What `source` holds must be
    /// there already: kernels under way on libtorch's stream are not waited for.
    pub fn copy(&mut self, source: &Tensor, target: &mut [u8]) -> Result<(), DeviceError> {
        let bytes = source.numel() * source.kind().elt_size_in_bytes();
        if source.device() != Device::Cuda(self.index) || !source.is_contiguous() || bytes != target.len() {
            return Err(DeviceError::Compute {
                index: self.index,
                reason: format!("{bytes} bytes of a tensor cannot be copied to {}", target.len()),
            });
        }
        self.context.bind_to_thread().map_err(|error| failed(self.index, &error))?;
        let address = source.data_ptr() as u64;
        let mut under_way: Option<(usize, CudaEvent, &mut [u8])> = None;
        for (at, part) in target.chunks_mut(SLOT_BYTES).enumerate() {
            let event = self.start(at % SLOTS, address + (at * SLOT_BYTES) as u64, part.len())?;
            if let Some((slot, event, part)) = under_way.replace((at % SLOTS, event, part)) {
                self.finish(slot, &event, part)?;
            }
        }
        match under_way {
            Some((slot, event, part)) => self.finish(slot, &event, part),
            None => Ok(()),
        }
    }

    /// Starts the copy of `bytes` at `address` to a slot that is free.
    fn start(&mut self, slot: usize, address: u64, bytes: usize) -> Result<CudaEvent, DeviceError> {
        let index = self.index;
        let slot = &mut self.slots[slot];
        slot.busy = true;
        // SAFETY: the slot has so many bytes, and nobody reads it before the copy's event.
        let memory = unsafe { std::slice::from_raw_parts_mut(slot.memory.as_ptr(), bytes.min(SLOT_BYTES)) };
        // SAFETY: the address is within a tensor that the caller keeps until the copy is done.
        unsafe { result::memcpy_dtoh_async(memory, address, self.stream.cu_stream()) }
            .and_then(|()| self.stream.record_event(None))
            .map_err(|error| failed(index, &error))
    }

    fn finish(&mut self, slot: usize, event: &CudaEvent, target: &mut [u8]) -> Result<(), DeviceError> {
        let deadline = Instant::now() + COPY_DEADLINE;
        while !event.is_complete() {
            if Instant::now() >= deadline {
                let reason = format!("a copy to the host is not done within {COPY_DEADLINE:?}");
                return Err(DeviceError::Compute { index: self.index, reason });
            }
            std::thread::sleep(POLL);
        }
        // An event that failed counts as complete to some: this tells.
        event.synchronize().map_err(|error| failed(self.index, &error))?;
        let slot = &mut self.slots[slot];
        slot.busy = false;
        // SAFETY: the copy has written so many bytes, and is done.
        target.copy_from_slice(unsafe { std::slice::from_raw_parts(slot.memory.as_ptr(), target.len()) });
        Ok(())
    }
}

fn failed(index: usize, error: &DriverError) -> DeviceError {
    DeviceError::Compute { index, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_is_nothing_to_copy_from() {
        // SAFETY: only looks whether the library loads.
        if unsafe { !cudarc::driver::sys::is_culib_present() } {
            assert_eq!(HostCopy::new(0).err(), Some(DeviceError::NoDriver));
        }
    }

    #[test]
    fn what_a_gpu_holds_arrives() {
        if crate::DeviceChoice::Auto.gpus().map_or(0, |gpus| gpus.count) == 0 {
            return;
        }
        let elements = (SLOT_BYTES / 4 * 5 + 3) as i64;
        let source = Tensor::arange(elements, (tch::Kind::Float, Device::Cuda(0)));
        crate::choice::wait(Device::Cuda(0));
        let mut target = vec![0; elements as usize * 4];
        HostCopy::new(0).unwrap().copy(&source, &mut target).unwrap();
        let expected = (0..elements).flat_map(|n| (n as f32).to_le_bytes()).collect::<Vec<u8>>();
        assert!(target == expected);
    }
}
