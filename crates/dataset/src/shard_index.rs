//! Where the pairs of a shard lie in its tar, so that one pair can be read, and verified, without the others.
//!
//! Learned when a shard is read whole and found to be what the registry says: from then on the SHA-256 of a pair's own
//! bytes stands for the SHA-256 of the shard.

use crate::pair::Pair;
use crate::shard::{ShardError, read_shard};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Tars are made of blocks of this many bytes.
const BLOCK_BYTES: u64 = 512;

/// The pairs of one verified shard.
#[derive(Debug, PartialEq, Eq)]
pub struct ShardIndex {
    pairs: Vec<PairPlace>,
}

#[derive(Debug, PartialEq, Eq)]
struct PairPlace {
    /// From the header of its first entry to the end of its last one's last block, bytes.
    range: Range<u64>,
    sha256: [u8; 32],
}

impl ShardIndex {
    /// Finds the pairs of a shard whose bytes have been verified.
    pub fn of(tar: &[u8]) -> Result<ShardIndex, ShardError> {
        let mut pairs: Vec<PairPlace> = Vec::new();
        let mut first: Option<u64> = None;
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries().map_err(ShardError::Tar)? {
            let entry = entry.map_err(ShardError::Tar)?;
            let begin = *first.get_or_insert(entry.raw_header_position());
            if !entry.path_bytes().ends_with(b".json") {
                continue;
            }
            let end = entry
                .raw_file_position()
                .saturating_add(entry.size().checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX));
            // The last block of a tar that was written elsewhere may be cut short.
            let end = end.min(tar.len() as u64);
            let bytes = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
            let content = bytes.and_then(|(begin, end)| tar.get(begin..end)).unwrap_or_default();
            pairs.push(PairPlace { range: begin..end, sha256: Sha256::digest(content).into() });
            first = None;
        }
        Ok(ShardIndex { pairs })
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The bytes of the pair at `place`.
    pub fn range(&self, place: usize) -> Option<Range<u64>> {
        Some(self.pairs.get(place)?.range.clone())
    }

    /// The pair at `place` out of the bytes of its range.
    pub fn verified(&self, place: usize, bytes: &[u8]) -> Result<Pair, String> {
        let expected = self.pairs.get(place).ok_or("it is not in the shard")?;
        if <[u8; 32]>::from(Sha256::digest(bytes)) != expected.sha256 {
            return Err("its bytes are not those of the verified shard".to_owned());
        }
        let mut pairs = read_shard(bytes).map_err(|e| e.to_string())?;
        if pairs.len() > 1 {
            return Err("its bytes hold more than one pair".to_owned());
        }
        pairs.pop().ok_or_else(|| "its bytes hold no pair".to_owned())
    }
}

/// The indices of the shards that were read first, or lately: bounded by the number of pairs in them.
#[derive(Debug)]
pub struct Indices {
    most_pairs: usize,
    pairs: usize,
    /// Oldest first.
    order: VecDeque<String>,
    by_path: std::collections::BTreeMap<String, Arc<ShardIndex>>,
}

impl Indices {
    pub fn new(most_pairs: usize) -> Indices {
        Indices { most_pairs, pairs: 0, order: VecDeque::new(), by_path: Default::default() }
    }

    pub fn get(&self, path: &str) -> Option<Arc<ShardIndex>> {
        self.by_path.get(path).cloned()
    }

    /// Keeps an index; the oldest go when there are too many pairs.
    pub fn keep(&mut self, path: &str, index: Arc<ShardIndex>) {
        self.pairs += index.len();
        match self.by_path.insert(path.to_owned(), index) {
            Some(before) => self.pairs -= before.len(),
            None => self.order.push_back(path.to_owned()),
        }
        while self.pairs > self.most_pairs && self.order.len() > 1 {
            let Some(dropped) = self.order.pop_front().and_then(|path| self.by_path.remove(&path)) else {
                break;
            };
            self.pairs -= dropped.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardWriter;
    use image::{Rgb, RgbImage};

    fn pair(n: u8) -> Pair {
        Pair {
            target: RgbImage::from_pixel(8 + u32::from(n), 8, Rgb([n, 1, 2])),
            references: vec![RgbImage::from_pixel(4, 4, Rgb([3, n, 4])); usize::from(n % 3)],
            prompt: "long ".repeat(usize::from(n) * 40),
            reference_words: vec![],
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        }
    }

    fn tar(count: u8) -> Vec<u8> {
        let mut writer = ShardWriter::default();
        for n in 0..count {
            writer.push(&pair(n)).expect("write a pair");
        }
        writer.finish().expect("close").bytes
    }

    #[test]
    fn each_pair_is_found_by_its_range_alone() {
        let tar = tar(7);
        let index = ShardIndex::of(&tar).expect("a tar");
        assert_eq!(index.len(), 7);
        let mut end = 0;
        for n in 0..7 {
            let range = index.range(n).expect("it is there");
            assert_eq!(range.start, end, "pairs follow each other");
            end = range.end;
            let bytes = &tar[range.start as usize..range.end as usize];
            let found = index.verified(n, bytes).expect("whole");
            let expected = pair(n as u8);
            assert_eq!(
                (found.target, found.references, found.prompt),
                (expected.target, expected.references, expected.prompt)
            );
            let mut flipped = bytes.to_vec();
            let last = flipped.len() - 700;
            flipped[last] ^= 1;
            assert!(index.verified(n, &flipped).is_err());
            assert!(index.verified(n, &bytes[..bytes.len() - 512]).is_err());
            assert!(index.verified((n + 1) % 7, bytes).is_err(), "another pair's bytes");
        }
        assert_eq!(index.range(7), None);
        assert!(index.verified(7, &tar).is_err());
    }

    #[test]
    fn the_oldest_index_goes_first() {
        let mut indices = Indices::new(5);
        for path in ["a", "b", "a", "c"] {
            indices.keep(path, Arc::new(ShardIndex::of(&tar(2)).expect("a tar")));
        }
        assert!(indices.get("a").is_none() && indices.get("b").is_some() && indices.get("c").is_some());
        indices.keep("large", Arc::new(ShardIndex::of(&tar(9)).expect("a tar")));
        assert!(indices.get("large").is_some() && indices.get("c").is_none());
    }
}
