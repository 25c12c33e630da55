//! `crescendo-curator-node export`: a stage's pair log as a data set in UNO-1M's layout, which [`crate::sources::import`] reads.
//!
//! ```text
//! OUT/labels/split1.json …      one record a pair, 10,000 records a file
//! OUT/images/split1/ …          NAME_1.png the reference, NAME_2.png the target
//! OUT/README.md                 the data set's card: counts, scores, settings
//! ```
//!
//! Pictures are copied byte by byte out of shards that are verified first. A pair with several references, or with none,
//! does not fit the layout and is counted as left out.

use anyhow::{Context as _, Result, ensure};
use crescendo_core::histogram::ScoreCounts;
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::pair::Facts;
use crescendo_dataset::shard::{StoredPair, read_stored};
use crescendo_node::session::call::Controllers;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::job_service_client::JobServiceClient;
use crescendo_proto::v1::{GetJobRequest, Shard, WatchPairLogRequest};
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Records of a label file, as published.
const SPLIT_RECORDS: u64 = 10_000;

/// Limit of one answer of the controller.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// What is exported.
#[derive(Clone, Debug)]
pub struct Exported {
    pub job_id: String,
    pub stage: String,
    /// The readable log: its shards in order, and the pairs that it has.
    pub shards: Vec<Shard>,
    pub committed: u64,
    /// Candidates rejected, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// The job's resolved spec.
    pub spec_yaml: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportCounts {
    pub pairs: u64,
    /// Pairs that do not have exactly one reference.
    pub left_out: u64,
    pub scores: ScoreCounts,
}

/// What the registry has of a stage now.
pub async fn registered(controllers: &Controllers, job_id: &str, stage: &str) -> Result<Exported> {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    let mut jobs = JobServiceClient::new(controllers.channel());
    let asking = jobs.get_job(request);
    let answer =
        tokio::time::timeout(CALL_DEADLINE, asking).await.context("the controller does not answer")??;
    let job = answer.into_inner().job.context("the controller answered without a job")?;
    let status = job.stages.iter().find(|found| found.name == stage);
    let status = status.with_context(|| format!("job {job_id} has no stage {stage}"))?;
    let request = WatchPairLogRequest { job_id: job_id.to_owned(), stage: stage.to_owned(), from_unit: 0 };
    let mut client = CurationServiceClient::new(controllers.channel())
        .max_decoding_message_size(crescendo_proto::MAX_REPLY_BYTES);
    let mut news = client.watch_pair_log(request).await?.into_inner();
    let (mut shards, mut committed) = (Vec::new(), 0);
    // The list comes in parts; it is whole when it has what the stage had a moment ago.
    while let Some(part) = tokio::time::timeout(CALL_DEADLINE, news.message()).await?? {
        shards.extend(part.shards);
        committed = part.committed;
        if part.sealed || committed >= status.pairs_committed {
            break;
        }
    }
    Ok(Exported {
        job_id: job_id.to_owned(),
        stage: stage.to_owned(),
        shards,
        committed,
        rejected: status.pairs_rejected.clone().into_iter().collect(),
        spec_yaml: job.resolved_spec_yaml,
    })
}

/// Writes the data set into `out`, which must be empty or not there.
pub async fn export(objects: &dyn ObjectStore, exported: &Exported, out: &Path) -> Result<ExportCounts> {
    let begun = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!begun, "{} is not empty", out.display());
    let mut writer = DataSet { out: out.to_owned(), labels: None, counts: ExportCounts::default() };
    let mut left = exported.committed;
    for shard in &exported.shards {
        if shard.pairs == 0 || left == 0 {
            continue;
        }
        let location = object_store::path::Path::parse(&shard.path).context("the registry names no path")?;
        let bytes = objects.get(&location).await.with_context(|| format!("read shard {}", shard.path))?;
        let bytes = bytes.bytes().await.with_context(|| format!("read shard {}", shard.path))?;
        ensure!(
            sha256_hex(&bytes) == shard.sha256,
            "shard {}: its SHA-256 is not the registered one",
            shard.path
        );
        // The log is cut at its target, perhaps within a shard.
        let wanted = shard.pairs.min(left);
        writer.shard(&bytes, wanted).with_context(|| format!("export shard {}", shard.path))?;
        left -= wanted;
    }
    writer.close()?;
    let counts = writer.counts;
    std::fs::write(out.join("README.md"), card(exported, &counts)).context("write the card")?;
    Ok(counts)
}

