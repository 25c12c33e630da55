//! YAML to a tree that knows where each value stands.
//!
//! Anchors, aliases and tags are refused: a spec has no use for them, and without them there are neither cycles nor
//! documents that grow when they are read.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{MAX_DEPTH, MAX_NODES, MAX_SPEC_BYTES, Problem};

/// Line and column, both from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug)]
pub(super) struct Node {
    pub at: Position,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `plain` is false for quoted text, which is never a number.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something that has been reported already: readers pass over it in silence.
    Refused,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

#[derive(Debug)]
pub(super) struct Tree {
    pub root: Node,
    /// What was wrong but leaves the rest readable.
    pub problems: Vec<Problem>,
}

/// Reads one YAML document. An error is anything after which the rest cannot be made sense of.
pub(super) fn build(yaml: &[u8]) -> Result<Tree, Vec<Problem>> {
    if yaml.len() > MAX_SPEC_BYTES {
        let message = format!("the spec has {} bytes; at most {MAX_SPEC_BYTES} are read", yaml.len());
        return Err(vec![problem(Position::default(), message)]);
    }
    let text = std::str::from_utf8(yaml).map_err(|error| {
        let at = position_of_byte(yaml, error.valid_up_to());
        vec![problem(at, format!("byte {} is not UTF-8", error.valid_up_to()))]
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The parser has assertions of its own; should bytes from outside ever reach one, it is a refused spec and not the
    // end of the process.
    catch_unwind(AssertUnwindSafe(|| Builder::default().run(text)))
        .unwrap_or_else(|_| Err(vec![problem(Position::default(), "the YAML cannot be read".into())]))
}

fn problem(at: Position, message: String) -> Problem {
    Problem { line: at.line, column: at.column, path: String::new(), message }
}

fn position_of_byte(yaml: &[u8], valid_up_to: usize) -> Position {
    let before = String::from_utf8_lossy(yaml.get(..valid_up_to).unwrap_or_default());
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Position { line: line as u32, column: column as u32 }
}

fn start(span: &Span) -> Position {
    Position { line: span.start.line() as u32, column: span.start.col() as u32 + 1 }
}

/// A list or section whose end has not come yet.
enum Open {
    List { at: Position, items: Vec<Node> },
    Map { at: Position, entries: Vec<Entry>, key: Option<Key> },
}

struct Key {
    /// `None` if the key was refused; its value is read and thrown away.
    name: Option<String>,
    at: Position,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    problems: Vec<Problem>,
}

impl Builder {
    fn run(mut self, text: &str) -> Result<Tree, Vec<Problem>> {
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let mark = error.marker();
                    let at = Position { line: mark.line() as u32, column: mark.col() as u32 + 1 };
                    return Err(self.fatal(at, format!("YAML syntax: {}", error.info())));
                }
            };
            let at = start(&span);
            if matches!(
                event,
                Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_)
            ) {
                self.nodes += 1;
                if self.nodes > MAX_NODES {
                    return Err(self.fatal(at, format!("more than {MAX_NODES} values")));
                }
            }
            match event {
                Event::DocumentStart(_) => {
                    self.documents += 1;
                    if self.documents > 1 {
                        return Err(
                            self.fatal(at, "a second document begins here; a spec is one document".into())
                        );
                    }
                }
                Event::Alias(_) => {
                    self.refuse(at, "aliases (`*name`) are not supported; write the value out")
                }
                Event::Scalar(text, style, anchor, tag) => {
                    if self.marks_ok(at, anchor, tag.is_some()) {
                        self.put(Node { at, value: scalar(text, style) });
                    } else {
                        self.put(Node { at, value: Value::Refused });
                    }
                }
                Event::SequenceStart(anchor, tag) => {
                    self.marks_ok(at, anchor, tag.is_some());
                    self.push(Open::List { at, items: Vec::new() })?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.marks_ok(at, anchor, tag.is_some());
                    self.push(Open::Map { at, entries: Vec::new(), key: None })?;
                }
                Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                    Some(Open::List { at, items }) => self.put(Node { at, value: Value::List(items) }),
                    Some(Open::Map { at, entries, .. }) => self.put(Node { at, value: Value::Map(entries) }),
                    None => return Err(self.fatal(at, "YAML syntax: nothing to close here".into())),
                },
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        let root =
            self.root.take().unwrap_or(Node { at: Position { line: 1, column: 1 }, value: Value::Null });
        Ok(Tree { root, problems: self.problems })
    }

    fn fatal(&mut self, at: Position, message: String) -> Vec<Problem> {
        let mut problems = std::mem::take(&mut self.problems);
        problems.push(problem(at, message));
        problems
    }

    fn refuse(&mut self, at: Position, message: &str) {
        self.problems.push(problem(at, message.into()));
        self.put(Node { at, value: Value::Refused });
    }

    fn marks_ok(&mut self, at: Position, anchor: usize, tagged: bool) -> bool {
        if anchor > 0 {
            self.problems
                .push(problem(at, "anchors (`&name`) are not supported; write the value out".into()));
        }
        if tagged {
            self.problems.push(problem(at, "tags (`!name`) are not supported".into()));
        }
        anchor == 0 && !tagged
    }

    fn push(&mut self, open: Open) -> Result<(), Vec<Problem>> {
        if self.open.len() >= MAX_DEPTH {
            let (Open::List { at, .. } | Open::Map { at, .. }) = open;
            return Err(self.fatal(at, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.open.push(open);
        Ok(())
    }

    /// Gives a finished value to what it stands in.
    fn put(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                None => {
                    let at = node.at;
                    let name = match node.value {
                        Value::Scalar { text, .. } => Some(text),
                        Value::Refused => None,
                        Value::Null | Value::List(_) | Value::Map(_) => {
                            self.problems.push(problem(at, "a field's name must be text".into()));
                            None
                        }
                    };
                    *key = Some(Key { name, at });
                }
                Some(Key { name: None, .. }) => {}
                Some(Key { name: Some(name), at }) => {
                    if let Some(first) = entries.iter().find(|entry| entry.key == name) {
                        let line = first.key_at.line;
                        let name = shorten(&name);
                        self.problems
                            .push(problem(at, format!("`{name}` is given twice; first in line {line}")));
                    } else {
                        entries.push(Entry { key: name, key_at: at, value: node });
                    }
                }
            },
        }
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    let plain = style == ScalarStyle::Plain;
    if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
        Value::Null
    } else {
        Value::Scalar { text: text.into_owned(), plain }
    }
}

/// Text from outside, fit for a one-line message.
pub(super) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    let mut short: String =
        text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
