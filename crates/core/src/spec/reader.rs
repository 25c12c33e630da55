//! Takes typed values out of the tree, each by its row in the table of fields.
//!
//! Whatever is wrong is kept, and a stand-in is returned, so that one pass finds everything.

use std::collections::{BTreeMap, BTreeSet};

use super::Problem;
use super::check::Contradiction;
use super::field::{Default, Field, Kind};
use super::field_table::FIELDS;
use super::fields;
use super::log_source::LogSpec;
use super::places::{Places, ancestors, nearest_position};
use super::scalar::{describe, describe_scalar, nearest, number};
use super::start::OtherCheckpoint;
use super::tree::{Entry, Node, Position, Value, shorten};
use super::types::{Topology, TopologyMode};

/// A section that is being read.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    entries: &'a [Entry],
    /// Where it begins.
    at: Position,
    /// Is there such a section, in a form that can be read?
    present: bool,
}

/// Path of a value: as a user reads it, and as the table has it.
#[derive(Clone, Default)]
pub(super) struct Path {
    shown: String,
    pattern: String,
}

impl Path {
    pub fn field(&self, name: &str) -> Path {
        let join = |base: &str| {
            if base.is_empty() { name.to_owned() } else { format!("{base}.{name}") }
        };
        Path { shown: join(&self.shown), pattern: join(&self.pattern) }
    }

    pub fn item(&self, index: usize) -> Path {
        Path { shown: format!("{}[{index}]", self.shown), pattern: format!("{}[]", self.pattern) }
    }

    fn row(&self) -> &'static Field {
        fields::find(&self.pattern).expect("every field that is read has a row in the table")
    }
}

pub(super) struct Reader {
    problems: Vec<Problem>,
    /// Where each value that was met stands.
    positions: BTreeMap<String, Position>,
    /// Fields that hold a stand-in.
    bad: BTreeSet<String>,
}

impl Reader {
    pub fn new(problems: Vec<Problem>) -> Reader {
        Reader { problems, positions: BTreeMap::new(), bad: BTreeSet::new() }
    }

    /// What was wrong, and where everything stands.
    pub fn finish(self) -> (Vec<Problem>, Places) {
        (self.problems, Places::new(self.positions))
    }

    /// Adds contradictions, but not those that rest on a stand-in.
    pub fn report(&mut self, contradictions: Vec<Contradiction>) {
        for Contradiction { path, others, message } in contradictions {
            if others.iter().chain([&path]).any(|path| self.is_bad(path)) {
                continue;
            }
            let at = self.position_of(&path);
            self.problems.push(Problem { line: at.line, column: at.column, path, message });
        }
    }

    fn is_bad(&self, path: &str) -> bool {
        ancestors(path).any(|path| self.bad.contains(path))
    }

    /// Where the field stands, or the nearest section around it that is written down.
    fn position_of(&self, path: &str) -> Position {
        nearest_position(&self.positions, path)
    }

    fn wrong(&mut self, path: &Path, at: Position, message: String) {
        self.bad.insert(path.shown.clone());
        self.problems.push(Problem { line: at.line, column: at.column, path: path.shown.clone(), message });
    }

