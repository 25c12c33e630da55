//! Which fields of a resolved spec say something else than their default: those without which it would be another spec.

use crescendo_core::spec::{self, JobSpec};
use serde_yaml::{Mapping, Value};

/// A step on the way to a field.
#[derive(Clone)]
enum Step {
    Key(String),
    Entry(usize),
}

/// Paths of those fields, such as `spec.stages[0].train.steps`, in the order of the file. None of what is no resolved spec.
pub fn own_fields(resolved_yaml: &str) -> Vec<String> {
    let (Ok(spec), Ok(whole)) = (spec::parse(resolved_yaml.as_bytes()), serde_yaml::from_str(resolved_yaml))
    else {
        return Vec::new();
    };
    let mut fields = Vec::new();
    collect(&whole, &mut Vec::new(), &mut fields);
    fields.retain(|path| !is_default(&spec, &whole, path));
    fields.iter().map(|path| written(path)).collect()
}

/// Every field that is no section, with its path. A list of plain values is one field.
fn collect(value: &Value, path: &mut Vec<Step>, fields: &mut Vec<Vec<Step>>) {
    match value {
        Value::Mapping(section) => {
            for (key, value) in section {
                path.push(Step::Key(key.as_str().unwrap_or_default().to_owned()));
                collect(value, path, fields);
                path.pop();
            }
        }
        Value::Sequence(entries) if entries.iter().any(Value::is_mapping) => {
            for (at, entry) in entries.iter().enumerate() {
                path.push(Step::Entry(at));
                collect(entry, path, fields);
                path.pop();
            }
        }
        _ => fields.push(path.clone()),
    }
}

/// Without the field the spec is the same.
fn is_default(spec: &JobSpec, whole: &Value, path: &[Step]) -> bool {
    let mut without = whole.clone();
    let Some((Step::Key(field), above)) = path.split_last() else { return false };
    let Some(section) = section(&mut without, above) else { return false };
    section.remove(field.as_str());
    let yaml = serde_yaml::to_string(&without).unwrap_or_default();
    spec::parse(yaml.as_bytes()).is_ok_and(|parsed| parsed == *spec)
}

fn section<'a>(mut value: &'a mut Value, path: &[Step]) -> Option<&'a mut Mapping> {
    for step in path {
        value = match step {
            Step::Key(key) => value.get_mut(key.as_str())?,
            Step::Entry(at) => value.get_mut(*at)?,
        };
    }
    value.as_mapping_mut()
}

fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Entry(at) => text.push_str(&format!("[{at}]")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_wrote_is_told_from_what_was_filled_in() {
        let yaml = "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: own, labels: {team: vision}}
spec:
  model: {preset: nano, weights: base.safetensors}
  resources: {gpus: 2, minGpus: 2}
  stages:
    - references: 1
      data: {source: compose, subjects: subjects, panel: 16, pairs: 24}
      train: {adapter: {rank: 4}, steps: 40, globalBatch: 4, learningRate: 1e-3, betas: [0.9, 0.99]}
";
        let resolved = spec::to_yaml(&spec::parse(yaml.as_bytes()).expect("a good spec"));
        let own = own_fields(&resolved);
        for field in [
            "metadata.name",
            "metadata.labels.team",
            "spec.model.weights",
            "spec.resources.gpus",
            "spec.stages[0].references",
            "spec.stages[0].train.steps",
            "spec.stages[0].train.betas",
        ] {
            assert!(own.iter().any(|path| path == field), "{field}: {own:?}");
        }
        for field in
            ["metadata.tenant", "spec.resources.minGpus", "spec.priority", "spec.stages[0].train.eps"]
        {
            assert!(!own.iter().any(|path| path == field), "{field}: {own:?}");
        }
        assert!(own.len() < resolved.lines().count() / 2, "most are defaults: {own:?}");
        assert!(own_fields("no: spec").is_empty());
    }
}
