//! Loading libtorch's CUDA half at run time: the same binary runs on machines without it.

use crate::dynamic::{DynamicLibrary, Visibility};
use crate::error::{CollectiveError, Result};
use std::ffi::{CStr, c_char, c_int};
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

/// Memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What nobody has, other processes included.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Memory of the GPU that this thread used last through libtorch: it must have computed something there.
pub fn device_memory() -> Result<DeviceMemory> {
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuMemGetInfo_v2`).
    let ask: MemGetInfo = unsafe { driver.function(c"cuMemGetInfo_v2") }.map_err(missing)?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: both places live until the call returns.
    let code = unsafe { ask(&mut free, &mut total) };
    checked(code, "memory")?;
    Ok(DeviceMemory { free_bytes: free as u64, total_bytes: total as u64 })
}

/// Name of GPU `index`, as its maker spells it.
pub fn device_name(index: usize) -> Result<String> {
    type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuDeviceGetName`).
    let ask: GetName = unsafe { driver.function(c"cuDeviceGetName") }.map_err(missing)?;
    let index = c_int::try_from(index).map_err(|_| missing(format!("no GPU has the number {index}")))?;
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: the driver writes at most 255 bytes and a zero.
    let code = unsafe { ask(name.as_mut_ptr(), 256, index) };
    checked(code, "name")?;
    // SAFETY: the driver ended the text with a zero, and the array began as zeros.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

fn driver() -> Result<DynamicLibrary> {
    DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).map_err(missing)
}

fn missing(reason: String) -> CollectiveError {
    CollectiveError::BackendMissing(format!("cannot ask the NVIDIA driver: {reason}"))
}

fn checked(code: c_int, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(missing(format!("its answer for the {what} is error {code}"))) }
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
    #[test]
    fn without_a_driver_questions_about_a_gpu_are_errors() {
        if DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).is_err() {
            assert!(matches!(device_memory(), Err(CollectiveError::BackendMissing(_))));
            assert!(matches!(device_name(0), Err(CollectiveError::BackendMissing(_))));
        }
    }
}
