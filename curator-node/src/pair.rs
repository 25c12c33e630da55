//! What curation makes: a pair, or the reason why there is none.

use image::RgbImage;
use serde_json::Value;
use std::collections::BTreeMap;

/// A prompt, the picture that it describes, and pictures of the subjects in it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub target: RgbImage,
    /// In the order of the model's references; none for plain text-to-image.
    pub references: Vec<RgbImage>,
    /// True of `target`.
    pub prompt: String,
    /// What each reference shows, in their order.
    pub reference_words: Vec<String>,
    /// By name of the filter: `similarity`, `judge`, `score`.
    pub scores: BTreeMap<String, f64>,
    /// Enough to make the pair again: seed, unit, candidate, source ids.
    pub provenance: Value,
}

/// Why a candidate is not in the pair log. The fixed set that is counted and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    SimilarityLow,
    SimilarityHigh,
    UnreadableImage,
    MissingFile,
    ScoreLow,
    ScoreInvalid,
    TooSmall,
    JudgeLow,
    JudgeRefused,
    JudgeUnparseable,
}

impl Rejection {
    pub const ALL: [Rejection; 10] = [
        Rejection::SimilarityLow,
        Rejection::SimilarityHigh,
        Rejection::UnreadableImage,
        Rejection::MissingFile,
        Rejection::ScoreLow,
        Rejection::ScoreInvalid,
        Rejection::TooSmall,
        Rejection::JudgeLow,
        Rejection::JudgeRefused,
        Rejection::JudgeUnparseable,
    ];

    /// The name that goes to the controller and into metrics.
    pub fn name(self) -> &'static str {
        match self {
            Rejection::SimilarityLow => "similarity_low",
            Rejection::SimilarityHigh => "similarity_high",
            Rejection::UnreadableImage => "unreadable_image",
            Rejection::MissingFile => "missing_file",
            Rejection::ScoreLow => "score_low",
            Rejection::ScoreInvalid => "score_invalid",
            Rejection::TooSmall => "too_small",
            Rejection::JudgeLow => "judge_low",
            Rejection::JudgeRefused => "judge_refused",
            Rejection::JudgeUnparseable => "judge_unparseable",
        }
    }
}
