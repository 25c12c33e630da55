//! The curator: makes pairs (a prompt, a target picture, reference pictures) and serves them to ranks, encoded.
pub mod compose;
pub mod draw;
pub mod pair;
