//! The job spec: what a user asks for, with every default filled in.
//!
//! [`parse`] turns the YAML that a user writes into a [`JobSpec`], the resolved form that the controller stores and the
//! nodes receive, or into the list of everything that is wrong with it. [`to_yaml`] writes the resolved form back.
//!
//! ```text
//!   bytes ──tree──▶ nodes with line and column ──read──▶ JobSpec ──check──▶ JobSpec, or every Problem at once
//!                                                 ▲
//!                                        fields: name, range, default
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `tree` | YAML to a tree that knows where each value stands; size, depth and count are bounded |
//! | `field`, `field_table`, `fields` | the table of fields: name, type, range, default, meaning; looking in it |
//! | `reader` | takes one typed value out of the tree, by its row in the table |
//! | `places` | where each field stands |
//! | `scalar` | single values: numbers, what was found, what was meant |
//! | `resolve` | puts the values together, with the defaults that depend on others |
//! | `idle` | fields that others make meaningless |
//! | `check` | contradictions between fields |
//! | `start`, `log_source`, `taken` | what a stage takes from others: a checkpoint, pairs |
//! | `named_files` | the files and folders that a spec names |
//! | `warnings` | what is allowed and hardly meant |
//! | `continued` | the spec of a job that goes on where another has stopped |
//! | `emit` | [`JobSpec`] to YAML |

mod check;
mod continued;
mod emit;
mod field;
mod field_table;
mod fields;
mod idle;
mod log_source;
mod named_files;
mod places;
mod reader;
mod resolve;
mod scalar;
mod secrets;
mod start;
mod stated;
mod taken;
#[cfg(test)]
mod tests;
mod tree;
mod types;
mod warning;
mod warnings;

use std::fmt;

pub use continued::{Continuation, continued};
pub use emit::to_yaml;
pub use field::Field;
pub use field_table::FIELDS;
pub use fields::markdown_table;
pub use log_source::LogSpec;
pub use named_files::{NamedFile, named_files};
pub use places::Places;
pub use start::{OtherCheckpoint, StartSpec};
pub use stated::{StatedField, stated};
pub(crate) use taken::unfit;
pub use taken::{logs_elsewhere, starts_elsewhere};
pub use types::*;
pub use warning::Warning;

use crate::ids::Tenant;

/// Largest spec that is read, bytes.
pub const MAX_SPEC_BYTES: usize = 256 * 1024;
/// Lists and sections may be nested this deep.
pub const MAX_DEPTH: usize = 32;
/// Most values (sections, lists and scalars) in one spec.
pub const MAX_NODES: usize = 10_000;
/// Most problems that are reported at once.
pub const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line in the YAML, from 1; 0 when it concerns no line.
    pub line: u32,
    /// Column in the YAML, in characters from 1; 0 when it concerns no line.
    pub column: u32,
    /// Path of the field, e.g. `spec.stages[1].train.steps`; empty when it concerns the whole file.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, self.line, self.column, &self.path)?;
        f.write_str(&self.message)
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, line: u32, column: u32, path: &str) -> fmt::Result {
    if line > 0 {
        write!(f, "line {line}, column {column}: ")?;
    }
    if path.is_empty() { Ok(()) } else { write!(f, "{path}: ") }
}

/// A spec without problems, and what else is to be said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub spec: JobSpec,
    /// What is hardly meant, in the order of the file.
    pub warnings: Vec<Warning>,
    /// Where its fields stand, for further warnings.
    pub places: Places,
}

/// Reads a job spec and fills in every default, or says everything that is wrong with it, in the order of the file.
///
/// Never panics, whatever the bytes are.
pub fn parse(yaml: &[u8]) -> Result<JobSpec, Vec<Problem>> {
    parse_for(yaml, None)
}

/// As [`parse`]; a spec that names no tenant belongs to `tenant`.
pub fn parse_for(yaml: &[u8], tenant: Option<&Tenant>) -> Result<JobSpec, Vec<Problem>> {
    read(yaml, tenant).map(|parsed| parsed.spec)
}

/// As [`parse_for`], with what is to be warned of.
pub fn read(yaml: &[u8], tenant: Option<&Tenant>) -> Result<Parsed, Vec<Problem>> {
    let tree = match tree::build(yaml) {
        Ok(tree) => tree,
        Err(problems) => return Err(in_order(secrets::join(Vec::new(), problems))),
    };
    let secrets = secrets::problems(&tree.root);
    let mut reader = reader::Reader::new(tree.problems);
    let spec = resolve::job(&mut reader, &tree.root, tenant);
    reader.report(check::contradictions(&spec));
    let (problems, places) = reader.finish();
    let problems = secrets::join(secrets, problems);
    if !problems.is_empty() {
        return Err(in_order(problems));
    }
    let warnings = warnings::of(&spec, &places);
    Ok(Parsed { spec, warnings, places })
}

fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    if problems.len() > MAX_PROBLEMS {
        let rest = problems.len() - MAX_PROBLEMS;
        problems.truncate(MAX_PROBLEMS);
        let last =
            Problem { line: 0, column: 0, path: String::new(), message: format!("and {rest} more problems") };
        problems.push(last);
    }
    problems
}
