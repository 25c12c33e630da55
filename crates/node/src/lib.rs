//! What every long-running process of a cluster shares, whatever its role. Nothing here knows of tensors.
//!
//! ```text
//!   runtime::server ─┬─ telemetry   logs, /metrics, traces
//!    start, serve,   ├─ tls         who is at the other end
//!    stop            ├─ objects     the object store
//!                    └─ session     OpenSession ──▶ controller (one of several)
//!                                      ▲   │
//!                           ReportSink ┘   └▶ Command (bounded channel)
//!                           LogBuffer ─┘
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`objects`] | the object store behind a URL: a folder or a bucket |
//! | [`paths`] | where the paths of a spec lead on this machine, and whether its job may go there |
//! | [`runtime`] | how a process starts, serves and stops |
//! | [`session`] | a node and the controller |
//! | [`telemetry`] | logs, metrics and traces |
//! | [`tfevents`] | event files of TensorBoard |
//! | [`tls`] | who is at the other end, and connections that no one else reads or changes |

pub mod objects;
pub mod paths;
pub mod runtime;
pub mod session;
pub mod telemetry;
pub mod tfevents;
pub mod tls;
