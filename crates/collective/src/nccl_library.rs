//! The few functions of NCCL that are called, found at run time.
//!
//! The types are cudarc's. Its own loader is not used, since it ends the process when it finds no library, and looks for
//! `libnccl.so` while the runtime packages ship `libnccl.so.2`.

#![allow(unsafe_code, reason = "calls NCCL")]

use crate::error::{CollectiveError, Result};
use crescendo_device::dynamic::{DynamicLibrary, Visibility};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// `ncclResult_t` as a plain number: a later NCCL may return values that the enum does not have.
pub type Status = c_int;
pub const SUCCESS: Status = 0;
pub const SYSTEM_ERROR: Status = 2;
pub const REMOTE_ERROR: Status = 6;
pub const IN_PROGRESS: Status = 7;

/// `ncclConfig_t` as of NCCL 2.17.1, which every later 2.x accepts: it reads as many bytes as `size` says.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return before their work is done, so that it can be waited for with a deadline and aborted.
    pub fn non_blocking() -> Self {
        /// `NCCL_CONFIG_UNDEF_INT`: let NCCL choose.
        const CHOOSE: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_701,
            blocking: 0,
            cga_cluster_size: CHOOSE,
            min_ctas: CHOOSE,
            max_ctas: CHOOSE,
            net_name: std::ptr::null(),
            split_share: CHOOSE,
        }
    }
}

type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    ncclRedOp_t,
    ncclComm_t,
    cudaStream_t,
) -> Status;
type Broadcast = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    c_int,
    ncclComm_t,
    cudaStream_t,
) -> Status;
type InitRank = unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut Config) -> Status;

/// NCCL's functions by their own names. Calling one is as unsafe as calling NCCL.
pub struct Library {
    pub get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Status,
    pub comm_init_rank_config: InitRank,
    pub comm_get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Status) -> Status,
    pub comm_finalize: unsafe extern "C" fn(ncclComm_t) -> Status,
    pub comm_destroy: unsafe extern "C" fn(ncclComm_t) -> Status,
    pub comm_abort: unsafe extern "C" fn(ncclComm_t) -> Status,
    pub all_reduce: AllReduce,
    pub broadcast: Broadcast,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    get_version: unsafe extern "C" fn(*mut c_int) -> Status,
}

impl Library {
    /// Loads NCCL once for the process.
    pub fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
        LIBRARY
            .get_or_init(Self::load)
            .as_ref()
            .map_err(|reason| CollectiveError::BackendMissing(format!("NCCL does not load: {reason}")))
    }

    fn load() -> std::result::Result<Self, String> {
        // Where libtorch's CUDA half is loaded, its own NCCL answers to this name.
        let library = DynamicLibrary::open(c"libnccl.so.2", Visibility::Local)
            .or_else(|reason| DynamicLibrary::open(c"libnccl.so", Visibility::Local).map_err(|_| reason))?;
        // SAFETY: the types are those of nccl.h, with the result enum as the int that it is in C.
        unsafe {
            Ok(Self {
                get_unique_id: library.function(c"ncclGetUniqueId")?,
                comm_init_rank_config: library.function(c"ncclCommInitRankConfig")?,
                comm_get_async_error: library.function(c"ncclCommGetAsyncError")?,
                comm_finalize: library.function(c"ncclCommFinalize")?,
                comm_destroy: library.function(c"ncclCommDestroy")?,
                comm_abort: library.function(c"ncclCommAbort")?,
                all_reduce: library.function(c"ncclAllReduce")?,
                broadcast: library.function(c"ncclBroadcast")?,
                get_error_string: library.function(c"ncclGetErrorString")?,
                get_version: library.function(c"ncclGetVersion")?,
            })
        }
    }

    /// As NCCL numbers them.
    pub fn version(&self) -> Result<c_int> {
        let mut version = 0;
        // SAFETY: the place lives until the call returns.
        let status = unsafe { (self.get_version)(&mut version) };
        self.check("version", status)?;
        Ok(version)
    }

    /// `Ok(true)` when the call is done, `Ok(false)` when it goes on in the background.
    pub fn check(&self, operation: &'static str, status: Status) -> Result<bool> {
        match status {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            // A broken socket to a peer is a system error; a peer that reported its own end is a remote one.
            SYSTEM_ERROR | REMOTE_ERROR => {
                Err(CollectiveError::PeerLost { operation, detail: self.text(status) })
            }
            _ => Err(CollectiveError::Backend { operation, detail: self.text(status) }),
        }
    }

    fn text(&self, status: Status) -> String {
        // SAFETY: takes any number, returns a constant.
        let text = unsafe { (self.get_error_string)(status) };
        if text.is_null() {
            return format!("NCCL status {status}");
        }
        // SAFETY: not null, zero-terminated, constant.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
