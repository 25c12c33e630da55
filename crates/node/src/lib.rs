//! What every long-running process of a cluster shares, whatever its role: how it starts, talks to the controller,
//! logs, is measured and stops. Nothing here knows of tensors.
//!
//! ```text
//!   args ─▶ logging::init ─▶ listen::bind ─▶ Tasks ─┬─ gRPC server        (the binary's own)
//!                              │                    ├─ metrics::serve     GET /metrics
//!                              ▼                    └─ NodeSession::run ──OpenSession──▶ controller (one of several)
//!                        ports::write_port_file           ▲   │
//!                                              ReportSink ┘   └▶ Command (bounded channel)
//!                                              LogBuffer ─┘      (spans' job, stage, generation → LogBatch)
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`args`] | command line arguments that all servers, and all nodes, have |
//! | [`backoff`] | pure: how long to wait before try n |
//! | [`call`] | unary calls that are repeated until they are accepted or refused |
//! | [`catalogue`] | what is measured, said once: registered, documented and tested from one table |
//! | [`download`] | objects on their way to a file of this machine |
//! | [`forward`] | log lines of a job on their way to the controller |
//! | [`gpu`] | what GPUs say of themselves, where there are any |
//! | [`listen`] | listeners that stay on loopback unless told otherwise |
//! | [`logging`] | what is written to stderr |
//! | [`metrics`] | the `/metrics` endpoint |
//! | [`objects`] | the object store behind a URL: a folder or a bucket |
//! | [`ports`] | the file that says where a process listens |
//! | [`reports`] | pure: the newest report of each attempt, coalesced, never lost |
//! | [`session`] | the node's one stream to the controller |
//! | [`supervise`] | tasks that end with their process, and a process that ends with its critical tasks |
//! | [`tls`] | who is at the other end, and connections that no one else reads or changes |
//! | [`trace`] | traces over OTLP, if they are wanted |
//! | [`unit_reports`] | how far curation units are, coalesced |

mod address;
pub mod args;
pub mod backoff;
pub mod call;
pub mod catalogue;
pub mod download;
pub mod forward;
pub mod gpu;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod objects;
pub mod ports;
pub mod reports;
pub mod session;
pub mod supervise;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
pub mod trace;
pub mod unit_reports;
