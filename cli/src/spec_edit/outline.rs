//! YAML to a tree that knows from where to where each value goes, in characters. For text that the spec's own reader has
//! taken for YAML; the bounds are the same.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crescendo_core::spec::{MAX_DEPTH, MAX_NODES};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

#[derive(Debug)]
pub struct Node {
    pub from: usize,
    /// Behind the last character.
    pub to: usize,
    pub value: Value,
}

#[derive(Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub key_from: usize,
    pub value: Node,
}

impl Node {
    pub fn field(&self, name: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
    }
}

/// The document's root; `None` if there is nothing in it.
pub fn read(chars: &[char]) -> Result<Option<Node>, String> {
    let text: String = chars.iter().collect();
    let read = || Outline { chars, events: Parser::new_from_str(&text), nodes: 0 }.document();
    // The parser has assertions of its own.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("the YAML cannot be read".into()))
}

struct Outline<'a> {
    chars: &'a [char],
    events: Parser<'a, StrInput<'a>>,
    nodes: usize,
}

impl<'a> Outline<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, String> {
        self.events.next().transpose().map_err(|error| format!("YAML syntax: {}", error.info()))
    }

    fn document(mut self) -> Result<Option<Node>, String> {
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)) {
                let root = self.node(event, span, 0)?;
                // Whatever is wrong behind it is wrong.
                while self.next()?.is_some() {}
                return Ok(Some(root));
            }
        }
        Ok(None)
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            return Err(format!("more than {MAX_NODES} values, or nested more than {MAX_DEPTH} deep"));
        }
        let from = span.start.index();
        match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                let value = if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
                    Value::Null
                } else {
                    Value::Scalar(text.into_owned())
                };
                Ok(self.between(from, span.end.index(), value))
            }
            Event::SequenceStart(..) => {
                let (mut items, mut last) = (Vec::new(), span.end.index());
                loop {
                    match self.next()? {
                        Some((Event::SequenceEnd, span)) => {
                            return Ok(self.closed(from, last, ']', &span, Value::List(items)));
                        }
                        Some((event, span)) => items.push(self.node(event, span, depth + 1)?),
                        None => return Err("the YAML ends within a list".into()),
                    }
                    last = items.last().map_or(last, |item| item.to);
                }
            }
            Event::MappingStart(..) => {
                let (mut entries, mut last) = (Vec::new(), span.end.index());
                loop {
                    match self.next()? {
                        Some((Event::MappingEnd, span)) => {
                            return Ok(self.closed(from, last, '}', &span, Value::Map(entries)));
                        }
                        Some((event, span)) => entries.push(self.entry(event, span, depth + 1)?),
                        None => return Err("the YAML ends within a section".into()),
                    }
                    last = entries.last().map_or(last, |entry: &Entry| entry.value.to);
                }
            }
            _ => Err("aliases are not supported; write the value out".into()),
        }
    }

    fn entry(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Entry, String> {
        let key = self.node(event, span, depth)?;
        let Value::Scalar(text) = key.value else { return Err("a field's name must be text".into()) };
        let Some((event, span)) = self.next()? else {
            return Err("the YAML ends behind a field's name".into());
        };
        let mut value = self.node(event, span, depth)?;
        if matches!(value.value, Value::Null) && value.from == value.to {
            // Where nothing stands the parser says where the next thing does; a value goes behind the colon.
            let colon = self.chars[key.to..].iter().position(|c| *c == ':');
            let at = colon.map_or(key.to, |colon| key.to + colon + 1);
            (value.from, value.to) = (at, at);
        }
        Ok(Entry { key: text, key_from: key.from, value })
    }

    /// A list or section. What is written in brackets ends with them; the rest with the last thing in it.
    fn closed(&self, from: usize, last: usize, bracket: char, end: &Span, value: Value) -> Node {
        let opening = if bracket == ']' { '[' } else { '{' };
        let to = if self.chars.get(from) == Some(&opening) { end.end.index() } else { last };
        self.between(from, to, value)
    }

    fn between(&self, from: usize, to: usize, value: Value) -> Node {
        let mut to = to.clamp(from, self.chars.len());
        while to > from && self.chars.get(to - 1).is_some_and(|c| c.is_whitespace()) {
            to -= 1;
        }
        Node { from, to, value }
    }
}
