//! The `crescendo-curator-node` binary.
fn main() {}
