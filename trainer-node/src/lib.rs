//! The trainer node: an agent that supervises rank processes, and the ranks that train.
//!
//! ```text
//!             controller
//!                 ▲ one session                        object store
//!                 ▼                                          ▲ checkpoints
//!   ┌─ agent ───────────────────┐      ┌─ rank (one a device)┴─────────────┐
//!   │ starts, watches, reports, │◀────▶│ fetch ─▶ train ─▶ save            │◀──▶ other ranks
//!   │ commits checkpoints       │      └───▲───────────────────────────────┘     (all-reduce)
//!   └───────────────────────────┘          └── pairs ── curators
//! ```
//!
//! * [`agent`]: `crescendo-trainer-node agent`, one a machine. Holds the session with the controller. No tensors.
//! * [`rank`]: `crescendo-trainer-node rank`, started by the agent, killable at any moment.
//!
//! A rank that dies, or an agent that dies with its ranks, costs the steps since the last checkpoint; the gang goes on
//! from there under a new generation and ends with the same bits.

pub mod agent;
mod kernel_choice;
pub mod rank;

use clap::{Parser, Subcommand};

/// Trains on this machine's devices for a Crescendo cluster.
#[derive(Debug, Parser)]
#[command(name = "crescendo-trainer-node", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this machine's devices to a cluster
    Agent(Box<agent::run::AgentArgs>),
    /// One process of a gang; started by the agent
    #[command(hide = true)]
    Rank(Box<rank::run::RankArgs>),
}