struct DataSet {
    out: PathBuf,
    /// The label file that is being written; its array is open.
    labels: Option<BufWriter<File>>,
    counts: ExportCounts,
}

impl DataSet {
    fn shard(&mut self, tar: &[u8], wanted: u64) -> Result<()> {
        let pairs = read_stored(tar)?;
        ensure!(pairs.len() as u64 >= wanted, "it has {} pairs, {wanted} are needed", pairs.len());
        for (n, pair) in pairs.into_iter().take(wanted as usize).enumerate() {
            self.pair(pair).with_context(|| format!("write pair {n}"))?;
        }
        Ok(())
    }

    fn pair(&mut self, StoredPair { facts, target, references }: StoredPair) -> Result<()> {
        for (name, value) in &facts.scores {
            self.counts.scores.count(name, *value);
        }
        let [reference] = references.as_slice() else {
            self.counts.left_out += 1;
            return Ok(());
        };
        let number = self.counts.pairs;
        let split = number / SPLIT_RECORDS + 1;
        if number.is_multiple_of(SPLIT_RECORDS) {
            self.close()?;
            for folder in ["labels".to_owned(), format!("images/split{split}")] {
                let folder = self.out.join(folder);
                std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            }
            let path = self.out.join(format!("labels/split{split}.json"));
            let file = File::create_new(&path).with_context(|| format!("write {}", path.display()))?;
            self.labels = Some(BufWriter::new(file));
        }
        let paths = [1, 2].map(|side| format!("split{split}/pair_{number:08}_{side}.png"));
        for (path, content) in paths.iter().zip([reference, &target]) {
            let path = self.out.join("images").join(path);
            std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        let labels = self.labels.as_mut().context("no label file is open")?;
        labels.write_all(if number.is_multiple_of(SPLIT_RECORDS) { b"[\n" } else { b",\n" })?;
        serde_json::to_writer(labels, &record(facts, paths))?;
        self.counts.pairs += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(mut labels) = self.labels.take() {
            labels.write_all(b"\n]\n")?;
            labels.into_inner().context("write the labels")?.sync_all()?;
        }
        Ok(())
    }
}

/// A record as published. A pair that no one scored part by part passed all that its stage asked of it: it has the best
/// score.
fn record(facts: Facts, [reference, target]: [String; 2]) -> Value {
    let Facts { prompt, reference_words, scores, mut provenance } = facts;
    let parts =
        provenance.get("parts").filter(|parts| parts.as_object().is_some_and(|p| !p.is_empty())).cloned();
    let total = ["judge", "score"].iter().find_map(|name| scores.get(*name).copied()).unwrap_or(4.0);
    if let Some(fields) = provenance.as_object_mut() {
        fields.remove("parts");
    }
    json!({
        "img_path1": reference,
        "img_path2": target,
        "caption": {
            "img_path1": reference_words.first().map_or("", String::as_str),
            "img_path2": prompt,
            "judgment": "same",
            "subject": reference_words,
        },
        "vlm_filter_cot": { "score_part": parts.unwrap_or_else(|| json!({})), "score_final": total },
        // Not in the published records; readers pass over what they do not know.
        "scores": scores,
        "provenance": provenance,
    })
}

/// The data set's card.
fn card(exported: &Exported, counts: &ExportCounts) -> String {
    let Exported { job_id, stage, committed, rejected, spec_yaml, .. } = exported;
    let mut card = format!(
        "# Pairs of {job_id}, {stage}\n\n\
         Subject-driven pairs (a reference picture, a target picture, a caption) in the layout of UNO-1M: label files under \
         `labels/`, pictures under `images/`. `img_path1` is the reference, `img_path2` the target that the caption describes.\n\n\
         | what | count |\n|---|---|\n| pairs | {} |\n| pairs of the log | {committed} |\n\
         | left out: not exactly one reference | {} |\n",
        counts.pairs, counts.left_out
    );
    for (reason, count) in rejected {
        let _ = writeln!(card, "| candidates rejected: `{reason}` | {count} |");
    }
    for (scale, buckets) in counts.scores.scores() {
        let _ = write!(card, "\n## Score `{}`\n\n| from | to | pairs |\n|---|---|---|\n", scale.name);
        let width = (scale.most - scale.least) / scale.buckets as f64;
        for (n, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let from = scale.least + n as f64 * width;
            let _ = writeln!(card, "| {from:.2} | {:.2} | {count} |", from + width);
        }
    }
    let _ = write!(
        card,
        "\n## Settings\n\nThe job's spec with every default filled in:\n\n```yaml\n{spec_yaml}```\n"
    );
    card
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::import::Uno1m;
    use crescendo_core::spec::{Directions, ImportFormat, ImportSpec, ScoreDisagreement, ScoreInvalid};
    use crescendo_dataset::pair::Pair;
    use crescendo_dataset::shard::ShardWriter;
    use image::{Rgb, RgbImage};
    use object_store::memory::InMemory;
    use std::sync::atomic::AtomicBool;

    fn pair(n: u8, references: usize) -> Pair {
        Pair {
            target: RgbImage::from_pixel(64, 64, Rgb([n, 200, 7])),
            references: vec![RgbImage::from_pixel(64, 64, Rgb([n, 7, 200])); references],
            prompt: format!("thing {n} on a table"),
            reference_words: vec![format!("thing {n}"); references],
            scores: BTreeMap::from([("similarity".to_owned(), 0.6), ("judge".to_owned(), 3.5)]),
            provenance: json!({ "unit": 0, "parts": { "shape": 4.0, "colour": 3.0 } }),
        }
    }

    async fn stored(objects: &InMemory, unit: u64, pairs: &[Pair]) -> Shard {
        let mut writer = ShardWriter::default();
        for pair in pairs {
            writer.push(pair).expect("write a pair");
        }
        let shard = writer.finish().expect("close");
        let path = format!("jobs/j/s/pairs/unit-{unit:06}-l1.tar");
        objects.put(&path.as_str().into(), shard.bytes.into()).await.expect("put");
        Shard { unit, path, pairs: shard.pairs, sha256: shard.sha256, ..Shard::default() }
    }

    fn of(shards: Vec<Shard>, committed: u64) -> Exported {
        Exported {
            job_id: "j".into(),
            stage: "s".into(),
            shards,
            committed,
            rejected: BTreeMap::from([("similarity_low".to_owned(), 9)]),
            spec_yaml: "kind: TrainingJob\n".into(),
        }
    }

    #[tokio::test]
    async fn what_is_exported_is_imported_again() {
        let objects = InMemory::new();
        let first = stored(&objects, 0, &[pair(0, 1), pair(1, 2), pair(2, 1)]).await;
        let second = stored(&objects, 1, &[pair(3, 1), pair(4, 1)]).await;
        let folder = tempfile::tempdir().expect("make a folder");
        let out = folder.path().join("set");
        // The log is cut before the last pair.
        let counts = export(&objects, &of(vec![first, second], 4), &out).await.expect("export");
        assert_eq!((counts.pairs, counts.left_out), (3, 1));

        let spec = ImportSpec {
            path: String::new(),
            format: ImportFormat::Uno1m,
            min_score: 3.5,
            score_disagreement: ScoreDisagreement::Reject,
            score_invalid: ScoreInvalid::Reject,
            directions: Directions::Both,
            orientation: Default::default(),
            resolution: 64,
        };
        let mut data_set = Uno1m::open(&out, &spec, 1).expect("open");
        let imported = data_set.unit(0, 100, &AtomicBool::new(false)).expect("read");
        assert_eq!(imported.candidates.len(), 6);
        for (n, found) in [0u8, 2, 3].into_iter().zip(imported.candidates.chunks(2)) {
            let (expected, found) = (pair(n, 1), found[0].as_ref().expect("a good pair"));
            assert_eq!((&found.target, &found.references), (&expected.target, &expected.references));
            assert_eq!(
                (&found.prompt, &found.reference_words),
                (&expected.prompt, &expected.reference_words)
            );
            assert_eq!(found.scores["score"], 3.5);
        }
        let card = std::fs::read_to_string(out.join("README.md")).expect("read the card");
        for says in ["| pairs | 3 |", "`similarity_low` | 9", "kind: TrainingJob", "| 3.50 | 3.75 | 4 |"] {
            assert!(card.contains(says), "{says} is not in:\n{card}");
        }
        let again = export(&objects, &of(vec![], 0), &out).await.expect_err("the folder is taken");
        assert!(again.to_string().contains("is not empty"), "{again}");
    }

    #[tokio::test]
    async fn a_damaged_shard_ends_the_export() {
        let objects = InMemory::new();
        let mut shard = stored(&objects, 0, &[pair(0, 1)]).await;
        shard.sha256 = "0".repeat(64);
        let folder = tempfile::tempdir().expect("make a folder");
        let error = export(&objects, &of(vec![shard], 1), folder.path()).await.expect_err("it is damaged");
        assert!(error.to_string().contains("unit-000000-l1.tar"), "{error}");
    }
}
