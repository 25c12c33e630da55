//! One row of the table of fields.

use std::fmt;

/// One field of the spec.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Where it stands; `[]` for any item of a list, e.g. `spec.stages[].train.steps`.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// The sibling value without which the field means nothing, e.g. `source: compose`, or several as in
    /// `source: recompose|crop`; empty if there is no such.
    pub only_with: &'static str,
    /// What it is, and where its default comes from.
    pub about: &'static str,
}

impl Field {
    /// Whether the field means something beside this value, e.g. `source: compose`.
    pub(super) fn goes_with(&self, variant: &str) -> bool {
        let (name, words) = self.only_with.split_once(": ").unwrap_or((self.only_with, ""));
        let given = variant.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
        self.only_with.is_empty() || given.is_some_and(|given| words.split('|').any(|word| word == given))
    }

    /// The values that it goes with, for a reader.
    pub(super) fn variants(&self) -> String {
        format!("`{}`", self.only_with.replace('|', "` or `"))
    }
}

/// What a field may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// More fields.
    Section,
    /// A list of sections, with at least one and at most this many.
    Sections { most: usize },
    /// One of these words.
    Word(&'static [&'static str]),
    /// `[a-z0-9-]`, 1 to 40 characters, beginning and ending with a letter or digit.
    Name,
    /// As `Checkpoint`, the word `none`, or a section of fields.
    Start,
    /// A name, or the checkpoint of another job, as [`OtherCheckpoint`](super::OtherCheckpoint) writes it.
    Checkpoint,
    /// A name; beside `source: log` also `JOB/STAGE` of another job.
    From,
    /// A map of at most this many labels to their values.
    Labels { most: usize },
    /// One label of nodes, and whether the nodes of a gang have to have the same value of it.
    Topology,
    /// Text on one line, 1 to 1024 characters.
    Text,
    /// A whole number, both ends allowed.
    Whole { least: i128, most: i128 },
    /// A number.
    Number(Range),
    /// Two numbers.
    Pair(Range),
    /// A list of some of these words, at least one and each once.
    Words(&'static [&'static str]),
    /// Text, or a list of at most this many texts.
    TextOrTexts { most: usize },
    /// The word, or a section of fields.
    WordOrSection(&'static str),
}

/// Bounds of a number; an open end is not allowed itself.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub least: f64,
    pub least_open: bool,
    pub most: f64,
    pub most_open: bool,
}

impl Range {
    pub(super) fn holds(&self, value: f64) -> bool {
        let above = if self.least_open { value > self.least } else { value >= self.least };
        let below = if self.most_open { value < self.most } else { value <= self.most };
        above && below
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.least_open { "more than" } else { "from" };
        let most = if self.most_open { "less than" } else { "at most" };
        match (self.least_open, self.most_open) {
            (false, false) => write!(f, "{} to {}", self.least, self.most),
            _ => write!(f, "{least} {} and {most} {}", self.least, self.most),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Section => f.write_str("a section of fields"),
            Kind::Sections { most } => write!(f, "a list of 1 to {most} sections"),
            Kind::Word([only]) => write!(f, "`{only}`"),
            Kind::Word(words) => {
                for (index, word) in words.iter().enumerate() {
                    let between = if index == 0 {
                        ""
                    } else if index + 1 == words.len() {
                        " or "
                    } else {
                        ", "
                    };
                    write!(f, "{between}`{word}`")?;
                }
                Ok(())
            }
            Kind::Name => {
                f.write_str("1 to 40 of a-z, 0-9 and -, beginning and ending with a letter or digit")
            }
            Kind::Start => f.write_str(
                "a stage's name, `none`, `JOB/STAGE` or `JOB/STAGE/STEP` of another job, or a section of fields",
            ),
            Kind::Checkpoint => {
                f.write_str("a stage's name, or `JOB/STAGE` or `JOB/STAGE/STEP` of another job")
            }
            Kind::From => f.write_str("a stage's name; with `source: log` also `JOB/STAGE` of another job"),
            Kind::Labels { most } => write!(
                f,
                "a map of at most {most} labels, names and values of 1 to 63 of A-Z, a-z, 0-9, `-`, `_`, `.` and `/`"
            ),
            Kind::Topology => {
                f.write_str("a label of nodes with `prefer` or `require`, such as `{rack: prefer}`")
            }
            Kind::Text => f.write_str("text on one line, 1 to 1024 characters"),
            Kind::Whole { least, most } => write!(f, "a whole number from {least} to {most}"),
            Kind::Number(range) => write!(f, "a number, {range}"),
            Kind::Pair(range) => write!(f, "a list of two numbers, each {range}"),
            Kind::Words(words) => write!(f, "a list of some of {}", Kind::Word(words)),
            Kind::TextOrTexts { most } => {
                write!(f, "text on one line, 1 to 1024 characters, or a list of 1 to {most} such texts")
            }
            Kind::WordOrSection(word) => write!(f, "`{word}`, or a section of fields"),
        }
    }
}

/// What a field is when it is absent.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// It must be there.
    Required,
    /// Nothing takes its place.
    Absent,
    Whole(i128),
    Number(f64),
    Pair(f64, f64),
    Word(&'static str),
    /// Follows from other fields, as said here.
    From(&'static str),
}

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Default::Required => f.write_str("required"),
            Default::Absent => f.write_str("none"),
            Default::Whole(value) => write!(f, "{value}"),
            Default::Number(value) => write!(f, "{value:?}"),
            Default::Pair(first, second) => write!(f, "[{first:?}, {second:?}]"),
            Default::Word(word) => write!(f, "`{word}`"),
            Default::From(how) => f.write_str(how),
        }
    }
}
