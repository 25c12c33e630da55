use super::assignment::{Assignment, Axis, FieldPath, MOST_JOBS, check_once, combinations};
use super::*;

const FILE: &str = "\
# A comment stays.
apiVersion: crescendo/v1
kind: TrainingJob
metadata:
  name: uno   # the name
spec:
  model: {preset: nano, weights: a.safetensors}
  seed: 7 # lucky
  resources:
  stages:
    - name: stage-1
      train:
        adapter: {rank: 4}
        learningRate: 1e-3
        steps: 5
    - references: 2
      data:
        subjects:
          - one
          - two
      train: {}
";

fn edited(file: &str, assignments: &[&str]) -> Result<EditedSpec, String> {
    let mut spec = EditedSpec::read(file.as_bytes()).expect("it is YAML");
    for assignment in assignments {
        spec.set(&assignment.parse()?)?;
    }
    Ok(spec)
}

fn text(spec: &EditedSpec) -> String {
    String::from_utf8(spec.yaml()).unwrap()
}

/// What one assignment changes: the lines that are no longer there, and those that are there instead.
fn change(file: &str, assignment: &str) -> (String, String) {
    let new = text(&edited(file, &[assignment]).unwrap());
    let kept = |lines: &str, other: &str| {
        let other: Vec<&str> = other.lines().collect();
        lines.lines().filter(|line| !other.contains(line)).map(str::trim).collect::<Vec<_>>().join("|")
    };
    (kept(file, &new), kept(&new, file))
}

#[test]
fn only_the_field_is_changed() {
    for (assignment, before, after) in [
        ("seed=8", "seed: 7 # lucky", "seed: 8 # lucky"),
        ("spec.seed=8", "seed: 7 # lucky", "seed: 8 # lucky"),
        ("metadata.name=dos", "name: uno   # the name", "name: dos   # the name"),
        ("stages[0].train.learningRate=8e-5", "learningRate: 1e-3", "learningRate: 8e-5"),
        ("stages[0].train.adapter=none", "adapter: {rank: 4}", "adapter: none"),
        ("stages[0].train.adapter.rank=8", "adapter: {rank: 4}", "adapter: {rank: 8}"),
        (
            "model.preset=flux-dev",
            "model: {preset: nano, weights: a.safetensors}",
            "model: {preset: flux-dev, weights: a.safetensors}",
        ),
        ("stages[1].data.subjects=three", "- one|- two", "three"),
        ("stages[1].data.subjects[1]=three", "- two", "- three"),
        // What is not there is put before the first field.
        ("priority=3", "", "\"priority\": 3"),
        (
            "model.precision=f32",
            "model: {preset: nano, weights: a.safetensors}",
            "model: {\"precision\": f32, preset: nano, weights: a.safetensors}",
        ),
        ("stages[1].name=last", "- references: 2", "- \"name\": last|references: 2"),
        ("stages[1].train.steps=9", "train: {}", "train: {\"steps\": 9}"),
        ("checkpoints.every=9", "", "\"checkpoints\": {\"every\": 9}"),
        ("resources.gpus=2", "resources:", "resources: {\"gpus\": 2}"),
        ("metadata.labels.example.com/team=a b", "", "\"labels\": {\"example.com/team\": a b}"),
    ] {
        assert_eq!(change(FILE, assignment), (before.into(), after.into()), "{assignment}");
    }
}

