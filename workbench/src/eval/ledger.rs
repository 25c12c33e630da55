//! Scores that are done: one line of JSON each, so that a run that was stopped goes on where it was.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use super::judge::PictureScore;

/// The part of the work that one process does: pictures whose number leaves the remainder `index` by `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl Shard {
    pub fn holds(&self, picture: usize) -> bool {
        picture % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(index, count)| Some(Self { index: index.parse().ok()?, count: count.parse().ok()? }));
        match parsed {
            Some(shard) if shard.index < shard.count && shard.count <= 4096 => Ok(shard),
            _ => Err(format!("{text:?} is not I/N with I from 0 to N - 1 and N at most 4096")),
        }
    }
}

/// Scores by row and sample.
pub type Scores = BTreeMap<(usize, usize), PictureScore>;

const PREFIX: &str = "scores-";
const SUFFIX: &str = ".jsonl";

/// Reads what every shard has written. A line that was cut off by a stop is no score; of two of one picture the one
/// that `wanted` accepts counts.
pub fn read_all(folder: &Path, wanted: impl Fn(&PictureScore) -> bool) -> Result<Scores> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut scores = Scores::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for line in text.lines() {
            if let Ok(score) = serde_json::from_str::<PictureScore>(line)
                && wanted(&score)
            {
                scores.insert((score.row, score.sample), score);
            }
        }
    }
    Ok(scores)
}

/// The file that one shard adds to. Only one process at a time holds it.
pub struct Ledger {
    file: File,
}

impl Ledger {
    pub fn open(folder: &Path, shard: Shard) -> Result<Self> {
        let path = folder.join(format!("{PREFIX}{}-of-{}{SUFFIX}", shard.index, shard.count));
        let open = || format!("open {}", path.display());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(open)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{} is in use by another run", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(open),
        }
        // What follows a line that was cut off must not become part of it.
        if file.seek(SeekFrom::End(0)).with_context(open)? > 0 {
            file.seek(SeekFrom::End(-1)).with_context(open)?;
            let mut last = [0];
            file.read_exact(&mut last).with_context(open)?;
            if last != *b"\n" {
                file.write_all(b"\n").with_context(open)?;
            }
        }
        Ok(Self { file })
    }

    /// Adds a score; it is with the operating system when this returns.
    pub fn add(&mut self, score: &PictureScore) -> Result<()> {
        let mut line = serde_json::to_vec(score).context("write a score")?;
        ensure!(!line.contains(&b'\n'), "a score spans lines");
        line.push(b'\n');
        self.file.write_all(&line).context("add a score")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(row: usize, inputs: &str) -> PictureScore {
        PictureScore {
            row,
            sample: 0,
            inputs: inputs.to_owned(),
            clip_t: 0.25,
            clip_i: vec![0.5],
            dino: vec![1.0 / 3.0],
            crops: None,
        }
    }

    #[test]
    fn what_was_added_is_read_even_after_a_torn_line() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let shards = [Shard { index: 0, count: 2 }, Shard { index: 1, count: 2 }];
        for (row, shard) in shards.into_iter().enumerate() {
            Ledger::open(folder.path(), shard)?.add(&score(row, "new"))?;
        }
        let torn = folder.path().join("scores-1-of-2.jsonl");
        let mut text = std::fs::read(&torn)?;
        text.extend_from_slice(b"{\"row\": 7, \"sam");
        std::fs::write(&torn, text)?;
        let mut ledger = Ledger::open(folder.path(), shards[1])?;
        ledger.add(&score(8, "new"))?;
        ledger.add(&score(9, "old"))?;
        let read = read_all(folder.path(), |score| score.inputs == "new")?;
        assert_eq!(read.keys().copied().collect::<Vec<_>>(), [(0, 0), (1, 0), (8, 0)]);
        assert_eq!(read[&(1, 0)], score(1, "new"));
        Ok(())
    }

    #[test]
    fn two_runs_of_one_shard_do_not_mix() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let shard = Shard { index: 0, count: 1 };
        let first = Ledger::open(folder.path(), shard)?;
        let error = Ledger::open(folder.path(), shard).err().context("opened twice")?;
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
        drop(first);
        Ledger::open(folder.path(), shard)?;
        Ok(())
    }

    #[test]
    fn shards_share_the_work() {
        let shards: Vec<Shard> = (0..3).map(|index| Shard { index, count: 3 }).collect();
        for picture in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.holds(picture)).count(), 1);
        }
        assert_eq!("1/4".parse(), Ok(Shard { index: 1, count: 4 }));
        for text in ["", "1", "4/4", "0/0", "-1/2", "0/9999"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
