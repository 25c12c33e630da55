//! The curator: makes pairs (a prompt, a target picture, reference pictures) and serves them to ranks, encoded.
//!
//! ```text
//!                  controller                                                     object store
//!   AssignCuration │   ▲ LeaseUnit, RenewUnit, CommitUnit                          ▲        │
//!                  ▼   │                                                           │        │
//!   node ─▶ curate ────┴─ unit: sources ─▶ filters ─▶ shard ───────────────────────────────┘        │
//!     │                    (compose,        (similarity,   (curation thread)                        ▼
//!     │                     import,          judge)                                          shard_cache
//!     │                     generate ─ pipeline ◀─ parent_stage ─ its checkpoint, its log           │
//!     │                     recompose)                                                              │
//!     └──▶ pair_log ◀── WatchPairLog                                                                │
//!              │                                                                                    │
//!   rank ◀── serve ◀──────────── encode (encoding thread) ◀─────────────────────────────────────────┘
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`curate`] | leases: a stage's loop, a unit from candidates to a shard, what is taken from the parent stage |
//! | [`sources`] | what makes candidates: composed, imported, drawn, redrawn |
//! | [`filters`] | what turns them down: similarity, judge |
//! | [`llm`] | language models over an OpenAI-compatible interface: limits, money, a cache of responses |
//! | [`serve`] | what hands pairs out: the followed log, verified shards, encoding, credits; files for people |
//! | [`pipeline`] | the networks that draw |
//! | `samples` | pictures that are drawn with a checkpoint for people, and the loss on pairs that training never sees |
//! | [`candidates`] | candidates of pairs, and those that were turned down |
//! | [`phrase`], [`images`], [`rng`] | text from outside, cleaned; pictures, decoded and resized; randomness as a function |
//! | [`paths`] | where the paths of a spec lead |
//! | [`counts`] | how far the unit in the making is |
//! | [`worker`] | the named threads that own networks |
//! | [`node`], [`metrics`], [`memory`] | assignments; what is counted; how the process holds memory |
//! | [`export`] | a stage's pairs in UNO-1M's layout |
//!
//! A pair is a function of (spec, seed, stage, unit, candidate), so the log is the same whoever makes which unit.
//! Only what a language model says is not; it is written down once, before it is used, and read from there by
//! everyone.

pub mod candidates;
pub mod counts;
pub mod curate;
pub mod export;
pub mod filters;
pub mod images;
pub mod llm;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod paths;
pub mod phrase;
pub mod pipeline;
pub mod rng;
mod samples;
pub mod serve;
pub mod sources;
pub mod worker;
