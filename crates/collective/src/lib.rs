//! Collective operations between the ranks of one attempt: all-reduce, broadcast, barrier, gather, and abort; over NCCL on
//! GPUs and over Gloo on CPUs, in one binary.
//!
//! ```text
//!   rank 0                                rank 1 … n-1
//!   Rendezvous::host(ip) ── address ───▶  Rendezvous::join(address)        carried by whoever places the ranks
//!        │                                     │
//!   ProcessGroup::gloo ◀──── connections ────▶ ProcessGroup::gloo          CPU tensors, libtorch's c10d
//!        │ with_nccl                           │ with_nccl                 GPU tensors, NCCL; the id goes through Gloo
//!        ▼                                     ▼
//!   all_reduce_async ◀──── averages ─────▶ all_reduce_async                buckets of gradients, during the backward pass
//! ```
//!
//! Parts:
//! - [`ProcessGroup`]: the operations, whatever is behind them; [`PendingReduce`]: one in the background.
//! - [`Rendezvous`], [`GlooOptions`], [`NcclId`]: how a group comes together.
//! - [`CollectiveError`]: timeout, lost peer, abort, wrong call. Every call has a time limit, and one failure ends the whole
//!   group at once instead of leaving the survivors to their own timeouts.
//! - [`nccl_version`]: of the NCCL that is here.
//!
//! The C++ side is `shim/gloo_shim.cpp`; `build.rs` compiles it and refuses any libtorch but the one it is written for.

mod backend;
mod error;
mod ffi;
mod gloo;
mod group;
mod nccl;
mod nccl_library;
mod rendezvous;

pub use error::{CollectiveError, Result};
pub use gloo::GlooOptions;
pub use group::{MAX_GATHER_BYTES, PendingReduce, ProcessGroup, ReduceOp};
pub use nccl::{NcclId, NcclVersion, version as nccl_version};
pub use rendezvous::Rendezvous;
