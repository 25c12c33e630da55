//! `index.json`: one entry a subject.

use crate::naming;
use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// Entries of an index beyond which it is refused.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Size of an index beyond which it is refused.
pub const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Pictures of one subject beyond which its entry is refused.
pub const MAX_FILES: usize = 10_000;

/// A subject, or one place that photographs show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique in the library, stable: whether a subject is held out depends on it.
    pub id: String,
    /// Bare name, e.g. "red apple"; the words if the index has none.
    pub name: String,
    /// What sort of thing it is, e.g. "Food"; may be empty.
    pub category: String,
    /// Its pictures, files below the library's folder; at least one. Each picture of a pair shows one of them.
    pub files: Vec<String>,
    /// How a caption calls it, e.g. "a red apple".
    pub words: String,
}

/// An entry as it is written.
#[derive(Deserialize, Serialize)]
struct Line {
    id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, alias = "group", skip_serializing_if = "String::is_empty")]
    category: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<String>,
    words: String,
}

/// The fields that an entry may have; others are left unread.
const FIELDS: [&str; 7] = ["id", "name", "category", "group", "file", "files", "words"];

/// What an index says.
#[derive(Debug, Default)]
pub struct Index {
    /// Those that can be used, in the order of their ids.
    pub entries: Vec<Entry>,
    pub problems: Vec<Problem>,
}

/// Reads an index, and finds everything that is wrong with it.
pub fn read(text: &[u8]) -> Index {
    let mut index = Index::default();
    let lines: Vec<Value> = match serde_json::from_slice(text) {
        Ok(lines) => lines,
        Err(error) => {
            index
                .problems
                .push(Problem::error(crate::INDEX, format!("it is not a JSON list of entries: {error}")));
            return index;
        }
    };
    if lines.is_empty() || lines.len() > MAX_ENTRIES {
        let reason = format!("it has {} entries, not 1 to {MAX_ENTRIES}", lines.len());
        index.problems.push(Problem::error(crate::INDEX, reason));
        return index;
    }
    let mut ids = BTreeSet::new();
    for (n, value) in lines.into_iter().enumerate() {
        let place = match value.get("id").and_then(Value::as_str) {
            Some(id) => format!("entry {n} ({id:?})"),
            None => format!("entry {n}"),
        };
        let unknown: Vec<String> = value
            .as_object()
            .map(|fields| fields.keys().filter(|key| !FIELDS.contains(&key.as_str())).cloned().collect())
            .unwrap_or_default();
        if !unknown.is_empty() {
            let reason = format!(
                "unknown field {}; there are id, words, file, files, name and category",
                unknown.join(", ")
            );
            index.problems.push(Problem::warning(&place, reason));
        }
        // Also of one that is refused for another reason: mending that is not to bring up the next.
        let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
        let twice = id.filter(|id| !ids.insert(id.clone()));
        if let Some(id) = &twice {
            index.problems.push(Problem::error(&place, format!("id {id:?} occurs twice")));
        }
        match entry_of(value) {
            Ok(entry) if twice.is_none() => index.entries.push(entry),
            Ok(_) => {}
            Err(reason) => index.problems.push(Problem::error(place, reason)),
        }
    }
    index.entries.sort_by(|a, b| a.id.cmp(&b.id));
    index
}

fn entry_of(value: Value) -> Result<Entry, String> {
    let line: Line = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if line.id.trim().is_empty() {
        return Err("its id is empty".into());
    }
    let files = match (line.file, line.files) {
        (Some(file), files) if files.is_empty() => vec![file],
        (None, files) if !files.is_empty() => files,
        (None, _) => return Err("it has neither `file` nor `files`".into()),
        (Some(_), _) => return Err("it has both `file` and `files`".into()),
    };
    if files.len() > MAX_FILES {
        return Err(format!("it has {} files, more than {MAX_FILES}", files.len()));
    }
    if let Some(file) = files.iter().find(|file| !is_below(file)) {
        return Err(format!("file {file:?} is not a path below the folder"));
    }
    let name = if line.name.is_empty() { line.words.clone() } else { line.name };
    Ok(Entry { id: line.id, name, category: line.category, files, words: line.words })
}

/// Whether a path leads to something below the folder that it starts from.
pub fn is_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The text of an index with these entries.
pub fn write(entries: &[Entry]) -> Result<Vec<u8>, serde_json::Error> {
    let lines: Vec<Line> = entries
        .iter()
        .map(|entry| {
            let (file, files) = match &entry.files[..] {
                [file] => (Some(file.clone()), Vec::new()),
                files => (None, files.to_vec()),
            };
            let name = if entry.name == entry.words { String::new() } else { entry.name.clone() };
            Line {
                id: entry.id.clone(),
                name,
                category: entry.category.clone(),
                file,
                files,
                words: entry.words.clone(),
            }
        })
        .collect();
    let mut text = serde_json::to_vec_pretty(&lines)?;
    text.push(b'\n');
    Ok(text)
}

