//! The GPU backend: NCCL on a CUDA stream of its own, beside the one that libtorch computes on.
//!
//! ```text
//!   libtorch's stream   ── backward ──┬─ backward of the next block ──────── (host has waited) ── optimizer
//!                                     │ event                                        ▲
//!   our stream                        └─▶ all-reduce ── event ── polled by `wait` ───┘
//! ```
//!
//! The communicator is non-blocking: NCCL's calls return before they are done, and every wait here polls with a deadline.
//! So nothing hangs on a lost rank, and `abort` may come from any thread at any time.

#![allow(unsafe_code, reason = "calls NCCL")]

use crate::backend::{Backend, Elementwise, InFlight};
use crate::error::{CollectiveError, Result};
use crate::nccl_library::{Config, IN_PROGRESS, Library, Status};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Between two looks at a GPU event or at NCCL: short beside any transfer, long beside the look itself.
const POLL: Duration = Duration::from_micros(50);

/// What the ranks of one NCCL group share: made by rank 0, passed to the others as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NcclId([u8; NcclId::BYTES]);

impl NcclId {
    pub const BYTES: usize = 128;

    /// A new id, which carries the address of this process. Rank 0 calls it, once a group.
    pub fn generate() -> Result<Self> {
        let library = Library::get()?;
        let mut id = ncclUniqueId { internal: [0; Self::BYTES] };
        // SAFETY: `id` is writable and of the size that NCCL fills.
        library.check("rendezvous", unsafe { (library.get_unique_id)(&mut id) })?;
        Ok(Self(id.internal.map(|byte| byte as u8)))
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// A communicator that is neither destroyed nor aborted yet.
struct Communicator(ncclComm_t);

// SAFETY: NCCL allows calls from any thread, one at a time, which the mutex around it sees to.
unsafe impl Send for Communicator {}

struct Shared {
    library: &'static Library,
    /// `None` once aborted or destroyed. The lock is held for single NCCL calls only, which return at once.
    communicator: Mutex<Option<Communicator>>,
    context: Arc<CudaContext>,
    /// libtorch computes on the legacy default stream.
    compute: Arc<CudaStream>,
    stream: Arc<CudaStream>,
}

/// A version of NCCL, in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NcclVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl NcclVersion {
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// As `ncclGetVersion` numbers them: major · 10,000 + minor · 100 + patch, and until 2.8 major · 1,000 and so on.
    fn of_number(number: c_int) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let unit = if number < 10_000 { 1_000 } else { 10_000 };
        Self::new(number / unit, number % unit / 100, number % 100)
    }
}

impl std::fmt::Display for NcclVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Version of the NCCL that groups of this process use, as that library itself says.
pub fn version() -> Result<NcclVersion> {
    Ok(NcclVersion::of_number(Library::get()?.version()?))
}

pub(crate) struct Nccl {
    shared: Arc<Shared>,
}

impl Nccl {
    pub fn connect(
        rank: usize,
        world: usize,
        gpu_index: usize,
        id: &NcclId,
        timeout: Duration,
    ) -> Result<Self> {
        let operation = "rendezvous";
        let narrow = |value: usize| {
            c_int::try_from(value)
                .map_err(|_| CollectiveError::InvalidArgument(format!("{value} ranks are too many")))
        };
        let (rank, world) = (narrow(rank)?, narrow(world)?);
        // SAFETY: only looks whether the library loads; cudarc's other calls would panic where it does not.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(CollectiveError::BackendMissing("this machine has no NVIDIA driver".to_owned()));
        }
        let library = Library::get()?;
        // cudarc panics on a driver that is too old to have one of its functions.
        let (context, stream) = catch_unwind(AssertUnwindSafe(|| {
            let context = CudaContext::new(gpu_index)?;
            context.bind_to_thread()?;
            let stream = context.new_stream()?;
            Ok::<_, DriverError>((context, stream))
        }))
        .map_err(|_| CollectiveError::BackendMissing("the NVIDIA driver is older than CUDA 13".to_owned()))?
        .map_err(of_driver(operation))?;

