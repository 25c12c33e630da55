//! UNO-1M as published: label files with one record a pair, pictures beside them.
//!
//! The reference is `img_path1`, the target `img_path2` with its caption. The published `score_final` often is not the
//! mean of the parts, and sometimes not a score at all, so the mean is computed anew.

use super::bucket::bucket;
use super::records::{Record, Records, RecordsError};
use super::{ImportError, Imported};
use crate::pair::{Pair, Rejection};
use crate::picture;
use image::RgbImage;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Scores are from 0 to this.
const BEST_SCORE: f64 = 4.0;
/// Name of the published file that holds all records.
const TOTAL_LABELS: &str = "uno_1m_total_labels.json";

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
    img_path2: String,
    #[serde(default)]
    judgment: String,
    #[serde(default)]
    subject: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Scores {
    #[serde(default)]
    score_part: BTreeMap<String, f64>,
    #[serde(default)]
    score_final: Option<f64>,
}

/// A copy of the data set, or of a part of it.
#[derive(Debug)]
pub struct Uno1m {
    /// Label files in the order of their records.
    labels: Vec<PathBuf>,
    images: PathBuf,
    min_score: f64,
    resolution: u32,
    /// Where units begin, as far as it is known: unit number to (label file, byte).
    starts: BTreeMap<u64, (usize, u64)>,
}

impl Uno1m {
    /// Finds label files in `folder`: `labels/` or the folder itself, the total file or else `split1.json`, …
    pub fn open(folder: &Path, min_score: f64, resolution: u32) -> Result<Uno1m, ImportError> {
        for labels in [folder.join("labels"), folder.to_owned()] {
            let total = labels.join(TOTAL_LABELS);
            let found = if total.is_file() { vec![total] } else { splits(&labels)? };
            if !found.is_empty() {
                let images = folder.join("images");
                return Ok(Uno1m { labels: found, images, min_score, resolution, starts: BTreeMap::new() });
            }
        }
        Err(ImportError::Nothing {
            path: folder.to_owned(),
            what: "label file (labels/splitN.json or the total file)",
        })
    }

    /// The records `unit * unit_size ..` of the data set, at most `unit_size`.
    pub fn unit(&mut self, unit: u64, unit_size: u32, stop: &AtomicBool) -> Result<Imported, ImportError> {
        let mut cursor = self.seek(unit, unit_size, stop)?;
        let mut candidates = Vec::new();
        while candidates.len() < unit_size as usize && !stop.load(Ordering::Relaxed) {
            let Some((number, record)) = cursor.next(&self.labels)? else { break };
            let place = json!({
                "file": self.labels.get(cursor.file).and_then(|p| p.file_name()).map(|n| n.to_string_lossy()), "byte": number,
            });
            candidates.push(self.pair(record.as_deref(), place));
        }
        let exhausted = (candidates.len() as u32) < unit_size || cursor.at_end(&self.labels)?;
        if !exhausted {
            self.starts.insert(unit + 1, cursor.place());
        }
        Ok(Imported { candidates, exhausted: exhausted && !stop.load(Ordering::Relaxed) })
    }

    /// Goes to the first record of a unit from the nearest known place before it.
    fn seek(&mut self, unit: u64, unit_size: u32, stop: &AtomicBool) -> Result<Cursor, ImportError> {
        let known = self.starts.range(..=unit).next_back().map(|(at, place)| (*at, *place));
        let (mut at, (file, byte)) = known.unwrap_or((0, (0, 0)));
        let mut cursor = Cursor::open(&self.labels, file, byte)?;
        while at < unit && !stop.load(Ordering::Relaxed) {
            for _ in 0..unit_size {
                if cursor.next(&self.labels)?.is_none() {
                    return Ok(cursor);
                }
            }
            at += 1;
            self.starts.insert(at, cursor.place());
        }
        Ok(cursor)
    }

    fn pair(&self, record: Option<&[u8]>, place: serde_json::Value) -> Result<Pair, Rejection> {
        let label: Label =
            record.and_then(|bytes| serde_json::from_slice(bytes).ok()).ok_or(Rejection::ScoreInvalid)?;
        let score = score(&label.vlm_filter_cot)?;
        let same =
            label.caption.judgment.is_empty() || ["same", "yes"].contains(&label.caption.judgment.as_str());
        if score < self.min_score || !same {
            return Err(Rejection::ScoreLow);
        }
        Ok(Pair {
            target: self.picture(&label.img_path2)?,
            references: vec![self.picture(&label.img_path1)?],
            prompt: label.caption.img_path2,
            reference_words: label.caption.subject.into_iter().take(1).collect(),
            scores: BTreeMap::from([("score".to_owned(), score)]),
            provenance: json!({
                "source": "uno-1m", "labels": place, "reference": label.img_path1, "target": label.img_path2,
            }),
        })
    }

    fn picture(&self, path: &str) -> Result<RgbImage, Rejection> {
        let relative = Path::new(path);
        if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Rejection::MissingFile);
        }
        let file = self.images.join(relative);
        let size = std::fs::metadata(&file).map_err(|_| Rejection::MissingFile)?.len();
        if size > super::MAX_FILE_BYTES {
            return Err(Rejection::UnreadableImage);
        }
        let decoded = picture::decode(&std::fs::read(&file).map_err(|_| Rejection::UnreadableImage)?)?;
        if decoded.width().min(decoded.height()) < (self.resolution / 4).max(8) {
            return Err(Rejection::TooSmall);
        }
        let (height, width) = bucket(decoded.height(), decoded.width(), self.resolution);
        Ok(picture::resized(&decoded, width, height))
    }
}

/// The mean of the parts; the published total only where there are no parts. Anything outside 0 to 4 is no score.
fn score(scores: &Scores) -> Result<f64, Rejection> {
    let valid = |score: f64| {
        if (0.0..=BEST_SCORE).contains(&score) { Ok(score) } else { Err(Rejection::ScoreInvalid) }
    };
    let parts = &scores.score_part;
    if parts.is_empty() {
        return valid(scores.score_final.ok_or(Rejection::ScoreInvalid)?);
    }
    let mut sum = 0.0;
    for part in parts.values() {
        sum += valid(*part)?;
    }
    Ok(sum / parts.len() as f64)
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

/// A place in the records of all label files, one after the other.
struct Cursor {
    file: usize,
    records: Option<Records>,
}

impl Cursor {
    /// Byte 0 means the beginning of the file's array.
    fn open(labels: &[PathBuf], file: usize, byte: u64) -> Result<Cursor, RecordsError> {
        let records = match labels.get(file) {
            None => None,
            Some(path) if byte == 0 => Some(Records::open(path)?),
            Some(path) => Some(Records::at(path, byte)?),
        };
        Ok(Cursor { file, records })
    }

    fn place(&self) -> (usize, u64) {
        (self.file, self.records.as_ref().map_or(0, Records::offset))
    }

    /// The next record with the byte that its search began at; none after the last of all files.
    fn next(&mut self, labels: &[PathBuf]) -> Result<Option<(u64, Record)>, RecordsError> {
        while let Some(records) = &mut self.records {
            let offset = records.offset();
            if let Some(record) = records.next_record()? {
                return Ok(Some((offset, record)));
            }
            *self = Cursor::open(labels, self.file + 1, 0)?;
        }
        Ok(None)
    }

    /// Whether no record follows. Does not move.
    fn at_end(&self, labels: &[PathBuf]) -> Result<bool, RecordsError> {
        let (file, byte) = self.place();
        Ok(Cursor::open(labels, file, byte)?.next(labels)?.is_none())
    }
}
