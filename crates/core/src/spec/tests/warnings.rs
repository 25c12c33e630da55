//! What is hardly meant, each with its line.

use super::*;

const HEAD: &str = "\
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: own}
spec:
  model: {preset: nano, weights: base.safetensors}
";
const DATA: &str = "source: compose, subjects: lib, nameShare: 0, holdOutOneIn: 5";

fn warnings(rest: &str) -> Vec<String> {
    let yaml = format!("{HEAD}{rest}");
    let parsed = read(yaml.as_bytes(), None).unwrap_or_else(|problems| panic!("{problems:?}"));
    let line = |warning: &Warning| format!("line {}: {}: {}", warning.line, warning.path, warning.message);
    parsed.warnings.iter().map(line).collect()
}

/// The warnings about one stage of these fields, its `data` on line 7 and its `train` on line 8.
fn of_stage(references: u32, data: &str, train: &str) -> Vec<String> {
    warnings(&format!(
        "  stages:\n    - data: {{{data}}}\n      train: {{{train}}}\n      references: {references}\n"
    ))
}

#[track_caller]
fn assert_warns(found: &[String], expected: &str) {
    assert_eq!(found, [expected]);
}

#[test]
fn a_short_stage_needs_no_further_field() {
    assert_eq!(of_stage(1, DATA, "steps: 30"), [""; 0]);
    assert_eq!(of_stage(1, DATA, "steps: 1, globalBatch: 1"), [""; 0]);
}

#[test]
fn a_warm_up_that_is_too_long() {
    assert_warns(
        &of_stage(1, DATA, "steps: 30, warmupSteps: 120"),
        "line 8: spec.stages[0].train.warmupSteps: the warm-up of 120 steps is longer than the stage of 30: the learning \
         rate only gets to 25% of its peak",
    );
    assert_warns(
        &of_stage(1, DATA, "steps: 30, warmupSteps: 16"),
        "line 8: spec.stages[0].train.warmupSteps: the warm-up takes 16 of the stage's 30 steps",
    );
    assert_eq!(of_stage(1, DATA, "steps: 30, warmupSteps: 15"), [""; 0]);
}

#[test]
fn names_beside_references() {
    let all = "source: compose, subjects: lib, nameShare: 1.0, holdOutOneIn: 5";
    assert_warns(
        &of_stage(1, all, "steps: 30"),
        "line 7: spec.stages[0].data.nameShare: every prompt names its subject, so a network that knows the subjects by \
         name need not look at the reference, and may learn to ignore it; with less than 1, or 0, some prompts say only \
         \"the subject\"",
    );
    assert_eq!(of_stage(0, all, "steps: 30"), [""; 0], "a base has no references to look at");
    assert_eq!(of_stage(1, "source: import, path: p", "steps: 30"), [""; 0]);
    // Where it is not given, its section is shown.
    let found = of_stage(1, "source: compose, subjects: lib, holdOutOneIn: 5", "steps: 30");
    assert!(found[0].starts_with("line 7: spec.stages[0].data.nameShare: "), "{found:?}");
}

#[test]
fn nothing_for_a_report() {
    let none = "source: compose, subjects: lib, nameShare: 0";
    assert_warns(
        &of_stage(1, none, "steps: 30"),
        "line 7: spec.stages[0].data.holdOutOneIn: no subject is held out, so a report can only show subjects that were \
         trained on; with 5, about every fifth is kept for it",
    );
    assert_eq!(of_stage(0, none, "steps: 30"), [""; 0]);
    let stage = |one_in: u32| {
        format!(
            "    - data: {{source: compose, subjects: lib, nameShare: 0, holdOutOneIn: {one_in}}}\n      train: {{steps: 30}}\n"
        )
    };
    let found = warnings(&format!("  stages:\n{}{}", stage(5), stage(6)));
    assert_warns(
        &found,
        "line 9: spec.stages[1].data.holdOutOneIn: stage `stage-1` holds out others of the same library: \
         only subjects that no stage has trained on tell how well it does on new ones",
    );
    assert_eq!(warnings(&format!("  stages:\n{}{}", stage(5), stage(5))), [""; 0]);
    assert_eq!(of_stage(1, &format!("{none}, holdOut: fox"), "steps: 30"), [""; 0]);
    assert_eq!(warnings(&format!("  stages:\n{}{}", stage(0), stage(0))).len(), 1, "said once");
}

