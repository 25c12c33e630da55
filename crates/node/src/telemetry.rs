//! What a process tells about itself: logs, metrics and traces.
//!
//! | module | content |
//! |---|---|
//! | [`gpu`] | what GPUs say of themselves, where there are any |
//! | [`log_archive`] | log lines of a job in the object store |
//! | [`log_shipping`] | log lines of a job on their way to the controller |
//! | [`logging`] | what is written to stderr |
//! | [`metrics`] | the `/metrics` endpoint |
//! | [`metrics_registry`] | what is measured, said once: registered, documented and tested from one table |
//! | [`process`] | memory, time on processors and open files of a process, and which build it is |
//! | [`trace`] | traces over OTLP, if they are wanted |

pub mod gpu;
pub mod log_archive;
pub mod log_shipping;
pub mod logging;
pub mod metrics;
pub mod metrics_registry;
pub mod process;
pub mod trace;
