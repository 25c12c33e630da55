//! What looks at candidates, and turns some down.
//!
//! | module | content |
//! |---|---|
//! | [`similarity`] | reference and target, compared by an image encoder |
//! | [`judge`] | a vision-language model asked in three turns, or CLIP |
//!
//! A source turns down what it cannot make into a pair itself, with the reason in place of the candidate; `recompose` applies the
//! similarity filter to what it redraws. `curate::unit` runs the filters over the rest.

pub mod judge;
pub mod similarity;
