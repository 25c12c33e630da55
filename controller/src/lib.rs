//! The controller: takes jobs, gives their stages to curators and trainers, keeps the registry of pairs and checkpoints.
//!
//! ```text
//!   gRPC ─▶ services ──Request──▶ engine (one task, owns the state) ──txn──▶ store
//!             ▲  │                  │  core::decide                            ▲
//!    sessions ┘  └ logs (rings)     └─▶ commands to nodes, watchers            │ campaign
//!                                                     leadership ──────────────┘
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`config`], [`store_tls`] | command line and limits |
//! | [`access`] | who calls, what it may do, and the record of it |
//! | [`leadership`] | campaigns, and runs the engine while this controller leads |
//! | [`engine`] | the state's one owner: requests in batches, decide, persist, then answer and send |
//! | [`services`] | the gRPC services: check, ask the engine, answer |
//! | [`relay`] | files on their way from curators to people, beside the engine |
//! | [`curves`] | the numbers of steps, as ranks report them and as checkpoints keep them |
//! | [`page`] | the web page's files, beside gRPC |
//! | [`collections`], [`deletions`] | leftovers in the object store, and files of deleted jobs, which curators find and remove |
//! | [`webhooks`] | other systems are told that jobs have ended |
//! | [`http_client`] | how this process calls others over HTTP |
//! | [`to_proto`] | state and observations as messages |
//! | [`logs`] | bounded rings of log lines |
//! | [`unit_board`] | what curators say of units under way, until the engine looks |
//! | [`body_limit`] | requests are read whole before they count |
//! | [`metrics`], [`pending_time`] | what is measured; how long jobs have waited |
//! | [`steady_clock`] | the time that decisions are made by |
//! | [`concurrency_limit`] | the limit on concurrent calls |
//!
//! An answer is given, and a command sent, only once what it rests on is durable. When the outcome of a write is not
//! known, the state is dropped and read again. So a controller may be killed at any point.

pub mod access;
mod beside;
pub mod body_limit;
pub mod collections;
pub mod concurrency_limit;
pub mod config;
pub mod curves;
pub mod deletions;
pub mod engine;
pub mod http_client;
pub mod leadership;
pub mod logs;
pub mod metrics;
pub mod page;
pub mod pending_time;
pub mod relay;
pub mod serve;
pub mod services;
pub mod steady_clock;
pub mod store_tls;
pub mod to_proto;
pub mod unit_board;
pub mod webhooks;

pub use config::Config;
pub use serve::{Controller, Serving};
