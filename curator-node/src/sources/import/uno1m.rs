//! UNO-1M as published: label files with one record a pair, pictures beside them. Records of the layout that the published filter
//! script makes of them for training are read too.
//!
//! The reference is `img_path1`, the target `img_path2` with its caption; the spec may want the reverse too. What a label
//! file says is not trusted: neither its scores, nor its paths, nor its captions.

use super::ImportError;
use super::index::{Found, LabelIndex};
use super::picture::{PictureRule, caption};
use super::score::{ScoreRule, Scored, Scores, score};
use super::uno_train::TrainRecord;
use crate::candidates::CandidateBatch;
use crate::candidates::Rejected;
use crate::counts::Counts;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{Directions, ImportFormat, ImportSpec};
use crescendo_dataset::pair::Pair;
use crescendo_dataset::whole_file;
use image::RgbImage;
use serde::Deserialize;
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Name of the published file that holds all records.
const TOTAL_LABELS: &str = "uno_1m_total_labels.json";
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

/// A record in either layout.
enum Parsed {
    Label(Box<Label>),
    Train(TrainRecord),
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
    /// What all pictures lie below.
    folder: PathBuf,
    images: PathBuf,
    min_score: f64,
    scores: ScoreRule,
    directions: Directions,
    rule: PictureRule,
    format: ImportFormat,
    /// Of a pair, where a record may have several.
    references: usize,
    /// A malformed record was told of.
    told_malformed: Cell<bool>,
    /// Made when the first unit is.
    index: Option<LabelIndex>,
    /// Where it is counted how many records of a unit are read.
    pub(crate) counts: Counts,
    /// What the units since [`Uno1m::take_rejected`] turned down and kept for people to see.
    rejected: Vec<Rejected>,
}

impl Uno1m {
    /// Finds the label files of `path`. UNO-1M has them in `labels/` or in the folder itself, the total file or else
    /// `split1.json`, …; records for UNO's training may also be the file itself, or the folder's only one. A pair has
    /// `references` references.
    pub fn open(path: &Path, spec: &ImportSpec, references: usize) -> Result<Uno1m, ImportError> {
        let read = |source| ImportError::Read { path: path.to_owned(), source };
        let is_file = std::fs::metadata(path).map_err(read)?.is_file();
        let train = spec.format == ImportFormat::UnoTrain;
        let (folder, labels) = if train && is_file {
            (whole_file::folder_of(path), vec![path.to_owned()])
        } else {
            (path, labels_of(path, train)?)
        };
        if labels.is_empty() {
            let what = if train {
                "label file (one .json, labels/splitN.json or the total file)"
            } else {
                "label file (labels/splitN.json or the total file; `format: uno-train` takes any other)"
            };
            return Err(ImportError::Nothing { path: path.to_owned(), what });
        }
        let images = folder.join("images");
        Ok(Uno1m {
            labels,
            folder: folder.canonicalize().map_err(read)?,
            // Without it every picture is missing.
            images: images.canonicalize().unwrap_or(images),
            min_score: spec.min_score,
            scores: ScoreRule { disagreement: spec.score_disagreement, invalid: spec.score_invalid },
            directions: spec.directions,
            rule: PictureRule { resolution: spec.resolution, orientation: spec.orientation },
            format: spec.format,
            references,
            told_malformed: Cell::new(false),
            index: None,
            counts: Counts::default(),
            rejected: Vec::new(),
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
            let parsed = self.parsed(&found);
            for reversed in reversed {
                let made = match &parsed {
                    None => Err(Rejection::MalformedRecord.into()),
                    Some(Parsed::Label(label)) => self.pair(label, &found, reversed, shown.len() < LOW_SHOWN),
                    // Its references have no captions, so there is no way back.
                    Some(Parsed::Train(_)) if reversed => Err(Rejection::BadCaption.into()),
                    Some(Parsed::Train(record)) => self.trained_pair(record, &found),
                };
                match made {
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
        let Scored { score, disagreeing_total } = score(&label.vlm_filter_cot, self.scores)?;
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

    /// The pair of a record of the layout that UNO's training reads.
    fn trained_pair(&self, record: &TrainRecord, found: &Found) -> Result<Pair, Rejected> {
        let paths = record.image_paths.as_slice();
        let references = paths.get(..self.references).ok_or(Rejection::MissingFile)?;
        // Paths begin at the label file's folder; one that was moved into `labels/` keeps its pictures beside that.
        let beside = self.labels.get(found.file).and_then(|labels| labels.parent()).unwrap_or(&self.folder);
        let picture = |path: &String| self.rule.read(&self.folder, &[beside, &self.folder], path);
        Ok(Pair {
            prompt: caption(&record.prompt)?,
            target: picture(&record.image_tgt_path)?,
            references: references.iter().map(picture).collect::<Result<_, _>>()?,
            reference_words: Vec::new(),
            scores: BTreeMap::new(),
            provenance: json!({
                "source": "uno-train", "record": found.number, "byte": found.byte,
                "file": self.labels.get(found.file).and_then(|p| p.file_name()).map(|n| n.to_string_lossy()),
                "references": references, "target": record.image_tgt_path,
            }),
        })
    }

    fn picture(&self, path: &str) -> Result<RgbImage, Rejection> {
        self.rule.read(&self.images, &[&self.images], path)
    }

    /// What a record says. The first that says nothing of use is told of, with what it lacks.
    fn parsed(&self, found: &Found) -> Option<Parsed> {
        let Some(bytes) = found.record.as_deref() else {
            self.tell_malformed(found, "it is larger than 1 MiB");
            return None;
        };
        let trained = || serde_json::from_slice(bytes).map(Parsed::Train);
        let parsed = match self.format {
            ImportFormat::UnoTrain => trained(),
            // Who filtered UNO-1M with the published script has its records in the other layout.
            ImportFormat::Uno1m | ImportFormat::Webdataset => serde_json::from_slice(bytes)
                .map(|label| Parsed::Label(Box::new(label)))
                .or_else(|error| trained().map_err(|_| error)),
        };
        parsed.inspect_err(|error| self.tell_malformed(found, &error.to_string())).ok()
    }

    fn tell_malformed(&self, found: &Found, reason: &str) {
        if self.told_malformed.replace(true) {
            return;
        }
        let file = self.labels.get(found.file).map(|path| path.display().to_string()).unwrap_or_default();
        let (record, byte) = (found.number, found.byte);
        tracing::warn!(file, record, byte, reason, "a record is malformed; others like it are only counted");
    }
}

/// The label files of a folder, as UNO-1M has them, or else with `any` its only JSON file.
fn labels_of(folder: &Path, any: bool) -> Result<Vec<PathBuf>, ImportError> {
    for labels in [folder.join("labels"), folder.to_owned()] {
        let total = labels.join(TOTAL_LABELS);
        let found = if total.is_file() { vec![total] } else { splits(&labels)? };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let read = |source| ImportError::Read { path: folder.to_owned(), source };
    let is_json = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
    let mut found: Vec<PathBuf> = if any {
        std::fs::read_dir(folder)
            .map_err(read)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(is_json)
            .collect()
    } else {
        Vec::new()
    };
    // Which of several is meant cannot be told.
    if found.len() > 1 {
        found.clear();
    }
    Ok(found)
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
