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
    /// No border between two panels shows in a drawn picture.
    NoDivider,
    /// More than one does.
    SeveralDividers,
    /// The detector found nothing that the caption names besides the first subject.
    NoSecondSubject,
    /// What it found takes too little of the target.
    BoxSmall,
    /// … too much of it.
    BoxLarge,
    /// … lies in another subject's box.
    BoxOverlap,
    /// … is cut off by the edge.
    BoxEdge,
    JudgeLow,
    JudgeRefused,
    JudgeUnparseable,
    /// A record that is not of the expected shape.
    MalformedRecord,
    /// A record whose pictures an earlier record has.
    DuplicateRecord,
    /// A path that leads out of the data's folder.
    BadPath,
    /// A caption that is empty, huge, or has characters that steer terminals or the direction of text.
    BadCaption,
    /// A total that is not the mean of its parts, where the spec wants no such record.
    ScoreDisagrees,
}

impl Rejection {
    pub const ALL: [Rejection; 22] = [
        Rejection::SimilarityLow,
        Rejection::SimilarityHigh,
        Rejection::UnreadableImage,
        Rejection::MissingFile,
        Rejection::ScoreLow,
        Rejection::ScoreInvalid,
        Rejection::TooSmall,
        Rejection::NoDivider,
        Rejection::SeveralDividers,
        Rejection::NoSecondSubject,
        Rejection::BoxSmall,
        Rejection::BoxLarge,
        Rejection::BoxOverlap,
        Rejection::BoxEdge,
        Rejection::JudgeLow,
        Rejection::JudgeRefused,
        Rejection::JudgeUnparseable,
        Rejection::MalformedRecord,
        Rejection::DuplicateRecord,
        Rejection::BadPath,
        Rejection::BadCaption,
        Rejection::ScoreDisagrees,
    ];

    /// The name that goes to the controller and into metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Rejection::SimilarityLow => "similarity_low",
            Rejection::SimilarityHigh => "similarity_high",
            Rejection::UnreadableImage => "unreadable_image",
            Rejection::MissingFile => "missing_file",
            Rejection::ScoreLow => "score_low",
            Rejection::ScoreInvalid => "score_invalid",
            Rejection::TooSmall => "too_small",
            Rejection::NoDivider => "no_divider",
            Rejection::SeveralDividers => "several_dividers",
            Rejection::NoSecondSubject => "no_second_subject",
            Rejection::BoxSmall => "box_small",
            Rejection::BoxLarge => "box_large",
            Rejection::BoxOverlap => "box_overlap",
            Rejection::BoxEdge => "box_edge",
            Rejection::JudgeLow => "judge_low",
            Rejection::JudgeRefused => "judge_refused",
            Rejection::JudgeUnparseable => "judge_unparseable",
            Rejection::MalformedRecord => "malformed_record",
            Rejection::DuplicateRecord => "duplicate_record",
            Rejection::BadPath => "bad_path",
            Rejection::BadCaption => "bad_caption",
            Rejection::ScoreDisagrees => "score_disagrees",
        }
    }
}

/// A candidate that was turned down, with the pair itself where there is one to look at.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub reason: Rejection,
    pub pair: Option<Box<Pair>>,
}

impl Rejected {
    pub fn of(reason: Rejection, pair: Pair) -> Rejected {
        Rejected { reason, pair: Some(Box::new(pair)) }
    }
}

impl From<Rejection> for Rejected {
    fn from(reason: Rejection) -> Rejected {
        Rejected { reason, pair: None }
    }
}
