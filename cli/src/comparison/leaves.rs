//! The fields in which specs differ.

use serde_json::Value;
use serde_yaml::Value as Yaml;

/// A field of the resolved spec in which the jobs differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// E.g. `spec.stages[0].train.learningRate`.
    pub path: String,
    /// One a job, in the order of the jobs; none where it has no such field.
    pub values: Vec<Option<Value>>,
}

/// Every scalar of a spec with its path, in its order. What is empty is a leaf too, or it could not be told from what is
/// absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leaves(Vec<(String, Value)>);

impl Leaves {
    /// Of a resolved spec, which a controller has written.
    pub fn of(resolved_spec_yaml: &str) -> Result<Leaves, String> {
        let spec: Yaml = serde_yaml::from_str(resolved_spec_yaml).map_err(|error| error.to_string())?;
        let mut leaves = Leaves::default();
        leaves.take(String::new(), &spec)?;
        Ok(leaves)
    }

    fn take(&mut self, path: String, value: &Yaml) -> Result<(), String> {
        match value {
            Yaml::Mapping(fields) if !fields.is_empty() => {
                for (name, inner) in fields {
                    let name = match name {
                        Yaml::String(name) => name.clone(),
                        other => serde_json::to_string(other).map_err(|error| error.to_string())?,
                    };
                    self.take(if path.is_empty() { name } else { format!("{path}.{name}") }, inner)?;
                }
            }
            Yaml::Sequence(items) if !items.is_empty() => {
                for (at, inner) in items.iter().enumerate() {
                    self.take(format!("{path}[{at}]"), inner)?;
                }
            }
            scalar => {
                let scalar = serde_json::to_value(scalar).map_err(|error| format!("{path}: {error}"))?;
                self.0.push((path, scalar));
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == path).map(|(_, value)| value)
    }

    /// The whole number at a path.
    pub fn whole(&self, path: &str) -> Option<u64> {
        self.get(path)?.as_u64()
    }
}

/// The leaves in which specs differ, in the order of the first spec that has them.
pub fn differences(specs: &[Leaves]) -> Vec<Difference> {
    let mut found: Vec<Difference> = Vec::new();
    let maps: Vec<std::collections::BTreeMap<&str, &Value>> = specs
        .iter()
        .map(|spec| spec.0.iter().map(|(path, value)| (path.as_str(), value)).collect())
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for path in specs.iter().flat_map(|spec| &spec.0).map(|(path, _)| path.as_str()) {
        if !seen.insert(path) {
            continue;
        }
        let values: Vec<Option<&Value>> = maps.iter().map(|map| map.get(path).copied()).collect();
        if values.windows(2).any(|pair| !same(pair[0], pair[1])) {
            found.push(Difference {
                path: path.to_owned(),
                values: values.into_iter().map(Option::<&Value>::cloned).collect(),
            });
        }
    }
    found
}

fn same(left: Option<&Value>, right: Option<&Value>) -> bool {
    match (left, right) {
        // 1 and 1.0 are one number.
        (Some(Value::Number(left)), Some(Value::Number(right))) => {
            left == right || left.as_f64() == right.as_f64()
        }
        (left, right) => left == right,
    }
}
