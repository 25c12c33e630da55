//! What a stage is trained with, flat and by name, as tables that compare runs have it: `train.learningRate`, `data.source.type`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Values of one stage at most; a spec has fewer.
const MOST: usize = 256;
/// Characters of one at most.
const MOST_CHARS: usize = 200;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum HyperParameter {
    Number(f64),
    Truth(bool),
    Text(String),
}

/// Of a stage: what its spec says, the network's section, and the seed. Lists are one text; what is absent has no name.
pub fn of_stage(resolved_spec_json: &[u8], stage: &str) -> BTreeMap<String, HyperParameter> {
    let mut found = BTreeMap::new();
    let Ok(spec) = serde_json::from_slice::<Value>(resolved_spec_json) else { return found };
    let stages = spec.get("stages").and_then(Value::as_array);
    let stage =
        stages.into_iter().flatten().find(|one| one.get("name").and_then(Value::as_str) == Some(stage));
    for (name, value) in
        stage.and_then(Value::as_object).into_iter().flatten().filter(|(name, _)| *name != "name")
    {
        flatten(name, value, &mut found);
    }
    for name in ["model", "seed"] {
        spec.get(name).into_iter().for_each(|value| flatten(name, value, &mut found));
    }
    found
}

fn flatten(name: &str, value: &Value, found: &mut BTreeMap<String, HyperParameter>) {
    let one = match value {
        Value::Null => return,
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, found));
            return;
        }
        Value::Bool(truth) => HyperParameter::Truth(*truth),
        Value::Number(number) => match number.as_f64() {
            Some(number) => HyperParameter::Number(number),
            None => HyperParameter::Text(number.to_string()),
        },
        Value::String(text) => HyperParameter::Text(cut(text)),
        Value::Array(_) => HyperParameter::Text(cut(&value.to_string())),
    };
    if found.len() < MOST {
        found.insert(name.to_owned(), one);
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MOST_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_core::spec;

    const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno}
spec:
  seed: 7
  model: {preset: nano, weights: base.safetensors, precision: f32}
  stages:
    - {name: one, data: {source: compose, subjects: lib, pairs: 8}, train: {steps: 10, learningRate: 1e-4}}
    - {name: two, references: 2, data: {source: recompose, subjects: lib, pairs: 8}, train: {steps: 20}}
";

    #[test]
    fn a_stage_has_its_own_values_those_of_the_network_and_the_seed() {
        let spec = spec::parse(SPEC.as_bytes()).expect("the spec is right");
        let json = serde_json::to_vec(&spec).expect("encode");
        let one = of_stage(&json, "one");
        for (name, value) in [
            ("seed", HyperParameter::Number(7.0)),
            ("model.preset", HyperParameter::Text("nano".into())),
            ("train.steps", HyperParameter::Number(10.0)),
            ("train.learningRate", HyperParameter::Number(1e-4)),
            ("data.pairs", HyperParameter::Number(8.0)),
        ] {
            assert_eq!(one.get(name), Some(&value), "{name}");
        }
        assert!(!one.contains_key("name") && !one.keys().any(|name| name.starts_with("stages")), "{one:?}");
        let two = of_stage(&json, "two");
        assert_eq!(two.get("train.steps"), Some(&HyperParameter::Number(20.0)));
        assert_eq!(two.get("references"), Some(&HyperParameter::Number(2.0)));
    }

    #[test]
    fn what_is_no_spec_has_none_and_what_is_long_is_cut() {
        assert_eq!(of_stage(b"{", "one"), BTreeMap::new());
        assert_eq!(of_stage(br#"{"stages": [{"name": "other"}]}"#, "one"), BTreeMap::new());
        let long = format!(
            r#"{{"stages": [{{"name": "one", "a": {{"b": null, "c": [1, "x"], "d": true, "e": "{}"}}}}]}}"#,
            "x".repeat(999)
        );
        let found = of_stage(long.as_bytes(), "one");
        assert_eq!(found.get("a.c"), Some(&HyperParameter::Text(r#"[1,"x"]"#.into())));
        assert_eq!(found.get("a.d"), Some(&HyperParameter::Truth(true)));
        assert_eq!(found.get("a.e"), Some(&HyperParameter::Text("x".repeat(MOST_CHARS))));
        assert_eq!(found.len(), 3);
        let fields: Vec<String> = (0..999).map(|n| format!(r#""f{n}": {n}"#)).collect();
        let many = format!(r#"{{"stages": [{{"name": "one", {}}}]}}"#, fields.join(", "));
        assert_eq!(of_stage(many.as_bytes(), "one").len(), MOST);
    }
}
