//! Where the records of label files are, and which of them repeat an earlier one: found in one pass, kept small.
//!
//! A label file is 848 MB and would need many times that as parsed values. The index keeps the place of every 256th
//! record and one bit a record; while it is made, also 8 bytes a record.

use super::ImportError;
use super::records::{Record, Records, RecordsError};
use super::uno_train::TrainRecord;
use crescendo_dataset::stable_hash;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Records between two places that are kept.
const STRIDE: u64 = 256;
/// Most records of a data set; 8 times those of UNO-1M. It bounds the memory of the pass, about 150 MB.
const MAX_RECORDS: u64 = 1 << 23;
/// Records between two looks at whether anyone still waits.
const LOOK_EVERY: u64 = 1024;

/// Label file and byte.
type Place = (usize, u64);

/// The places of a data set's records, numbered over all label files.
#[derive(Debug, Default)]
pub struct LabelIndex {
    starts: Vec<Place>,
    records: u64,
    /// One bit a record.
    duplicates: Vec<u64>,
    /// Numbers behind which a label file cannot be read on: they stand for the rest of that file.
    torn: BTreeMap<u64, Torn>,
}

/// The damaged end of a label file.
#[derive(Debug)]
struct Torn {
    file: usize,
    path: PathBuf,
    reason: &'static str,
    offset: u64,
}

/// What makes two records the same: their pictures.
#[derive(Deserialize)]
struct Pictures<'a> {
    #[serde(borrow)]
    img_path1: Cow<'a, str>,
    #[serde(borrow)]
    img_path2: Cow<'a, str>,
}

impl LabelIndex {
    /// Reads all label files once. Nothing if `stop` is set meanwhile.
    pub fn build(labels: &[PathBuf], stop: &AtomicBool) -> Result<Option<LabelIndex>, ImportError> {
        let mut index = LabelIndex::default();
        let mut seen: HashSet<u64> = HashSet::new();
        for file in 0..labels.len() {
            let mut cursor = match Cursor::open(labels, file, 0) {
                Ok(cursor) => cursor,
                Err(error) => {
                    index.tear((file, 0), error)?;
                    continue;
                }
            };
            loop {
                if index.records.is_multiple_of(LOOK_EVERY) && stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let place = cursor.place();
                match cursor.next_in_file() {
                    Ok(Some(record)) => {
                        let repeats = record.as_deref().and_then(id).is_some_and(|id| !seen.insert(id));
                        index.push(place, repeats)?;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        index.tear(place, error)?;
                        break;
                    }
                }
            }
        }
        Ok(Some(index))
    }

    fn push(&mut self, place: Place, repeats: bool) -> Result<(), ImportError> {
        if self.records >= MAX_RECORDS {
            return Err(ImportError::TooMany { most: MAX_RECORDS });
        }
        if self.records.is_multiple_of(STRIDE) {
            self.starts.push(place);
        }
        if self.records.is_multiple_of(64) {
            self.duplicates.push(0);
        }
        if let (true, Some(word)) = (repeats, self.duplicates.last_mut()) {
            *word |= 1 << (self.records % 64);
        }
        self.records += 1;
        Ok(())
    }

    /// Notes that the file at `place` ends in damage. What cannot be read at all may work later, so it is an error.
    fn tear(&mut self, place: Place, error: RecordsError) -> Result<(), ImportError> {
        match error {
            RecordsError::Syntax { path, reason, offset } => {
                self.torn.insert(self.records, Torn { file: place.0, path, reason, offset });
                self.push(place, false)
            }
            error @ RecordsError::Read { .. } => Err(error.into()),
        }
    }

    /// Records of all files; the damaged end of a file counts as one.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Records that repeat an earlier one.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether an earlier record has the same pictures.
    pub fn repeats(&self, record: u64) -> bool {
        let word = usize::try_from(record / 64).ok().and_then(|at| self.duplicates.get(at));
        word.is_some_and(|word| word >> (record % 64) & 1 == 1)
    }

    /// Goes through the records from number `first` on.
    pub fn read<'a>(&'a self, labels: &'a [PathBuf], first: u64) -> Result<Reading<'a>, RecordsError> {
        let start = usize::try_from(first / STRIDE).ok().and_then(|at| self.starts.get(at));
        let (file, byte) = start.copied().unwrap_or((labels.len(), 0));
        let number = first / STRIDE * STRIDE;
        // A file that cannot even be entered is torn at its first number, and opened only to say so.
        let cursor = if self.torn.contains_key(&number) {
            Cursor { file, records: None }
        } else {
            Cursor::open(labels, file, byte)?
        };
        let mut reading = Reading { index: self, labels, number, cursor };
        while reading.number < first.min(self.records) {
            reading.step()?;
        }
        Ok(reading)
    }
}

/// The identity of a record; none if it has not even paths.
fn id(record: &[u8]) -> Option<u64> {
    if let Ok(Pictures { img_path1, img_path2 }) = serde_json::from_slice(record) {
        return Some(stable_hash(&format!("{img_path1}\n{img_path2}")));
    }
    // The published loader trains with each prompt of the same pictures.
    let TrainRecord { prompt, image_paths, image_tgt_path } = serde_json::from_slice(record).ok()?;
    let pictures = image_paths.as_slice().join("\n");
    Some(stable_hash(&format!("{image_tgt_path}\n{pictures}\n\n{prompt}")))
}

