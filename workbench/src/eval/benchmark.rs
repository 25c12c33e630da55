//! What is to be drawn and with what it is compared: DreamBench as a folder, or the row files that UNO ships.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::prompts::PromptFile;

/// Size of a row or prompt file beyond which it is not read.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Rows beyond which a benchmark is refused.
const MAX_ROWS: usize = 100_000;
/// Subjects of one picture.
const MAX_SUBJECTS: usize = 8;
/// Names of the text file of a DreamBench folder.
const PROMPT_FILES: [&str; 2] = ["prompts_and_classes.txt", "prompts.txt"];
/// Extensions of real pictures, lower case.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];

/// A subject with its real pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Name of its folder.
    pub name: String,
    /// What a detector is asked for, e.g. `stuffed animal`.
    pub words: String,
    /// Sorted, at least one.
    pub pictures: Vec<PathBuf>,
}

/// One prompt with its subjects. A drawing is called `ROW_SAMPLE.png` after the row's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub prompt: String,
    /// Indices of the subjects, at least one.
    pub subjects: Vec<usize>,
}

/// Rows and subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Benchmark {
    pub subjects: Vec<Subject>,
    pub rows: Vec<Row>,
}

/// A row as UNO's files spell it, and as its scripts expect it.
#[derive(Deserialize)]
struct FileRow {
    #[serde(alias = "text")]
    prompt: String,
    image_paths: Option<Vec<PathBuf>>,
    image_path: Option<PathBuf>,
    img_path1: Option<PathBuf>,
    img_path2: Option<PathBuf>,
}

impl FileRow {
    fn images(&self) -> Vec<&PathBuf> {
        let listed = self.image_paths.iter().flatten();
        listed.chain(&self.image_path).chain(&self.img_path1).chain(&self.img_path2).collect()
    }
}

impl Benchmark {
    /// Reads a DreamBench folder (subject folders in it or in its `dataset`, with the text file of classes and prompts),
    /// or a JSON file of rows, whose paths start at `root` or else at the file's folder.
    pub fn read(path: &Path, root: Option<&Path>) -> Result<Self> {
        let benchmark = if path.is_dir() { folder(path) } else { rows_file(path, root) };
        let benchmark = benchmark.with_context(|| format!("read the benchmark {}", path.display()))?;
        ensure!(!benchmark.rows.is_empty(), "{} has no rows", path.display());
        Ok(benchmark)
    }

    /// Runs of consecutive rows with the same subjects: `(first row, rows)`. Scores are averaged within them first.
    pub fn groups(&self) -> Vec<(usize, usize)> {
        let mut groups: Vec<(usize, usize)> = Vec::new();
        for (row, of) in self.rows.iter().enumerate() {
            match groups.last_mut() {
                Some((first, count)) if self.rows[*first].subjects == of.subjects => *count += 1,
                _ => groups.push((row, 1)),
            }
        }
        groups
    }

    /// Names of a row's subjects, joined.
    pub fn names(&self, row: &Row) -> String {
        let names: Vec<&str> =
            row.subjects.iter().map(|subject| self.subjects[*subject].name.as_str()).collect();
        names.join(" + ")
    }
}

fn read_text(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).with_context(|| format!("open {}", path.display()))?.len();
    ensure!(length <= MAX_FILE_BYTES, "{} is larger than {MAX_FILE_BYTES} bytes", path.display());
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The pictures of a subject's folder, sorted.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) && path.is_file() {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "{} holds no pictures", folder.display());
    found.sort();
    Ok(found)
}

/// The text file of a folder, if there is one.
fn prompt_file(folder: &Path) -> Result<Option<PromptFile>> {
    let Some(path) = PROMPT_FILES.map(|name| folder.join(name)).into_iter().find(|path| path.is_file())
    else {
        return Ok(None);
    };
    let file = PromptFile::parse(&read_text(&path)?).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(file))
}

fn folder(path: &Path) -> Result<Benchmark> {
    let inner = path.join("dataset");
    let file = match (prompt_file(path)?, prompt_file(&inner)?) {
        (Some(file), _) | (None, Some(file)) => file,
        (None, None) => bail!("it has none of {}", PROMPT_FILES.join(", ")),
    };
    let mut benchmark = Benchmark { subjects: Vec::new(), rows: Vec::new() };
    for (name, class) in &file.classes {
        let place = [path.join(name), inner.join(name)].into_iter().find(|place| place.is_dir());
        let place = place.with_context(|| format!("subject {name} has no folder"))?;
        let subject = benchmark.subjects.len();
        benchmark.subjects.push(Subject {
            name: name.clone(),
            words: class.clone(),
            pictures: pictures(&place)?,
        });
        let prompts = file.prompts(class).into_iter();
        benchmark.rows.extend(prompts.map(|prompt| Row { prompt, subjects: vec![subject] }));
    }
    Ok(benchmark)
}

