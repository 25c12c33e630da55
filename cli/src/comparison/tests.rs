use prost_types::Timestamp;
use serde_json::json;

use super::history::ending;
use super::*;

fn values(specs: &[&str]) -> Vec<(String, Vec<Option<serde_json::Value>>)> {
    let leaves: Vec<Leaves> = specs.iter().map(|spec| Leaves::of(spec).unwrap()).collect();
    leaves::differences(&leaves).into_iter().map(|found| (found.path, found.values)).collect()
}

#[test]
fn leaves_that_differ_are_told_with_their_paths() {
    let one = "a: 1\nb: {c: [1, 2, {d: x}], e: null}\nsame: [1]\nrate: 1e-5\n";
    let other = "a: 2\nb: {c: [1, 3], e: null}\nsame: [1]\nrate: 0.00001\nmore: {}\n";
    assert_eq!(
        values(&[one, other]),
        [
            ("a".to_owned(), vec![Some(json!(1)), Some(json!(2))]),
            ("b.c[1]".to_owned(), vec![Some(json!(2)), Some(json!(3))]),
            ("b.c[2].d".to_owned(), vec![Some(json!("x")), None]),
            ("more".to_owned(), vec![None, Some(json!({}))]),
        ]
    );
    assert_eq!(values(&[one, one]), []);
    assert_eq!(values(&["a: true", "a: 1"]), [("a".to_owned(), vec![Some(json!(true)), Some(json!(1))])]);
    assert_eq!(values(&["a: 1", "a: 1.0"]), []);
    // The third differs, the first two do not.
    assert_eq!(values(&["a: 1", "a: 1", "a: 2"]).len(), 1);
    assert!(Leaves::of("a: [").is_err());
}

#[test]
fn a_history_gives_the_last_figures_and_the_means_of_the_last_steps() {
    let line = |step: u32| {
        let seconds = if step <= 50 { 9.0 } else { 2.0 };
        let loss = if step <= 50 { 9.0 } else { f64::from(step) };
        json!({"step": step, "loss": loss, "grad_norm": 0.5 / f64::from(step), "seconds": seconds})
            .to_string()
    };
    let lines: Vec<String> = (1..=150).map(line).collect();
    let expected = Ending {
        loss: Some(150.0),
        mean_loss: Some(100.5),
        grad_norm: Some(0.5 / 150.0),
        step_seconds: Some(2.0),
    };
    assert_eq!(ending(lines.join("\n").as_bytes()), Ok(expected));
    let skipped = "{\"step\":1,\"loss\":2,\"grad_norm\":1,\"seconds\":0.5}\n{\"step\":2,\"loss\":null,\"grad_norm\":null,\"seconds\":0.5}\n";
    let expected = Ending { loss: None, mean_loss: Some(2.0), grad_norm: None, step_seconds: Some(0.5) };
    assert_eq!(ending(skipped.as_bytes()), Ok(expected));
    assert_eq!(ending(b""), Ok(Ending::default()));
    let why = ending(b"{\"step\":1,\"loss\":2,\"seconds\":0.5}\n{\"st").unwrap_err();
    assert!(why.starts_with("line 2 of history.jsonl: "), "{why}");
}

fn stage(name: &str) -> StageStatus {
    StageStatus { name: name.into(), ..StageStatus::default() }
}

/// Two that differ in their learning rate: one that runs, and one that has failed and whose ranks are forgotten.
fn compared() -> Comparison {
    let ran = StageStatus {
        step: 5,
        steps_total: 10,
        loss: 0.25,
        grad_norm: 1.5,
        samples_per_sec: 3.0,
        pairs_committed: 7,
        restarts: 2,
        phase: StagePhase::Training as i32,
        ..stage("stage-1")
    };
    let failed = StageStatus { loss: 0.0, grad_norm: 0.0, samples_per_sec: 0.0, ..ran.clone() };
    let two = Job {
        job_id: "two".into(),
        state: JobState::Running as i32,
        stages: vec![ran, StageStatus { restarts: 1, ..stage("stage-2") }],
        ..Job::default()
    };
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let one = Job {
        job_id: "one".into(),
        state: JobState::Failed as i32,
        started_at: at(100),
        finished_at: at(160),
        stages: vec![failed],
        ..Job::default()
    };
    let spec = |rate| {
        Leaves::of(&format!("spec: {{stages: [{{train: {{globalBatch: 8, learningRate: {rate}}}}}]}}"))
            .unwrap()
    };
    let last =
        Ending { loss: Some(0.5), mean_loss: Some(0.75), grad_norm: Some(2.5), step_seconds: Some(2.0) };
    let endings: BTreeMap<_, _> = [
        (("one".to_owned(), "stage-1".to_owned()), last.clone()),
        // What the ranks report goes before what is in the checkpoint.
        (("two".to_owned(), "stage-1".to_owned()), Ending { mean_loss: Some(0.3), ..last }),
    ]
    .into();
    compare(&[two, one], &[spec("1e-5"), spec("8e-5")], &endings)
}

#[test]
fn jobs_of_different_stages_stand_side_by_side() {
    let compared = compared();
    assert_eq!(
        table::columns(&compared).to_string().trim_start(),
        "\
two      one
state                              running  failed
duration, s                        ?        60
restarts                           3        2
stage-1 steps                      5/10     5/10
stage-1 loss                       0.25     0.5
stage-1 mean loss                  0.3      0.75
stage-1 grad norm                  1.5      2.5
stage-1 samples/s                  3        4
stage-1 pairs                      7        7
stage-1 restarts                   2        2
stage-2 steps                      0/0      -
stage-2 loss                       ?        -
stage-2 mean loss                  ?        -
stage-2 grad norm                  ?        -
stage-2 samples/s                  ?        -
stage-2 pairs                      0        -
stage-2 restarts                   1        -
spec.stages[0].train.learningRate  1e-5     8e-5
"
    );
    assert_eq!(
        table::rows(&compared).to_string(),
        "\
JOB  spec.stages[0].train.learningRate  STATE    STAGE    STEP  LOSS  MEAN LOSS
two  1e-5                               running  stage-1  5/10  0.25  0.3
one  8e-5                               failed   stage-1  5/10  0.5   0.75
"
    );
    let shown = table::as_json(&compared, &["a line".into()]);
    assert_eq!(shown["jobs"][1]["stages"][0]["samplesPerSec"], 4.0);
    assert_eq!(shown["jobs"][0]["stages"][1]["loss"], json!(null), "not 0");
    assert_eq!(
        shown["differences"],
        json!([{"path": "spec.stages[0].train.learningRate", "values": {"two": 1e-5, "one": 8e-5}}])
    );
}