/// A walk through records.
pub struct Reading<'a> {
    index: &'a LabelIndex,
    labels: &'a [PathBuf],
    number: u64,
    cursor: Cursor,
}

/// One record on the way.
pub struct Found {
    pub number: u64,
    pub file: usize,
    pub byte: u64,
    pub record: Record,
}

impl Reading<'_> {
    /// The next record; none after the last of all files; an error at the damaged end of a file.
    pub fn next_record(&mut self) -> Result<Option<Found>, RecordsError> {
        if self.number >= self.index.records {
            return Ok(None);
        }
        if let Some(Torn { path, reason, offset, .. }) = self.index.torn.get(&self.number) {
            return Err(RecordsError::Syntax { path: path.clone(), reason, offset: *offset });
        }
        let number = self.number;
        let found = self.cursor.next(self.labels)?;
        self.number += 1;
        Ok(found.map(|(file, byte, record)| Found { number, file, byte, record }))
    }

    /// Goes past one record, or past the damaged end of a file.
    fn step(&mut self) -> Result<(), RecordsError> {
        if let Some(torn) = self.index.torn.get(&self.number) {
            self.number += 1;
            let next = torn.file + 1;
            // If the next file cannot be entered either, it is torn at this number and never read.
            self.cursor = if self.index.torn.contains_key(&self.number) {
                Cursor { file: next, records: None }
            } else {
                Cursor::open(self.labels, next, 0)?
            };
            return Ok(());
        }
        self.next_record().map(drop)
    }
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

    fn place(&self) -> Place {
        (self.file, self.records.as_ref().map_or(0, Records::offset))
    }

    fn next_in_file(&mut self) -> Result<Option<Record>, RecordsError> {
        self.records.as_mut().map_or(Ok(None), Records::next_record)
    }

    /// The next record with its file and the byte that its search began at; none after the last of all files.
    fn next(&mut self, labels: &[PathBuf]) -> Result<Option<(usize, u64, Record)>, RecordsError> {
        while self.records.is_some() {
            let (file, byte) = self.place();
            if let Some(record) = self.next_in_file()? {
                return Ok(Some((file, byte, record)));
            }
            *self = Cursor::open(labels, self.file + 1, 0)?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &std::path::Path, texts: &[&str]) -> Vec<PathBuf> {
        let mut labels = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            labels.push(folder.join(format!("split{n}.json")));
            std::fs::write(&labels[n], text).expect("write");
        }
        labels
    }

    fn pair(n: u32) -> String {
        format!("{{\"img_path1\":\"{n}a\",\"img_path2\":\"{n}b\"}}")
    }

    fn build(labels: &[PathBuf]) -> LabelIndex {
        LabelIndex::build(labels, &AtomicBool::new(false)).expect("readable").expect("not stopped")
    }

    #[test]
    fn every_record_is_found_from_anywhere() {
        let folder = tempfile::tempdir().expect("make a folder");
        let all: Vec<String> = (0..700).map(pair).collect();
        let texts =
            [format!("[{}]", all[..300].join(",")), "[]".into(), format!("[{}]", all[300..].join(" , "))];
        let labels = write(folder.path(), &texts.each_ref().map(String::as_str));
        let index = build(&labels);
        assert_eq!((index.records(), index.duplicates()), (700, 0));
        for first in [0, 1, 255, 256, 257, 299, 300, 511, 699] {
            let mut reading = index.read(&labels, first).expect("read");
            let found = reading.next_record().expect("read").expect("a record");
            let text = String::from_utf8(found.record.expect("small")).expect("text");
            assert_eq!((found.number, text), (first, pair(first as u32)));
            assert_eq!(found.file, if first < 300 { 0 } else { 2 });
        }
        assert!(index.read(&labels, 700).expect("read").next_record().expect("read").is_none());
        assert!(index.read(&labels, 9000).expect("read").next_record().expect("read").is_none());
    }

    #[test]
    fn repeated_records_are_known_across_files() {
        let folder = tempfile::tempdir().expect("make a folder");
        let texts = [format!("[{},{},{}]", pair(1), pair(2), pair(1)), format!("[{},{{}},{{}}]", pair(2))];
        let labels = write(folder.path(), &texts.each_ref().map(String::as_str));
        let index = build(&labels);
        let repeats: Vec<bool> = (0..7).map(|n| index.repeats(n)).collect();
        // Records without paths are not taken for copies of each other.
        assert_eq!(repeats, [false, false, true, true, false, false, false]);
    }

    #[test]
    fn damage_takes_one_number_and_the_files_after_it_are_read() {
        let folder = tempfile::tempdir().expect("make a folder");
        let torn = format!("[{},{}", pair(1), "{\"img_pa");
        let labels = write(folder.path(), &[&torn, "nothing", "7", &format!("[{}]", pair(5))]);
        let index = build(&labels);
        assert_eq!(index.records(), 5);
        for (number, says) in [(1, "split0.json"), (2, "split1.json"), (3, "split2.json")] {
            let mut reading = index.read(&labels, number).expect("go there");
            let error = reading.next_record().err().expect("it is torn").to_string();
            assert!(error.contains(says), "{error}");
        }
        let found = index.read(&labels, 4).expect("go there").next_record().expect("read").expect("a record");
        assert_eq!((found.number, found.file), (4, 3));
        assert!(LabelIndex::build(&labels, &AtomicBool::new(true)).expect("readable").is_none());
    }
}
