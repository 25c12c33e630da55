//! Why candidates are turned down. The one place where a reason is spelled: curators count them, the controller takes no other, and
//! people read them.

/// Why a candidate is not in the pair log. The fixed set that is counted and reported: in the log's records, in
/// metrics and by `explain`, under [`Rejection::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    SimilarityLow,
    SimilarityHigh,
    UnreadableImage,
    MissingFile,
    ScoreLow,
    ScoreInvalid,
    TooSmall,
    /// A picture whose sides are no whole number of the network's tokens, where it is taken as it is.
    BadSize,
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
    /// Not a candidate's: a whole unit was given up after too many failures.
    UnitQuarantined,
}

impl Rejection {
    pub const ALL: [Rejection; 24] = [
        Rejection::SimilarityLow,
        Rejection::SimilarityHigh,
        Rejection::UnreadableImage,
        Rejection::MissingFile,
        Rejection::ScoreLow,
        Rejection::ScoreInvalid,
        Rejection::TooSmall,
        Rejection::BadSize,
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
        Rejection::UnitQuarantined,
    ];

    /// Those of a single candidate: all but the last.
    pub const OF_CANDIDATES: usize = Self::ALL.len() - 1;

    /// The name under which it is recorded, reported and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Rejection::SimilarityLow => "similarity_low",
            Rejection::SimilarityHigh => "similarity_high",
            Rejection::UnreadableImage => "unreadable_image",
            Rejection::MissingFile => "missing_file",
            Rejection::ScoreLow => "score_low",
            Rejection::ScoreInvalid => "score_invalid",
            Rejection::TooSmall => "too_small",
            Rejection::BadSize => "bad_size",
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
            Rejection::UnitQuarantined => "unit_quarantined",
        }
    }

    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<Rejection> {
        Self::ALL.into_iter().find(|rejection| rejection.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_reason_is_known_by_a_name_of_its_own() {
        let names: BTreeSet<&str> = Rejection::ALL.map(Rejection::name).into();
        assert_eq!(names.len(), Rejection::ALL.len());
        assert!(
            Rejection::ALL.into_iter().all(|rejection| Rejection::named(rejection.name()) == Some(rejection))
        );
        assert_eq!(Rejection::named("nonesuch"), None);
    }
}
