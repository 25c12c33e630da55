//! The CPU backend: Gloo, as libtorch's c10d carries it, behind `shim/gloo_shim.h`.

#![allow(unsafe_code, reason = "calls the C++ shim")]

use crate::backend::{Backend, Elementwise, InFlight};
use crate::error::{CollectiveError, Result};
use crate::ffi;
use crate::rendezvous::Rendezvous;
use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::IntoRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;
use tch::Tensor;

/// Operations that Gloo runs side by side; more are queued. Two let one operation's arithmetic overlap another's transfer.
const GLOO_THREADS: i32 = 2;

/// How a rank joins a Gloo group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlooOptions {
    /// Limit for the ranks to find each other.
    pub timeout: Duration,
    /// Which attempt this group belongs to: ranks of different generations never join, whatever address they were given.
    pub generation: u64,
    /// This rank's own network interface; without it, the one from which rank 0 is reached.
    pub interface: Option<IpAddr>,
}

impl Default for GlooOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), generation: 0, interface: None }
    }
}

/// The C++ group, freed when the last operation and the group itself are gone.
struct Handle(NonNull<ffi::Group>);

// SAFETY: the C++ object locks for itself: waits and `cg_abort` may come from any thread, and the process group starts
// operations under one lock (`ProcessGroup`).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `cg_connect` and is freed here alone.
        unsafe { ffi::cg_group_free(self.0.as_ptr()) }
    }
}

pub(crate) struct Gloo {
    handle: Arc<Handle>,
}

impl Gloo {
    /// Meets the other ranks and connects to each of them. `rank` < `world`, `world` ≥ 2.
    pub fn connect(rank: usize, world: usize, rendezvous: Rendezvous, options: &GlooOptions) -> Result<Self> {
        let interface = match options.interface {
            Some(ip) => ip,
            None => rendezvous.own_interface()?,
        };
        let address = rendezvous.address();
        let left = rendezvous.await_host(options.timeout)?;
        let text = |value: String| {
            CString::new(value)
                .map_err(|_| CollectiveError::InvalidArgument("text with a zero byte".to_owned()))
        };
        let narrow = |value: usize| {
            i32::try_from(value)
                .map_err(|_| CollectiveError::InvalidArgument(format!("{value} ranks are too many")))
        };
        let host = text(address.ip().to_string())?;
        let interface_ip = text(interface.to_string())?;
        let prefix = text(format!("generation-{}", options.generation))?;
        let (rank, world) = (narrow(rank)?, narrow(world)?);
        let listen_fd = match rendezvous {
            Rendezvous::Host { listener, .. } => listener.into_raw_fd(),
            Rendezvous::Join { .. } => -1,
        };
        let connect = ffi::Connect {
            host: host.as_ptr(),
            port: address.port(),
            listen_fd,
            interface_ip: interface_ip.as_ptr(),
            prefix: prefix.as_ptr(),
            rank,
            world,
            timeout_ms: ffi::milliseconds(left),
            threads: GLOO_THREADS,
        };
        let mut group = std::ptr::null_mut();
        ffi::checked("rendezvous", options.timeout, |text, bytes| {
            // SAFETY: the strings live until the call returns; `group` and `text` are writable.
            unsafe { ffi::cg_connect(&connect, &mut group, text, bytes) }
        })?;
        let group = NonNull::new(group).ok_or_else(|| CollectiveError::Backend {
            operation: "rendezvous",
            detail: "the library returned no group".to_owned(),
        })?;
        Ok(Self { handle: Arc::new(Handle(group)) })
    }

    fn in_flight(&self, operation: &'static str, op: *mut ffi::Op) -> Result<Box<dyn InFlight>> {
        let op = NonNull::new(op).ok_or_else(|| CollectiveError::Backend {
            operation,
            detail: "the library returned no operation".to_owned(),
        })?;
        Ok(Box::new(GlooOp { op, operation, _group: Arc::clone(&self.handle) }))
    }
}

impl Backend for Gloo {
    fn start_reduce(
        &self,
        operation: &'static str,
        tensor: &Tensor,
        by: Elementwise,
        timeout: Duration,
    ) -> Result<Box<dyn InFlight>> {
        let mut op = std::ptr::null_mut();
        ffi::checked(operation, timeout, |text, bytes| {
            // SAFETY: the tensor is borrowed for the call, during which C++ takes a reference of its own.
            unsafe {
                ffi::cg_all_reduce(
                    self.handle.0.as_ptr(),
                    tensor.as_ptr().cast(),
                    i32::from(by == Elementwise::Maximum),
                    ffi::milliseconds(timeout),
                    &mut op,
                    text,
                    bytes,
                )
            }
        })?;
        self.in_flight(operation, op)
    }

    fn start_broadcast(&self, tensor: &Tensor, root: usize, timeout: Duration) -> Result<Box<dyn InFlight>> {
        let operation = "broadcast";
        let root = i32::try_from(root).map_err(|_| {
            CollectiveError::InvalidArgument(format!("root {root} is not a rank of the group"))
        })?;
        let mut op = std::ptr::null_mut();
        ffi::checked(operation, timeout, |text, bytes| {
            // SAFETY: as in `start_reduce`.
            unsafe {
                ffi::cg_broadcast(
                    self.handle.0.as_ptr(),
                    tensor.as_ptr().cast(),
                    root,
                    ffi::milliseconds(timeout),
                    &mut op,
                    text,
                    bytes,
                )
            }
        })?;
        self.in_flight(operation, op)
    }

    fn abort(&self) {
        // SAFETY: the group lives as long as its handle, and `cg_abort` may be called from any thread.
        unsafe { ffi::cg_abort(self.handle.0.as_ptr()) }
    }

    fn leave(&self, timeout: Duration) -> Result<()> {
        ffi::checked("leave", timeout, |text, bytes| {
            // SAFETY: the group lives as long as its handle.
            unsafe { ffi::cg_leave(self.handle.0.as_ptr(), ffi::milliseconds(timeout), text, bytes) }
        })
    }
}

struct GlooOp {
    op: NonNull<ffi::Op>,
    operation: &'static str,
    // Operations may outlive the group's own owner.
    _group: Arc<Handle>,
}

// SAFETY: the C++ operation is reached from one thread at a time, whichever owns this value.
unsafe impl Send for GlooOp {}

impl InFlight for GlooOp {
    fn wait(&mut self, limit: Duration) -> Result<()> {
        ffi::checked(self.operation, limit, |text, bytes| {
            // SAFETY: the operation lives until this value is dropped.
            unsafe { ffi::cg_wait(self.op.as_ptr(), ffi::milliseconds(limit), text, bytes) }
        })
    }
}

impl Drop for GlooOp {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim and is freed here alone.
        unsafe { ffi::cg_op_free(self.op.as_ptr()) }
    }
}
