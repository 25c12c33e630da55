//! A stage's event files under a TensorBoard that is open while they grow: the program itself, with its default settings.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crescendo_testing::tensorboard::{LIMIT, TensorBoard};
use crescendo_trainer_node::rank::event_files::EventFiles;
use crescendo_trainer_node::rank::history::{History, StepRecord};
use crescendo_trainer_node::rank::hyper_parameters::HyperParameter;
use crescendo_trainer_node::rank::tfevents::Run;
use object_store::ObjectStore;
use tokio::time::sleep;

/// What the page of a TensorBoard shows.
struct Board(TensorBoard);

impl Board {
    fn start_or_skip(logdir: &Path) -> Option<Self> {
        TensorBoard::start_or_skip(logdir, &[]).map(Self)
    }

    /// Steps and values of the loss of a run; empty while there is none.
    async fn curve(&self, run: &str) -> Vec<(u64, f64)> {
        let run = run.replace('/', "%2F");
        let asked = self.0.ask(&format!("/data/plugin/scalars/scalars?run={run}&tag=train%2Floss")).await;
        // Time, step, value.
        let points: Vec<(f64, u64, f64)> =
            asked.and_then(|answer| serde_json::from_value(answer).ok()).unwrap_or_default();
        points.into_iter().map(|(_, step, value)| (step, value)).collect()
    }

    /// The plugin's table, once it has so many rows: of each its hyper-parameters, how it ended, and its last loss.
    async fn table(&self, rows: usize) -> Vec<(serde_json::Value, String, f64)> {
        // The statuses that are asked for, and the metric: a request without them gets neither.
        let request = "%7B%22allowedStatuses%22%3A%5B0%2C1%2C2%2C3%5D%2C%22sliceSize%22%3A99%2C%22colParams%22%3A\
            %5B%7B%22metric%22%3A%7B%22tag%22%3A%22train%2Floss%22%2C%22group%22%3A%22%22%7D%7D%5D%7D";
        let path = format!("/data/plugin/hparams/session_groups?request={request}");
        let mut seen = None;
        let shown = async {
            loop {
                seen = self.0.ask(&path).await;
                let groups = seen.as_ref().and_then(|seen| seen["sessionGroups"].as_array()).cloned();
                let of = |group: &serde_json::Value| {
                    let session = &group["sessions"][0];
                    let loss = session["metricValues"]
                        .as_array()?
                        .iter()
                        .find(|value| value["name"]["tag"] == "train/loss")?;
                    let status = session["status"].as_str().unwrap_or("STATUS_UNKNOWN").to_owned();
                    Some((group["hparams"].clone(), status, loss["value"].as_f64()?))
                };
                let found: Vec<_> = groups.iter().flatten().filter_map(of).collect();
                if found.len() == rows {
                    return found;
                }
                sleep(Duration::from_millis(300)).await;
            }
        };
        match tokio::time::timeout(LIMIT, shown).await {
            Ok(found) => found,
            Err(_) => panic!("not {rows} rows: {seen:?}"),
        }
    }

    /// Waits until the curves of all `runs` are these.
    async fn shows(&self, runs: &[&str], expected: &[(u64, f64)]) {
        let mut seen = Vec::new();
        let shown = async {
            loop {
                seen.clear();
                for run in runs {
                    seen.push(self.curve(run).await);
                }
                if seen.iter().all(|curve| curve == expected) {
                    return;
                }
                sleep(Duration::from_millis(300)).await;
            }
        };
        if tokio::time::timeout(LIMIT, shown).await.is_err() {
            panic!("{runs:?} show {seen:?}, not {expected:?}");
        }
    }
}

/// A loss of `loss` at each of the steps; halves and quarters, which survive float32.
fn history(losses: &[f64]) -> Bytes {
    let mut history = History::default();
    for (step, loss) in (1u64..).zip(losses) {
        history.push(&StepRecord {
            step,
            loss: *loss,
            grad_norm: 0.25,
            learning_rate: 1e-5,
            seconds: 0.5,
            at_unix_secs: 1_700_000_000.0 + step as f64,
            skipped: false,
        });
    }
    Bytes::from(history.to_bytes())
}

fn curve(losses: &[f64]) -> Vec<(u64, f64)> {
    (1u64..).zip(losses.iter().copied()).collect()
}

