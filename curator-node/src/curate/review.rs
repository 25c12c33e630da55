//! What a person is shown of the candidates that were turned down: a few of each reason, small.
//!
//! They lie beside the log as a WebDataset tar a unit, `jobs/<job>/<stage>/rejected/unit-<n>.tar`, in the form of the
//! accepted pairs; `provenance.rejected` says why. A unit's content does not depend on who makes it, so the first to
//! write its sample has written it for all. Nothing is trained on it, and no record names it.

use crate::candidates::Rejected;
use crescendo_core::rejection::Rejection;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::{ShardBytes, ShardError, ShardWriter};
use image::RgbImage;
use std::collections::BTreeMap;

/// Candidates kept of each reason in a unit.
const MOST_OF_A_REASON: usize = 2;
/// Longest side of a kept picture, pixels.
const MOST_PIXELS: u32 = 256;

/// The rejected candidates of one unit that are kept.
#[derive(Clone, Debug, Default)]
pub struct RejectedSample {
    kept: BTreeMap<Rejection, Vec<Pair>>,
}

impl RejectedSample {
    /// Keeps a candidate if it has pictures and is among the first of its reason.
    pub fn offer(&mut self, rejected: Rejected) {
        let Rejected { reason, pair: Some(pair) } = rejected else { return };
        let kept = self.kept.entry(reason).or_default();
        if kept.len() < MOST_OF_A_REASON {
            kept.push(small(*pair, reason));
        }
    }

    /// The sample of which [`RejectedSample::finish`] made these pairs.
    pub fn of(pairs: Vec<Pair>) -> Result<RejectedSample, String> {
        let mut kept: BTreeMap<Rejection, Vec<Pair>> = BTreeMap::new();
        for pair in pairs {
            let facts = pair.facts();
            let name = facts.rejected();
            let reason = Rejection::named(name).ok_or_else(|| format!("{name:?} is no reason"))?;
            kept.entry(reason).or_default().push(pair);
        }
        Ok(RejectedSample { kept })
    }

    /// The sample as a tar, by reason's name; none if it is empty.
    pub fn finish(self) -> Result<Option<ShardBytes>, ShardError> {
        let mut by_name: Vec<(Rejection, Vec<Pair>)> = self.kept.into_iter().collect();
        by_name.sort_by_key(|(reason, _)| reason.name());
        let mut writer = ShardWriter::default();
        let mut empty = true;
        for pair in by_name.iter().flat_map(|(_, pairs)| pairs) {
            writer.push(pair)?;
            empty = false;
        }
        if empty { Ok(None) } else { writer.finish().map(Some) }
    }
}

fn small(mut pair: Pair, reason: Rejection) -> Pair {
    pair.target = thumbnail(&pair.target);
    pair.references = pair.references.iter().map(thumbnail).collect();
    pair.note_rejection(reason);
    pair
}

/// The picture with no side longer than [`MOST_PIXELS`].
fn thumbnail(picture: &RgbImage) -> RgbImage {
    let longest = picture.width().max(picture.height());
    if longest <= MOST_PIXELS {
        return picture.clone();
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(MOST_PIXELS) / u64::from(longest)).max(1) as u32;
    image::imageops::thumbnail(picture, scaled(picture.width()), scaled(picture.height()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::read_shard;
    use serde_json::{Value, json};

    fn rejected(reason: Rejection, width: u32) -> Rejected {
        let pair = Pair {
            target: RgbImage::new(width, 100),
            references: vec![RgbImage::new(30, 40)],
            prompt: format!("{width}"),
            reference_words: vec![],
            scores: Default::default(),
            provenance: Value::Null,
        };
        Rejected { reason, pair: Some(Box::new(pair)) }
    }

    #[test]
    fn the_first_of_each_reason_are_kept_small() {
        let mut sample = RejectedSample::default();
        for width in [1024, 2, 3] {
            sample.offer(rejected(Rejection::TooSmall, width));
            sample.offer(rejected(Rejection::ScoreLow, width));
        }
        sample.offer(Rejection::MissingFile.into());
        let bytes = sample.finish().expect("write").expect("some").bytes;
        let kept: Vec<(String, (u32, u32), Value)> = read_shard(bytes.as_slice())
            .expect("read")
            .into_iter()
            .map(|pair| (pair.prompt, pair.target.dimensions(), pair.provenance["rejected"].clone()))
            .collect();
        assert_eq!(
            kept,
            [
                ("1024".to_owned(), (256, 25), json!("score_low")),
                ("2".to_owned(), (2, 100), json!("score_low")),
                ("1024".to_owned(), (256, 25), json!("too_small")),
                ("2".to_owned(), (2, 100), json!("too_small")),
            ]
        );
        assert!(RejectedSample::default().finish().expect("nothing to write").is_none());
    }
}
