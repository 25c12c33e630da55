//! The curator: makes pairs (a prompt, a target picture, reference pictures) and serves them to ranks, encoded.
//!
//! ```text
//!                  controller                                                     object store
//!   AssignCuration │   ▲ LeaseUnit, RenewUnit, CommitUnit                          ▲        │
//!                  ▼   │                                                           │        │
//!   node ─▶ curation ──┴─ unit: source ─▶ filter ─▶ shard ─────────────────────────┘        │
//!     │                    (compose,       (similarity,   (curation thread)                 ▼
//!     │                     import,         judge)                                   shard_cache
//!     │                     generate ─ studio ◀─ earlier ─ a stage's checkpoint, its log   │
//!     │                     recompose)                                                     │
//!     └──▶ pair_log ◀── WatchPairLog                                                        │
//!              │                                                                            │
//!   rank ◀── serve ◀──────────── encode (encoding thread) ◀─────────────────────────────────┘
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`compose`] | subject cut-outs placed in scenes, with true captions; evaluation cases |
//! | [`import`], [`export`] | UNO-1M's layout, in and out, and shards |
//! | [`generate`], [`divider`] | pictures of two panels, drawn by the job's base, and where they are split |
//! | [`mod@recompose`] | second subjects cut out of targets, and drawn once more by an earlier stage's model |
//! | [`studio`], [`earlier`] | the networks that draw; what is taken from an earlier stage |
//! | [`source`], [`mod@unit`] | a stage's source; one unit from candidates to a shard |
//! | [`prompts`] | what drawn pictures are to show: taxonomy, subjects, scenes |
//! | [`filter`] | the similarity filter |
//! | [`judge`] | the judge: a vision-language model asked in three turns, or CLIP |
//! | [`endpoint`] | language models over an OpenAI-compatible interface: limits, money, answers written down |
//! | [`rejected`], [`picture`], [`draw`] | candidates that were turned down, pictures resized, randomness as a function |
//! | [`shard_cache`] | verified shards, kept |
//! | [`review`] | what a person is shown of the candidates that were turned down |
//! | [`curation`] | the lease loop of a stage |
//! | [`counts`] | how far the unit in the making is |
//! | [`mirror`] | files of a bucket that a stage needs on this machine |
//! | [`pair_log`] | what is known of a stage's log |
//! | [`encode`], [`serve`] | pairs as ranks take them; credits |
//! | [`send`] | files of checkpoints, read for people |
//! | [`worker`] | the named threads that own networks |
//! | [`node`], [`metrics`] | assignments; what is counted |
//! | [`memory`] | how the process holds memory |
//!
//! A pair is a function of (spec, seed, stage, unit, candidate), so the log is the same whoever makes which unit.
//! Only what a language model says is not; it is written down once, before it is used, and read from there by
//! everyone.

pub mod compose;
pub mod counts;
pub mod curation;
pub mod divider;
pub mod draw;
pub mod earlier;
pub mod encode;
pub mod endpoint;
pub mod export;
pub mod filter;
pub mod generate;
pub mod import;
pub mod judge;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod pair_log;
pub mod picture;
pub mod prompts;
pub mod recompose;
pub mod rejected;
pub mod review;
pub mod send;
pub mod serve;
pub mod shard_cache;
pub mod source;
pub mod studio;
pub mod unit;
pub mod worker;