#[test]
fn what_is_set_is_what_a_reader_finds() {
    let paths = [
        "seed=8",
        "priority=3",
        "resources.gpus=2",
        "stages[1].train.steps=9",
        "stages[0].train.adapter=none",
        "metadata.labels.team=vision",
        "stages[1].data.subjects=three",
        "checkpoints.every=9",
    ];
    let spec = edited(FILE, &paths).unwrap();
    let found: serde_json::Value = serde_yaml::from_slice(&spec.yaml()).unwrap();
    for (pointer, value) in [
        ("/spec/seed", serde_json::json!(8)),
        ("/spec/priority", 3.into()),
        ("/spec/resources/gpus", 2.into()),
        ("/spec/stages/1/train/steps", 9.into()),
        ("/spec/stages/1/references", 2.into()),
        ("/spec/stages/1/data/subjects", "three".into()),
        ("/spec/stages/0/train/adapter", "none".into()),
        ("/spec/stages/0/train/steps", 5.into()),
        ("/spec/checkpoints/every", 9.into()),
        ("/metadata/labels/team", "vision".into()),
    ] {
        assert_eq!(found.pointer(pointer), Some(&value), "{pointer} in\n{}", text(&spec));
    }
    assert_eq!(spec.name().as_deref(), Some("uno"));
    // The same with the line ends of other systems, and with a mark before the first character.
    let other = edited(&format!("\u{feff}{}", FILE.replace('\n', "\r\n")), &paths).unwrap();
    assert_eq!(serde_yaml::from_slice::<serde_json::Value>(&other.yaml()).unwrap(), found);
}

#[test]
fn of_the_examples_nothing_else_changes() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut expected = crescendo_core::spec::parse(text.as_bytes()).unwrap();
        expected.seed = 4711;
        expected.stages[0].train.steps = 100_000;
        expected.labels.insert("team".into(), "vision".into());
        let set = ["seed=4711", "stages[0].train.steps=100000", "metadata.labels.team=vision"];
        let edited = edited(&text, &set).unwrap();
        assert_eq!(crescendo_core::spec::parse(&edited.yaml()), Ok(expected), "{}", file.display());
        count += 1;
    }
    assert!(count > 3, "{count} examples");
}

#[test]
fn a_value_is_yaml_where_it_is_one_value_and_text_else() {
    for (value, found) in [
        ("7", serde_json::json!(7)),
        ("1e-5", 1e-5.into()),
        ("true", true.into()),
        ("'7'", "7".into()),
        ("[a, b]", serde_json::json!(["a", "b"])),
        ("{rank: 8}", serde_json::json!({"rank": 8})),
        ("a: b", "a: b".into()),
        ("a, b", "a, b".into()),
        ("a #b", "a #b".into()),
        ("[a", "[a".into()),
        ("a] b", "a] b".into()),
        ("say \"hi\"", "say \"hi\"".into()),
        ("store:weights/a.safetensors", "store:weights/a.safetensors".into()),
        ("@x", "@x".into()),
    ] {
        let spec = edited(FILE, &[&format!("seed={value}")]).unwrap();
        let tree: serde_json::Value = serde_yaml::from_slice(&spec.yaml()).unwrap();
        assert_eq!(tree["spec"]["seed"], found, "{value}");
        let inside = edited(FILE, &[&format!("model.weights={value}")]).unwrap();
        let tree: serde_json::Value = serde_yaml::from_slice(&inside.yaml()).unwrap();
        assert_eq!(tree["spec"]["model"]["weights"], found, "{value} within braces");
    }
    // Nothing that is deep or long ends the program.
    for deep in ["[".repeat(100_000), "{a: ".repeat(100_000)] {
        assert!(edited(FILE, &[&format!("seed={deep}")]).is_ok(), "it is text");
    }
}

#[test]
fn what_is_no_path_or_leads_nowhere_is_refused() {
    for wrong in ["seed", "=7", "seed=", ".seed=7", "stages[x].name=a", "stages[0=7", "se ed=7", "a..b=1"] {
        assert!(wrong.parse::<Assignment>().is_err(), "{wrong}");
    }
    for (assignment, words) in [
        (
            "stages[2].name=a",
            "--set spec.stages[2].name=a: `spec.stages` has 2, and they are counted from 0: there is no [2]",
        ),
        ("seed.more=1", "`spec.seed` is not a section of fields"),
        ("seed[0]=1", "`spec.seed` is not a list"),
        ("endpoints[0].name=a", "the spec has no such list, and so no [0] of it"),
        ("stages.name=a", "`spec.stages` is not a section of fields"),
    ] {
        let why = edited(FILE, &[assignment]).unwrap_err();
        assert!(why.contains(words), "{assignment}: {why}");
    }
    for empty in ["", "# nothing\n", "~\n", "- a\n"] {
        assert!(EditedSpec::read(empty.as_bytes()).is_err(), "{empty:?}");
    }
    assert!(EditedSpec::read(b"a: [\n").unwrap_err()[0].line > 0);
    assert!(EditedSpec::read(b"a: &x 1\nb: *x\n").is_err(), "aliases are not written out in silence");
    assert!(EditedSpec::read(b"a: \xff\n").is_err());
}

