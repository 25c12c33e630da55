//! Candidates that a stage's filters turned down, a few of each reason: they say more of a threshold than its number does.

use std::collections::BTreeMap;

use crescendo_core::object_keys;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::read_shard;
use image::RgbImage;

use super::objects::Objects;

/// Units whose samples are read at most, spread over all that there are.
const MOST_UNITS: usize = 12;
/// Candidates of one reason.
const MOST_SHOWN: usize = 4;

/// A candidate that was turned down.
pub struct Rejected {
    pub prompt: String,
    pub reference: Option<RgbImage>,
    pub target: RgbImage,
    /// `similarity 0.41`, by name.
    pub scores: Vec<String>,
}

/// Those of a stage by their reasons; nothing of a job whose curators kept none, or of what cannot be read.
pub fn of_stage(objects: &Objects, job: &str, stage: &str) -> BTreeMap<String, Vec<Rejected>> {
    let keys = objects.list(&object_keys::rejected_samples(job, stage)).unwrap_or_default();
    let mut found: BTreeMap<String, Vec<Rejected>> = BTreeMap::new();
    for key in spread(&keys) {
        let read = objects.read(key).ok().and_then(|bytes| read_shard(bytes.as_slice()).ok());
        for pair in read.into_iter().flatten() {
            let reason = pair.provenance["rejected"].as_str().unwrap_or("unknown").to_owned();
            let shown = found.entry(reason).or_default();
            if shown.len() < MOST_SHOWN {
                shown.push(rejected(pair));
            }
        }
    }
    found
}

/// At most [`MOST_UNITS`], from the first to the last.
fn spread(keys: &[String]) -> impl Iterator<Item = &String> {
    let every = keys.len().div_ceil(MOST_UNITS).max(1);
    keys.iter().step_by(every)
}

fn rejected(pair: Pair) -> Rejected {
    let Pair { target, references, prompt, scores, .. } = pair;
    let scores = scores.iter().map(|(name, score)| format!("{name} {score:.2}")).collect();
    Rejected { prompt, reference: references.into_iter().next(), target, scores }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::ShardWriter;
    use serde_json::json;

    fn pair(reason: Option<&str>, similarity: f64) -> Pair {
        Pair {
            target: RgbImage::new(8, 8),
            references: vec![RgbImage::new(4, 4)],
            prompt: "a cup".into(),
            reference_words: vec!["cup".into()],
            scores: BTreeMap::from([("similarity".to_owned(), similarity)]),
            provenance: reason.map_or_else(|| json!({}), |reason| json!({ "rejected": reason })),
        }
    }

    #[test]
    fn a_few_of_each_reason_are_there_and_what_cannot_be_read_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |unit: u64, bytes: &[u8]| {
            let path = folder.path().join(object_keys::rejected_sample("j", "s", unit));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("make it");
            std::fs::write(path, bytes).expect("write");
        };
        let shard = |pairs: &[Pair]| {
            let mut writer = ShardWriter::default();
            pairs.iter().for_each(|pair| writer.push(pair).expect("written"));
            writer.finish().expect("a shard").bytes
        };
        put(0, &shard(&[pair(Some("similarity_low"), 0.125), pair(Some("judge_low"), 0.5)]));
        put(1, b"torn");
        for unit in 2..9 {
            put(unit, &shard(&[pair(Some("similarity_low"), 0.25)]));
        }
        put(9, &shard(&[pair(None, 0.5)]));
        let objects = Objects::open(folder.path().to_str().expect("UTF-8")).expect("open");
        let found = of_stage(&objects, "j", "s");
        let counts: Vec<(&str, usize)> =
            found.iter().map(|(reason, shown)| (reason.as_str(), shown.len())).collect();
        assert_eq!(counts, [("judge_low", 1), ("similarity_low", MOST_SHOWN), ("unknown", 1)]);
        assert_eq!(found["similarity_low"][0].scores, ["similarity 0.12"]);
        assert!(of_stage(&objects, "j", "other").is_empty());
    }

    #[test]
    fn of_many_units_a_few_are_read_from_first_to_last() {
        let keys: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        let read: Vec<&String> = spread(&keys).collect();
        assert!(read.len() <= MOST_UNITS && read[0] == "0" && read.len() > MOST_UNITS / 2, "{read:?}");
        assert_eq!(spread(&keys[..3]).count(), 3);
        assert_eq!(spread(&[]).count(), 0);
    }
}