#[tokio::test]
async fn a_curve_grows_while_it_is_looked_at() {
    let root = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", root.path().display());
    let store: Arc<dyn ObjectStore> = crescendo_node::objects::open(&url).expect("open the store");
    // The files of a bucket, in a folder: TensorBoard reads those of a bucket in the same order by names.
    let ways = [("folder", EventFiles::of(&url, &store)), ("bucket", EventFiles::Bucket(store.clone()))];
    let runs = ["folder/tensorboard", "bucket/tensorboard"];
    let checkpoint = async |losses: &[f64]| {
        for (way, files) in &ways {
            let folder = format!("jobs/{way}/tensorboard");
            let (step, run) = (losses.len() as u64, Arc::new(Run::default()));
            files.write(&folder, step, history(losses), &run, false).await.expect("write the events");
        }
    };
    checkpoint(&[4.0, 3.5]).await;
    let Some(board) = Board::start_or_skip(&root.path().join("jobs")) else { return };
    board.shows(&runs, &curve(&[4.0, 3.5])).await;
    // The next checkpoint; and one more, with its file open all the while.
    for losses in [&[4.0, 3.5, 3.0, 2.5][..], &[4.0, 3.5, 3.0, 2.5, 2.0]] {
        checkpoint(losses).await;
        board.shows(&runs, &curve(losses)).await;
    }
    // A gang that begins again from step 4 does step 5 anew and registers step 6: no step has come twice.
    let after_failure = [4.0, 3.5, 3.0, 2.5, 2.0, 1.75];
    checkpoint(&after_failure).await;
    board.shows(&runs, &curve(&after_failure)).await;
    // The checkpoints of steps 5 and 6 are damaged: those steps are lost, and others take their place.
    let after_damage = [4.0, 3.5, 3.0, 2.5, 1.5];
    checkpoint(&after_damage).await;
    board.shows(&runs, &curve(&after_damage)).await;
    let longer = [4.0, 3.5, 3.0, 2.5, 1.5, 1.25, 1.0];
    checkpoint(&longer).await;
    board.shows(&runs, &curve(&longer)).await;
}

#[tokio::test]
async fn runs_are_rows_of_a_table_with_what_they_are_trained_with() {
    let root = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", root.path().display());
    let store: Arc<dyn ObjectStore> = crescendo_node::objects::open(&url).expect("open the store");
    let ways = [("a", EventFiles::of(&url, &store), 1e-4), ("b", EventFiles::Bucket(store.clone()), 8e-5)];
    for (name, files, rate) in &ways {
        let hyper_parameters = BTreeMap::from([
            ("train.learningRate".to_owned(), HyperParameter::Number(*rate)),
            ("data.source".to_owned(), HyperParameter::Text("compose".into())),
            ("model.frozen".to_owned(), HyperParameter::Truth(true)),
            // Only one of them has it: the others have an empty cell.
            (format!("only.{name}"), HyperParameter::Number(1.0)),
        ]);
        let run = Arc::new(Run { global_batch: 8, hyper_parameters });
        for (losses, is_last) in [(&[4.0, 3.5][..], false), (&[4.0, 3.5, 3.0], *name == "b")] {
            let folder = format!("jobs/{name}/tensorboard");
            files.write(&folder, losses.len() as u64, history(losses), &run, is_last).await.expect("written");
        }
    }
    let Some(board) = Board::start_or_skip(&root.path().join("jobs")) else { return };
    board.shows(&["a/tensorboard", "b/tensorboard"], &curve(&[4.0, 3.5, 3.0])).await;
    let mut rows = board.table(2).await;
    rows.sort_by(|one, other| other.1.cmp(&one.1));
    let of = |row: &(serde_json::Value, String, f64), name: &str| row.0[name].clone();
    for (row, (name, _, rate)) in rows.iter().zip([&ways[0], &ways[1]]) {
        assert_eq!(of(row, "train.learningRate"), *rate, "{row:?}");
        assert_eq!(of(row, "data.source"), "compose", "{row:?}");
        assert_eq!(of(row, "model.frozen"), true, "{row:?}");
        assert_eq!(of(row, &format!("only.{name}")), 1.0, "{row:?}");
        assert_eq!(row.2, 3.0, "{row:?}");
    }
    assert_eq!([rows[0].1.as_str(), rows[1].1.as_str()], ["STATUS_UNKNOWN", "STATUS_SUCCESS"]);
    let columns = board.0.ask("/data/plugin/hparams/experiment?request=%7B%7D").await.expect("an answer");
    let named: Vec<&str> = columns["hparamInfos"]
        .as_array()
        .expect("columns")
        .iter()
        .filter_map(|info| info["name"].as_str())
        .collect();
    for name in ["train.learningRate", "data.source", "model.frozen", "only.a", "only.b"] {
        assert!(named.contains(&name), "{name} is no column: {columns}");
    }
}
