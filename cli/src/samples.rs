//! Pictures that were drawn with checkpoints, for people: fetched through the controller, which has a curator read them.

pub mod fetch;
pub mod grid;
