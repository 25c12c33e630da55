//! `PATH=VALUE` of `--set`, and `PATH=VALUE,VALUE` of `--matrix`.

use std::fmt;
use std::str::FromStr;

use super::outline::{self, Value};
use super::quoted;

/// Most jobs of one `--matrix`.
pub const MOST_JOBS: usize = 256;
/// Sections at the top of a spec; any other path is below `spec`.
const TOP: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];
/// Its names may have dots.
const LABELS: &str = "metadata.labels.";

/// One part of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Field(String),
    Index(usize),
}

impl Step {
    pub fn append_to(&self, path: &mut String) {
        match self {
            Step::Field(name) if path.is_empty() => path.push_str(name),
            Step::Field(name) => path.extend([".", name]),
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
}

/// A field of the spec, from its top, e.g. `spec.stages[0].train.learningRate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(Vec<Step>);

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();
        self.0.iter().for_each(|step| step.append_to(&mut shown));
        f.write_str(&shown)
    }
}

impl FromStr for FieldPath {
    type Err = String;

    fn from_str(text: &str) -> Result<FieldPath, String> {
        let wrong =
            || format!("`{text}` is not the path of a field, e.g. seed or stages[0].train.learningRate");
        if let Some(label) = text.strip_prefix(LABELS).filter(|label| !label.is_empty()) {
            return Ok(FieldPath(["metadata", "labels", label].map(|name| Step::Field(name.into())).into()));
        }
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
                return Err(wrong());
            }
            if steps.is_empty() && !TOP.contains(&name) {
                steps.push(Step::Field("spec".into()));
            }
            steps.push(Step::Field(name.into()));
            for index in indices.split_inclusive(']') {
                let digits = index.strip_prefix('[').and_then(|index| index.strip_suffix(']'));
                steps.push(Step::Index(digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?));
            }
        }
        Ok(FieldPath(steps))
    }
}

/// A field, and the value that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    option: &'static str,
    path: FieldPath,
    /// As it was given.
    given: String,
    /// One line of YAML.
    value: String,
}

impl Assignment {
    /// `option` is what it is told by.
    pub fn new(option: &'static str, path: FieldPath, given: &str) -> Assignment {
        Assignment { option, path, given: given.into(), value: as_yaml(given) }
    }

    /// Text, whatever it looks like.
    pub fn text(option: &'static str, path: FieldPath, text: &str) -> Assignment {
        Assignment { option, path, given: text.into(), value: quoted(text) }
    }

    pub fn path(&self) -> &FieldPath {
        &self.path
    }

    pub fn steps(&self) -> &[Step] {
        &self.path.0
    }

    pub fn given(&self) -> &str {
        &self.given
    }

    /// One line of YAML.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// `--set spec.seed=7`.
    pub fn by(&self) -> String {
        format!("{} {self}", self.option)
    }
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path, self.given)
    }
}

impl FromStr for Assignment {
    type Err = String;

    /// `PATH=VALUE`.
    fn from_str(text: &str) -> Result<Assignment, String> {
        let (path, value) = halves(text)?;
        Ok(Assignment::new("--set", path.parse()?, value))
    }
}

/// A field, and the values that it gets, each in jobs of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub path: FieldPath,
    pub values: Vec<Assignment>,
}

impl FromStr for Axis {
    type Err = String;

    /// `PATH=VALUE,VALUE`; a comma within brackets or quotes belongs to the value.
    fn from_str(text: &str) -> Result<Axis, String> {
        let (path, values) = halves(text)?;
        let path: FieldPath = path.parse()?;
        let mut found: Vec<Assignment> = Vec::new();
        for value in split(values) {
            if value.is_empty() {
                return Err(format!("`{path}` has an empty value in `{values}`"));
            }
            if found.iter().any(|other| other.given == value) {
                return Err(format!("`{path}` gets the value {value} twice"));
            }
            found.push(Assignment::new("--matrix", path.clone(), value));
        }
        Ok(Axis { path, values: found })
    }
}

fn halves(text: &str) -> Result<(&str, &str), String> {
    let halves = text.split_once('=').map(|(path, value)| (path.trim(), value.trim()));
    halves
        .filter(|(_, value)| !value.is_empty())
        .ok_or_else(|| "expected PATH=VALUE, e.g. seed=7 or stages[0].train.learningRate=1e-5".into())
}

fn split(values: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut from, mut found) = (0usize, None, 0, Vec::new());
    for (at, c) in values.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                found.push(values[from..at].trim());
                from = at + 1;
            }
            (None, _) => {}
        }
    }
    found.push(values[from..].trim());
    found
}

/// The value as YAML on one line: as it is where YAML takes it for one value wherever it stands, else as text.
fn as_yaml(given: &str) -> String {
    let list: Vec<char> = format!("[{given}]").chars().collect();
    let as_it_is = !given.contains(['\n', '\r'])
        && matches!(outline::read(&list), Ok(Some(root)) if is_one(&list, &root));
    if as_it_is { given.to_owned() } else { quoted(given) }
}

/// Whether the list has one value, which is not `a: b` without braces.
fn is_one(list: &[char], root: &outline::Node) -> bool {
    match &root.value {
        Value::List(items) if root.to == list.len() => match items.as_slice() {
            [one] => !matches!(one.value, Value::Map(_)) || list.get(one.from) == Some(&'{'),
            _ => false,
        },
        Value::List(_) | Value::Map(_) | Value::Scalar(_) | Value::Null => false,
    }
}

/// Every way to take one value of each field, the last field's values next to each other. Refuses more than [`MOST_JOBS`].
pub fn combinations(axes: &[Axis]) -> Result<Vec<Vec<Assignment>>, String> {
    let asked = axes.iter().fold(1usize, |count, axis| count.saturating_mul(axis.values.len()));
    if asked > MOST_JOBS {
        return Err(format!("--matrix asks for {asked} jobs; at most {MOST_JOBS} are submitted at once"));
    }
    Ok(axes.iter().fold(vec![Vec::new()], |combinations, axis| {
        let longer = |combination: &Vec<Assignment>| {
            let combination = combination.clone();
            axis.values
                .iter()
                .map(move |value| [combination.as_slice(), std::slice::from_ref(value)].concat())
        };
        combinations.iter().flat_map(|combination| longer(combination).collect::<Vec<_>>()).collect()
    }))
}

/// Refuses a field that is set twice, or as a part of another that is.
pub fn check_once<'a>(paths: impl Iterator<Item = &'a FieldPath>) -> Result<(), String> {
    let paths: Vec<&FieldPath> = paths.collect();
    for (at, path) in paths.iter().enumerate() {
        if let Some(other) =
            paths[..at].iter().find(|other| other.0.starts_with(&path.0) || path.0.starts_with(&other.0))
        {
            return Err(match *other == *path {
                true => format!("`{path}` is set twice"),
                false => format!("`{path}` and `{other}` are set, and one is a part of the other"),
            });
        }
    }
    Ok(())
}
