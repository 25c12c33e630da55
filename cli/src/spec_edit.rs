//! A spec with fields set from the command line, before it is checked.
//!
//! The text of the file is changed where the field stands and nowhere else, and each character knows whether it came from the
//! file: so what is wrong with the rest is still told with its line in the file.
//!
//! ```text
//!   file ──read──▶ EditedSpec ──set (--set, --matrix)──▶ yaml ──▶ the check, here or by the controller
//!                       ▲                                             │
//!                       └────────── in_file ◀── problems ─────────────┘
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `assignment` | `PATH=VALUE` and `PATH=VALUE,VALUE` |
//! | `outline` | YAML to a tree that knows from where to where each value goes |

pub mod assignment;
mod outline;

use crescendo_core::spec::{self, Problem};

use assignment::{Assignment, Step};
use outline::{Node, Value};

use crate::show::words;

/// Where a character came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The file, line and column from 1.
    File(u32, u32),
    /// The assignment of this index.
    Set(usize),
}

/// The text of a spec, with what was set in it.
#[derive(Clone, Debug)]
pub struct EditedSpec {
    chars: Vec<char>,
    /// One a character.
    origins: Vec<Origin>,
    set: Vec<String>,
}

impl EditedSpec {
    /// Takes the text of a file. What is wrong is what leaves no fields to set: bytes that are no YAML, or YAML that specs are
    /// not written in.
    pub fn read(yaml: &[u8]) -> Result<EditedSpec, Vec<Problem>> {
        if let Err(found) = spec::read(yaml, None) {
            // What concerns a field has its path.
            let unreadable: Vec<Problem> =
                found.into_iter().filter(|problem| problem.path.is_empty() && problem.line > 0).collect();
            if !unreadable.is_empty() {
                return Err(unreadable);
            }
        }
        let text = std::str::from_utf8(yaml).map_err(|error| vec![no_place(error.to_string())])?;
        let chars: Vec<char> = text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect();
        let origins = places(&chars).into_iter().map(|(line, column)| Origin::File(line, column)).collect();
        Ok(EditedSpec { chars, origins, set: Vec::new() })
    }

    /// Sets a field, and makes the sections around it that are not there. Whether there is such a field is found by the check.
    pub fn set(&mut self, assignment: &Assignment) -> Result<(), String> {
        let failed = |why: String| format!("{}: {why}", assignment.by());
        let root = outline::read(&self.chars).map_err(failed)?;
        let root = root.ok_or_else(|| failed("the spec is empty".into()))?;
        let edit = edit(&self.chars, &root, assignment).map_err(failed)?;
        let set = Origin::Set(self.set.len());
        let inserted: Vec<char> = edit.text.chars().collect();
        self.origins.splice(edit.from..edit.to, std::iter::repeat_n(set, inserted.len()));
        self.chars.splice(edit.from..edit.to, inserted);
        self.set.push(assignment.by());
        Ok(())
    }

    /// `metadata.name`, if it is there.
    pub fn name(&self) -> Option<String> {
        let root = outline::read(&self.chars).ok()??;
        match &root.field("metadata")?.field("name")?.value {
            Value::Scalar(text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    pub fn yaml(&self) -> Vec<u8> {
        self.chars.iter().collect::<String>().into_bytes()
    }

    /// Problems of [`EditedSpec::yaml`] with their places in the file, and what was set in place of a line.
    pub fn in_file(&self, problems: Vec<Problem>) -> Vec<Problem> {
        let places = places(&self.chars);
        let origin = |line: u32, column: u32| {
            places.binary_search(&(line, column)).ok().and_then(|at| self.origins.get(at))
        };
        let one = |problem: Problem| match origin(problem.line, problem.column) {
            Some(Origin::File(line, column)) => Problem { line: *line, column: *column, ..problem },
            Some(Origin::Set(index)) => {
                let by = self.set.get(*index).map_or("", String::as_str);
                let message = format!("{} (by {})", problem.message, words::one_line(by));
                Problem { line: 0, column: 0, message, ..problem }
            }
            // Behind the last character, or of no line.
            None => Problem { line: 0, column: 0, ..problem },
        };
        problems.into_iter().map(one).collect()
    }
}

fn no_place(message: String) -> Problem {
    Problem { line: 0, column: 0, path: String::new(), message }
}

/// Line and column of each character, from 1, as problems count them.
fn places(chars: &[char]) -> Vec<(u32, u32)> {
    let (mut line, mut column) = (1, 0);
    let mut places = Vec::with_capacity(chars.len());
    for (at, c) in chars.iter().enumerate() {
        column += 1;
        places.push((line, column));
        if *c == '\n' || (*c == '\r' && chars.get(at + 1) != Some(&'\n')) {
            (line, column) = (line + 1, 0);
        }
    }
    places
}

/// Text that takes the place of a range of characters.
struct Edit {
    from: usize,
    to: usize,
    text: String,
}

fn edit(chars: &[char], root: &Node, assignment: &Assignment) -> Result<Edit, String> {
    let (steps, value) = (assignment.steps(), assignment.value());
    let (mut node, mut shown) = (root, String::new());
    for (at, step) in steps.iter().enumerate() {
        match (step, &node.value) {
            (Step::Field(name), Value::Map(entries)) => {
                let Some(entry) = entries.iter().find(|entry| entry.key == *name) else {
                    let text = format!("{}: {}", quoted(name), nested(&steps[at + 1..], value)?);
                    return Ok(insert(chars, node, entries, &text));
                };
                node = &entry.value;
            }
            // A section that is named and empty.
            (Step::Field(_), Value::Null) if at > 0 => {
                return Ok(replace(node, &nested(&steps[at..], value)?));
            }
            (Step::Index(index), Value::List(items)) => {
                let count = items.len();
                node = items.get(*index).ok_or_else(|| {
                    format!("`{shown}` has {count}, and they are counted from 0: there is no [{index}]")
                })?;
            }
            (Step::Field(_), _) => return Err(format!("`{shown}` is not a section of fields")),
            (Step::Index(_), _) => return Err(format!("`{shown}` is not a list")),
        }
        step.append_to(&mut shown);
    }
    Ok(replace(node, value))
}

fn replace(node: &Node, text: &str) -> Edit {
    // What stands directly behind a colon needs a space.
    let space = if node.from == node.to { " " } else { "" };
    Edit { from: node.from, to: node.to, text: format!("{space}{text}") }
}

/// Puts a field before the first one of a section.
fn insert(chars: &[char], section: &Node, entries: &[outline::Entry], text: &str) -> Edit {
    let Some(first) = entries.first() else {
        return Edit { from: section.from, to: section.to, text: format!("{{{text}}}") };
    };
    let at = first.key_from;
    if chars.get(section.from) == Some(&'{') {
        return Edit { from: at, to: at, text: format!("{text}, ") };
    }
    let line = chars[..at].iter().rposition(|c| matches!(c, '\n' | '\r')).map_or(0, |end| end + 1);
    Edit { from: at, to: at, text: format!("{text}\n{}", " ".repeat(at - line)) }
}

/// The value within the sections that lead to it.
fn nested(steps: &[Step], value: &str) -> Result<String, String> {
    steps.iter().rev().try_fold(value.to_owned(), |inner, step| match step {
        Step::Field(name) => Ok(format!("{{{}: {inner}}}", quoted(name))),
        Step::Index(index) => Err(format!("the spec has no such list, and so no [{index}] of it")),
    })
}

/// Text as YAML takes it for text, whatever it is.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
