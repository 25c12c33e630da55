//! crates/collective
