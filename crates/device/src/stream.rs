//! Streams of a GPU: whose work goes first where several threads share one.

#![allow(unsafe_code, reason = "calls the shim over libtorch's streams")]

use crate::cuda::DeviceError;
use std::ffi::{CStr, c_char, c_int};
use tch::Device;

/// Most bytes of a reason.
const REASON_BYTES: usize = 512;

unsafe extern "C" {
    /// Of `shim/stream_shim.cpp`.
    fn crescendo_high_priority_stream(index: c_int, reason: *mut c_char, size: usize) -> c_int;
}

/// Has the calling thread compute on a stream of high priority of its own from now on: on a GPU that another thread keeps
/// busy its kernels go before the other's that have not begun. On a CPU there is nothing to do.
///
/// What this thread has computed is ordered against the work of no other thread: hand over what lies on the host, or wait
/// for the device first.
pub fn prioritize_this_thread(device: Device) -> Result<(), DeviceError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    let missing = |reason: String| DeviceError::Missing(format!("no stream of cuda:{index}: {reason}"));
    let number = c_int::try_from(index).map_err(|e| missing(e.to_string()))?;
    let mut reason: [c_char; REASON_BYTES] = [0; REASON_BYTES];
    // SAFETY: the shim catches every exception and writes no more than it is told, with a zero at the end.
    let code = unsafe { crescendo_high_priority_stream(number, reason.as_mut_ptr(), REASON_BYTES) };
    if code == 0 {
        return Ok(());
    }
    // SAFETY: it ends in a zero, as it began.
    Err(missing(unsafe { CStr::from_ptr(reason.as_ptr()) }.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::count;
    use crate::cuda::load_cuda;

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_and_a_cpu_needs_nothing() {
        assert_eq!(prioritize_this_thread(Device::Cpu), Ok(()));
        let loaded = load_cuda().unwrap_or(false);
        let there = if loaded { count() as usize } else { 0 };
        let error =
            prioritize_this_thread(Device::Cuda(there)).expect_err("there is no such GPU").to_string();
        assert!(error.contains(&format!("cuda:{there}")), "{error}");
        if there > 0 {
            assert_eq!(prioritize_this_thread(Device::Cuda(0)), Ok(()));
            let sum = tch::Tensor::ones([8], (tch::Kind::Float, Device::Cuda(0))).sum(tch::Kind::Float);
            assert_eq!(sum.double_value(&[]), 8.0);
        }
    }
}
