//! Loading libtorch's CUDA half at run time: the same binary runs on machines without it.

use crate::dynamic::{DynamicLibrary, Visibility};
use crate::error::{CollectiveError, Result};
use std::sync::OnceLock;

/// Loads libtorch's CUDA kernels into this process, once. Call it before anything asks tch for CUDA: libtorch looks for
/// them at its first question and remembers the answer.
///
/// `Ok(false)` on a machine without an NVIDIA driver; an error where there is a driver but libtorch's CUDA libraries do
/// not load, which tells what is missing.
pub fn load_cuda() -> Result<bool> {
    static LOADED: OnceLock<Result<bool>> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<bool> {
    if DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).is_err() {
        return Ok(false);
    }
    // Global: the kernels register themselves with the libtorch_cpu that is loaded already.
    match DynamicLibrary::open(c"libtorch_cuda.so", Visibility::Global) {
        Ok(_) => Ok(true),
        Err(reason) => Err(CollectiveError::BackendMissing(format!(
            "this machine has an NVIDIA driver, but libtorch's CUDA libraries do not load: {reason}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_is_no_cuda_and_no_crash() {
        let has_driver = DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).is_ok();
        match load_cuda() {
            Ok(loaded) => assert_eq!(loaded, has_driver),
            Err(error) => assert!(has_driver, "{error}"),
        }
    }
}