    /// The whole file as a section.
    pub fn root<'a>(&mut self, node: &'a Node) -> Section<'a> {
        self.open(&Path::default(), Some(node), node.at)
    }

    /// The section `path`, one of `parent`'s fields.
    pub fn section<'a>(&mut self, parent: Section<'a>, path: &Path) -> Section<'a> {
        let node = self.node(parent, path);
        self.open(path, node, parent.at)
    }

    fn open<'a>(&mut self, path: &Path, node: Option<&'a Node>, parent_at: Position) -> Section<'a> {
        let nothing = Section { entries: &[], at: parent_at, present: false };
        let Some(node) = node else { return nothing };
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    self.check_known(path, entry);
                }
                Section { entries, at: node.at, present: true }
            }
            Value::Null if !path.pattern.is_empty() && !matches!(path.row().default, Default::Required) => {
                nothing
            }
            Value::Refused => {
                self.bad.insert(path.shown.clone());
                nothing
            }
            other => {
                let expected = "a section of fields (`name: value` lines)";
                self.wrong(path, node.at, format!("expected {expected}, found {}", describe(other)));
                nothing
            }
        }
    }

    fn check_known(&mut self, section: &Path, entry: &Entry) {
        let known = |name: &str| {
            fields::children(&section.pattern).any(|field| fields::last_name(field.path) == name)
        };
        if known(&entry.key) {
            return;
        }
        let names = fields::children(&section.pattern).map(|field| fields::last_name(field.path));
        let elsewhere = || FIELDS.iter().find(|field| fields::last_name(field.path) == entry.key);
        let hint = if let Some(name) = nearest(&entry.key, names.clone()) {
            format!("did you mean `{name}`?")
        } else if let Some(field) = elsewhere() {
            match fields::parent(field.path) {
                "" => format!("`{}` belongs at the top of the file", entry.key),
                parent => format!("`{}` belongs in `{parent}`", entry.key),
            }
        } else {
            format!("known here: {}", names.collect::<Vec<_>>().join(", "))
        };
        let path = section.field(&shorten(&entry.key));
        let message = format!("unknown field `{}`; {hint}", shorten(&entry.key));
        self.problems.push(Problem {
            line: entry.key_at.line,
            column: entry.key_at.column,
            path: path.shown,
            message,
        });
    }

    /// Refuses fields that need another value of `name` than the one given, e.g. `source: compose`.
    pub fn check_variant(&mut self, section: Section<'_>, path: &Path, variant: &str) {
        for entry in section.entries {
            let path = path.field(&entry.key);
            let Some(row) = fields::find(&path.pattern) else {
                continue;
            };
            if !row.goes_with(variant) {
                let message = format!("goes with {}, but this is `{variant}`", row.variants());
                self.problems.push(Problem {
                    line: entry.key_at.line,
                    column: entry.key_at.column,
                    path: path.shown,
                    message,
                });
            }
        }
    }

    /// Refuses the field at `path` of a section if it is given.
    pub fn refuse(&mut self, section: Section<'_>, path: &Path, message: &str) {
        let name = fields::last_name(&path.pattern);
        if let Some(entry) = section.entries.iter().find(|entry| entry.key == name) {
            self.problems.push(Problem {
                line: entry.key_at.line,
                column: entry.key_at.column,
                path: path.shown.clone(),
                message: message.to_owned(),
            });
        }
    }

    /// The items of a list of sections, with their paths.
    pub fn sections<'a>(&mut self, parent: Section<'a>, path: &Path) -> Vec<(Path, Section<'a>)> {
        let Some(node) = self.node(parent, path) else {
            return Vec::new();
        };
        let Kind::Sections { most } = path.row().kind else {
            return Vec::new();
        };
        match &node.value {
            Value::List(items) if (1..=most).contains(&items.len()) => {
                let mut sections = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let path = path.item(index);
                    self.positions.insert(path.shown.clone(), item.at);
                    let section = self.open_item(&path, item);
                    sections.push((path, section));
                }
                sections
            }
            Value::List(items) => {
                self.wrong(path, node.at, format!("expected {}, found {}", path.row().kind, items.len()));
                Vec::new()
            }
            Value::Refused => {
                self.bad.insert(path.shown.clone());
                Vec::new()
            }
            other => {
                self.wrong(path, node.at, format!("expected {}, found {}", path.row().kind, describe(other)));
                Vec::new()
            }
        }
    }

    fn open_item<'a>(&mut self, path: &Path, item: &'a Node) -> Section<'a> {
        if let Value::Null = item.value {
            self.wrong(path, item.at, "expected a section of fields, found nothing".into());
            return Section { entries: &[], at: item.at, present: false };
        }
        self.open(path, Some(item), item.at)
    }

    /// The node of a field; says so if it is required and missing.
    fn node<'a>(&mut self, section: Section<'a>, path: &Path) -> Option<&'a Node> {
        let name = fields::last_name(&path.pattern);
        let found = section.entries.iter().find(|entry| entry.key == name);
        if let Some(entry) = found {
            self.positions.insert(path.shown.clone(), entry.value.at);
            let empty = matches!(entry.value.value, Value::Null);
            if !empty || matches!(path.row().default, Default::Required) {
                return Some(&entry.value);
            }
            return None;
        }
        if matches!(path.row().default, Default::Required) {
            self.missing(section, path);
        }
        None
    }

    fn missing(&mut self, section: Section<'_>, path: &Path) {
        self.bad.insert(path.shown.clone());
        if section.present {
            let message =
                format!("missing field `{}`: {}", fields::last_name(&path.pattern), path.row().kind);
            let (line, column) = (section.at.line, section.at.column);
            self.problems.push(Problem { line, column, path: path.shown.clone(), message });
        }
    }

    /// A text that must be there beside the values that others have.
    pub fn required_text(&mut self, section: Section<'_>, path: &Path) -> Option<String> {
        let text = self.text(section, path);
        if text.is_none() && !self.bad.contains(&path.shown) {
            self.missing(section, path);
        }
        text
    }

    fn scalar<'a>(&mut self, section: Section<'a>, path: &Path) -> Option<(&'a str, bool, Position)> {
        let node = self.node(section, path)?;
        match &node.value {
            Value::Scalar { text, plain } => Some((text, *plain, node.at)),
            Value::Refused => {
                self.bad.insert(path.shown.clone());
                None
            }
            other => {
                self.wrong(path, node.at, format!("expected {}, found {}", path.row().kind, describe(other)));
                None
            }
        }
    }

    /// Is the field written down, whatever it holds?
    pub fn is_section_present(&self, section: Section<'_>) -> bool {
        section.present
    }

    /// A whole number, if it is given.
    pub fn whole(&mut self, section: Section<'_>, path: &Path) -> Option<i128> {
        let Kind::Whole { least, most } = path.row().kind else {
            return None;
        };
        let (text, plain, at) = self.scalar(section, path)?;
        let value = if plain { text.parse::<i128>().ok() } else { None };
        match value {
            Some(value) if (least..=most).contains(&value) => Some(value),
            Some(value) => {
                self.wrong(path, at, format!("{value} is out of range: {}", path.row().kind));
                None
            }
            None => {
                self.wrong(
                    path,
                    at,
                    format!("expected {}, found {}", path.row().kind, describe_scalar(text, plain)),
                );
                None
            }
        }
    }

    /// A number, if it is given.
    pub fn number(&mut self, section: Section<'_>, path: &Path) -> Option<f64> {
        let Kind::Number(range) = path.row().kind else {
            return None;
        };
        let (text, plain, at) = self.scalar(section, path)?;
        match number(text, plain) {
            Some(value) if range.holds(value) => Some(value),
            Some(_) => {
                self.wrong(path, at, format!("{} is out of range: {}", shorten(text), path.row().kind));
                None
            }
            None => {
                self.wrong(
                    path,
                    at,
                    format!("expected {}, found {}", path.row().kind, describe_scalar(text, plain)),
                );
                None
            }
        }
    }

    /// Two numbers, if they are given.
    pub fn pair(&mut self, section: Section<'_>, path: &Path) -> Option<(f64, f64)> {
        let Kind::Pair(range) = path.row().kind else {
            return None;
        };
        let node = self.node(section, path)?;
        let value = |node: &Node| match &node.value {
            Value::Scalar { text, plain } => number(text, *plain).filter(|value| range.holds(*value)),
            Value::Null | Value::List(_) | Value::Map(_) | Value::Refused => None,
        };
        if let Value::List(items) = &node.value
            && let [first, second] = items.as_slice()
            && let (Some(first), Some(second)) = (value(first), value(second))
        {
            return Some((first, second));
        }
        self.wrong(path, node.at, format!("expected {}", path.row().kind));
        None
    }

    /// One of the words of the field, if it is given.
    pub fn word(&mut self, section: Section<'_>, path: &Path) -> Option<&'static str> {
        let Kind::Word(words) = path.row().kind else {
            return None;
        };
        let (text, plain, at) = self.scalar(section, path)?;
        if let Some(word) = words.iter().find(|word| **word == text) {
            return Some(word);
        }
        let hint = match nearest(text, words.iter().copied()) {
            Some(word) if words.len() > 1 => format!("; did you mean `{word}`?"),
            _ => String::new(),
        };
        let found = describe_scalar(text, plain);
        self.wrong(path, at, format!("expected {}, found {found}{hint}", path.row().kind));
        None
    }

    /// A name, if it is given.
    pub fn name(&mut self, section: Section<'_>, path: &Path) -> Option<String> {
        let (text, _, at) = self.scalar(section, path)?;
        if is_name(text) {
            return Some(text.to_owned());
        }
        self.wrong(path, at, format!("`{}` is not a name: {}", shorten(text), path.row().kind));
        None
    }

    /// A stage, the word `none`, or the checkpoint of another job (`Ok`), or a section (`Err`), if either is given.
    pub fn start_or_section<'a>(
        &mut self,
        parent: Section<'a>,
        path: &Path,
    ) -> Option<Result<String, Section<'a>>> {
        let node = self.node(parent, path)?;
        match &node.value {
            Value::Map(_) => Some(Err(self.open(path, Some(node), parent.at))),
            Value::Scalar { .. } | Value::Null | Value::List(_) | Value::Refused => {
                self.checkpoint(parent, path).map(Ok)
            }
        }
    }

    /// A stage, or the checkpoint of another job, if one is given.
    pub fn checkpoint(&mut self, section: Section<'_>, path: &Path) -> Option<String> {
        let (text, _, at) = self.scalar(section, path)?;
        // `none` is a name as any other here.
        let is_start = matches!(path.row().kind, Kind::Start) || text != "none";
        if is_start && (is_name(text) || OtherCheckpoint::parse(text).is_some()) {
            return Some(text.to_owned());
        }
        self.wrong(path, at, format!("`{}` is not {}", shorten(text), path.row().kind));
        None
    }

    /// A stage of this job, or `JOB/STAGE` of another one, if one is given.
    pub fn stage_of_any_job(&mut self, section: Section<'_>, path: &Path) -> Option<String> {
        let (text, _, at) = self.scalar(section, path)?;
        let log = LogSpec { from: text.to_owned() };
        if log.earlier().is_some_and(is_name) || log.elsewhere().is_some() {
            return Some(log.from);
        }
        self.wrong(path, at, format!("`{}` is not {}", shorten(text), path.row().kind));
        None
    }

    /// Labels with their values; none if the field is absent.
    pub fn labels(&mut self, section: Section<'_>, path: &Path) -> BTreeMap<String, String> {
        let Kind::Labels { most } = path.row().kind else { return BTreeMap::new() };
        let Some(node) = self.node(section, path) else { return BTreeMap::new() };
        let label = |entry: &Entry| match &entry.value.value {
            Value::Scalar { text, .. } if is_label(&entry.key) && is_label(text) => {
                Some((entry.key.clone(), text.clone()))
            }
            Value::Scalar { .. } | Value::Null | Value::List(_) | Value::Map(_) | Value::Refused => None,
        };
        if let Value::Map(entries) = &node.value
            && entries.len() <= most
            && let Some(labels) = entries.iter().map(label).collect::<Option<BTreeMap<_, _>>>()
        {
            return labels;
        }
        self.wrong(path, node.at, format!("expected {}", path.row().kind));
        BTreeMap::new()
    }

    /// A label of nodes with the word that says how far it binds, if it is given.
    pub fn topology(&mut self, section: Section<'_>, path: &Path) -> Option<Topology> {
        let node = self.node(section, path)?;
        if let Value::Map(entries) = &node.value
            && let [Entry { key, value, .. }] = entries.as_slice()
            && is_label(key)
            && let Value::Scalar { text, .. } = &value.value
            && let Some(mode) = match text.as_str() {
                "prefer" => Some(TopologyMode::Prefer),
                "require" => Some(TopologyMode::Require),
                _ => None,
            }
        {
            return Some(Topology { label: key.clone(), mode });
        }
        self.wrong(path, node.at, format!("expected {}", path.row().kind));
        None
    }

    /// Text, if it is given.
    pub fn text(&mut self, section: Section<'_>, path: &Path) -> Option<String> {
        let (text, _, at) = self.scalar(section, path)?;
        if is_text(text) {
            return Some(text.to_owned());
        }
        let length = text.chars().count();
        self.wrong(path, at, format!("expected {}, found {length} characters", path.row().kind));
        None
    }

    /// Some of the words of the field, if they are given.
    pub fn words(&mut self, section: Section<'_>, path: &Path) -> Option<Vec<&'static str>> {
        let Kind::Words(words) = path.row().kind else {
            return None;
        };
        let node = self.node(section, path)?;
        let word = |node: &Node| match &node.value {
            Value::Scalar { text, .. } => words.iter().copied().find(|word| word == text),
            Value::Null | Value::List(_) | Value::Map(_) | Value::Refused => None,
        };
        if let Value::List(items) = &node.value {
            let found: Vec<&'static str> = items.iter().filter_map(word).collect();
            let each_once = found.iter().collect::<BTreeSet<_>>().len() == found.len();
            if found.len() == items.len() && each_once && !found.is_empty() {
                return Some(found);
            }
        }
        self.wrong(path, node.at, format!("expected {}, each once", path.row().kind));
        None
    }

    /// One text (`Ok`) or a list of them (`Err`), if either is given.
    pub fn text_or_texts(
        &mut self,
        section: Section<'_>,
        path: &Path,
    ) -> Option<Result<String, Vec<String>>> {
        let Kind::TextOrTexts { most } = path.row().kind else {
            return None;
        };
        let node = self.node(section, path)?;
        let text = |node: &Node| match &node.value {
            Value::Scalar { text, .. } if is_text(text) => Some(text.clone()),
            Value::Scalar { .. } | Value::Null | Value::List(_) | Value::Map(_) | Value::Refused => None,
        };
        if let Value::List(items) = &node.value {
            let found: Vec<String> = items.iter().filter_map(text).collect();
            if found.len() == items.len() && (1..=most).contains(&found.len()) {
                return Some(Err(found));
            }
        } else if let Some(text) = text(node) {
            return Some(Ok(text));
        }
        self.wrong(path, node.at, format!("expected {}", path.row().kind));
        None
    }

    /// A field that is a certain word, or else a section: `Ok(None)` when absent, `Err` for the word.
    pub fn word_or_section<'a>(
        &mut self,
        parent: Section<'a>,
        path: &Path,
    ) -> Result<Option<Section<'a>>, ()> {
        let Kind::WordOrSection(word) = path.row().kind else {
            return Ok(None);
        };
        let Some(node) = self.node(parent, path) else {
            return Ok(None);
        };
        match &node.value {
            Value::Scalar { text, .. } if text == word => Err(()),
            Value::Map(_) => Ok(Some(self.open(path, Some(node), parent.at))),
            Value::Refused => {
                self.bad.insert(path.shown.clone());
                Ok(None)
            }
            other => {
                self.wrong(path, node.at, format!("expected {}, found {}", path.row().kind, describe(other)));
                Ok(None)
            }
        }
    }
}

fn is_text(text: &str) -> bool {
    (1..=1024).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What a label, and its value, may be.
pub(super) fn is_label(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    (1..=63).contains(&text.len()) && text.chars().all(fits)
}
