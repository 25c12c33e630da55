//! The pairs of a stage, for people: which were accepted, which were turned down, and why.
//!
//! ```text
//! controller ── job, shard list ──┐
//!                                 ├─▶ gather ─▶ Found ─┬─▶ table or JSON
//! object store ── shards, samples ┘                    └─▶ sheet: one HTML file
//! ```
//!
//! The pictures come straight from the object store: the control path carries none, and curators have left by the time
//! that most people look. So whoever looks needs to reach the store, as the trainers do.

pub mod gather;
pub mod sheet;
