//! Where the paths of a spec lead on this machine, and what lies there.

pub mod fingerprint;

pub use crescendo_node::paths::{PathError, PathResolver};
