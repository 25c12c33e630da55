//! UNO-1M as published: label files with one record a pair, pictures beside them.
//!
//! The reference is `img_path1`, the target `img_path2` with its caption; the spec may want the reverse too. What a label
//! file says is not trusted: neither its scores, nor its paths, nor its captions.

use super::ImportError;
use super::index::{Found, LabelIndex};
use super::score::{ScoreRule, Scored, Scores, score};
use crate::candidates::CandidateBatch;
use crate::candidates::Rejected;
use crate::counts::Counts;
use crate::images;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{Directions, ImportSpec};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::pictures::bucket::choose;
use crescendo_model::pictures::bucket::stretched;
use image::RgbImage;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Name of the published file that holds all records.
const TOTAL_LABELS: &str = "uno_1m_total_labels.json";
/// Characters of a caption beyond which it is none.
const MAX_CAPTION_CHARS: usize = 4096;
/// Candidates with too low a score that are read all the same, in each unit, so that a person can look at them.
const LOW_SHOWN: usize = 2;

#[derive(Deserialize)]
struct Label {
    img_path1: String,
    img_path2: String,
    caption: Captions,
    #[serde(default)]
    vlm_filter_cot: Scores,
}

#[derive(Deserialize)]
struct Captions {
    #[serde(default)]
    img_path1: String,
    #[serde(default)]
    img_path2: String,
    #[serde(default)]
    judgment: String,
    #[serde(default)]
    subject: Vec<String>,
}

/// A copy of the data set, or of a part of it.
#[derive(Debug)]
pub struct Uno1m {
    /// Label files in the order of their records.
    labels: Vec<PathBuf>,
    images: PathBuf,
    min_score: f64,
    rule: ScoreRule,
    directions: Directions,
    resolution: u32,
    /// Made when the first unit is.
    index: Option<LabelIndex>,
    /// Where it is counted how many records of a unit are read.
    pub(crate) counts: Counts,
    /// What the units since [`Uno1m::take_rejected`] turned down and kept for people to see.
    rejected: Vec<Rejected>,
}

impl Uno1m {
    /// Finds label files in `folder`: `labels/` or the folder itself, the total file or else `split1.json`, …
    pub fn open(folder: &Path, spec: &ImportSpec) -> Result<Uno1m, ImportError> {
        std::fs::metadata(folder).map_err(|source| ImportError::Read { path: folder.to_owned(), source })?;
        for labels in [folder.join("labels"), folder.to_owned()] {
            let total = labels.join(TOTAL_LABELS);
            let found = if total.is_file() { vec![total] } else { splits(&labels)? };
            if !found.is_empty() {
                let images = folder.join("images");
                return Ok(Uno1m {
                    labels: found,
                    // Without it every picture is missing.
                    images: images.canonicalize().unwrap_or(images),
                    min_score: spec.min_score,
                    rule: ScoreRule { disagreement: spec.score_disagreement, invalid: spec.score_invalid },
                    directions: spec.directions,
                    resolution: spec.resolution,
                    index: None,
                    counts: Counts::default(),
                    rejected: Vec::new(),
                });
            }
        }
        Err(ImportError::Nothing {
            path: folder.to_owned(),
            what: "label file (labels/splitN.json or the total file)",
        })
    }

    /// The candidates `unit * unit_size ..` of the data set, at most `unit_size`: each record is one, or two if both
    /// directions are wanted.
    pub fn unit(
        &mut self,
        unit: u64,
        unit_size: u32,
        stop: &AtomicBool,
    ) -> Result<CandidateBatch, ImportError> {
        if self.index.is_none() {
            self.index = LabelIndex::build(&self.labels, stop)?;
            if let Some(index) = &self.index {
                let (records, duplicates) = (index.records(), index.duplicates());
                tracing::info!(files = self.labels.len(), records, duplicates, "labels indexed");
            }
        }
        let Some(index) = &self.index else {
            return Ok(CandidateBatch::of(Vec::new(), false));
        };
        let per_record = match self.directions {
            Directions::Forward => 1,
            Directions::Both => 2,
        };
        let total = index.records() * per_record;
        let first = unit.saturating_mul(u64::from(unit_size)).min(total);
        let end = first.saturating_add(u64::from(unit_size)).min(total);
        let mut candidates = Vec::new();
        let mut shown = Vec::new();
        let mut reading = index.read(&self.labels, first / per_record)?;
        let mut next = first;
        while next < end && !stop.load(Ordering::Relaxed) {
            let Some(found) = reading.next_record()? else { break };
            let until = end.min((found.number + 1) * per_record);
            let reversed = (next..until).map(|candidate| candidate % per_record == 1).collect::<Vec<_>>();
            next = until;
            self.counts.drawn(reversed.len());
            if index.repeats(found.number) {
                candidates.extend(reversed.iter().map(|_| Err(Rejection::DuplicateRecord)));
                continue;
            }
            let label = found.record.as_deref().and_then(|bytes| serde_json::from_slice::<Label>(bytes).ok());
            for reversed in reversed {
                let Some(label) = &label else {
                    candidates.push(Err(Rejection::MalformedRecord));
                    continue;
                };
                match self.pair(label, &found, reversed, shown.len() < LOW_SHOWN) {
                    Ok(pair) => candidates.push(Ok(pair)),
                    Err(rejected) => {
                        candidates.push(Err(rejected.reason));
                        shown.extend(rejected.pair.is_some().then_some(rejected));
                    }
                }
            }
        }
        let exhausted = end == total && !stop.load(Ordering::Relaxed);
        self.rejected.append(&mut shown);
        Ok(CandidateBatch::of(candidates, exhausted))
    }

