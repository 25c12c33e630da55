//! Where the fields of a spec stand, for what is said about them.

use std::collections::BTreeMap;

use super::Problem;
use super::tree::Position;
use super::warning::Warning;

/// Where the fields of a spec stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<String, Position>);

impl Places {
    pub(super) fn new(positions: BTreeMap<String, Position>) -> Places {
        Places(positions)
    }

    /// A warning about a field, e.g. `spec.model.precision`. It points at the field, or at the nearest section around it
    /// that is written down.
    pub fn warning(&self, path: &str, message: String) -> Warning {
        let Position { line, column } = nearest_position(&self.0, path);
        Warning { line, column, path: path.to_owned(), message }
    }

    /// As [`Places::warning`], for what is wrong with it.
    pub fn problem(&self, path: &str, message: String) -> Problem {
        let Position { line, column } = nearest_position(&self.0, path);
        Problem { line, column, path: path.to_owned(), message }
    }

    /// Whether the field is written down.
    pub fn is_given(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// Where a path stands, or the nearest section around it that is written down.
pub(super) fn nearest_position(positions: &BTreeMap<String, Position>, path: &str) -> Position {
    let nearest = ancestors(path).find_map(|path| positions.get(path));
    nearest.copied().unwrap_or(Position { line: 1, column: 1 })
}

/// The path itself, then the sections around it.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind(['.', '[']).map(|end| path.split_at(end).0))
}
