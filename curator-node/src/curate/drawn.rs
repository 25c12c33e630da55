//! A unit between its drawing and its shard: the pairs that passed the filters of this machine, and what is known of the rest.
//!
//! ```text
//!   draw (curation thread) ─▶ DrawnUnit ─▶ an endpoint's answers, if one judges ─▶ finish ─▶ UnitResult
//!                                │  ▲
//!                                ▼  │ after a restart
//!                            drawn_store
//! ```
//!
//! It is written down as one file, so that neither an outage of the endpoint nor a restart draws it again: the SHA-256 of the
//! rest as hexadecimal digits, the length of the head as four bytes, the head as JSON, a tar of the pairs, a tar of the sample
//! of rejected candidates.

use crate::candidates::Rejected;
use crate::counts::Counts;
use crate::curate::review::RejectedSample;
use crate::filters::judge::Judged;
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::rejection::Rejection;
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::{ShardBytes, ShardError, ShardWriter, read_shard};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a unit came to.
#[derive(Debug)]
pub struct UnitResult {
    pub shard: ShardBytes,
    pub rejected: BTreeMap<Rejection, u64>,
    /// Scores of all candidates that have any.
    pub scores: ScoreCounts,
    /// A few of the rejected candidates, for people to look at; none if there is nothing to see.
    pub rejected_sample: Option<ShardBytes>,
    pub exhausted: bool,
    /// Of every compared pair, in order.
    pub cosines: Vec<f64>,
    /// Scores of every judged pair, in order.
    pub judged: Vec<f64>,
}

/// A unit as far as networks of this machine make it.
#[derive(Debug, Default)]
pub struct DrawnUnit {
    /// Candidates that the source gave, rejected ones included.
    pub candidates: u64,
    /// What passed so far, in order.
    pub passed: Vec<Pair>,
    pub rejected: BTreeMap<Rejection, u64>,
    /// Scores of the candidates that were turned down.
    pub scores: ScoreCounts,
    pub sample: RejectedSample,
    /// The source has no more after this unit.
    pub exhausted: bool,
    /// Of every compared pair, in order.
    pub cosines: Vec<f64>,
    /// Scores of every pair that was judged here, in order.
    pub judged: Vec<f64>,
}

impl DrawnUnit {
    /// Takes note of a candidate that a filter turned down.
    pub fn reject(&mut self, turned_down: Rejected) {
        count(&mut self.scores, turned_down.pair.as_deref());
        *self.rejected.entry(turned_down.reason).or_default() += 1;
        self.sample.offer(turned_down);
    }

    /// Takes over what an endpoint's judge says of the pairs: one word for each of [`DrawnUnit::passed`], in their order.
    pub fn judge(&mut self, judged: Vec<Judged>) {
        self.passed.clear();
        for one in judged {
            self.judged.extend(one.score);
            match one.outcome {
                Ok(pair) => self.passed.push(pair),
                Err(turned_down) => self.reject(turned_down),
            }
        }
    }

    /// The shard of what passed. The same unit gives the same bytes.
    pub fn finish(self, counts: &Counts) -> Result<UnitResult, ShardError> {
        let DrawnUnit { passed, rejected, mut scores, sample, exhausted, cosines, judged, candidates: _ } =
            self;
        let mut writer = ShardWriter::default();
        for pair in &passed {
            count(&mut scores, Some(pair));
            writer.push(pair)?;
            counts.accepted(1);
        }
        let rejected_sample = sample.finish()?;
        let shard = writer.finish()?;
        Ok(UnitResult { shard, rejected, scores, rejected_sample, exhausted, cosines, judged })
    }
}

/// Counts the scores of a candidate.
pub(super) fn count(scores: &mut ScoreCounts, pair: Option<&Pair>) {
    for (name, value) in pair.iter().flat_map(|pair| &pair.scores) {
        scores.count(name, *value);
    }
}

/// What a kept unit begins with.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// Of everything that decides the unit.
    key: String,
    candidates: u64,
    /// By name of the reason.
    rejected: BTreeMap<String, u64>,
    scores: BTreeMap<String, Vec<u64>>,
    exhausted: bool,
    cosines: Vec<f64>,
    judged: Vec<f64>,
    /// Sizes of the tars behind it; nothing was rejected where the second is 0.
    passed_bytes: u64,
    sample_bytes: u64,
}

/// Digits of a SHA-256.
const DIGEST_BYTES: usize = 64;

