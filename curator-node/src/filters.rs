//! What looks at candidates, and turns some down.
//!
//! | module | content |
//! |---|---|
//! | [`similarity`] | reference and target, compared by an image encoder |
//! | [`judge`] | a vision-language model asked in three turns, or CLIP |

pub mod judge;
pub mod similarity;
