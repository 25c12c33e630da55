//! Training: flow-matching loss, block-by-block backward, optimizer.
//!
//! ```text
//!   micro-batches ─▶ TrainStep::gradients ─┬─ bucket k ready ─▶ caller starts its all-reduce
//!                                          └─ backward of block k−1 runs meanwhile
//!   all buckets reduced ─▶ FlatParams::grad_norm ─▶ AdamW::step (clip, average) ─▶ snapshot, copied during the next step
//! ```
//!
//! What trains (an adapter, or every weight of the base) lives in one flat float32 buffer per block, a
//! *bucket*: the network's tensors are views into it, so that an all-reduce, a norm or an optimizer step
//! is a handful of operations on long vectors. Nothing here waits for the device, unless passes are timed.

mod adamw;
mod backward;
mod explicit;
mod flat_params;
mod recompute;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod train_step;

pub use adamw::{AdamW, AdamWConfig, Clip, Ema, Update};
pub use flat_params::{Bucket, FlatParams};
pub use recompute::{ActivationShape, Recompute, plan_kept_blocks};
pub use train_step::{
    BlockPass, MicroBatch, MicroOutcome, NoisedTarget, OnBucket, PassTimes, TrainOptions, TrainStep,
};
