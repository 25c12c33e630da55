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

/// Memory of GPU `index`, whoever uses it.
pub fn total_bytes(index: usize) -> Result<u64> {
    type TotalMem = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuDeviceTotalMem_v2`).
    let ask: TotalMem = unsafe { driver.function(c"cuDeviceTotalMem_v2") }.map_err(DeviceError::Driver)?;
    let index =
        c_int::try_from(index).map_err(|_| DeviceError::Missing(format!("no GPU has the number {index}")))?;
    let mut total: usize = 0;
    // SAFETY: the place lives until the call returns.
    let code = unsafe { ask(&mut total, index) };
    checked(code, "total memory")?;
    Ok(total as u64)
}

/// Major and minor number of GPU `index`'s compute capability, such as (9, 0) of an H100.
pub fn compute_capability(index: usize) -> Result<(i32, i32)> {
    type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    // `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `…_MINOR`.
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuDeviceGetAttribute`).
    let ask: GetAttribute =
        unsafe { driver.function(c"cuDeviceGetAttribute") }.map_err(DeviceError::Driver)?;
    let index =
        c_int::try_from(index).map_err(|_| DeviceError::Missing(format!("no GPU has the number {index}")))?;
    let attribute = |which: c_int| {
        let mut value: c_int = 0;
        // SAFETY: the place lives until the call returns.
        let code = unsafe { ask(&mut value, which, index) };
        checked(code, "compute capability").map(|()| value)
    };
    Ok((attribute(MAJOR)?, attribute(MINOR)?))
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

/// A version of CUDA, in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    pub major: u32,
    pub minor: u32,
}

impl CudaVersion {
    /// As the driver numbers them: major · 1,000 + minor · 10.
    fn of_number(number: c_int) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1_000, minor: number % 1_000 / 10 }
    }
}

impl std::fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The newest CUDA that the driver on this machine runs programs of.
pub fn supported() -> Result<CudaVersion> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let driver = driver()?;
    // SAFETY: the type is that of the driver's function (CUDA driver API, `cuDriverGetVersion`).
    let ask: GetVersion = unsafe { driver.function(c"cuDriverGetVersion") }.map_err(DeviceError::Driver)?;
    let mut number = 0;
    // SAFETY: the place lives until the call returns; this function needs no initialised driver.
    let code = unsafe { ask(&mut number) };
    checked(code, "version")?;
    Ok(CudaVersion::of_number(number))
}

/// Release of the driver's kernel module, e.g. `580.65.06`, where the kernel says it.
pub fn driver_release() -> Option<String> {
    ["/proc/driver/nvidia/version", "/sys/module/nvidia/version"]
        .into_iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .find_map(|text| release_in(&text).map(str::to_owned))
}

/// The first word that is numbers and dots alone, at least two numbers.
fn release_in(text: &str) -> Option<&str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_whitespace().find(|word| word.contains('.') && word.split('.').all(is_number))
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
            assert!(matches!(total_bytes(0), Err(DeviceError::Driver(_))));
            assert!(matches!(supported(), Err(DeviceError::Driver(_))));
        }
    }

    #[test]
    fn versions_are_read_as_the_driver_and_the_kernel_write_them() {
        let read = |number| CudaVersion::of_number(number).to_string();
        assert_eq!([read(13_000), read(12_090)], ["13.0", "12.9"]);
        assert!(CudaVersion::of_number(12_090) < CudaVersion::of_number(13_000));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\nGCC version:  gcc version 12.3.0 (Ubuntu)\n";
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 22:50:42 UTC 2025\n";
        assert_eq!(
            [open, closed, "550.54\n"].map(release_in),
            [Some("580.65.06"), Some("570.86.15"), Some("550.54")]
        );
        assert_eq!(release_in("NVIDIA v1.x 12\n"), None);
    }
}
