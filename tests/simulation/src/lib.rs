//! A cluster in one thread, under one seed: the real engine, leadership, services, sessions and the agent's table, over a
//! store and a network in memory and a clock that only moves when nobody has anything to do.
//!
//! ```text
//!   schedule (pure: seed → what happens when)
//!      │ workload: submit, pause, cancel, delete     │ faults: crash, pause, cut, delay, lost answers, clock, store, nodes
//!      ▼                                             ▼
//!   client ─▶ network ─▶ 3 × controller ─▶ store (simulated; passes the contract suite) ─▶ checker: every commit
//!              ▲   real: services, engine, leadership, election
//!              └── 3 trainers (real session and agent's table, played ranks), 2 curators (real session, played making)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`changes`] | waiting, in a fixed order |
//! | [`rng`] | the one source of chance |
//! | [`schedule`] | what happens when, from a seed alone |
//! | [`process`] | tasks that can be killed and stopped together |
//! | [`network`] | what becomes of calls between nodes and controllers |
//! | [`controller`] | a controller: the real one, without a listener |
//! | [`gang`] | ranks that step together |
//! | [`trainer`], [`curator`] | nodes |
//! | [`objects`] | the object store, and what a curator does in it for the controller |
//! | [`client`] | people |
//! | [`lies`] | what a node says that speaks for what is over |
//! | [`fixtures`] | records that the tools around decisions begin with |
//! | [`plants`] | bugs that are put in, to see that they are found |
//! | [`checker`] | the promises, by their number in the design |
//! | [`run`] | one seed from beginning to end |
//!
//! The same seed gives the same trace, which a test holds. Nothing here may ask the system for time or chance.

pub mod changes;
pub mod checker;
pub mod client;
pub mod controller;
pub mod curator;
pub mod fixtures;
pub mod gang;
pub mod lies;
pub mod network;
pub mod objects;
pub mod plants;
pub mod process;
pub mod rng;
pub mod run;
pub mod schedule;
pub mod trace;
pub mod trainer;