fn rows_file(path: &Path, root: Option<&Path>) -> Result<Benchmark> {
    let rows: Vec<FileRow> = serde_json::from_str(&read_text(path)?).context("parse its rows")?;
    ensure!(rows.len() <= MAX_ROWS, "it has more than {MAX_ROWS} rows");
    let root = root.or(path.parent()).unwrap_or(Path::new("."));
    let mut benchmark = Benchmark { subjects: Vec::new(), rows: Vec::new() };
    let mut known: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let images = row.images();
        ensure!(
            (1..=MAX_SUBJECTS).contains(&images.len()),
            "row {number} has {} pictures of subjects, not 1 to {MAX_SUBJECTS}",
            images.len()
        );
        let mut subjects = Vec::new();
        for image in images {
            let place = root.join(image);
            let place =
                place.parent().with_context(|| format!("row {number} has a picture without folder"))?;
            let subject = match known.get(place) {
                Some(subject) => *subject,
                None => {
                    benchmark.subjects.push(subject_at(place).with_context(|| format!("read row {number}"))?);
                    known.insert(place.to_owned(), benchmark.subjects.len() - 1);
                    benchmark.subjects.len() - 1
                }
            };
            subjects.push(subject);
        }
        benchmark.rows.push(Row { prompt: row.prompt.clone(), subjects });
    }
    Ok(benchmark)
}

fn subject_at(place: &Path) -> Result<Subject> {
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let above = place.parent().unwrap_or(place);
    let mut words = None;
    for folder in [Some(above), above.parent()].into_iter().flatten() {
        if let Some(file) = prompt_file(folder)? {
            words = file.classes.get(&name).cloned();
            break;
        }
    }
    Ok(Subject { words: words.unwrap_or_else(|| words_of(&name)), pictures: pictures(place)?, name })
}

/// Words for a subject that no table has a class of: its folder's name without number and underscores.
fn words_of(name: &str) -> String {
    let words = name.trim_end_matches(|c: char| c.is_ascii_digit()).replace('_', " ");
    if words.trim().is_empty() { name.to_owned() } else { words.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> Result<()> {
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(std::fs::write(path, b"")?)
    }

    #[test]
    fn a_folder_makes_every_prompt_of_every_subject() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for file in
            ["dataset/dog2/00.jpg", "dataset/dog2/01.JPG", "dataset/dog2/notes.txt", "dataset/can/00.png"]
        {
            touch(folder.path().join(file))?;
        }
        let text = "subject_name,class\ndog2,dog\ncan,can\n\nObject Prompts\n'a {0} {1} here'\n'a {0} {1} there'\n\
                    Live Subject Prompts\n'a {0} {1} in a hat'\n";
        std::fs::write(folder.path().join("dataset/prompts_and_classes.txt"), text)?;
        let benchmark = Benchmark::read(folder.path(), None)?;
        let prompts: Vec<&str> = benchmark.rows.iter().map(|row| row.prompt.as_str()).collect();
        assert_eq!(prompts, ["a can here", "a can there", "a dog in a hat"]);
        assert_eq!(benchmark.subjects[1].pictures.len(), 2);
        assert_eq!(benchmark.groups(), [(0, 2), (2, 1)]);
        std::fs::remove_dir_all(folder.path().join("dataset/can"))?;
        let error = format!("{:#}", Benchmark::read(folder.path(), None).expect_err("a folder is gone"));
        assert!(error.contains("can"), "{error}");
        Ok(())
    }

    #[test]
    fn rows_are_read_in_every_published_spelling() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for file in ["subjects/cat/00.jpg", "subjects/cat2/00.jpg", "subjects/bear_plushie/03.jpg"] {
            touch(folder.path().join(file))?;
        }
        let path = folder.path().join("rows.json");
        std::fs::write(
            &path,
            r#"[{"prompt": "a cat and a toy", "image_paths": ["subjects/cat/00.jpg", "./subjects/bear_plushie/03.jpg"], "seed": 3},
                {"prompt": "two cats", "img_path1": "subjects/cat/00.jpg", "img_path2": "subjects/cat2/00.jpg"},
                {"text": "a cat", "image_path": "subjects/cat2/00.jpg"}]"#,
        )?;
        let benchmark = Benchmark::read(&path, None)?;
        let subjects: Vec<_> = benchmark.rows.iter().map(|row| row.subjects.clone()).collect();
        assert_eq!(subjects, [vec![0, 1], vec![0, 2], vec![2]]);
        let words: Vec<&str> = benchmark.subjects.iter().map(|subject| subject.words.as_str()).collect();
        assert_eq!(words, ["cat", "bear plushie", "cat"]);
        assert_eq!(benchmark.names(&benchmark.rows[1]), "cat + cat2");
        Ok(())
    }

    #[test]
    fn rows_without_pictures_and_empty_files_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.json");
        for (text, word) in [
            ("[]", "no rows"),
            ("{", "parse"),
            (r#"[{"prompt": "x"}]"#, "row 0"),
            (r#"[{"prompt": "x", "image_path": "absent/0.png"}]"#, "absent"),
        ] {
            std::fs::write(&path, text)?;
            let error = format!("{:#}", Benchmark::read(&path, None).expect_err(text));
            assert!(error.contains(word) && error.contains("rows.json"), "{error}");
        }
        Ok(())
    }
}
