//! The agent: one process a node, which starts the ranks that the controller places here, watches over them and speaks
//! for them.
//!
//! ```text
//!   controller ──StartAttempt, StopAttempt──▶ ┌ run ───────────────┐ ──spawn, kill──▶ rank processes
//!              ◀──AttemptReport, log lines─── │ table: decides     │ ◀─exit status───    │
//!              ◀──CommitCheckpoint─────────── └────────▲───────────┘                     │
//!                                                      │ events                          │
//!                                              service + rendezvous ◀──AgentService──────┘
//! ```
//!
//! [`crescendo_attempts`] is pure: events in, effects out. Everything else carries them.

pub mod departure;
pub mod environment;
pub mod event;
pub mod interface;
pub mod lines;
pub mod metrics;
pub mod process;
pub mod rendezvous;
pub mod run;
pub mod service;
pub mod threads;
