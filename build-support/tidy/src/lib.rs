//! What the house's style says that a program can check: how long functions are, which files use each other in a circle, how many
//! rooms a crate has and how they depend on each other.
//!
//! It reads the sources as the compiler does, by `mod` declarations from each crate's roots, and resolves the paths that they name as
//! far as a syntax tree tells. Macros are not looked into.

pub mod circles;
pub mod functions;
pub mod literals;
pub mod source;
pub mod uses;
