//! A node and the controller: the one stream between them ([`NodeSession`]), what goes over it, and single calls.
//!
//! | module | content |
//! |---|---|
//! | [`call`] | unary calls that are repeated until they are accepted or refused |
//! | [`reports`] | pure: the newest report of each attempt, coalesced, never lost |
//! | [`unit_reports`] | how far curation units are, coalesced |

pub mod call;
mod introduction;
mod node_session;
pub mod reports;
pub mod unit_reports;

pub use introduction::{Computes, introduction, measured};
pub use node_session::*;
