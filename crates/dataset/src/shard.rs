//! Shards: the accepted pairs of one unit as a WebDataset tar.
//!
//! For pair `k` (six digits, from 0): `k.target.png`, `k.ref0.png` …, `k.json`. The same pairs give the same bytes:
//! owner, mode and time of every entry are fixed.

use crate::digest::sha256_hex;
use crate::pair::{Facts, Pair};
use crate::pictures::Picture;
use image::RgbImage;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use std::io::Read;

/// Size of one entry beyond which a shard is refused.
pub(crate) const MAX_ENTRY_BYTES: u64 = 512 << 20;
/// References of a pair; the job spec allows no more.
pub(crate) const MAX_REFERENCES: usize = 8;

/// Lines of a picture are written as differences from the line above. A pair is written once and read in every epoch, and
/// this is undone with one addition a byte, many bytes at a time: a picture decodes in half the time that it takes with the
/// best filter for each line. Photographs become 8 % larger by it.
const FILTER: FilterType = FilterType::Up;

/// Why a shard cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("cannot write pair {pair}: {reason}")]
    Write { pair: u64, reason: String },
    #[error("entry {entry} of the tar: {reason}")]
    Entry { entry: String, reason: String },
    #[error("the tar is damaged or cut short: {0}")]
    Tar(std::io::Error),
    #[error("the pairs of the tar have more than {most} bytes: split it, a tar is held in memory")]
    Large { most: u64 },
}

/// A finished shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardBytes {
    pub bytes: Vec<u8>,
    pub pairs: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Writes pairs into a tar in memory.
pub struct ShardWriter {
    tar: tar::Builder<Vec<u8>>,
    pairs: u64,
}

impl Default for ShardWriter {
    fn default() -> Self {
        ShardWriter { tar: tar::Builder::new(Vec::new()), pairs: 0 }
    }
}

impl ShardWriter {
    pub fn push(&mut self, pair: &Pair) -> Result<(), ShardError> {
        let number = self.pairs;
        let failed = |reason: String| ShardError::Write { pair: number, reason };
        let png = |picture: &RgbImage| -> Result<Vec<u8>, ShardError> {
            let mut bytes = Vec::new();
            let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FILTER);
            picture.write_with_encoder(encoder).map_err(|e| failed(e.to_string()))?;
            Ok(bytes)
        };
        let mut entries = vec![("target.png".to_owned(), png(&pair.target)?)];
        for (n, reference) in pair.references.iter().enumerate() {
            entries.push((format!("ref{n}.png"), png(reference)?));
        }
        entries
            .push(("json".to_owned(), serde_json::to_vec(&pair.facts()).map_err(|e| failed(e.to_string()))?));
        for (suffix, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            self.tar
                .append_data(&mut header, format!("{number:06}.{suffix}"), content.as_slice())
                .map_err(|e| failed(e.to_string()))?;
        }
        self.pairs += 1;
        Ok(())
    }

    /// Closes the tar.
    pub fn finish(self) -> Result<ShardBytes, ShardError> {
        let bytes = self.tar.into_inner().map_err(ShardError::Tar)?;
        let sha256 = sha256_hex(&bytes);
        Ok(ShardBytes { bytes, pairs: self.pairs, sha256 })
    }
}

/// A pair as its shard has it: the files of its pictures, not decoded.
#[derive(Clone, Debug)]
pub struct StoredPair {
    pub facts: Facts,
    /// PNG files.
    pub target: Vec<u8>,
    pub references: Vec<Vec<u8>>,
}

/// Reads and decodes a shard. Pairs come in their order; the first thing that is wrong is the error.
pub fn read_shard(tar: impl Read) -> Result<Vec<Pair>, ShardError> {
    let mut pairs = Vec::new();
    each_stored(tar, |key, stored| {
        let decoded = |suffix: &str, png: &[u8]| {
            Picture::decode("picture", png).map(Picture::into_rgb).map_err(|_| ShardError::Entry {
                entry: format!("{key}.{suffix}"),
                reason: "the picture cannot be decoded".into(),
            })
        };
        let references = stored.references.iter().enumerate();
        let references = references.map(|(n, png)| decoded(&format!("ref{n}.png"), png));
        let Facts { prompt, reference_words, scores, provenance } = stored.facts;
        pairs.push(Pair {
            target: decoded("target.png", &stored.target)?,
            references: references.collect::<Result<_, _>>()?,
            prompt,
            reference_words,
            scores,
            provenance,
        });
        Ok(())
    })?;
    Ok(pairs)
}

/// Reads a shard without decoding its pictures.
pub fn read_stored(tar: impl Read) -> Result<Vec<StoredPair>, ShardError> {
    let mut pairs = Vec::new();
    each_stored(tar, |_, stored| {
        pairs.push(stored);
        Ok(())
    })?;
    Ok(pairs)
}

