//! Tools that need the networks: checks, evaluation and reports, as subcommands of `crescendo-workbench`.
//!
//! ```text
//!   crescendo parity … ──▶ crescendo-workbench parity … ──▶ crates/model held to golden numbers
//!                                    └─ parity-rank × n: data-parallel fixtures through real processes
//! ```
//!
//! - [`mod@bench`]: times the training step.
//! - [`doctor`]: whether libtorch, CUDA and NCCL are there and compute.
//! - [`eval`]: scores drawings of a benchmark.
//! - [`export_base`]: a checkpoint as a base.
//! - [`generate`]: pictures from a prompt and references.
//! - [`inspect`]: what a weight file is.
//! - [`lora`]: adapters for other loaders.
//! - [`measures`]: what is measured of drawings.
//! - [`parity`]: holds the model crate to a folder of fixtures.
//! - [`report`]: what a finished job has learned: scores, pictures, curves.
//! - [`serve_judge`]: a judge of pairs at nano size, behind an endpoint.
//! - [`train_encoder`]: trains the image encoder that filters and scores.

pub mod bench;
pub mod doctor;
pub mod eval;
pub mod export_base;
pub mod generate;
pub mod inspect;
pub mod lora;
pub mod measures;
pub mod parity;
pub mod report;
pub mod serve_judge;
pub mod train_encoder;
