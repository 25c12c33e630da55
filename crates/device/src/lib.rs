//! What a process computes on: finding and loading CUDA, the choice of a device, and what a device is.
//!
//! Every `main` that may compute calls [`load_cuda`] first. libtorch looks for its CUDA half at the first question that it is
//! asked, and keeps to the answer: a process that asks before the half is loaded can never use a GPU.
//!
//! | module | content |
//! |---|---|
//! | [`choice`] | `--device`, as words and as GPUs that are there |
//! | [`cuda`] | loading libtorch's CUDA half; memory and name of a GPU; versions of the driver |
//! | [`host_copy`] | from a GPU's memory to the host's, beside what the GPU computes |
//! | [`dynamic`] | shared libraries opened at run time |
//! | [`stream`] | whose work goes first on a GPU that threads share |

pub mod choice;
pub mod cuda;
pub mod dynamic;
mod heap;
pub mod host_copy;
pub mod stream;

pub use choice::{DeviceChoice, Gpus, kind, open, parse};
pub use cuda::{CudaVersion, DeviceError, load_cuda};
pub use heap::keep_freed_memory;