#[test]
fn problems_have_their_line_in_the_file_or_name_what_was_set() {
    let file = FILE.replace("steps: 5", "stpes: 5");
    let spec = edited(&file, &["sed=1", "priority=high", "stages[1].name=B!"]).unwrap();
    let found = spec.in_file(crescendo_core::spec::parse(&spec.yaml()).unwrap_err());
    let of = |path: &str| {
        found.iter().find(|problem| problem.path == path).unwrap_or_else(|| panic!("{path}: {found:?}"))
    };
    let stpes = of("spec.stages[0].train.stpes");
    assert_eq!((stpes.line, stpes.column), (15, 9), "as in the file, although lines were added before it");
    for (path, by) in [
        ("spec.sed", "--set spec.sed=1"),
        ("spec.priority", "--set spec.priority=high"),
        ("spec.stages[1].name", "--set spec.stages[1].name=B!"),
    ] {
        let problem = of(path);
        assert!(problem.line == 0 && problem.message.ends_with(&format!("(by {by})")), "{problem:?}");
    }
    assert!(of("spec.sed").message.starts_with("unknown field `sed`; did you mean `seed`?"));
}

#[test]
fn a_matrix_is_every_combination_the_last_field_first() {
    let axes = |texts: &[&str]| texts.iter().map(|text| text.parse::<Axis>().unwrap()).collect::<Vec<_>>();
    let shown = |axes: &[Axis]| {
        let combinations = combinations(axes).unwrap();
        combinations
            .iter()
            .map(|one| one.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&axes(&["seed=1, 2", "stages[0].train.adapter={rank: 4, alpha: 1},none"])),
        [
            "spec.seed=1 spec.stages[0].train.adapter={rank: 4, alpha: 1}",
            "spec.seed=1 spec.stages[0].train.adapter=none",
            "spec.seed=2 spec.stages[0].train.adapter={rank: 4, alpha: 1}",
            "spec.seed=2 spec.stages[0].train.adapter=none",
        ]
    );
    assert_eq!(shown(&axes(&["seed=\"a,b\",c"])), ["spec.seed=\"a,b\"", "spec.seed=c"]);
    let many =
        |count: usize| format!("seed={}", (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
    assert_eq!(combinations(&axes(&[&many(MOST_JOBS)])).unwrap().len(), MOST_JOBS);
    let why = combinations(&axes(&[&many(20), &many(20)])).unwrap_err();
    assert_eq!(why, "--matrix asks for 400 jobs; at most 256 are submitted at once");
    for wrong in ["seed=1,,2", "seed=1,1", "seed=", "seed"] {
        assert!(wrong.parse::<Axis>().is_err(), "{wrong}");
    }
}

#[test]
fn a_field_is_set_once() {
    let once = |paths: &[&str]| {
        let paths: Vec<FieldPath> = paths.iter().map(|path| path.parse().unwrap()).collect();
        check_once(paths.iter())
    };
    assert_eq!(once(&["seed", "stages[0].train.steps", "stages[1].train.steps"]), Ok(()));
    assert_eq!(once(&["seed", "spec.seed"]), Err("`spec.seed` is set twice".into()));
    assert!(once(&["stages[0].train", "stages[0].train.steps"]).unwrap_err().contains("a part of the other"));
}
