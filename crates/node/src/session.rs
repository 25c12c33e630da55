//! A node and the controller: the one stream between them ([`NodeSession`]), what goes over it, and single calls.
//!
//! | module | content |
//! |---|---|
//! | [`call`] | unary calls that are repeated until they are accepted or refused |
//! | [`reports`] | pure: the newest report of each attempt, coalesced, never lost |
//! | [`health`] | what is wrong with the node |
//! | [`store_watch`] | whether the object store is the one that it should be |
//! | [`unit_reports`] | how far curation units are, coalesced |

pub mod call;
pub mod health;
mod introduction;
mod node_session;
pub mod reports;
pub mod store_watch;
pub mod unit_reports;

pub use introduction::{Computes, introduction, measured};
pub use node_session::*;
