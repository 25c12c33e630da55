//! What a node says of itself at the beginning of a session.

use std::fmt::Display;

use crescendo_core::precision::Arithmetic;
use crescendo_proto::convert::arithmetic_message;
use crescendo_proto::v1::{Hello, NodeKind};

use crate::runtime::args::NodeArgs;
use crate::runtime::random;

/// What it computes with.
pub struct Computes<'a> {
    /// Ranks that fit; none on a curator.
    pub slots: u32,
    pub device: &'a str,
    pub arithmetic: &'a Arithmetic,
    /// Of the smallest GPU that ranks get here; none on processors, or if it is not known.
    pub device_memory_bytes: Option<u64>,
}

impl<'a> Computes<'a> {
    /// Of a node that takes no ranks.
    pub fn of_curator(device: &'a str, arithmetic: &'a Arithmetic) -> Self {
        Self { slots: 0, device, arithmetic, device_memory_bytes: None }
    }
}

/// All but what changes while the process runs. Each start of a process has an incarnation of its own.
pub fn introduction(args: &NodeArgs, kind: NodeKind, address: String, computes: Computes<'_>) -> Hello {
    let Computes { slots, device, arithmetic, device_memory_bytes } = computes;
    Hello {
        node_id: args.node_id.clone(),
        incarnation: random::id(),
        kind: kind.into(),
        slots,
        device: device.to_owned(),
        address,
        labels: args.labels.iter().cloned().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        running: Vec::new(),
        curating: Vec::new(),
        left: Vec::new(),
        health: None,
        // The session says so itself.
        draining: false,
        arithmetic: Some(arithmetic_message(arithmetic)),
        device_memory_bytes: device_memory_bytes.unwrap_or(0),
    }
}

/// What was measured of a node's arithmetic; where that failed, a warning says so.
pub fn measured((arithmetic, untimed): (Arithmetic, Option<impl Display>)) -> Arithmetic {
    if let Some(error) = untimed {
        tracing::warn!(%error, "a product could not be timed: stages whose precision is auto take f32 for it");
    }
    arithmetic
}