/// Hands over each pair with its key, as soon as it is whole: a shard's pictures need not be in memory twice.
fn each_stored(
    tar: impl Read,
    mut take: impl FnMut(&str, StoredPair) -> Result<(), ShardError>,
) -> Result<(), ShardError> {
    let mut building: Option<Building> = None;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(ShardError::Tar)? {
        let mut entry = entry.map_err(ShardError::Tar)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let wrong = |reason: &str| ShardError::Entry { entry: name.clone(), reason: reason.to_owned() };
        if !entry.header().entry_type().is_file() {
            return Err(wrong("it is not a plain file"));
        }
        let size = entry.size();
        if size > MAX_ENTRY_BYTES {
            return Err(wrong("it is too large"));
        }
        let mut content = Vec::with_capacity(size.min(1 << 20) as usize);
        entry.read_to_end(&mut content).map_err(ShardError::Tar)?;
        if content.len() as u64 != size {
            return Err(wrong("it is cut short"));
        }
        let Some((key, suffix)) = name.split_once('.') else { return Err(wrong("its name has no suffix")) };
        let mut current = match building.take() {
            Some(current) if current.key == key => current,
            Some(_) => return Err(wrong("the pair before it has no json")),
            None => Building { key: key.to_owned(), target: None, references: Vec::new() },
        };
        match suffix {
            "target.png" if current.target.is_none() => current.target = Some(content),
            "json" => {
                let facts = serde_json::from_slice(&content).map_err(|error| wrong(&error.to_string()))?;
                let target = current.target.ok_or_else(|| wrong("the pair has no target"))?;
                take(&current.key, StoredPair { facts, target, references: current.references })?;
                continue;
            }
            _ if suffix == format!("ref{}.png", current.references.len())
                && current.references.len() < MAX_REFERENCES =>
            {
                current.references.push(content)
            }
            _ => return Err(wrong("it is not expected here")),
        }
        building = Some(current);
    }
    match building {
        None => Ok(()),
        Some(unfinished) => Err(ShardError::Entry {
            entry: format!("{}.json", unfinished.key),
            reason: "it is missing".to_owned(),
        }),
    }
}

/// A pair of which some entries have been read; its json ends it.
struct Building {
    key: String,
    target: Option<Vec<u8>>,
    references: Vec<Vec<u8>>,
}

/// At most `count` of the numbers below `total`, evenly spread, ascending: which of many to show.
pub fn spread(total: usize, count: usize) -> Vec<usize> {
    let count = count.min(total);
    (0..count).map(|n| n * total / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn pair(n: u8, references: usize) -> Pair {
        let picture =
            |shade: u8| RgbImage::from_fn(8, 8, |x, y| Rgb([shade, (x * 30) as u8, (y * 20) as u8]));
        Pair {
            target: picture(n),
            references: (0..references).map(|r| picture(n + 1 + r as u8)).collect(),
            prompt: format!("thing {n}"),
            reference_words: vec!["a thing".to_owned(); references],
            scores: BTreeMap::from([("similarity".to_owned(), 0.5)]),
            provenance: json!({ "unit": n }),
        }
    }

    fn shard() -> ShardBytes {
        let mut writer = ShardWriter::default();
        for n in 0..3 {
            writer.push(&pair(n, 2)).expect("write a pair");
        }
        writer.finish().expect("close the tar")
    }

    #[test]
    fn what_is_written_is_read_back_and_bytes_repeat() {
        let (first, second) = (shard(), shard());
        assert_eq!(first, second);
        assert_eq!(first.pairs, 3);
        let read = read_shard(first.bytes.as_slice()).expect("read");
        assert_eq!(read.len(), 3);
        let stored = read_stored(first.bytes.as_slice()).expect("read");
        let facts: Vec<Facts> = read.iter().map(Pair::facts).collect();
        assert_eq!(
            stored.iter().map(|pair| &pair.facts).collect::<Vec<_>>(),
            facts.iter().collect::<Vec<_>>()
        );
        assert_eq!(facts[0].rejected(), "");
        for (n, found) in read.iter().enumerate() {
            let expected = pair(n as u8, 2);
            assert_eq!((&found.target, &found.references), (&expected.target, &expected.references));
            assert_eq!((&found.prompt, &found.scores), (&expected.prompt, &expected.scores));
            assert_eq!(found.provenance, expected.provenance);
        }
    }

    #[test]
    fn picks_are_spread_and_never_too_many() {
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(2, 5), [0, 1]);
        assert!(spread(0, 5).is_empty() && spread(5, 0).is_empty());
    }

    #[test]
    fn a_shard_cut_anywhere_is_an_error() {
        let whole = shard().bytes;
        // Cuts within the two closing blocks of zeros leave every entry whole.
        for cut in (1..whole.len() - 1024).step_by(97) {
            let result = read_shard(&whole[..cut]);
            let pairs = result.as_ref().map(Vec::len);
            assert!(
                result.is_err() || pairs.is_ok_and(|n| n < 3),
                "cut at {cut} of {} went unseen",
                whole.len()
            );
        }
    }

    #[test]
    fn entries_out_of_place_are_named() {
        let tar = |entries: &[(&str, &[u8])]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, content) in entries {
                let mut header = tar::Header::new_ustar();
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, *content).expect("append");
            }
            builder.into_inner().expect("close")
        };
        for (entries, says) in [
            (&[("000000.json", b"{\"prompt\":\"x\"}" as &[u8])] as &[(&str, &[u8])], "no target"),
            (&[("000000.target.png", b"junk"), ("000000.json", b"{\"prompt\":\"x\"}")], "cannot be decoded"),
            (&[("000000.ref1.png", b"junk")], "not expected"),
            (&[("plain", b"junk")], "no suffix"),
        ] {
            let error = read_shard(tar(entries).as_slice()).expect_err("it is wrong").to_string();
            assert!(error.contains(says) && error.contains(entries[0].0), "{error}");
        }
    }
}
