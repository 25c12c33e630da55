//! core
pub mod spec;
