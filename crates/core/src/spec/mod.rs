//! The job spec: what a user asks for, with every default filled in.
//!
//! [`JobSpec`] is the resolved form that the controller stores and the nodes receive.

mod types;

pub use types::*;
