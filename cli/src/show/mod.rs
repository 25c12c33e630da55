//! What is printed: tables and JSON, the progress of a job, spec problems with their place.

pub mod job;
pub mod json;
pub mod problems;
pub mod progress;
pub mod table;
pub mod words;