#[test]
fn more_pairs_than_the_steps_can_use() {
    assert_warns(
        &of_stage(1, &format!("{DATA}, pairs: 230000"), "steps: 30"),
        "line 7: spec.stages[0].data.pairs: 30 steps of 16 take 480 pairs; the other 229520 are made for nothing",
    );
    assert_warns(
        &of_stage(1, &format!("{DATA}, pairs: 1000, minPairs: 500"), "steps: 30"),
        "line 7: spec.stages[0].data.minPairs: training waits for 500 pairs, and its 30 steps of 16 take 480 pairs",
    );
    assert_eq!(of_stage(1, &format!("{DATA}, pairs: 1920"), "steps: 30"), [""; 0]);
}

#[test]
fn fewer_pairs_than_a_batch() {
    assert_warns(
        &of_stage(1, &format!("{DATA}, pairs: 15"), "steps: 30"),
        "line 7: spec.stages[0].data.pairs: fewer pairs than globalBatch 16: every step trains some of them more than once",
    );
    assert_eq!(of_stage(1, &format!("{DATA}, pairs: 16"), "steps: 30"), [""; 0]);
}

#[test]
fn a_unit_that_is_far_larger_than_the_stage() {
    assert_warns(
        &of_stage(1, &format!("{DATA}, pairs: 480, unitSize: 2048"), "steps: 30"),
        "line 7: spec.stages[0].data.unitSize: a unit is made whole before a pair of it can be read: 2048 candidates, \
         for 480 pairs",
    );
}

#[test]
fn nothing_is_saved_before_the_end() {
    let stage = |steps: u32| {
        format!("  stages:\n    - data: {{{DATA}}}\n      references: 1\n      train: {{steps: {steps}}}\n")
    };
    let every =
        |every: u32, steps: u32| warnings(&format!("  checkpoints: {{every: {every}}}\n{}", stage(steps)));
    assert_warns(
        &every(31, 30),
        "line 6: spec.checkpoints.every: a checkpoint every 31 steps, and stage `stage-1` has 30: nothing is saved before \
         its end, and what interrupts it costs all of it",
    );
    assert_eq!(every(30, 30), [""; 0]);
    // The default is worth a word where there is something to lose.
    assert_eq!(warnings(&stage(99)), [""; 0]);
    let found = warnings(&stage(999));
    assert!(
        found[0].starts_with("line 5: spec.checkpoints.every: a checkpoint every 1000 steps, "),
        "{found:?}"
    );
    assert_eq!(warnings(&stage(1000)), [""; 0]);
}

#[test]
fn an_average_that_looks_back_too_far() {
    assert_warns(
        &of_stage(1, DATA, "steps: 30, emaDecay: 0.99"),
        "line 8: spec.stages[0].train.emaDecay: the average looks back on 100 steps and the stage has 30: much of it stays \
         what the stage began with",
    );
    assert_eq!(of_stage(1, DATA, "steps: 30, emaDecay: 0.9"), [""; 0]);
}

#[test]
fn prompts_that_are_all_dropped() {
    assert_warns(
        &of_stage(1, DATA, "steps: 30, textDropout: 1"),
        "line 8: spec.stages[0].train.textDropout: every prompt is dropped: the network sees no text",
    );
}

#[test]
fn an_endpoint_that_nobody_asks() {
    let endpoints = "  endpoints:\n    - {name: vlm, url: 'http://localhost:1/v1', model: m}\n";
    let stage = |more: &str| {
        format!("  stages:\n    - {{data: {{{DATA}{more}}}, references: 1, train: {{steps: 30}}}}\n")
    };
    assert_warns(
        &warnings(&format!("{endpoints}{}", stage(""))),
        "line 7: spec.endpoints[0].name: no stage asks the endpoint `vlm`",
    );
    assert_eq!(warnings(&format!("{endpoints}{}", stage(", filter: {judge: {endpoint: vlm}}"))), [""; 0]);
}

#[test]
fn a_spec_with_problems_has_no_warnings_to_read() {
    let yaml = format!("{HEAD}  stages:\n    - data: {{source: compose}}\n");
    assert!(read(yaml.as_bytes(), None).is_err());
}

#[test]
fn later_warnings_know_the_lines() {
    let yaml = format!("{HEAD}  stages:\n    - data: {{{DATA}}}\n");
    let parsed = read(yaml.as_bytes(), None).unwrap();
    let found = parsed.places.warning("spec.model.preset", "m".into());
    assert_eq!(found.to_string(), "line 5, column 19: spec.model.preset: m");
    // One that is not written down is looked for where it would stand.
    let found = parsed.places.warning("spec.model.precision", "m".into());
    assert_eq!((found.line, found.column), (5, 10));
    assert_eq!(parsed.places.warning("none", "m".into()).line, 1);
    assert!(parsed.places.is_given("spec.model.preset") && !parsed.places.is_given("spec.model.precision"));
}
