//! A JSON array of records, read one record at a time: the published label files are too large to hold.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Size of one record beyond which it is skipped over and counts as malformed.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Why a file of records cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason} at byte {offset}", path.display())]
    Syntax { path: PathBuf, reason: &'static str, offset: u64 },
}

/// One element of the array: its bytes, or nothing if it is too large.
pub type Record = Option<Vec<u8>>;

/// An open file, positioned between two records.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    reader: BufReader<File>,
    /// Of the next byte.
    offset: u64,
    ended: bool,
}

impl Records {
    /// Opens a file and enters its array.
    pub fn open(path: &Path) -> Result<Records, RecordsError> {
        let mut records = Records::at(path, 0)?;
        match records.next_significant()? {
            Some(b'[') => Ok(records),
            _ => Err(records.syntax("the file is not a JSON array")),
        }
    }

    /// Opens a file at a place that [`Records::offset`] gave.
    pub fn at(path: &Path, offset: u64) -> Result<Records, RecordsError> {
        let failed = |source| RecordsError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        Ok(Records {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 18, file),
            offset,
            ended: false,
        })
    }

    /// Where the next record begins, for [`Records::at`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record; none at the end of the array.
    pub fn next_record(&mut self) -> Result<Option<Record>, RecordsError> {
        if self.ended {
            return Ok(None);
        }
        let first = match self.next_significant()? {
            Some(b',') => self.next_significant()?,
            other => other,
        };
        match first {
            Some(b']') => {
                self.ended = true;
                Ok(None)
            }
            Some(b'{') => self.rest_of_object().map(Some),
            Some(_) => Err(self.syntax("an element of the array is not an object")),
            None => Err(self.syntax("the file is cut short")),
        }
    }

    /// Reads to the brace that closes the object, minding strings.
    fn rest_of_object(&mut self) -> Result<Record, RecordsError> {
        let mut bytes = vec![b'{'];
        let (mut depth, mut in_string, mut escaped) = (1u32, false, false);
        while depth > 0 {
            // A buffer at a time: a label file has hundreds of millions of bytes.
            let buffer = self.buffer()?;
            let mut used = 0;
            for byte in buffer {
                used += 1;
                match (in_string, *byte) {
                    (true, _) if escaped => escaped = false,
                    (true, b'\\') => escaped = true,
                    (_, b'"') => in_string = !in_string,
                    (false, b'{' | b'[') => depth = depth.saturating_add(1),
                    (false, b'}' | b']') => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            let room = MAX_RECORD_BYTES - bytes.len();
            bytes.extend_from_slice(buffer.get(..used.min(room)).unwrap_or_default());
            if used == 0 {
                return Err(self.syntax("the file is cut short"));
            }
            self.consume(used);
        }
        Ok((bytes.len() < MAX_RECORD_BYTES).then_some(bytes))
    }

    fn next_significant(&mut self) -> Result<Option<u8>, RecordsError> {
        loop {
            match self.next_byte()? {
                Some(b' ' | b'\n' | b'\r' | b'\t') => {}
                other => return Ok(other),
            }
        }
    }

    fn next_byte(&mut self) -> Result<Option<u8>, RecordsError> {
        let byte = self.buffer()?.first().copied();
        if byte.is_some() {
            self.consume(1);
        }
        Ok(byte)
    }

    /// What follows, as far as it is read; empty at the end of the file.
    fn buffer(&mut self) -> Result<&[u8], RecordsError> {
        self.reader.fill_buf().map_err(|source| RecordsError::Read { path: self.path.clone(), source })
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.offset += count as u64;
    }

    fn syntax(&self, reason: &'static str) -> RecordsError {
        RecordsError::Syntax { path: self.path.clone(), reason, offset: self.offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> (Vec<Record>, Option<String>) {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("labels.json");
        std::fs::write(&path, text).expect("write");
        let mut found = Vec::new();
        let mut records = match Records::open(&path) {
            Ok(records) => records,
            Err(error) => return (found, Some(error.to_string())),
        };
        loop {
            match records.next_record() {
                Ok(Some(record)) => found.push(record),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn records_are_split_whatever_is_in_their_strings() {
        let (found, error) = all("[ {\"a\": \"}]\\\"{\"} ,\n{\"b\":[{\"c\":{}}]},{}]");
        let texts: Vec<String> =
            found.into_iter().map(|r| String::from_utf8(r.expect("small")).expect("text")).collect();
        assert_eq!(texts, ["{\"a\": \"}]\\\"{\"}", "{\"b\":[{\"c\":{}}]}", "{}"]);
        assert_eq!(error, None);
        assert_eq!(all("[]"), (vec![], None));
    }

    #[test]
    fn damage_is_named_with_its_place_after_the_good_records() {
        for (text, good, says) in [
            ("[{},{\"a\":", 1, "cut short at byte 9"),
            ("[{},", 1, "cut short at byte 4"),
            ("[{},7]", 1, "not an object at byte 5"),
            ("{}", 0, "not a JSON array"),
            ("", 0, "not a JSON array"),
        ] {
            let (found, error) = all(text);
            let error = error.expect("it is damaged");
            assert!(
                found.len() == good && error.contains(says) && error.contains("labels.json"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_huge_record_is_skipped_over() {
        let (found, error) = all(&format!("[{{\"a\":\"{}\"}},{{}}]", "x".repeat(MAX_RECORD_BYTES)));
        assert_eq!((found, error), (vec![None, Some(b"{}".to_vec())], None));
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("labels.json");
        std::fs::write(&path, "[{\"n\":0}, {\"n\":1}, {\"n\":2}]").expect("write");
        let mut first = Records::open(&path).expect("open");
        first.next_record().expect("read");
        let mut second = Records::at(&path, first.offset()).expect("open");
        assert_eq!(second.next_record().expect("read"), Some(Some(b"{\"n\":1}".to_vec())));
        assert_eq!(second.next_record().expect("read"), Some(Some(b"{\"n\":2}".to_vec())));
        assert_eq!(second.next_record().expect("read"), None);
    }
}
