//! A picture of a subject to draw with: out of the job's own library, if that is on this machine.

use std::path::{Path, PathBuf};

use crescendo_dataset::{HoldOut, Library};

/// Longer side to which a library's pictures would be shrunk; only their names are read here.
const UNREAD: usize = 1;

/// A subject's picture, and how captions call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub file: PathBuf,
    pub words: String,
}

/// `count` subjects with a picture each: those that training never saw first. Fewer if the library has no more, or cannot be
/// read.
pub fn subjects(folder: &Path, hold_out: HoldOut<'_>, count: usize) -> Vec<Example> {
    let Ok(library) = Library::open_subjects(folder, UNREAD) else { return Vec::new() };
    let Ok((training, held_out)) = library.split(hold_out) else { return Vec::new() };
    let examples = held_out.into_iter().chain(training).filter_map(|index| {
        let entry = library.entries().get(index)?;
        let file = folder.join(entry.files.first()?);
        file.is_file().then(|| Example { file, words: entry.words.clone() })
    });
    examples.take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_training_never_saw_go_first_and_only_those_with_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..12).map(|n| format!("s{n:02}")).collect();
        let entries: Vec<serde_json::Value> = names
            .iter()
            .map(|name| serde_json::json!({"id": name, "file": format!("{name}.png"), "words": format!("a {name}")}))
            .collect();
        std::fs::write(folder.path().join("index.json"), serde_json::Value::from(entries).to_string())
            .unwrap();
        for name in &names {
            image::RgbaImage::new(2, 2).save(folder.path().join(format!("{name}.png"))).unwrap();
        }
        let held_out: Vec<&String> =
            names.iter().filter(|name| crescendo_dataset::is_held_out(name, 3)).collect();
        let every_third = HoldOut { one_in: 3, ..HoldOut::default() };
        let found = subjects(folder.path(), every_third, 12);
        assert_eq!(found.len(), 12);
        assert_eq!(found[0].words, format!("a {}", held_out[0]));
        std::fs::remove_file(&found[0].file).unwrap();
        assert_eq!(subjects(folder.path(), every_third, 1)[0].words, format!("a {}", held_out[1]));
        assert!(subjects(&folder.path().join("none"), every_third, 1).is_empty());
    }
}