/// What about the entries together, or about their words, is perhaps not as it is meant.
pub fn doubts(entries: &[Entry]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut by_words: Vec<(String, &Entry)> =
        entries.iter().map(|entry| (entry.words.trim().to_lowercase(), entry)).collect();
    by_words.sort_by(|a, b| (&a.0, &a.1.id).cmp(&(&b.0, &b.1.id)));
    for same in by_words.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
        let ids: Vec<&str> = same.iter().map(|(_, entry)| entry.id.as_str()).collect();
        let reason = format!(
            "{} have the same words {:?}; captions cannot tell them apart",
            listed(&ids),
            same[0].1.words
        );
        problems.push(Problem::warning(ids[0], reason));
    }
    for entry in entries {
        if let Some(reason) = naming::words_problem(&entry.words) {
            problems.push(Problem::warning(&entry.id, reason));
        }
    }
    problems
}

/// "a, b and c"; of many only the first few.
pub fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        names if names.len() > SHOWN => {
            format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN)
        }
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reasons(text: &str) -> Vec<String> {
        read(text.as_bytes()).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_index_is_read_and_written() {
        let text = r#"[
            {"id": "b", "name": "b", "group": "Things", "file": "b.png", "words": "a b"},
            {"id": "a", "files": ["a-1.png", "x/a-2.png"], "words": "an a", "category": "Things"}]"#;
        let index = read(text.as_bytes());
        assert_eq!(index.problems, []);
        let [a, b] = &index.entries[..] else { panic!("two entries") };
        assert_eq!((a.id.as_str(), a.name.as_str(), a.files.len()), ("a", "an a", 2));
        assert_eq!((b.category.as_str(), b.files[0].as_str()), ("Things", "b.png"));
        let written = write(&index.entries).expect("encode");
        assert_eq!(read(&written).entries, index.entries);
    }

    #[test]
    fn every_problem_is_found_at_once() {
        let found = reasons(
            r#"[{"id": "a", "file": "a.png", "words": "a"},
                {"id": "a", "file": "b.png", "words": "b"},
                {"id": "c", "file": "../../etc/passwd", "words": "c"},
                {"id": "d", "words": "d"},
                {"id": "d", "file": "d.png", "words": "d"},
                {"id": "e", "file": "e.png", "files": ["f.png"], "words": "e"},
                {"file": "f.png", "words": "f"},
                {"id": " ", "file": "f.png", "words": "f"},
                {"id": "g", "file": "g.png", "words": "g", "wrods": "g"},
                7]"#,
        );
        let expected = [
            "entry 1 (\"a\"): id \"a\" occurs twice",
            "entry 2 (\"c\"): file \"../../etc/passwd\" is not a path below the folder",
            "entry 3 (\"d\"): it has neither `file` nor `files`",
            "entry 4 (\"d\"): id \"d\" occurs twice",
            "entry 5 (\"e\"): it has both `file` and `files`",
            "entry 6: missing field `id`",
            "entry 7 (\" \"): its id is empty",
            "entry 8 (\"g\"): unknown field wrods; there are id, words, file, files, name and category",
        ];
        assert_eq!(found[..8], expected);
        assert!(found[8].starts_with("entry 9: invalid type: integer"), "{found:?}");
        assert_eq!(found.len(), 9);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        assert!(reasons("[]")[0].contains("0 entries"));
        assert!(reasons("{}")[0].contains("not a JSON list"));
        assert!(reasons("")[0].contains("not a JSON list"));
    }

    #[test]
    fn subjects_that_captions_cannot_tell_apart_are_named() {
        let entry = |id: &str, words: &str| Entry {
            id: id.into(),
            name: String::new(),
            category: String::new(),
            files: vec!["f".into()],
            words: words.into(),
        };
        let found = doubts(&[entry("dog", "a dog"), entry("dog2", "A dog"), entry("cat", "a cat")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].reason.starts_with("dog and dog2 have the same words"), "{found:?}");
        assert_eq!(listed(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_index_or_a_problem(bytes in proptest::collection::vec(any::<u8>(), 0..64), files in "[a-z./]{0,8}") {
            let index = read(&bytes);
            prop_assert!(!index.entries.is_empty() || !index.problems.is_empty());
            let text = serde_json::json!([{"id": "a", "words": "a", "file": files}]).to_string();
            for entry in read(text.as_bytes()).entries {
                prop_assert!(!Path::new("/library").join(&entry.files[0]).components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