        let mut communicator: ncclComm_t = std::ptr::null_mut();
        let mut config = Config::non_blocking();
        let id = ncclUniqueId { internal: id.0.map(|byte| byte as c_char) };
        // SAFETY: everything passed lives through the call, and NCCL copies the configuration.
        let status =
            unsafe { (library.comm_init_rank_config)(&mut communicator, world, id, rank, &mut config) };
        let shared = Shared {
            library,
            communicator: Mutex::new((!communicator.is_null()).then_some(Communicator(communicator))),
            compute: context.default_stream(),
            context,
            stream,
        };
        library.check(operation, status)?;
        // Dropping `shared` on an error aborts the communicator.
        shared.wait_until_done(operation, Instant::now() + timeout, timeout)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Orders our stream behind libtorch's, starts one NCCL call on it, and marks its end with an event.
    fn launch(
        &self,
        operation: &'static str,
        tensor: &Tensor,
        timeout: Duration,
        call: impl FnOnce(&Library, ncclComm_t) -> Status,
    ) -> Result<Box<dyn InFlight>> {
        let shared = &self.shared;
        shared.stream.join(&shared.compute).map_err(of_driver(operation))?;
        shared.with(|library, communicator| library.check(operation, call(library, communicator)))?;
        shared.wait_until_done(operation, Instant::now() + timeout, timeout)?;
        let event = shared.stream.record_event(None).map_err(of_driver(operation))?;
        Ok(Box::new(NcclOp {
            shared: Arc::clone(shared),
            operation,
            event,
            tensor: Some(tensor.shallow_clone()),
        }))
    }
}

impl Backend for Nccl {
    fn start_reduce(
        &self,
        operation: &'static str,
        tensor: &Tensor,
        by: Elementwise,
        timeout: Duration,
    ) -> Result<Box<dyn InFlight>> {
        let (pointer, count, kind) = (tensor.data_ptr(), tensor.numel(), data_type(tensor.kind())?);
        let stream = self.shared.stream.cu_stream().cast();
        let by = match by {
            Elementwise::Sum => ncclRedOp_t::ncclSum,
            Elementwise::Maximum => ncclRedOp_t::ncclMax,
        };
        self.launch(operation, tensor, timeout, |library, communicator| {
            // SAFETY: the group has checked the tensor: on this GPU, contiguous, so `count` elements lie at `pointer`;
            // the operation keeps it alive until it is done.
            unsafe { (library.all_reduce)(pointer, pointer, count, kind, by, communicator, stream) }
        })
    }

    fn start_broadcast(&self, tensor: &Tensor, root: usize, timeout: Duration) -> Result<Box<dyn InFlight>> {
        let root = c_int::try_from(root).map_err(|_| {
            CollectiveError::InvalidArgument(format!("root {root} is not a rank of the group"))
        })?;
        let (pointer, count, kind) = (tensor.data_ptr(), tensor.numel(), data_type(tensor.kind())?);
        let stream = self.shared.stream.cu_stream().cast();
        self.launch("broadcast", tensor, timeout, |library, communicator| {
            // SAFETY: as in `start_reduce`.
            unsafe { (library.broadcast)(pointer, pointer, count, kind, root, communicator, stream) }
        })
    }

    fn abort(&self) {
        self.shared.abort();
    }