/// A unit as a file that is kept under `key`.
pub fn to_bytes(drawn: &DrawnUnit, key: &str) -> Result<Vec<u8>, ShardError> {
    let mut writer = ShardWriter::default();
    for pair in &drawn.passed {
        writer.push(pair)?;
    }
    let (passed, sample) = (writer.finish()?, drawn.sample.clone().finish()?);
    let head = Head {
        key: key.to_owned(),
        candidates: drawn.candidates,
        rejected: drawn.rejected.iter().map(|(reason, n)| (reason.name().to_owned(), *n)).collect(),
        scores: drawn.scores.counts().clone(),
        exhausted: drawn.exhausted,
        cosines: drawn.cosines.clone(),
        judged: drawn.judged.clone(),
        passed_bytes: passed.bytes.len() as u64,
        sample_bytes: sample.as_ref().map_or(0, |sample| sample.bytes.len() as u64),
    };
    let failed = |reason: String| ShardError::Entry { entry: "head".to_owned(), reason };
    let head = serde_json::to_vec(&head).map_err(|e| failed(e.to_string()))?;
    let length = u32::try_from(head.len()).map_err(|e| failed(e.to_string()))?;
    let sample = sample.map(|sample| sample.bytes).unwrap_or_default();
    let content = [length.to_le_bytes().as_slice(), &head, &passed.bytes, &sample].concat();
    Ok([sha256_hex(&content).as_bytes(), &content].concat())
}

/// The first bytes, and what is behind them.
fn split(bytes: &[u8], size_bytes: u64) -> Result<(&[u8], &[u8]), String> {
    let size = usize::try_from(size_bytes).map_err(|e| e.to_string())?;
    bytes.split_at_checked(size).ok_or_else(|| "it is cut short".to_owned())
}

/// The unit that was kept under `key`; none if the file is of another key. The error says what is wrong with it.
pub fn of_bytes(bytes: &[u8], key: &str) -> Result<Option<DrawnUnit>, String> {
    let (digest, content) = split(bytes, DIGEST_BYTES as u64)?;
    if sha256_hex(content).as_bytes() != digest {
        return Err("its content is not what was written".to_owned());
    }
    let (length, rest) = content.split_first_chunk::<4>().ok_or("it is cut short")?;
    let (head, rest) = split(rest, u64::from(u32::from_le_bytes(*length)))?;
    let head: Head = serde_json::from_slice(head).map_err(|e| format!("its head: {e}"))?;
    if head.key != key {
        return Ok(None);
    }
    let rejected = head.rejected.iter().map(|(name, n)| {
        let reason = Rejection::named(name).ok_or_else(|| format!("{name:?} is no reason"))?;
        Ok((reason, *n))
    });
    let rejected = rejected.collect::<Result<_, String>>()?;
    let (passed, rest) = split(rest, head.passed_bytes)?;
    let (sample, _) = split(rest, head.sample_bytes)?;
    let pairs = |tar: &[u8]| read_shard(tar).map_err(|e| e.to_string());
    let sample = if sample.is_empty() { Vec::new() } else { pairs(sample)? };
    Ok(Some(DrawnUnit {
        candidates: head.candidates,
        passed: pairs(passed)?,
        rejected,
        scores: ScoreCounts::checked(head.scores)?,
        sample: RejectedSample::of(sample)?,
        exhausted: head.exhausted,
        cosines: head.cosines,
        judged: head.judged,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::StageCurator;
    use crate::curate::unit::tests::{job, paths};
    use crate::sources::recompose::ParentPairs;
    use std::sync::atomic::AtomicBool;

    fn drawn(folder: &std::path::Path, unit: u64) -> DrawnUnit {
        // Limits that turn down some of the candidates.
        let job = job(folder, 1, Some((0.0, 0.9)));
        let mut curator = StageCurator::open(&job, 0, &paths(folder)).expect("open");
        curator.draw(unit, ParentPairs::default(), &AtomicBool::new(false)).expect("draw")
    }

    #[test]
    fn a_unit_that_was_kept_ends_in_the_same_bytes() {
        let folder = tempfile::tempdir().expect("make a folder");
        let unit = drawn(folder.path(), 3);
        assert!(!unit.passed.is_empty() && !unit.rejected.is_empty(), "{:?}", unit.rejected);
        let bytes = to_bytes(&unit, "key").expect("write");
        assert!(of_bytes(&bytes, "other").expect("it can be read").is_none());
        let again = of_bytes(&bytes, "key").expect("read").expect("it is of this key");
        let counts = Counts::default();
        let (first, second) = (unit.finish(&counts).expect("finish"), again.finish(&counts).expect("finish"));
        assert_eq!((&first.shard, &first.rejected_sample), (&second.shard, &second.rejected_sample));
        assert_eq!((&first.rejected, &first.scores), (&second.rejected, &second.scores));
        assert_eq!((first.cosines, first.exhausted), (second.cosines, second.exhausted));
    }

    #[test]
    fn damage_is_seen_wherever_it_is() {
        let folder = tempfile::tempdir().expect("make a folder");
        let bytes = to_bytes(&drawn(folder.path(), 0), "key").expect("write");
        for cut in (0..bytes.len()).step_by(bytes.len() / 60) {
            assert!(of_bytes(&bytes[..cut], "key").is_err(), "cut at {cut} of {}", bytes.len());
        }
        for place in (0..bytes.len()).step_by(bytes.len() / 60) {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            assert!(of_bytes(&flipped, "key").is_err(), "flipped at {place}");
        }
    }
}
