//! What a spec says that it need not have: the fields whose values would be others if they were left out.

use std::collections::{BTreeMap, BTreeSet};

use super::emit::to_yaml;
use super::parse;
use super::types::JobSpec;

/// A field that is not what it would be by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatedField {
    /// E.g. `spec.stages[1].train.steps`.
    pub path: String,
    /// As YAML.
    pub value: String,
    /// What it would be without a word; `None` if the spec would be none, or the field would be absent.
    pub default: Option<String>,
}

/// The fields of a spec that are not at their defaults, in its order. A default may rest on other fields: each is left out by
/// itself, and all others stay.
pub fn stated(spec: &JobSpec) -> Vec<StatedField> {
    let yaml = to_yaml(spec);
    let lines: Vec<Line<'_>> = yaml.lines().filter_map(Line::of).collect();
    let paths = paths(&lines);
    // Who and what a job is has no default worth a word.
    let is_field = |at: &usize| lines[*at].value.is_some() && paths[*at].starts_with("spec.");
    let is_default =
        |at: &usize| parse(without(&lines, &BTreeSet::from([*at])).as_bytes()).as_ref() == Ok(spec);
    let (defaults, stated): (BTreeSet<usize>, BTreeSet<usize>) =
        (0..lines.len()).filter(is_field).partition(is_default);
    let field = |at: usize| {
        // Beside nothing that is only filled in, such as `minGpus`, which follows `gpus`.
        let left_out: BTreeSet<usize> = defaults.iter().copied().chain([at]).collect();
        let other = parse(without(&lines, &left_out).as_bytes()).ok();
        StatedField {
            path: paths[at].clone(),
            value: lines[at].value.unwrap_or_default().to_owned(),
            default: other.and_then(|other| value_at(&other, &paths[at])),
        }
    };
    stated.into_iter().map(field).collect()
}

/// A line of the YAML that [`to_yaml`] writes: a field, or the head of a section.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// Of the field; that of an item's first field is the item's and one more.
    depth: usize,
    begins_item: bool,
    name: &'a str,
    /// None of a section.
    value: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let rest = line.trim_start_matches(' ');
        let depth = (line.len() - rest.len()) / 2;
        let (begins_item, rest) = match rest.strip_prefix("- ") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (name, value) = match rest.split_once(": ") {
            Some((name, value)) => (name, Some(value)),
            None => (rest.strip_suffix(':')?, None),
        };
        Some(Self { depth: depth + usize::from(begins_item), begins_item, name, value })
    }
}

/// The sections that a line stands in, outermost first.
struct Section {
    depth: usize,
    path: String,
    /// Of a list, so far.
    items: usize,
}

fn paths(lines: &[Line<'_>]) -> Vec<String> {
    let mut above: Vec<Section> = Vec::new();
    let mut found = Vec::new();
    for line in lines {
        while above.last().is_some_and(|section| section.depth >= line.depth) {
            above.pop();
        }
        let parent = match above.last_mut() {
            None => String::new(),
            Some(section) => {
                section.items += usize::from(line.begins_item);
                match section.items {
                    0 => format!("{}.", section.path),
                    items => format!("{}[{}].", section.path, items - 1),
                }
            }
        };
        let path = format!("{parent}{}", line.name);
        if line.value.is_none() {
            above.push(Section { depth: line.depth, path: path.clone(), items: 0 });
        }
        found.push(path);
    }
    found
}

/// The YAML without some of its fields, and without the sections that hold nothing then.
fn without(lines: &[Line<'_>], left_out: &BTreeSet<usize>) -> String {
    let mut kept: Vec<Line<'_>> = Vec::with_capacity(lines.len());
    // An item whose first field is left out begins with its next.
    let mut begins_item = false;
    for (at, line) in lines.iter().enumerate() {
        if left_out.contains(&at) {
            begins_item |= line.begins_item;
            continue;
        }
        while kept.last().is_some_and(|head| head.value.is_none() && head.depth >= line.depth) {
            begins_item |= kept.pop().is_some_and(|head| head.begins_item);
        }
        kept.push(Line { begins_item: line.begins_item || begins_item, ..*line });
        begins_item = false;
    }
    while kept.last().is_some_and(|head| head.value.is_none()) {
        kept.pop();
    }
    let mut text = String::new();
    for Line { depth, begins_item, name, value } in kept {
        let indent = 2 * (depth - usize::from(begins_item));
        let (item, space) = (if begins_item { "- " } else { "" }, if value.is_some() { " " } else { "" });
        text.push_str(&format!("{:indent$}{item}{name}:{space}{}\n", "", value.unwrap_or_default()));
    }
    text
}

fn value_at(spec: &JobSpec, path: &str) -> Option<String> {
    let yaml = to_yaml(spec);
    let lines: Vec<Line<'_>> = yaml.lines().filter_map(Line::of).collect();
    let by_path: BTreeMap<String, Line<'_>> = paths(&lines).into_iter().zip(lines).collect();
    by_path.get(path)?.value.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno, labels: {team: a}}
spec:
  model: {preset: nano, weights: base.safetensors, precision: f32}
  resources: {gpus: 2}
  stages:
    - data: {source: compose, subjects: lib, pairs: 8}
    - name: more
      data: {source: compose, subjects: lib, pairs: 8}
      train: {steps: 20, learningRate: 0.003}
";

    fn said(yaml: &str) -> Vec<(String, String, Option<String>)> {
        let spec = parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"));
        stated(&spec).into_iter().map(|field| (field.path, field.value, field.default)).collect()
    }

    #[test]
    fn what_is_not_at_its_default_is_told_with_what_that_is() {
        let found = said(SPEC);
        let of = |path: &str| found.iter().find(|(known, ..)| known == path).cloned();
        let steps = of("spec.stages[1].train.steps").expect("stated");
        assert_eq!(steps.1, "20");
        let rate = of("spec.stages[1].train.learningRate").expect("stated");
        assert_eq!((rate.1.as_str(), rate.2.is_some()), ("0.003", true), "{rate:?}");
        assert_eq!(
            of("spec.resources.gpus"),
            Some(("spec.resources.gpus".into(), "2".into(), Some("1".into())))
        );
        assert_eq!(of("spec.stages[1].name").map(|name| name.2), Some(Some("stage-2".into())), "{found:?}");
        assert_eq!(of("spec.stages[0].data.subjects").map(|field| field.2), Some(None), "no default");
        for path in
            ["spec.priority", "spec.seed", "spec.stages[0].name", "spec.resources.minGpus", "metadata.name"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_spec_is_what_it_states() {
        let all: Vec<String> = said(SPEC).into_iter().map(|(path, ..)| path).collect();
        let expected = [
            "spec.model.preset",
            "spec.model.weights",
            "spec.model.precision",
            "spec.resources.gpus",
            "spec.stages[0].data.source",
            "spec.stages[0].data.subjects",
            "spec.stages[0].data.pairs",
            "spec.stages[1].name",
            "spec.stages[1].data.source",
            "spec.stages[1].data.pairs",
        ];
        for path in expected {
            assert!(all.iter().any(|known| known == path), "{path} is not in {all:?}");
        }
    }
}