    fn leave(&self, timeout: Duration) -> Result<()> {
        let shared = &self.shared;
        shared.with(|library, communicator| {
            // SAFETY: the communicator is alive, and no other call is in it.
            library.check("leave", unsafe { (library.comm_finalize)(communicator) })
        })?;
        shared.wait_until_done("leave", Instant::now() + timeout, timeout)?;
        if let Some(communicator) = shared.lock().take() {
            // SAFETY: finalized, and nobody can reach it any more.
            shared.library.check("leave", unsafe { (shared.library.comm_destroy)(communicator.0) })?;
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Communicator>> {
        self.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One NCCL call, if the communicator is still there.
    fn with<T>(&self, call: impl FnOnce(&Library, ncclComm_t) -> Result<T>) -> Result<T> {
        match self.lock().as_ref() {
            Some(communicator) => call(self.library, communicator.0),
            None => Err(CollectiveError::Aborted),
        }
    }

    /// Whether NCCL has nothing more to do for the last call on the host's side.
    fn is_done(&self, operation: &'static str) -> Result<bool> {
        self.with(|library, communicator| {
            let mut state = IN_PROGRESS;
            // SAFETY: the communicator is alive and `state` is writable.
            library.check(operation, unsafe { (library.comm_get_async_error)(communicator, &mut state) })?;
            library.check(operation, state)
        })
    }

    fn wait_until_done(&self, operation: &'static str, deadline: Instant, limit: Duration) -> Result<()> {
        poll_until(operation, deadline, limit, || self.is_done(operation))
    }

    fn abort(&self) {
        let taken = self.lock().take();
        if let Some(communicator) = taken {
            // SAFETY: taken out first, so it is aborted once and nobody calls into it afterwards. A failure changes nothing
            // for us: the communicator is gone either way.
            let _ = unsafe { (self.library.comm_abort)(communicator.0) };
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.abort();
    }
}

struct NcclOp {
    shared: Arc<Shared>,
    operation: &'static str,
    event: CudaEvent,
    tensor: Option<Tensor>,
}

impl InFlight for NcclOp {
    fn wait(&mut self, limit: Duration) -> Result<()> {
        self.shared.context.bind_to_thread().map_err(of_driver(self.operation))?;
        poll_until(self.operation, Instant::now() + limit, limit, || {
            // First, since after an abort the kernels end and the event completes as if all were well.
            self.shared.is_done(self.operation)?;
            self.event.try_is_complete().map_err(of_driver(self.operation))
        })
    }
}

impl Drop for NcclOp {
    fn drop(&mut self) {
        if !matches!(self.event.try_is_complete(), Ok(true)) {
            // The GPU may write to the memory yet: rather lose it than hand it to the next tensor.
            std::mem::forget(self.tensor.take());
        }
    }
}

/// Asks until `is_done` says so, fails, or the deadline passes.
fn poll_until(
    operation: &'static str,
    deadline: Instant,
    limit: Duration,
    mut is_done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    while !is_done()? {
        if Instant::now() >= deadline {
            return Err(CollectiveError::Timeout {
                operation,
                limit,
                detail: "not finished in time".to_owned(),
            });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn data_type(kind: Kind) -> Result<ncclDataType_t> {
    match kind {
        Kind::Float => Ok(ncclDataType_t::ncclFloat32),
        Kind::Double => Ok(ncclDataType_t::ncclFloat64),
        Kind::Half => Ok(ncclDataType_t::ncclFloat16),
        Kind::BFloat16 => Ok(ncclDataType_t::ncclBfloat16),
        Kind::Int => Ok(ncclDataType_t::ncclInt32),
        Kind::Int64 => Ok(ncclDataType_t::ncclInt64),
        Kind::Uint8 => Ok(ncclDataType_t::ncclUint8),
        other => Err(CollectiveError::InvalidArgument(format!("NCCL has no kind {other:?}"))),
    }
}

fn of_driver(operation: &'static str) -> impl Fn(DriverError) -> CollectiveError {
    move |error| CollectiveError::Backend { operation, detail: format!("CUDA driver: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_ends_at_its_deadline_and_not_before_a_result() {
        let limit = Duration::from_millis(1);
        let late = poll_until("all-reduce", Instant::now() + limit, limit, || Ok(false));
        assert!(late.unwrap_err().is_timeout());
        let mut looks = 0;
        // Done at the third look, though the deadline is far.
        poll_until("all-reduce", Instant::now() + Duration::from_secs(60), limit, || {
            looks += 1;
            Ok(looks == 3)
        })
        .unwrap();
        assert_eq!(looks, 3);
    }

    #[test]
    fn nccl_has_a_version_or_says_why_not() {
        match version() {
            Ok(version) => assert_eq!(version.major, 2, "{version}"),
            Err(error) => assert!(matches!(error, CollectiveError::BackendMissing(_)), "{error}"),
        }
    }

    #[test]
    fn versions_are_read_from_their_numbers() {
        let read = |number| NcclVersion::of_number(number).to_string();
        assert_eq!([read(22_809), read(22_703), read(2_804)], ["2.28.9", "2.27.3", "2.8.4"]);
        assert!(NcclVersion::new(2, 28, 3) > NcclVersion::new(2, 27, 9));
    }

    #[test]
    fn without_nccl_connecting_is_an_error_and_no_crash() {
        // SAFETY: only looks whether the library loads.
        if unsafe { cudarc::driver::sys::is_culib_present() } {
            return;
        }
        let id = NcclId::from_bytes([7; NcclId::BYTES]);
        let refused = Nccl::connect(0, 2, 0, &id, Duration::from_secs(1)).err();
        assert!(matches!(refused, Some(CollectiveError::BackendMissing(_))), "{refused:?}");
    }
}
