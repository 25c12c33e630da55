//! What a job has trained, out of the object store: which checkpoint and file is meant, getting it onto this machine, and
//! the command that draws with it.
//!
//! ```text
//!   JOB[:STAGE], --checkpoint ─▶ choice ─▶ fetch: object store, or receive ─▶ verified copy ─▶ target
//!   resolved spec, checkpoint, library ─▶ draw ─▶ a `generate` line
//! ```

pub mod choice;
pub mod draw;
pub mod example;
pub mod fetch;
pub mod handover;
pub mod receive;
pub mod target;
