//! Networks, weight files, sampling and training steps of Crescendo, over libtorch.
//!
//! ```text
//!   config ──▶ flux ◀── weights (safetensors)        nano: pixels and words for the small preset
//!               ▲  ▲                                        │
//!      lora ────┘  └──── unope (position ids)               ▼ latents, text tokens
//!               │                                     codec (traits)
//!      ┌────────┴────────┐
//!   sampler           training: loss, block-by-block backward, AdamW, EMA
//!   (schedule)        (randomness: noise, time and dropout by position)
//! ```
//!
//! - [`config`]: sizes and presets; [`flux`]: the diffusion transformer; [`lora`]: the adapter and its file;
//! - [`naming`], [`lora_names`]: whose names a weight file has, read as the published ones; [`inspect`]: what a file is, from its header;
//! - [`lora_export`]: the adapter under the names of other loaders; [`header`]: names, shapes and dtypes;
//! - [`weights`]: safetensors in and out, nothing in a file trusted;
//! - [`unope`], [`packing`], [`schedule`]: positions, tokens and times as the published code has them;
//! - [`drawing`]: prompts and references to pictures; [`sampler`]: Euler integration with references; [`training`]: gradients by bucket, optimizer;
//! - [`randomness`]: every draw a function of (job seed, stage, position);
//! - [`pictures`]: image files to what networks take; [`score`]: features to similarities; [`speed`]: how fast each precision is here;
//! - [`codec`], [`nano`]: encoders and decoders of images and text; [`autoencoder`]: FLUX's, for images;
//! - [`dino`], [`dinov2`]: encoders that compare images; [`owlv2`]: finds what a text names;
//! - [`tokenizer`], [`t5`], [`clip`]: prompts to ids to features; [`flux_text`]: what FLUX.1 takes, from those three.
//!
//! Every function that takes tensors states their shapes; one that does not fit is a [`ModelError`] that
//! names it, never a panic.

pub mod autoencoder;
pub mod clip;
pub mod codec;
pub mod config;
pub mod dino;
pub mod dinov2;
pub mod drawing;
pub mod encoder_files;
mod error;
mod float8;
pub mod flux;
pub mod flux_text;
mod foreign;
pub mod fused;
pub mod header;
pub mod inspect;
mod layers;
pub mod lora;
pub mod lora_export;
pub mod lora_names;
mod lora_sites;
pub mod naming;
pub mod nano;
pub mod of_spec;
pub mod owlv2;
pub mod packing;
mod params;
pub mod pictures;
mod published;
pub mod randomness;
pub mod sampler;
pub mod schedule;
pub mod score;
pub mod speed;
pub mod t5;
pub mod tokenizer;
pub mod training;
mod transformer;
pub mod unope;
pub mod validation;
mod vit;
pub mod weight_files;
pub mod weights;

pub use config::{FluxConfig, Preset};
pub use error::{ModelError, ProblemKind, Result, TensorProblem};
pub use flux::{Flux, FluxInputs, RopeCache, RopeTable};
pub use lora::{BlockSelection, LoraAdapter};
pub use tch;
pub use transformer::Activation;
