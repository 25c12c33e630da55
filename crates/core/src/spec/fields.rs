//! The table of fields: the one place that says how a field is called, what it may hold and what it is when absent.
//! The reader, the messages and `docs/job-spec.md` all follow it.

use std::fmt::Write as _;

use super::field::{Field, Kind};
use super::field_table::FIELDS;

/// The row of a path such as `spec.stages[].train.steps`.
pub(super) fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// Last part of a path.
pub(super) fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Path of the section that a field stands in; empty for the top.
pub(super) fn parent(path: &str) -> &str {
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    parent.strip_suffix("[]").unwrap_or(parent)
}

/// Fields right below the section `path`, empty for the top.
pub(super) fn children(path: &str) -> impl Iterator<Item = &'static Field> + Clone {
    let path = path.strip_suffix("[]").unwrap_or(path);
    FIELDS.iter().filter(move |field| parent(field.path) == path)
}

/// The reference of all fields as Markdown tables, one per section.
pub fn markdown_table() -> String {
    let mut out = String::new();
    let mut sections = vec![""];
    sections.extend(FIELDS.iter().filter(|field| is_section(&field.kind)).map(|field| field.path));
    for section in sections {
        let (heading, suffix) = if section.is_empty() {
            ("The file".to_owned(), "")
        } else {
            let list = find(section).is_some_and(|field| matches!(field.kind, Kind::Sections { .. }));
            (format!("`{section}{}`", if list { "[]" } else { "" }), if list { "[]" } else { "" })
        };
        let _ = writeln!(out, "### {heading}\n");
        if let Some(field) = find(section) {
            let _ = writeln!(out, "{}\n", wrapped(field.about));
        }
        let _ = writeln!(out, "| field | value | default | meaning |\n|---|---|---|---|");
        for field in children(&format!("{section}{suffix}")) {
            let only = if field.only_with.is_empty() {
                String::new()
            } else {
                format!("With {}. ", field.variants())
            };
            let name = last_name(field.path);
            let _ =
                writeln!(out, "| `{name}` | {} | {} | {only}{} |", field.kind, field.default, field.about);
        }
        out.push('\n');
    }
    out
}

/// In lines of at most 120 characters, as all of the docs.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 120 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

fn is_section(kind: &Kind) -> bool {
    matches!(kind, Kind::Section | Kind::Sections { .. } | Kind::WordOrSection(_) | Kind::Start)
}
