//! Loading libtorch's CUDA half at run time: the same binary runs on machines without it.

#![allow(unsafe_code, reason = "calls the NVIDIA driver")]

use crate::dynamic::{DynamicLibrary, Visibility};
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// Why a GPU cannot be used or asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is a driver, and libtorch's half for it does not load.
    #[error("this machine has an NVIDIA driver, but libtorch's CUDA libraries do not load: {0}")]
    Libtorch(String),
    #[error("cannot ask the NVIDIA driver: {0}")]
    Driver(String),
    #[error("this machine has no NVIDIA driver")]
    NoDriver,
    /// What was asked for is not here now.
    #[error("{0}")]
    Missing(String),
    #[error("cuda:{index} does not compute: {reason}")]
    Compute { index: usize, reason: String },
}

type Result<T> = std::result::Result<T, DeviceError>;

/// Loads libtorch's CUDA kernels into this process, once; the first thing that a `main` does which may compute, since a
/// process that asks libtorch anything before it never gets a GPU.
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
        Err(reason) => Err(DeviceError::Libtorch(reason)),
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
pub fn memory() -> Result<DeviceMemory> {
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuMemGetInfo_v2`).
    let ask: MemGetInfo = unsafe { driver.function(c"cuMemGetInfo_v2") }.map_err(DeviceError::Driver)?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: both places live until the call returns.
    let code = unsafe { ask(&mut free, &mut total) };
    checked(code, "memory")?;
    Ok(DeviceMemory { free_bytes: free as u64, total_bytes: total as u64 })
}

/// Name of GPU `index`, as its maker spells it.
pub fn name(index: usize) -> Result<String> {
    type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuDeviceGetName`).
    let ask: GetName = unsafe { driver.function(c"cuDeviceGetName") }.map_err(DeviceError::Driver)?;
    let index =
        c_int::try_from(index).map_err(|_| DeviceError::Missing(format!("no GPU has the number {index}")))?;
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: the driver writes at most 255 bytes and a zero.
    let code = unsafe { ask(name.as_mut_ptr(), 256, index) };
    checked(code, "name")?;
    // SAFETY: the driver ended the text with a zero, and the array began as zeros.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

fn driver() -> Result<DynamicLibrary> {
    DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).map_err(DeviceError::Driver)
}

fn checked(code: c_int, what: &str) -> Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(DeviceError::Driver(format!("its answer for the {what} is error {code}")))
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

    #[test]
    fn without_a_driver_questions_about_a_gpu_are_errors() {
        if DynamicLibrary::open(c"libcuda.so.1", Visibility::Local).is_err() {
            assert!(matches!(memory(), Err(DeviceError::Driver(_))));
            assert!(matches!(name(0), Err(DeviceError::Driver(_))));
        }
    }
}