    #[cfg(test)]
    pub(super) fn labels(&self) -> Vec<PathBuf> {
        self.labels.clone()
    }

    /// What the units so far turned down and kept for people to see; it is given away once.
    pub fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// The pair of a record. One with too low a score is read too if it is to be shown.
    fn pair(&self, label: &Label, found: &Found, reversed: bool, show_low: bool) -> Result<Pair, Rejected> {
        let Scored { score, disagreeing_total } = score(&label.vlm_filter_cot, self.rule)?;
        let captions = &label.caption;
        let same = captions.judgment.is_empty() || ["same", "yes"].contains(&captions.judgment.as_str());
        let low = score < self.min_score || !same;
        if low && !show_low {
            return Err(Rejection::ScoreLow.into());
        }
        let (reference, target, prompt) = if reversed {
            (&label.img_path2, &label.img_path1, &captions.img_path1)
        } else {
            (&label.img_path1, &label.img_path2, &captions.img_path2)
        };
        let read = || -> Result<Pair, Rejection> {
            let mut provenance = json!({
                "source": "uno-1m", "record": found.number, "byte": found.byte, "reversed": reversed,
                "file": self.labels.get(found.file).and_then(|p| p.file_name()).map(|n| n.to_string_lossy()),
                "reference": reference, "target": target, "parts": label.vlm_filter_cot.score_part,
            });
            if let (Some(total), Some(fields)) = (disagreeing_total, provenance.as_object_mut()) {
                fields.insert("published_score".to_owned(), json!(total));
            }
            let words = captions
                .subject
                .iter()
                .take(1)
                .map(|words| caption(words))
                .collect::<Result<Vec<_>, Rejection>>()?;
            Ok(Pair {
                prompt: caption(prompt)?,
                target: self.picture(target)?,
                references: vec![self.picture(reference)?],
                reference_words: words,
                scores: BTreeMap::from([("score".to_owned(), score)]),
                provenance,
            })
        };
        match read() {
            Ok(pair) if low => Err(Rejected { reason: Rejection::ScoreLow, pair: Some(Box::new(pair)) }),
            // Why it cannot be shown is not why it is turned down.
            Err(_) if low => Err(Rejection::ScoreLow.into()),
            outcome => Ok(outcome?),
        }
    }

    fn picture(&self, path: &str) -> Result<RgbImage, Rejection> {
        let relative = Path::new(path);
        if path.is_empty()
            || path.contains('\0')
            || !relative.components().all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(Rejection::BadPath);
        }
        // Links are followed first: an archive may bring links of its own.
        let file = self.images.join(relative).canonicalize().map_err(|_| Rejection::MissingFile)?;
        if !file.starts_with(&self.images) {
            return Err(Rejection::BadPath);
        }
        let facts = std::fs::metadata(&file).map_err(|_| Rejection::MissingFile)?;
        if !facts.is_file() || facts.len() > super::MAX_FILE_BYTES {
            return Err(Rejection::UnreadableImage);
        }
        let decoded = images::decode(&std::fs::read(&file).map_err(|_| Rejection::UnreadableImage)?)?;
        if decoded.width().min(decoded.height()) < (self.resolution / 4).max(8) {
            return Err(Rejection::TooSmall);
        }
        let size = choose(&[(decoded.height(), decoded.width())], self.resolution);
        let size = size.map_err(|_| Rejection::UnreadableImage)?;
        stretched(&decoded, size).map_err(|_| Rejection::UnreadableImage)
    }
}

/// A caption on one line. Control characters, and those that turn the direction of what follows, have no place in one;
/// text that runs from right to left does.
fn caption(text: &str) -> Result<String, Rejection> {
    let steers = |c: char| {
        (c.is_control() && !c.is_whitespace())
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() || words.chars().any(steers) || words.chars().nth(MAX_CAPTION_CHARS).is_some() {
        return Err(Rejection::BadCaption);
    }
    Ok(words)
}

/// Label files `splitN.json` of a folder by their number; none if there is no such folder.
fn splits(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ImportError::Read { path: folder.to_owned(), source }),
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number =
                path.file_name()?.to_str()?.strip_prefix("split")?.strip_suffix(".json")?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
