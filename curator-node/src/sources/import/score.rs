//! The score of a published record.

use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{ScoreDisagreement, ScoreInvalid};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Scores are from 0 to this.
const BEST_SCORE: f64 = 4.0;
/// Parts of one record beyond which they are no description of a pair; the published ones have at most 20.
const MAX_PARTS: usize = 64;
/// A total that is this near to the mean of its parts agrees with it: totals are rounded.
const AGREES_WITHIN: f64 = 0.01;

/// As published.
#[derive(Default, Deserialize)]
pub struct Scores {
    #[serde(default)]
    pub score_part: BTreeMap<String, f64>,
    #[serde(default)]
    pub score_final: Option<f64>,
}

/// What the spec says of doubtful scores.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRule {
    pub disagreement: ScoreDisagreement,
    pub invalid: ScoreInvalid,
}

/// A record's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub score: f64,
    /// The published total, where it is not the mean of its parts.
    pub disagreeing_total: Option<f64>,
}

/// The mean of the parts; the total where there are no parts, or where the rule trusts it. Anything outside 0 to 4 is no
/// score.
pub fn score(scores: &Scores, rule: ScoreRule) -> Result<Scored, Rejection> {
    let valid = |score: f64| (0.0..=BEST_SCORE).contains(&score);
    let given = || scores.score_part.values().copied().chain(scores.score_final);
    if scores.score_part.len() > MAX_PARTS || (rule.invalid == ScoreInvalid::Reject && !given().all(valid)) {
        return Err(Rejection::ScoreInvalid);
    }
    let parts: Vec<f64> = scores.score_part.values().copied().filter(|part| valid(*part)).collect();
    let mean = (!parts.is_empty()).then(|| parts.iter().sum::<f64>() / parts.len() as f64);
    let (score, disagreeing_total) = match (mean, scores.score_final.filter(|total| valid(*total))) {
        (None, None) => return Err(Rejection::ScoreInvalid),
        (Some(score), None) | (None, Some(score)) => (score, None),
        (Some(mean), Some(total)) if (mean - total).abs() <= AGREES_WITHIN => (mean, None),
        (Some(mean), Some(total)) => match rule.disagreement {
            ScoreDisagreement::Recompute => (mean, Some(total)),
            ScoreDisagreement::Trust => (total, Some(total)),
            ScoreDisagreement::Reject => return Err(Rejection::ScoreDisagrees),
        },
    };
    Ok(Scored { score, disagreeing_total })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECOMPUTE: ScoreRule =
        ScoreRule { disagreement: ScoreDisagreement::Recompute, invalid: ScoreInvalid::Reject };

    fn scores(parts: &[f64], total: Option<f64>) -> Scores {
        let score_part = parts.iter().enumerate().map(|(n, part)| (format!("part {n}"), *part)).collect();
        Scores { score_part, score_final: total }
    }

    fn of(parts: &[f64], total: Option<f64>, rule: ScoreRule) -> Result<(f64, bool), Rejection> {
        score(&scores(parts, total), rule).map(|s| (s.score, s.disagreeing_total.is_some()))
    }

    #[test]
    fn the_rule_decides_between_the_mean_and_the_total() {
        // The example of the published card: parts 4, 3, 4, 4 and a total of 3.5.
        let card = [4.0, 3.0, 4.0, 4.0];
        let with = |disagreement| ScoreRule { disagreement, ..RECOMPUTE };
        assert_eq!(of(&card, Some(3.5), RECOMPUTE), Ok((3.75, true)));
        assert_eq!(of(&card, Some(3.5), with(ScoreDisagreement::Trust)), Ok((3.5, true)));
        assert_eq!(of(&card, Some(3.5), with(ScoreDisagreement::Reject)), Err(Rejection::ScoreDisagrees));
        assert_eq!(of(&card, Some(3.75), with(ScoreDisagreement::Reject)), Ok((3.75, false)));
        assert_eq!(of(&[], Some(4.0), with(ScoreDisagreement::Reject)), Ok((4.0, false)));
        assert_eq!(of(&card, None, RECOMPUTE), Ok((3.75, false)));
    }

    #[test]
    fn what_is_outside_the_scale_is_rejected_or_ignored() {
        let ignore = ScoreRule { invalid: ScoreInvalid::Ignore, ..RECOMPUTE };
        for (parts, total, ignoring) in [
            (&[4.0, 3.0][..], Some(131_184.67), Ok((3.5, false))),
            (&[8.5, 4.0][..], Some(4.0), Ok((4.0, false))),
            (&[8.5][..], Some(4.0), Ok((4.0, false))),
            (&[-1.0][..], None, Err(Rejection::ScoreInvalid)),
            (&[f64::NAN][..], Some(f64::INFINITY), Err(Rejection::ScoreInvalid)),
        ] {
            assert_eq!(of(parts, total, RECOMPUTE), Err(Rejection::ScoreInvalid), "{parts:?} {total:?}");
            assert_eq!(of(parts, total, ignore), ignoring, "{parts:?} {total:?}");
        }
        assert_eq!(of(&[], None, ignore), Err(Rejection::ScoreInvalid));
        assert_eq!(of(&[4.0; MAX_PARTS + 1], None, ignore), Err(Rejection::ScoreInvalid));
    }
}
